"""The effective symmetry of a Bayesian neural network: the part of the gauge group that leaves its prior alone.

Two parameters on one orbit of the gauge group are the same function; a prior tells them apart, unless the
transformation that joins them leaves the prior invariant. Independent normal weights reduce GL(n) to O(n), rescalings
of ReLU units to nothing, and keep permutations and signs. The posterior has what the prior keeps, as the likelihood
sees functions alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import factorial

import torch
from torch import Tensor

from torchgauge.action.frame_action import FrameElement, FrameStage, depends, sizes, var_axes, var_sizes
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.laws import Kind
from torchgauge.fields.symmetry.absorption import Absorption, Move
from torchgauge.fields.symmetry.anatomy import real_module
from torchgauge.fields.symmetry.density import log_prior
from torchgauge.fields.symmetry.verdicts import invariant
from torchgauge.gauge import FRAMES, Element, GaugeGroup
from torchgauge.groups import matrices
from torchgauge.infer import infer
from torchgauge.spaces.axes import Axis
from torchgauge.spaces.axes import Kind as Frame
from torchgauge.spaces.charges import Var
from torchgauge.values import Factor

BUFFER = "buffer:"
ORTHOGONAL, TURNS, SIGNED = "O", "rotations of planes", "signed permutations"
PERMUTED, SIGNS, TRIVIAL = "permutations", "signs", "trivial"


@dataclass(frozen=True)
class Selected:
    """What a prior keeps of one factor of the gauge group.

    Attributes:
        factor: of the gauge group.
        kept: "O", "rotations of planes" (of a rotary embedding), "signed permutations", "permutations", "signs" or
            "trivial".
        reason: why no more is kept, or why it is.
    """

    factor: Factor
    kept: str
    reason: str

    def __str__(self) -> str:
        whole = f"{self.factor.kind}({self.factor.size})" + (f"^{self.factor.copies}" if self.factor.copies > 1 else "")
        return f"{whole} on {self.factor.name} → {self.kept}: {self.reason}"


@dataclass(eq=False)
class EffectiveSymmetry:
    """The subgroup of a gauge group under which a prior is invariant.

    Attributes:
        ensemble: the architecture and its prior.
        group: its whole gauge group.
    """

    ensemble: Ensemble
    group: GaugeGroup

    @property
    def stage(self) -> FrameStage:
        return self.group.frames

    @cached_property
    def factors(self) -> tuple[Selected, ...]:
        """One entry for each exact factor of the gauge group, in its order."""
        kept = [*map(self._matrix, self.stage.vectors), *((TRIVIAL, SHIFT_REASON) for _ in self.stage.sheared)]
        kept += [self._permutation(r) for r in self.stage.indices]
        kept += [(TRIVIAL, SCALE_REASON) for _ in self.stage.log_vars]
        kept += [self._sign(v) for v in self.stage.sign_vars]
        exact = [f for f in self.group.factors if f.exact]
        kept += [(TRIVIAL, SHIFT_REASON)] * (len(exact) - len(kept))  # shifts, invisible and unreachable directions
        return tuple(Selected(f, *k) for f, k in zip(exact, kept, strict=True))

    @property
    def dimension(self) -> int:
        """Continuous directions that the prior keeps."""
        sizes = [(s.factor.size, s.factor.copies) for s in self.factors if s.kept in (ORTHOGONAL, TURNS)]
        return sum(copies * n * (n - 1) // 2 for n, copies in sizes)

    @property
    def order(self) -> int:
        """Number of elements of the discrete part: what remains when the factors O are left out."""
        count = 1
        for s in self.factors:
            n, copies = s.factor.size, s.factor.copies
            if s.kept in (PERMUTED, SIGNED):
                count *= factorial(n) ** copies
            if s.kept in (SIGNS, SIGNED):
                count *= 2 ** (n * copies)
        return count

    def __str__(self) -> str:
        head = f"{self.ensemble.name}: dimension {self.dimension} of {self.group.dimension}"
        return "\n".join([f"{head}, {self.order:,} discrete elements", *(f"  {s}" for s in self.factors)])

    # -- elements ----------------------------------------------------------------------------------------------
    def random(self, generator: torch.Generator | None = None) -> Element:
        """A random element of the effective symmetry, every factor moved."""
        stage = self.stage
        mats, perms, signs = {}, {}, {}
        for r in stage.vectors:
            kept = self._matrix(r)[0]
            if kept != TRIVIAL:
                mats[r] = _element(kept, r, generator)
        for r in stage.indices:
            if self._permutation(r)[0] != TRIVIAL:
                perms[r] = torch.rand(*sizes(depends(r)), r.size, generator=generator).argsort(-1)
        for v in stage.sign_vars:
            if self._sign(v)[0] != TRIVIAL:
                signs[v] = torch.randint(0, 2, var_sizes(v), generator=generator).double() * 2 - 1
        element = stage.lifted(FrameElement(mats=mats, perms=perms, signs=signs), {})
        return Element(self.group, ((FRAMES, element),))

    # -- what is kept ------------------------------------------------------------------------------------------
    def _matrix(self, root: Axis) -> tuple[str, str]:
        plane = root.size == 2 and root.kind not in (Frame.GL, Frame.O, Frame.O1)
        if root.kind is Frame.O1:
            return self._discrete(root, "rotations that fix (1, …, 1) are followed no further than permutations")
        covers = [r for r in self.stage.covers if r.quotient is not None and r.quotient.root is root]
        if any(leg.label.dress for leg in self.stage.legs if leg.root is root or leg.root in covers):
            return TRIVIAL, "a gain stands in between"
        moves = self._moves(root, Kind.ORTHOGONAL)
        failing = self._failing(moves)
        if not failing:
            named = ", ".join(sorted({m.parameter for m in moves or ()}))
            return TURNS if plane else ORTHOGONAL, f"the laws of {named} are rotation invariant"
        return self._discrete(root, failing)

    def _discrete(self, root: Axis, why: str) -> tuple[str, str]:
        flips = self._failing(self._moves(root, Kind.SIGNS)) if root.kind in (Frame.GL, Frame.O) else why
        swaps = (
            self._failing(self._moves(root, Kind.PERMUTATIONS)) if root.kind in (Frame.GL, Frame.O, Frame.O1) else why
        )
        if not flips and not swaps:
            return SIGNED, why
        return (PERMUTED, why) if not swaps else (SIGNS, why) if not flips else (TRIVIAL, why)

    def _permutation(self, root: Axis) -> tuple[str, str]:
        failing = self._failing(self._moves(root, Kind.PERMUTATIONS))
        return (TRIVIAL, failing) if failing else (PERMUTED, "the laws are exchangeable along the axis")

    def _sign(self, var: Var) -> tuple[str, str]:
        axes = var_axes(var)
        moves: list[Move] = []
        for name, terms in self.stage.rows.items():
            if sum(var in odds for *_, odds in terms) % 2 == 0:
                continue
            layout = self.stage.layout[name]
            places = [layout.groups[d] for d, root in layout.roots.items() if root in axes]
            single = len(axes) <= 1 and len(places) == len(axes) and bool(layout.groups)
            moves.append(self._move(name, places[0] if places else 0, Kind.SIGNS, not single))
        failing = self._failing(moves)
        return (TRIVIAL, failing) if failing else (SIGNS, "the laws are even")

    def _moves(self, root: Axis, kind: Kind) -> list[Move] | None:
        """What moves with a frame; None where batch-norm statistics would have to."""
        covers = [r for r in self.stage.covers if r.quotient is not None and r.quotient.root is root]
        several = bool(depends(root))
        moves = []
        for name, layout in self.stage.layout.items():
            for leg in layout.legs:
                if leg.root is root or leg.root in covers:
                    if name.startswith(BUFFER):
                        return None
                    moves.append(self._move(name, layout.groups[leg.dim], kind, several))
        return moves

    def _move(self, name: str, axis: int, kind: Kind, part: bool) -> Move:
        """A move; one matrix per head or the like counts as a part: only isotropic laws keep it for sure."""
        program = self.stage.program
        if name.startswith(BUFFER):
            return Move(name, axis, kind, True)
        coordinate = program.coordinates[name]
        plain = coordinate.kind == "plain" and name not in program.rates
        plain = plain or (coordinate.kind == "offset" and kind is Kind.PERMUTATIONS)
        return Move(coordinate.name, axis, kind, part or bool(coordinate.views) or not plain)

    def _failing(self, moves: list[Move] | None) -> str:
        """Which parameter's law is not invariant; empty if all are."""
        if moves is None or any(m.parameter.startswith(BUFFER) for m in moves):
            return "statistics would have to move"
        bad = [m for m in moves if not invariant(self.ensemble, m, Absorption(tuple(moves)))]
        return f"the law of {bad[0].parameter} is not declared invariant under {bad[0].kind}" if bad else ""


