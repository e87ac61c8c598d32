"""Patterns along parts of dimensions: neighbours that a reader takes together, as behind a pixel shuffle.

The backward pass of directions.py with partitions in place of dimensions: the readers of a tensor ignore any change
that is the same within every part of the indices of each dimension (theory section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from math import prod

import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import Gains, Pattern, gain_of, grouping

Labels = tuple[int, ...] | None
"""The part of every index of a dimension; None where all are one."""
Parts = Mapping[int, Labels]
"""By dimension; absent where every index is a part of its own."""
LIMIT = 1 << 16
"""Entries of mixed dimensions above which all of them are taken for one part."""


@dataclass(frozen=True)
class Ignored:
    """Changes that are the same within parts, times a product of gains along one dimension that is a single part."""

    parts: Parts
    gains: Gains = ()
    along: int | None = None

    @property
    def pattern(self) -> Pattern:
        """The dimensions that are single parts."""
        return Pattern(frozenset(d for d, labels in self.parts.items() if labels is None), self.gains)

    @property
    def whole(self) -> bool:
        """Whether a fixed vector, with gains along one dimension at most, runs through it."""
        dims = self.pattern.dims
        return bool(dims) and (self.along is None or dims == {self.along})

    @property
    def divided(self) -> Parts:
        """The other parts."""
        return {d: labels for d, labels in self.parts.items() if labels is not None}


class Patches:
    """`of(t)`: which changes all readers of a tensor ignore; None where there are none."""

    def __init__(self, program: c.Program) -> None:
        self.makers = {k.out: k for k in program.constraints}
        self.seen: dict[c.Tensor, list[Ignored | None]] = {out: [None] for out in program.outputs}
        for k in reversed(program.constraints):
            behind = self.of(k.out)
            for t in dict.fromkeys(k.inputs):
                once = sum(x is t for x in k.inputs) == 1
                self.seen.setdefault(t, []).append(self.back(k, behind, t) if once else None)

    def of(self, t: c.Tensor) -> Ignored | None:
        readers = self.seen.get(t, [])
        found = [one for one in readers if one is not None]
        if not found or len(found) < len(readers) or len({(one.gains, one.along) for one in found}) > 1:
            return None
        met: dict[int, Labels] = {}
        for one in found:
            for d, labels in one.parts.items():
                met[d] = _joined(met[d], labels) if d in met else labels
        return replace(found[0], parts=met)

    @singledispatchmethod
    def back(self, k: c.Constraint, behind: Ignored | None, t: c.Tensor) -> Ignored | None:
        """What `k` ignores of a change of `t`, given what is ignored of its result."""
        return None

    @back.register
    def _(self, k: c.Normalize, behind: Ignored | None, t: c.Tensor) -> Ignored | None:
        return Ignored(dict.fromkeys(k.dims)) if k.kind == "layer" and not k.others else None

    @back.register
    def _(self, k: c.Softmax, behind: Ignored | None, t: c.Tensor) -> Ignored | None:
        return Ignored({k.dim: None})

    @back.register
    def _(self, k: c.Reshape, behind: Ignored | None, t: c.Tensor) -> Ignored | None:
        if behind is None:
            return None
        found: dict[int, Labels] = {}
        along = None
        for left, right in grouping(t.shape, k.out.shape):
            left, right = [d for d in left if t.shape[d] > 1], [d for d in right if k.out.shape[d] > 1]
            held = [d for d in right if d in behind.parts]
            if behind.along in right:
                along = left[0] if len(left) == len(right) == 1 else None
            if len(held) == len(right) and all(behind.parts[d] is None for d in held):
                found |= dict.fromkeys(left)
            elif held:
                found |= _regrouped({d: behind.parts[d] for d in held}, k.out.shape, right, t.shape, left)
        lost = behind.along is not None and along is None
        return None if lost else Ignored(found, behind.gains, along)

    @back.register
    def _(self, k: c.Permute, behind: Ignored | None, t: c.Tensor) -> Ignored | None:
        return None if behind is None else _renamed(behind, dict(enumerate(k.dims)))

    @back.register
    def _(self, k: c.Slice, behind: Ignored | None, t: c.Tensor) -> Ignored | None:
        if behind is None or k.dim not in behind.parts:
            return behind
        inside, n = behind.parts[k.dim] or (0,) * (k.stop - k.start), t.shape[k.dim]
        beside = [-1 - i for i in range(n)]  # what is not shown is ignored as it is
        return _with(behind, k.dim, (*beside[: k.start], *inside, *beside[k.stop :]))

    @back.register
    def _(self, k: c.Concat, behind: Ignored | None, t: c.Tensor) -> Ignored | None:
        if behind is None or k.dim not in behind.parts:
            return behind
        labels, start = behind.parts[k.dim], 0
        for x in k.xs:
            if x is t:
                break
            start += x.shape[k.dim]
        stop = start + t.shape[k.dim]
        if labels is None or set(labels[start:stop]) & {*labels[:start], *labels[stop:]}:
            return None
        return _with(behind, k.dim, labels[start:stop])

    @back.register
    def _(self, k: c.Expand, behind: Ignored | None, t: c.Tensor) -> Ignored | None:
        return _narrowed(behind, t)

    @back.register
    def _(self, k: c.Add, behind: Ignored | None, t: c.Tensor) -> Ignored | None:
        return _narrowed(behind, t)

    @back.register
    def _(self, k: c.Mul, behind: Ignored | None, t: c.Tensor) -> Ignored | None:
        other = k.y if t is k.x else k.x
        if behind is None or (t is k.y and k.power != 1):
            return None
        across = [d for d in behind.parts if other.shape[d] > 1]
        if across:
            gain, (d, *more) = gain_of(self.makers, other), across
            if gain is None or more or behind.parts[d] is not None or behind.along not in (None, d):
                return None
            behind = replace(behind, gains=(*behind.gains, (gain, -k.power)), along=d)
        return _narrowed(behind, t)

    @back.register
    def _(self, k: c.Contract, behind: Ignored | None, t: c.Tensor) -> Ignored | None:
        mine, other = (k.x_labels, k.y_labels) if t is k.x else (k.y_labels, k.x_labels)
        names = {d: k.out_labels[d] for d in (behind.parts if behind is not None else {})}
        if behind is None or any(a in k.window or a in other or a not in mine for a in names.values()):
            return None
        return _renamed(behind, {d: mine.index(a) for d, a in names.items()})


def _renamed(behind: Ignored, dims: Mapping[int, int]) -> Ignored:
    along = None if behind.along is None else dims[behind.along]
    return Ignored({dims[d]: labels for d, labels in behind.parts.items()}, behind.gains, along)


def _narrowed(behind: Ignored | None, t: c.Tensor) -> Ignored | None:
    """What is repeated along a dimension is the same there, which a product with gains is not."""
    if behind is None or (behind.along is not None and t.shape[behind.along] == 1):
        return None
    return replace(behind, parts={d: labels for d, labels in behind.parts.items() if t.shape[d] > 1})


def _with(behind: Ignored, dim: int, labels: tuple[int, ...]) -> Ignored | None:
    """The same with other parts along one dimension."""
    if behind.along == dim:
        return None
    rest = {d: own for d, own in behind.parts.items() if d != dim}
    return replace(behind, parts=rest if len(set(labels)) == len(labels) else rest | {dim: _numbered(labels)})


def _numbered(labels: tuple[int, ...]) -> Labels:
    """Parts numbered as they come."""
    order = {a: i for i, a in enumerate(dict.fromkeys(labels))}
    return None if len(order) == 1 else tuple(order[a] for a in labels)


def _joined(a: Labels, b: Labels) -> Labels:
    """The finest parts that both sorts of parts lie in."""
    if a is None or b is None:
        return None
    n, shift = len(a), max(a) + 1
    places = torch.arange(n).repeat(2)
    return _parted(n, torch.stack([places, torch.tensor([*a, *(shift + i for i in b)])]))


def _regrouped(
    parts: Parts, shape: tuple[int, ...], dims: list[int], other: tuple[int, ...], left: list[int]
) -> dict[int, Labels]:
    """Parts of some dimensions as parts of those that they were made of, enlarged where need be."""
    sizes = [shape[d] for d in dims]
    if prod(sizes) > LIMIT:
        return dict.fromkeys(left)
    number = torch.zeros(sizes, dtype=torch.int64)
    for i, d in enumerate(dims):
        labels = parts.get(d, tuple(range(shape[d])))
        along = torch.zeros(shape[d], dtype=torch.int64) if labels is None else torch.tensor(labels)
        count = int(along.max()) + 1
        number = number * count + along.reshape([-1 if j == i else 1 for j in range(len(dims))])
    number = number.reshape([other[d] for d in left])
    found: dict[int, Labels] = {}
    for i, d in enumerate(left):
        places = torch.arange(other[d]).reshape([-1 if j == i else 1 for j in range(len(left))]).expand_as(number)
        pairs = torch.stack([places.reshape(-1), number.reshape(-1)]).unique(dim=1)
        parted = _parted(other[d], pairs)
        if parted is None or len(set(parted)) < other[d]:
            found[d] = parted
    return found


def _parted(n: int, pairs: torch.Tensor) -> Labels:
    """Parts of n indices: those that share a number in pairs [2, any] of index and number."""
    m = int(pairs[1].max()) + 1
    graph = coo_matrix(([True] * pairs.shape[1], (pairs[0].numpy(), n + pairs[1].numpy())), shape=(n + m, n + m))
    return _numbered(tuple(int(i) for i in connected_components(graph, directed=False)[1][:n]))
