"""Fourth pass: constants that may be added to activations, and what must absorb them.

A source of shifts is a bias (any parameter that is added), the constant part of an embedding table, or a reader of an
affine relation (adding u ⊗ n to its weight shifts its output by κ u). Shifts run through linear maps. Where something
nonlinear reads, the total must vanish: one source that arrives there directly is solved for, or all are fixed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import PatternPass, Relation, RelationPass, _groups

VIEWS = (c.Reshape, c.Permute, c.Slice, c.Expand)


@dataclass(frozen=True, eq=False)
class Source:
    """One family of shifts: `tensor` is a view of a parameter, `at` the constraint that adds it.

    kind "bias": the tensor itself; "rows": a vector added to every row of a table; "relation": u for every output
    of the contraction, along the covector of `relation`.
    """

    kind: str
    tensor: c.Tensor
    at: c.Constraint
    relation: Relation | None = None

    @property
    def name(self) -> str:
        return f"{self.kind} {self.tensor.name}"


@dataclass(frozen=True)
class Factor:
    """A factor of a dimension: the part (i // stride) mod size of its index i."""

    dim: int
    stride: int
    size: int

    def inside(self, other: Factor) -> bool:
        end, whole = self.stride * self.size, other.stride * other.size
        return self.dim == other.dim and other.stride <= self.stride and end <= whole


def full(shape: tuple[int, ...], dims: Iterable[int] | None = None) -> frozenset[Factor]:
    """Whole dimensions."""
    return frozenset(Factor(d, 1, shape[d]) for d in (range(len(shape)) if dims is None else dims) if shape[d] > 1)


@dataclass(frozen=True)
class Term:
    """How a source arrives at a tensor: factors of dimensions along which it varies, and whether unchanged."""

    varies: frozenset[Factor]
    direct: bool

    @property
    def dims(self) -> frozenset[int]:
        return frozenset(f.dim for f in self.varies)

    def moved(self, dims: dict[int, int]) -> frozenset[Factor]:
        """The factors with their dimensions renamed; those without a new name are dropped."""
        return frozenset(replace(f, dim=dims[f.dim]) for f in self.varies if f.dim in dims)


Terms = dict[Source, Term]


@dataclass
class ShiftPass:
    """Afterwards: `free` sources, `solved` sources with the tensor where they cancel everything else."""

    program: c.Program
    patterns: PatternPass
    relations: RelationPass
    free: list[Source] = field(default_factory=list)
    solved: dict[Source, tuple[c.Tensor, frozenset[Source]]] = field(default_factory=dict)
    dead: set[Source] = field(default_factory=set)
    zero: set[c.Tensor] = field(default_factory=set)

    def run(self) -> ShiftPass:
        self.makers = {k.out: k for k in self.program.constraints}
        self.readers: dict[c.Tensor, list[c.Constraint]] = {}
        for k in self.program.constraints:
            for t in dict.fromkeys(k.inputs):
                self.readers.setdefault(t, []).append(k)
        self.outputs = set(self.program.outputs)
        self.static: set[c.Tensor] = set()
        self.single = self._single_use()
        self.sources: dict[tuple[c.Constraint, c.Tensor], Source] = {}
        for k in self.program.constraints:
            self._visit(k)
        for out in self.program.outputs:
            self._stop(out, None)
        self.free = [s for s in self.sources.values() if s not in self.solved and s not in self.dead]
        return self

    # -- leaves ------------------------------------------------------------------------------------------------
    def _single_use(self) -> set[c.Tensor]:
        """Views of parameters that are the only use of their part of the parameter."""
        single: set[c.Tensor] = set()
        for param in self.program.params.values():
            uses = self.readers.get(param, [])
            slices = [k for k in uses if isinstance(k, c.Slice)]
            if len(uses) == 1:
                single.update(self._chain_end(param))
            elif slices and len(slices) == len(uses) and _disjoint(slices):
                for k in slices:
                    single.update(self._chain_end(k.out))
        return single

    def _chain_end(self, t: c.Tensor) -> list[c.Tensor]:
        while True:
            self.static.add(t)
            uses = self.readers.get(t, [])
            slices = [k for k in uses if isinstance(k, c.Slice)]
            if len(uses) > 1 and len(slices) == len(uses) and _disjoint(slices):
                return [end for k in slices for end in self._chain_end(k.out)]
            if len(uses) != 1 or t in self.outputs:
                return []
            if isinstance(uses[0], c.Expand):
                # repeated, and then read once
                out = uses[0].out
                self.static.add(out)
                return [t] if len(self.readers.get(out, [])) == 1 and out not in self.outputs else []
            if not isinstance(uses[0], (c.Reshape, c.Permute, c.Slice)):
                return [t]
            t = uses[0].out

    def is_static(self, t: c.Tensor) -> bool:
        """A view of one parameter (or of a constant whose value is known)."""
        while t.role == "data":
            made = self.makers.get(t)
            if not isinstance(made, VIEWS):
                return False
            t = made.x
        return t.role in ("param", "buffer") or (t.role == "const" and t.fill is not None)

    def source(self, kind: str, t: c.Tensor, at: c.Constraint, relation: Relation | None = None) -> Source | None:
        if t not in self.single:
            return None
        if (at, t) not in self.sources:
            self.sources[at, t] = Source(kind, t, at, relation)
        return self.sources[at, t]

    # -- arrivals ----------------------------------------------------------------------------------------------
    def terms(self, t: c.Tensor) -> Terms:
        """Shifts that arrive at a tensor, as far as no constraint has removed them."""
        if t in self.zero or t.role in ("const", "input", "buffer", "param"):
            return {}
        k = self.makers.get(t)
        found = self._through(k) if k is not None else {}
        return {s: term for s, term in found.items() if s not in self.dead}

    def _through(self, k: c.Constraint) -> Terms:
        if isinstance(k, c.Add):
            return _merge(self._operand(k, k.x), self._operand(k, k.y))
        if isinstance(k, c.Reshape):
            return {s: Term(_spread(t.varies, k.x.shape, k.out.shape), t.direct) for s, t in self.terms(k.x).items()}
        if isinstance(k, c.Permute):
            places = {d: i for i, d in enumerate(k.dims)}
            return {s: Term(t.moved(places), t.direct) for s, t in self.terms(k.x).items()}
        if isinstance(k, c.Slice):
            return {s: Term(t.varies, False) for s, t in self.terms(k.x).items()}
        if isinstance(k, c.Expand):
            return self.terms(k.x)
        if isinstance(k, c.Concat):
            out: Terms = {}
            for x in k.xs:
                for s, t in self._operand(k, x).items():
                    kept = frozenset(f for f in t.varies if f.dim != k.dim)
                    out[s] = Term(kept | full(k.out.shape, [k.dim]), False)
            return out
        if isinstance(k, c.Mul) and self.is_static(k.y):
            plain = k.y.role == "const"
            return {s: Term(t.varies | full(k.y.shape), t.direct and plain) for s, t in self.terms(k.x).items()}
        if isinstance(k, c.Contract):
            return self._contracted(k)
        if isinstance(k, (c.Reduce, c.Spatial)):
            places = {d: d for d in range(k.x.ndim) if d not in k.dims}
            return {s: Term(t.moved(places), False) for s, t in self.terms(k.x).items()}
        if isinstance(k, c.Gather):
            source = self.source("rows", k.table, k) if k.table.role == "param" or self.is_static(k.table) else None
            lead = k.out.ndim - (k.table.ndim - 1)
            return {source: Term(full(k.out.shape, range(lead, k.out.ndim)), True)} if source else {}
        return {}

    def bare(self, t: c.Tensor) -> c.Tensor:
        """A static tensor before it is repeated along new dimensions."""
        while isinstance(made := self.makers.get(t), c.Expand) and self.is_static(t):
            t = made.x
        return t

    def _operand(self, k: c.Constraint, t: c.Tensor) -> Terms:
        t = self.bare(t)
        if self.is_static(t) and t.role not in ("const", "buffer"):
            source = self.source("bias", t, k)
            return {source: Term(full(t.shape), isinstance(k, c.Add) and k.alpha != 0.0)} if source else {}
        return self.terms(t)

    def _contracted(self, k: c.Contract) -> Terms:
        out: Terms = {}
        x, y, xl, yl = self.operands(k)
        if self.is_static(y):
            own = [i for i, a in enumerate(k.out_labels) if a in yl and a not in k.window]
            places = {d: k.out_labels.index(a) for d, a in enumerate(xl) if a in k.out_labels}
            for s, t in self.terms(x).items():
                out[s] = Term(t.moved(places) | full(k.out.shape, own), False)
            reader = self.reader(k)
            if reader is not None and reader.relation and (reader.relation.constant or reader.relation.offsets):
                batch = any(a in xl and a in yl and a in k.out_labels for a in k.out_labels)
                wide = full(k.out.shape, [i for i in own if k.out_labels[i] not in xl])
                out[reader] = Term(wide, not batch)
        elif self.averages(k):
            places = {d: k.out_labels.index(a) for d, a in enumerate(yl) if a in k.out_labels}
            for s, t in self.terms(y).items():
                out[s] = Term(t.moved(places), False)
        return out

    def operands(self, k: c.Contract) -> tuple[c.Tensor, c.Tensor, tuple[str, ...], tuple[str, ...]]:
        """(activations, weight, labels, labels), or (averaging weights, values, ...) between activations."""
        swap = self.is_static(k.x) if not self.is_static(k.y) else False
        if not self.is_static(k.x) and not self.is_static(k.y):
            swap = k.x not in self.relations.relations
        if swap:
            return k.y, k.x, k.y_labels, k.x_labels
        return k.x, k.y, k.x_labels, k.y_labels

    def averages(self, k: c.Contract) -> bool:
        """Weights that sum to one over the contracted dimension."""
        x, _, xl, yl = self.operands(k)
        r = self.relations.relations.get(x)
        summed = {a for a in xl if a in yl and a not in k.out_labels}
        return r is not None and r.constant == 1.0 and not r.gains and {xl[d] for d in r.dims} == summed

    def reader(self, k: c.Contract) -> Source | None:
        """The contraction as a reader of an affine relation, if it is one."""
        x, y, xl, yl = self.operands(k)
        r = self.relations.relations.get(x)
        if r is None or not self.is_static(y) or y.role == "const":
            return None
        if k.window and not k.shift_safe and (r.constant or r.offsets):
            return None
        summed = {a for a in xl if a in yl and a not in k.out_labels and x.shape[xl.index(a)] > 1}
        if summed & k.window:
            return None
        if {xl[d] for d in r.dims if x.shape[d] > 1} != summed or not summed:
            return None
        return self.source("relation", y, k, r)

    # -- stops -------------------------------------------------------------------------------------------------
    def _visit(self, k: c.Constraint) -> None:
        if isinstance(k, (*VIEWS, c.Add, c.Concat, c.Gather)):
            self._through(k)
            return
        if isinstance(k, c.Mul) and self.is_static(k.y):
            return
        if isinstance(k, c.Contract):
            x, y, xl, _ = self.operands(k)
            if self.is_static(y):
                windowed = {d for d, a in enumerate(xl) if a in k.window}
                self._stop(x, k, lambda t: bool(t.dims & windowed) or (bool(windowed) and not k.shift_safe))
                self.reader(k)
            elif self.averages(k):
                yl = k.y_labels if y is k.y else k.x_labels
                summed = {d for d, a in enumerate(yl) if a not in k.out_labels}
                self._stop(x, k)
                self._stop(y, k, lambda t: bool(t.dims & summed))
            else:
                self._stop(x, k)
                self._stop(y, k)
            return
        if isinstance(k, c.Reduce) and k.mode != "max":
            return
        if isinstance(k, c.Spatial) and k.keeps_constants:
            self._stop(k.x, k, lambda t: bool(t.dims & set(k.dims)))
            return
        for t in k.inputs:
            self._stop(t, k)

    def _stop(self, t: c.Tensor, k: c.Constraint | None, bad=lambda term: True) -> None:
        """A reader that admits no shift (of the bad sort)."""
        terms = self.terms(t)
        ignored = self.patterns.back(k, self.patterns.of(k.out), t) if k is not None else None
        if ignored is not None and not ignored.gains:
            terms = {s: term for s, term in terms.items() if term.dims & ignored.dims or not ignored.dims}
        if not any(bad(term) for term in terms.values()):
            return
        # undo views: the sources must cancel before them already
        while isinstance(made := self.makers.get(t), (c.Reshape, c.Permute, c.Slice)):
            t = made.x
        if isinstance(made, c.Concat):
            self._stop_pieces(made)
            return
        arrived = self.terms(t)
        terms = {s: arrived[s] for s in terms if s in arrived}
        wide = frozenset().union(*(term.varies for term in terms.values()))
        able = [s for s, term in terms.items() if term.direct and _covers(term.varies, wide) and s not in self.solved]
        if able:
            able.sort(key=lambda s: s.kind == "bias")
            pivot = able[-1]
            self.solved[pivot] = (t, frozenset(s for s in terms if s is not pivot))
            self.zero.add(t)
            return
        for s in terms:
            self._kill(s, set())

    def _stop_pieces(self, k: c.Concat) -> None:
        """Every piece of a concatenation must stand still."""
        for x in k.xs:
            own = self.sources.get((k, self.bare(x)))
            if own is not None:
                self._kill(own, set())
            else:
                self._stop(x, None)
        if any(s not in self.dead for s in self._through(k)):
            self.zero.add(k.out)

    def _kill(self, s: Source, seen: set[Source]) -> None:
        if s in seen:
            return
        seen.add(s)
        if s in self.solved:
            for other in self.solved[s][1]:
                self._kill(other, seen)
        else:
            self.dead.add(s)


def _disjoint(slices: list[c.Slice]) -> bool:
    ranges = sorted((k.start, k.stop) for k in slices)
    return len({k.dim for k in slices}) == 1 and all(a[1] <= b[0] for a, b in zip(ranges, ranges[1:], strict=False))


def _merge(a: Terms, b: Terms) -> Terms:
    out = dict(a)
    for s, t in b.items():
        out[s] = Term(out[s].varies | t.varies, False) if s in out else t
    return out


def _covers(factors: frozenset[Factor], wanted: frozenset[Factor]) -> bool:
    return all(any(f.inside(g) for g in factors) for f in wanted)


def _spread(factors: frozenset[Factor], shape: tuple[int, ...], other: tuple[int, ...]) -> frozenset[Factor]:
    """The same factors in a reshaped tensor; one that straddles dimensions unevenly is enlarged."""
    out: set[Factor] = set()
    for left, right in _groups(shape, other):
        for f in factors:
            if f.dim not in left:
                continue
            stride = f.stride * prod(shape[d] for d in left if d > f.dim)
            end = stride * f.size
            for d in right:
                low = prod(other[e] for e in right if e > d)
                high = low * other[d]
                first, last = max(stride, low), min(end, high)
                if first >= last or other[d] == 1:
                    continue
                even = first % low == 0 and last % first == 0
                out.add(Factor(d, first // low, last // first) if even else Factor(d, 1, other[d]))
    return frozenset(out)
