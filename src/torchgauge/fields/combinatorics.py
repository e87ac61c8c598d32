"""Partitions, pairings and multisets, and the coefficients of cumulants and of their unbiased estimates.

Slots are numbered 0 .. n−1; a set of slots is a bit mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import combinations_with_replacement

import torch
from torch import Tensor

Mask = int
Term = tuple[float, tuple[Mask, ...]]
"""A coefficient and the blocks whose moments it multiplies."""


def subsets_with_lowest(mask: Mask) -> Iterator[Mask]:
    """Subsets of `mask` that hold its lowest bit."""
    low = mask & -mask
    rest = mask ^ low
    part = rest
    while True:
        yield part | low
        if not part:
            return
        part = (part - 1) & rest


@cache
def pairings(mask: Mask) -> tuple[tuple[Mask, ...], ...]:
    """All ways to split the slots into pairs: (2m−1)!! of them."""
    if not mask:
        return ((),)
    out = []
    for pair in subsets_with_lowest(mask):
        if pair.bit_count() == 2:
            out += [(pair, *rest) for rest in pairings(mask ^ pair)]
    return tuple(out)


def slots(mask: Mask) -> list[int]:
    """The slots in a mask, in order."""
    return [i for i in range(mask.bit_length()) if mask >> i & 1]


def partitions(n: int, allowed: Callable[[Mask], bool]) -> list[tuple[Mask, ...]]:
    """All partitions of n slots into blocks that are allowed."""
    good = {mask for mask in range(1, 1 << n) if allowed(mask)}

    @cache
    def of(mask: Mask) -> tuple[tuple[Mask, ...], ...]:
        if not mask:
            return ((),)
        return tuple((b, *rest) for b in subsets_with_lowest(mask) if b in good for rest in of(mask ^ b))

    return list(of((1 << n) - 1))


def falling(m: int, k: int) -> float:
    """m (m−1) … (m−k+1)."""
    return float(math.prod(range(m - k + 1, m + 1))) if k else 1.0


def alternating(k: int) -> float:
    """(−1)^{k−1} (k−1)!, the Möbius function of the lattice of partitions."""
    return (-1.0) ** (k - 1) * math.factorial(k - 1)


def exact_terms(n: int, weight: Callable[[Mask], float], factor: Callable[[int], float]) -> list[Term]:
    """Σ_π factor(|π|) Π_{B∈π} weight(B) ⟨h_B⟩ as a list of terms."""
    return [
        (factor(len(blocks)) * math.prod(weight(b) for b in blocks), blocks)
        for blocks in partitions(n, lambda mask: weight(mask) != 0)
    ]


def unbiased_terms(n: int, weight: Callable[[Mask], float], factor: Callable[[int], float], draws: int) -> list[Term]:
    """Terms in sample means ⟨h_C⟩ whose expectation is Σ_π factor(|π|) Π weight(B) E[h_B] (docs/fields.md, section 4).

    Products of expectations are estimated over distinct draws, and the sums over distinct draws are written through
    sums over all draws by the Möbius function; so a U-statistic costs no more than its moments.

    Args:
        n: slots.
        weight: of a block; blocks of weight zero are left out.
        factor: of the number of blocks.
        draws: how many independent draws the means are over, at least the largest number of blocks.
    """
    full = (1 << n) - 1
    poly: dict[Mask, list[float]] = {0: [1.0] + [0.0] * n}
    for mask in range(1, full + 1):
        total = [0.0] * (n + 1)
        for block in subsets_with_lowest(mask):
            w = weight(block)
            if w:
                for k, value in enumerate(poly[mask ^ block][:-1]):
                    total[k + 1] += w * value
        poly[mask] = total
    signed = {mask: [0.0, *(alternating(k) * p[k] for k in range(1, n + 1))] for mask, p in poly.items() if mask}
    out = []
    for blocks in partitions(n, lambda mask: any(signed[mask])):
        conv = [1.0] + [0.0] * n
        for block in blocks:
            conv = [sum(conv[j] * signed[block][k - j] for j in range(k + 1)) for k in range(n + 1)]
        total = sum(c * factor(k) / falling(draws, k) for k, c in enumerate(conv) if c)
        if total:
            out.append((total * float(draws) ** len(blocks), blocks))
    return out


def most_blocks(n: int, weight: Callable[[Mask], float]) -> int:
    """The largest number of blocks of any partition that counts: so many distinct draws an estimate needs."""
    return max((len(blocks) for blocks in partitions(n, lambda mask: weight(mask) != 0)), default=0)


@lru_cache(maxsize=256)
def multisets(points: int, degree: int) -> Tensor:
    """All sorted index tuples [count, degree], in lexicographic order."""
    every = list(combinations_with_replacement(range(points), degree))
    return torch.tensor(every, dtype=torch.long).reshape(len(every), degree)


def number_of_multisets(points: int, degree: int) -> int:
    """C(points + degree − 1, degree)."""
    return math.comb(points + degree - 1, degree)


def rank(indices: Tensor, points: int) -> Tensor:
    """Positions [count] of sorted index tuples [count, degree] in `multisets(points, degree)`."""
    degree = indices.shape[1]
    if not degree:
        return torch.zeros(len(indices), dtype=torch.long)
    table = _choose(points + degree)
    position = torch.zeros(len(indices), dtype=torch.long)
    previous = torch.zeros(len(indices), dtype=torch.long)
    for slot in range(degree):
        left = degree - slot  # tuples that share the prefix and have a smaller entry here come before
        position += table[points - previous + left - 1, left] - table[points - indices[:, slot] + left - 1, left]
        previous = indices[:, slot]
    return position


@lru_cache(maxsize=64)
def _choose(n: int) -> Tensor:
    return torch.tensor([[math.comb(i, j) for j in range(n + 1)] for i in range(n + 1)], dtype=torch.long)


def block_weight(outputs: Sequence[int], moment: Callable[[int], float]) -> Callable[[Mask], float]:
    """weight(B) = Π_o E[w^{#slots of output o in B}], for independent readouts of the outputs."""
    groups = [sum(1 << s for s, o in enumerate(outputs) if o == output) for output in sorted(set(outputs))]

    @cache
    def weight(mask: Mask) -> float:
        return math.prod(moment((mask & g).bit_count()) for g in groups if mask & g)

    return weight
