"""Directions that no input reaches because of the values of other weights: what linear maps write is a subspace.

All values of a tensor along some of its dimensions lie in o + L, for a subspace L and an offset o that biases make.
L is written as generators: everything of a narrower tensor, or the rows of a parameter, carried through linear maps. A
weight that reads the tensor is free across it. (Theory section 4; the converse of kernels.py.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, prod

import torch
from torch import Tensor

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import gain_of, grouping, regrouped
from torchgauge.spaces.sources import Sources
from torchgauge.spaces.steps import Apart, Centre, Dims, Generators, Map, Pad, Repeat, Scale, Step, View
from torchgauge.spaces.windows import places

Span = frozenset[Generators] | None
"""Generators of all values of a tensor; None for everything."""
NOTHING: frozenset[Generators] = frozenset()


@dataclass(frozen=True, eq=False)
class Reader:
    """A view of a parameter that may change across what it reads, along `dims`; `bias` takes off what is constant."""

    tensor: c.Tensor
    dims: Dims
    span: frozenset[Generators]
    left: int
    bias: c.Tensor | None = None
    order: Dims = ()
    """The dimensions of the bias, as dimensions of `tensor`."""
    taps: Dims = ()
    """Dimensions of `tensor` that are the positions of a kernel; each is held against values of its own."""
    inside: Tensor | None = None
    """One for the positions that meet no padding, by kind of place [kinds, positions]; None without `taps`."""

    @property
    def changed(self) -> Dims:
        """Where the changes are made together."""
        return (*self.dims, *self.taps)

    @property
    def size(self) -> int:
        """Entries that it reads, and one for the bias."""
        return prod(self.tensor.shape[d] for d in self.changed) + (self.bias is not None)

    @property
    def rest(self) -> tuple[int, ...]:
        """The other dimensions."""
        return tuple(d for d in range(self.tensor.ndim) if d not in self.changed)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the coordinates, to be projected: the other dimensions, and what is read."""
        return (*(self.tensor.shape[d] for d in self.rest), self.size)

    @property
    def dimension(self) -> int:
        """Of the changes."""
        return self.left * prod(self.tensor.shape[d] for d in self.rest)


