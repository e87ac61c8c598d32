"""The second stage of a group element: shifts of biases, and unreachable directions of readers.

The free sources are moved by the element's values; every solved source is set so that the total shift vanishes where
it was solved. Frames are the identity here, so that all linear maps stand still but for the readers of a relation,
and the stage is an additive group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import Gains, Relation
from torchgauge.spaces.shifts import ShiftPass, Source

Coordinates = dict[str, Tensor]


def param_of(makers: Mapping[c.Tensor, c.Constraint], t: c.Tensor) -> c.Tensor:
    """The parameter that a view shows."""
    while t.role == "data":
        made = makers[t]
        t = made.x  # type: ignore[attr-defined]
    return t


def viewed(makers: Mapping[c.Tensor, c.Constraint], t: c.Tensor, value: Tensor) -> Tensor:
    """Apply the views that lead from a parameter to `t` to a tensor of the parameter's shape."""
    steps: list[c.Constraint] = []
    while t.role == "data":
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


def gain_product(gains: Gains, coordinates: Coordinates) -> Tensor | float:
    """Π gain^power as a flat vector."""
    out: Tensor | float = 1.0
    for gain, power in gains:
        key = gain.name if gain.role == "param" else f"buffer:{gain.name}"
        out = out * coordinates[key].reshape(-1) ** power
    return out


@dataclass
class ShiftStage:
    """Additive: values of the free sources, by source."""

    shifts: ShiftPass

    def shape(self, s: Source) -> tuple[int, ...]:
        if s.kind == "rows":
            return s.tensor.shape[1:]
        if s.kind == "relation":
            _, _, labels, sizes = self._reader_labels(s)
            return tuple(sizes[a] for a in labels)
        return s.tensor.shape

    def width(self, s: Source) -> int:
        """How many entries a reader of the shifted tensor sums, roughly: sets the size of random shifts."""
        return s.at.out.shape[-1] if s.kind != "relation" else s.at.inputs[0].shape[-1]

    def _reader_labels(self, s: Source) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], dict[str, int]]:
        """Labels of the weight, of the relation inside it, of u, and all sizes."""
        k = s.at
        assert isinstance(k, c.Contract) and s.relation is not None
        x, y, xl, yl = self.shifts.operands(k)
        sizes = dict(zip(xl, x.shape, strict=True)) | dict(zip(yl, y.shape, strict=True))
        inside = tuple(a for d, a in enumerate(xl) if d in s.relation.dims and a in yl)
        return yl, inside, tuple(a for a in yl if a not in inside), sizes

    def act(self, values: Mapping[Source, Tensor], params: Coordinates) -> Coordinates:
        new = dict(params)
        run = _Run(self, values, params, new)
        for s in sorted(values, key=lambda s: s.kind == "relation"):
            run.apply(s, values[s])
        for s in self.shifts.solved:
            run.solve(s)
        return new


