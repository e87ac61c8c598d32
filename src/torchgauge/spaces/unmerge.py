"""Dimensions that are joined and divided again, such as batch and heads around a product of matrices, stay apart.

Between the two reshapes every operation maps each index of the joined dimension by itself, so that it may as well have
two. Nothing is approximated: every rewriting is an identity between tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Container
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from torchgauge.spaces import constraints as c
from torchgauge.spaces.builder import Builder
from torchgauge.spaces.directions import grouping, picked


@dataclass(frozen=True, eq=False)
class Apart:
    """A tensor with one dimension written as several, and the reshapes that joined them, there and in what it meets."""

    tensor: c.Tensor
    dim: int
    sizes: tuple[int, ...]
    joined: frozenset[c.Constraint]

    def moved(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        """Dimensions of the joined tensor as dimensions of this one."""
        return tuple(d if d < self.dim else d + len(self.sizes) - 1 for d in dims)

    def shape(self, t: c.Tensor, dim: int) -> tuple[int, ...]:
        """Of another tensor, with the same dimension written apart."""
        own = self.sizes if t.shape[dim] > 1 else (1,) * len(self.sizes)
        return (*t.shape[:dim], *own, *t.shape[dim + 1 :])


def unmerged(program: c.Program) -> c.Program:
    """An equal program, the same object if nothing is divided again."""
    tried = _Unmerger(program, None)
    tried.run()
    return _Unmerger(program, tried.divided).run() if tried.divided else program


@dataclass
class _Unmerger:
    program: c.Program
    wanted: Container[c.Constraint] | None
    """Which joints to undo; None for all, to see which are divided again."""
    divided: set[c.Constraint] = field(default_factory=set)
    apart: dict[c.Tensor, Apart] = field(default_factory=dict)
    builder: Builder = field(default_factory=Builder)

    @cached_property
    def makers(self) -> dict[c.Tensor, c.Constraint]:
        return {k.out: k for k in self.program.constraints}

    def run(self) -> c.Program:
        order = self.builder.program.constraints
        for k in self.program.constraints:
            self.builder.source = k.out.source
            found = self._joined(k) if isinstance(k, c.Reshape) else self._carried(k)
            if found is None:
                order.append(k)
            elif found.tensor is not k.out:
                self.apart[k.out] = found
                order.append(c.Reshape(k.out, found.tensor))
        return replace(self.program, constraints=needed(self.program, order))

    def _emit(self, k: c.Constraint) -> c.Tensor:
        self.builder.program.constraints.append(k)
        return k.out

    def _new(self, k: c.Constraint, shape: tuple[int, ...]) -> c.Tensor:
        return c.Tensor(shape, k.out.role, k.out.name, k.out.source)

    # -- reshapes ----------------------------------------------------------------------------------------------
    def _joined(self, k: c.Reshape) -> Apart | None:
        """The result of a reshape, with a dimension apart that it joins, or that was apart before."""
        before = self.apart.get(k.x)
        if before is not None:
            return self._regrouped(k, before)
        if k.x.role != "data" or (self.wanted is not None and k not in self.wanted):
            return None
        # into the factors of both, where a part of a dimension is joined to another one
        before_out = refined(k.x.shape, k.out.shape) or k.x.shape
        for left, right in grouping(before_out, k.out.shape):
            sizes = tuple(before_out[d] for d in left if before_out[d] > 1)
            big = [d for d in right if k.out.shape[d] > 1]
            if len(sizes) > 1 and len(big) == 1:
                shape = (*k.out.shape[: big[0]], *sizes, *k.out.shape[big[0] + 1 :])
                return Apart(self._emit(c.Reshape(self._new(k, shape), k.x)), big[0], sizes, frozenset([k]))
        return None

    def _regrouped(self, k: c.Reshape, x: Apart) -> Apart:
        """A reshape of a tensor that is apart: apart still, if the dimension is left as it is."""
        for left, right in grouping(k.x.shape, k.out.shape):
            big = [d for d in right if k.out.shape[d] > 1]
            if x.dim in left and len(big) == 1 and [d for d in left if k.x.shape[d] > 1] == [x.dim]:
                shape = (*k.out.shape[: big[0]], *x.sizes, *k.out.shape[big[0] + 1 :])
                return replace(x, tensor=self._emit(c.Reshape(self._new(k, shape), x.tensor)), dim=big[0])
        self.divided |= x.joined
        return replace(x, tensor=self._emit(c.Reshape(k.out, x.tensor)))

    # -- everything else ---------------------------------------------------------------------------------------
    def _carried(self, k: c.Constraint) -> Apart | None:
        """The result of a constraint that maps each index of a joined dimension by itself, written apart."""
        found = [self.apart[t] for t in k.inputs if t in self.apart]
        if not found:
            return None
        x = replace(found[0], joined=frozenset().union(*(f.joined for f in found)))
        match k:
            case c.Permute():
                dims = [range(x.dim, x.dim + len(x.sizes)) if d == x.dim else x.moved((d,)) for d in k.dims]
                at = k.dims.index(x.dim)
                shape = (*k.out.shape[:at], *x.sizes, *k.out.shape[at + 1 :])
                new = c.Permute(self._new(k, shape), x.tensor, tuple(d for part in dims for d in part))
                return replace(x, tensor=self._emit(new), dim=at)
            case c.Add() | c.Mul():
                if k.x.ndim == k.y.ndim == k.out.ndim:
                    return self._made(k, x, x=self._beside(k.x, x), y=self._beside(k.y, x))
            case c.Pointwise():
                return self._made(k, x, x=x.tensor)
            case c.Softmax() if k.dim != x.dim:
                return self._made(k, x, x=x.tensor, dim=x.moved((k.dim,))[0])
            case c.Contract():
                return self._contracted(k, x)
        return None

    def _made(self, k: c.Constraint, apart: Apart, **changed: object) -> Apart:
        out = self._new(k, apart.shape(k.out, apart.dim))
        return replace(apart, tensor=self._emit(replace(k, out=out, **changed)))  # type: ignore[arg-type]

    def _beside(self, t: c.Tensor, x: Apart, dim: int | None = None) -> c.Tensor:
        """Another operand, apart like `x` along the same dimension, or the one given."""
        dim = x.dim if dim is None else dim
        own = self.apart.get(t)
        if own is not None and (own.dim, own.sizes) == (dim, x.sizes):
            return own.tensor
        return self.builder.reshape(t, x.shape(t, dim))

    def _contracted(self, k: c.Contract, x: Apart) -> Apart | None:
        """Where the joined dimension is not summed, and is none of a window."""
        first = k.x if k.x in self.apart else k.y
        label = (k.x_labels if first is k.x else k.y_labels)[x.dim]
        if label not in k.out_labels or label in k.window or k.x is k.y:
            return None
        if any(picked(self.makers, t) for t in k.inputs):  # experts, each with a frame of its own
            return None
        fresh = tuple(f"{label}/{i}" for i in range(len(x.sizes)))

        def labelled(labels: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(b for a in labels for b in (fresh if a == label else (a,)))

        def operand(t: c.Tensor, labels: tuple[str, ...]) -> c.Tensor:
            return self._beside(t, x, labels.index(label)) if label in labels else t

        dim = k.out_labels.index(label)
        new = replace(
            k,
            out=self._new(k, x.shape(k.out, dim)),
            x=operand(k.x, k.x_labels),
            y=operand(k.y, k.y_labels),
            x_labels=labelled(k.x_labels),
            y_labels=labelled(k.y_labels),
            out_labels=labelled(k.out_labels),
        )
        return replace(x, tensor=self._emit(new), dim=dim)


def needed(program: c.Program, constraints: list[c.Constraint]) -> list[c.Constraint]:
    """Those that the outputs hang on."""
    wanted = set(program.outputs)
    kept: list[c.Constraint] = []
    for k in reversed(constraints):
        if k.out in wanted:
            kept.append(k)
            wanted.update(k.inputs)
    return kept[::-1]


def refined(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape between, where a reshape divides one dimension and joins a part of it to another one."""
    out: list[int] = []
    mixed = False
    for left, right in grouping(shape, other):
        a, b = ([n for n in sizes if n > 1] for sizes in ([shape[i] for i in left], [other[i] for i in right]))
        ends = sorted({prod(sizes[:i]) for sizes in (a, b) for i in range(len(sizes) + 1)})
        if any(n % m for m, n in itertools.pairwise(ends)):
            return None
        mixed |= len(a) > 1 and len(b) > 1
        out += [n // m for m, n in itertools.pairwise(ends)]
    return tuple(out) if mixed else None
