"""Factors of dimensions, along which a shift varies, and how they run through reshapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from torchgauge.spaces.directions import grouping


@dataclass(frozen=True)
class Factor:
    """A factor of a dimension: the part (i // stride) mod size of its index i."""

    dim: int
    stride: int
    size: int

    def inside(self, other: Factor) -> bool:
        end, whole = self.stride * self.size, other.stride * other.size
        return self.dim == other.dim and other.stride <= self.stride and end <= whole


def full(shape: tuple[int, ...], dims: Iterable[int] | None = None) -> frozenset[Factor]:
    """Whole dimensions."""
    return frozenset(Factor(d, 1, shape[d]) for d in (range(len(shape)) if dims is None else dims) if shape[d] > 1)


def covers(factors: frozenset[Factor], wanted: frozenset[Factor]) -> bool:
    """Whether every one of some factors lies inside one of the others."""
    return all(any(f.inside(g) for g in factors) for f in wanted)


def spread(factors: frozenset[Factor], shape: tuple[int, ...], other: tuple[int, ...]) -> frozenset[Factor]:
    """The same factors in a reshaped tensor; one that straddles dimensions unevenly is enlarged."""
    out: set[Factor] = set()
    for left, right in grouping(shape, other):
        for f in factors:
            if f.dim not in left:
                continue
            stride = f.stride * prod(shape[d] for d in left if d > f.dim)
            end = stride * f.size
            for d in right:
                low = prod(other[e] for e in right if e > d)
                high = low * other[d]
                first, last = max(stride, low), min(end, high)
                if first >= last or other[d] == 1:
                    continue
                even = first % low == 0 and last % first == 0
                out.add(Factor(d, first // low, last // first) if even else Factor(d, 1, other[d]))
    return frozenset(out)
