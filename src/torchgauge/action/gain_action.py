"""Gains between two layer norms move along curves of one spectrum (theory section 5).

Behind the first norm stands z with 1·z = 0, and the second sees P(γ ⊙ z) = A z with A = P diag(γ) P. Rotations on
either side can undo a change of γ if it keeps the eigenvalues of A: the roots of p' for p(x) = Π(x − γ_i). So the new
gains are the roots of p + c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torchgauge.action.additive import Additive
from torchgauge.action.frame_action import FrameElement, FrameStage
from torchgauge.action.shift_action import Coordinates
from torchgauge.groups import matrices
from torchgauge.spaces.constraints import Program
from torchgauge.spaces.gains import Place

SLACK = 1e-6
"""How far from equal the parts of the vector of ones may be: more where gains coincide, and then nothing moves."""


@dataclass
class GainStage(Additive):
    """Additive: how far along the curve, and the logarithm of what M 1 is multiplied by where that is seen."""

    program: Program
    place: Place

    @property
    def found(self) -> list[Place]:
        return [self.place]

    def name(self, key: Place) -> str:
        return f"isospectral {key.gain.name}"

    def moved(self, key: Place) -> str:
        return f"isospectral {self.program.coordinates[key.gain.name].name}"

    def dimension(self, key: Place) -> int:
        return self.shape(key)[0]

    def shape(self, key: Place) -> tuple[int, ...]:
        return (key.turns + key.shears,)

    def width(self, key: Place) -> int:
        return 1

    @cached_property
    def frames(self) -> FrameStage:
        """Of the network with a matrix in place of the gain."""
        run = self.place.run
        return FrameStage(run.program, run, run.frames.system.solve(soft=True))

    def act(self, values: Mapping[Place, Tensor], params: Coordinates) -> Coordinates:
        new = dict(params)
        for place, value in values.items():
            assert place.behind.quotient is not None
            old = params[place.gain.name].reshape(-1)
            gain, turn = isospectral(old, value[0]) if place.turns else (old, torch.eye(len(old), dtype=old.dtype))
            shear = _shear(old, gain, turn, torch.exp(value[-1]) if place.shears else torch.ones((), dtype=old.dtype))
            turned = FrameElement({place.front: turn, place.behind.quotient.root: turn} if place.turns else {})
            new = self.frames.act(self.frames.lifted(turned, {place.behind: shear}), new)
            new[place.gain.name] = gain.reshape(params[place.gain.name].shape)
        return new


def isospectral(gain: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The gains γ' at t on the curve through γ, and the rotation Q with P diag(γ') P Q = Q P diag(γ) P and Q 1 = 1.

    In an orthonormal basis of 1/√n and the eigenvectors of A, diag(γ) is an arrow matrix: the mean and b, b and λ, with
    b_j² = −p(λ_j) / Π_{k≠j}(λ_j − λ_k). On the curve λ and the mean stand still and b_j² is multiplied by 1 + c/p(λ_j).
    It ends where two gains meet: where c takes the smallest of the maxima p(λ_j) or the least deep of the minima to
    zero. The ratio of what is left of these two is multiplied by e^t, so that t adds up, and never reaches an end.

    Args:
        gain: γ, shape [n], n ≥ 2.
        t: a number, shape [].
    """
    n = len(gain)
    ones, base = torch.full((n, 1), n**-0.5, dtype=gain.dtype), matrices.complement(n).to(gain.dtype)
    levels, vectors = torch.linalg.eigh(base.mT @ (gain[:, None] * base))
    frame = torch.cat([ones, base @ vectors], 1)
    arm = frame[:, 1:].mT @ (gain / n**0.5)
    # log |p| at its extrema, which are maxima and minima in turn, the last one a minimum
    size = (levels[:, None] - gain).abs().clamp_min(1e-300).log().sum(1)
    top = torch.arange(n - 1) % 2 != n % 2
    far = torch.full_like(size, torch.inf)
    highest, lowest = torch.where(top, size, far).min(), torch.where(top, far, size).min()
    # c over the smallest maximum, and over the least deep minimum
    up = torch.expm1(t) / (1 + torch.exp(t + highest - lowest))
    down = torch.expm1(t) / (torch.exp(t) + torch.exp(lowest - highest))
    factor = torch.where(top, 1 + up * torch.exp(highest - size), 1 - down * torch.exp(lowest - size))
    arm = arm * factor.clamp_min(0).sqrt()
    arrow = torch.cat([torch.cat([gain.mean().reshape(1), arm])[None], torch.cat([arm[:, None], levels.diag()], 1)])
    moved, turned = torch.linalg.eigh(arrow)
    rank = gain.argsort().argsort()
    turned = (turned * torch.sign(turned[0])).mT[rank]
    even = ((turned[:, 0] * n**0.5 - 1).abs() < SLACK).all()
    turn = turned[:, 1:] @ frame[:, 1:].mT + 1 / n
    return torch.where(even, moved[rank], gain), torch.where(even, turn, torch.eye(n, dtype=gain.dtype))


def _shear(old: Tensor, new: Tensor, turn: Tensor, level: Tensor) -> Tensor:
    """w with (1 + 1wᵀ) Q diag(γ) z = diag(γ') Q z for all z across 1, and 1 + w·1 = `level`.

    Multiplied by 1ᵀ: v = Qᵀ(1 + n w) obeys (γ ⊙ v − Qᵀγ')·z = 0, so that v = (Qᵀγ' + κ) / γ, and 1·v = n · level.
    """
    n, back = len(old), turn.mT @ new
    offset = (n * level - (back / old).sum()) / (1 / old).sum()
    return (turn @ ((back + offset) / old) - 1) / n
