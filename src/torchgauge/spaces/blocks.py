"""Rewriting a program into blocks: concatenated dimensions are cut once, everywhere, before any frame is looked for.

A concatenation [x₁, x₂] and a slice say that an index set is a disjoint union. Here every dimension is cut at all the
places that any of them asks for, every tensor becomes a grid of blocks, and every constraint one constraint per block
(a contraction over a cut dimension is a sum of contractions). Concatenations and slices disappear, and the passes that
follow meet whole index sets only. Dimensions along which a map acts as a whole (convolution windows, pooling, softmax,
rotary pairs, positions of the inputs) are never cut; concatenations along those stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

from torchgauge.spaces import constraints as c
from torchgauge.spaces.builder import Builder
from torchgauge.spaces.cuts import Aim, Cuts, find_cuts
from torchgauge.spaces.directions import grouping
from torchgauge.spaces.pruning import without_unread

Index = tuple[int, ...]


def in_blocks(program: c.Program, aim: Aim = "frames") -> c.Program:
    """An equal program without concatenations and slices along dimensions that may be cut."""
    cuts = find_cuts(program, aim)
    return _Writer(program, cuts).run() if cuts.any else program


class _Writer:
    """Writes the program of the blocks."""

    def __init__(self, program: c.Program, cuts: Cuts) -> None:
        self.old, self.cuts, self.builder = program, cuts, Builder()
        self.blocks: dict[c.Tensor, dict[Index, c.Tensor]] = {}

    def run(self) -> c.Program:
        new, unfolded = self.builder.program, set(self.cuts.unfolded.values())
        cut = {t for t in self.cuts.unfolded if self._is_cut(t)}
        for name, t in self.old.params.items():
            if t not in unfolded or not any(self.cuts.unfolded[u] is t for u in cut):
                self._leaf(t, name, self.old.coordinates[name], new.params, new.coordinates)
        for name, t in self.old.buffers.items():
            self._leaf(t, name, self.old.buffer_coordinates[name], new.buffers, new.buffer_coordinates)
        for k in self.old.constraints:
            self.builder.source = k.out.source
            if k.out in cut:
                t = self.cuts.unfolded[k.out]
                coordinate = self.old.coordinates[t.name]
                whole = (k.out.shape, 0, 0, k.out.shape[0])
                coordinate = replace(coordinate, views=(*coordinate.views, whole))
                self._leaf(k.out, t.name, coordinate, new.params, new.coordinates)
            else:
                self.blocks[k.out] = {index: self._written(k, index) for index in self._grid(k.out)}
        new.outputs = [b for t in self.old.outputs for b in self._all(t).values()]
        named = zip(self.old.outputs, self.old.output_names, strict=True)
        new.output_names = [name for t, name in named for _ in self._all(t)]
        new.opaque = list(self.old.opaque)
        kept = without_unread(new)
        lost = [key for key, t in new.params.items() if key not in kept.params and t in self.builder.zeroed]
        kept.spare = (*self.old.spare, *(new.coordinates[key] for key in lost))
        return kept

    # -- blocks ------------------------------------------------------------------------------------------------
    def _is_cut(self, t: c.Tensor) -> bool:
        return any(len(self.cuts.sizes(t, d)) > 1 for d in range(t.ndim))

    def _grid(self, t: c.Tensor) -> Iterator[Index]:
        return itertools.product(*(range(len(self.cuts.sizes(t, d))) for d in range(t.ndim)))

    def _interval(self, t: c.Tensor, dim: int, i: int) -> tuple[int, int]:
        sizes = self.cuts.sizes(t, dim)
        start = sum(sizes[:i])
        return start, start + sizes[i]

    def _shape(self, t: c.Tensor, index: Index) -> tuple[int, ...]:
        return tuple(self.cuts.sizes(t, d)[i] for d, i in enumerate(index))

    def _leaf(
        self,
        t: c.Tensor,
        name: str,
        coordinate: c.Coordinate,
        tensors: dict[str, c.Tensor],
        coordinates: dict[str, c.Coordinate],
    ) -> None:
        """A parameter or a statistic, cut into parts that are tensors of their own."""
        made: dict[Index, c.Tensor] = {}
        for index in self._grid(t):
            views, shape, shown = list(coordinate.views), t.shape, []
            for d, i in enumerate(index):
                start, stop = self._interval(t, d, i)
                shown.append(":" if stop - start == t.shape[d] else f"{start}:{stop}")
                if stop - start < t.shape[d]:
                    views.append((shape, d, start, stop))
                    shape = (*shape[:d], stop - start, *shape[d + 1 :])
            while shown and shown[-1] == ":":
                shown.pop()
            if not shown:
                # nothing is cut: the very tensor, so that what rules noted of it stays
                made[index] = t
                tensors[name], coordinates[name] = t, coordinate
                continue
            key = f"{name}[{', '.join(shown)}]"
            role = "buffer" if t.role == "buffer" else "param"
            made[index] = tensors[key] = c.Tensor(shape, role, key, t.source)
            coordinates[key] = replace(coordinate, views=tuple(views))
        self.blocks[t] = made

    def _all(self, t: c.Tensor) -> dict[Index, c.Tensor]:
        if t not in self.blocks:
            if not self._is_cut(t):
                self.blocks[t] = {(0,) * t.ndim: t}
            else:
                self.blocks[t] = {
                    i: c.Tensor(self._shape(t, i), t.role, t.name, t.source, t.fill) for i in self._grid(t)
                }
        return self.blocks[t]

    def _block(self, t: c.Tensor, index: Sequence[int]) -> c.Tensor:
        """The block at an index; along dimensions of size one there is only one."""
        return self._all(t)[tuple(0 if n == 1 else i for i, n in zip(index, t.shape, strict=True))]

    # -- constraints -------------------------------------------------------------------------------------------
    def _written(self, k: c.Constraint, at: Index) -> c.Tensor:
        """The block of `k.out` at an index."""
        b, shape = self.builder, self._shape(k.out, at)
        match k:
            case c.Slice():
                return self._sliced(k, at)
            case c.Concat():
                return self._concatenated(k, at)
            case c.Reshape():
                return b.reshape(self._block(k.x, _before(k.x.shape, k.out.shape, at)), shape)
            case c.Permute():
                index = [0] * len(at)
                for i, d in enumerate(k.dims):
                    index[d] = at[i]
                return b.permute(self._block(k.x, index), k.dims)
            case c.Expand():
                index = [i if n == m else 0 for i, n, m in zip(at, k.x.shape, k.out.shape, strict=True)]
                return b.expand(self._block(k.x, index), shape)
            case c.Contract():
                return self._contracted(k, at, shape)
            case c.Add():
                return b.add(self._block(k.x, at), self._block(k.y, at), k.alpha)
            case c.Mul():
                return b.mul(self._block(k.x, at), self._block(k.y, at), k.power)
            case c.Pointwise():
                return b.pointwise(self._block(k.x, at), k.profile)
            case c.Normalize():
                others = [self._block(k.x, i) for i in self._along(k.x, at, k.dims) if i != at]
                others += [self._block(y, i) for y in k.others for i in self._along(y, at, k.dims)]
                return b.normalize(self._block(k.x, at), k.dims, k.kind, k.eps, others)
            case c.Softmax():
                return b.softmax(self._block(k.x, at), k.dim, k.log)
            case c.Reduce():
                return self._reduced(k, at)
            case c.Gather():
                lead = k.out.ndim - (k.table.ndim - 1)
                return b.gather(self._block(k.table, (0, *at[lead:])), shape[:lead])
            case c.Choice():
                return b.choose(self._block(k.x, at), k.dim, shape[k.dim])
            case c.Take():
                return b.take(self._block(k.x, at), self._block(k.choice, at), k.dim)
            case c.Pick():
                lead = k.choice.ndim
                return b.pick(self._block(k.table, (0, *at[lead:])), self._block(k.choice, at[:lead]))
            case c.Spatial():
                return b.spatial(self._block(k.x, at), k.dims, shape, k.mode, k.keeps_constants, k.within)
            case c.Rotate():
                return b.rotate(self._block(k.x, at), k.layout)
            case c.Opaque():
                return b.opaque([self._block(x, (0,) * x.ndim) for x in k.xs], shape, k.reason)
        raise TypeError(f"no blocks for {type(k).__name__}")

    def _along(self, t: c.Tensor, at: Index, dims: Sequence[int]) -> list[Index]:
        """Indices of all blocks that differ from one along the given dimensions alone."""
        return [i for i in self._grid(t) if all(d in dims or i[d] == at[d] for d in range(t.ndim))]

    def _sliced(self, k: c.Slice, at: Index) -> c.Tensor:
        start, stop = self._interval(k.out, k.dim, at[k.dim])
        start, stop = start + k.start, stop + k.start
        for i in range(len(self.cuts.sizes(k.x, k.dim))):
            low, high = self._interval(k.x, k.dim, i)
            if low <= start and stop <= high:
                x = self._block(k.x, (*at[: k.dim], i, *at[k.dim + 1 :]))
                return self.builder.slice(x, k.dim, start - low, stop - low)
        raise AssertionError("a slice lies across a cut")

    def _concatenated(self, k: c.Concat, at: Index) -> c.Tensor:
        start, stop = self._interval(k.out, k.dim, at[k.dim])
        parts, low = [], 0
        for x in k.xs:
            for i in range(len(self.cuts.sizes(x, k.dim))):
                a, b = (low + p for p in self._interval(x, k.dim, i))
                if start <= a and b <= stop:
                    parts.append(self._block(x, (*at[: k.dim], i, *at[k.dim + 1 :])))
                elif a <= start and stop <= b:
                    part = self._block(x, (*at[: k.dim], i, *at[k.dim + 1 :]))
                    parts.append(self.builder.slice(part, k.dim, start - a, stop - a))
            low += x.shape[k.dim]
        assert sum(p.shape[k.dim] for p in parts) == stop - start, "a concatenation lies across a cut"
        return self.builder.concat(parts, k.dim)

    def _contracted(self, k: c.Contract, at: Index, shape: tuple[int, ...]) -> c.Tensor:
        place = dict(zip(k.out_labels, at, strict=True))
        summed: dict[str, int] = {}
        for t, labels in ((k.x, k.x_labels), (k.y, k.y_labels)):
            for d, a in enumerate(labels):
                if a not in place:
                    summed[a] = max(summed.get(a, 1), len(self.cuts.sizes(t, d)))
        total: c.Tensor | None = None
        for choice in itertools.product(*(range(n) for n in summed.values())):
            index = place | dict(zip(summed, choice, strict=True))
            x = self._block(k.x, [index[a] for a in k.x_labels])
            y = self._block(k.y, [index[a] for a in k.y_labels])
            term = self.builder.contract(
                x,
                y,
                k.x_labels,
                k.y_labels,
                k.out_labels,
                window=k.window,
                out_shape=shape,
                shift_safe=k.shift_safe,
                reach=k.reach,
            )
            total = term if total is None else self.builder.add(total, term)
        assert total is not None
        return total

    def _reduced(self, k: c.Reduce, at: Index) -> c.Tensor:
        indices = [i for i in self._grid(k.x) if all(d in k.dims or i[d] == at[d] for d in range(k.x.ndim))]
        if len(indices) == 1:
            return self.builder.reduce(self._block(k.x, indices[0]), k.dims, k.mode, keepdim=True)
        total: c.Tensor | None = None
        for index in indices:
            term = self.builder.reduce(self._block(k.x, index), k.dims, "sum", keepdim=True)
            total = term if total is None else self.builder.add(total, term)
        assert total is not None
        if k.mode == "mean":
            fill = 1 / prod(k.x.shape[d] for d in k.dims)
            total = self.builder.mul(total, self.builder.const((1,) * total.ndim, "1/n", fill))
        return total


def _before(shape: tuple[int, ...], other: tuple[int, ...], at: Index) -> list[int]:
    """The index of a block before a reshape: only outermost factors are cut."""
    index = [0] * len(shape)
    for left, right in grouping(shape, other):
        a = [d for d in left if shape[d] > 1]
        b = [d for d in right if other[d] > 1]
        if a and b:
            index[a[0]] = at[b[0]]
    return index
