"""Frames through sums, products and contractions."""

from __future__ import annotations

from collections.abc import Sequence

from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import Axis, Kind, Label, attached
from torchgauge.spaces.charges import NONE, Charge, Var
from torchgauge.spaces.frames.state import Dim, FrameState, Value, step
from torchgauge.spaces.ledger import Gain


@step.register
def _contract(k: c.Contract, state: FrameState) -> Value:
    x, y = state.value(k.x), state.value(k.y)
    if state.is_fresh(k.x) and not state.is_fresh(k.y):
        k = c.Contract(k.out, k.y, k.x, k.y_labels, k.x_labels, k.out_labels, k.window, k.shift_safe)
        x, y = y, x
    fresh, both = state.is_fresh(k.y), state.is_fresh(k.x) and state.is_fresh(k.y)
    xd, yd = dict(zip(k.x_labels, x.dims, strict=True)), dict(zip(k.y_labels, y.dims, strict=True))
    shared = [a for a in k.x_labels if a in yd]
    batch = [a for a in shared if a in k.out_labels]
    summed = [a for a in shared if a not in k.out_labels]
    for a in k.window:
        for axis in (*xd.get(a, ()), *yd.get(a, ())):
            state.frames.pin(axis)
    _settle_contraction(state, x, xd, summed)
    _settle_contraction(state, y, yd, summed)
    apart = [tuple(axis for a, dim in dims.items() if a not in shared for axis in dim) for dims in (xd, yd)]
    if all(apart):
        state.meetings.append(((x, apart[0]), (y, apart[1])))
    charge = x.charge + y.charge
    kept = NONE
    for a in batch:
        for p, q in state.index_pairs(xd[a], yd[a]):
            charge = charge + state.frames.total(q)
            kept = kept + state.frames.total(p)
    constant: list[Axis] = []
    carrier: Axis | None = None
    for a in summed:
        for p, q in state.frames.match(list(xd[a]), list(yd[a])):
            loose = _once(xd, k.out_labels) & _dependence(p), _once(yd, k.out_labels) & _dependence(q)
            _keep_aligned(state, p, xd, shared)
            _keep_aligned(state, q, yd, shared)
            charge, index = _contract_pair(state, p, q, charge, fresh, loose)
            carrier = carrier or q
            if index:
                constant.append(p)
    for a in (*k.x_labels, *k.y_labels):
        if a not in k.out_labels and a not in shared:
            for axis in (*xd.get(a, ()), *yd.get(a, ())):
                state.frames.narrow(axis, Kind.INDEX)
                charge = charge + state.frames.total(axis)
                constant.append(axis)
    moved = bool(fresh and carrier is not None and state.frames.recharge(carrier, -kept - x.charge))
    if moved:
        charge = charge - x.charge
    free = [a for a in k.y_labels if a in k.out_labels and a not in shared and a not in k.window]
    if both:
        for a in summed:
            for axis in yd[a]:
                axis.root.fresh = False
    elif fresh and any(yd[a] for a in free):
        index = frozenset(g for a in batch for axis in yd[a] for g in axis.ground() if g.kind is Kind.INDEX)
        state.free_legs([axis for a in free for axis in yd[a]], index)
        state.frames.system.zero(charge, state.frames.reason)
        charge = NONE
    elif fresh:
        _unfresh(state, y)
    if constant:
        # what batch legs carry counts too: a leg may hold the charge of all factors of its space
        state.frames.system.constant(charge if moved else charge + kept, constant, state.frames.reason)
    if moved:
        charge = charge - kept
    sizes = dict(zip(k.out_labels, k.out.shape, strict=True))
    dims = []
    for a in k.out_labels:
        if a in k.window:
            dims.append(() if sizes[a] == 1 else (Axis(sizes[a], k.out.name, Kind.INDEX, pinned=True),))
        else:
            dims.append(xd.get(a) or yd.get(a, ()))
    out = Value(tuple(dims), charge)
    left = {g for axis in out.axes for g in axis.ground()}
    lost = [axis for dims in (xd, yd) for a, dim in dims.items() if a not in k.out_labels for axis in dim]
    gone = [g for axis in lost for g in axis.ground() if g not in left]
    state.frames.system.constant(state.total(out), gone, state.frames.reason)
    # an index that is summed here and kept there: a charge along the one is none along the other
    both_here = [g for axis in lost for g in axis.ground() if g in left]
    state.frames.system.constant(charge, both_here, "an axis is summed over and kept")
    return out


