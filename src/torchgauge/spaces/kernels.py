"""Directions that no reader sees because of the values of other weights: kernels of linear maps.

A change along dimensions D of a tensor, arbitrary along the rest, is pushed forward through linear maps whose weights
are parameters. What readers see of it is a list of blocks: some maps, then every entry, or every entry up to a constant
(a layer norm or a softmax). The blocks are linear conditions on the change; where they are fewer than its entries,
directions are left that nobody sees. They depend on the parameters: {k : C k = 0} for a classifier C of fewer classes
than features. (Theory section 3.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Literal

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import gain_of, grouping
from torchgauge.spaces.ranges import Ranges
from torchgauge.spaces.sources import Sources
from torchgauge.spaces.steps import Against, Dims, Map, Scale, Step, Total, View

DEEPEST = 100
"""Steps of one recursion."""


@dataclass(frozen=True)
class Block:
    """One linear condition: steps, then "all" entries vanish, or are equal ("centred")."""

    steps: tuple[Step, ...]
    end: Literal["all", "centred"]
    rows: int

    def behind(self, step: Step) -> Block:
        return Block((step, *self.steps), self.end, self.rows)


Seen = frozenset[Block] | None
"""What readers see of a change; None for everything."""


@dataclass
class _Unknown(Exception):
    """What is seen of another tensor must be known first."""

    tensor: c.Tensor
    dims: Dims
    even: bool


@dataclass
class Kernels:
    """Answers `seen(t, dims)` for tensors and parameters of a program.

    The change is arbitrary along the other dimensions, or constant along them (`even`): an average over tokens leaves
    such a change as it is, whatever its weights are.
    """

    program: c.Program
    sources: Sources
    ranges: Ranges
    _known: dict[tuple[c.Tensor, Dims, bool], Seen] = field(default_factory=dict)
    _depth: int = 0

    def __post_init__(self) -> None:
        # from the end, so that most of what is asked for is known
        for k in reversed(self.program.constraints):
            for d, n in enumerate(k.out.shape):
                if n > 1:
                    self.seen(k.out, (d,))

    def left(self, t: c.Tensor, dims: Dims, *, even: bool = False) -> int:
        """How many independent directions along `dims` no reader sees, for almost all parameters."""
        seen = self.seen(t, dims, even=even)
        return 0 if seen is None else _size(t, dims) - sum(block.rows for block in seen)

    def seen(self, t: c.Tensor, dims: Dims, *, even: bool = False) -> Seen:
        """What all readers of a tensor see of a change along some of its dimensions."""
        stack = [(t, dims, even)]
        while stack:
            if stack[-1] not in self._known:
                self._depth = 0
                try:
                    self._known[stack[-1]] = self._seen(*stack[-1])
                except _Unknown as unknown:  # a stack of our own: programs are deeper than Python's
                    stack.append((unknown.tensor, unknown.dims, unknown.even))
                    continue
            stack.pop()
        return self._known[t, dims, even]

    def _seen(self, t: c.Tensor, dims: Dims, even: bool) -> Seen:
        if t in self.sources.outputs:
            return None
        found: frozenset[Block] = frozenset()
        for k in self.sources.readers.get(t, []):
            part = self._read(k, t, dims, even)
            if part is None:
                return None
            found |= part
            if sum(block.rows for block in found) >= _size(t, dims):
                return None
        return found

    def _behind(self, even: bool, t: c.Tensor, dims: Dims, *steps: Step) -> Seen:
        """What is seen of the change behind some steps that lead to `t`."""
        if (t, dims, even) not in self._known:
            if self._depth > DEEPEST:
                raise _Unknown(t, dims, even)
            self._depth += 1
            self._known[t, dims, even] = self._seen(t, dims, even)
            self._depth -= 1
        seen = self._known[t, dims, even]
        if seen is None:
            # all of what is left of it
            seen = frozenset([Block((), "all", _size(t, dims))])
        for step in reversed(steps):
            seen = frozenset(block.behind(step) for block in seen)
        return seen

    # -- readers -----------------------------------------------------------------------------------------------
    def _read(self, k: c.Constraint, t: c.Tensor, dims: Dims, even: bool) -> Seen:
        """What is seen through one constraint."""
        match k:
            case c.Normalize(kind="layer", others=()) if set(k.dims) == set(dims) or (even and set(dims) < set(k.dims)):
                # what is constant along the rest of its dimensions has the same mean over all of them
                return frozenset([Block((), "centred", _size(t, dims) - 1)])
            case c.Softmax() if dims == (k.dim,):
                return frozenset([Block((), "centred", _size(t, dims) - 1)])
            case c.Add() | c.Expand() if k.inputs[0] is not k.inputs[-1] or isinstance(k, c.Expand):
                same = all(t.shape[d] == k.out.shape[d] for d in dims)
                return self._behind(even, k.out, dims) if same else None
            case c.Mul():
                return self._multiplied(k, t, dims, even)
            case c.Permute():
                return self._behind(even, k.out, tuple(k.dims.index(d) for d in dims))
            case c.Slice():
                if k.dim not in dims:
                    return self._behind(even, k.out, dims)
                return self._behind(even, k.out, dims, View(narrow=(dims.index(k.dim), k.start, k.stop)))
            case c.Concat() if k.dim not in dims and sum(x is t for x in k.xs) == 1:
                return self._behind(False, k.out, dims)
            case c.Reshape():
                return self._reshaped(k, dims, even)
            case c.Reduce() if k.mode != "max":
                kept = tuple(d for d in dims if d not in k.dims)
                if kept == dims:
                    return self._behind(even, k.out, dims)
                # a sum, or a multiple of it, is all that is seen of its terms
                return self._behind(even, k.out, kept, Total(tuple(i for i, d in enumerate(dims) if d in k.dims)))
            case c.Spatial(mode="linear") if not set(k.dims) & set(dims):
                return self._behind(even and k.keeps_constants, k.out, dims)
            case c.Gather() if 0 not in dims:
                lead = k.out.ndim - (k.table.ndim - 1)
                return self._behind(even, k.out, tuple(d - 1 + lead for d in dims))
            case c.Contract() if k.x is not k.y:
                return self._contracted(k, t, dims, even)
        return None

    def _multiplied(self, k: c.Mul, t: c.Tensor, dims: Dims, even: bool) -> Seen:
        if k.x is k.y or (t is k.y and k.power != 1) or any(t.shape[d] != k.out.shape[d] for d in dims):
            return None
        other = k.y if t is k.x else k.x
        even = even and all(other.shape[d] == 1 for d in range(other.ndim) if d not in dims)
        across = [d for d in dims if other.shape[d] > 1]
        if not across:
            zero = other.fill == 0.0 if other.role == "const" else False
            return None if zero else self._behind(even, k.out, dims)
        gain = gain_of(self.sources.makers, other)
        if gain is None or len(across) != 1 or self.sources.is_static(t):
            return None  # a product of two parameters: changes of both at once would not add up
        return self._behind(even, k.out, dims, Scale(gain, k.power if t is k.x else 1, dims.index(across[0])))

    def _reshaped(self, k: c.Reshape, dims: Dims, even: bool) -> Seen:
        out: list[int] = []
        for left, right in grouping(k.x.shape, k.out.shape):
            inside = {d for d in left if k.x.shape[d] > 1}
            if inside and inside <= set(dims):
                out += [d for d in right if k.out.shape[d] > 1]
            elif inside & set(dims):
                return None
        order = tuple(sorted(range(len(dims)), key=lambda i: dims[i]))
        shape = tuple(k.out.shape[d] for d in out)
        return self._behind(even, k.out, tuple(out), View(order=order, shape=shape))

    def _contracted(self, k: c.Contract, t: c.Tensor, dims: Dims, even: bool) -> Seen:
        mine, other, theirs = (k.x_labels, k.y, k.y_labels) if t is k.x else (k.y_labels, k.x, k.x_labels)
        before = tuple(mine[d] for d in dims)
        if set(before) & k.window:
            return None
        if even and self.sources.averages(k) and t is self.sources.operands(k)[1] and set(before) <= set(k.out_labels):
            return self._behind(even, k.out, tuple(k.out_labels.index(a) for a in before))
        even = even and self.sources.is_static(other) and not k.window
        if not set(before) & set(theirs):
            if not set(before) <= set(k.out_labels):
                return None
            return self._behind(False, k.out, tuple(k.out_labels.index(a) for a in before))
        if not self.sources.is_static(other):
            return self._against(k, t, dims, other, theirs, mine)
        if other.role == "const" or self.sources.is_static(t):
            return None
        other = self.sources.bare(other)
        sizes = dict(zip(theirs, other.shape, strict=True)) | dict(zip(mine, t.shape, strict=True))
        for a in k.window:
            if a in theirs:
                sizes[a] = other.shape[theirs.index(a)]
        # what the weight has on its own, or shares with the rest of the tensor, along which each entry counts
        repeated = {a for a, n in zip(theirs, other.shape, strict=True) if n == 1}
        free = tuple(a for a in theirs if a not in before and a not in repeated)
        kept = tuple(a for a in before if a in k.out_labels or a not in theirs)
        extra = [a for a in free if (a in mine or a in k.window) and sizes[a] > 1]
        if any(a not in k.out_labels for a in kept):
            return None
        after = (*kept, *(a for a in free if sizes[a] > 1))
        step = Map(other, before, theirs, after)
        if extra or any(a not in k.out_labels for a in after):
            return frozenset([Block((step,), "all", prod(sizes[a] for a in after))])
        return self._behind(even, k.out, tuple(k.out_labels.index(a) for a in after), step)

    def _against(
        self,
        k: c.Contract,
        t: c.Tensor,
        dims: Dims,
        other: c.Tensor,
        theirs: tuple[str, ...],
        mine: tuple[str, ...],
    ) -> Seen:
        """Keys are seen along the vectors that queries may be, where these are few and keys may be anything."""
        before = tuple(mine[d] for d in dims)
        summed = [a for a in mine if a in theirs and a not in k.out_labels]
        if k.window or not set(summed) <= set(before) <= set(theirs) or self.sources.is_static(t):
            return None
        span = self.ranges.span(other, tuple(theirs.index(a) for a in before))
        if span is None or not (self.ranges.span(t, dims) is None or self._fills(t, mine, other, theirs, summed)):
            return None  # if both were narrow, changes of both at once would meet
        after = tuple(a for a in before if a in k.out_labels)
        vectors = sum(g.rows for g in span if not g.fixed) + any(g.fixed for g in span)
        rows = vectors * prod(t.shape[d] for d in dims if mine[d] in after)
        return frozenset([Block((Against(span, before, after),), "all", rows)])

    def _fills(
        self, t: c.Tensor, mine: tuple[str, ...], other: c.Tensor, theirs: tuple[str, ...], summed: list[str]
    ) -> bool:
        """Whether keys of each head may be anything, though those of all heads together may not, and queries not."""
        keys = self.ranges.span(t, tuple(mine.index(a) for a in summed))
        queries = self.ranges.span(other, tuple(theirs.index(a) for a in summed))
        return keys is None and queries is not None


def _size(t: c.Tensor, dims: Dims) -> int:
    return prod(t.shape[d] for d in dims)
