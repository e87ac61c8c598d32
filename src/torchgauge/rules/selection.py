"""Entries picked by value: the k largest, and sorting."""

from __future__ import annotations

from torchgauge.rules.lower import Lowering
from torchgauge.rules.registry import operators, rule
from torchgauge.spaces.constraints import Tensor


@rule(*operators("topk"))
def topk(ctx: Lowering, x: Tensor, k: int, dim: int = -1, *_: object) -> tuple[Tensor, Tensor]:
    return _ordered(ctx, x, dim)


@rule(*operators("sort"))
def sort(ctx: Lowering, x: Tensor, dim: int = -1, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    return _ordered(ctx, x, dim)


@rule(*operators("argsort"))
def argsort(ctx: Lowering, x: Tensor, dim: int = -1, *_: object, **__: object) -> Tensor:
    return _ordered(ctx, x, dim)[1]


def _ordered(ctx: Lowering, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Values and positions, as many as the result has."""
    if not x.ndim:
        return x, ctx.b.const((), "position", 0.0)
    choice = ctx.b.choose(x, dim, ctx.shape[dim])
    return ctx.b.take(x, choice, dim), choice
