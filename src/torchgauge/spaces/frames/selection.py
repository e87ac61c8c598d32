"""Frames through choices by value: the k largest entries, and the rows of tables that they point to.

A choice along an index axis E has a dimension of k slots. A slot stands for one index of E, which one depends on the
data; so the slots are a member of the class of E, smaller than it. Under a permutation of E the positions change and
what they point to does not. Frames and charges that depend on the index of E are seen, at a slot, at the index that the
slot stands for: equations between functions on E hold at every slot if they hold at every index. This needs entries
that are never equal: a choice between equal ones goes by their position.
"""

from __future__ import annotations

from math import prod

from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import SAME, Axis, Kind
from torchgauge.spaces.charges import NONE, Charge
from torchgauge.spaces.directions import grouping
from torchgauge.spaces.frames.state import Dim, FrameState, Value, step


@step.register
def _choice(k: c.Choice, state: FrameState) -> Value:
    x = state.value(k.x)
    state.index_all(x)
    state.keep_apart(x, (k.dim,))
    total = state.total(x)
    # the order of the entries: c x, c > 0 the same for all of them
    state.frames.system.zero(total.signs, state.frames.reason)
    state.frames.system.constant(total.magnitude, x.dims[k.dim], state.frames.reason)
    distinct = _distinct(state, k.x, k.dim)
    if not distinct:
        for axis in x.dims[k.dim]:
            state.frames.pin(axis)
    n = k.out.shape[k.dim]
    slots = () if n == 1 else (_slots(k, state, x.dims[k.dim], n),)
    return state.scalar(Value(tuple(slots if i == k.dim else d for i, d in enumerate(x.dims))), NONE)


def _slots(k: c.Choice, state: FrameState, entries: Dim, n: int) -> Axis:
    (whole,) = _single(state, entries)
    whole.root.chosen = True
    return Axis(n, k.out.name, parent=whole, label=SAME, sample=k.out)


def _single(state: FrameState, entries: Dim) -> Dim:
    """Entries as one axis; where they are a product of axes (groups), one that stands still in their place."""
    leaves = tuple(leaf for axis in entries for leaf in axis.leaves())
    if len(leaves) == 1:
        return leaves
    for axis in entries:
        state.frames.pin(axis)
    size = prod(leaf.size for leaf in leaves)
    return (
        state.merged.setdefault(tuple(leaf.root for leaf in leaves), Axis(size, "entries", Kind.INDEX, pinned=True)),
    )


INJECTIVE = frozenset(
    {"sigmoid", "logsigmoid", "log_sigmoid", "tanh", "exp", "expm1", "log", "softplus", "silu", "gelu"}
)
"""Functions that no two entries share a value of, but for inputs of measure zero."""


def _distinct(state: FrameState, t: c.Tensor, dim: int) -> bool:
    """No two entries along a dimension are equal, for almost all parameters and inputs.

    Between equal entries, a choice goes by their position, and a permutation would change it.
    """
    made = state.makers.get(t)
    match made:
        case None:
            return t.role == "param"
        case c.Contract():
            label = made.out_labels[dim]
            for mine, labels, other in ((made.x, made.x_labels, made.y), (made.y, made.y_labels, made.x)):
                if label in labels and _static(state, mine):
                    return _generic(state, other)
            return False
        case c.Add():
            return any(x.shape[dim] > 1 and _distinct(state, x, dim) for x in (made.x, made.y))
        case c.Mul():
            return made.y.fill not in (None, 0.0) and _distinct(state, made.x, dim)
        case c.Pointwise():
            return made.profile.name in INJECTIVE and _distinct(state, made.x, dim)
        case c.Permute():
            return _distinct(state, made.x, made.dims[dim])
        case c.Reshape():
            for left, right in grouping(made.x.shape, made.out.shape):
                a = [d for d in left if made.x.shape[d] > 1]
                if dim in right and len(a) == 1 and made.x.shape[a[0]] == made.out.shape[dim]:
                    return _distinct(state, made.x, a[0])
            return False
        case c.Softmax() | c.Normalize() | c.Slice():
            return _distinct(state, made.x, dim)
    return False


def _static(state: FrameState, t: c.Tensor) -> bool:
    while isinstance(made := state.makers.get(t), (c.Reshape, c.Permute, c.Slice)):
        t = made.x
    return t.role == "param"


def _generic(state: FrameState, t: c.Tensor) -> bool:
    """No row is zero, for almost all parameters and inputs."""
    made = state.makers.get(t)
    match made:
        case None:
            return t.role in ("param", "input")
        case c.Add() | c.Concat():
            return any(_generic(state, x) for x in made.inputs)
        case c.Contract():
            return all(_generic(state, x) for x in made.inputs)
        case c.Mul():
            return all(_generic(state, x) or x.fill not in (None, 0.0) for x in made.inputs)
        case c.Pointwise():
            return made.profile.name in INJECTIVE and _generic(state, made.x)
        case c.Gather():
            return _generic(state, made.table)
        case c.Reshape() | c.Permute() | c.Slice() | c.Expand() | c.Normalize() | c.Softmax() | c.Rotate():
            return _generic(state, made.x)
    return False


def entries(state: FrameState, choice: c.Tensor) -> Dim:
    """The axes that positions, or a view of them, point into."""
    made = state.makers[choice]
    while not isinstance(made, c.Choice):
        assert isinstance(made, (c.Reshape, c.Permute, c.Expand, c.Slice))
        made = state.makers[made.x]
    dim = state.value(made.x).dims[made.dim]
    return _single(state, dim) if dim else dim


def _meet(state: FrameState, axes: Dim, chosen: Dim, charge: Charge) -> bool:
    """The entries that a choice points into are those that it was made of; else nothing there may move."""
    mine, theirs = ([leaf for axis in dim for leaf in axis.leaves()] for dim in (axes, chosen))
    if not mine and not theirs:
        return True  # one entry, which is always chosen
    if len(mine) == len(theirs) == 1 and mine[0].size == theirs[0].size and not (mine[0].sample or theirs[0].sample):
        state.frames.join_index(theirs[0], mine[0])
        return True
    for axis in (*axes, *chosen):
        state.frames.pin(axis)
    state.frames.system.constant(charge, axes, state.frames.reason)
    return False


@step.register
def _take(k: c.Take, state: FrameState) -> Value:
    x, choice = state.value(k.x), state.value(k.choice)
    state.index_all(x)
    total = state.total(x)
    for i, (dx, dy) in enumerate(zip(x.dims, choice.dims, strict=True)):
        if i != k.dim and dx and dy:
            state.index_pairs(dx, dy)
    _meet(state, x.dims[k.dim], entries(state, k.choice), total)
    return state.scalar(Value(choice.dims), total)


@step.register
def _pick(k: c.Pick, state: FrameState) -> Value:
    table, choice = state.value(k.table), state.value(k.choice)
    rows, fresh = table.dims[0], state.is_fresh(k.table)
    for axis in rows:
        state.frames.narrow(axis, Kind.INDEX)
    charge = table.charge + sum((state.frames.total(axis) for axis in rows), NONE)
    met = _meet(state, rows, entries(state, k.choice), charge)
    if met and fresh:
        index = frozenset(g for axis in rows for g in axis.ground())
        for axis in (a for d in table.dims[1:] for a in d):
            axis.root.depends = axis.root.depends | index
    charge = charge - sum((state.frames.total(leaf) for leaf in choice.leaves()), NONE)
    return Value((*choice.dims, *table.dims[1:]), charge, len(choice.dims) if met and fresh else 0)