class _Run:
    """One evaluation: shifts of tensors are computed on demand from the sources' values."""

    def __init__(self, stage: ShiftStage, values: Mapping[Source, Tensor], old: Coordinates, new: Coordinates) -> None:
        self.stage, self.pass_, self.values, self.old, self.new = stage, stage.shifts, dict(values), old, new
        self.makers = self.pass_.makers

    def apply(self, s: Source, value: Tensor) -> None:
        """Move the parameter of a source."""
        name = param_of(self.makers, s.tensor).name
        if s.kind == "bias":
            self.new[name] = add_to_view(self.makers, s.tensor, self.new[name], value)
        elif s.kind == "rows":
            self.new[name] = add_to_view(self.makers, s.tensor, self.new[name], value[None])
        else:
            weight_labels, inside, own, sizes = self.stage._reader_labels(s)
            assert s.relation is not None
            n = self.covector(s.relation.gains, inside, sizes)
            u = value.reshape([sizes[a] if a in own else 1 for a in weight_labels])
            n = n.reshape([sizes[a] if a in inside else 1 for a in weight_labels])
            self.new[name] = add_to_view(self.makers, s.tensor, self.new[name], u * n)

    def covector(self, gains: Gains, inside: tuple[str, ...], sizes: dict[str, int]) -> Tensor:
        shape = [sizes[a] for a in inside]
        n = gain_product(gains, self.old)
        return n.reshape(shape) if isinstance(n, Tensor) else torch.full(shape, n, dtype=torch.float64)

    def solve(self, s: Source) -> Tensor | None:
        """The value that makes everything else vanish where the source was solved."""
        if s in self.values:
            return self.values[s]
        at, _ = self.pass_.solved[s]
        # what the others bring, with this source standing still
        self.values[s] = None  # type: ignore[assignment]
        total = self.shift(at)
        if total is None:
            return None
        value = self._pull_back(s, at, -total)
        self.values[s] = value
        self.apply(s, value)
        return value

    def _pull_back(self, s: Source, at: c.Tensor, wanted: Tensor) -> Tensor:
        """The source's value that shows as `wanted` at a tensor that it reaches through sums and views."""
        shape = self.stage.shape(s)
        found = self._index(s, at, torch.arange(max(1, _numel(shape))).reshape(shape))
        assert found is not None
        index, scale = found
        wanted = wanted / scale
        index, wanted = torch.broadcast_tensors(index, wanted)
        flat = torch.zeros(max(1, _numel(shape)), dtype=wanted.dtype)
        value = flat.index_put((index.reshape(-1),), wanted.reshape(-1)).reshape(shape)
        if s.kind == "relation":
            assert s.relation is not None
            value = value / self.constant(s.relation, s)
        return value

    def _index(self, s: Source, t: c.Tensor, index: Tensor) -> tuple[Tensor, float] | None:
        """Where each entry of a source appears in `t` (size one where it is broadcast), and its factor."""
        k = self.makers.get(t)
        if k is s.at:
            factor = k.alpha if isinstance(k, c.Add) and self.pass_.bare(k.y) is s.tensor else 1.0
            return self._placed(s, index), factor
        if isinstance(k, c.Add):
            found = self._index(s, k.x, index)
            if found is None and (found := self._index(s, k.y, index)) is not None:
                found = found[0], found[1] * k.alpha
            return found
        if isinstance(k, c.Mul):
            found = self._index(s, k.x, index)
            assert found is None or k.y.fill is not None
            return None if found is None else (found[0], found[1] * float(k.y.fill or 0.0) ** k.power)
        if isinstance(k, (c.Reshape, c.Permute, c.Expand)):
            found = self._index(s, k.x, index)
            if found is None:
                return None
            place, scale = found
            return apply_view(k, place.expand(k.x.shape) if isinstance(k, c.Reshape) else place), scale
        return None

    def _placed(self, s: Source, value: Tensor) -> Tensor:
        """A source's value with the dimensions of the tensor where it enters."""
        k = s.at
        if s.kind == "rows":
            return value.reshape([1] * (k.out.ndim - value.ndim) + list(value.shape))
        if s.kind == "relation":
            assert isinstance(k, c.Contract)
            _, _, own, sizes = self.stage._reader_labels(s)
            order = [a for a in k.out_labels if a in own]
            inner = [d for d, a in enumerate(own) if a not in k.out_labels]
            if inner and not value.dtype.is_floating_point:
                # positions inside the kernel: the first one stands for all
                for d in reversed(inner):
                    value = value.select(d, 0)
            elif inner:
                value = value.sum(inner)
            own = tuple(a for a in own if a in k.out_labels)
            value = value.permute([own.index(a) for a in order])
            return value.reshape([sizes[a] if a in own else 1 for a in k.out_labels])
        return value

    def constant(self, r: Relation, s: Source) -> Tensor:
        """κ of a relation at the new parameters."""
        total = torch.tensor(r.constant, dtype=torch.float64)
        for bias, gains in r.offsets:
            b = self.new[bias.name].reshape(-1)
            total = total + (gain_product(gains, self.old) * b).sum()
        return total

    # -- forward -----------------------------------------------------------------------------------------------
    def shift(self, t: c.Tensor) -> Tensor | None:
        """The shift of a tensor, with size one along dimensions where it is constant; None for none."""
        if t in self.pass_.zero and not self._solving(t):
            return None
        if t.role != "data":
            return None
        k = self.makers[t]
        return self._through(k)

    def _solving(self, t: c.Tensor) -> bool:
        return any(at is t and self.values.get(s, 0) is None for s, (at, _) in self.pass_.solved.items())

    def _operand(self, k: c.Constraint, t: c.Tensor) -> Tensor | None:
        s = self.pass_.sources.get((k, self.pass_.bare(t)))
        if s is not None and s.kind == "bias":
            return self._value(s)
        return self.shift(t)

    def _value(self, s: Source) -> Tensor | None:
        if s in self.pass_.dead:
            return None
        if s in self.values:
            return self.values[s]
        return self.solve(s) if s in self.pass_.solved else None

    def _through(self, k: c.Constraint) -> Tensor | None:
        if isinstance(k, c.Add):
            x, y = self._operand(k, k.x), self._operand(k, k.y)
            if y is not None and k.alpha != 1.0:
                y = y * k.alpha
            return x if y is None else (y if x is None else x + y)
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
            s = self.pass_.sources.get((k, k.table))
            value = self._value(s) if s is not None else None
            return None if s is None or value is None else self._placed(s, value)
        if isinstance(k, c.Contract):
            return self._contract(k)
        x = self.shift(k.x)  # type: ignore[attr-defined]
        if x is None:
            return None
        if isinstance(k, c.Reshape):
            return x.expand(k.x.shape).reshape(k.out.shape)
        if isinstance(k, (c.Permute, c.Slice, c.Expand)):
            return apply_view(k, x)
        if isinstance(k, c.Mul) and self.pass_.is_static(k.y):
            return x * self.value_of(k.y) ** k.power
        if isinstance(k, c.Reduce):
            x = x.expand([n if i in k.dims else m for i, (n, m) in enumerate(zip(k.x.shape, x.shape, strict=True))])
            return x.mean(k.dims, keepdim=True) if k.mode == "mean" else x.sum(k.dims, keepdim=True)
        if isinstance(k, c.Spatial):
            for d in k.dims:
                x = x.narrow(d, 0, 1)
            return x
        return None

    def value_of(self, t: c.Tensor) -> Tensor:
        """The number that a static tensor holds."""
        if t.role == "const":
            assert t.fill is not None
            return torch.tensor(t.fill, dtype=torch.float64)
        leaf = param_of(self.makers, t)
        key = leaf.name if leaf.role == "param" else f"buffer:{leaf.name}"
        return viewed(self.makers, t, self.old[key].reshape(leaf.shape))

    def _contract(self, k: c.Contract) -> Tensor | None:
        x, y, xl, yl = self.pass_.operands(k)
        out: Tensor | None = None
        if not self.pass_.is_static(y):
            moved = self.shift(y) if self.pass_.averages(k) else None
            if moved is None:
                return None
            for d, a in enumerate(yl):
                if a not in k.out_labels:
                    moved = moved.narrow(d, 0, 1)
            keep = [a for a in k.out_labels if a in yl]
            moved = moved.permute([*(yl.index(a) for a in keep), *(d for d, a in enumerate(yl) if a not in keep)])
            sizes = dict(zip(keep, moved.shape, strict=False))
            return moved.reshape([sizes.get(a, 1) for a in k.out_labels])
        arriving = self.shift(x)
        if arriving is not None:
            out = self._linear(k, arriving, x, y, xl, yl)
        s = self.pass_.sources.get((k, y))
        if s is not None and s.kind == "relation" and s.relation and (s.relation.constant or s.relation.offsets):
            value = self._value(s)
            if value is not None:
                extra = self._placed(s, value * self.constant(s.relation, s))
                out = extra if out is None else out + extra
        return out

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


def _numel(shape: tuple[int, ...]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out
