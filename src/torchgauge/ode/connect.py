"""Smooth paths through given invertible matrices, and real logarithms."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from torchgauge.ode.errors import OrientationError
from torchgauge.ode.paths import smoothstep, smoothstep_rate


@final
class Connected(nn.Module):
    """A smooth path of invertible matrices through given ones.

    Between two of them, G_n and G_{n+1} = G_n Q P with Q a rotation and P positive, it is
    G_n exp(σ log Q) exp(σ log P), σ a smooth step with three derivatives that vanish at both ends. So the path has
    three continuous derivatives, and stands still at the given times.

    Args:
        times: [N + 1], increasing.
        matrices: [N + 1, d, d], each of positive determinant relative to the one before.

    Raises:
        OrientationError: two neighbours whose determinants have different signs; no path of invertible matrices joins
            them.
    """

    vectorised = True

    def __init__(self, times: Tensor, matrices: Tensor) -> None:
        super().__init__()
        relative = torch.linalg.solve(matrices[:-1], matrices[1:])
        bad = (torch.linalg.det(relative.detach()) <= 0).nonzero()[:, 0].tolist()
        if bad:
            what = f"no path of invertible matrices joins matrices {bad[0]} and {bad[0] + 1}: their orientations differ"
            raise OrientationError(what, f"times {float(times[bad[0]]):.6g} to {float(times[bad[0] + 1]):.6g}", "")
        turn, stretch = _polar_logarithms(relative.detach())
        # what the constants leave over is rounding in value, but carries the derivative in the given matrices
        rest = torch.linalg.matrix_exp(-turn) @ relative @ torch.linalg.matrix_exp(-stretch)
        rest = rest - torch.eye(rest.shape[-1], dtype=rest.dtype, device=rest.device)
        parts = {"times": times.detach(), "matrices": matrices, "turn": turn, "stretch": stretch, "rest": rest}
        for name, value in parts.items():
            self.register_buffer(name, value, persistent=False)

    times: Tensor
    matrices: Tensor
    turn: Tensor
    stretch: Tensor
    rest: Tensor

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k = (torch.searchsorted(self.times, t.detach().contiguous(), right=True) - 1).clamp(0, len(self.times) - 2)
        step = self.times[k + 1] - self.times[k]
        return k, (t - self.times[k]) / step, step

    def forward(self, t: Tensor) -> Tensor:
        """Matrices [..., d, d] at times [...]."""
        k, u, _ = self._locate(t.to(self.times.dtype))
        return self.matrices[k] @ self._inside(k, smoothstep(u)[..., None, None])[0]

    def velocity(self, t: Tensor) -> Tensor:
        return self.with_velocity(t)[1]

    def with_velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The path and its derivative at times [...]."""
        k, u, step = self._locate(t.to(self.times.dtype))
        inside, rate = self._inside(k, smoothstep(u)[..., None, None])
        frame = self.matrices[k]
        return frame @ inside, (smoothstep_rate(u) / step)[..., None, None] * (frame @ rate)

    def _inside(self, k: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """exp(s log Q) (1 + s R) exp(s log P) and its derivative in s; R is rounding."""
        turn, stretch, rest = self.turn[k], self.stretch[k], self.rest[k]
        turned = torch.linalg.matrix_exp(s * turn)
        turned, drift = turned + s * (turned @ rest), turned @ rest
        rate = turn @ turned + drift
        stretched = torch.linalg.matrix_exp(s * stretch)
        return turned @ stretched, rate @ stretched + turned @ (stretch @ stretched)


@final
class Steps(nn.Module):
    """A smooth path through given values: between two of them it is c_n + σ (c_{n+1} − c_n), σ a smooth step.

    Args:
        times: [N + 1], increasing.
        values: [N + 1, *shape].
    """

    vectorised = True

    def __init__(self, times: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("times", times.detach(), persistent=False)
        self.register_buffer("values", values, persistent=False)

    times: Tensor
    values: Tensor

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t = t.to(self.times.dtype)
        k = (torch.searchsorted(self.times, t.detach().contiguous(), right=True) - 1).clamp(0, len(self.times) - 2)
        step = self.times[k + 1] - self.times[k]
        shape = (*t.shape, *([1] * (self.values.ndim - 1)))
        return self.values[k], self.values[k + 1], ((t - self.times[k]) / step).reshape(shape), step.reshape(shape)

    def forward(self, t: Tensor) -> Tensor:
        """Values [..., *shape] at times [...]."""
        left, right, u, _ = self._locate(t)
        return left + smoothstep(u) * (right - left)

    def velocity(self, t: Tensor) -> Tensor:
        left, right, u, step = self._locate(t)
        return smoothstep_rate(u) / step * (right - left)


def _polar_logarithms(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """log Q and log P of matrices Q P of positive determinant, [n, d, d] each, without gradients."""
    left, values, right = torch.linalg.svd(matrices)
    stretch = right.mT @ (values.log()[..., None] * right)
    turns = [rotation_logarithm(turn) for turn in (left @ right).reshape(-1, *matrices.shape[-2:])]
    return torch.stack(turns).reshape(matrices.shape), (stretch + stretch.mT) / 2


def rotation_logarithm(rotation: Tensor) -> Tensor:
    """A real antisymmetric logarithm of a rotation, angles in [−π, π]; it exists for half turns too.

    Args:
        rotation: [d, d], orthogonal with determinant 1.

    Returns:
        [d, d], without gradient (computed by a real Schur form on the CPU).
    """
    from scipy.linalg import schur

    parts = schur(rotation.detach().cpu().double().numpy(), output="real")
    form, basis = parts[0], parts[1]
    d = len(form)
    log, flipped, k = np.zeros((d, d)), [], 0
    while k < d:
        if k + 1 < d and abs(form[k + 1, k]) > 1e-14:
            angle = np.arctan2((form[k + 1, k] - form[k, k + 1]) / 2, (form[k, k] + form[k + 1, k + 1]) / 2)
            log[k + 1, k], log[k, k + 1] = angle, -angle
            k += 2
            continue
        if form[k, k] < 0:
            flipped.append(k)
        k += 1
    for i, j in zip(flipped[::2], flipped[1::2], strict=True):  # reflections come in pairs: half turns
        log[j, i], log[i, j] = np.pi, -np.pi
    made = basis @ log @ basis.T
    return torch.as_tensor((made - made.T) / 2, dtype=rotation.dtype, device=rotation.device)
