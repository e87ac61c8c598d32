"""Moments of many variables at once: matrix products of symmetric monomials.

All moments ⟨h_i h_j h_k h_l⟩ of P variables are the entries of one matrix product A^T A, where the columns of A are the
P(P+1)/2 products h_i h_j: 21 × 21 for the four-point functions of six inputs, 56 × 56 for the six-point functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchgauge.fields.combinatorics import Mask, Term, number_of_multisets, rank, slots

_LARGEST_TABLE = 4_000_000
_BLOCK = 4096  # draws that are multiplied together


@dataclass(frozen=True)
class Plan:
    """Which moments a list of terms needs, at given tuples of variables.

    Attributes:
        variables: how many there are.
        tuples: sorted or not, [count, n].
        terms: coefficients and blocks of slots.
    """

    variables: int
    tuples: Tensor
    terms: list[Term]
    needed: dict[int, list[Mask]] = field(init=False)
    direct: bool = field(init=False)
    _where: dict[Mask, Tensor] = field(init=False)
    _unique: dict[int, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        masks = sorted({mask for _, blocks in self.terms for mask in blocks})
        needed: dict[int, list[Mask]] = {}
        for mask in masks:
            needed.setdefault(mask.bit_count(), []).append(mask)
        where, unique = {}, {}
        for degree, group in needed.items():
            parts = torch.cat([self.tuples[:, slots(mask)].sort(1).values for mask in group])
            found, inverse = torch.unique(parts, dim=0, return_inverse=True)
            unique[degree] = found
            where |= dict(zip(group, inverse.split(len(self.tuples)), strict=True))
        sizes = [table_size(self.variables, degree) for degree in needed]
        lean = sum(len(u) * d for d, u in unique.items()) * 4 < sum(sizes)
        for name, value in (("needed", needed), ("_where", where), ("_unique", unique)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "direct", max(sizes, default=0) > _LARGEST_TABLE or lean)

    def columns(self) -> int:
        """Numbers per draw that `moments` holds at once."""
        if self.direct:
            return max((len(u) for u in self._unique.values()), default=1) + self.variables
        half = max(((d + 1) // 2 for d in self._unique), default=1)
        return sum(number_of_multisets(self.variables, k) for k in range(1, half + 1))

    def moments(self, draws: Tensor, weights: Tensor | None = None) -> dict[int, Tensor]:
        """Means [..., count] over draws [..., draws, variables] of each unique product, by degree.

        Args:
            draws: values of the variables.
            weights: of the draws [draws], adding up to one; equal by default.
        """
        lead, count = draws.shape[:-2], draws.shape[-2]
        x = draws.mT.reshape(-1, self.variables, count)
        scale = 1.0 / count if weights is None else 1.0
        groups = max(1, _BLOCK // count)
        parts: list[dict[int, Tensor]] = []
        for several in x.split(groups):
            total: dict[int, Tensor] = {}
            for first in range(0, count, _BLOCK):  # a block of draws at a time stays in the processor's cache
                some = slice(first, first + _BLOCK)
                weight = None if weights is None else weights[some]
                for degree, value in self._sums(several[..., some].contiguous(), weight).items():
                    total[degree] = total[degree].add_(value) if degree in total else value
            parts.append({degree: self._picked(degree, value) * scale for degree, value in total.items()})
        return {d: torch.cat([part[d] for part in parts]).reshape(*lead, -1) for d in self._unique}

    def _sums(self, x: Tensor, weights: Tensor | None) -> dict[int, Tensor]:
        """Sums over draws, x [groups, variables, draws]: tables of all products, or the wanted ones alone."""
        if self.direct:
            return {d: _directly(x, wanted, weights) for d, wanted in self._unique.items()}
        powers = monomials(x, max(((d + 1) // 2 for d in self._unique), default=0))
        out = {}
        for degree in self._unique:
            left = powers[(degree + 1) // 2] if weights is None else powers[(degree + 1) // 2] * weights
            out[degree] = left @ powers[degree // 2].mT if degree > 1 else left.sum(-1)
        return out

    def _picked(self, degree: int, sums: Tensor) -> Tensor:
        """The wanted entries of a table."""
        wanted, a = self._unique[degree], (degree + 1) // 2
        if self.direct:
            return sums
        at = rank(wanted[:, :a], self.variables)
        if degree > 1:
            at = at * sums.shape[-1] + rank(wanted[:, a:], self.variables)
        return sums.reshape(len(sums), -1)[:, at]

    def unique(self, degree: int) -> Tensor:
        """The distinct sorted index tuples [count, degree] whose moments are wanted."""
        return self._unique[degree]

    def combine(self, moments: dict[int, Tensor]) -> Tensor:
        """Σ terms, [..., count of tuples]."""
        values = {mask: moments[mask.bit_count()][..., index] for mask, index in self._where.items()}
        total: Tensor | None = None
        for coefficient, blocks in self.terms:
            product = values[blocks[0]]
            for block in blocks[1:]:
                product = product * values[block]
            total = coefficient * product if total is None else total.add_(product, alpha=coefficient)
        if total is None:
            some = next(iter(moments.values()), torch.zeros(0, dtype=torch.float64))
            return torch.zeros(*some.shape[:-1], len(self.tuples), dtype=torch.float64)
        return total


def _directly(x: Tensor, wanted: Tensor, weights: Tensor | None) -> Tensor:
    """Sums over draws of chosen products, x [groups, variables, draws]."""
    parts = []
    for chunk in wanted.split(max(1, 64 * _BLOCK // max(1, x.shape[0] * x.shape[2]))):
        product = x[:, chunk[:, 0]]
        for slot in range(1, chunk.shape[1]):
            product *= x[:, chunk[:, slot]]
        parts.append(product.sum(-1) if weights is None else product @ weights)
    return torch.cat(parts, -1)


def monomials(x: Tensor, degree: int) -> list[Tensor]:
    """Products [..., multisets, draws] of degrees 0 .. degree of the variables [..., variables, draws].

    Multisets are in lexicographic order: those whose smallest entry is i are i and a multiset of i, i+1, …, and the
    latter are the last ones of their degree.
    """
    n = x.shape[-2]
    out = [x.new_ones(*x.shape[:-2], 1, x.shape[-1]), x]
    for k in range(2, degree + 1):
        product = x.new_empty(*x.shape[:-2], number_of_multisets(n, k), x.shape[-1])
        start = 0
        for i in range(n):
            count = number_of_multisets(n - i, k - 1)
            rest = out[-1][..., out[-1].shape[-2] - count :, :]
            torch.mul(rest, x[..., i : i + 1, :], out=product[..., start : start + count, :])
            start += count
        out.append(product)
    return out


def table_size(variables: int, degree: int) -> int:
    """Entries of the matrix product that holds all moments of a degree."""
    return number_of_multisets(variables, (degree + 1) // 2) * number_of_multisets(variables, degree // 2)


def degrees(terms: Iterable[Term]) -> set[int]:
    """Degrees of the moments that the terms need."""
    return {mask.bit_count() for _, blocks in terms for mask in blocks}
