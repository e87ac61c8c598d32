"""Symmetry by duality, the constructive half: which parameters absorb a transformation of the outputs or the inputs.

A transformation T of f is a symmetry of the ensemble when f_θ' = T f_θ for some θ' with the law of θ (Maiti, Stoner,
Halverson, arXiv 2106.00694). Put a linear map with free weights E behind the network, y = E f(A x), and one with free
weights A before it: a frame R on the space between network and E is a gauge transformation of the probed net,
E ↦ E R⁻¹, θ ↦ θ', and says that f_θ' = R f_θ. So the engine that infers gauge groups finds what absorbs a rotation,
through any architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from torchgauge.action.frame_action import FrameStage, var_axes
from torchgauge.action.layout import Leg
from torchgauge.fields.laws import Kind
from torchgauge.fields.symmetry.transformations import Transformation
from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import Axis
from torchgauge.spaces.axes import Kind as Frame
from torchgauge.spaces.distribute import distribute
from torchgauge.spaces.exponential import exponentiated
from torchgauge.spaces.frames import FramePass

NET, BEHIND, BEFORE = "net.", "behind.weight", "before.weight"
MATRICES = {
    Kind.SPECIAL_ORTHOGONAL: (Frame.GL, Frame.O),
    Kind.SIGNS: (Frame.GL, Frame.O),
    Kind.PERMUTATIONS: (Frame.GL, Frame.O, Frame.O1),
}
"""Frames that contain a group."""


@dataclass(frozen=True, order=True)
class Move:
    """A group that acts along one axis of a parameter.

    Attributes:
        parameter: canonical name.
        axis: of the parameter.
        kind: the group; a subgroup that acts on a part of the axis counts as the group.
        part: the action covers only a part of the parameter's entries along another axis, or is otherwise no plain
            action along the whole axis: only a law that is isotropic in all entries is surely invariant.
    """

    parameter: str
    axis: int
    kind: Kind
    part: bool = False


@dataclass(frozen=True)
class Absorption:
    """What absorbs a transformation: the moves, or why there are none."""

    moves: tuple[Move, ...] = ()
    obstacle: str = ""


class _Probed(nn.Module):
    """behind(net(before(x))), the probes being parameters of their own."""

    def __init__(self, net: nn.Module, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.net = net
        self.before = nn.Linear(inputs + 1, inputs, bias=False, dtype=dtype, device=device)
        self.behind = nn.Linear(outputs, outputs + 1, bias=False, dtype=dtype, device=device)
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.net(self.before(x)))


@dataclass(frozen=True, eq=False)
class Probe:
    """The frames of a probed network.

    Args:
        stage: of the probed network.
    """

    stage: FrameStage

    def absorb(self, change: Transformation) -> Absorption:
        """What absorbs a rotation, permutation or flip of the outputs or the inputs."""
        key = BEHIND if change.side == "outputs" else BEFORE
        if key not in self.stage.layout:
            return Absorption(obstacle=f"the {change.side} are pieces that the network treats on their own")
        legs = [leg for leg in self.stage.layout[key].legs if self.stage.layout[key].groups[leg.dim] == _axis(key)]
        if not legs and change.kind is Kind.SIGNS:
            return self._flipped(None, key)
        if len(legs) != 1:
            return Absorption(obstacle=f"the {change.side} are no single space")
        leg = legs[0]
        if leg.label.dress:
            return Absorption(obstacle=f"a gain acts on the {change.side}, entry by entry")
        # in front of a layer norm stands a shear times the frame behind it: what the norm lets through is the latter
        root = leg.root if leg.root.quotient is None else leg.root.quotient.root
        if root.kind in MATRICES[change.kind]:
            return self._along(root, change, key)
        if root.kind is Frame.INDEX and not root.pinned and change.kind is Kind.PERMUTATIONS:
            return self._along(root, change, key)
        if root.kind is Frame.INDEX and change.kind is Kind.SIGNS and root is leg.root:
            return self._flipped(leg, key)
        return Absorption(obstacle=_why(root))

    def _along(self, root: Axis, change: Transformation, key: str) -> Absorption:
        """The frame on one root: every leg of it moves."""
        moves: list[Move] = []
        covered = [r for r in self.stage.covers if r.quotient is not None and r.quotient.root is root]
        for name, layout in self.stage.layout.items():
            for leg in layout.legs:
                if leg.root is not root and leg.root not in covered:
                    continue
                if name == key and layout.groups[leg.dim] == _axis(key):
                    continue
                if not name.startswith(NET):
                    return Absorption(obstacle=_foreign(name))
                if leg.label.dress:
                    return Absorption(obstacle=f"a gain stands between the {change.side} and {name.removeprefix(NET)}")
                moves.append(self._move(name, layout.groups[leg.dim], change.kind))
        return Absorption(tuple(sorted(set(moves))))

    def _flipped(self, leg: Leg | None, key: str) -> Absorption:
        """One free sign for each entry of an index axis; one for a whole axis of size one, which has no leg."""
        rows = self.stage.rows[key]
        odd = [v for dim, _, odds in rows for v in odds if leg is None or dim in (None, leg.dim)]
        wanted = () if leg is None else (leg.root,)
        free = [v for v in dict.fromkeys(odd) if odd.count(v) % 2 and var_axes(v) == wanted]
        if not free or (leg is not None and len(free) > 1):
            return Absorption(obstacle="no sign passes" if leg is None else _why(leg.root))
        sign = free[0]
        moves: list[Move] = []
        for name, terms in self.stage.rows.items():
            if sum(sign in odds for *_, odds in terms) % 2 == 0 or name == key:
                continue
            if not name.startswith(NET):
                return Absorption(obstacle=_foreign(name))
            layout = self.stage.layout[name]
            places = [layout.groups[d] for d, root in layout.roots.items() if leg is not None and root is leg.root]
            if leg is None and layout.groups:
                places = [0]  # all entries together: a subgroup of the signs along any axis
            if len(places) != 1:
                return Absorption(obstacle=f"signs act on {name.removeprefix(NET)} in a way that is not followed")
            moves.append(self._move(name, places[0], Kind.SIGNS))
        return Absorption(tuple(sorted(set(moves))))

    def _move(self, name: str, axis: int, kind: Kind) -> Move:
        program = self.stage.program
        coordinate = program.coordinates[name]
        plain = coordinate.kind == "plain" and name not in program.rates
        plain = plain or (coordinate.kind == "offset" and kind is Kind.PERMUTATIONS)
        part = bool(coordinate.views) or not plain
        return Move(coordinate.name.removeprefix(NET), axis, kind, part)


def probe(module: nn.Module, points: Tensor, outputs: int) -> Probe:
    """Find the frames of a network between two probes.

    Args:
        module: takes [..., d], returns [..., outputs]; without complex parameters.
        points: example inputs [..., d].
        outputs: D.

    Raises:
        CaptureError: the module cannot be traced.
    """
    from torchgauge.capture import capture
    from torchgauge.rules import lower

    probed = _Probed(module, points.shape[-1], outputs, points.dtype, points.device)
    wide = torch.randn(*points.shape[:-1], points.shape[-1] + 1, dtype=points.dtype, device=points.device)
    program = exponentiated(distribute(with_inner_products(lower(capture(probed, (wide,))))))
    frames = FramePass(program).run()
    return Probe(FrameStage(program, frames, frames.frames.system.solve(soft=True)))


def with_inner_products(program: c.Program) -> c.Program:
    """Sums of squares written as inner products x·x, which every rotation leaves alone."""
    makers = {k.out: k for k in program.constraints}
    moving: set[c.Tensor] = set()
    out: list[c.Constraint] = []
    for k in program.constraints:
        if any(t.role == "input" or t in moving for t in k.inputs):
            moving.add(k.out)
        x = _squared(k, makers)
        if x is None or not isinstance(k, c.Reduce) or not (x in moving or x.role == "input"):
            out.append(k)
            continue
        labels = tuple(f"i{d}" for d in range(x.ndim))
        kept = tuple(labels[d] for d in range(x.ndim) if d not in k.dims)
        inner = c.Tensor(
            tuple(x.shape[d] for d in range(x.ndim) if d not in k.dims), "data", k.out.name + "²", k.out.source
        )
        if k.mode == "sum":
            out += [c.Contract(inner, x, x, labels, labels, kept), c.Reshape(k.out, inner)]
            continue
        total = replace(k.out, name=inner.name + "n")
        share = c.Tensor((1,) * k.out.ndim, "const", "1/n", k.out.source, prod(k.out.shape) / prod(x.shape))
        out += [c.Contract(inner, x, x, labels, labels, kept), c.Reshape(total, inner), c.Mul(k.out, total, share)]
    return replace(program, constraints=out)


def _squared(k: c.Constraint, makers: dict[c.Tensor, c.Constraint]) -> c.Tensor | None:
    """x, if the constraint sums or averages x² over some dimensions."""
    if not isinstance(k, c.Reduce) or k.mode == "max":
        return None
    made = makers.get(k.x)
    if isinstance(made, c.Pointwise) and made.profile.name in ("square", "x^2"):
        return made.x
    if isinstance(made, c.Mul) and made.x is made.y and made.power == 1:
        return made.x
    return None


def _axis(key: str) -> int:
    """The axis of a probe that faces the network."""
    return 1 if key == BEHIND else 0


def _foreign(name: str) -> str:
    if name.startswith((BEHIND, BEFORE)):
        return "inputs and outputs share one frame: only both together can be transformed"
    return f"the statistics {name.removeprefix('buffer:').removeprefix(NET)} would have to move"


def _why(root: Axis) -> str:
    """What took the frames of an axis away."""
    if root.kind is Frame.O1:
        return "a layer norm lets only rotations through that fix the vector of ones"
    return root.narrowings[0].reason if root.narrowings else "no frame passes"
