"""Wick's theorem: full correlators from connected ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchgauge.fields.combinatorics import pairings, partitions, slots


def wick(kernel: Tensor, tuples: Tensor) -> Tensor:
    """The Gaussian n-point function: Σ over pairings Π K.

    Args:
        kernel: [points, points].
        tuples: index tuples [count, n].

    Returns:
        [count]; zeros for odd n.
    """
    count, n = tuples.shape
    total = torch.zeros(count, dtype=kernel.dtype)
    for pairing in pairings((1 << n) - 1) if n % 2 == 0 else ():
        product = torch.ones(count, dtype=kernel.dtype)
        for pair in pairing:
            a, b = slots(pair)
            product = product * kernel[tuples[:, a], tuples[:, b]]
        total = total + product
    return total


def contract(connected: Callable[[tuple[int, ...]], Tensor | None], n: int) -> Tensor:
    """Full n-point functions from connected ones: Σ over partitions Π κ_B.

    Args:
        connected: slots → κ of those slots [count], or None where it vanishes.
        n: how many slots.
    """
    blocks = {mask: connected(tuple(slots(mask))) for mask in range(1, 1 << n)}
    total: Tensor | None = None
    for partition in partitions(n, lambda mask: blocks[mask] is not None):
        product = torch.ones(())
        for mask in partition:
            value = blocks[mask]
            assert value is not None
            product = product * value
        total = product if total is None else total + product
    if total is None:
        some = next((b for b in blocks.values() if b is not None), torch.zeros(1, dtype=torch.float64))
        return torch.zeros_like(some)
    return total
