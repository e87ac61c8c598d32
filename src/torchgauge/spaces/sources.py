"""Sources of shifts: parameters whose change adds a constant to activations, and the families of such changes.

A parameter is used by the constraints that read it, through views. Each use allows some changes: a bias any change, an
embedding table one vector added to all rows, the reader of an affine relation n·x = κ a change u ⊗ n. A parameter with
several uses allows the changes that every use allows; then each use has its own effect.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import Pattern, PatternPass, Relation, RelationPass, grouping
from torchgauge.spaces.windows import Taps, taps

VIEWS = (c.Reshape, c.Permute, c.Slice, c.Expand)
MOST = 32
"""Combinations of uses of one parameter that are tried."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One use: the constraint `at` reads `tensor`, a view of the source's, and sees its change in one way.

    kind "bias": the change is added, whatever it is; "rows": it is the same for all rows of a table, and added to what
    is looked up; "relation": it is u ⊗ n for a relation n·x = κ of the other operand, and κ u is added to the
    output; "blind": nobody sees it.
    """

    at: c.Constraint
    tensor: c.Tensor
    kind: Literal["bias", "rows", "relation", "blind"]
    way: Pattern | None = None
    """What the use asks of the change, as a pattern on the source's tensor."""
    relation: Relation | None = None
    level: frozenset[int] = frozenset()
    """Of a bias: dimensions of `tensor` along which the change is constant."""
    taps: Taps | None = None
    """Of a relation that a kernel with edges reads: how its positions may change."""


@dataclass(frozen=True, eq=False)
class Source:
    """One family of changes of a view of a parameter: fixed vectors along `ways`, arbitrary along the rest."""

    tensor: c.Tensor
    entries: tuple[Entry, ...]
    ways: tuple[Pattern, ...] = ()
    partner: tuple[c.Tensor, float] | None = None
    """A parameter that is always added together with this one, and takes its change off times a number."""
    inside: frozenset[c.Tensor] = frozenset()
    """Of a trade: the parts of the sums in which the two do not stand alike."""
    also: tuple[c.Tensor, ...] = ()
    """Further parameters that take the same change (see joint.py)."""
    level: bool = False
    """Whether it may pass readers that ignore constants, and vanish further on (see levels.py)."""

    @property
    def taps(self) -> Taps | None:
        """How positions of a kernel with edges may change; the change is then divided by κ."""
        return self.entries[0].taps

    @property
    def at(self) -> c.Constraint:
        """The first constraint that it enters."""
        return self.entries[0].at

    @property
    def kind(self) -> str:
        if self.also:
            return "joint"
        return "trade" if self.partner else self.entries[0].kind if self.single else "tied"

    @property
    def single(self) -> bool:
        return len(self.entries) == 1

    @property
    def name(self) -> str:
        return f"{'level of ' if self.level else ''}{self.kind} {self.tensor.name}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the arbitrary factor, with size one along the fixed vectors."""
        fixed = {d for way in self.ways for d in way.dims}
        part = self.taps.shape if self.taps is not None else {}
        return tuple(1 if d in fixed else part.get(d, n) for d, n in enumerate(self.tensor.shape))

    def entry(self, at: c.Constraint, tensor: c.Tensor) -> Entry:
        return next(e for e in self.entries if e.at is at and e.tensor is tensor)


Place = tuple[c.Tensor, tuple]
"""A sum, and how something stands in it: the shape of what is added, what a linear map reads and by which labels, or
what is multiplied."""


