"""Frames through everything that is not linear in activations, and through maps along whole dimensions."""

from __future__ import annotations

from fractions import Fraction

from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import Axis, Kind
from torchgauge.spaces.charges import NONE
from torchgauge.spaces.frames.state import FrameState, Value, step


@step.register
def _pointwise(k: c.Pointwise, state: FrameState) -> Value:
    x = state.value(k.x)
    state.index_all(x)
    total, p, system, why = state.total(x), k.profile, state.frames.system, state.frames.reason
    centred = p.parity is not None and p.centre == (0.0, 0.0)
    if p.degree is not None:
        out = total.magnitude.scaled(Fraction(p.degree).limit_denominator(1000))
        if not centred:
            system.zero(total.signs, why)
        if not centred or p.parity == "odd":
            out = out + total.signs
        return state.scalar(x, out)
    system.zero(total.magnitude, why)
    if centred and p.parity == "odd":
        return state.scalar(x, total.signs)
    if not centred:
        system.zero(total.signs, why)
    return state.scalar(x, NONE if centred else total.signs)


@step.register
def _normalize(k: c.Normalize, state: FrameState) -> Value:
    x = state.value(k.x)
    inside = [a for d in k.dims for a in x.dims[d]]
    kind = Kind.O if k.kind == "rms" else Kind.O1
    vectors = frozenset(a for a in inside if a.view_of is not None)
    for axis in vectors:
        state.frames.settle(axis, vectors)
    state.keep_apart(x, k.dims)
    single = len(inside) == 1 and inside[0].leaves() == inside and not k.others
    for i, d in enumerate(x.dims):
        for axis in d:
            if i not in k.dims:
                state.frames.narrow(axis, Kind.INDEX)
            elif not (single and kind is Kind.O1):
                state.frames.narrow(axis, kind)
    for t in k.others:  # before any charge is read: blocks may share their axes, and a frame that collapses has charges
        _narrowed(state, k, state.value(t), kind)
    out = x
    if single and kind is Kind.O1:
        behind = state.frames.normalized(inside[0])
        dims = tuple(tuple(behind if a is inside[0] else a for a in d) for d in x.dims)
        out = Value(dims, x.charge)
    total = state.total(x)
    scale = total if k.kind == "layer" else total.magnitude
    state.frames.system.constant(scale, inside, state.frames.reason)
    for t in k.others:
        other = state.total(state.value(t))
        state.frames.system.zero((other if k.kind == "layer" else other.magnitude) - scale, state.frames.reason)
    if k.eps > 0:
        state.frames.system.zero(total.magnitude, "a scale changes the weight of ε", soft=True)
    return state.scalar(out, total.signs)


def _narrowed(state: FrameState, k: c.Normalize, y: Value, kind: Kind) -> None:
    """Another block of what is normalised: an orthogonal frame of its own."""
    for i, d in enumerate(y.dims):
        for axis in d:
            state.frames.narrow(axis, kind if i in k.dims else Kind.INDEX)
    state.keep_apart(y, k.dims)


@step.register
def _softmax(k: c.Softmax, state: FrameState) -> Value:
    x = state.value(k.x)
    state.index_all(x)
    state.keep_apart(x, (k.dim,))
    state.frames.system.zero(state.total(x), state.frames.reason)
    return x


@step.register
def _reduce(k: c.Reduce, state: FrameState) -> Value:
    x = state.value(k.x)
    inside = [a for d in k.dims for a in x.dims[d]]
    if k.mode == "max":
        state.index_all(x)
        state.frames.system.zero(state.total(x).signs, state.frames.reason)
    for axis in inside:
        state.frames.narrow(axis, Kind.INDEX)
    charge = x.charge + sum((state.frames.total(a) for a in inside), NONE)
    state.frames.system.constant(charge, inside, state.frames.reason)
    return Value(tuple(() if i in k.dims else d for i, d in enumerate(x.dims)), charge)


@step.register
def _gather(k: c.Gather, state: FrameState) -> Value:
    table = state.value(k.table)
    fresh = state.is_fresh(k.table)
    rows = table.dims[0]
    for axis in rows:
        state.frames.pin(axis)
    charge = table.charge + sum((state.frames.total(a) for a in rows), NONE)
    rest = [a for d in table.dims[1:] for a in d]
    if fresh and rest:
        state.free_legs(rest, frozenset())
        state.frames.system.zero(charge, state.frames.reason)
        charge = NONE
    state.frames.system.constant(charge, rows, state.frames.reason)
    n = k.out.ndim - (k.table.ndim - 1)
    index = tuple(() if m == 1 else (Axis(m, k.out.name, Kind.INDEX, pinned=True),) for m in k.out.shape[:n])
    return Value((*index, *table.dims[1:]), charge)


@step.register
def _spatial(k: c.Spatial, state: FrameState) -> Value:
    x = state.value(k.x)
    for d in k.dims:
        for axis in x.dims[d]:
            state.frames.pin(axis)
    charge = x.charge
    inside = [a for d in k.dims for a in x.dims[d]]
    if k.mode == "max":
        state.index_all(x)
        state.frames.system.zero(state.total(x).signs, state.frames.reason)
    if inside:
        charge = charge + sum((state.frames.total(a) for a in inside), NONE)
        state.frames.system.constant(charge, inside, state.frames.reason)
    dims = tuple(
        d if i not in k.dims else (() if n == 1 else (Axis(n, k.out.name, Kind.INDEX, pinned=True),))
        for i, (d, n) in enumerate(zip(x.dims, k.out.shape, strict=True))
    )
    return Value(dims, charge)


@step.register
def _rotate(k: c.Rotate, state: FrameState) -> Value:
    """The dimension is a product of planes and the two entries of each; every plane has a frame of its own."""
    x = state.value(k.x)
    dim, frames = x.dims[-1], state.frames
    vectors = frozenset(a for a in dim if a.view_of is not None)
    for axis in vectors:
        frames.settle(axis, vectors)
    plane, planes = Axis(2, "plane"), Axis(k.x.shape[-1] // 2, "planes", Kind.INDEX, pinned=True)
    pattern = [plane, planes] if k.layout == "half" else [planes, plane]
    for mine, other in frames.match(list(dim), pattern):
        if other is plane:
            frames.narrow(mine, Kind.COMPLEX)
            if not mine.root.kind.vector:
                frames.mixed.update(mine.ground())  # no other frame may depend on the entry of a plane
            frames.system.constant(state.total(x), mine.ground(), frames.reason)
        else:
            frames.pin(mine)
    return x


@step.register
def _opaque(k: c.Opaque, state: FrameState) -> Value:
    for x in k.xs:
        state.freeze(state.value(x))
    return state.born_rigid(k.out)
