"""Writing at given places: sums over edges, one-hot masks, tokens put back where they came from.

Where the places do not move, writing is a linear map along the dimensions in which they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from torchgauge.rules import axes
from torchgauge.rules.lower import Lowering
from torchgauge.rules.pointwise import PROFILES
from torchgauge.rules.registry import operators, rule
from torchgauge.spaces.constraints import Choice, Profile, Tensor

aten = torch.ops.aten


def spread(ctx: Lowering, x: Tensor, index: Tensor, source: Sequence[int] | None = None) -> frozenset[int]:
    """Dimensions along which an index tensor differs, or does not reach the ends of x or of the source."""
    uniform = ctx.constants.uniform(ctx.values[index]) if index in ctx.values else frozenset()
    sizes = zip(index.shape, x.shape, source or index.shape, strict=True)
    return frozenset(d for d, (n, m, s) in enumerate(sizes) if d not in uniform or not n == m == s)


def kept(ctx: Lowering, x: Tensor, dims: Sequence[int] | frozenset[int]) -> Tensor:
    """x where nothing is written, zero elsewhere."""
    if x.fill == 0.0:
        return x
    return ctx.b.mul(x, ctx.b.const(tuple(n if d in dims else 1 for d, n in enumerate(x.shape)), "mask"))


def _flat(x: Tensor, index: Tensor) -> bool:
    return x.ndim == index.ndim and x.ndim > 0


# -- scatter: an index for every entry ------------------------------------------------------------------------------
@rule(aten.scatter_add)
def scatter_add(ctx: Lowering, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    if not _flat(x, index):
        return NotImplemented
    ctx.picks(index)
    dims = spread(ctx, x, index, source.shape) | {dim % x.ndim}
    return ctx.b.add(x, ctx.b.spatial(source, sorted(dims), x.shape, "linear", False))


@rule(aten.scatter.src)
def scatter_source(ctx: Lowering, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    if not _flat(x, index):
        return NotImplemented
    ctx.picks(index)
    dims = spread(ctx, x, index, source.shape) | {dim % x.ndim}
    return ctx.b.add(kept(ctx, x, dims), ctx.b.spatial(source, sorted(dims), x.shape, "linear", False))


@rule(aten.scatter.value)
def scatter_value(ctx: Lowering, x: Tensor, dim: int, index: Tensor, value: float) -> Any:
    if not _flat(x, index):
        return NotImplemented
    if index.shape == x.shape and _all(ctx, index, dim % x.ndim):
        return ctx.b.const(x.shape, "written", float(value))
    ctx.picks(index)
    dims = spread(ctx, x, index) | {dim % x.ndim}
    return written(ctx, x, dims)


def _all(ctx: Lowering, index: Tensor, dim: int) -> bool:
    """Whether an index holds all places along a dimension, in any order, as the k largest of k entries do."""
    made = ctx.b.producers.get(index)
    return isinstance(made, Choice) and made.dim == dim and index.shape[dim] == made.x.shape[dim]


def written(ctx: Lowering, x: Tensor, dims: frozenset[int]) -> Tensor:
    """x with one number written at given places."""
    if x.role == "const":
        return ctx.b.const(x.shape, "written")
    mask = ctx.b.const(tuple(n if d in dims else 1 for d, n in enumerate(x.shape)), "mask")
    return ctx.b.add(kept(ctx, x, dims), mask)


@rule(*operators("scatter_reduce"))
def scatter_reduce(
    ctx: Lowering, x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    """Sums and means are linear; the largest (or smallest) entry per place is positively homogeneous."""
    if not _flat(x, index) or reduce == "prod" or not (x.fill == 0.0 or (reduce == "sum" and include_self)):
        return NotImplemented
    if reduce in ("sum", "mean"):
        return scatter_add(ctx, x, dim, index, source)
    ctx.picks(index)
    dims = spread(ctx, x, index, source.shape) | {dim % x.ndim}
    largest = ctx.b.spatial(source, sorted(dims), x.shape, "max", False)
    if not include_self:
        return largest
    return ctx.b.pointwise(largest, PROFILES["relu"] if reduce == "amax" else Profile("negative_part", degree=1))


@rule(*operators("masked_scatter"))
def masked_scatter(ctx: Lowering, x: Tensor, mask: Tensor, source: Tensor) -> Any:
    """x with the places of a mask filled from the source, one after the other.

    Where the mask is the same along the last dimensions, whole rows are put in place, as the features of a picture
    among the embeddings of tokens.
    """
    if mask.role != "const" or mask not in ctx.values:
        return NotImplemented
    missing = x.ndim - mask.ndim
    uniform = {d + missing for d in ctx.constants.uniform(ctx.values[mask])} | set(range(missing))
    lead = next((d for d in range(x.ndim) if all(e in uniform for e in range(d, x.ndim))), x.ndim)
    tail = x.shape[lead:]
    if not tail or source.shape[source.ndim - len(tail) :] != tail:
        return NotImplemented
    b, width = ctx.b, prod(tail)
    rows = axes.reshape(b, source, (prod(source.shape) // width if width else 0, *tail))
    placed = b.spatial(rows, (0,), (prod(x.shape[:lead]), *tail), "linear", False)
    return b.add(kept(ctx, x, range(lead)), axes.reshape(b, placed, x.shape))


# -- whole slices ---------------------------------------------------------------------------------------------------
@rule(*operators("index_copy"))
def index_copy(ctx: Lowering, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    if not x.ndim:
        return NotImplemented
    ctx.picks(index)
    dim %= x.ndim
    return ctx.b.add(kept(ctx, x, (dim,)), ctx.b.spatial(source, (dim,), x.shape, "linear", False))


@rule(aten.index_fill.int_Scalar)
def index_fill(ctx: Lowering, x: Tensor, dim: int, index: Tensor, value: float) -> Any:
    if not x.ndim:
        return NotImplemented
    ctx.picks(index)
    return written(ctx, x, frozenset([dim % x.ndim]))


@rule(*operators("index_put", "_unsafe_index_put"))
def index_put(
    ctx: Lowering, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Any:
    """x with x[..., i, j, ...] replaced by the values, or with them added."""
    picked = [d for d, i in enumerate(indices) if i is not None]
    given = [i for i in indices if i is not None]
    nodes = [n for n in ctx.node.args[1] if n is not None]  # type: ignore[union-attr]
    if not given:
        return NotImplemented
    if any(n.meta["val"].dtype in (torch.bool, torch.uint8) for n in nodes):
        return _masked_put(ctx, x, given, ctx.tensor(values), accumulate) if picked == [0] else NotImplemented
    shape = torch.broadcast_shapes(*(i.shape for i in given))
    for i in given:
        ctx.picks(i)
    rest = [d for d in range(x.ndim) if d not in picked]
    tail = tuple(x.shape[d] for d in rest)
    adjacent = picked == list(range(picked[0], picked[-1] + 1))
    before = picked[0] if adjacent else 0
    b, n = ctx.b, len(shape)
    whole = (*tail[:before], *shape, *tail[before:])
    values = b.expand(ctx.tensor(values), whole)
    # the places first, then the dimensions that are written whole
    values = axes.permute(b, values, (*range(before, before + n), *range(before), *range(before + n, len(whole))))
    values = axes.reshape(b, values, (prod(shape), *tail))
    spaces = tuple(x.shape[d] for d in picked)
    values = b.spatial(values, (0,), (prod(spaces), *tail), "linear", False)
    values = axes.reshape(b, values, (*spaces, *tail))
    order = [*picked, *rest]
    values = axes.permute(b, values, [order.index(d) for d in range(x.ndim)])
    return b.add(x if accumulate else kept(ctx, x, picked), values)


def _masked_put(ctx: Lowering, x: Tensor, masks: Sequence[Tensor], values: Tensor, accumulate: bool) -> Any:
    """x[mask] = values, the same values at every place; how many places a mask names is not known."""
    (mask,) = masks
    tail = x.shape[mask.ndim :]
    if mask.role != "const" or values.ndim > len(tail) + 1 or (values.ndim > len(tail) and values.shape[0] != 1):
        return NotImplemented
    b, lead = ctx.b, range(mask.ndim)
    values = axes.reshape(b, values, values.shape[max(0, values.ndim - len(tail)) :])
    written = b.mul(values, b.const((*mask.shape, *(1 for _ in tail)), "mask"))
    return b.add(x if accumulate else kept(ctx, x, lead), written)