class Sources:
    """All sources of a program, by the constraint and the tensor where they enter."""

    def __init__(self, program: c.Program, patterns: PatternPass, relations: RelationPass) -> None:
        self.program, self.patterns, self.relations = program, patterns, relations
        self.makers = {k.out: k for k in program.constraints}
        self.readers: dict[c.Tensor, list[c.Constraint]] = {}
        for k in program.constraints:
            for t in dict.fromkeys(k.inputs):
                self.readers.setdefault(t, []).append(k)
        self.outputs = set(program.outputs)
        self._lengths: dict[c.Tensor, tuple[int, ...] | None] = {}
        for k in program.constraints:  # in order, so that no recursion goes deep
            self.lengths(k.out)
        self.places: dict[tuple[c.Constraint, c.Tensor], list[Source]] = {}
        self._positions: dict[c.Contract, Taps | None] = {}
        self._values: dict[c.Contract, bool] = {}
        order = {k: i for i, k in enumerate(program.constraints)}
        for source in sorted(self._found(), key=lambda s: order[s.at]):
            self.add(source)
        self.trades = list(self._traded())

    def add(self, source: Source) -> None:
        """Let another source enter."""
        for e in source.entries:
            self.places.setdefault((e.at, e.tensor), []).append(source)

    def of(self, at: c.Constraint, t: c.Tensor) -> list[Source]:
        """Sources that enter at a constraint through a tensor that it reads."""
        return self.places.get((at, self.bare(t)), [])

    def blind(self, at: c.Constraint) -> list[Source]:
        """Sources whose change the readers of a constraint ignore."""
        found = [s for t in dict.fromkeys(at.inputs) for s in self.of(at, t)]
        return [s for s in found if any(e.at is at and e.kind == "blind" for e in s.entries)]

    def __iter__(self) -> Iterator[Source]:
        return iter(dict.fromkeys([*(s for found in self.places.values() for s in found), *self.trades]))

    # -- static tensors ----------------------------------------------------------------------------------------
    def is_static(self, t: c.Tensor) -> bool:
        """A view of one parameter (or of a constant whose value is known)."""
        while t.role == "data":
            made = self.makers.get(t)
            if not isinstance(made, VIEWS):
                return False
            t = made.x
        return t.role in ("param", "buffer") or (t.role == "const" and t.fill is not None)

    def bare(self, t: c.Tensor) -> c.Tensor:
        """A static tensor before it is repeated along new dimensions."""
        while isinstance(made := self.makers.get(t), c.Expand) and self.is_static(t):
            t = made.x
        return t

    def lengths(self, t: c.Tensor) -> tuple[int, ...] | None:
        """Of what linear maps make of parameters alone: its shape, with one where it is repeated. None for others."""
        if t not in self._lengths:
            self._lengths[t] = t.shape if t.role == "param" else None
            if t.role == "const" and t.fill is not None:
                self._lengths[t] = (1,) * t.ndim
            k = self.makers.get(t)
            found = [self.lengths(x) for x in k.inputs] if isinstance(k, (*VIEWS, c.Add, c.Mul, c.Contract)) else []
            known = [n for n in found if n is not None]
            if k is not None and found and len(known) == len(found):
                self._lengths[t] = _lengths(k, known)
        return self._lengths[t]

    @cached_property
    def parts(self) -> dict[c.Tensor, list[tuple[c.Constraint, c.Tensor]]]:
        """Views of parameters that overlap with nothing else → (reader, what it reads, before it is repeated)."""
        found = [part for param in self.program.params.values() for part in self._parts(param)]
        return {t: uses for t, uses in found if uses}

    def _parts(self, t: c.Tensor) -> Iterator[tuple[c.Tensor, list[tuple[c.Constraint, c.Tensor]]]]:
        readers = self.readers.get(t, [])
        slices = [k for k in readers if isinstance(k, c.Slice)]
        if t in self.outputs:
            return
        if len(slices) == len(readers) > 1 and _disjoint(slices):
            for k in slices:
                yield from self._parts(k.out)
        elif len(readers) == 1 and isinstance(k := readers[0], (c.Reshape, c.Permute, c.Slice)):
            yield from self._parts(k.out)
        else:
            uses = list(self._uses(t))
            if not any(end in self.outputs for _, end in uses):
                yield t, [(k, self.bare(end)) for k, end in uses]

    def _uses(self, t: c.Tensor) -> Iterator[tuple[c.Constraint, c.Tensor]]:
        for k in self.readers.get(t, []):
            if isinstance(k, VIEWS):
                if k.out in self.outputs:
                    yield k, k.out
                yield from self._uses(k.out)
            else:
                yield k, t

    # -- families ----------------------------------------------------------------------------------------------
    def _found(self) -> Iterator[Source]:
        for t, uses in self.parts.items():
            single = len(uses) == 1
            if len({(k, end) for k, end in uses}) < len(uses):
                continue
            choices = [list(self._entries(t, *use, blind=not single)) for use in uses]
            if not all(choices) or prod(len(found) for found in choices) > MOST:
                continue
            for entries in itertools.product(*choices):
                ways = _joined([e.way for e in entries if e.way is not None])
                if ways is not None and any(e.kind != "blind" for e in entries):
                    yield Source(t, entries, ways)

    def _traded(self) -> Iterator[Source]:
        """Parameters that stand in the same sums, as they are, times one tensor, or all rows of a table alike."""
        known: list[tuple[c.Tensor, dict[Place, float]]] = []
        for t, uses in self.parts.items():
            kinds = {type(k) for k, _ in uses}
            rows = c.Gather in kinds
            alone = len(uses) == 1 and kinds <= {c.Add, c.Gather}
            if alone or not all(end is t if rows else self._reshaped(end, t) for _, end in uses):
                continue
            sums = self._sums(uses)
            for other, theirs in known if sums else ():
                ratios = {sums[place] / theirs[place] for place in sums} if sums.keys() == theirs.keys() else set()
                if t.shape[rows:] == other.shape[rows:] and len(ratios) == 1:
                    entries = tuple(Entry(k, end, "blind") for k, end in uses)
                    ratio = ratios.pop()
                    ours, others = self._inner(uses), self._inner(self.parts[other])
                    halves = {p for p in (ours | others) if ours.get(p) != ratio * others.get(p, 0.0)}
                    ways = (Pattern(frozenset([0])),) if rows else ()
                    yield Source(t, entries, ways, partner=(other, ratio), inside=frozenset(t for t, _ in halves))
                    break
            known.append((t, sums))

    def _reshaped(self, end: c.Tensor, t: c.Tensor) -> bool:
        """Whether a view of `t` shows all its entries in order."""
        while end is not t and isinstance(made := self.makers.get(end), c.Reshape):
            end = made.x
        return end is t

    def _sums(self, uses: list[tuple[c.Constraint, c.Tensor]]) -> dict[Place, float]:
        """The sums in which something stands, with its factor in each; empty if it is used otherwise."""
        out: dict[Place, float] = {}
        for k, end in uses:
            stands = self._stands(k, end)
            if stands is None:
                return {}
            factor, what = stands
            whole, inner = self._chain(k.out)[-1]
            out[whole, what] = out.get((whole, what), 0.0) + factor * inner
        return out if all(out.values()) else {}

    def _inner(self, uses: list[tuple[c.Constraint, c.Tensor]]) -> dict[Place, float]:
        """As `_sums`, in the parts of these sums."""
        out: dict[Place, float] = {}
        for k, end in uses:
            factor, what = self._stands(k, end) or (0.0, ())
            for part, inner in self._chain(k.out)[:-1]:
                out[part, what] = out.get((part, what), 0.0) + factor * inner
        return out

    def _stands(self, k: c.Constraint, end: c.Tensor) -> tuple[float, tuple] | None:
        """With what factor a parameter is added by `k`, and how; None if it is used otherwise."""
        if isinstance(k, c.Add):
            return k.alpha if self.bare(k.y) is end else 1.0, end.shape
        if isinstance(k, c.Gather):
            return 1.0, ("rows", k.out.shape)
        if isinstance(k, c.Contract) and not k.window:
            x, y, *labels = self.operands(k)
            return (1.0, (x, *labels, k.out_labels)) if y is end and x is not end else None
        if isinstance(k, c.Mul) and k.power == 1 and self.bare(k.y) is end and not self.is_static(k.x):
            return 1.0, ("gain", k.x, end.shape)
        return None

    def _chain(self, t: c.Tensor) -> list[tuple[c.Tensor, float]]:
        """A tensor and the sums in which it stands, as far as nothing else reads them, with its factor in each."""
        factor, chain = 1.0, [(t, 1.0)]
        while len(above := self.readers.get(t, [])) == 1 and t not in self.outputs:
            k = above[0]
            if isinstance(k, c.Add) and k.x is not k.y:
                step = k.alpha if k.y is t else 1.0
            elif isinstance(k, c.Mul) and k.x is t and k.y.role == "const" and k.y.fill and k.out.shape == t.shape:
                step = k.y.fill**k.power
            else:
                break
            factor, t = factor * step, k.out
            chain.append((t, factor))
        return chain

    def _entries(self, t: c.Tensor, k: c.Constraint, end: c.Tensor, *, blind: bool) -> Iterator[Entry]:
        """What one use of `t` lets through."""
        if isinstance(k, (c.Add, c.Concat)):
            yield Entry(k, end, "bias")
        elif isinstance(k, c.Spatial) and k.keeps_constants:
            dims = frozenset(d for d in k.dims if end.shape[d] > 1)
            way = self._lifted(Pattern(dims), end, t)
            if way is not None and dims:
                yield Entry(k, end, "bias", way, level=dims)
        elif isinstance(k, c.Gather):
            way = self._lifted(Pattern(frozenset([0])), end, t)
            if way is not None:
                yield Entry(k, end, "rows", way)
        elif isinstance(k, c.Contract) and self.reads_static(k, end):
            yield Entry(k, end, "bias")
        elif isinstance(k, c.Contract):
            relation = self.reader(k, end)
            if relation is not None:
                _, _, xl, yl = self.operands(k)
                inside = frozenset(yl.index(xl[d]) for d in relation.dims if xl[d] in yl)
                way = self._lifted(Pattern(inside, relation.gains, relation.tiles), end, t)
                positions = self.positions(k) if self.edged(k, relation) else None
                if way is not None and (end is t or positions is None):
                    yield Entry(k, end, "relation", way, relation, taps=positions)
        if blind and (ignored := self.patterns.back(k, self.patterns.of(k.out), end)) is not None:
            way = self._lifted(ignored, end, t)
            if way is not None:
                yield Entry(k, end, "blind", way)

    def _lifted(self, pattern: Pattern, end: c.Tensor, t: c.Tensor) -> Pattern | None:
        """A pattern on a view of `t` as a pattern on `t`."""
        found: Pattern | None = pattern
        while end is not t and found is not None:
            made = self.makers[end]
            if not isinstance(made, (c.Reshape, c.Permute)):
                return None
            found, end = self.patterns.back(made, found, made.x), made.x
        return found

    # -- contractions ------------------------------------------------------------------------------------------
    def operands(self, k: c.Contract) -> tuple[c.Tensor, c.Tensor, tuple[str, ...], tuple[str, ...]]:
        """(activations, weight, labels, labels), or (averaging weights, values, ...) between activations."""
        swap = self.is_static(k.x) if not self.is_static(k.y) else False
        if not self.is_static(k.x) and not self.is_static(k.y):
            swap = k.x not in self.relations.relations
        if swap:
            return k.y, k.x, k.y_labels, k.x_labels
        return k.x, k.y, k.x_labels, k.y_labels

    def reads_static(self, k: c.Contract, t: c.Tensor) -> bool:
        """Whether a weight reads a tensor that is itself a parameter, such as a learned query."""
        x, y, _, _ = self.operands(k)
        return self.bare(x) is t and x is not y and self.is_static(x) and self.is_static(y) and not k.window

    def averages(self, k: c.Contract) -> bool:
        """Weights that sum to one over the contracted dimension."""
        x, _, xl, yl = self.operands(k)
        r = self.relations.relations.get(x)
        summed = {a for a in xl if a in yl and a not in k.out_labels}
        return r is not None and r.constant == 1.0 and not (r.gains or r.offsets) and {xl[d] for d in r.dims} == summed

    def reader(self, k: c.Contract, weight: c.Tensor) -> Relation | None:
        """The affine relation of what the weight reads, if the whole contraction is along it."""
        r = self._along(k, weight)
        if r is not None and self.edged(k, r):
            # what a bias takes off must be there at every place of a window
            return self.absorber(k) if self.positions(k) is not None else None
        return r

    def positions(self, k: c.Contract) -> Taps | None:
        """Changes of a kernel along its positions that add the same at every place."""
        if k not in self._positions:
            _, y, _, yl = self.operands(k)
            self._positions[k] = taps(k.reach, yl, y.shape)
        return self._positions[k]

    def edged(self, k: c.Contract, r: Relation) -> bool:
        """Whether a constant that is read by a kernel is not constant behind it."""
        return bool(k.window) and not k.shift_safe and bool(r.constant or r.offsets)

    def absorber(self, k: c.Contract) -> Relation | None:
        """The relation n·x = κ by which a reader with edges takes up a constant δ of what it reads: W − (Wδ/κ) ⊗ n.

        What it adds would not be constant at the edges, so that no bias behind it could. Values of attention without a
        bias take it up too: what arrives in front of them and what they add behind the average are then two things.
        """
        if k.shift_safe if k.window else not self._valued(k):
            return None
        _, y, xl, yl = self.operands(k)
        if (k, y) not in self._alone or set(xl) & set(yl) & set(k.out_labels):
            return None
        r = self._along(k, y)
        return r if r is not None and (r.constant or r.offsets) and len(r.dims) == 1 else None

    def _valued(self, k: c.Contract) -> bool:
        """Whether what a weight gives is averaged as it is, and nothing else."""
        if k not in self._values:
            self._values[k] = False
            t, reads = k.out, self.readers.get(k.out, [])
            while len(reads) == 1 and isinstance(reads[0], VIEWS) and t not in self.outputs:
                t = reads[0].out
                reads = self.readers.get(t, [])
            if len(reads) == 1 and isinstance(reads[0], c.Contract) and t not in self.outputs:
                self._values[k] = self.averages(reads[0]) and self.operands(reads[0])[1] is t
        return self._values[k]

    @cached_property
    def _alone(self) -> set[tuple[c.Constraint, c.Tensor]]:
        """Readers of parts that nothing else reads, with those parts."""
        return {uses[0] for uses in self.parts.values() if len(uses) == 1}

    def _along(self, k: c.Contract, weight: c.Tensor) -> Relation | None:
        x, y, xl, yl = self.operands(k)
        r = self.relations.relations.get(x)
        if r is None or y is not weight or y.role == "const":
            return None
        summed = {a for a in xl if a in yl and a not in k.out_labels and x.shape[xl.index(a)] > 1}
        if summed & k.window or not summed or {xl[d] for d in r.dims if x.shape[d] > 1} != summed:
            return None
        return r