def _settle_contraction(state: FrameState, x: Value, dims: dict[str, Dim], summed: list[str]) -> None:
    vectors = frozenset(axis for a in summed for axis in dims[a] if axis.view_of is not None)
    for axis in vectors:
        state.frames.settle(axis, vectors)


def _once(dims: dict[str, Dim], labels: Sequence[str]) -> frozenset[Axis]:
    """Indices under these labels, each at one place of the tensor."""
    found = [g for dim in dims.values() for other in dim for g in other.ground()]
    return frozenset(g for a in labels for other in dims.get(a, ()) for g in other.ground() if found.count(g) == 1)


def _dependence(axis: Axis) -> frozenset[Axis]:
    """Indices that the frame of an axis depends on."""
    return frozenset(g for d in axis.root.depends for g in d.ground())


def _keep_aligned(state: FrameState, axis: Axis, dims: dict[str, Dim], shared: list[str]) -> None:
    """A frame that is summed over meets its dual at one index: it may depend on indices that both operands share."""
    aligned = _once(dims, shared)
    state.frames.limit_depends(axis, aligned)
    state.frames.limit_dress(axis, aligned)


def _contract_pair(
    state: FrameState, p: Axis, q: Axis, charge: Charge, fresh: bool, loose: tuple[frozenset[Axis], frozenset[Axis]]
) -> tuple[Charge, bool]:
    """Sum over one axis of x (p) and y (q): matrices must be dual, up to a charge of the result.

    `loose`: indices of the result that either frame may depend on. Where there are more on one side, as with keys that
    the queries of several heads share, this side keeps a number for each.
    """
    if fresh:
        state.frames.follow(q, p)
        return charge, False
    near, far = loose
    if near > far:
        p, q = q, p
    depends = near | far if near >= far or far >= near else near & far
    alpha = Charge.of(Var(f"score of {p.name}", tuple(sorted(depends, key=lambda a: a.serial))))
    if state.frames.equate(q, p, Label(flip=True, charge=alpha)):
        return charge + alpha, False
    return charge + state.frames.total(p) + state.frames.total(q), True


def _unfresh(state: FrameState, y: Value) -> None:
    for axis in y.axes:
        for g in axis.ground():
            g.fresh = False


@step.register
def _add(k: c.Add, state: FrameState) -> Value:
    x, y = state.value(k.x), state.value(k.y)
    for t, other in ((k.x, y), (k.y, x)):
        if t.role == "const":
            return _add_constant(state, t, other, k.out)
    if "buffer" in (state.gain_tensor(k.x).role, state.gain_tensor(k.y).role):
        # a statistic cannot be scaled, only permuted
        state.index_all(x)
        state.frames.system.zero(state.total(x), state.frames.reason)
    if x.dims and y.dims:
        _bar_broadcast(state, x, y)
        _bar_broadcast(state, y, x)
    state.align(x, y)
    dims = tuple(a or b for a, b in zip(x.dims, y.dims, strict=True))
    extra = (a for dx, dy in zip(x.dims, y.dims, strict=True) if not dx for a in dy)
    return Value(dims, x.charge - sum((state.frames.total(a) for a in extra), NONE))


def _bar_broadcast(state: FrameState, x: Value, y: Value) -> None:
    """A dimension that only x has: y is constant along it, so the frame there must fix constants."""
    for dx, dy in zip(x.dims, y.dims, strict=True):
        if dx and not dy:
            for axis in dx:
                if state.feature(axis):
                    state.frames.narrow(axis, Kind.INDEX)
                    state.frames.system.constant(state.total(x), (axis,), state.frames.reason)


def _add_constant(state: FrameState, t: c.Tensor, x: Value, out: c.Tensor) -> Value:
    dims = tuple(
        d or (() if n == 1 else (Axis(n, out.name, Kind.INDEX, pinned=True),))
        for d, n in zip(x.dims, out.shape, strict=True)
    )
    if t.fill == 0.0:
        return Value(dims, x.charge)
    for axis in x.axes:
        state.frames.narrow(axis, Kind.INDEX)
    for d, n in zip(x.dims, t.shape, strict=True):
        if n > 1 and t.fill is None:
            for axis in d:
                state.frames.pin(axis)
    state.frames.system.zero(state.total(x), state.frames.reason)
    return Value(dims, x.charge)


