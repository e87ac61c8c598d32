"""Weights that read what parameters compute: what they make of it is a coordinate of its own (theory section 3).

Let a weight W, which is read nowhere else, multiply r vectors that parameters alone compute, the rows of H [r, n] with
r ≤ n. With the matrix M = [Hᵀ, E], E [n, n − r] fixed and drawn at random, W* = W M is as good a coordinate as W
wherever M is invertible. Its first r columns are W Hᵀ, which is all that is read; the others, and what computes H, are
free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import prod

import torch

from torchgauge.spaces import constraints as c
from torchgauge.spaces.builder import Builder

SMOOTH = frozenset(
    (
        "cos",
        "cosh",
        "erf",
        "exp",
        "expm1",
        "gelu",
        "gelu_tanh",
        "log_sigmoid",
        "logsigmoid",
        "mish",
        "sigmoid",
        "silu",
        "sin",
        "sinh",
        "softplus",
        "square",
        "tanh",
    )
)
"""Functions without kinks: behind others rows may vanish, or be alike, for many parameters."""
DRAWS = 3
"""Random parameters at which the rows must be independent."""
INDEPENDENT = 1e-6
"""Smallest singular value of a matrix that counts as invertible, relative to the largest."""


def turn_of(
    k: c.Contract, weight: c.Tensor, views: tuple[c.Constraint, ...], short: Mapping[str, int], numbers: c.Numbers
) -> c.Turn | None:
    """How the weight of a contraction takes up what it reads; None where the rows are too many or not the same
    everywhere.

    Args:
        k: a contraction of a weight with a tensor that is the same at every input.
        weight: the operand that shows the weight.
        views: the views that lead to it.
        short: sizes of the dimensions of the other operand, one where it is repeated.
        numbers: knows the other operand in numbers.
    """
    h, hl, wl = (k.y, k.y_labels, k.x_labels) if weight is k.x else (k.x, k.x_labels, k.y_labels)
    summed = tuple(a for a in wl if a in hl and a not in k.out_labels)
    rows = tuple(a for a in hl if a not in summed)
    free = tuple(a for a in wl if a not in summed)
    sizes = dict(zip(wl, weight.shape, strict=True))
    whole = all(sizes[a] == h.shape[hl.index(a)] for a in summed)
    apart = not set(rows) & set(free) and {*rows, *free} == set(k.out_labels)
    n, r = prod(sizes[a] for a in summed), prod(short[a] for a in rows)
    if k.window or not summed or not whole or not apart or r > n or not numbers.knows(h):
        return None
    return c.Turn(
        views,
        tuple(map(wl.index, free)),
        tuple(map(wl.index, summed)),
        h,
        tuple(h.shape[d] if a in summed else short[a] for d, a in enumerate(hl)),
        tuple(map(hl.index, rows)),
        tuple(map(hl.index, summed)),
        numbers,
    )


def column(b: Builder, k: c.Contract, weight: c.Tensor, labels: tuple[str, ...], turn: c.Turn) -> c.Tensor:
    """What the weight makes of the rows, read off its coordinate; as the result of k, without what is repeated.

    Args:
        weight: the tensor that shows the coordinate.
        labels: of its dimensions.
    """
    sizes = weight.shape
    free = [sizes[d] for d in turn.free]
    t = b.reshape(b.permute(weight, (*turn.free, *turn.summed)), (*free, prod(sizes[d] for d in turn.summed)))
    wide = [turn.short[d] for d in turn.rows]
    t = b.reshape(b.slice(t, len(free), 0, prod(wide)), (*free, *wide))
    theirs = k.y_labels if labels is k.x_labels else k.x_labels
    order = [*(labels[d] for d in turn.free), *(theirs[d] for d in turn.rows)]
    return b.permute(t, [order.index(a) for a in k.out_labels])


def independent(turn: c.Turn, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether M is invertible at random parameters of these shapes."""
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[str, torch.Tensor] = {}

        def raw(name: str, drawn: dict[str, torch.Tensor] = drawn, generator: torch.Generator = generator):
            if name not in drawn:
                # as large as they come: where a softmax becomes one-hot, rows are alike
                drawn[name] = torch.randn(shapes[name], generator=generator, dtype=torch.float64)
            return drawn[name]

        if not invertible(matrix(turn, raw)):
            return False
    return True


def rows_of(turn: c.Turn) -> int:
    """r, the number of rows."""
    return prod(turn.short[d] for d in turn.rows)


def invertible(m: torch.Tensor) -> bool:
    """Whether a matrix can be told from a singular one."""
    if not bool(m.isfinite().all()):
        return False
    values = torch.linalg.svdvals(m)
    return float(values[-1]) > INDEPENDENT * float(values[0])


def matrix(turn: c.Turn, raw: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """M, [n, n] in float64, from the parameters by name."""
    h = turn.numbers.value(turn.x, raw)
    for d, n in enumerate(turn.short):
        if n == 1 and h.shape[d] > 1:
            h = h.narrow(d, 0, 1)
    n = prod(turn.short[d] for d in turn.columns)
    h = h.permute(*turn.rows, *turn.columns).reshape(-1, n).to(torch.float64)
    return torch.cat([h.T, _fixed(n)[:, h.shape[0] :]], dim=1)


@lru_cache(maxsize=8)
def _fixed(n: int) -> torch.Tensor:
    """An orthogonal matrix, always the same: of unit vectors each would ask that one entry of H is not small."""
    drawn = torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q
