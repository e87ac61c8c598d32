"""Views and copies: an algebra of axes (split, merge, broadcast, concatenate), and what changes no number."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from torchgauge.rules import axes
from torchgauge.rules.lower import Lowering
from torchgauge.rules.registry import operators, rule
from torchgauge.spaces.constraints import Profile, Tensor

aten = torch.ops.aten


@rule(*operators("clone", "detach", "alias", "contiguous", "lift", "lift_fresh", "lift_fresh_copy"))
def same(ctx: Lowering, x: Tensor, *_: object, **__: object) -> Tensor:
    return x


@rule(*operators("to", "_to_copy", "type_as"))
def cast(ctx: Lowering, x: Tensor, *_: object, **__: object) -> Tensor:
    """A change of precision is the identity; a change to integers or truth values is not."""
    source = ctx.node.args[0]
    floats = isinstance(source, torch.fx.Node) and source.meta["val"].is_floating_point()
    if floats and not ctx.floating:
        return ctx.b.pointwise(x, Profile("truncate"))
    return x


@rule(*operators("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"))
def dropout(ctx: Lowering, x: Tensor, p: float, train: bool) -> Tensor:
    if not train or p == 0:
        return x
    return ctx.b.mul(x, ctx.b.const(x.shape, "dropout"))  # a mask that follows no frame


@rule(*operators("native_dropout"))
def native_dropout(ctx: Lowering, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, None]:
    return dropout(ctx, x, p, bool(train)), None


@rule(*operators("reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as"))
@rule(*operators("reshape_as", "ravel", "_reshape_alias", "view_copy"))
@rule(aten.view.default, aten.atleast_1d.default, aten.atleast_2d.default, aten.atleast_3d.default)
def reshape(ctx: Lowering, x: Tensor, *_: object, **__: object) -> Tensor:
    """Everything whose result is the same numbers in the same order."""
    return axes.reshape(ctx.b, x, ctx.shape)


@rule(aten.permute)
def permute(ctx: Lowering, x: Tensor, dims: Sequence[int]) -> Tensor:
    return axes.permute(ctx.b, x, dims)


@rule(*operators("transpose", "swapaxes", "swapdims"))
def transpose(ctx: Lowering, x: Tensor, i: int, j: int) -> Tensor:
    return axes.transpose(ctx.b, x, i, j) if x.ndim else x


@rule(*operators("t", "numpy_T", "mT", "adjoint", "matrix_H", "mH"))
def t(ctx: Lowering, x: Tensor) -> Tensor:
    return axes.transpose(ctx.b, x, -1, -2) if x.ndim > 1 else x


@rule(*operators("movedim", "moveaxis"))
def movedim(ctx: Lowering, x: Tensor, source: int | Sequence[int], target: int | Sequence[int]) -> Tensor:
    pairs = zip(_ints(source), _ints(target), strict=True)
    places = {b % x.ndim: a % x.ndim for a, b in pairs}
    rest = iter(d for d in range(x.ndim) if d not in places.values())
    return axes.permute(ctx.b, x, [places[d] if d in places else next(rest) for d in range(x.ndim)])


@rule(*operators("expand", "expand_as", "broadcast_to"))
def expand(ctx: Lowering, x: Tensor, *_: object, **__: object) -> Tensor:
    return ctx.b.expand(x, ctx.shape)


@rule(*operators("repeat", "tile"))
def repeat(ctx: Lowering, x: Tensor, counts: Sequence[int]) -> Tensor:
    """Whole copies one behind another: a new factor outside each dimension."""
    n = max(len(counts), x.ndim)
    sizes = (1,) * (n - x.ndim) + x.shape
    counts = (1,) * (n - len(counts)) + tuple(counts)
    y = axes.reshape(ctx.b, x, [m for s in sizes for m in (1, s)])
    y = ctx.b.expand(y, [m for c, s in zip(counts, sizes, strict=True) for m in (c, s)])
    return axes.reshape(ctx.b, y, ctx.shape)


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(ctx: Lowering, x: Tensor, repeats: int, dim: int | None = None, **_: object) -> Tensor:
    if dim is None:
        x, dim = axes.reshape(ctx.b, x, (prod(x.shape),)), 0
    return axes.repeat_interleave(ctx.b, x, repeats, dim)


@rule(*operators("cat", "concat", "concatenate"))
def cat(ctx: Lowering, xs: Sequence[Tensor], dim: int = 0) -> Tensor:
    xs = [x for x in xs if x.shape != (0,)]
    return axes.concat(ctx.b, xs, dim)


@rule(aten.stack)
def stack(ctx: Lowering, xs: Sequence[Tensor], dim: int = 0) -> Tensor:
    dim %= xs[0].ndim + 1
    return axes.concat(ctx.b, [axes.unsqueeze(ctx.b, x, dim) for x in xs], dim)


@rule(*operators("hstack"))
def hstack(ctx: Lowering, xs: Sequence[Tensor]) -> Tensor:
    return axes.concat(ctx.b, xs, 0 if xs[0].ndim == 1 else 1)


@rule(aten.slice, *operators("slice_copy"))
def slice_(
    ctx: Lowering, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    first, last, step = slice(start, end, step).indices(x.shape[dim])
    if step == 1:
        return axes.narrow(ctx.b, x, dim, first, max(first, last))
    return strided(ctx, x, dim % x.ndim, first, last, step)


def strided(ctx: Lowering, x: Tensor, dim: int, start: int, stop: int, step: int) -> Tensor:
    """Every step-th entry: one index of an inner factor of a feature axis, else a map along the dimension."""
    size = x.shape[dim]
    if size % step or x.ndim > 3 or dim != x.ndim - 1 or stop <= start:
        return ctx.b.spatial(x, (dim,), ctx.shape, "linear", True)
    y = axes.reshape(ctx.b, x, (*x.shape[:dim], size // step, step))
    y = axes.select(ctx.b, y, dim + 1, start % step)
    return axes.narrow(ctx.b, y, dim, start // step, start // step + ctx.shape[dim])


@rule(aten.narrow)
def narrow(ctx: Lowering, x: Tensor, dim: int, start: int, length: int) -> Tensor:
    if not isinstance(start, int):
        return NotImplemented
    start = start % x.shape[dim] if start < 0 else start
    return axes.narrow(ctx.b, x, dim, start, start + length)


@rule(aten.select.int, *operators("select_copy"))
def select(ctx: Lowering, x: Tensor, dim: int, index: int) -> Tensor:
    return axes.select(ctx.b, x, dim, index)


@rule(
    *operators(
        "split", "split_with_sizes", "chunk", "tensor_split", "split_with_sizes_copy", "unsafe_split", "unsafe_chunk"
    )
)
@rule(*operators("split_copy", "hsplit", "vsplit", "dsplit"))
def split(ctx: Lowering, x: Tensor, _: Any, dim: int = 0) -> list[Tensor]:
    """Consecutive pieces, whatever the way of asking: their sizes are those of the results."""
    sizes = [tuple(v.shape) for v in ctx.node.meta["val"]]
    differing = [d for d in range(x.ndim) if any(s[d] != x.shape[d] for s in sizes)]
    dim = differing[0] if differing else dim % x.ndim
    found, at = [], 0
    for size in sizes:
        found.append(axes.narrow(ctx.b, x, dim, at, at + size[dim]))
        at += size[dim]
    return found


@rule(aten.unbind)
def unbind(ctx: Lowering, x: Tensor, dim: int = 0) -> list[Tensor]:
    return [axes.select(ctx.b, x, dim, i) for i in range(x.shape[dim])]


@rule(*operators("pad", "constant_pad_nd"))
def pad(ctx: Lowering, x: Tensor, amounts: Sequence[int], mode: Any = "constant", value: float | None = None) -> Tensor:
    """Constant padding concatenates a constant (a negative amount cuts); other modes repeat entries of x."""
    if not isinstance(mode, str):
        mode, value = "constant", mode
    if mode != "constant":
        dims = [x.ndim - 1 - i // 2 for i, n in enumerate(amounts) if n]
        return ctx.b.spatial(x, dims, ctx.shape, "linear", True) if dims else x
    for i in range(len(amounts) // 2):
        dim, before, after = x.ndim - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        x = axes.narrow(ctx.b, x, dim, max(0, -before), x.shape[dim] - max(0, -after))
        pieces = [_piece(ctx, x, dim, before, value), x, _piece(ctx, x, dim, after, value)]
        x = axes.concat(ctx.b, [p for p in pieces if p is not None], dim)
    return x


def _piece(ctx: Lowering, x: Tensor, dim: int, size: int, value: float | None) -> Tensor | None:
    shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
    return ctx.b.const(shape, "padding", float(value or 0.0)) if size > 0 else None


@rule(*operators("flip", "fliplr", "flipud"))
def flip(ctx: Lowering, x: Tensor, dims: Sequence[int] = ()) -> Tensor:
    dims = [d for d in (dims or range(x.ndim)) if x.shape[d] > 1]
    return ctx.b.spatial(x, dims, x.shape, "linear", True) if dims else x


@rule(aten.roll)
def roll(ctx: Lowering, x: Tensor, shifts: Any, dims: Any = ()) -> Tensor:
    dims = list(_ints(dims)) or list(range(x.ndim))
    return ctx.b.spatial(x, dims, x.shape, "linear", True)


@rule(*operators("pixel_shuffle"))
def pixel_shuffle(ctx: Lowering, x: Tensor, r: int) -> Tensor:
    *batch, c, h, w = x.shape
    n = len(batch)
    y = axes.reshape(ctx.b, x, (*batch, c // (r * r), r, r, h, w))
    y = axes.permute(ctx.b, y, (*range(n + 1), n + 3, n + 1, n + 4, n + 2))
    return axes.reshape(ctx.b, y, ctx.shape)


@rule(*operators("pixel_unshuffle"))
def pixel_unshuffle(ctx: Lowering, x: Tensor, r: int) -> Tensor:
    *batch, c, h, w = x.shape
    n = len(batch)
    y = axes.reshape(ctx.b, x, (*batch, c, h // r, r, w // r, r))
    y = axes.permute(ctx.b, y, (*range(n + 1), n + 2, n + 4, n + 1, n + 3))
    return axes.reshape(ctx.b, y, ctx.shape)


@rule(*operators("channel_shuffle", "native_channel_shuffle"))
def channel_shuffle(ctx: Lowering, x: Tensor, groups: int) -> Tensor:
    n, c, *rest = x.shape
    y = axes.reshape(ctx.b, x, (n, groups, c // groups, *rest))
    y = axes.permute(ctx.b, y, (0, 2, 1, *range(3, y.ndim)))
    return axes.reshape(ctx.b, y, x.shape)


@rule(*operators("slice_scatter"))
def slice_scatter(
    ctx: Lowering, x: Tensor, y: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """x with a slice replaced by y: what is before, y, what is behind."""
    first, last, step = slice(start, end, step).indices(x.shape[dim])
    return _replaced(ctx, x, y, dim, first, max(first, last)) if step == 1 else NotImplemented


@rule(*operators("select_scatter"))
def select_scatter(ctx: Lowering, x: Tensor, y: Tensor, dim: int, index: int) -> Tensor:
    index %= x.shape[dim]
    return _replaced(ctx, x, axes.unsqueeze(ctx.b, y, dim % x.ndim), dim, index, index + 1)


def _replaced(ctx: Lowering, x: Tensor, y: Tensor, dim: int, start: int, stop: int) -> Tensor:
    pieces = [axes.narrow(ctx.b, x, dim, 0, start), y, axes.narrow(ctx.b, x, dim, stop, x.shape[dim])]
    return axes.concat(ctx.b, [p for p in pieces if p.shape[dim]], dim)


@rule(*operators("copy"))
def copy(ctx: Lowering, x: Tensor, y: Tensor, *_: object) -> Tensor:
    """The numbers of y in the shape of x."""
    return ctx.b.expand(y, ctx.shape)


def _ints(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
