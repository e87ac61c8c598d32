"""Tables that take up functions of their row numbers: what computes such a function is free.

Where rows of a table are looked up and a function of the same index is added, position by position, the sum is a table
again: T[i] + g(i) = T*[i]. If T is read nowhere else, T* is as good a coordinate as T, and the program reads T* in the
place of both. What is read for g alone may change as it likes, while T follows (theory section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from torchgauge.spaces import constraints as c


@dataclass(frozen=True)
class _Follower:
    """A tensor that is a function of an index, position by position, along the first `ndim` dimensions."""

    index: object
    ndim: int
    cone: frozenset[str]
    """The parameters that it is made of."""


def looked_up(program: c.Program) -> tuple[c.Program, c.Recipes]:
    """An equal program in which tables have taken up functions of their rows, not pruned; the same if there are none.

    The recipes are those of the new coordinates, and their coordinates may be added to.
    """
    recipes = c.Recipes({}, {}, dict(program.coordinates), program.numbers)
    if sum(isinstance(k, c.Gather) for k in program.constraints) < 2 or program.numbers is None:
        return program, recipes
    found = dict(_Tables(program, recipes).taken_up())
    if not found:
        return program, recipes
    written = [c.Reshape(k.out, found[k]) if k in found else k for k in program.constraints]
    return replace(program, constraints=written, coordinates=dict(recipes.coordinates)), recipes


class _Tables:
    def __init__(self, program: c.Program, recipes: c.Recipes) -> None:
        self.program, self.recipes = program, recipes
        self.still: dict[c.Tensor, frozenset[str]] = {t: frozenset([n]) for n, t in program.params.items()}
        """Tensors that are the same at every input, with the parameters that make them."""
        self.followers: dict[c.Tensor, _Follower] = {}
        self.makers = {k.out: k for k in program.constraints}
        self.uses: dict[c.Tensor, int] = {}
        for t in [*program.outputs, *(t for k in program.constraints for t in k.inputs)]:
            self.uses[t] = self.uses.get(t, 0) + 1

    def taken_up(self) -> Iterator[tuple[c.Constraint, c.Tensor]]:
        """Sums of a table and a function of its index, and the part that stays."""
        for k in self.program.constraints:
            self._visit(k)
            if isinstance(k, c.Add) and k.x in self.followers and k.y in self.followers:
                shown = next((t for t in (k.x, k.y) if self._takes(k, t)), None)
                if shown is not None:
                    yield k, shown

    def _visit(self, k: c.Constraint) -> None:
        if isinstance(k, c.Gather) and k.index is not None and k.table.role == "param":
            self.followers[k.out] = _Follower(k.index, k.out.ndim - k.table.ndim + 1, self.still[k.table])
            return
        moving = [f for t in k.inputs if (f := self.followers.get(t)) is not None]
        cone = frozenset().union(*(f.cone for f in moving), *(self.still.get(t, frozenset()) for t in k.inputs))
        if not all(t in self.followers or t in self.still or t.role == "const" for t in k.inputs):
            return
        if not moving:
            if not isinstance(k, (c.Gather, c.Pick, c.Take, c.Choice)):  # these read more than they name
                self.still[k.out] = cone
        elif len({(f.index, f.ndim) for f in moving}) == 1 and self._keeps(k, moving[0].ndim):
            self.followers[k.out] = _Follower(moving[0].index, moving[0].ndim, cone)

    def _keeps(self, k: c.Constraint, n: int) -> bool:
        """Whether every position of the result follows from the same position of what moves, in one way."""
        match k:
            case c.Reshape() | c.Expand():
                return k.out.shape[:n] == k.x.shape[:n]
            case c.Permute():
                return k.dims[:n] == tuple(range(n))
            case c.Slice() | c.Softmax():
                return k.dim >= n
            case c.Normalize() | c.Reduce():
                return min(k.dims) >= n and len(k.inputs) == 1
            case c.Pointwise():
                return True
            case c.Add() | c.Mul():
                return all(self._broadcast(t, k.out, n) for t in (k.x, k.y))
            case c.Contract(window=w) if not w:
                return all(self._along(t, labels, k.out_labels[:n]) for t, labels in _operands(k))
        return False

    def _broadcast(self, t: c.Tensor, out: c.Tensor, n: int) -> bool:
        if t in self.followers:
            return t.ndim == out.ndim and t.shape[:n] == out.shape[:n]
        return t.ndim <= out.ndim - n or (t.ndim == out.ndim and all(m == 1 for m in t.shape[:n]))

    def _along(self, t: c.Tensor, labels: Sequence[str], positions: Sequence[str]) -> bool:
        if t in self.followers:
            return tuple(labels[: len(positions)]) == tuple(positions)
        return not set(labels) & set(positions)

    # -- what takes up ------------------------------------------------------------------------------------------
    def _takes(self, k: c.Add, shown: c.Tensor) -> bool:
        """Whether a table that is shown by one part of a sum takes up the other, and does so."""
        other = k.y if shown is k.x else k.x
        mine, theirs, numbers = self.followers[shown], self.followers[other], self.program.numbers
        table = self._table(shown)
        if table is None or numbers is None or mine.index != theirs.index or table.name in theirs.cone:
            return False
        if not shown.shape == other.shape == k.out.shape or not self._computed(other):
            return False
        at = self.recipes.coordinates[table.name]
        if at.kind != "plain" or not all(numbers.follows(t, mine.index) for t in (shown, other)):
            return False
        ones = torch.ones(1, dtype=torch.float64).expand(table.shape)
        if not bool(numbers.rows(shown, mine.index, 1, lambda name: ones).all()):
            return False
        alpha = k.alpha if other is k.y else 1.0 / k.alpha
        rest = c.Rest((), other, self.recipes, rows=c.Rows(shown, mine.index, alpha), cone=theirs.cone)
        self.recipes.coordinates[table.name] = replace(at, kind="computed", rests=(rest,))
        return True

    def _table(self, t: c.Tensor) -> c.Tensor | None:
        """The table of which a tensor shows the rows, times numbers, if it is read here alone."""
        while self.uses[t] == 1:
            k = self.makers.get(t)
            if isinstance(k, c.Gather):
                return k.table if self.uses[k.table] == 1 else None
            if isinstance(k, c.Mul) and k.y.role == "const" and set(k.y.shape) <= {1}:
                t = k.x
            elif isinstance(k, c.Mul) and k.power == 1 and k.x.role == "const" and set(k.x.shape) <= {1}:
                t = k.y
            elif isinstance(k, c.Reshape):
                t = k.x
            else:
                return None
        return None

    def _computed(self, t: c.Tensor) -> bool:
        """Whether more than a table is looked up."""
        while isinstance(k := self.makers.get(t), (c.Reshape, c.Permute, c.Slice, c.Expand)):
            t = k.x
        return not isinstance(k, c.Gather)


def _operands(k: c.Contract) -> tuple[tuple[c.Tensor, tuple[str, ...]], tuple[c.Tensor, tuple[str, ...]]]:
    return (k.x, k.x_labels), (k.y, k.y_labels)
