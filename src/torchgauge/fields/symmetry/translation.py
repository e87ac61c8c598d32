"""Translations of the inputs, followed through a traced network until biases on a circle absorb them.

f(x + c): a first layer turns the constant c into the constant W c, which a bias absorbs, b ↦ b − W c, if it is uniform
on a circle of circumference p and independent of W. What is left is a multiple of p, and vanishes if the next map has a
period that divides p. It is the sum W x + b that must enter the periodic map: (W x mod p) + b alone is not enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torchgauge.fields.laws import Kind
from torchgauge.fields.symmetry.absorption import Absorption, Move
from torchgauge.fields.symmetry.anatomy import ADDITIONS, CASTS, MATRIX_PRODUCTS, Anatomy, above, lossy

aten = torch.ops.aten
PERIODS: dict[object, float] = {aten.sin.default: 2 * math.pi, aten.cos.default: 2 * math.pi, aten.tan.default: math.pi}
DIFFERENCES = (aten.sub.Tensor,)


@dataclass(frozen=True)
class Change:
    """How a tensor changes when the inputs move by a constant.

    Attributes:
        shifted: it moves by a constant vector along its last dimension, the same at every point.
        modulo: and by multiples of this number; 0 for no such freedom.
    """

    shifted: bool = False
    modulo: float = 0.0

    def __bool__(self) -> bool:
        return self.shifted or self.modulo > 0


NOTHING = Change()


class Lost(Exception):
    """A map that lets no translation through."""


def absorb_translation(anatomy: Anatomy) -> Absorption:
    """What absorbs a common translation of all points."""
    if anatomy.input is None:
        return Absorption(obstacle="the points are not the only input")
    changes: dict[fx.Node, Change] = {anatomy.input: Change(shifted=True)}
    moves: list[Move] = []
    for node in anatomy.graph.nodes:
        if node.op != "call_function" or not any(changes.get(n) for n in node.all_input_nodes):
            continue
        try:
            changes[node] = _step(anatomy, node, changes, moves)
        except Lost as lost:
            where = anatomy.captured.source(node)
            return Absorption(obstacle=f"{lost}" + (f" ({where})" if where else ""))
    left = changes.get(anatomy.output, NOTHING)
    if left:
        return Absorption(obstacle="the outputs themselves move")
    return Absorption(tuple(moves))


def _step(anatomy: Anatomy, node: fx.Node, changes: dict[fx.Node, Change], moves: list[Move]) -> Change:
    """The change of the result of one operator."""
    args: tuple[Any, ...] = node.args
    before = [changes.get(a, NOTHING) if isinstance(a, fx.Node) else NOTHING for a in args]
    target = node.target
    if target in CASTS and not lossy(node):
        return before[0]
    if target is aten.linear.default or target in MATRIX_PRODUCTS:
        if before[0].modulo or any(before[1:]) or _reads_points(anatomy, args[1]):
            raise Lost("a linear map that does not take a constant to a constant")
        bias = args[2] if len(args) > 2 else None
        return _biased(anatomy, node, bias, Change(shifted=True), moves)
    if target in ADDITIONS and not node.kwargs and len(before) == 2:
        if before[0] and before[1]:
            raise Lost("two moving tensors are added")
        moving, other = (before[0], args[1]) if before[0] else (before[1], args[0])
        return _biased(anatomy, node, other, moving, moves)
    if target in DIFFERENCES and not node.kwargs and before[0] and not before[1]:
        return before[0]
    if target is aten.remainder.Scalar and float(args[1]) > 0:
        period = float(args[1])
        if before[0].shifted:
            return Change(shifted=True, modulo=_common(before[0].modulo, period))
        return NOTHING if _divides(period, before[0].modulo) else Change(modulo=_common(before[0].modulo, period))
    if target in PERIODS and not before[0].shifted and _divides(PERIODS[target], before[0].modulo):
        return NOTHING
    if target in (aten.mul.Tensor, aten.div.Tensor) and isinstance(args[1], (int, float)) and args[1] != 0:
        factor = abs(args[1]) if target is aten.mul.Tensor else 1 / abs(args[1])
        return Change(before[0].shifted, before[0].modulo * factor)
    name = getattr(target, "__name__", str(target)).split(".")[0]
    raise Lost(f"{name} reads what a translation has moved, and nothing has absorbed it")


def _biased(anatomy: Anatomy, node: fx.Node, other: Any, change: Change, moves: list[Move]) -> Change:
    """A sum with what may be a bias on a circle."""
    name = anatomy.parameter(other)
    if name is None or not change.shifted:
        return change
    period = circle(anatomy, name, node)
    if period is None:
        return change
    moves.append(Move(name, -1, Kind.TRANSLATIONS))
    return Change(modulo=_common(change.modulo, period))


def circle(anatomy: Anatomy, name: str, node: fx.Node) -> float | None:
    """The circumference, if a parameter holds independent numbers on a circle, one for every entry of a sum."""
    law, shape = anatomy.ensemble.laws.get(name), anatomy.ensemble.shapes[name]
    width = node.meta["val"].shape[-1]
    if law is None or anatomy.uses(name) != 1 or not shape or shape[-1] != width or shape.count(1) + 1 < len(shape):
        return None
    found = [one.period for one in law.invariances(shape) if one.kind is Kind.TRANSLATIONS]
    return min(found) if found else None


def _reads_points(anatomy: Anatomy, node: Any) -> bool:
    """Whether a tensor depends on the points, even if translations leave it alone."""
    return anatomy.input in above(node)


def _divides(period: float, modulo: float) -> bool:
    """Whether `modulo` is a multiple of `period`, to rounding."""
    turns = modulo / period
    return turns > 0.5 and abs(turns - round(turns)) < 1e-12 * turns


def _common(a: float, b: float) -> float:
    """A number of which both are multiples: what is known modulo a and b."""
    if not a or _divides(b, a):
        return b
    if _divides(a, b):
        return a
    raise Lost(f"periods {a:g} and {b:g} do not fit")