@dataclass
class Ranges:
    """Finds the spans of tensors, and the parameters that read across them."""

    program: c.Program
    sources: Sources
    _known: dict[tuple[c.Tensor, Dims], Span] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for k in self.program.constraints:  # in order, so that no recursion goes deep
            for d, n in enumerate(k.out.shape):
                if n > 1:
                    self.span(k.out, (d,))

    def readers(self) -> list[Reader]:
        found = [self._reader(t, uses) for t, uses in self.sources.parts.items()]
        return [r for r in found if r is not None]

    def span(self, t: c.Tensor, dims: Dims) -> Span:
        """All values of a tensor along some of its dimensions, at any index of the others."""
        if (t, dims) not in self._known:
            found = self._shorter(t, dims, self._span(t, dims))
            if _rank(found) >= _size(t, dims):
                found = self._beside(t, dims)
            self._known[t, dims] = found
        return self._known[t, dims]

    def _beside(self, t: c.Tensor, dims: Dims) -> Span:
        """Along several dimensions where nothing is known of them together: neighbours, each with values of its own."""
        if len(dims) == 1:
            return None
        found: Span = None
        for i, d in enumerate(dims):
            one = self.span(t, (*dims[:i], *dims[i + 1 :]))
            each = _side_by_side(one, i, t.shape[d])
            if _rank(each) < min(_rank(found), _size(t, dims)):
                found = each
        return found

    # -- readers -----------------------------------------------------------------------------------------------
    def _reader(self, t: c.Tensor, uses: list[tuple[c.Constraint, c.Tensor]]) -> Reader | None:
        spans: list[frozenset[Generators]] = []
        chosen: Dims | None = None
        for k, end in uses:
            if not isinstance(k, c.Contract) or end.role == "const":
                return None
            x, y, xl, yl = self.sources.operands(k)
            if y is not end or x is y:
                return None
            read = [a for a in yl if a in xl and a not in k.out_labels and a not in k.window]
            dims = self._back(tuple(yl.index(a) for a in read), end, t)
            span = self.span(x, tuple(xl.index(a) for a in read)) if read else None
            if span is None or dims is None or chosen not in (None, dims):
                return None
            chosen = dims
            # the offsets of several uses vanish one by one, and not their sum
            spans.append(span if len(uses) == 1 else _loose(span) or NOTHING)
        if chosen is None:
            return None
        together = NOTHING.union(*spans)
        taps, inside = self._taps(t, *uses[0]) if len(uses) == 1 else ((), None)
        bias, order = self._bias(t, *uses[0], chosen, taps) if len(uses) == 1 else (None, ())
        reader = Reader(t, chosen, together, 0, bias, order, taps, inside)
        rows = sum(g.rows for g in together if not g.fixed) * _size(t, taps)
        left = reader.size - rows - _constants(reader)
        # one relation alone is found by the shift pass, and balanced by any bias there is
        return replace(reader, left=left) if left > self._related(*uses[0], _size(t, taps)) else None

    def _taps(self, t: c.Tensor, k: c.Constraint, end: c.Tensor) -> tuple[Dims, Tensor | None]:
        """The dimensions of a kernel's positions, and which of these meet no padding."""
        if not isinstance(k, c.Contract) or not k.window:
            return (), None
        _, y, _, yl = self.sources.operands(k)
        found = places(k.reach, yl, y.shape)
        if found is None or {yl[d] for d in found[0]} != k.window & set(yl):
            return (), None
        dims = self._back(found[0], end, t)
        return ((), None) if dims is None else (dims, found[1].flatten(1))

    def _related(self, k: c.Constraint, end: c.Tensor, taps: int) -> int:
        """How many of the changes the shift pass finds, by a relation of what is read."""
        entries = [e for s in self.sources.of(k, end) for e in s.entries if e.kind == "relation"]
        return max((taps if e.taps is None else len(e.taps.basis) for e in entries), default=0)

    def _back(self, dims: Dims, end: c.Tensor, t: c.Tensor) -> Dims | None:
        """Dimensions of a view of `t` as dimensions of `t`, one by one."""
        while end is not t:
            made = self.sources.makers[end]
            if isinstance(made, c.Permute):
                dims = tuple(made.dims[d] for d in dims)
            elif isinstance(made, c.Reshape):
                back = [regrouped(frozenset([d]), made.out.shape, made.x.shape) for d in dims]
                if any(b is None or len(b) != 1 for b in back):
                    return None
                dims = tuple(next(iter(b)) for b in back if b)
            else:
                return None
            end = made.inputs[0]
        return dims

    def _bias(
        self, t: c.Tensor, k: c.Constraint, end: c.Tensor, dims: Dims, taps: Dims
    ) -> tuple[c.Tensor | None, Dims]:
        """The bias right behind a weight that is used once, if it has every dimension that the weight keeps."""
        readers = self.sources.readers.get(k.out, [])
        if not isinstance(k, c.Contract) or (k.window and not taps) or end is not t or len(readers) != 1:
            return None, ()
        add = readers[0]
        if not isinstance(add, c.Add) or k.out in self.sources.outputs or add.alpha != 1.0:
            return None, ()
        seen = self.sources.bare(add.y if add.x is k.out else add.x)
        _, _, _, labels = self.sources.operands(k)
        own = {k.out_labels.index(a): labels.index(a) for a in labels if a in k.out_labels}
        wide = [d for d, n in enumerate(seen.shape) if n > 1]
        rest = {d for d in range(t.ndim) if d not in (*dims, *taps) and t.shape[d] > 1}
        fits = seen.ndim == k.out.ndim and all(d in own and seen.shape[d] == k.out.shape[d] for d in wide)
        param = self._part(seen)
        if not fits or param is None or {own[d] for d in wide} != rest or add.out.shape != k.out.shape:
            return None, ()
        return param, tuple(own[d] for d in wide)

    def _part(self, seen: c.Tensor) -> c.Tensor | None:
        """The part of a parameter that a tensor shows entry by entry in order, if it is used here alone."""
        t = seen
        while t not in self.sources.parts:
            made = self.sources.makers.get(t)
            if not isinstance(made, c.Reshape):
                return None
            t = made.x
        return t if len(self.sources.parts[t]) == 1 else None

    # -- spans -------------------------------------------------------------------------------------------------
    def _span(self, t: c.Tensor, dims: Dims) -> Span:
        sizes = tuple(t.shape[d] for d in dims)
        if t.role == "const":
            if t.fill == 0.0:
                return NOTHING
            return None if t.fill is None else frozenset([Generators("ones", sizes, dims, 1)])
        if t.role == "param":
            return _rows(t, dims, prod(t.shape) // prod(sizes))
        k = self.sources.makers.get(t)
        return None if k is None else self._made(k, dims)

    def _shorter(self, t: c.Tensor, dims: Dims, found: Span) -> Span:
        """What linear maps make of parameters has no more values than it has rows."""
        lengths = self.sources.lengths(t) if t.role == "data" and not self.sources.is_static(t) else None
        if lengths is None:
            return found
        rows = prod(n for d, n in enumerate(lengths) if d not in dims)
        if found is not None and sum(g.rows for g in found if not g.fixed) < rows:
            return found
        return _rows(t, dims, rows)

    def _made(self, k: c.Constraint, dims: Dims) -> Span:
        """The values of what a constraint makes."""
        match k:
            case c.Permute():
                return self.span(k.x, tuple(k.dims[d] for d in dims))
            case c.Reshape():
                return self._reshaped(k, dims)
            case c.Expand():
                return self._expanded(k, dims)
            case c.Slice():
                step = [View(narrow=(dims.index(k.dim), k.start, k.stop))] if k.dim in dims else []
                return _then(self.span(k.x, dims), *step)
            case c.Concat():
                return self._concatenated(k, dims)
            case c.Add():
                return self._summed(k, dims)
            case c.Mul() if k.x is not k.y:
                return self._multiplied(k, dims)
            case c.Normalize(others=()) if set(k.dims) == set(dims):
                found, n = self.span(k.x, dims), _size(k.x, dims)
                if k.kind == "rms":
                    return _loose(found)
                if (centred := _then(_loose(found), Centre())) is not None and _rank(centred) < n - 1:
                    return centred
                return frozenset([Generators("centred", tuple(k.x.shape[d] for d in dims), dims, n - 1)])
            case c.Pointwise() if k.profile.fixes_zero and self.span(k.x, dims) == NOTHING:
                return NOTHING
            case c.Reduce() if k.mode != "max" and not set(k.dims) & set(dims):
                found = self.span(k.x, dims)
                return found if k.mode == "mean" else _loose(found)
            case c.Spatial(mode="linear") if not set(k.dims) & set(dims):
                found = self.span(k.x, dims)
                return found if k.keeps_constants else _loose(found)
            case c.Gather():
                lead = k.out.ndim - (k.table.ndim - 1)
                return self.span(k.table, tuple(d - lead + 1 for d in dims)) if min(dims) >= lead else None
            case c.Take() if k.dim not in dims:
                return None
            case c.Contract() if k.x is not k.y:
                return self._contracted(k, dims)
        return None

    def _reshaped(self, k: c.Reshape, dims: Dims) -> Span:
        before: list[int] = []
        for left, right in grouping(k.x.shape, k.out.shape):
            inside = {d for d in right if k.out.shape[d] > 1}
            if inside and inside <= set(dims):
                before += [d for d in left if k.x.shape[d] > 1]
            elif inside & set(dims):
                return None
        wide = sorted(d for d in dims if k.out.shape[d] > 1)
        shape = tuple(k.out.shape[d] for d in wide)
        missing = [d for d in dims if d not in wide]  # dimensions of size one come last
        order = tuple([*wide, *missing].index(d) for d in dims)
        steps = View(shape=(*shape, *(1 for _ in missing))), View(order=order)
        return _then(self.span(k.x, tuple(before)), *steps) if before else None

    def _expanded(self, k: c.Expand, dims: Dims) -> Span:
        """Copies side by side are the same."""
        kept = tuple(d for d in dims if k.x.shape[d] == k.out.shape[d])
        if kept == dims:
            return self.span(k.x, dims)
        if not kept:
            return frozenset([Generators("ones", tuple(k.out.shape[d] for d in dims), dims, 1)])
        found, sizes = self.span(k.x, kept), tuple(k.x.shape[d] for d in kept)
        if found is None:
            found = frozenset([Generators("all", sizes, kept, prod(sizes))])
        return _then(found, *(Repeat(i, k.out.shape[d]) for i, d in enumerate(dims) if d not in kept))

    def _concatenated(self, k: c.Concat, dims: Dims) -> Span:
        parts, start = [], 0
        for x in k.xs:
            found = self.span(x, dims)
            n = x.shape[k.dim]
            if k.dim in dims:
                if found is None:
                    sizes = tuple(x.shape[d] for d in dims)
                    found = frozenset([Generators("all", sizes, dims, prod(sizes))])
                found = _then(found, Pad(dims.index(k.dim), start, k.out.shape[k.dim]))
            else:
                found = _loose(found)  # an offset of one part alone
            parts.append(found)
            start += n
        return _union(parts)

    def _summed(self, k: c.Add, dims: Dims) -> Span:
        x, y = (self._added(k, t, dims) for t in (k.x, k.y))
        if x is None or y is None:
            return None
        if k.alpha != 1.0 or any(g.fixed for g in x & y):  # what comes in twice counts twice
            x, y = _loose(x), _loose(y)
        return _union([x, y])

    def _added(self, k: c.Add, t: c.Tensor, dims: Dims) -> Span:
        same = [d for d in dims if t.shape[d] == k.out.shape[d]]
        if len(same) == len(dims):
            return self.span(t, dims)
        if same or any(t.shape[d] != 1 for d in dims):
            return None
        return frozenset([Generators("ones", tuple(k.out.shape[d] for d in dims), dims, 1)])

    def _multiplied(self, k: c.Mul, dims: Dims) -> Span:
        x, y = k.x, k.y
        if k.power == 1 and (x.role == "const" or self.sources.is_static(x)):
            x, y = y, x
        if any(x.shape[d] != k.out.shape[d] for d in dims):
            return None
        across = [d for d in dims if y.shape[d] > 1]
        found = self.span(x, dims)
        if not across:
            return _loose(found)
        gain = gain_of(self.sources.makers, y)
        if gain is None or len(across) != 1 or self.sources.is_static(x):
            return None
        if found is None:
            return None
        step = Scale(gain, k.power, dims.index(across[0]))
        return _then(found, step) if prod(y.shape) == y.shape[across[0]] else None

    def _contracted(self, k: c.Contract, dims: Dims) -> Span:
        x, y, xl, yl = self.sources.operands(k)
        after = tuple(k.out_labels[d] for d in dims)
        if not self.sources.is_static(y):
            for t, labels, other in ((x, xl, yl), (y, yl, xl)):
                if set(after) <= set(labels) and not set(after) <= set(other):
                    found = self.span(t, tuple(labels.index(a) for a in after))
                    found = found if t is y and self.sources.averages(k) else _loose(found)
                    return _apart(found, after, {a: n for a, n in zip(labels, t.shape, strict=True) if a in other})
            return None
        if not set(after) <= {*xl, *yl} or set(after) & k.window:
            return None
        if not set(after) & set(yl):
            return _loose(self.span(x, tuple(xl.index(a) for a in after)))
        if y.role == "const":
            return None
        if k.window:
            return self._windowed(k, x, y, xl, yl, after)
        summed = tuple(a for a in xl if a in yl and a not in k.out_labels)
        kept = tuple(a for a in after if a in xl)
        wide = {a for a, n in zip(yl, y.shape, strict=True) if n > 1}
        # the weight must be the same at every index that is left out
        if not summed or (wide - set(summed)) - set(after):
            return None
        before = (*summed, *kept)
        places = tuple(xl.index(a) for a in before)
        found = self.span(x, places)
        if found is None:
            sizes = tuple(x.shape[d] for d in places)
            if prod(sizes) >= prod(k.out.shape[d] for d in dims):
                return None
            found = frozenset([Generators("all", sizes, places, prod(sizes))])
        return _then(found, Map(y, before, yl, after))

    def _windowed(
        self,
        k: c.Contract,
        x: c.Tensor,
        y: c.Tensor,
        xl: tuple[str, ...],
        yl: tuple[str, ...],
        after: tuple[str, ...],
    ) -> Span:
        """What a convolution makes: combinations of its columns, of which there are few if channels and taps are."""
        before = tuple(a for a in yl if a not in after)
        if any(a in k.out_labels for a in before) or not set(after) <= set(yl) or set(after) & set(xl):
            return None
        sizes = tuple(y.shape[yl.index(a)] for a in before)
        shown = [a for a in before if a in xl]
        found = self.span(x, tuple(xl.index(a) for a in shown)) if before == tuple(shown) else None
        if found is None:
            if prod(sizes) >= prod(k.out.shape[k.out_labels.index(a)] for a in after):
                return None
            found = frozenset([Generators("all", sizes, (), prod(sizes))])
        return _then(found, Map(y, before, yl, after))


def _constants(reader: Reader) -> int:
    """How many directions the constant part of what is read has, with a one in front of a bias."""
    fixed = any(g.fixed for g in reader.span)
    inside = torch.ones(1, 1, dtype=torch.float64) if reader.inside is None else reader.inside
    shown = inside if fixed else inside[:, :0]
    if reader.bias is not None:
        shown = torch.cat([shown, torch.ones(len(shown), 1, dtype=torch.float64)], 1)
    return int(torch.linalg.matrix_rank(shown)) if shown.numel() else 0


def _rows(t: c.Tensor, dims: Dims, rows: int) -> Span:
    """The affine space through the rows of a tensor of numbers."""
    first = Generators(t, tuple(t.shape[d] for d in dims), dims, 1, fixed=True, part="first")
    return frozenset([first, *([replace(first, rows=rows - 1, fixed=False, part="others")] if rows > 1 else [])])


def _then(span: Span, *steps: Step) -> Span:
    return None if span is None else frozenset(g.then(*steps) for g in span)


def _apart(span: Span, labels: tuple[str, ...], own: Mapping[str, int]) -> Span:
    """Averages by weights of their own for every index of some labels, such as heads; these keep an offset."""
    axes = tuple(i for i, a in enumerate(labels) if own.get(a, 1) > 1)
    if span is None or not axes:
        return span
    step = Apart(axes, prod(own[labels[i]] for i in axes))
    return frozenset(g if g.fixed else g.then(step) for g in span)


def _side_by_side(span: Span, axis: int, count: int) -> Span:
    """What is known at each index of another axis, for all of them together; an offset is the same at each."""
    own = (Repeat(axis, count), Apart((axis,), count))
    return None if span is None else frozenset(g.then(*own[: 1 if g.fixed else 2]) for g in span)


def _loose(span: Span) -> Span:
    """An offset that is no longer the same at every input: its multiples, for its parts alone would not keep still."""
    offset = frozenset(g for g in span or () if g.fixed)
    if span is None or not offset:
        return span
    one = next(iter(offset))
    whole = replace(one, fixed=False) if len(offset) == 1 else Generators(offset, (), (), 1)
    return (span - offset) | {whole}


def _union(parts: list[Span]) -> Span:
    found = [p for p in parts if p is not None]
    return NOTHING.union(*found) if len(found) == len(parts) else None


def _rank(span: Span) -> float:
    """How many directions the values have at most, beside an offset."""
    return inf if span is None else sum(g.rows for g in span if not g.fixed)


def _size(t: c.Tensor, dims: Dims) -> int:
    return prod(t.shape[d] for d in dims)