SCALE_REASON = "no law of non-zero numbers is invariant under all scales"
SHIFT_REASON = "no law is invariant under all shifts"


def effective_symmetry(ensemble: Ensemble, points: Tensor) -> EffectiveSymmetry:
    """The subgroup of the gauge group that leaves the prior invariant.

    Every factor that is kept is kept for sure. For independent normal weights what is lost is lost for sure: an element
    of GL(n) outside of O(n) changes the covariance, a scale changes the variance, a shift the mean. For other laws more
    may be invariant than they declare.

    Args:
        ensemble: the architecture and the prior.
        points: example inputs [n, ...].

    Raises:
        CaptureError: the module cannot be traced.
    """
    points = ensemble.as_points(points)
    return EffectiveSymmetry(ensemble, infer(real_module(ensemble, points), (points,)))


def prior_change(symmetry: EffectiveSymmetry, element: Element, params: Mapping[str, Tensor]) -> float:
    """log p(gθ) + log |det ∂(gθ)/∂θ| − log p(θ): zero for all θ exactly if g leaves the prior invariant.

    The determinant is that of the matrix of the (affine) action, built column by column: for small networks.

    Args:
        symmetry: whose prior and group.
        element: g, of `symmetry.group`.
        params: one network [*shape] each.
    """
    names = list(params)
    widths = [params[n].numel() for n in names]
    flat = torch.cat([params[n].reshape(-1).double() for n in names])

    def act(vector: Tensor) -> Tensor:
        parts = vector.split(widths)
        given = {n: p.reshape(params[n].shape) for n, p in zip(names, parts, strict=True)}
        moved = symmetry.group.act(element, given)
        return torch.cat([moved[n].reshape(-1) for n in names])

    start = act(flat)
    columns = [act(flat + unit) - start for unit in torch.eye(len(flat), dtype=torch.float64)]
    volume = torch.linalg.slogdet(torch.stack(columns, 1))[1]
    stacked = [
        {n: p.reshape(1, *params[n].shape) for n, p in zip(names, v.split(widths), strict=True)} for v in (start, flat)
    ]
    after, before = (log_prior(symmetry.ensemble, one) for one in stacked)
    return float(after + volume - before)


def _element(kept: str, root: Axis, generator: torch.Generator | None) -> Tensor:
    """A matrix [*copies, n, n] of the kept group."""
    copies, n = sizes(depends(root)), root.size
    if kept == ORTHOGONAL:
        return matrices.sample("O", n, copies, 1.0, generator)
    if kept == TURNS:
        angle = 2 * torch.pi * torch.rand(copies, generator=generator, dtype=torch.float64)
        return matrices.complex_matrix(torch.cos(angle), torch.sin(angle))
    eye = torch.eye(n, dtype=torch.float64).expand(*copies, n, n)
    order = torch.rand(*copies, n, generator=generator).argsort(-1)
    flips = torch.randint(0, 2, (*copies, n), generator=generator).double() * 2 - 1
    out = eye.clone()
    if kept in (PERMUTED, SIGNED):
        out = torch.gather(out, -2, order[..., None].expand(*copies, n, n))
    return out * flips[..., None] if kept in (SIGNS, SIGNED) else out
