"""What the frame pass knows: every tensor through its axes, and what all constraints need to ask of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, singledispatch
from math import prod

from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import SAME, Axis, Kind, Label
from torchgauge.spaces.charges import NONE, Charge, Var
from torchgauge.spaces.joins import Frames

Dim = tuple[Axis, ...]


@dataclass(frozen=True)
class Value:
    """A tensor through its axes."""

    dims: tuple[Dim, ...]
    charge: Charge = NONE
    positions: int = 0
    """Of rows picked from a table that nothing else has read: how many leading dimensions number the picks."""

    @property
    def axes(self) -> list[Axis]:
        return [a for d in self.dims for a in d]

    def leaves(self) -> list[Axis]:
        return [leaf for a in self.axes for leaf in a.leaves()]


@dataclass
class FrameState:
    """The axes of every tensor so far, and the frames on them."""

    program: c.Program
    frames: Frames = field(default_factory=Frames)
    values: dict[c.Tensor, Value] = field(default_factory=dict)
    charges: dict[c.Tensor, Var] = field(default_factory=dict)
    """Free charge of every parameter, one number per entry as far as the equations allow."""
    meetings: list[tuple[tuple[Value, Dim], tuple[Value, Dim]]] = field(default_factory=list)
    """The two tensors of every contraction, each with the axes that the other does not share."""
    merged: dict[tuple[Axis, ...], Axis] = field(default_factory=dict)
    """Products of axes from whose entries some are chosen → an axis that numbers all of them."""

    def value(self, tensor: c.Tensor) -> Value:
        if tensor not in self.values:
            self.values[tensor] = self.born(tensor)
        return self.values[tensor]

    def born(self, t: c.Tensor) -> Value:
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

    def total(self, value: Value) -> Charge:
        """The charge of a whole tensor: explicit, and of all legs."""
        return sum((self.frames.total(leaf) for leaf in value.leaves()), value.charge)

    def index_all(self, value: Value) -> None:
        for axis in value.axes:
            self.frames.narrow(axis, Kind.INDEX)

    def freeze(self, value: Value) -> None:
        self.index_all(value)
        for axis in value.axes:
            self.frames.pin(axis)
        self.frames.system.zero(self.total(value), self.frames.reason)

    def scalar(self, value: Value, charge: Charge) -> Value:
        """The same axes with the explicit charge that makes the total equal `charge` (all axes are indices)."""
        legs = sum((self.frames.total(leaf) for leaf in value.leaves()), NONE)
        return Value(value.dims, charge - legs)

    def keep_apart(self, x: Value, dims: tuple[int, ...]) -> None:
        """What acts along some dimensions sees one frame on all others, wherever it looks."""
        inside = {g for d in dims for a in x.dims[d] for g in a.ground()}
        for i, dim in enumerate(x.dims):
            for axis in dim if i not in dims else ():
                for ground in axis.ground():
                    allowed = frozenset(g for d in ground.depends for g in d.ground() if g not in inside)
                    self.frames.limit_depends(ground, allowed)

    def born_rigid(self, t: c.Tensor) -> Value:
        return Value(tuple(() if n == 1 else (Axis(n, t.name, Kind.INDEX, pinned=True),) for n in t.shape))

    def feature(self, axis: Axis) -> bool:
        """Whether any frame may stand on the axis."""
        return any(not g.pinned for g in axis.ground())

    def align(self, x: Value, y: Value, *, skip: int = -1) -> None:
        """Both tensors carry the same frame on all dimensions (of size above one in both) except `skip`."""
        fresh = self.all_fresh(x) or self.all_fresh(y)
        for axis in (*x.axes, *y.axes):
            if axis.view_of is not None and not fresh:
                # of heads and their entries the entries keep the matrices
                self.frames.settle(axis, frozenset(axis.view_of.root.views[-1:]))
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

    def all_fresh(self, value: Value) -> bool:
        grounds = [g for d in value.dims[value.positions :] for a in d for g in a.ground()]
        return bool(grounds) and all(g.fresh for g in grounds)

    def is_fresh(self, t: c.Tensor) -> bool:
        """A parameter (seen through views) that nothing has used: its frames may follow the other operand's."""
        return self.is_gain(t) and self.gain_tensor(t) not in self.frames.gain_axes

    def is_gain(self, t: c.Tensor) -> bool:
        """A parameter (seen through views) that nothing but products with it has used."""
        return t.role in ("param", "data") and self.all_fresh(self.value(t))

    def gain_tensor(self, t: c.Tensor) -> c.Tensor:
        while t.role == "data":
            made = self.makers.get(t)
            if not isinstance(made, c.Reshape):
                return t
            t = made.x
        return t

    @cached_property
    def makers(self) -> dict[c.Tensor, c.Constraint]:
        return {k.out: k for k in self.program.constraints}

    def index_pairs(self, xs: Dim, ys: Dim) -> list[tuple[Axis, Axis]]:
        for axis in (*xs, *ys):
            self.frames.narrow(axis, Kind.INDEX)
        pairs = self.frames.match(list(xs), list(ys))
        for p, q in pairs:
            self.frames.join_index(p, q)
        return pairs

    def free_legs(self, axes: list[Axis], index: frozenset[Axis]) -> None:
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


@singledispatch
def step(k: c.Constraint, state: FrameState) -> Value:
    """The value of `k.out`, with what the constraint asks of the frames of its inputs."""
    raise TypeError(f"no frame rule for {type(k).__name__}")
