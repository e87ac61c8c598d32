"""Fourth pass: constants that may be added to activations, and what must absorb them.

A source of shifts is a bias (any parameter that is added), the constant part of an embedding table, or a reader of an
affine relation (adding u ⊗ n to its weight shifts its output by κ u). Shifts run through linear maps. Where something
nonlinear reads, the total must vanish: one source that arrives there directly is solved for, or all are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import Gains, PatternPass, RelationPass, gain_of
from torchgauge.spaces.joint import joint, joint_levels
from torchgauge.spaces.levels import flats, levels
from torchgauge.spaces.sources import VIEWS, Source, Sources
from torchgauge.spaces.varying import Factor, covers, full, spread


@dataclass(frozen=True)
class Term:
    """How a source arrives at a tensor: factors of dimensions along which it varies, and whether unchanged."""

    varies: frozenset[Factor]
    direct: bool
    gains: Gains = ()
    """By what it is to be multiplied to become constant along all dimensions; until then it varies."""

    @property
    def plain(self) -> bool:
        """Unchanged, and with no gain to come."""
        return self.direct and not self.gains

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
    """Source → where it was solved, and the sources that it depends on (never, through others, on itself)."""
    dead: set[Source] = field(default_factory=set)
    wider: set[Source] = field(default_factory=set)
    """Solved sources that vary along more than all that they balance."""
    zero: dict[c.Tensor, frozenset[Source]] = field(default_factory=dict)
    """Tensors whose total shift vanishes, but for the levels that pass there."""
    known: dict[c.Tensor, Terms] = field(default_factory=dict)
    levels: list[Source] = field(default_factory=list)
    """Sources that may pass readers that ignore constants."""
    held: Mapping[c.Tensor, frozenset[int]] = field(default_factory=dict)
    """Tensors of several dimensions that may move by what is constant along these alone."""

    @cached_property
    def sources(self) -> Sources:
        return Sources(self.program, self.patterns, self.relations)

    @property
    def makers(self) -> dict[c.Tensor, c.Constraint]:
        return self.sources.makers

    def run(self) -> ShiftPass:
        """Solve, and try whether holding wide sources that balance others leaves more free.

        Positions that differ from token to token take off whatever arrives with them; a constant may go on instead.
        """
        best = self._run()
        wider = [s for s in self.solved if s in self.wider]
        for flat in [flat for s in wider for flat in flats(s, self.sources, alone=False)]:
            held = {**best.held, flat.tensor: flat.ways[0].dims}
            other = ShiftPass(self.program, self.patterns, self.relations, held=held)._run()
            best = max(best, other, key=ShiftPass.dimension)
        return best

    def dimension(self) -> int:
        """Of the free sources, less levels that another change of the same parameter takes off at once."""
        idle = {o for s, (_, others) in self.solved.items() for o in others if o.level and o.tensor is s.tensor}
        return sum(prod(s.shape) for s in self.free if s not in idle)

    def _run(self) -> ShiftPass:
        self._solve()
        free = {s.tensor for s in self.free}
        # a level of a free bias would be counted twice
        self.levels = [s for s in levels(self.sources) if s.tensor not in free]
        alone = {s for s, (_, others) in self.solved.items() if not others}
        held = self.dead | alone
        levelled = {s.tensor for s in self.levels}
        constant = {s for s in alone if s.tensor not in levelled}  # the level of a vector is its constant part
        whole = {s: self._flats(s, alone=s in constant) for s in self.sources if s in self.dead | constant}
        narrow = [flat for own in whole.values() for flat in own]
        joints, shared = list(joint(self.sources, held)), list(joint_levels(self.sources, held))
        self.levels += shared
        for s in (*self.levels, *narrow, *joints):
            self.sources.add(s)

        def still(tried: list[Source]) -> set[Source]:
            return {s for s in held if self._moved_by(tried, s)} | self._counted(tried)

        rest: set[Source] = set()
        if self.levels or narrow or joints:
            free_joints = self._lasting(joints, lambda tried: still(tried) | set(shared))
            rest = (set(joints) - set(free_joints)) | still(free_joints)
            if apart := [s for s in shared if s not in rest]:
                single = [s for s in self.levels if not s.also]
                lasting = self._lasting(apart, lambda tried: rest | {s for s in single if self._moved_by(tried, s)})
                rest |= (set(apart) - set(lasting)) | {s for s in single if self._moved_by(lasting, s)}
        if idle := {x for s, own in whole.items() if own for x in self._idle(s, own)}:
            self._solve(rest | idle)
        return self

    def _flats(self, s: Source, *, alone: bool) -> list[Source]:
        """The constant parts that a source that stands still may have."""
        found = flats(s, self.sources, alone=alone)
        return [flat for flat in found if self.held.get(flat.tensor, flat.ways[0].dims) == flat.ways[0].dims]

    def _idle(self, s: Source, own: list[Source]) -> Iterable[Source]:
        """Of a source and its constant parts, what would only stand in the way of the rest."""
        if s in self.solved:  # takes its own parts off again
            others = self.solved[s][1]
            return [s] if others and all(o in own for o in others) else own
        return [s] if s in self.dead and not any(o in own for o in (*self.free, *self.solved)) else []

    def _lasting(self, tried: list[Source], still: Callable[[list[Source]], set[Source]]) -> list[Source]:
        """Solve with some of these sources: those that come out free."""
        every = set(tried)
        while True:
            self._solve((every - set(tried)) | still(tried))
            kept = [s for s in tried if s in self.free]
            if len(kept) == len(tried):
                return kept
            tried = kept

    def _moved_by(self, joints: Iterable[Source], s: Source) -> bool:
        return not s.also and any(s.tensor in (j.tensor, *j.also) for j in joints)

    def _counted(self, joints: Iterable[Source]) -> set[Source]:
        """One level of every joint source: all of them are one of its changes."""
        firsts = {j.tensor for j in joints}
        return {s for s in self.levels if s.tensor in firsts}

    def _solve(self, still: Iterable[Source] = ()) -> None:
        self.free, self.solved, self.dead, self.zero, self.known, self.wider = [], {}, set(still), {}, {}, set()
        self.dead |= {s for s in self.sources if s.tensor in self.held and not s.ways}
        for k in self.program.constraints:
            self._visit(k)
        for out in self.program.outputs:
            self._stop(out, None)
        places = {t for t, _ in self.solved.values()}
        # what was solved inside a sum would see one half of a trade
        self.dead |= {s for s in self.sources.trades if s.inside & places}
        # what both may do alone is counted already
        alone = {(s.tensor, s.ways) for s in self.sources if s not in self.dead and s.partner is None}
        self.dead |= {
            s
            for s in self.sources.trades
            if s.ways and s.partner and {(s.tensor, s.ways), (s.partner[0], s.ways)} <= alone
        }
        self.free = [s for s in self.sources if s not in self.solved and s not in self.dead]

    # -- arrivals ----------------------------------------------------------------------------------------------
    def terms(self, t: c.Tensor) -> Terms:
        """Shifts that arrive at a tensor, as far as no constraint has removed them."""
        if t.role in ("const", "input", "buffer", "param") or (t in self.zero and not self.zero[t]):
            return {}
        if t not in self.known:
            k = self.makers.get(t)
            found = self._through(k) if k is not None else {}
            self.known[t] = {s: term for s, term in found.items() if t not in self.zero or s in self.zero[t]}
        return {s: term for s, term in self.known[t].items() if s not in self.dead}

    def _vanish(self, t: c.Tensor, passing: frozenset[Source]) -> None:
        """The shift of `t` is zero from now on, but for some levels; what was known behind it is forgotten."""
        self.zero[t] = passing
        stack = [t]
        while stack:
            x = stack.pop()
            self.known.pop(x, None)
            stack.extend(k.out for k in self.sources.readers.get(x, []) if k.out in self.known)

    def _through(self, k: c.Constraint) -> Terms:
        if isinstance(k, c.Add):
            gone = self._cancelled(k)
            merged = _merge(self._operand(k, k.x), self._operand(k, k.y))
            return {s: t for s, t in merged.items() if s not in gone}
        if isinstance(k, c.Reshape):
            moved = {s: spread(t.varies, k.x.shape, k.out.shape) for s, t in self.terms(k.x).items()}
            return {s: Term(moved[s], t.plain) for s, t in self.terms(k.x).items()}
        if isinstance(k, c.Permute):
            places = {d: i for i, d in enumerate(k.dims)}
            return {s: Term(t.moved(places), t.plain) for s, t in self.terms(k.x).items()}
        if isinstance(k, c.Slice):
            return {s: Term(t.varies, _kept(s, t, [k.dim])) for s, t in self.terms(k.x).items()}
        if isinstance(k, c.Expand):
            return self.terms(k.x)
        if isinstance(k, c.Concat):
            parts = [self._operand(k, x) for x in k.xs]
            alike = {s for s in parts[0] if self._alike(k, s, parts)}
            out: Terms = {s: Term(t.varies, False) for s, t in parts[0].items() if s in alike}
            for arriving in parts:
                for s, t in arriving.items():
                    if s in alike:
                        continue
                    kept = frozenset(f for f in t.varies if f.dim != k.dim)
                    out = _merge(out, {s: Term(kept | full(k.out.shape, [k.dim]), False)})
            return out
        if isinstance(k, c.Mul) and self.sources.is_static(k.y):
            return {s: self._scaled(k, t) for s, t in self.terms(k.x).items()}
        if isinstance(k, c.Contract):
            return self._contracted(k)
        if isinstance(k, (c.Reduce, c.Spatial)):
            places = {d: d for d in range(k.x.ndim) if d not in k.dims}
            arriving = self._operand(k, k.x) if isinstance(k, c.Spatial) else self.terms(k.x)
            keeps = isinstance(k, c.Spatial) and k.keeps_constants
            # a number that is the same everywhere stays as it is
            return {
                s: Term(t.moved(places), keeps and (_kept(s, t, k.dims) or (t.plain and not t.varies)))
                for s, t in arriving.items()
            }
        if isinstance(k, c.Gather):
            lead = k.out.ndim - (k.table.ndim - 1)
            return self._entering(k, k.table, full(k.out.shape, range(lead, k.out.ndim)), "rows")
        return {}

    def _cancelled(self, k: c.Add) -> set[Source]:
        """Of a difference pool(x) − x: what is constant along the pooled dimensions of x."""
        (x, pooled), (y, also) = map(self._unpooled, (k.x, k.y))
        if k.alpha != -1.0 or x is not y or k.x.shape != k.y.shape:
            return set()
        return {s for s, t in self.terms(x).items() if not t.dims & (pooled | also)}

    def _unpooled(self, t: c.Tensor) -> tuple[c.Tensor, frozenset[int]]:
        """What a tensor was before maps along some dimensions that keep constants, and those dimensions."""
        dims: frozenset[int] = frozenset()
        while isinstance(made := self.makers.get(t), c.Spatial) and made.keeps_constants:
            t, dims = made.x, dims | frozenset(made.dims)
        return t, dims

    def _alike(self, k: c.Concat, s: Source, parts: list[Terms]) -> bool:
        """Whether a source moves all parts by the same: a joint one, or a constant in parts of one tensor."""
        if not all(s in arriving for arriving in parts):
            return False
        terms = [arriving[s] for arriving in parts]
        if not s.also:
            origins = {self._origin(x) for x in k.xs}
            return len(origins) == 1 and not self.terms(origins.pop())[s].varies
        unchanged = all(t.direct or self.sources.is_static(x) for t, x in zip(terms, k.xs, strict=True))
        return unchanged and len({t.varies for t in terms}) == 1 and k.dim not in terms[0].dims

    def _origin(self, t: c.Tensor) -> c.Tensor:
        """What a tensor is a part of."""
        made = self.makers.get(t)
        while isinstance(made, (c.Reshape, c.Permute, c.Slice)) or (
            isinstance(made, c.Spatial) and made.keeps_constants
        ):
            t = made.x
            made = self.makers.get(t)
        return t

    def _scaled(self, k: c.Mul, term: Term) -> Term:
        if term.gains and term.gains == ((gain_of(self.makers, k.y), k.power),):
            return Term(frozenset(), term.direct)
        across = full(k.y.shape)
        return Term(term.varies | across, term.plain and covers(term.varies, across))

    def _entering(
        self, k: c.Constraint, t: c.Tensor, varies: frozenset[Factor], kind: str, *, direct: bool = True
    ) -> Terms:
        """Sources that enter here, as they arrive."""
        t = self.sources.bare(t)
        out: Terms = {}
        for s in self.sources.of(k, t):
            e = s.entry(k, t)
            if s not in self.dead and e.kind == kind:
                if e.level and e.way is not None and e.way.gains:
                    gains = tuple((gain, -power) for gain, power in e.way.gains)
                    out[s] = Term(varies, direct and s.single and s.tensor is t, gains)
                    continue
                own = frozenset(f for f in varies if f.dim not in e.level)
                out[s] = Term(own, direct and (bool(s.also) or (s.single and s.tensor is t)))
        return out

    def _operand(self, k: c.Constraint, t: c.Tensor) -> Terms:
        t = self.sources.bare(t)
        if self.sources.is_static(t) and t.role not in ("const", "buffer"):
            direct = isinstance(k, c.Spatial) or (isinstance(k, c.Add) and k.alpha != 0.0)
            return self._entering(k, t, self._own(t), "bias", direct=direct)
        return self.terms(t)

    def _own(self, t: c.Tensor) -> frozenset[Factor]:
        """Where a view of a parameter varies: not along what was expanded."""
        made = self.makers.get(t) if t.role == "data" else None
        if isinstance(made, c.Reshape):
            return spread(self._own(made.x), made.x.shape, t.shape)
        if isinstance(made, c.Permute):
            places = {d: i for i, d in enumerate(made.dims)}
            return Term(self._own(made.x), direct=True).moved(places)
        return self._own(made.x) if isinstance(made, (c.Expand, c.Slice)) else full(t.shape)

    def _contracted(self, k: c.Contract) -> Terms:
        out: Terms = {}
        x, y, xl, yl = self.sources.operands(k)
        if self.sources.is_static(y):
            own = [i for i, a in enumerate(k.out_labels) if a in yl and a not in k.window]
            places = {d: k.out_labels.index(a) for d, a in enumerate(xl) if a in k.out_labels}
            arriving = self._operand(k, x) if self.sources.is_static(x) else self.terms(x)
            for s, t in (arriving if self.sources.absorber(k) is None else {}).items():
                out[s] = Term(t.moved(places) | full(k.out.shape, own), False)
            relation = self.sources.reader(k, y)
            if relation is not None and (relation.constant or relation.offsets):
                batch = any(a in xl and a in yl for a in k.out_labels)
                wide = full(k.out.shape, [i for i in own if k.out_labels[i] not in xl])
                out = _merge(
                    out, self._entering(k, y, full(k.out.shape, own) if batch else wide, "relation", direct=not batch)
                )
        elif self.sources.averages(k):
            places = {d: k.out_labels.index(a) for d, a in enumerate(yl) if a in k.out_labels}
            for s, t in self.terms(y).items():
                out[s] = Term(t.moved(places), False)
        return out

    # -- stops -------------------------------------------------------------------------------------------------
    def _visit(self, k: c.Constraint) -> None:
        if any(self.terms(x) for x in k.inputs):
            # a shift that meets a weight whose own change is ignored here: the two would not commute
            for s in self.sources.blind(k):
                self._kill(s, set())
        if isinstance(k, (*VIEWS, c.Add, c.Concat)) or (isinstance(k, c.Gather) and self.sources.is_static(k.table)):
            self.terms(k.out)
            return
        if isinstance(k, c.Mul) and self.sources.is_static(k.y):
            self.terms(k.out)
            return
        if isinstance(k, c.Contract):
            x, y, xl, _ = self.sources.operands(k)
            if (absorber := self.sources.absorber(k)) is not None:
                edges = bool(k.window)
                self._still(
                    x, {s for s, t in self.terms(x).items() if (edges and s.level) or not t.dims <= absorber.dims}
                )
            elif self.sources.is_static(y):
                windowed = {d for d, a in enumerate(xl) if a in k.window}
                self._stop(x, k, lambda t: bool(t.dims & windowed) or (bool(windowed) and not k.shift_safe))
            elif self.sources.averages(k):
                yl = k.y_labels if y is k.y else k.x_labels
                summed = {d for d, a in enumerate(yl) if a not in k.out_labels}
                self._stop(x, k)
                self._stop(y, k, lambda t: bool(t.dims & summed))
            else:
                self._stop(x, k)
                self._stop(y, k)
            self.terms(k.out)
            return
        if isinstance(k, c.Reduce) and k.mode != "max":
            self.terms(k.out)
            return
        if isinstance(k, c.Spatial) and k.keeps_constants:
            self._stop(k.x, k, lambda t: bool(t.dims & set(k.dims)))
            self.terms(k.out)
            return
        for t in k.inputs:
            self._stop(t, k)

    def _stop(self, t: c.Tensor, k: c.Constraint | None, bad=lambda term: True) -> None:
        """A reader that admits no shift (of the bad sort)."""
        terms = self.terms(t)
        ignored = self.patterns.back(k, self.patterns.of(k.out), t) if k is not None else None
        if ignored is not None and not ignored.gains:
            terms = {s: term for s, term in terms.items() if term.dims & ignored.dims or not ignored.dims}
        self._still(t, {s for s, term in terms.items() if bad(term)})

    def _still(self, t: c.Tensor, wanted: set[Source]) -> None:
        """Let these sources move `t` no more: solve one of them here, or further up, or fix them."""
        # undo views and factors that are not zero: the sources must cancel before them already
        while (made := self.makers.get(t)) is not None and self._one_to_one(made):
            t = made.inputs[0]
        arrived = self.terms(t)
        if made is None or not wanted & arrived.keys():
            return
        passing = frozenset(s for s in arrived if s.level and s not in wanted)
        arrived = {s: term for s, term in arrived.items() if s not in passing}
        known = next((s for s, (at, _) in self.solved.items() if at is t), None)
        if known is not None and not any(x.varies or self._rests_on(s, known) for s, x in arrived.items()):
            # levels that passed here: what was solved for the rest takes them up too
            self.solved[known] = (t, self.solved[known][1] | frozenset(arrived))
            self._vanish(t, passing)
            return
        pivot = self._pivot(arrived)
        if pivot is None:
            # constants along some dimensions that vary along others may be all that stands in the way
            spare = {s for s in arrived if s.ways and s.kind == "bias" and not s.level}
            arrived = {s: term for s, term in arrived.items() if s not in spare}
            pivot = self._pivot(arrived) if spare else None
            for s in spare if pivot is not None else ():
                self._kill(s, set())
        if pivot is not None:
            others = frozenset(arrived) - {pivot}
            self.solved[pivot] = (t, others)
            if others and not covers(frozenset().union(*(arrived[s].varies for s in others)), arrived[pivot].varies):
                self.wider.add(pivot)
            self._vanish(t, passing)
            return
        for x in dict.fromkeys(made.inputs):
            if not self.sources.is_static(x):
                self._still(x, wanted)
        for s in wanted & self.terms(t).keys():
            self._kill(s, set())

    def _one_to_one(self, made: c.Constraint) -> bool:
        if isinstance(made, c.Mul):
            return made.y.role == "const" and bool(made.y.fill) and made.x.shape == made.out.shape
        return isinstance(made, (c.Reshape, c.Permute, c.Slice, c.Expand))

    def _pivot(self, arrived: Terms) -> Source | None:
        """A source that can take up all that arrives, also what the reader would ignore: other readers may see it."""
        wide = frozenset().union(*(term.varies for term in arrived.values()))
        able = [s for s, term in arrived.items() if term.plain and covers(term.varies, wide)]
        able = [s for s in able if not s.also and not s.taps and s not in self.solved]
        able = [s for s in able if not any(self._rests_on(o, s) for o in arrived if o is not s)]
        return max(able, key=lambda s: (s.kind == "bias", list(arrived).index(s)), default=None)

    def _rests_on(self, s: Source, pivot: Source) -> bool:
        """Whether a source is `pivot`, or solved by means of it."""
        stack, seen = [s], {s}
        while stack:
            x = stack.pop()
            if x is pivot:
                return True
            more = self.solved[x][1] - seen if x in self.solved else frozenset()
            seen |= more
            stack.extend(more)
        return False

    def _kill(self, s: Source, seen: set[Source]) -> None:
        if s in seen:
            return
        seen.add(s)
        if s in self.solved:
            for other in self.solved[s][1]:
                self._kill(other, seen)
        else:
            self.dead.add(s)


def _merge(a: Terms, b: Terms) -> Terms:
    out = dict(a)
    for s, t in b.items():
        out[s] = Term(out[s].varies | t.varies, False) if s in out else t
    return out


def _kept(s: Source, t: Term, dims: Iterable[int]) -> bool:
    """Whether a joint source is still unchanged behind a map along some dimensions."""
    return t.direct and bool(s.also) and not t.dims & set(dims)
