"""Where the dimensions of a program are cut: a small fixpoint over index sets that are concatenated and sliced."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import Literal

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import grouping

MOST = 64
"""Cuts of one index set: a network that asks for more keeps its slices, and what they touch is rigid."""
PIECES = 100
"""Blocks of one tensor, likewise: a loop that writes a matrix entry by entry would ask for one per entry."""

Node = tuple[c.Tensor, int]
Aim = Literal["frames", "shifts"]


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
    _sizes: dict[Node, tuple[int, ...]] = field(default_factory=dict, repr=False)

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
        if (tensor, dim) not in self._sizes:
            root, scale = self.find((tensor, dim))
            inside = sorted(int(p / scale) for p in self.places.get(root, ()))
            self._sizes[tensor, dim] = tuple(b - a for a, b in itertools.pairwise([0, *inside, n]))
        return self._sizes[tensor, dim]

    # -- where to cut ------------------------------------------------------------------------------------------
    def solve(self) -> None:
        """Cut until every part and its union agree; a class that cannot follow stays whole, and all starts again."""
        while True:
            self.whole = {self.find(node)[0] for node in self.whole}
            bad = self._spread()
            if not bad:
                self._sizes.clear()
                return
            self.whole |= bad

    def _spread(self) -> set[Node]:
        self.places = {}
        fresh = [cut for node, place in self.demands if (cut := self._cut(node, place))]
        touching: dict[Node, list[tuple[Node, Node, int]]] = {}
        for part, union, offset in self.inclusions:
            if part[0].shape[part[1]] > 1 and not self._is_whole(part) and not self._is_whole(union):
                for root in {self.find(part)[0], self.find(union)[0]}:
                    touching.setdefault(root, []).append((part, union, offset))
        while fresh:  # every cut is passed on once
            root, place = fresh.pop()
            for inclusion in touching.get(root, ()):
                fresh += self._passed_on(root, place, *inclusion)
        if many := {root for root, p in self.places.items() if len(p) > MOST}:
            return many
        if shattered := self._shattered():
            return shattered
        bad = {self.find(node)[0] for node in self.parent if self._uneven(node)}
        for part, union, offset in self.inclusions:
            n = part[0].shape[part[1]]
            # a part that must stay whole may not lie across a cut
            if n > 1 and self._is_whole(part) and any(0 < p - offset < n for p in self._inside(union)):
                bad.add(self.find(union)[0])
        return bad

    def _shattered(self) -> set[Node]:
        """Of each tensor that would fall into too many pieces, the class with the most cuts."""
        pieces: dict[c.Tensor, dict[int, Node]] = {}
        for tensor, dim in self.parent:
            pieces.setdefault(tensor, {})[dim] = self.find((tensor, dim))[0]
        bad = set()
        for roots in pieces.values():
            cuts = [len(self.places.get(root, ())) for root in roots.values()]
            if prod(n + 1 for n in cuts) > PIECES:
                bad.add(max(roots.values(), key=lambda root: len(self.places.get(root, ()))))
        return bad

    def _passed_on(
        self, root: Node, place: Fraction, part: Node, union: Node, offset: int
    ) -> list[tuple[Node, Fraction]]:
        """What a cut of a class means for the other side of an inclusion: the cuts that are new."""
        found = []
        (of_part, step), (of_union, unit) = self.find(part), self.find(union)
        if of_part == root and 0 < place / step < part[0].shape[part[1]]:
            found.append(self._cut(union, place / step + offset))
        if of_union == root:
            found.append(self._cut(part, place / unit - offset))
        return [cut for cut in found if cut is not None]

    def _is_whole(self, node: Node) -> bool:
        return self.find(node)[0] in self.whole

    def _inside(self, node: Node) -> list[Fraction]:
        root, scale = self.find(node)
        return [p / scale for p in self.places.get(root, ())]

    def _uneven(self, node: Node) -> bool:
        return any(p.denominator != 1 for p in self._inside(node))

    def _cut(self, node: Node, place: Fraction | int) -> tuple[Node, Fraction] | None:
        """Cut the class of a node, at a place inside of the node; the cut in units of the root, if it is new."""
        root, scale = self.find(node)
        places = self.places.setdefault(root, set())
        here = place * scale
        if root in self.whole or here in places or not 0 < place < node[0].shape[node[1]] or len(places) > MOST:
            return None
        places.add(here)
        return root, here


def find_cuts(program: c.Program, aim: Aim = "frames") -> Cuts:
    """Read all constraints, then solve for the places.

    For frames, positions that all weights treat alike stay whole; for shifts they are cut, so that parameters that are
    added at some positions alone stand by themselves, and what a layer norm runs over stays whole, with its mean.
    """
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
        if aim == "shifts" and isinstance(k, c.Normalize) and k.kind == "layer":
            cuts.keep(k.x, k.dims)
    if aim == "frames":
        cuts.whole |= _positions(cuts, program)
    cuts.solve()
    return cuts


def aims_differ(program: c.Program, cut: c.Program) -> bool:
    """Whether shifts ask for other cuts than frames, for which the program has been `cut`."""
    if any(isinstance(k, c.Normalize) and k.kind == "layer" and k.others for k in cut.constraints):
        return True  # reshapes may hide such a cut until they stand on parameters
    if not any(isinstance(k, (c.Slice, c.Concat)) for k in program.constraints):
        return False
    one, other = (find_cuts(program, aim) for aim in ("frames", "shifts"))
    return any(one.sizes(*node) != other.sizes(*node) for node in one.parent)


def _positions(cuts: Cuts, program: c.Program) -> set[Node]:
    """Classes along which every weight acts in the same way, and none of them mixes.

    To cut those would use the weight once per block, which frees no frame, for the weight has one frame on each side.
    """
    static = {*program.params.values()}
    along: set[Node] = set()
    mixed: set[Node] = set()
    for k in program.constraints:
        if isinstance(k, (c.Reshape, c.Permute, c.Slice, c.Expand)) and k.x in static:
            static.add(k.out)
        weights = [t for t in k.inputs if t in static]
        if isinstance(k, c.Contract) and weights:
            sides = ((k.x, k.x_labels), (k.y, k.y_labels))
            own = {a for t, labels in sides if t in static for a in labels}
            for t, labels in sides:
                for d, a in enumerate(labels):
                    if t.shape[d] > 1:
                        (mixed if a in own else along).add(cuts.find((t, d))[0])
        elif isinstance(k, c.Mul):
            mixed |= {cuts.find((t, d))[0] for t in weights for d in range(t.ndim) if t.shape[d] > 1}
    return along - mixed


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
