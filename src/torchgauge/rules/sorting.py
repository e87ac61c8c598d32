"""Single places and values: the largest entry, the k-th one, all in order along the first dimension."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from torchgauge.rules import axes
from torchgauge.rules.indexing import amax
from torchgauge.rules.lower import Lowering
from torchgauge.rules.registry import operators, rule
from torchgauge.spaces.constraints import Tensor

aten = torch.ops.aten


@rule(aten.argmax, aten.argmin)
def argmax(ctx: Lowering, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The first of all places in order; over all entries, its number in the flattened tensor."""
    if dim is None or not x.ndim:
        x, dim = axes.reshape(ctx.b, x, (prod(x.shape),)), 0
    return axes.reshape(ctx.b, _one(ctx, ctx.b.choose(x, dim, x.shape[dim]), dim), ctx.shape)


@rule(aten.max.dim, aten.min.dim)
def max_dim(ctx: Lowering, x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The largest entry is positively homogeneous; where it stands is the first of all places in order."""
    if not x.ndim:
        return x, ctx.b.const((), "position", 0.0)
    return amax(ctx, x, dim), argmax(ctx, x, dim)


@rule(*operators("kthvalue"))
def kthvalue(ctx: Lowering, x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    if not x.ndim:
        return NotImplemented
    order = ctx.b.choose(x, dim, x.shape[dim])
    found = (_one(ctx, ctx.b.take(x, order, dim), dim), _one(ctx, order, dim))
    return tuple(axes.reshape(ctx.b, y, ctx.shape) for y in found)


@rule(*operators("msort"))
def msort(ctx: Lowering, x: Tensor) -> Tensor:
    return ctx.b.take(x, ctx.b.choose(x, 0, x.shape[0]), 0) if x.ndim else x


def _one(ctx: Lowering, x: Tensor, dim: int) -> Tensor:
    """One entry along a dimension that is in order."""
    dim %= x.ndim
    return ctx.b.spatial(x, (dim,), (*x.shape[:dim], 1, *x.shape[dim + 1 :]), "linear", True)
