"""Frames through views: reshapes, permutations, concatenations and slices that stay, repetition."""

from __future__ import annotations

from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import Axis, Kind
from torchgauge.spaces.frames.state import Dim, FrameState, Value, step


@step.register
def _reshape(k: c.Reshape, state: FrameState) -> Value:
    x = state.value(k.x)
    dims = _regroup(state, x.axes, k.out.shape)
    if dims is not None:
        return Value(dims, x.charge)
    state.freeze(x)
    return state.born_rigid(k.out)


def _regroup(state: FrameState, axes: list[Axis], shape: tuple[int, ...]) -> tuple[Dim, ...] | None:
    pool = list(axes)
    dims: list[Dim] = []
    for n in shape:
        dim: list[Axis] = []
        need = n
        while need > 1:
            if not pool:
                return None
            head = pool.pop(0)
            if need % head.size == 0:
                dim.append(head)
                need //= head.size
                continue
            unfolded = head.leaves()
            if unfolded != [head]:
                pool[:0] = unfolded
                continue
            if head.size % need:
                return None
            parts = _split(state, head, need, shape[len(dims) + 1 :])
            if parts is None:
                return None
            pool[:0] = parts
        dims.append(tuple(_whole(state, dim)))
    return tuple(dims)


def _split(state: FrameState, head: Axis, need: int, following: tuple[int, ...]) -> list[Axis] | None:
    """Divide an axis at once into all the dimensions that it spans, so that one reading covers them."""
    sizes = [need]
    rest = head.size // need
    for n in following:
        if rest == 1 or rest % n:
            break
        if n > 1:
            sizes.append(n)
            rest //= n
    if rest > 1:
        sizes.append(rest)
    state.frames.settle(head)
    if head.leaves() != [head]:
        return head.leaves()
    parts = state.frames.split(head, tuple(sizes))
    return None if parts is None else list(parts)


def _whole(state: FrameState, dim: list[Axis]) -> list[Axis]:
    """Views that stand together again are the space that they came from."""
    out: list[Axis] = []
    i = 0
    while i < len(dim):
        whole = dim[i].view_of
        if whole is not None and not whole.root.factors:
            views = whole.root.views
            if tuple(dim[i : i + len(views)]) == views:
                out.append(whole)
                i += len(views)
                continue
            state.frames.settle(dim[i])
        out.append(dim[i])
        i += 1
    return out


@step.register
def _permute(k: c.Permute, state: FrameState) -> Value:
    x = state.value(k.x)
    kept = k.dims[: x.positions] == tuple(range(x.positions))
    return Value(tuple(x.dims[d] for d in k.dims), x.charge, x.positions if kept else 0)


@step.register
def _slice(k: c.Slice, state: FrameState) -> Value:
    x = state.value(k.x)
    _stand_still(state, x, k.dim)
    n = k.stop - k.start
    part = () if n == 1 else (Axis(n, k.out.name, Kind.INDEX, pinned=True),)
    return Value(tuple(part if i == k.dim else d for i, d in enumerate(x.dims)), x.charge)


@step.register
def _concat(k: c.Concat, state: FrameState) -> Value:
    moving = [(t, state.value(t)) for t in k.xs if not (t.role == "const" and t.fill == 0.0)]
    for _, x in moving:
        _stand_still(state, x, k.dim)
    base = moving[0][1]
    for _, x in moving[1:]:
        state.align(base, x, skip=k.dim)
    whole = (Axis(k.out.shape[k.dim], k.out.name, Kind.INDEX, pinned=True),)
    return Value(tuple(whole if i == k.dim else d for i, d in enumerate(base.dims)), base.charge)


def _stand_still(state: FrameState, x: Value, dim: int) -> None:
    """Nothing moves along a dimension, and no scale varies along it."""
    axes = x.dims[dim]
    for axis in axes:
        state.frames.pin(axis)
        state.frames.system.zero(state.frames.total(axis), state.frames.reason)
    state.frames.system.constant(state.total(x), axes, state.frames.reason)


@step.register
def _expand(k: c.Expand, state: FrameState) -> Value:
    x = state.value(k.x)
    index = frozenset(g for a in x.axes for g in a.ground() if g.kind is Kind.INDEX and not g.pinned)
    dims = tuple(
        d if d or n == 1 else (Axis(n, k.out.name, Kind.INDEX, depends=index, repeated=True),)
        for d, n in zip(x.dims, k.out.shape, strict=True)
    )
    return Value(dims, x.charge)