@step.register
def _mul(k: c.Mul, state: FrameState) -> Value:
    x, y = state.value(k.x), state.value(k.y)
    tx, ty = k.x, k.y
    if k.power == 1 and (tx.role in ("const", "buffer") or (state.is_gain(tx) and not state.is_gain(ty))):
        x, y, tx, ty = y, x, ty, tx
    if ty.role == "const":
        return _mul_constant(state, x, ty, k.out)
    if tx.role == "const":  # constant / y
        return _mul_constant(state, Value(y.dims, _power(state, y, k.power)), tx, k.out)
    dress = _dress(state, x, y, ty, k.power)
    if dress is not None:
        return dress
    charge = x.charge + y.charge.scaled(k.power)
    dims: list[Dim] = []
    for dx, dy in zip(x.dims, y.dims, strict=True):
        if dx and dy:
            for _, q in state.index_pairs(dx, dy):
                charge = charge + state.frames.total(q).scaled(k.power)
        elif dy and k.power == -1:
            for axis in dy:
                state.frames.narrow(axis, Kind.INDEX)
                charge = charge + state.frames.total(axis).scaled(-2).magnitude
        dims.append(dx or dy)
    return Value(tuple(dims), charge)


def _power(state: FrameState, y: Value, power: int) -> Charge:
    if power == 1:
        return y.charge
    state.index_all(y)
    return state.scalar(y, -state.total(y)).charge


def _mul_constant(state: FrameState, x: Value, t: c.Tensor, out: c.Tensor) -> Value:
    dims: list[Dim] = []
    for d, n, m in zip(x.dims, t.shape, out.shape, strict=True):
        if n > 1 and t.fill is None:
            for axis in d:
                if state.feature(axis):
                    state.frames.pin(axis)
        dims.append(d or (() if m == 1 else (Axis(m, out.name, Kind.INDEX, pinned=True),)))
    return Value(tuple(dims), x.charge)


def _dress(state: FrameState, x: Value, y: Value, gain: c.Tensor, power: int) -> Value | None:
    """A gain along one vector axis, and any index axes: the frame goes through, conjugated (theory section 2)."""
    tensor, axis = state.gain_tensor(gain), _turned(x, y)
    if axis is None or tensor.role not in ("param", "buffer"):
        return None
    pairs = _paired(state, x, y)
    own = [q for p, q in pairs if p is axis]
    if len(own) != 1 or not axis.root.kind.vector or own[0].root is axis.root:
        return None
    turned = own[0].root.kind.vector and not own[0].root.fresh
    if turned or axis.root.conjugates or any(state.frames.total(q) for _, q in pairs):
        return None
    if own[0].view_of is not None:
        state.frames.settle(own[0], frozenset(own))
    known = state.frames.gain_axes.setdefault(tensor, Gain(own[0], tuple(q for _, q in pairs), y.charge))
    if known.own is not own[0]:
        return None
    for p, q in pairs:
        if p is not axis:
            state.frames.join_index(p, q)
    tensor.trade = y.charge
    own[0].root.conjugates = True
    axis.root.gains.add(tensor)
    new = attached(axis, Label(dress=((tensor, power),)), axis.name)
    dims = tuple(tuple(new if a is axis else a for a in _leaves(d)) if axis in _leaves(d) else d for d in x.dims)
    return Value(dims, x.charge)


def _turned(x: Value, y: Value) -> Axis | None:
    """The one axis of x, along the dimensions of y, that matrices turn."""
    if any(dy and not dx for dx, dy in zip(x.dims, y.dims, strict=True)):
        return None
    leaves = [leaf for dx, dy in zip(x.dims, y.dims, strict=True) if dy for leaf in _leaves(dx)]
    vectors = [a for a in leaves if a.root.kind.vector]
    plain = len(vectors) == 1 and not any(a.view_of is not None or a.root.views for a in leaves)
    return vectors[0] if plain and not vectors[0].root.kind.plane else None


def _paired(state: FrameState, x: Value, y: Value) -> list[tuple[Axis, Axis]]:
    """The axes of a gain y beside those of x along the same dimensions; none where y is divided otherwise."""
    pairs: list[tuple[Axis, Axis]] = []
    for dx, dy in zip(x.dims, y.dims, strict=True):
        if not dy:
            continue
        left, right = _leaves(dx), _leaves(dy)
        if len(left) == 1 and len(dy) == 1:
            right = list(dy)
        elif len(right) == 1 and right[0].root.fresh and right[0].view_of is None and not right[0].root.views:
            state.frames.match(list(dx), list(dy))
            right = _leaves(dy)
        if [a.size for a in left] != [a.size for a in right]:
            return []
        pairs += zip(left, right, strict=True)
    return pairs


def _leaves(dim: Dim) -> list[Axis]:
    return [leaf for axis in dim for leaf in axis.leaves() if leaf.size != 1]
