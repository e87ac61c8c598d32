"""The frames of one space in words and in size, of the network as it is or of one with something taken away."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lgamma, log, prod

from torchgauge.action.frame_action import depends
from torchgauge.explain.spaces import behind
from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import Axis, Kind
from torchgauge.spaces.charges import Solution
from torchgauge.spaces.frames import FramePass

Scales = tuple[bool, bool, bool, bool]
"""Whether there is a scale per entry, a sign per entry, one scale of all entries, one sign of all entries."""
NO_SCALES: Scales = (False, False, False, False)


@dataclass(frozen=True)
class Part:
    """What may stand on one factor of a space."""

    kind: Kind
    size: int
    copies: int
    pinned: bool
    scales: Scales

    @property
    def moves(self) -> bool:
        return self.kind.vector or not self.pinned or any(self.scales)

    @property
    def measure(self) -> tuple[float, float]:
        """Dimension, and the logarithm of the number of components, of one copy; scales of all entries do not count."""
        n, (scale, sign, _, _) = self.size, self.scales
        match self.kind:
            case Kind.GL:
                return float(n * n), log(2)
            case Kind.O:
                return n * (n - 1) / 2, log(2)
            case Kind.O1:
                return (n - 1) * (n - 2) / 2, log(2)
            case Kind.COMPLEX:
                return 2.0, 0.0
            case Kind.TURN:
                return 1.0, 0.0
        return float(n * scale), n * log(2) * sign + (0.0 if self.pinned else lgamma(n + 1))

    def words(self, *, block: bool) -> str:
        """ "signed permutations of 8"; with `block`, of what is an index of blocks."""
        n, (scale, sign, all_scale, all_sign) = self.size, self.scales
        common = {(1, 1): " and one non-zero scale", (1, 0): " and one positive scale", (0, 1): " and one sign"}
        what = f"{n} blocks" if block else f"{n}"
        if self.kind is Kind.COMPLEX:
            return f"C*^{self.copies} (one complex number per rotary pair)"
        if self.kind is Kind.TURN:
            return f"SO(2)^{self.copies} (one rotation per rotary pair)" + common.get((all_scale, all_sign), "")
        if self.kind is Kind.GL:
            return f"GL({n})"
        if self.kind.vector:
            fixing = " fixing 1" if self.kind is Kind.O1 else ""
            # a sign is a rotation or a reflection already, unless ones are to be fixed
            return f"O({n}){fixing}" + common.get((all_scale, all_sign and self.kind is Kind.O1), "")
        if scale or sign:
            each = "non-zero scales" if scale and sign else "positive scales" if scale else "signs"
            if self.pinned:
                return f"{each} of {what}, none of which may be exchanged"
            return f"signed permutations of {what}" if not scale else f"permutations of {what} with {each}"
        base = "" if self.pinned else f"permutations of {what}"
        return (base + common.get((all_scale, all_sign), "")).removeprefix(" and ")


@dataclass(frozen=True)
class Frame:
    """The group of one space: a product of parts, outermost first."""

    parts: tuple[Part, ...]

    @property
    def trivial(self) -> bool:
        return not any(p.moves for p in self.parts)

    @property
    def full(self) -> bool:
        return len(self.parts) == 1 and self.parts[0].kind is Kind.GL

    @property
    def measure(self) -> tuple[float, float]:
        each = [(p.copies, *p.measure) for p in self.parts]
        return sum(k * d for k, d, _ in each), sum(k * n for k, _, n in each)

    def __gt__(self, other: Frame) -> bool:
        (d, n), (e, m) = self.measure, other.measure
        return d > e + 1e-9 or (abs(d - e) < 1e-9 and n > m + 1e-9)

    def __str__(self) -> str:
        """ "permutations of 2 blocks and, in each, GL(4)"."""
        words, outer = [], 1
        for i, p in enumerate(self.parts):
            text = p.words(block=i < len(self.parts) - 1 and not p.kind.vector)
            if p.copies > 1 and not p.kind.plane:
                text = f"in each of {p.copies} blocks {text}" if text else ""
            elif outer > 1 and text and not p.kind.plane:
                text += " (the same in all blocks)"
            words += [text] if text else []
            outer *= p.size
        return ", and ".join(words) or "nothing"


def frame(frames: FramePass, solution: Solution, tensor: c.Tensor, dim: int) -> Frame:
    """The frames on one dimension of a parameter: those that every activation along it lets through."""
    roots = [g for axis in frames.value(tensor).dims[dim] for g in axis.ground()]
    parts = []
    for i, root in enumerate(roots):
        shown = behind(root)
        pinned = shown.pinned and shown.kind is Kind.INDEX
        bare = shown.kind in (Kind.GL, Kind.COMPLEX)
        scales = NO_SCALES if bare else _scales(frames, solution, shown, frozenset(map(behind, roots)))
        if i:  # told once
            scales = scales[0], scales[1], False, False
        parts.append(Part(shown.kind, shown.size, prod(a.size for a in depends(root)), pinned, scales))
    return Frame(tuple(parts))


def _scales(frames: FramePass, solution: Solution, root: Axis, space: frozenset[Axis]) -> Scales:
    """The scales, along an axis of a space, of the activation that allows least."""
    found: set[Scales] = set()
    static = _static(frames.program)
    for tensor, value in frames.values.items():
        if tensor in static or tensor.role not in ("data", "input"):
            continue
        if any(behind(g) is root for axis in value.axes for g in axis.ground()):
            total = frames.total(value)
            logs = solution.log_row(dict(total.log))
            odds = solution.odd_row({v: Fraction(1) for v in total.odd})
            each = any(root in v.support() for v in logs), any(root in v.support() for v in odds)
            common = any(not v.support() & space for v in logs), any(not v.support() & space for v in odds)
            found.add((*each, *common))
    return min(found, default=NO_SCALES)


def _static(program: c.Program) -> set[c.Tensor]:
    """Parameters and views of them."""
    found = {*program.params.values(), *program.buffers.values()}
    for k in program.constraints:
        if isinstance(k, (c.Reshape, c.Permute, c.Slice, c.Expand)) and k.x in found:
            found.add(k.out)
    return found
