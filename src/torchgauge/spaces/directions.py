"""Second and third pass: directions that no reader sees, and affine relations that every tensor obeys.

Backward: a `Pattern` on a tensor says that its readers ignore any change that is proportional to fixed vectors along
some dimensions and arbitrary along the others (theory section 2b). Forward: a `Relation` says that a covector along
some dimensions gives a constant (section 2c). The fixed vectors are ones times powers of gains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from math import prod

from torchgauge.spaces import constraints as c

Gains = tuple[tuple[c.Tensor, int], ...]


@dataclass(frozen=True)
class Pattern:
    """Changes v ⊗ u are invisible: v = Π gain^power (ones if empty) along `dims`, u arbitrary along the rest."""

    dims: frozenset[int]
    gains: Gains = ()
    tiles: int = 1
    """How often the gains stand one after the other along the dimension."""


@dataclass(frozen=True)
class Relation:
    """Σ_dims n·x = κ with n = Π gain^power; κ = κ₀ + Σ over `offsets` of n_b·b, n_b the covector seen by bias b."""

    dims: frozenset[int]
    gains: Gains = ()
    constant: float = 0.0
    offsets: tuple[tuple[c.Tensor, Gains], ...] = ()
    tiles: int = 1
    """How often n, and what the offsets add, stand one after the other along the dimension."""


def regrouped(dims: frozenset[int], shape: tuple[int, ...], other: tuple[int, ...]) -> frozenset[int] | None:
    """The dimensions of `other` (a reshape of `shape`) that hold exactly the given ones; None if they mix."""
    groups = grouping(shape, other)
    out: set[int] = set()
    for left, right in groups:
        inside = {i for i in left if shape[i] > 1}
        if inside and inside <= dims:
            out.update(d for d in right if other[d] > 1)
        elif inside & dims:
            return None
    return frozenset(out)


def grouping(a: tuple[int, ...], b: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Finest common grouping of the dimensions of two shapes of one tensor."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        left, right, m, n = [], [], 1, 1
        while True:
            if m <= n and i < len(a) and (m < n or not left):
                left.append(i)
                m *= a[i]
                i += 1
            elif j < len(b) and (n < m or not right):
                right.append(j)
                n *= b[j]
                j += 1
            else:
                break
            if m == n and left and right:
                break
        groups.append((left, right))
        if not left and not right:
            break
    return groups


def picked(makers: Mapping[c.Tensor, c.Constraint], t: c.Tensor) -> bool:
    """Whether a tensor is a view of rows that were picked, such as the weights of experts."""
    while isinstance(made := makers.get(t), (c.Reshape, c.Permute, c.Slice)):
        t = made.x
    return isinstance(made, c.Pick)


class PatternPass:
    """Backward: `patterns[t]` for every tensor whose readers all ignore one common pattern."""

    def __init__(self, program: c.Program) -> None:
        self.seen: dict[c.Tensor, list[Pattern | None]] = {}
        self.relations = RelationPass(program).relations
        self.makers = {k.out: k for k in program.constraints}
        for out in program.outputs:
            self.seen.setdefault(out, []).append(None)
        for k in reversed(program.constraints):
            pattern = self.of(k.out)
            for tensor in dict.fromkeys(k.inputs):
                found = self.back(k, pattern, tensor)
                self.seen.setdefault(tensor, []).append(found)

    def of(self, tensor: c.Tensor) -> Pattern | None:
        """The meet of what the readers ignore."""
        readers = self.seen.get(tensor, [])
        if not readers or any(p is None for p in readers):
            return None
        patterns = [p for p in readers if p is not None]
        if len(set(patterns)) == 1:
            return patterns[0]
        if all(not p.gains for p in patterns):
            return Pattern(frozenset().union(*(p.dims for p in patterns)))
        return None

    @singledispatchmethod
    def back(self, k: c.Constraint, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        """What `k` as a reader of `tensor` ignores, given what is ignored of its result."""
        return None

    @back.register
    def _(self, k: c.Normalize, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        return Pattern(frozenset(k.dims)) if k.kind == "layer" and not k.others else None

    @back.register
    def _(self, k: c.Softmax, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        return Pattern(frozenset([k.dim]))

    @back.register
    def _(self, k: c.Reshape, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        if out is None:
            return None
        dims = regrouped(out.dims, k.out.shape, k.x.shape)
        # entries of a gain keep their order only while they stand in one dimension
        return None if dims is None or (out.gains and len(dims) != 1) else replace(out, dims=dims)

    @back.register
    def _(self, k: c.Permute, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        return None if out is None else replace(out, dims=frozenset(k.dims[d] for d in out.dims))

    @back.register
    def _(self, k: c.Slice, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        return None if out is None or k.dim in out.dims else out

    @back.register
    def _(self, k: c.Concat, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        if out is None or k.dim in out.dims or sum(x is tensor for x in k.xs) > 1:
            return None
        return out

    @back.register
    def _(self, k: c.Expand, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        return _narrowed(out, tensor.shape, k.out.shape)

    @back.register
    def _(self, k: c.Add, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        return None if k.x is k.y else _narrowed(out, tensor.shape, k.out.shape)

    @back.register
    def _(self, k: c.Mul, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        if out is None or k.x is k.y or (tensor is k.y and k.power != 1):
            return None
        other = k.y if tensor is k.x else k.x
        across = [i for i, n in enumerate(other.shape) if n > 1 and i in out.dims]
        if not across:
            return _narrowed(out, tensor.shape, k.out.shape)
        gain = gain_of(self.makers, other)
        if gain is None or len(out.dims) != 1 or out.tiles > 1:
            return None
        return replace(out, gains=(*out.gains, (gain, -k.power)))

    @back.register
    def _(self, k: c.Reduce, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        return None if out is None or k.mode == "max" or out.dims & set(k.dims) else out

    @back.register
    def _(self, k: c.Contract, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        if k.x is k.y:
            return None
        mine, other = (k.x_labels, k.y_labels) if tensor is k.x else (k.y_labels, k.x_labels)
        if picked(self.makers, tensor):
            met = self.relations.get(k.y if tensor is k.x else k.x)
            if met is not None and not (k.window or met.constant or met.offsets):
                along = {other[d] for d in met.dims}
                if along and along == set(mine) & set(other) - set(k.out_labels):
                    return Pattern(frozenset(mine.index(a) for a in along), met.gains, met.tiles)
        if out is None:
            return None
        labels = {k.out_labels[d] for d in out.dims}
        if labels & k.window or not labels <= set(mine) or (labels & set(other)):
            return None
        return replace(out, dims=frozenset(mine.index(a) for a in labels))

    @back.register
    def _(self, k: c.Gather, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        lead = k.out.ndim - (k.table.ndim - 1)
        if out is None or any(d < lead for d in out.dims):
            return None
        return replace(out, dims=frozenset(d - lead + 1 for d in out.dims))

    @back.register
    def _(self, k: c.Pick, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        lead = k.choice.ndim
        if out is None or tensor is k.choice or any(d < lead for d in out.dims):
            return None
        return replace(out, dims=frozenset(d - lead + 1 for d in out.dims))

    @back.register
    def _(self, k: c.Choice, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        return Pattern(frozenset([k.dim]))

    @back.register
    def _(self, k: c.Take, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        # a constant along the dimension stays one, and everything picked moves by it
        return out if out is not None and tensor is k.x and k.dim in out.dims and not out.gains else None

    @back.register
    def _(self, k: c.Spatial, out: Pattern | None, tensor: c.Tensor) -> Pattern | None:
        if out is None or k.mode != "linear" or not out.dims & set(k.dims):
            return None if k.mode != "linear" else out
        return out if k.within in out.dims and not out.gains else None


def _narrowed(out: Pattern | None, shape: tuple[int, ...], full: tuple[int, ...]) -> Pattern | None:
    """A broadcast operand is constant where it has size one, which only a pattern of ones allows."""
    if out is None:
        return None
    dims = frozenset(d for d in out.dims if shape[d] == full[d])
    if dims != out.dims and out.gains:
        return None
    return replace(out, dims=dims)


def gain_of(makers: dict[c.Tensor, c.Constraint], t: c.Tensor) -> c.Tensor | None:
    """The parameter or buffer vector that `t` is, up to dimensions of size one."""
    while t.role == "data":
        made = makers.get(t)
        if not isinstance(made, c.Reshape):
            return None
        if [n for n in made.x.shape if n > 1] != [n for n in t.shape if n > 1]:
            return None
        t = made.x
    return t if t.role in ("param", "buffer") and sum(n > 1 for n in t.shape) <= 1 else None


class RelationPass:
    """Forward: `relations[t]` for every tensor that obeys one."""

    def __init__(self, program: c.Program) -> None:
        self.relations: dict[c.Tensor, Relation] = {}
        self.makers = {k.out: k for k in program.constraints}
        for k in program.constraints:
            found = self.forth(k)
            if found is not None:
                self.relations[k.out] = found

    @singledispatchmethod
    def forth(self, k: c.Constraint) -> Relation | None:
        """The relation of `k.out`."""
        return None

    @forth.register
    def _(self, k: c.Normalize) -> Relation | None:
        return Relation(frozenset(k.dims)) if k.kind == "layer" and not k.others else None

    @forth.register
    def _(self, k: c.Softmax) -> Relation | None:
        return None if k.log else Relation(frozenset([k.dim]), constant=1.0)

    @forth.register
    def _(self, k: c.Reshape) -> Relation | None:
        x = self.relations.get(k.x)
        dims = regrouped(x.dims, k.x.shape, k.out.shape) if x else None
        if x is not None and dims is None:
            return self._beside(k, x)
        ordered = x is not None and dims is not None and (len(dims) == 1 or not (x.gains or x.offsets))
        return replace(x, dims=dims) if x and dims is not None and ordered else None

    def _beside(self, k: c.Reshape, x: Relation) -> Relation | None:
        """The sum of one relation over neighbours that are put side by side in one dimension, such as patches."""
        for left, right in grouping(k.x.shape, k.out.shape):
            joined = [d for d in left if k.x.shape[d] > 1]
            whole = [d for d in right if k.out.shape[d] > 1]
            if joined and len(whole) == 1 and x.dims == {joined[-1]}:
                count = prod(k.x.shape[d] for d in joined[:-1])
                return replace(x, dims=frozenset(whole), constant=x.constant * count, tiles=x.tiles * count)
        return None

    @forth.register
    def _(self, k: c.Permute) -> Relation | None:
        x = self.relations.get(k.x)
        return replace(x, dims=frozenset(k.dims.index(d) for d in x.dims)) if x else None

    @forth.register
    def _(self, k: c.Slice) -> Relation | None:
        x = self.relations.get(k.x)
        return x if x and k.dim not in x.dims else None

    @forth.register
    def _(self, k: c.Expand) -> Relation | None:
        x = self.relations.get(k.x)
        return x if x and all(k.x.shape[d] == k.out.shape[d] for d in x.dims) else None

    @forth.register
    def _(self, k: c.Mul) -> Relation | None:
        return self._multiplied(k, self.relations.get(k.x))

    def _multiplied(self, k: c.Mul, x: Relation | None) -> Relation | None:
        gain = gain_of(self.makers, k.y)
        if x is not None and k.y.fill and prod(k.y.shape) == 1 and not x.offsets:
            return replace(x, constant=x.constant * k.y.fill**k.power)
        if x is None or gain is None or k.x.shape != k.out.shape or len(x.dims) != 1:
            return None
        (dim,) = x.dims
        if x.constant or x.offsets or x.tiles > 1:
            return None
        if k.y.shape[dim] != k.out.shape[dim] or prod(k.y.shape) != k.y.shape[dim]:
            return None
        return replace(x, gains=(*x.gains, (gain, -k.power)))

    @forth.register
    def _(self, k: c.Reduce) -> Relation | None:
        return self._averaged(k.x, frozenset(k.dims)) if k.mode == "mean" else None

    def _averaged(self, t: c.Tensor, dims: frozenset[int]) -> Relation | None:
        """The relation of a mean over some dimensions, which may be a part of those of a norm.

        Gains and biases that are constant along them act on the mean as they do on the tensor.
        """
        x, made = self.relations.get(t), self.makers.get(t)
        if x is not None and not x.dims & dims:
            return x
        if x is not None and dims < x.dims and not (x.gains or x.offsets or x.constant):
            return replace(x, dims=x.dims - dims)
        if not isinstance(made, (c.Mul, c.Add)) or made.y.ndim != t.ndim or any(made.y.shape[d] > 1 for d in dims):
            return None
        inner = self._averaged(made.x, dims)
        return self._multiplied(made, inner) if isinstance(made, c.Mul) else self._added(made, inner)

    @forth.register
    def _(self, k: c.Spatial) -> Relation | None:
        x = self.relations.get(k.x)
        linear = x is not None and k.mode == "linear" and not x.dims & set(k.dims)
        return x if x and linear and (k.keeps_constants or not (x.constant or x.offsets)) else None

    @forth.register
    def _(self, k: c.Add) -> Relation | None:
        return self._added(k, self.relations.get(k.x))

    def _added(self, k: c.Add, x: Relation | None) -> Relation | None:
        bias = gain_of(self.makers, k.y)
        if x is None or bias is None or bias.role != "param" or k.alpha != 1.0 or k.x.shape != k.out.shape:
            return None
        if len(x.dims) != 1 or x.tiles > 1:
            return None
        (dim,) = x.dims
        if k.y.shape[dim] != k.out.shape[dim] or prod(k.y.shape) != k.y.shape[dim]:
            return None
        return replace(x, offsets=(*x.offsets, (bias, x.gains)))
