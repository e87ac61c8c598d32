"""Where the dimensions of a program are cut: a small fixpoint over index sets that are concatenated and sliced."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import grouping

MOST = 64
"""Cuts of one index set: a network that asks for more keeps its slices, and what they touch is rigid."""

Node = tuple[c.Tensor, int]


@dataclass
class Cuts:
    """Classes of dimensions that are one index set (up to inner factors), and where each is cut."""

    parent: dict[Node, tuple[Node, Fraction]] = field(default_factory=dict)
    whole: set[Node] = field(default_factory=set)
    """Roots of classes that are never cut."""
    places: dict[Node, set[Fraction]] = field(default_factory=dict)
    """Root → cuts strictly inside, in units of the root."""
    inclusions: list[tuple[Node, Node, int]] = field(default_factory=list)
    """(part, union, offset): one dimension is an interval of another."""
    demands: list[tuple[Node, int]] = field(default_factory=list)
    unfolded: dict[c.Tensor, c.Tensor] = field(default_factory=dict)
    """Reshaped parameter → the parameter, where nothing else reads it: the reshaped one may be cut like a parameter."""

    @property
    def any(self) -> bool:
        return any(self.places.values())

    def find(self, node: Node) -> tuple[Node, Fraction]:
        """Root, and the size of one step of the node in units of the root."""
        if node not in self.parent:
            self.parent[node] = (node, Fraction(1))
        path: list[Node] = []
        while self.parent[node][0] != node:
            path.append(node)
            node = self.parent[node][0]
        scale = Fraction(1)
        for member in reversed(path):
            scale *= self.parent[member][1]
            self.parent[member] = (node, scale)
        return (node, self.parent[path[0]][1]) if path else (node, Fraction(1))

    def join(self, a: Node, b: Node, step: int = 1) -> None:
        """One step of b is `step` steps of a."""
        (ra, sa), (rb, sb) = self.find(a), self.find(b)
        if ra == rb:
            if sb != sa * step:
                self.whole.add(ra)
            return
        self.parent[rb] = (ra, sa * step / sb)
        if rb in self.whole:
            self.whole.add(ra)

    def keep(self, tensor: c.Tensor, dims: Sequence[int]) -> None:
        """These dimensions stay whole."""
        self.whole.update(self.find((tensor, d))[0] for d in dims if tensor.shape[d] > 1)

    def sizes(self, tensor: c.Tensor, dim: int) -> tuple[int, ...]:
        """Sizes of the blocks along a dimension."""
        n = tensor.shape[dim]
        if n == 1:
            return (n,)
        root, scale = self.find((tensor, dim))
        inside = sorted(int(p / scale) for p in self.places.get(root, ()))
        return tuple(b - a for a, b in itertools.pairwise([0, *inside, n]))

    # -- where to cut ------------------------------------------------------------------------------------------
    def solve(self) -> None:
        """Cut until every part and its union agree; a class that cannot follow stays whole, and all starts again."""
        while True:
            self.whole = {self.find(node)[0] for node in self.whole}
            bad = self._spread()
            if not bad:
                return
            self.whole |= bad

    def _spread(self) -> set[Node]:
        self.places = {}
        for node, place in self.demands:
            self._cut(node, place)
        changed = True
        while changed:
            changed = False
            for part, union, offset in self.inclusions:
                n = part[0].shape[part[1]]
                if n > 1 and not self._is_whole(part) and not self._is_whole(union):
                    for p in self._inside(part):
                        changed |= self._cut(union, p + offset)
                    for p in self._inside(union):
                        if 0 < p - offset < n:
                            changed |= self._cut(part, p - offset)
            if any(len(p) > MOST for p in self.places.values()):
                return {root for root, p in self.places.items() if len(p) > MOST}
        bad = {self.find(node)[0] for node in self.parent if self._uneven(node)}
        for part, union, offset in self.inclusions:
            n = part[0].shape[part[1]]
            # a part that must stay whole may not lie across a cut
            if n > 1 and self._is_whole(part) and any(0 < p - offset < n for p in self._inside(union)):
                bad.add(self.find(union)[0])
        return bad

    def _is_whole(self, node: Node) -> bool:
        return self.find(node)[0] in self.whole

    def _inside(self, node: Node) -> list[Fraction]:
        root, scale = self.find(node)
        return [p / scale for p in self.places.get(root, ())]

    def _uneven(self, node: Node) -> bool:
        return any(p.denominator != 1 for p in self._inside(node))

    def _cut(self, node: Node, place: Fraction | int) -> bool:
        root, scale = self.find(node)
        places = self.places.setdefault(root, set())
        if root in self.whole or place * scale in places or not 0 < place < node[0].shape[node[1]]:
            return False
        places.add(place * scale)
        return True


def find_cuts(program: c.Program) -> Cuts:
    """Read all constraints, then solve for the places."""
    cuts = Cuts()
    readers: dict[c.Tensor, list[c.Constraint]] = {}
    for k in program.constraints:
        for t in dict.fromkeys(k.inputs):
            readers.setdefault(t, []).append(k)
    for k in program.constraints:
        for t in k.inputs:
            if t.role == "input":
                cuts.keep(t, range(t.ndim))
        _relate(cuts, k, readers)
    cuts.solve()
    return cuts


def _relate(cuts: Cuts, k: c.Constraint, readers: dict[c.Tensor, list[c.Constraint]]) -> None:
    out = k.out
    match k:
        case c.Slice():
            _same(cuts, out, k.x, except_=(k.dim,))
            if k.x.shape[k.dim] > 1:
                cuts.demands += [((k.x, k.dim), k.start), ((k.x, k.dim), k.stop)]
                cuts.inclusions.append(((out, k.dim), (k.x, k.dim), k.start))
        case c.Concat():
            start = 0
            for x in k.xs:
                _same(cuts, out, x, except_=(k.dim,))
                cuts.demands.append(((out, k.dim), start))
                cuts.inclusions.append(((x, k.dim), (out, k.dim), start))
                start += x.shape[k.dim]
        case c.Reshape():
            alone = k.x.role == "param" and len(readers[k.x]) == 1
            if alone:
                cuts.unfolded[out] = k.x
            else:
                _regroup(cuts, k.x, out)
        case c.Permute():
            for i, d in enumerate(k.dims):
                if out.shape[i] > 1:
                    cuts.join((k.x, d), (out, i))
        case c.Contract():
            first: dict[str, Node] = {}
            for t, labels in ((k.x, k.x_labels), (k.y, k.y_labels), (out, k.out_labels)):
                for d, a in enumerate(labels):
                    if a in k.window:
                        cuts.keep(t, [d])
                    elif t.shape[d] > 1:
                        cuts.join(first.setdefault(a, (t, d)), (t, d))
        case c.Add() | c.Mul():
            _same(cuts, out, k.x)
            _same(cuts, out, k.y)
        case c.Gather():
            lead = out.ndim - (k.table.ndim - 1)
            cuts.keep(k.table, [0])
            cuts.keep(out, range(lead))
            for d in range(1, k.table.ndim):
                if k.table.shape[d] > 1:
                    cuts.join((k.table, d), (out, lead + d - 1))
        case c.Pick():
            lead = k.choice.ndim
            cuts.keep(k.table, [0])
            cuts.keep(k.choice, range(lead))
            cuts.keep(out, range(lead))
            for d in range(1, k.table.ndim):
                if k.table.shape[d] > 1:
                    cuts.join((k.table, d), (out, lead + d - 1))
        case c.Reduce():
            _same(cuts, out, k.x, except_=k.dims)
            if k.mode == "max":
                cuts.keep(k.x, k.dims)
        case c.Spatial():
            _same(cuts, out, k.x, except_=k.dims)
            cuts.keep(k.x, k.dims)
            cuts.keep(out, k.dims)
        case c.Softmax():
            _same(cuts, out, k.x)
            cuts.keep(out, [k.dim])
        case c.Rotate():
            _same(cuts, out, k.x)
            cuts.keep(out, [out.ndim - 1])
        case c.Normalize():
            _same(cuts, out, k.x)
            for y in k.others:
                _same(cuts, out, y, except_=k.dims)
        case c.Expand() | c.Pointwise():
            _same(cuts, out, k.x)
        case _:
            for t in (out, *k.inputs):
                cuts.keep(t, range(t.ndim))


def _same(cuts: Cuts, out: c.Tensor, x: c.Tensor, except_: Sequence[int] = ()) -> None:
    for d, (n, m) in enumerate(zip(out.shape, x.shape, strict=True)):
        if d not in except_ and n == m > 1:
            cuts.join((out, d), (x, d))


def _regroup(cuts: Cuts, x: c.Tensor, out: c.Tensor) -> None:
    """The outermost factor of a dimension is cut together with it; inner factors stay whole."""
    for left, right in grouping(x.shape, out.shape):
        a = [d for d in left if x.shape[d] > 1]
        b = [d for d in right if out.shape[d] > 1]
        if len(a) == 1 and b:
            cuts.join((x, a[0]), (out, b[0]), prod(out.shape[d] for d in b[1:]))
            cuts.keep(out, b[1:])
        elif len(b) == 1 and a:
            cuts.join((out, b[0]), (x, a[0]), prod(x.shape[d] for d in a[1:]))
            cuts.keep(x, a[1:])
        else:
            cuts.keep(x, a)
            cuts.keep(out, b)
