"""The algebra of views: reshapes, permutations and slices brought to a form that keeps structure visible.

A slice of a factor that a reshape split off (packed q, k, v) is pushed below the reshape, so that the flat axis of the
writer is cut in contiguous blocks; consecutive reshapes and permutations compose. Emitting a view twice is harmless:
equal views of one tensor are shared, and what nobody reads is pruned.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torchgauge.spaces.builder import Builder
from torchgauge.spaces.constraints import Concat, Expand, Permute, Reshape, Slice, Tensor


def reshape(b: Builder, x: Tensor, shape: Sequence[int]) -> Tensor:
    """x.reshape(shape), composed with the reshapes before it."""
    shape = tuple(shape)
    before = b.producers.get(x)
    if isinstance(before, Reshape):
        return reshape(b, before.x, shape)
    if isinstance(before, Expand):
        moved = _below_expand(b, before, shape)
        if moved is not None:
            return moved
    return b.reshape(x, shape)


def permute(b: Builder, x: Tensor, dims: Sequence[int]) -> Tensor:
    """x.permute(dims), composed with those before it (an axis of size one may carry a scale, so it counts)."""
    dims = tuple(d % x.ndim for d in dims)
    before = b.producers.get(x)
    if isinstance(before, Permute):
        return permute(b, before.x, tuple(before.dims[d] for d in dims))
    return b.permute(x, dims)


def transpose(b: Builder, x: Tensor, i: int, j: int) -> Tensor:
    dims = list(range(x.ndim))
    dims[i], dims[j] = dims[j], dims[i]
    return permute(b, x, dims)


def narrow(b: Builder, x: Tensor, dim: int, start: int, stop: int) -> Tensor:
    """x[start:stop] along `dim`, pushed towards the tensor that is viewed."""
    dim %= x.ndim
    if (start, stop) == (0, x.shape[dim]):
        return x
    shape = (*x.shape[:dim], stop - start, *x.shape[dim + 1 :])
    before = b.producers.get(x)
    if isinstance(before, Permute):
        return permute(b, narrow(b, before.x, before.dims[dim], start, stop), before.dims)
    if isinstance(before, Slice) and before.dim == dim:
        return narrow(b, before.x, dim, before.start + start, before.start + stop)
    if isinstance(before, Expand):
        y = before.x
        return b.expand(y if y.shape[dim] == 1 else narrow(b, y, dim, start, stop), shape)
    if isinstance(before, Concat) and before.dim == dim:
        pieces = _pieces(before.xs, dim, start, stop)
        if pieces:
            return concat(b, pieces, dim)
    if isinstance(before, Reshape):
        pushed = _below_reshape(b, before.x, x, dim, start, stop)
        if pushed is not None:
            return pushed
    return b.slice(x, dim, start, stop)


def select(b: Builder, x: Tensor, dim: int, index: int) -> Tensor:
    dim, index = dim % x.ndim, index % x.shape[dim]
    y = narrow(b, x, dim, index, index + 1)
    return reshape(b, y, (*x.shape[:dim], *x.shape[dim + 1 :]))


def concat(b: Builder, xs: Sequence[Tensor], dim: int) -> Tensor:
    return b.concat(xs, dim % xs[0].ndim)


def unsqueeze(b: Builder, x: Tensor, dim: int) -> Tensor:
    dim %= x.ndim + 1
    return reshape(b, x, (*x.shape[:dim], 1, *x.shape[dim:]))


def repeat_interleave(b: Builder, x: Tensor, repeats: int, dim: int) -> Tensor:
    """Every index of `dim` repeated next to itself, as for grouped keys and values."""
    dim %= x.ndim
    y = unsqueeze(b, x, dim + 1)
    y = b.expand(y, (*x.shape[: dim + 1], repeats, *x.shape[dim + 1 :]))
    return reshape(b, y, (*x.shape[:dim], x.shape[dim] * repeats, *x.shape[dim + 1 :]))


def groups(xs: Sequence[int], ys: Sequence[int]) -> list[tuple[range, range]]:
    """The finest grouping of dimensions such that a reshape xs → ys acts group by group."""
    found: list[tuple[range, range]] = []
    i = j = 0
    while i < len(xs) or j < len(ys):
        i0, j0 = i, j
        p = q = 1
        while (i == i0 and j == j0) or p != q:
            if i < len(xs) and (p <= q or j == len(ys)):
                p *= xs[i]
                i += 1
            else:
                q *= ys[j]
                j += 1
        while i < len(xs) and xs[i] == 1:
            i += 1
        while j < len(ys) and ys[j] == 1:
            j += 1
        found.append((range(i0, i), range(j0, j)))
    return found


def _below_reshape(b: Builder, x: Tensor, y: Tensor, dim: int, start: int, stop: int) -> Tensor | None:
    """The slice of y = reshape(x) as a reshape of a slice of x, where `dim` is a factor of one dimension of x."""
    if 0 in x.shape:
        return None
    left, right = next(pair for pair in groups(x.shape, y.shape) if dim in pair[1])
    long = [d for d in left if x.shape[d] != 1]
    shape = (*y.shape[:dim], stop - start, *y.shape[dim + 1 :])
    if len(long) != 1:
        return None
    source = long[0]
    outer = prod(y.shape[right.start : dim])
    inner = prod(y.shape[dim + 1 : right.stop])
    if outer == 1:
        return reshape(b, narrow(b, x, source, start * inner, stop * inner), shape)
    if inner == 1:
        return None
    middle = reshape(b, x, (*x.shape[:source], outer, y.shape[dim] * inner, *x.shape[source + 1 :]))
    return reshape(b, b.slice(middle, source + 1, start * inner, stop * inner), shape)


def _below_expand(b: Builder, before: Expand, shape: tuple[int, ...]) -> Tensor | None:
    """A reshape after an expand that only adds or removes dimensions of size one moves below it."""
    x, y = before.x, before.out
    if [n for n in y.shape if n != 1] != [n for n in shape if n != 1]:
        return None
    small = iter([n for n, m in zip(x.shape, y.shape, strict=True) if m != 1])
    return b.expand(reshape(b, x, tuple(1 if n == 1 else next(small) for n in shape)), shape)


def _pieces(xs: Sequence[Tensor], dim: int, start: int, stop: int) -> list[Tensor]:
    """The members of a concatenation that the slice covers exactly, or nothing."""
    at, found = 0, []
    for x in xs:
        end = at + x.shape[dim]
        if start <= at and end <= stop:
            found.append(x)
        elif end > start and at < stop:
            return []
        at = end
    return found
