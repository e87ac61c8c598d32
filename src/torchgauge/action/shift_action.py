"""The second stage of a group element: shifts of biases, and unreachable directions of readers.

The free sources are moved by the element's values; every solved source is set so that the total shift vanishes where
it was solved. Frames are the identity here, so that all linear maps stand still but for the readers of a relation,
and the stage is an additive group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from torchgauge.action.additive import Additive
from torchgauge.action.computed import combined
from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import Gains, Pattern, Relation
from torchgauge.spaces.shifts import ShiftPass
from torchgauge.spaces.sources import Entry, Source

Coordinates = dict[str, Tensor]


def param_of(makers: Mapping[c.Tensor, c.Constraint], t: c.Tensor) -> c.Tensor:
    """The parameter that a view shows."""
    while t.role == "data":
        made = makers[t]
        t = made.x  # type: ignore[attr-defined]
    return t


def viewed(
    makers: Mapping[c.Tensor, c.Constraint], t: c.Tensor, value: Tensor, origin: c.Tensor | None = None
) -> Tensor:
    """Apply the views that lead from a parameter (or from `origin`) to `t` to a tensor of that shape."""
    steps: list[c.Constraint] = []
    while t is not origin and t.role == "data":
        steps.append(makers[t])
        t = makers[t].x  # type: ignore[attr-defined]
    for k in reversed(steps):
        value = apply_view(k, value)
    return value


def apply_view(k: c.Constraint, value: Tensor) -> Tensor:
    if isinstance(k, c.Reshape):
        return value.reshape(k.out.shape)
    if isinstance(k, c.Permute):
        return value.permute(k.dims)
    if isinstance(k, c.Slice):
        return value.narrow(k.dim, k.start, k.stop - k.start) if value.shape[k.dim] > 1 else value
    if isinstance(k, c.Expand):
        return value.expand(k.out.shape)
    raise TypeError(type(k).__name__)


def add_to_view(makers: Mapping[c.Tensor, c.Constraint], t: c.Tensor, value: Tensor, delta: Tensor) -> Tensor:
    """The parameter's value with `delta` (broadcastable to t's shape) added on the part that `t` shows."""
    if t.role == "param":
        return value + delta.reshape(t.shape) if delta.numel() == value.numel() else value + delta
    index = viewed(makers, t, torch.arange(value.numel()).reshape(value.shape))
    delta = delta.expand(index.shape).reshape(-1)
    flat = torch.zeros(value.numel(), dtype=value.dtype).index_add(0, index.reshape(-1), delta)
    return value + flat.reshape(value.shape)


def gain_product(gains: Gains, coordinates: Coordinates, tiles: int = 1) -> Tensor | float:
    """Π gain^power as a flat vector, so many times one after the other."""
    out: Tensor | float = 1.0
    for gain, power in gains:
        key = gain.name if gain.role == "param" else f"buffer:{gain.name}"
        out = out * coordinates[key].reshape(-1) ** power
    return out.repeat(tiles) if isinstance(out, Tensor) else out


def static_value(makers: Mapping[c.Tensor, c.Constraint], t: c.Tensor, coordinates: Coordinates) -> Tensor:
    """The numbers of a static tensor: a view of a parameter, a statistic, or a known constant."""
    leaf = param_of(makers, t)
    if leaf.role == "const":
        assert leaf.fill is not None
        return torch.full(t.shape, leaf.fill, dtype=torch.float64)
    key = leaf.name if leaf.role == "param" else f"buffer:{leaf.name}"
    return viewed(makers, t, coordinates[key].reshape(leaf.shape))


def computed_value(makers: Mapping[c.Tensor, c.Constraint], t: c.Tensor, coordinates: Coordinates) -> Tensor:
    """The numbers of what linear maps make of parameters alone."""
    k = makers.get(t)
    if isinstance(k, (c.Add, c.Mul, c.Contract)):
        return combined(k, *(computed_value(makers, x, coordinates) for x in (k.x, k.y)))
    if isinstance(k, (c.Reshape, c.Permute, c.Slice, c.Expand)):
        return apply_view(k, computed_value(makers, k.x, coordinates))
    return static_value(makers, t, coordinates)


@dataclass
class ShiftStage(Additive):
    """Additive: values of the free sources, by source."""

    shifts: ShiftPass

    @property
    def program(self) -> c.Program:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.shifts.program

    @property
    def found(self) -> list[Source]:
        return self.shifts.free

    def name(self, key: Source) -> str:
        return key.name

    def moved(self, key: Source) -> str:
        return f"{key.kind} {self.program.coordinates[param_of(self.shifts.makers, key.tensor).name].name}"

    def dimension(self, key: Source) -> int:
        return prod(key.shape)

    def shape(self, key: Source) -> tuple[int, ...]:
        return key.shape

    def width(self, key: Source) -> int:
        return key.at.out.shape[-1] if key.kind != "relation" else key.at.inputs[0].shape[-1]

    @cached_property
    def moving(self) -> list[c.Tensor]:
        """Tensors that some shift reaches, in order of execution."""
        return [k.out for k in self.shifts.program.constraints if self.shifts.terms(k.out)]

    def taking_up(self, source: Source) -> list[c.Tensor]:
        """Weights with edges that take up what a source brings."""
        operands = [self.shifts.sources.operands(k) for k in self.absorbing]
        return [y for x, y, *_ in operands if source in self.shifts.terms(x)]

    def act(self, values: Mapping[Source, Tensor], params: Coordinates) -> Coordinates:
        new = dict(params)
        run = _Run(self.shifts, values, params, new)
        for s in sorted(values, key=lambda s: s.kind == "relation"):
            run.apply(s, values[s])
        for t in self.moving:
            run.shift(t)  # in order, so that no recursion goes deep
        for s in self.shifts.solved:
            run.solve(s)
        for k in self.absorbing:
            run.absorb(k)
        return new

    @cached_property
    def absorbing(self) -> list[c.Contract]:
        """Readers whose weights take up what arrives."""
        contracts = [k for k in self.shifts.program.constraints if isinstance(k, c.Contract)]
        found = [k for k in contracts if self.shifts.sources.absorber(k) is not None]
        return [k for k in found if self.shifts.terms(self.shifts.sources.operands(k)[0])]


class _Run:
    """One evaluation: shifts of tensors are computed on demand from the sources' values."""

    def __init__(self, shifts: ShiftPass, values: Mapping[Source, Tensor], old: Coordinates, new: Coordinates) -> None:
        self.pass_, self.sources, self.makers = shifts, shifts.sources, shifts.makers
        self.values: dict[Source, Tensor | None] = dict(values)
        self.old, self.new = old, new
        self.known: dict[c.Tensor, Tensor | None] = {}
        self.solving: set[Source] = set()
        self.path: set[c.Tensor] = set()
        """From where the source that is being solved enters to where it is solved."""
        self.parts: dict[frozenset[Source], _Part] = {}

    @cached_property
    def by_param(self) -> dict[c.Tensor, list[Source]]:
        """Solved sources by their parameter."""
        out: dict[c.Tensor, list[Source]] = {}
        for s in self.pass_.solved:
            out.setdefault(param_of(self.makers, s.tensor), []).append(s)
        return out

    # -- sources -----------------------------------------------------------------------------------------------
    def delta(self, s: Source, value: Tensor, skip: Pattern | None = None) -> Tensor:
        """The change of the source's tensor, broadcastable; without the vector of one of its ways."""
        for way in s.ways:
            vector = gain_product(way.gains, self.old, way.tiles)
            if way != skip and isinstance(vector, Tensor) and value.is_floating_point():
                (dim,) = way.dims
                value = value * vector.reshape([-1 if d == dim else 1 for d in range(value.ndim)])
        return value if s.taps is None else s.taps.spread(value)

    def apply(self, s: Source, value: Tensor) -> None:
        """Move the parameter of a source."""
        name = param_of(self.makers, s.tensor).name
        delta = self.delta(s, value).expand(s.tensor.shape)
        if self.absorbs(s.entries[0]) and (relation := s.entries[0].relation) is not None:
            # then it commutes with what the same weight absorbs
            delta = delta / self.constant(relation)
        self.new[name] = add_to_view(self.makers, s.tensor, self.new[name], delta)
        for other in s.also:
            name = param_of(self.makers, other).name
            delta = value.reshape([1] * other.ndim).expand(other.shape) if s.level else delta.reshape(other.shape)
            self.new[name] = add_to_view(self.makers, other, self.new[name], delta)
        if s.partner is not None:
            other, ratio = s.partner
            name = param_of(self.makers, other).name
            taken = delta if delta.shape == other.shape else delta[:1].expand(other.shape)  # rows of another table
            self.new[name] = add_to_view(self.makers, other, self.new[name], -ratio * taken)

    def entering(self, s: Source, e: Entry) -> Tensor | None:
        """What a source adds where it enters."""
        value = self._value(s)
        if value is None or e.kind == "blind":
            return None
        placed = self._placed(s, e, value)
        return placed if e.relation is None or self.absorbs(e) else placed * self.constant(e.relation)

    def absorbs(self, e: Entry) -> bool:
        """Whether a reader of a relation also takes up what arrives: its value is then what it adds, κ u."""
        if e.taps or e.kind != "relation" or not isinstance(e.at, c.Contract):
            return bool(e.taps)
        return self.sources.absorber(e.at) is not None

    def _placed(self, s: Source, e: Entry, value: Tensor) -> Tensor:
        """A value with the dimensions of the tensor where it enters, size one where it is constant there."""
        delta = self._seen(s, e, self.delta(s, value, None if e.level else e.way))
        if e.kind == "relation":
            return self._read(e, delta)
        if e.kind == "rows":
            delta = delta.narrow(0, 0, 1)
            return delta.reshape([1] * (e.at.out.ndim - delta.ndim + 1) + list(delta.shape[1:]))
        return delta

    def _seen(self, s: Source, e: Entry, delta: Tensor) -> Tensor:
        """A change of the source's tensor as a change of what the entry reads."""
        if e.tensor is s.tensor:
            return delta
        if e.tensor in s.also and s.level:
            return delta.reshape([1] * e.tensor.ndim)
        if e.tensor in s.also:
            return delta.expand(s.tensor.shape).reshape(e.tensor.shape)
        return viewed(self.makers, e.tensor, delta.expand(s.tensor.shape), s.tensor)

    def _read(self, e: Entry, u: Tensor) -> Tensor:
        """u, on the weight's dimensions, with the dimensions of the contraction's output."""
        k = e.at
        assert isinstance(k, c.Contract) and e.relation is not None
        u = u if e.taps is None else e.taps.seen(u)
        _, _, xl, labels = self.sources.operands(k)
        inside = {xl[d] for d in e.relation.dims}
        kept = []
        for d, a in reversed(list(enumerate(labels))):
            if a in inside:
                u = u.select(d, 0)
            elif a not in k.out_labels:
                # positions inside a kernel; of indices the first one stands for all
                whole = [e.tensor.shape[d] if i == d else -1 for i in range(u.ndim)]
                u = u.expand(whole).sum(d) if u.is_floating_point() else u.select(d, 0)
            else:
                kept.insert(0, a)
        order = [a for a in k.out_labels if a in kept]
        u = u.permute([kept.index(a) for a in order])
        sizes = dict(zip(order, u.shape, strict=True))
        return u.reshape([sizes.get(a, 1) for a in k.out_labels])

    def constant(self, r: Relation) -> Tensor:
        """κ of a relation at the new parameters."""
        total = torch.tensor(r.constant, dtype=torch.float64)
        for bias, gains in r.offsets:
            for s in self.by_param.get(bias, ()):
                self._value(s)  # solved, if it is one of those
            b = self.new[bias.name].reshape(-1)
            total = total + r.tiles * (gain_product(gains, self.old) * b).sum()
        return total

    def _value(self, s: Source) -> Tensor | None:
        if s in self.pass_.solved and s not in self.values:
            self.solve(s)
        return self.values.get(s)

    # -- solving -----------------------------------------------------------------------------------------------
    def solve(self, s: Source) -> None:
        """Give a source the value that makes everything else vanish where the source was solved."""
        if s in self.values:
            return
        at, others = self.pass_.solved[s]
        path = self._path(s, at)
        outer, self.path = self.path, set(path)
        self.values[s] = None  # what the others bring, with this source standing still
        self.solving.add(s)
        # where levels pass, only what this source stands for
        total = self.part(others).of(at) if self.pass_.levels else self.shift(at)
        self.solving.discard(s)
        self.path = outer
        if total is not None:
            value = self._pull_back(s, path, -total)
            self.values[s] = value
            self.apply(s, value)

    def _path(self, s: Source, at: c.Tensor) -> list[c.Tensor]:
        """The tensors through which a source reaches the place where it is solved, that place first."""
        path = [at]
        while (k := self.makers[path[-1]]) is not s.at:
            step = next((x for x in k.inputs if s in self.pass_.terms(x)), None)
            if step is None:
                break
            path.append(step)
        return path

    def _pull_back(self, s: Source, path: list[c.Tensor], wanted: Tensor) -> Tensor:
        """The source's value that shows as `wanted` where it is solved, behind sums, views and numbers."""
        (e,) = s.entries
        shape = s.shape
        index = self._placed(s, e, torch.arange(prod(shape)).reshape(shape))
        # one where the source's number stands, but for gains that its change is divided by
        ones = torch.ones(shape if e.level else index.shape, dtype=torch.float64)
        factor = self._placed(s, e, ones) if e.level else ones
        for t in reversed(path):
            k = self.makers[t]
            if isinstance(k, c.Add) and (k.y in path or (k is s.at and self.sources.bare(k.y) is e.tensor)):
                factor = factor * k.alpha
            elif isinstance(k, c.Mul):
                factor = factor * self.value_of(k.y) ** k.power
            elif isinstance(k, c.Reshape):
                index, factor = (x.expand(k.x.shape).reshape(k.out.shape) for x in (index, factor))
            elif isinstance(k, (c.Permute, c.Expand)):
                index, factor = apply_view(k, index), apply_view(k, factor)
        wanted = wanted / factor
        if e.kind == "relation" and not self.absorbs(e):
            assert e.relation is not None
            wanted = wanted / self.constant(e.relation)
        index, wanted = torch.broadcast_tensors(index, wanted)
        flat = torch.zeros(prod(shape), dtype=wanted.dtype)
        return flat.index_put((index.reshape(-1),), wanted.reshape(-1)).reshape(shape)

    def absorb(self, k: c.Contract) -> None:
        """W − (Wδ/κ) ⊗ n, with κ at the new parameters: Wx for W(x + δ), at every place of a window."""
        x, y, xl, yl = self.sources.operands(k)
        relation, shift = self.sources.absorber(k), self.shift(x)
        if relation is None or shift is None:
            return
        (dim,) = (d for d in relation.dims if x.shape[d] > 1)
        shape = [x.shape[dim] if a == xl[dim] else 1 for a in yl]
        gains = gain_product(relation.gains, self.old, relation.tiles)
        n = torch.as_tensor(gains, dtype=torch.float64).expand(x.shape[dim])
        for d in range(x.ndim):  # constant along all others, also where it is written out
            shift = shift if d == dim else shift.narrow(d, 0, 1)
        weight, moved = self.value_of(y), shift.reshape(-1).expand(x.shape[dim])
        met = (weight * moved.reshape(shape)).sum(yl.index(xl[dim]), keepdim=True)
        name = param_of(self.makers, y).name
        delta = met / self.constant(relation) * n.reshape(shape)
        self.new[name] = add_to_view(self.makers, y, self.new[name], -delta)

    # -- forward -----------------------------------------------------------------------------------------------
    def shift(self, t: c.Tensor) -> Tensor | None:
        """The shift of a tensor, with size one along dimensions where it is constant; None for none."""
        if t in self.path:
            return self._through(self.makers[t])
        if t.role != "data" or (t in self.pass_.zero and not self.pass_.zero[t]) or not self._reached(t):
            return None
        if t not in self.known:
            passing = self.pass_.zero.get(t)
            self.known[t] = self._through(self.makers[t]) if passing is None else self.part(passing).of(t)
        return self.known[t]

    def _reached(self, t: c.Tensor) -> bool:
        """Whether anything may arrive at a tensor."""
        return True

    def part(self, sources: frozenset[Source]) -> _Part:
        """The same evaluation with some sources alone."""
        if sources not in self.parts:
            self.parts[sources] = _Part(self, sources)
        return self.parts[sources]

    def _entered(self, k: c.Constraint, t: c.Tensor) -> Tensor | None:
        """The sum of the sources that enter at a constraint."""
        t = self.sources.bare(t)
        found = self.sources.of(k, t)
        assert k.out in self.path or not any(s in self.solving for s in found), "a shift that depends on itself"
        return _sum([self.entering(s, s.entry(k, t)) for s in found])

    def _operand(self, k: c.Constraint, t: c.Tensor) -> Tensor | None:
        return self._entered(k, t) if self.sources.is_static(t) else self.shift(t)

    def _through(self, k: c.Constraint) -> Tensor | None:
        if isinstance(k, c.Add):
            x, y = self._operand(k, k.x), self._operand(k, k.y)
            return _sum([x, y if y is None else y * k.alpha])
        if isinstance(k, c.Concat):
            parts = [self._operand(k, x) for x in k.xs]
            if all(p is None for p in parts):
                return None
            full = [
                torch.zeros(x.shape, dtype=torch.float64) if p is None else p.expand(x.shape)
                for p, x in zip(parts, k.xs, strict=True)
            ]
            return torch.cat(full, k.dim)
        if isinstance(k, c.Gather):
            return self._entered(k, k.table)
        if isinstance(k, c.Contract):
            return self._contract(k)
        if not isinstance(k, (c.Reshape, c.Permute, c.Slice, c.Expand, c.Mul, c.Reduce, c.Spatial)):
            return None
        x = self._operand(k, k.x) if isinstance(k, c.Spatial) else self.shift(k.x)
        if x is None:
            return None
        if isinstance(k, c.Reshape):
            return x.expand(k.x.shape).reshape(k.out.shape)
        if isinstance(k, c.Mul):
            return x * self.value_of(k.y) ** k.power if self.sources.is_static(k.y) else None
        if isinstance(k, c.Reduce):
            if k.mode == "sum":
                x = x * prod(
                    n for d, (n, m) in enumerate(zip(k.x.shape, x.shape, strict=True)) if d in k.dims and m == 1
                )
            return x.mean(k.dims, keepdim=True) if k.mode == "mean" else x.sum(k.dims, keepdim=True)
        if isinstance(k, c.Spatial):
            for d in k.dims:
                x = x.narrow(d, 0, 1)
            return x
        return apply_view(k, x)

    def value_of(self, t: c.Tensor) -> Tensor:
        """The number that a static tensor holds."""
        if t.role == "const":
            assert t.fill is not None
            return torch.tensor(t.fill, dtype=torch.float64)
        return static_value(self.makers, t, self.old)

    def _contract(self, k: c.Contract) -> Tensor | None:
        x, y, xl, yl = self.sources.operands(k)
        if not self.sources.is_static(y):
            moved = self.shift(y) if self.sources.averages(k) else None
            if moved is None:
                return None
            for d, a in enumerate(yl):
                if a not in k.out_labels:
                    moved = moved.narrow(d, 0, 1)
            keep = [a for a in k.out_labels if a in yl]
            moved = moved.permute([*(yl.index(a) for a in keep), *(d for d, a in enumerate(yl) if a not in keep)])
            sizes = dict(zip(keep, moved.shape, strict=False))
            return moved.reshape([sizes.get(a, 1) for a in k.out_labels])
        arriving = None if self.sources.absorber(k) is not None else self._operand(k, x)
        linear = None if arriving is None else self._linear(k, arriving, x, y, xl, yl)
        return _sum([linear, self._entered(k, y)])

    def _linear(
        self, k: c.Contract, shift: Tensor, x: c.Tensor, y: c.Tensor, xl: tuple[str, ...], yl: tuple[str, ...]
    ) -> Tensor:
        weight = self.value_of(y)
        for d, a in enumerate(xl):
            if a in yl and a not in k.window:
                shift = shift.expand([x.shape[d] if i == d else -1 for i in range(shift.ndim)])
        letters = {a: chr(97 + i) for i, a in enumerate(dict.fromkeys((*xl, *yl)))}
        for d in sorted((d for d, a in enumerate(xl) if a in k.window), reverse=True):
            shift = shift.select(d, 0)
        left = [a for a in xl if a not in k.window]
        kept = [a for a in k.out_labels if a not in k.window]
        spec = f"{''.join(letters[a] for a in left)},{''.join(letters[a] for a in yl)}->"
        out = torch.einsum(spec + "".join(letters[a] for a in kept), shift, weight)
        sizes = dict(zip(kept, out.shape, strict=True))
        return out.reshape([sizes.get(a, 1) for a in k.out_labels])


class _Part(_Run):
    """What some of the sources bring: shifts are linear in them."""

    def __init__(self, whole: _Run, sources: frozenset[Source]) -> None:
        super().__init__(whole.pass_, {}, whole.old, whole.new)
        self.whole, self.chosen = whole, sources

    def _reached(self, t: c.Tensor) -> bool:
        return not self.chosen.isdisjoint(self.pass_.terms(t))

    def of(self, t: c.Tensor) -> Tensor | None:
        """The shift of a tensor, even if it vanishes where all others are added."""
        return self._through(self.makers[t])

    def part(self, sources: frozenset[Source]) -> _Part:
        return self.whole.part(sources & self.chosen)

    def _value(self, s: Source) -> Tensor | None:
        return self.whole._value(s) if s in self.chosen else None

    def constant(self, r: Relation) -> Tensor:
        return self.whole.constant(r)


def _sum(parts: list[Tensor | None]) -> Tensor | None:
    """The sum of those that are there."""
    out = None
    for part in parts:
        out = part if out is None else out if part is None else out + part
    return out
