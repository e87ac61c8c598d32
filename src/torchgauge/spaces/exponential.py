"""Exponentials of sums as products: exp(r (x + b)) = exp(r x) ⊙ exp(r b), for the frame pass.

A parameter that only exponentials read is replaced by the positive gain exp(r b): its charge is then a shift of b by a
logarithm, and trades with the readers of the exponential as any gain does. Every rewriting is an identity between
tensors; the parameter keeps its own coordinate, and the frame action adds where it would multiply.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from math import exp

from torchgauge.spaces import constraints as c

VIEWS = (c.Reshape, c.Permute, c.Slice, c.Expand)
LARGEST = 64
"""Rates of one parameter must be related by fractions of numbers up to this."""


def exponentiated(program: c.Program) -> c.Program:
    """The same program with exponentiated parameters as gains; their rates stand in `program.rates`."""
    rates = _rates(program)
    found = {}
    for name, t in program.params.items():
        seen = rates.get(t, frozenset([0.0]))
        if 0.0 not in seen and all(_ratio(r, min(seen)) for r in seen):
            found[name] = min(seen)
    return _Writer(program, found).run() if found else program


def _ratio(r: float, base: float) -> Fraction | None:
    """r/base if that is a simple fraction (a charge to an inexact power would be wrong)."""
    ratio = Fraction(r / base).limit_denominator(LARGEST)
    simple = abs(ratio.numerator) <= LARGEST and abs(float(ratio) - r / base) <= 1e-15 * abs(r / base)
    return ratio if ratio and simple else None


def _rates(program: c.Program) -> dict[c.Tensor, frozenset[float]]:
    """Every r such that some reader sees exp(r t); with 0 if some reader sees anything else."""
    rates: dict[c.Tensor, frozenset[float]] = {t: frozenset([0.0]) for t in program.outputs}
    for k in reversed(program.constraints):
        for r in rates.get(k.out, frozenset([0.0])):
            for t, inner in _inside(k, r):
                rates[t] = rates.get(t, frozenset()) | {inner}
    return rates


def _inside(k: c.Constraint, rate: float) -> Iterator[tuple[c.Tensor, float]]:
    """What a constraint reads, with the rate at which it stands in an exponent, if its result has one."""
    if isinstance(k, c.Pointwise) and k.profile.exponential:
        yield k.x, k.profile.rate
    elif isinstance(k, (*VIEWS, c.Gather)):
        yield from ((t, rate) for t in k.inputs)
    elif isinstance(k, c.Add):
        yield k.x, rate
        yield k.y, rate * k.alpha
    elif isinstance(k, c.Mul) and (number := _number(k)) is not None:
        yield k.x, rate * number
        yield k.y, 0.0
    else:
        yield from ((t, 0.0) for t in k.inputs)


def _number(k: c.Mul) -> float | None:
    """The one number that a product multiplies by."""
    fill = k.y.fill
    return fill**k.power if k.y.role == "const" and fill and k.x.shape == k.out.shape else None


class _Writer:
    def __init__(self, program: c.Program, rates: dict[str, float]) -> None:
        self.program, self.rates = program, rates
        self.params = {program.params[name]: rate for name, rate in rates.items()}
        self.makers = {k.out: k for k in program.constraints}
        self.written: list[c.Constraint] = []
        self.known: dict[tuple[c.Tensor, float], c.Tensor] = {}
        self.holding = self._holding()
        self.source = ""

    def _holding(self) -> set[c.Tensor]:
        """Tensors that are sums in which a parameter with a rate stands."""
        found = set(self.params)
        for k in self.program.constraints:
            linear = isinstance(k, (*VIEWS, c.Gather, c.Add)) or (isinstance(k, c.Mul) and _number(k) is not None)
            if linear and any(t in found for t in k.inputs):
                found.add(k.out)
        return found

    def run(self) -> c.Program:
        for k in self.program.constraints:
            if isinstance(k, c.Pointwise) and k.profile.exponential and k.x in self.holding:
                self.source = k.out.source
                made = self._exponential(k.x, k.profile.rate)
                self.written.append(c.Reshape(k.out, made))
            else:
                self.written.append(k)
        return replace(self.program, constraints=self._pruned(), rates=self.rates)

    def _pruned(self) -> list[c.Constraint]:
        wanted, kept = set(self.program.outputs), []
        for k in reversed(self.written):
            if k.out in wanted:
                kept.append(k)
                wanted.update(k.inputs)
        return kept[::-1]

    def _exponential(self, t: c.Tensor, rate: float) -> c.Tensor:
        """exp(rate·t), with the exponentials of parameters as factors."""
        if (t, rate) not in self.known:
            self.known[t, rate] = self._write(t, rate)
        return self.known[t, rate]

    def _write(self, t: c.Tensor, rate: float) -> c.Tensor:
        out = c.Tensor(t.shape, "const" if t.role == "const" else "data", f"exp {t.name}", self.source)
        if t.role == "const":
            small = t.fill is not None and abs(rate * t.fill) < 100
            out.fill = exp(rate * t.fill) if small and t.fill is not None else None
            return out
        k = self.makers.get(t)
        made: c.Constraint
        if t in self.params:
            ratio = _ratio(rate, self.params[t])
            assert ratio is not None
            made = c.Pointwise(out, t, c.Profile("exponential of a parameter", degree=float(ratio)))
        elif t not in self.holding or k is None:
            made = c.Pointwise(out, t, c.Profile("exp", exponential=True, rate=rate))
        elif isinstance(k, c.Add):
            made = c.Mul(out, self._exponential(k.x, rate), self._exponential(k.y, rate * k.alpha))
        elif isinstance(k, c.Mul):
            return self._exponential(k.x, rate * (_number(k) or 0.0))
        elif isinstance(k, c.Gather):
            made = replace(k, out=out, table=self._exponential(k.table, rate))
        else:
            made = replace(k, out=out, x=self._exponential(k.x, rate))  # type: ignore[attr-defined]
        self.written.append(made)
        return out
