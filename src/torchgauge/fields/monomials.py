"""Moments of many variables at once: matrix products of symmetric monomials.

All moments ⟨h_i h_j h_k h_l⟩ of P variables are the entries of one matrix product A^T A, where the columns of A are the
P(P+1)/2 products h_i h_j: 21 × 21 for the four-point functions of six inputs, 56 × 56 for the six-point functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchgauge.fields.combinatorics import Mask, Term, multisets, number_of_multisets, rank, slots

_LARGEST_TABLE = 4_000_000


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
            weights: of the draws, adding up to one; equal by default.
        """
        scale = None if weights is not None else 1.0 / draws.shape[-2]
        if self.direct:
            return {d: self._directly(draws, u, weights) for d, u in self._unique.items()}
        top = max(((d + 1) // 2 for d in self._unique), default=0)
        powers = monomials(draws, top)
        out = {}
        for degree, wanted in self._unique.items():
            a, b = (degree + 1) // 2, degree // 2
            left = powers[a] if weights is None else powers[a] * weights[..., None]
            if b:
                table = left.mT @ powers[b]
                flat = table.flatten(-2)
                at = rank(wanted[:, :a], self.variables) * table.shape[-1] + rank(wanted[:, a:], self.variables)
            else:
                flat, at = left.sum(-2), rank(wanted, self.variables)
            picked = flat[..., at]
            out[degree] = picked if scale is None else picked * scale
        return out

    @staticmethod
    def _directly(draws: Tensor, wanted: Tensor, weights: Tensor | None) -> Tensor:
        parts = []
        for chunk in wanted.split(4096):
            product = draws[..., chunk[:, 0]]
            for slot in range(1, chunk.shape[1]):
                product = product * draws[..., chunk[:, slot]]
            parts.append(product.mean(-2) if weights is None else (product * weights[..., None]).sum(-2))
        return torch.cat(parts, -1)

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


def monomials(draws: Tensor, degree: int) -> list[Tensor]:
    """Products [..., draws, multisets] of degrees 0 .. degree of the variables [..., draws, variables]."""
    n = draws.shape[-1]
    out = [draws.new_ones(*draws.shape[:-1], 1), draws]
    for k in range(2, degree + 1):
        sets = multisets(n, k)
        out.append(out[-1][..., rank(sets[:, :-1], n)] * draws[..., sets[:, -1]])
    return out


def table_size(variables: int, degree: int) -> int:
    """Entries of the matrix product that holds all moments of a degree."""
    return number_of_multisets(variables, (degree + 1) // 2) * number_of_multisets(variables, degree // 2)


def degrees(terms: Iterable[Term]) -> set[int]:
    """Degrees of the moments that the terms need."""
    return {mask.bit_count() for _, blocks in terms for mask in blocks}
