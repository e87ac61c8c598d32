"""Charges: the scales and signs that frames carry, as functions on index sets, and the linear system they obey.

A charge variable is one unknown non-zero number per index of a few axes (its dependencies). Charges multiply, so
magnitudes add in log scale (a linear system over Q) and signs add mod 2 (over GF(2)), the same for every index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchgauge.spaces.axes import Axis

Row = dict["Var", Fraction]


@dataclass(eq=False)
class Var:
    """An unknown charge: one non-zero real per joint index of `axes`."""

    name: str
    axes: tuple[Axis, ...]
    magnitude: bool = True
    sign: bool = True
    origin: str = ""

    def support(self) -> frozenset[Axis]:
        """Root axes that the charge depends on."""
        return frozenset(leaf.root for a in self.axes for leaf in a.leaves())

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Charge:
    """A product of powers of charge variables: `log` for magnitudes, `odd` the variables whose sign enters."""

    log: Mapping[Var, Fraction] = field(default_factory=dict)
    odd: frozenset[Var] = frozenset()

    @staticmethod
    def of(var: Var) -> Charge:
        return Charge({var: Fraction(1)} if var.magnitude else {}, frozenset([var]) if var.sign else frozenset())

    def __bool__(self) -> bool:
        return bool(self.log) or bool(self.odd)

    def __add__(self, other: Charge) -> Charge:
        if not other:
            return self
        if not self:
            return other
        log = dict(self.log)
        for var, q in other.log.items():
            total = log.get(var, Fraction(0)) + q
            if total:
                log[var] = total
            else:
                log.pop(var, None)
        return Charge(log, self.odd ^ other.odd)

    def scaled(self, factor: Fraction | int) -> Charge:
        """Magnitudes to the power `factor`; signs stay, but for an even power, where they cancel."""
        log = {v: q * factor for v, q in self.log.items()} if factor else {}
        return Charge(log, frozenset() if factor % 2 == 0 else self.odd)

    def __neg__(self) -> Charge:
        return self.scaled(-1)

    def __sub__(self, other: Charge) -> Charge:
        return self + (-other)

    @property
    def magnitude(self) -> Charge:
        return Charge(self.log)

    @property
    def signs(self) -> Charge:
        return Charge({}, self.odd)

    def variables(self) -> set[Var]:
        return set(self.log) | set(self.odd)


NONE = Charge()


@dataclass(frozen=True)
class Equation:
    """`charge` is one everywhere (constant along `axes` if given). `soft`: holds only because some ε is not zero."""

    charge: Charge
    along: frozenset[Axis] | None
    soft: bool
    reason: str


@dataclass
class System:
    """The equations between charges, collected by the passes and solved once at the end."""

    equations: list[Equation] = field(default_factory=list)

    def zero(self, charge: Charge, reason: str, *, soft: bool = False) -> None:
        if charge:
            self.equations.append(Equation(charge, None, soft, reason))

    def constant(self, charge: Charge, axes: Iterable[Axis], reason: str) -> None:
        """The charge may not vary along `axes`."""
        axes = frozenset(axes)
        if charge and axes:
            self.equations.append(Equation(charge, axes, False, reason))

    def solve(self, *, soft: bool) -> Solution:
        """Solve for all variables; `soft` includes the equations that only a non-zero ε asks for."""
        chosen = [e for e in self.equations if soft or not e.soft]
        logs, odds = _Elimination(Fraction, "log"), _Elimination(lambda q: Fraction(q % 2), "sign")
        for equation in chosen:
            logs.impose_along(dict(equation.charge.log), equation.along)
            odds.impose_along({v: Fraction(1) for v in equation.charge.odd}, equation.along)
        return Solution(logs, odds)


@dataclass(frozen=True)
class Solution:
    """Every variable as a combination of free ones."""

    logs: _Elimination
    odds: _Elimination

    def log_row(self, row: Row) -> Row:
        return self.logs.reduce(row)

    def odd_row(self, row: Row) -> Row:
        return self.odds.reduce(row)


class _Elimination:
    """Gaussian elimination where unknowns are functions on index sets.

    A solved unknown is a combination of others; a restricted one equals a new unknown on fewer axes.
    """

    def __init__(self, field_: Callable[[Fraction], Fraction], what: str) -> None:
        self.field = field_
        self.what = what
        self.solved: dict[Var, Row] = {}
        self.supports: dict[Var, frozenset[Axis]] = {}

    def support(self, var: Var) -> frozenset[Axis]:
        if var not in self.supports:
            self.supports[var] = var.support()
        return self.supports[var]

    def reduce(self, row: Row) -> Row:
        """Substitute until only free variables are left."""
        out: Row = {}
        stack = list(row.items())
        while stack:
            var, q = stack.pop()
            if var in self.solved:
                stack.extend((v, q * p) for v, p in self.solved[var].items())
            else:
                out[var] = self.field(out.get(var, Fraction(0)) + q)
        return {v: q for v, q in out.items() if q}

    def impose_along(self, row: Row, along: frozenset[Axis] | None) -> None:
        """The combination is zero, or constant along the given axes (equal to a new unknown without them)."""
        if along is not None and row:
            below = frozenset(x for a in along for x in a.ground())
            known = frozenset().union(*(v.support() for v in row))
            if not known & below:
                return
            slack = Var("constant", tuple(sorted(known - below, key=lambda a: a.serial)))
            row[slack] = self.field(Fraction(-1))
        self.impose(row)

    def impose(self, row: Row) -> None:
        row = self.reduce(row)
        while row:
            pivot = self._pivot(row)
            if pivot is not None:
                q = row.pop(pivot)
                self.solved[pivot] = {v: self.field(-p / q) for v, p in row.items()}
                return
            row = self._restrict(row)

    def _pivot(self, row: Row) -> Var | None:
        """A variable that depends on every axis that any other one depends on."""
        best = max(row, key=lambda v: (len(self.support(v)), v.name))
        support = self.support(best)
        return best if all(self.support(v) <= support for v in row) else None

    def _restrict(self, row: Row) -> Row:
        """No variable spans all axes: an axis that only one of them knows must drop out of it."""
        supports = {v: self.support(v) for v in row}
        for var, support in supports.items():
            others = frozenset().union(*(s for v, s in supports.items() if v is not var))
            if not support <= others:
                return self._shrink(row, {var: support & others})
        common = frozenset.intersection(*supports.values())
        return self._shrink(row, dict.fromkeys(row, common))

    def _shrink(self, row: Row, supports: dict[Var, frozenset[Axis]]) -> Row:
        for var, support in supports.items():
            if support != self.support(var) and var not in self.solved:
                axes = tuple(sorted(support, key=lambda a: a.serial))
                self.solved[var] = {Var(var.name, axes, origin=var.origin): Fraction(1)}
        return self.reduce(row)
