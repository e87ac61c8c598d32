"""Rewriting a program before it is solved: reshapes of a linear map's output move onto its weight.

A projection whose output is divided into heads becomes one whose weight has a dimension of heads. Nothing is
approximated: every rewriting is an identity between tensors.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from torchgauge.spaces import constraints as c
from torchgauge.spaces.blocks import in_blocks
from torchgauge.spaces.cuts import Aim
from torchgauge.spaces.directions import grouping
from torchgauge.spaces.unmerge import needed, refined, unmerged


def distribute(program: c.Program, aim: Aim = "frames") -> c.Program:
    """An equal program in which reshapes stand on parameters wherever they can, and nothing is packed."""
    # slices hide reshapes, and reshapes hide slices of heads
    return in_blocks(_Distributor(in_blocks(_sliced_last(unmerged(program)), aim)).run(), aim)


def _sliced_last(program: c.Program) -> c.Program:
    """An equal program in which a reshaped slice of a tensor that is reshaped alike as a whole is a slice of that."""
    makers = {k.out: k for k in program.constraints}
    whole: dict[c.Tensor, list[c.Reshape]] = {}
    for k in program.constraints:
        if isinstance(k, c.Reshape):
            whole.setdefault(k.x, []).append(k)
    order: dict[c.Constraint, None] = {}
    for k in program.constraints:
        cut = makers.get(k.x) if isinstance(k, c.Reshape) else None
        if isinstance(cut, c.Slice):
            for r in whole.get(cut.x, ()):
                dim = _sliced_dim(cut, k.out.shape, r.out.shape)
                if dim is not None:
                    order[r] = None
                    k = c.Slice(k.out, r.out, dim, cut.start, cut.stop)
                    break
        order[k] = None
    return replace(program, constraints=needed(program, list(order)))


def _sliced_dim(cut: c.Slice, part: tuple[int, ...], whole: tuple[int, ...]) -> int | None:
    """The dimension of a reshape of the whole that is the one which is cut, if the part is reshaped alike."""
    for d, n in enumerate(whole):
        same = n == cut.x.shape[cut.dim] and prod(whole[:d]) == prod(cut.x.shape[: cut.dim])
        if same and part == (*whole[:d], cut.stop - cut.start, *whole[d + 1 :]):
            return d
    return None


class _Distributor:
    def __init__(self, program: c.Program) -> None:
        self.program = program
        self.readers: dict[c.Tensor, list[c.Constraint]] = {}
        for k in program.constraints:
            for t in dict.fromkeys(k.inputs):
                self.readers.setdefault(t, []).append(k)
        self.makers = {k.out: k for k in program.constraints}
        self.outputs = set(program.outputs)
        self.order: list[c.Constraint] = []

    def run(self) -> c.Program:
        for k in self.program.constraints:
            self._emit(k)
        return replace(self.program, constraints=needed(self.program, self.order))

    def _emit(self, k: c.Constraint) -> None:
        if isinstance(k, c.Reshape) and k.x.role == "data":
            if (shape := refined(k.x.shape, k.out.shape)) is not None:
                # into the factors of both, of which the first may move, then together
                between = c.Reshape(self._new(k.out, shape), k.x)
                self.readers[k.x] = [between if r is k else r for r in self.readers[k.x]]
                self.readers[between.out] = [k := replace(k, x=between.out)]
                self._emit(between)
            mark = len(self.order)
            done = self._pushed(k)
            if done is not None and done is not k.x:
                self._rename(done, k.out)
                return
            del self.order[mark:]
        self._add(k)

    def _add(self, k: c.Constraint) -> c.Tensor:
        self.order.append(k)
        self.makers[k.out] = k
        return k.out

    def _rename(self, made: c.Tensor, wanted: c.Tensor) -> None:
        """Let the last constraint define the tensor that the readers know."""
        last = self.order.pop()
        assert last.out is made
        self._add(replace(last, out=wanted))

    def _sole(self, t: c.Tensor) -> bool:
        """Read by views of one kind alone, so that nothing needs the unviewed tensor."""
        readers = self.readers.get(t, [])
        if t in self.outputs or not readers:
            return t not in self.outputs
        return len(readers) == 1 or all(isinstance(k, c.Slice) for k in readers)

    def _new(self, like: c.Tensor, shape: tuple[int, ...]) -> c.Tensor:
        return c.Tensor(shape, like.role if like.role != "param" else "data", like.name, like.source)

    def _pushed(self, k: c.Reshape) -> c.Tensor | None:
        splits = _splits(k.x.shape, k.out.shape)
        if not splits:
            return None
        out: c.Tensor | None = k.x
        for dim, sizes in sorted(splits.items(), reverse=True):
            out = self._unflatten(out, dim, sizes) if out is not None else None
        if out is None or out.shape == k.out.shape:
            return out
        return self._add(c.Reshape(self._new(k.out, k.out.shape), out))

    # -- splits ------------------------------------------------------------------------------------------------
    def _unflatten(self, t: c.Tensor, dim: int, sizes: tuple[int, ...]) -> c.Tensor | None:
        if t.shape[dim] == 1:
            shape = (*t.shape[:dim], *(1 for _ in sizes), *t.shape[dim + 1 :])
            return self._add(c.Reshape(self._new(t, shape), t))
        shape = (*t.shape[:dim], *sizes, *t.shape[dim + 1 :])
        if self._static(t):
            made = self.makers.get(t)
            # a reshape of a reshape is one
            return self._add(c.Reshape(self._new(t, shape), made.x if isinstance(made, c.Reshape) else t))
        if t.role != "data" or not self._sole(t):
            return None
        k = self.makers[t]
        if isinstance(k, c.Contract):
            found = self._free_side(k, dim)
            if found is None:
                return None
            y, at = found
            part = self._unflatten(y, at, sizes)
            if part is None:
                return None
            return self._add(_relabelled(k, y, part, dim, at, len(sizes), self._new(t, shape)))
        if isinstance(k, c.Add) or (isinstance(k, c.Mul) and self._static(k.y)):
            x, y = self._unflatten(k.x, dim, sizes), self._unflatten(k.y, dim, sizes)
            return None if x is None or y is None else self._add(replace(k, out=self._new(t, shape), x=x, y=y))
        if isinstance(k, c.Permute):
            at, n = k.dims[dim], len(sizes)
            x = self._unflatten(k.x, at, sizes)
            moved = [range(at, at + n) if d == at else [d if d < at else d + n - 1] for d in k.dims]
            dims = tuple(d for part in moved for d in part)
            return None if x is None else self._add(c.Permute(self._new(t, shape), x, dims))
        if isinstance(k, c.Reshape):
            at = _same_dim(k.out.shape, k.x.shape, dim)
            x = None if at is None else self._unflatten(k.x, at, sizes)
            return None if x is None else self._add(c.Reshape(self._new(t, shape), x))
        return None

    def _static(self, t: c.Tensor) -> bool:
        while t.role == "data":
            made = self.makers.get(t)
            if not isinstance(made, (c.Reshape, c.Permute, c.Slice)):
                return False
            t = made.x
        return t.role == "param"

    def _free_side(self, k: c.Contract, dim: int) -> tuple[c.Tensor, int] | None:
        """The weight and its dimension that make dimension `dim` of the output, if the output has it from there."""
        label = k.out_labels[dim]
        if label in k.window:
            return None
        for t, mine, other in ((k.y, k.y_labels, k.x_labels), (k.x, k.x_labels, k.y_labels)):
            if label in mine and label not in other and self._static(t):
                return t, mine.index(label)
        return None


def _relabelled(k: c.Contract, old: c.Tensor, new: c.Tensor, dim: int, at: int, n: int, out: c.Tensor) -> c.Contract:
    label = k.out_labels[dim]
    fresh = tuple(f"{label}.{i}" for i in range(n))
    out_labels = (*k.out_labels[:dim], *fresh, *k.out_labels[dim + 1 :])
    mine = k.y_labels if old is k.y else k.x_labels
    labels = (*mine[:at], *fresh, *mine[at + 1 :])
    if old is k.y:
        return replace(k, out=out, y=new, y_labels=labels, out_labels=out_labels)
    return replace(k, out=out, x=new, x_labels=labels, out_labels=out_labels)


def _splits(shape: tuple[int, ...], other: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Dimensions of `shape` that a reshape divides into several, each on its own."""
    out = {}
    for left, right in grouping(shape, other):
        big = [i for i in left if shape[i] > 1]
        sizes = tuple(other[i] for i in right if other[i] > 1)
        if len(big) == 1 and len(sizes) > 1:
            out[big[0]] = sizes
    return out


def _same_dim(shape: tuple[int, ...], other: tuple[int, ...], dim: int) -> int | None:
    """The dimension of a reshaped tensor that is dimension `dim` of the result, if it is one whole dimension."""
    for left, right in grouping(shape, other):
        if dim in left:
            a = [i for i in left if shape[i] > 1]
            b = [i for i in right if other[i] > 1]
            return b[0] if a == [dim] and len(b) == 1 else None
    return None