def _lengths(k: c.Constraint, found: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of a result, with one where it is repeated."""
    match k:
        case c.Permute():
            return tuple(found[0][d] for d in k.dims)
        case c.Slice():
            return tuple(min(n, m) for n, m in zip(found[0], k.out.shape, strict=True))
        case c.Expand():
            return found[0]
        case c.Reshape():
            sizes = list(k.out.shape)
            for left, right in grouping(k.x.shape, k.out.shape):
                if all(found[0][d] == 1 for d in left):
                    for d in right:
                        sizes[d] = 1
            return tuple(sizes)
        case c.Contract() if not k.window and k.x is not k.y:
            each = [dict(zip(k.x_labels, found[0], strict=True)), dict(zip(k.y_labels, found[1], strict=True))]
            return tuple(max(own.get(a, 1) for own in each) for a in k.out_labels)
        case c.Add() | c.Mul() if k.x is not k.y:
            return tuple(max(sizes) for sizes in zip(*found, strict=True))
    return None


def _disjoint(slices: list[c.Slice]) -> bool:
    ranges = sorted((k.start, k.stop) for k in slices)
    return len({k.dim for k in slices}) == 1 and all(a[1] <= b[0] for a, b in zip(ranges, ranges[1:], strict=False))


def _joined(ways: list[Pattern]) -> tuple[Pattern, ...] | None:
    """Patterns that a change must follow at once; None if two of them ask for different vectors."""
    out: list[Pattern] = []
    for way in ways:
        for other in [o for o in out if o.dims & way.dims and o != way]:
            if other.gains or way.gains:
                return None
            out.remove(other)
            way = Pattern(way.dims | other.dims)
        if way not in out:
            out.append(way)
    return tuple(out)
