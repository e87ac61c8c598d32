"""First pass, forward: which frames every tensor can carry.

Walks the constraints in order of execution and unifies. A `Value` is a tensor seen through its axes: one tuple of
axes per dimension (empty for size one) and an overall charge. The frame of the tensor is the tensor product of the
frames of its axes times the charge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import singledispatchmethod
from math import prod

from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import SAME, Axis, Kind, Label, attached
from torchgauge.spaces.charges import NONE, Charge, Var
from torchgauge.spaces.joins import Frames, common

Dim = tuple[Axis, ...]


@dataclass(frozen=True)
class Value:
    """A tensor through its axes."""

    dims: tuple[Dim, ...]
    charge: Charge = NONE

    @property
    def axes(self) -> list[Axis]:
        return [a for d in self.dims for a in d]

    def leaves(self) -> list[Axis]:
        return [leaf for a in self.axes for leaf in a.leaves()]


@dataclass
class FramePass:
    """Runs over a program; afterwards `values` holds every tensor's axes and `frames` the solved state."""

    program: c.Program
    frames: Frames = field(default_factory=Frames)
    values: dict[c.Tensor, Value] = field(default_factory=dict)
    charges: dict[c.Tensor, Var] = field(default_factory=dict)
    """Free charge of every parameter, one number per entry as far as the equations allow."""

    def run(self) -> FramePass:
        for constraint in self.program.constraints:
            self.frames.source = constraint.out.source
            self.frames.reason = _describe(constraint)
            value = self.step(constraint)
            self.values[constraint.out] = self._checked(value)
        for out, name in zip(self.program.outputs, self.program.output_names, strict=True):
            self.frames.source, self.frames.reason = out.source, f"{name} is observed"
            self._freeze(self.value(out))
        for tensor in self.program.params.values():
            self._close(tensor)
        crossed = {g for axis in self.frames.crossed for g in axis.ground()}
        for value in self.values.values() if crossed else ():
            across = [g for axis in value.axes for g in axis.ground() if g in crossed]
            self.frames.system.constant(self.total(value), across, "divisions of one axis lie across one another")
        return self

    # -- leaves ------------------------------------------------------------------------------------------------
    def value(self, tensor: c.Tensor) -> Value:
        if tensor not in self.values:
            self.values[tensor] = self._born(tensor)
        return self.values[tensor]

    def _born(self, t: c.Tensor) -> Value:
        free = t.role in ("param", "buffer")
        dims: list[Dim] = []
        for i, n in enumerate(t.shape):
            if n == 1:
                dims.append(())
            elif free:
                dims.append((Axis(n, f"{t.name}[{i}]", fresh=True),))
            else:
                dims.append((Axis(n, f"{t.name}[{i}]", Kind.INDEX, pinned=True),))
        if t.role != "param":
            return Value(tuple(dims))
        var = self.charges[t] = Var(f"charge of {t.name}", tuple(a for d in dims for a in d), origin=t.source)
        return Value(tuple(dims), Charge.of(var))

    def _close(self, tensor: c.Tensor) -> None:
        """A parameter's charge can only vary along the parameter's own axes."""
        value = self.value(tensor)
        total = self.total(value)
        own = {g for a in value.axes for g in a.ground()}
        grounds = [g for a in value.axes for g in a.ground()]
        twice = {g for g in grounds if grounds.count(g) > 1}
        self.frames.system.constant(value.charge, twice, f"an axis stands twice in {tensor.name}")
        for part in (total.magnitude, total.signs):
            outside = {g for v in part.variables() for a in v.axes for g in a.ground() if g not in own}
            self.frames.system.constant(part, outside, f"{tensor.name} has no such axis")
        for axis in value.axes:
            for ground in axis.ground():
                self.frames.limit_depends(ground, frozenset(own))

    # -- shared ------------------------------------------------------------------------------------------------
    def total(self, value: Value) -> Charge:
        """The charge of a whole tensor: explicit, and of all legs."""
        return sum((self.frames.total(leaf) for leaf in value.leaves()), value.charge)

    def _checked(self, value: Value) -> Value:
        """A frame may depend only on indices that the tensor has; an axis that stands twice keeps no scale."""
        axes = [g for a in value.axes for g in a.ground()]
        own = frozenset(axes) | frozenset(v for a in axes if a.view_of is not None for v in (a.view_of.root,))
        for ground in axes:
            self.frames.limit_depends(ground, own)
        if not self._all_fresh(value):
            vectors = [g for g in axes if g.kind.vector]
            self.frames.system.constant(value.charge, vectors, "a scale along an axis that matrices turn")
        if len(axes) != len(set(axes)):
            total = self.total(value)
            for g in {g for g in axes if axes.count(g) > 1 and g.kind is Kind.INDEX}:
                self.frames.system.constant(total, (g,), "an axis stands twice in one tensor")
        return value

    def _index_all(self, value: Value) -> None:
        for axis in value.axes:
            self.frames.narrow(axis, Kind.INDEX)

    def _freeze(self, value: Value) -> None:
        self._index_all(value)
        for axis in value.axes:
            self.frames.pin(axis)
        self.frames.system.zero(self.total(value), self.frames.reason)

    def _scalar(self, value: Value, charge: Charge) -> Value:
        """The same axes with the explicit charge that makes the total equal `charge` (all axes are indices)."""
        legs = sum((self.frames.total(leaf) for leaf in value.leaves()), NONE)
        return Value(value.dims, charge - legs)

    # -- axes --------------------------------------------------------------------------------------------------
    @singledispatchmethod
    def step(self, k: c.Constraint) -> Value:
        raise TypeError(f"no frame rule for {type(k).__name__}")

    @step.register
    def _(self, k: c.Reshape) -> Value:
        x = self.value(k.x)
        dims = self._regroup(x.axes, k.out.shape)
        if dims is not None:
            return Value(dims, x.charge)
        self._freeze(x)
        return self._born_rigid(k.out)

    def _born_rigid(self, t: c.Tensor) -> Value:
        return Value(tuple(() if n == 1 else (Axis(n, t.name, Kind.INDEX, pinned=True),) for n in t.shape))

    def _regroup(self, axes: list[Axis], shape: tuple[int, ...]) -> tuple[Dim, ...] | None:
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
                parts = self._split(head, need, shape[len(dims) + 1 :])
                if parts is None:
                    return None
                pool[:0] = parts
            dims.append(tuple(self._whole(dim)))
        return tuple(dims)

    def _split(self, head: Axis, need: int, following: tuple[int, ...]) -> list[Axis] | None:
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
        self.frames.settle(head)
        if head.leaves() != [head]:
            return head.leaves()
        parts = self.frames.split(head, tuple(sizes))
        return None if parts is None else list(parts)

    def _whole(self, dim: list[Axis]) -> list[Axis]:
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
                self.frames.settle(dim[i])
            out.append(dim[i])
            i += 1
        return out

    @step.register
    def _(self, k: c.Permute) -> Value:
        x = self.value(k.x)
        return Value(tuple(x.dims[d] for d in k.dims), x.charge)

    @step.register
    def _(self, k: c.Slice) -> Value:
        x = self.value(k.x)
        self._stand_still(x, k.dim)
        n = k.stop - k.start
        part = () if n == 1 else (Axis(n, k.out.name, Kind.INDEX, pinned=True),)
        return Value(tuple(part if i == k.dim else d for i, d in enumerate(x.dims)), x.charge)

    @step.register
    def _(self, k: c.Concat) -> Value:
        moving = [(t, self.value(t)) for t in k.xs if not (t.role == "const" and t.fill == 0.0)]
        for _, x in moving:
            self._stand_still(x, k.dim)
        base = moving[0][1]
        for _, x in moving[1:]:
            self._align(base, x, skip=k.dim)
        whole = (Axis(k.out.shape[k.dim], k.out.name, Kind.INDEX, pinned=True),)
        return Value(tuple(whole if i == k.dim else d for i, d in enumerate(base.dims)), base.charge)

    def _stand_still(self, x: Value, dim: int) -> None:
        """Nothing moves along a dimension, and no scale varies along it."""
        axes = x.dims[dim]
        for axis in axes:
            self.frames.pin(axis)
            self.frames.system.zero(self.frames.total(axis), self.frames.reason)
        self.frames.system.constant(self.total(x), axes, self.frames.reason)

    def _feature(self, axis: Axis) -> bool:
        """Whether any frame may stand on the axis."""
        return any(not g.pinned for g in axis.ground())

    def _align(self, x: Value, y: Value, *, skip: int = -1) -> None:
        """Both tensors carry the same frame on all dimensions (of size above one in both) except `skip`."""
        fresh = self._all_fresh(x) or self._all_fresh(y)
        excess, bearer = y.charge - x.charge, None
        pairs = [
            pair
            for i, (dx, dy) in enumerate(zip(x.dims, y.dims, strict=True))
            if i != skip and dx and dy
            for pair in self.frames.match(list(dx), list(dy))
        ]
        for i, (dx, dy) in enumerate(zip(x.dims, y.dims, strict=True)):
            if i != skip and bool(dx) != bool(dy):
                # along a dimension that only one of them has, its charge counts in full
                excess = excess + sum((self.frames.total(a) for a in dy), NONE)
                excess = excess - sum((self.frames.total(a) for a in dx), NONE)
        for a, b in pairs:
            plain = a.root is not b.root and not fresh
            if bearer is None and plain and a.root.kind.vector and b.root.kind.vector:
                bearer = (a, b)
            elif not self.frames.equate(a, b, SAME):
                excess = excess + self.frames.total(b) - self.frames.total(a)
        if bearer is not None:
            # one vector axis takes up the difference of the explicit charges
            if self.frames.equate(*bearer, Label(charge=excess)):
                return
            excess = excess + self.frames.total(bearer[1]) - self.frames.total(bearer[0])
        self.frames.system.zero(excess, self.frames.reason)

    def _all_fresh(self, value: Value) -> bool:
        grounds = [g for a in value.axes for g in a.ground()]
        return bool(grounds) and all(g.fresh for g in grounds)

    @step.register
    def _(self, k: c.Expand) -> Value:
        x = self.value(k.x)
        index = frozenset(g for a in x.axes for g in a.ground() if g.kind is Kind.INDEX and not g.pinned)
        dims = tuple(
            d if d or n == 1 else (Axis(n, k.out.name, Kind.INDEX, depends=index),)
            for d, n in zip(x.dims, k.out.shape, strict=True)
        )
        return Value(dims, x.charge)

    # -- algebra -----------------------------------------------------------------------------------------------
    @step.register
    def _(self, k: c.Contract) -> Value:
        x, y = self.value(k.x), self.value(k.y)
        if self._is_fresh(k.x) and not self._is_fresh(k.y):
            k = c.Contract(k.out, k.y, k.x, k.y_labels, k.x_labels, k.out_labels, k.window, k.shift_safe)
            x, y = y, x
        fresh, both = self._is_fresh(k.y), self._is_fresh(k.x) and self._is_fresh(k.y)
        xd, yd = dict(zip(k.x_labels, x.dims, strict=True)), dict(zip(k.y_labels, y.dims, strict=True))
        shared = [a for a in k.x_labels if a in yd]
        batch = [a for a in shared if a in k.out_labels]
        summed = [a for a in shared if a not in k.out_labels]
        for a in k.window:
            for axis in (*xd.get(a, ()), *yd.get(a, ())):
                self.frames.pin(axis)
        self._settle_contraction(x, xd, summed)
        self._settle_contraction(y, yd, summed)
        charge = x.charge + y.charge
        kept = NONE
        for a in batch:
            for p, q in self._index_pairs(xd[a], yd[a]):
                charge = charge + self.frames.total(q)
                kept = kept + self.frames.total(p)
        constant: list[Axis] = []
        carrier: Axis | None = None
        for a in summed:
            for p, q in self.frames.match(list(xd[a]), list(yd[a])):
                charge, index = self._contract_pair(p, q, charge, fresh)
                carrier = carrier or q
                if index:
                    constant.append(p)
        for a in (*k.x_labels, *k.y_labels):
            if a not in k.out_labels and a not in shared:
                for axis in (*xd.get(a, ()), *yd.get(a, ())):
                    self.frames.narrow(axis, Kind.INDEX)
                    charge = charge + self.frames.total(axis)
                    constant.append(axis)
        moved = bool(fresh and carrier is not None and self.frames.recharge(carrier, -kept - x.charge))
        if moved:
            charge = charge - x.charge
        free = [a for a in k.y_labels if a in k.out_labels and a not in shared and a not in k.window]
        if both:
            for a in summed:
                for axis in yd[a]:
                    axis.root.fresh = False
        elif fresh and any(yd[a] for a in free):
            index = frozenset(g for a in batch for axis in yd[a] for g in axis.ground() if g.kind is Kind.INDEX)
            self._free_legs([axis for a in free for axis in yd[a]], index)
            self.frames.system.zero(charge, self.frames.reason)
            charge = NONE
        elif fresh:
            self._unfresh(y)
        if constant:
            self.frames.system.constant(charge, constant, self.frames.reason)
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
        gone = [g for a in summed for axis in xd[a] for g in axis.ground() if g not in left]
        self.frames.system.constant(self.total(out), gone, self.frames.reason)
        return out

    def _is_fresh(self, t: c.Tensor) -> bool:
        """A parameter (seen through views) that nothing has used: its frames may follow the other operand's."""
        return t.role in ("param", "data") and self._all_fresh(self.value(t))

    def _settle_contraction(self, x: Value, dims: dict[str, Dim], summed: list[str]) -> None:
        vectors = frozenset(axis for a in summed for axis in dims[a] if axis.view_of is not None)
        for axis in vectors:
            self.frames.settle(axis, vectors)

    def _index_pairs(self, xs: Dim, ys: Dim) -> list[tuple[Axis, Axis]]:
        for axis in (*xs, *ys):
            self.frames.narrow(axis, Kind.INDEX)
        pairs = self.frames.match(list(xs), list(ys))
        for p, q in pairs:
            self.frames.join_index(p, q)
        return pairs

    def _contract_pair(self, p: Axis, q: Axis, charge: Charge, fresh: bool) -> tuple[Charge, bool]:
        """Sum over one axis of x (p) and y (q): matrices must be dual, up to a charge of the result."""
        if fresh:
            self.frames.follow(q, p)
            return charge, False
        depends = common(p.root.depends, q.root.depends)
        alpha = Charge.of(Var(f"score of {p.name}", tuple(sorted(depends, key=lambda a: a.serial))))
        if self.frames.equate(q, p, Label(flip=True, charge=alpha)):
            return charge + alpha, False
        return charge + self.frames.total(p) + self.frames.total(q), True

    def _free_legs(self, axes: list[Axis], index: frozenset[Axis]) -> None:
        roots = [a.root for a in axes]
        plain = all(a.parent is None and not (a.views or a.factors or a.view_of) for a in axes)
        if len(axes) > 1 and plain:
            # several free dimensions are one space until something tells them apart
            whole = Axis(prod(a.size for a in roots), roots[0].name, views=tuple(roots), depends=index)
            for root in roots:
                root.view_of = whole
        for axis in axes:
            for g in axis.ground():
                whole = g.view_of.root if g.view_of is not None else g
                g.fresh = whole.fresh = False
                whole.depends = whole.depends | index

    def _unfresh(self, y: Value) -> None:
        for axis in y.axes:
            for g in axis.ground():
                g.fresh = False

    @step.register
    def _(self, k: c.Add) -> Value:
        x, y = self.value(k.x), self.value(k.y)
        for t, other in ((k.x, y), (k.y, x)):
            if t.role == "const":
                return self._add_constant(t, other, k.out)
        if "buffer" in (self._gain_tensor(k.x).role, self._gain_tensor(k.y).role):
            # a statistic cannot be scaled, only permuted
            self._index_all(x)
            self.frames.system.zero(self.total(x), self.frames.reason)
        if x.dims and y.dims:
            self._bar_broadcast(x, y)
            self._bar_broadcast(y, x)
        self._align(x, y)
        dims = tuple(a or b for a, b in zip(x.dims, y.dims, strict=True))
        extra = (a for dx, dy in zip(x.dims, y.dims, strict=True) if not dx for a in dy)
        return Value(dims, x.charge - sum((self.frames.total(a) for a in extra), NONE))

    def _bar_broadcast(self, x: Value, y: Value) -> None:
        """A dimension that only x has: y is constant along it, so the frame there must fix constants."""
        for dx, dy in zip(x.dims, y.dims, strict=True):
            if dx and not dy:
                for axis in dx:
                    if self._feature(axis):
                        self.frames.narrow(axis, Kind.INDEX)
                        self.frames.system.constant(self.total(x), (axis,), self.frames.reason)

    def _add_constant(self, t: c.Tensor, x: Value, out: c.Tensor) -> Value:
        dims = tuple(
            d or (() if n == 1 else (Axis(n, out.name, Kind.INDEX, pinned=True),))
            for d, n in zip(x.dims, out.shape, strict=True)
        )
        if t.fill == 0.0:
            return Value(dims, x.charge)
        for axis in x.axes:
            self.frames.narrow(axis, Kind.INDEX)
        for d, n in zip(x.dims, t.shape, strict=True):
            if n > 1 and t.fill is None:
                for axis in d:
                    self.frames.pin(axis)
        self.frames.system.zero(self.total(x), self.frames.reason)
        return Value(dims, x.charge)

    @step.register
    def _(self, k: c.Mul) -> Value:
        x, y = self.value(k.x), self.value(k.y)
        tx, ty = k.x, k.y
        if k.power == 1 and (tx.role in ("const", "buffer") or (self._is_fresh(tx) and not self._is_fresh(ty))):
            x, y, tx, ty = y, x, ty, tx
        if ty.role == "const":
            return self._mul_constant(x, ty, k.out)
        if tx.role == "const":  # constant / y
            return self._mul_constant(Value(y.dims, self._power(y, k.power)), tx, k.out)
        dress = self._dress(x, y, ty, k.power)
        if dress is not None:
            return dress
        charge = x.charge + y.charge.scaled(k.power)
        dims: list[Dim] = []
        for dx, dy in zip(x.dims, y.dims, strict=True):
            if dx and dy:
                for _, q in self._index_pairs(dx, dy):
                    charge = charge + self.frames.total(q).scaled(k.power)
            elif dy and k.power == -1:
                for axis in dy:
                    self.frames.narrow(axis, Kind.INDEX)
                    charge = charge + self.frames.total(axis).scaled(-2).magnitude
            dims.append(dx or dy)
        return Value(tuple(dims), charge)

    def _power(self, y: Value, power: int) -> Charge:
        if power == 1:
            return y.charge
        self._index_all(y)
        return self._scalar(y, -self.total(y)).charge

    def _mul_constant(self, x: Value, t: c.Tensor, out: c.Tensor) -> Value:
        dims: list[Dim] = []
        for d, n, m in zip(x.dims, t.shape, out.shape, strict=True):
            if n > 1 and t.fill is None:
                for axis in d:
                    if self._feature(axis):
                        self.frames.pin(axis)
            dims.append(d or (() if m == 1 else (Axis(m, out.name, Kind.INDEX, pinned=True),)))
        return Value(tuple(dims), x.charge)

    def _dress(self, x: Value, y: Value, gain: c.Tensor, power: int) -> Value | None:
        """A gain along one vector axis: the frame goes through, conjugated (theory section 2a)."""
        spans = [i for i, d in enumerate(y.dims) if d]
        if len(spans) != 1 or gain.role not in ("param", "buffer", "data") or not self._is_gain(gain):
            return None
        dim = x.dims[spans[0]]
        leaves = [leaf for a in dim for leaf in a.leaves()]
        if len(leaves) != 1 or leaves[0].view_of is not None:
            return None
        axis = leaves[0]
        root = axis.root
        own = y.dims[spans[0]][0]
        if not root.kind.vector or root.views or root.kind.complex or own.root is root:
            return None
        tensor = self._gain_tensor(gain)
        self.frames.gain_axes.setdefault(tensor, (own, y.charge))
        tensor.trade = y.charge
        root.gains.add(tensor)
        new = attached(axis, Label(dress=((tensor, power),)), axis.name)
        dims = tuple((new,) if i == spans[0] else d for i, d in enumerate(x.dims))
        return Value(dims, x.charge)

    def _is_gain(self, t: c.Tensor) -> bool:
        """A parameter or buffer vector, as it is or reshaped to broadcast."""
        return self._gain_tensor(t).role in ("param", "buffer")

    def _gain_tensor(self, t: c.Tensor) -> c.Tensor:
        while t.role == "data":
            made = self._makers().get(t)
            if not isinstance(made, c.Reshape) or _squeezed(made.x.shape) != _squeezed(t.shape):
                return t
            t = made.x
        return t

    def _makers(self) -> dict[c.Tensor, c.Constraint]:
        if not hasattr(self, "_made"):
            self._made = {k.out: k for k in self.program.constraints}
        return self._made

    # -- nonlinear ---------------------------------------------------------------------------------------------
    @step.register
    def _(self, k: c.Pointwise) -> Value:
        x = self.value(k.x)
        self._index_all(x)
        total, p, system, why = self.total(x), k.profile, self.frames.system, self.frames.reason
        centred = p.parity is not None and p.centre == (0.0, 0.0)
        if p.degree is not None:
            out = total.magnitude.scaled(Fraction(p.degree).limit_denominator(1000))
            if not centred:
                system.zero(total.signs, why)
            if not centred or p.parity == "odd":
                out = out + total.signs
            return self._scalar(x, out)
        system.zero(total.magnitude, why)
        if centred and p.parity == "odd":
            return self._scalar(x, total.signs)
        if not centred:
            system.zero(total.signs, why)
        return self._scalar(x, NONE if centred else total.signs)

    @step.register
    def _(self, k: c.Normalize) -> Value:
        x = self.value(k.x)
        inside = [a for d in k.dims for a in x.dims[d]]
        kind = Kind.O if k.kind == "rms" else Kind.O1
        vectors = frozenset(a for a in inside if a.view_of is not None)
        for axis in vectors:
            self.frames.settle(axis, vectors)
        single = len(inside) == 1 and inside[0].leaves() == inside and not k.others
        for i, d in enumerate(x.dims):
            for axis in d:
                if i not in k.dims:
                    self.frames.narrow(axis, Kind.INDEX)
                elif not (single and kind is Kind.O1):
                    self.frames.narrow(axis, kind)
        out = x
        if single and kind is Kind.O1:
            behind = self.frames.normalized(inside[0])
            dims = tuple(tuple(behind if a is inside[0] else a for a in d) for d in x.dims)
            out = Value(dims, x.charge)
        total = self.total(x)
        scale = total if k.kind == "layer" else total.magnitude
        self.frames.system.constant(scale, inside, self.frames.reason)
        for t in k.others:
            self._one_scale(k, scale, self.value(t), kind)
        if k.eps > 0:
            self.frames.system.zero(total.magnitude, "a scale changes the weight of ε", soft=True)
        return self._scalar(out, total.signs)

    def _one_scale(self, k: c.Normalize, scale: Charge, y: Value, kind: Kind) -> None:
        """Another block of what is normalised: an orthogonal frame of its own, and the scale of the rest."""
        for i, d in enumerate(y.dims):
            for axis in d:
                self.frames.narrow(axis, kind if i in k.dims else Kind.INDEX)
        total = self.total(y)
        other = total if k.kind == "layer" else total.magnitude
        self.frames.system.zero(other - scale, self.frames.reason)

    @step.register
    def _(self, k: c.Softmax) -> Value:
        x = self.value(k.x)
        self._index_all(x)
        self.frames.system.zero(self.total(x), self.frames.reason)
        return x

    @step.register
    def _(self, k: c.Reduce) -> Value:
        x = self.value(k.x)
        inside = [a for d in k.dims for a in x.dims[d]]
        if k.mode == "max":
            self._index_all(x)
            self.frames.system.zero(self.total(x).signs, self.frames.reason)
        for axis in inside:
            self.frames.narrow(axis, Kind.INDEX)
        charge = x.charge + sum((self.frames.total(a) for a in inside), NONE)
        self.frames.system.constant(charge, inside, self.frames.reason)
        return Value(tuple(() if i in k.dims else d for i, d in enumerate(x.dims)), charge)

    @step.register
    def _(self, k: c.Gather) -> Value:
        table = self.value(k.table)
        fresh = self._is_fresh(k.table)
        rows = table.dims[0]
        for axis in rows:
            self.frames.pin(axis)
        charge = table.charge + sum((self.frames.total(a) for a in rows), NONE)
        rest = [a for d in table.dims[1:] for a in d]
        if fresh and rest:
            self._free_legs(rest, frozenset())
            self.frames.system.zero(charge, self.frames.reason)
            charge = NONE
        self.frames.system.constant(charge, rows, self.frames.reason)
        n = k.out.ndim - (k.table.ndim - 1)
        index = tuple(() if m == 1 else (Axis(m, k.out.name, Kind.INDEX, pinned=True),) for m in k.out.shape[:n])
        return Value((*index, *table.dims[1:]), charge)

    @step.register
    def _(self, k: c.Spatial) -> Value:
        x = self.value(k.x)
        for d in k.dims:
            for axis in x.dims[d]:
                self.frames.pin(axis)
        charge = x.charge
        inside = [a for d in k.dims for a in x.dims[d]]
        if k.mode == "max":
            self._index_all(x)
            self.frames.system.zero(self.total(x).signs, self.frames.reason)
        if inside:
            charge = charge + sum((self.frames.total(a) for a in inside), NONE)
            self.frames.system.constant(charge, inside, self.frames.reason)
        dims = tuple(
            d if i not in k.dims else (() if n == 1 else (Axis(n, k.out.name, Kind.INDEX, pinned=True),))
            for i, (d, n) in enumerate(zip(x.dims, k.out.shape, strict=True))
        )
        return Value(dims, charge)

    @step.register
    def _(self, k: c.Rotate) -> Value:
        x = self.value(k.x)
        kind = Kind.COMPLEX_HALF if k.layout == "half" else Kind.COMPLEX_INTERLEAVED
        dim = x.dims[-1]
        vectors = frozenset(a for a in dim if a.view_of is not None)
        for axis in vectors:
            self.frames.settle(axis, vectors)
        leaves = [leaf for a in dim for leaf in a.leaves()]
        if len(leaves) == 1:
            self.frames.narrow(leaves[0], kind)
        else:
            self._freeze(Value((dim,), NONE))
            self.frames.system.constant(self.total(x), [g for a in dim for g in a.ground()], self.frames.reason)
        two = [g for a in dim for g in a.ground() if g.name == "pair"]
        self.frames.system.constant(self.total(x), two, self.frames.reason)
        return x

    @step.register
    def _(self, k: c.Opaque) -> Value:
        for x in k.xs:
            self._freeze(self.value(x))
        return self._born_rigid(k.out)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _describe(k: c.Constraint) -> str:
    """What stands at this place, for `group.rigid`."""
    if isinstance(k, c.Pointwise):
        return f"{k.profile.name} acts entry by entry"
    if isinstance(k, c.Opaque):
        return f"no rule: {k.reason}"
    names = {
        c.Normalize: "a normalisation keeps lengths",
        c.Softmax: "softmax acts entry by entry",
        c.Mul: "an elementwise product",
        c.Add: "summands share one frame",
        c.Rotate: "a rotary embedding turns fixed pairs",
        c.Gather: "rows are picked by index",
        c.Reduce: "a reduction over the axis",
        c.Spatial: "a map along the axis",
        c.Contract: "a contraction ties both sides",
    }
    return names.get(type(k), type(k).__name__.lower())
