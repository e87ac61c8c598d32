"""Constants that parameters compute: the bias that is added to one takes it up, and what computed it is free.

A tensor that parameters alone make is the same at every input. Where such a tensor X and a bias b are added, of one
shape, and b is read nowhere else, b* = X + b is as good a coordinate as b: the program reads b* in the place of b, and
of X nothing. Parameters that are read for X alone may then change as they like, while b follows (theory section 3).

Tensors of this sort are kept as short as they are: without the dimensions along which they are repeated, and as sums
of terms that are repeated along different ones. An average, with weights that sum to one, of values that are all the
same is that value, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property

from torchgauge.spaces import constraints as c
from torchgauge.spaces.absorb import readers_of
from torchgauge.spaces.adapters import adapted
from torchgauge.spaces.builder import Builder
from torchgauge.spaces.directions import RelationPass, grouping
from torchgauge.spaces.lookups import looked_up
from torchgauge.spaces.parity import symmetrised
from torchgauge.spaces.pruning import pruned
from torchgauge.spaces.taps import tapped
from torchgauge.spaces.turned import SMOOTH, column, independent, turn_of

VIEWS = (c.Reshape, c.Permute, c.Slice, c.Expand)
PLAIN = (*VIEWS, c.Concat, c.Contract, c.Add, c.Mul, c.Reduce, c.Normalize, c.Softmax)
"""Constraints that say all that they read."""
LINEAR = (*VIEWS, c.Contract, c.Add, c.Mul)
"""Constraints that say what the numbers are."""

Terms = list[c.Tensor]
"""Tensors whose sum, broadcast, is another one."""


def folded(program: c.Program, *, turned: bool = True) -> tuple[c.Program, c.Program]:
    """An equal program in which parameters have taken up what others compute, the same object if there is nothing of
    the sort; and all coordinates.

    The second program has every parameter of the given one, in the coordinates of the first, and no constraints.
    `turned`: whether weights take up what they read, too.
    """
    # tables first: their numbers are those of the traced graph, in which no intermediate result has changed yet
    tabled, recipes = looked_up(program)
    simpler = symmetrised(adapted(tapped(tabled)))
    simpler = pruned(simpler) if simpler is not program else program
    folder = _Folder(simpler, turned)
    new = folder.run() if folder.any() else simpler
    recipes.coordinates.update(folder.recipes.coordinates)
    idle = {name: c.Coordinate(name) for name in program.idle}
    return new, c.Program(
        params=program.params | program.idle,
        coordinates=recipes.coordinates | idle,
        buffers=program.buffers,
        buffer_coordinates=program.buffer_coordinates,
    )


class _Folder:
    def __init__(self, program: c.Program, turned: bool) -> None:
        self.old, self.builder, self.turned = program, Builder(), turned
        self.relations = RelationPass(program).relations
        self.readers = readers_of(program)
        self.makers = {k.out: k for k in program.constraints}
        self.terms: dict[c.Tensor, Terms] = {}
        """Of tensors that are the same at every input."""
        self.cones: dict[c.Tensor, frozenset[str]] = {}
        """The parameters that make each of them."""
        self.full: dict[c.Tensor, c.Tensor] = {}
        self.kinked: set[c.Tensor] = set()
        """Those that are no smooth functions of the parameters."""
        self.columns: dict[c.Tensor, str] = {}
        """What weights make of constants, as parts of their coordinates: tensor → weight."""
        self.shortened = False
        self.recipes = c.Recipes(self.builder.producers, {}, dict(program.coordinates), program.numbers)
        for name, t in program.params.items():
            self.terms[t], self.cones[t] = [t], frozenset([name])

    def any(self) -> bool:
        """Whether a bias is added to what parameters compute, or something repeated is averaged; a cheap test."""
        fixed = set(self.old.params.values())
        computed: set[c.Tensor] = set()
        repeated: set[c.Tensor] = set()
        for k in self.old.constraints:
            if isinstance(k, c.Contract) and (k.x in repeated or k.y in repeated):
                return True
            if isinstance(k, c.Add) and (k.x in computed or k.y in computed):
                return True
            reads = isinstance(k, c.Contract) and (k.x in computed) != (k.y in computed)
            if self.turned and reads and self._steady(k, fixed):
                return True
            if self._steady(k, fixed):
                fixed.add(k.out)
                if not isinstance(k, VIEWS) or k.x in computed:
                    computed.add(k.out)
                if isinstance(k, c.Expand) or any(t in repeated for t in k.inputs):
                    repeated.add(k.out)
        return False

    def run(self) -> c.Program:
        for k in self.old.constraints:
            self.builder.source = k.out.source
            if self._steady(k, self.terms):
                self._write(k)
            elif (value := self._averaged(k)) is not None:
                self._note(k, value)
            else:
                self._copy(k)
        if not self.shortened and not any(x.rests or x.turns for x in self.recipes.coordinates.values()):
            return self.old
        written = self.builder.program.constraints
        new = replace(self.old, constraints=written, coordinates=self.recipes.coordinates)
        new.outputs = [self._full(t) if t in self.terms else t for t in self.old.outputs]
        return pruned(new)

    # -- what is the same at every input -----------------------------------------------------------------------
    def _steady(self, k: c.Constraint, known: object) -> bool:
        if k.out.role != "data":
            return False
        if self.old.numbers is not None and self.old.numbers.steady(k.out):
            return all(t in known or t.role == "const" for t in k.inputs)  # type: ignore[operator]
        plain = isinstance(k, PLAIN) and not (isinstance(k, c.Contract) and k.window)
        return plain and all(t in known or t.fill is not None for t in k.inputs)  # type: ignore[operator]

    def _of(self, t: c.Tensor) -> Terms:
        return self.terms.get(t, [t])

    def _note(self, k: c.Constraint, terms: Terms) -> None:
        self.terms[k.out] = terms
        self.cones[k.out] = frozenset().union(*(self.cones.get(t, frozenset()) for t in k.inputs))
        smooth = k.profile.name in SMOOTH if isinstance(k, c.Pointwise) else isinstance(k, PLAIN)
        if not smooth or any(t in self.kinked for t in k.inputs) or (isinstance(k, c.Reduce) and k.mode == "max"):
            self.kinked.add(k.out)
        if len(terms) == 1 and terms[0] not in self.recipes.origins:
            self.recipes.origins[terms[0]] = k.out

    def _full(self, t: c.Tensor) -> c.Tensor:
        """The whole tensor, as what changes with the input reads it."""
        if t not in self.terms:
            return t
        if t not in self.full:
            self.full[t] = self.builder.expand(self._sum(self.terms[t]), t.shape)
        return self.full[t]

    def _sum(self, terms: Terms) -> c.Tensor:
        total = terms[0]
        for t in terms[1:]:
            total = self.builder.add(total, t)
        return total

    def _copy(self, k: c.Constraint) -> None:
        """A constraint that changes with the input, or that takes the whole tensors."""
        bare = isinstance(k, (c.Add, c.Mul)) and any(t not in self.terms and t.shape == k.out.shape for t in k.inputs)
        take = (lambda t: self._sum(self.terms[t]) if t in self.terms else t) if bare else self._full
        if isinstance(k, c.Add) and bare and (x := self._left_over(k)) is not None:
            self.builder.program.constraints.append(new := c.Reshape(k.out, x))
            self.builder.producers[k.out] = new
            return
        changed = {f.name: _mapped(getattr(k, f.name), take) for f in fields(k) if f.name != "out"}
        new = k if all(getattr(k, n) == x for n, x in changed.items()) else replace(k, **changed)
        self.builder.program.constraints.append(new)
        self.builder.producers[k.out] = new

    def _averaged(self, k: c.Constraint) -> Terms | None:
        """Values that are the same along what is summed, averaged by weights that sum to one there."""
        if not isinstance(k, c.Contract) or k.window:
            return None
        for w, v, wl, vl in ((k.x, k.y, k.x_labels, k.y_labels), (k.y, k.x, k.y_labels, k.x_labels)):
            r = self.relations.get(w)
            summed = [a for a in wl if a in vl and a not in k.out_labels]
            if r is None or r.gains or r.offsets or r.constant != 1.0 or v not in self.terms or len(summed) != 1:
                continue
            lost = any(a not in k.out_labels for a in (*wl, *vl) if a not in summed)
            if {wl[d] for d in r.dims} != set(summed) or lost:
                continue
            at = vl.index(summed[0])
            if v.shape[at] > 1 and all(t.shape[at] == 1 for t in self.terms[v]):
                self.shortened = True
                return [self._placed(t, vl, k) for t in self.terms[v]]
        return None

    def _placed(self, t: c.Tensor, labels: Sequence[str], k: c.Contract) -> c.Tensor:
        """A term with its dimensions where the result has them."""
        kept = [a for a in labels if a in k.out_labels]
        sizes = {a: n for a, n in zip(labels, t.shape, strict=True) if a in kept}
        t = self._view(t, [sizes[a] for a in kept])
        t = self.builder.permute(t, [kept.index(a) for a in k.out_labels if a in kept])
        return self._view(t, [sizes.get(a, 1) for a in k.out_labels])

    def _view(self, t: c.Tensor, shape: Sequence[int]) -> c.Tensor:
        """A reshape of all reshapes before it, without what was repeated for them alone."""
        while isinstance(k := self.builder.producers.get(t), c.Reshape):
            t = k.x
        t = self.builder.reshape(t, shape)
        while isinstance(k := self.builder.producers.get(t), c.Expand):
            t = k.x
        return t

    # -- one constraint ----------------------------------------------------------------------------------------
    def _write(self, k: c.Constraint) -> None:
        averaged = self._averaged(k)
        terms = averaged if averaged is not None else self._written(k)
        if terms is None:
            self._copy(k)
            terms = [k.out]
        self._note(k, terms)

    def _written(self, k: c.Constraint) -> Terms | None:
        b = self.builder
        match k:
            case c.Reshape():
                return [self._reshaped(t, k) for t in self._of(k.x)]
            case c.Permute():
                return [b.permute(t, k.dims) for t in self._of(k.x)]
            case c.Slice():
                return [t if t.shape[k.dim] == 1 else b.slice(t, k.dim, k.start, k.stop) for t in self._of(k.x)]
            case c.Expand():
                return self._of(k.x)
            case c.Add():
                return self._added(k)
            case c.Mul():
                y = self._sum(self._of(k.y))
                return [b.mul(t, y, k.power) for t in self._of(k.x)]
            case c.Contract():
                return self._contracted(k)
            case c.Normalize(others=()):
                return [b.normalize(self._along(k.x, k.dims), k.dims, k.kind, k.eps)]
            case c.Softmax():
                return [b.softmax(self._along(k.x, (k.dim,)), k.dim, k.log)]
            case c.Pointwise():
                return [b.pointwise(self._sum(self._of(k.x)), k.profile)]
        return None

    def _along(self, t: c.Tensor, dims: Sequence[int]) -> c.Tensor:
        """The whole tensor along some dimensions."""
        x = self._sum(self._of(t))
        return self.builder.expand(x, [t.shape[d] if d in dims else n for d, n in enumerate(x.shape)])

    def _reshaped(self, t: c.Tensor, k: c.Reshape) -> c.Tensor:
        whole, shape = list(t.shape), list(k.out.shape)
        for left, right in grouping(k.x.shape, k.out.shape):
            repeated = [d for d in left if k.x.shape[d] > 1 and t.shape[d] == 1]
            if repeated and len(repeated) == sum(k.x.shape[d] > 1 for d in left):
                for d in right:
                    shape[d] = 1
            else:
                for d in repeated:
                    whole[d] = k.x.shape[d]
        return self._view(self.builder.expand(t, whole), shape)

    def _contracted(self, k: c.Contract) -> Terms | None:
        if k.window:
            return None
        for w, other in ((k.x, k.y), (k.y, k.x)):
            if (turned := self._turned(k, w, other)) is not None:
                return [turned]
        xs, ys = self._of(k.x), self._of(k.y)
        if len(xs) > 1 and len(ys) > 1:
            xs, ys = [self._sum(xs)], [self._sum(ys)]
        return [self._product(x, y, k) for x in xs for y in ys]

    def _turned(self, k: c.Contract, w: c.Tensor, other: c.Tensor) -> c.Tensor | None:
        """What a weight that is read here alone makes of what parameters compute: a part of its coordinate."""
        numbers, views = self.old.numbers, self._views(w) if w in self.terms else None
        rows = self.terms.get(other, [])
        if views is None or numbers is None or len(self.terms[w]) != 1 or not any(map(self._computed, rows)):
            return None
        if other in self.kinked or not self.turned:
            return None
        shown, param = self.terms[w][0], views[0].x if views else w  # type: ignore[attr-defined]
        at, cone = self.recipes.coordinates[param.name], self.cones[other]
        if shown.shape != w.shape or at.kind not in ("plain", "computed", "turned") or self._follows(cone, param.name):
            return None
        labels, theirs = (k.x_labels, k.y_labels) if w is k.x else (k.y_labels, k.x_labels)
        short = {a: max(t.shape[d] for t in rows) for d, a in enumerate(theirs)}
        turn = turn_of(k, w, views, short, numbers)
        if turn is None or not independent(turn, self.shapes):
            return None
        turn = replace(turn, cone=cone)
        self.recipes.coordinates[param.name] = replace(at, kind="turned", turns=(*at.turns, turn))
        made = column(self.builder, k, shown, labels, turn)
        self.columns[k.out] = param.name
        return made

    def _raised(self, k: c.Add) -> Terms | None:
        """Such a part and a number, where nothing else reads it: another coordinate."""
        name = self.columns.get(k.x)
        if name is None or len(self.readers[k.x]) > 1 or k.x in self.old.outputs or k.y.role != "const":
            return None
        at = self.recipes.coordinates[name]
        *before, last = at.turns
        if k.y.fill is None or k.x.shape != k.out.shape or self.terms[k.x][0] not in self.builder.producers:
            return None
        if last.x not in self.makers[k.x].inputs:
            return None
        turn = replace(last, offset=k.alpha * k.y.fill)
        self.recipes.origins[self.terms[k.x][0]] = k.out
        self.recipes.coordinates[name] = replace(at, turns=(*before, turn))
        return self.terms[k.x]

    def _follows(self, names: frozenset[str], wanted: str) -> bool:
        """Whether a parameter is among some, or among those that they depend on."""
        known, stack = set(names), list(names)
        while stack:
            at = self.recipes.coordinates.get(stack.pop())
            fresh = (at.cone if at is not None else frozenset()) - known
            known |= fresh
            stack += fresh
        return wanted in known

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: t.shape for name, t in (self.old.params | self.old.idle).items()}

    def _product(self, x: c.Tensor, y: c.Tensor, k: c.Contract) -> c.Tensor:
        """A contraction of terms, of which the result is as short as it can be."""
        xl, yl = list(k.x_labels), list(k.y_labels)
        sizes = dict(zip(xl, k.x.shape, strict=True)) | dict(zip(yl, k.y.shape, strict=True))
        # what is summed is whole; where a kept dimension is repeated in one operand alone, it is dropped there
        x, y = (self._summable(t, labels, k, sizes) for t, labels in ((x, xl), (y, yl)))
        x, xl, y, yl = *self._dropped(x, xl, y, yl), *self._dropped(y, yl, x, xl)
        shape = {a: n for labels, t in ((xl, x), (yl, y)) for a, n in zip(labels, t.shape, strict=True)}
        shape = tuple(shape[a] for a in k.out_labels)
        return self.builder.contract(x, y, xl, yl, k.out_labels, out_shape=shape, shift_safe=k.shift_safe)

    def _summable(self, t: c.Tensor, labels: list[str], k: c.Contract, sizes: dict[str, int]) -> c.Tensor:
        shape = [sizes[a] if a not in k.out_labels else n for a, n in zip(labels, t.shape, strict=True)]
        return self.builder.expand(t, shape)

    def _dropped(
        self, t: c.Tensor, labels: list[str], other: c.Tensor, theirs: list[str]
    ) -> tuple[c.Tensor, list[str]]:
        wide = {a for a, n in zip(theirs, other.shape, strict=True) if n > 1}
        kept = [d for d, a in enumerate(labels) if not (t.shape[d] == 1 and a in wide)]
        return self.builder.reshape(t, [t.shape[d] for d in kept]), [labels[d] for d in kept]

    def _left_over(self, k: c.Add) -> c.Tensor | None:
        """What is left of a sum of which a bias further up in the same sum takes up the constant part."""
        constant, x = (k.y, k.x) if k.y in self.terms else (k.x, k.y)
        terms, t = self.terms.get(constant, []), x
        if len(terms) != 1 or (k.alpha != 1.0 and constant is k.y) or x.shape != k.out.shape:
            return None
        while len(self.readers[t]) == 1 and t not in self.old.outputs and t not in self.terms:
            made = self.makers.get(t)
            if not isinstance(made, c.Add) or made.alpha != 1.0 or made.out.shape != t.shape:
                return None
            bias, t = (made.y, made.x) if made.y in self.terms else (made.x, made.y)
            if bias in self.terms and self._taken_up(bias, terms, constant, k) is not None:
                return x
        return None

    # -- biases ------------------------------------------------------------------------------------------------
    def _added(self, k: c.Add) -> Terms:
        xs, ys = self._of(k.x), self._of(k.y)
        if (raised := self._raised(k)) is not None:
            return raised
        if k.alpha != 1.0:
            number = self.builder.const((1,) * k.y.ndim, "alpha", k.alpha)
            ys = [self.builder.mul(t, number) for t in ys]
        else:
            for bias, terms, other in ((k.y, xs, k.x), (k.x, ys, k.y)):
                rest = self._taken_up(bias, terms, other, k)
                if rest is not None:
                    return self._closed(rest)
        return self._closed(self._merged([*xs, *ys]))

    def _closed(self, terms: Terms) -> Terms:
        """A linear map and its bias stay together."""
        made = [self.builder.producers.get(t) for t in terms]
        return [self._sum(terms)] if any(isinstance(k, c.Contract) for k in made) else terms

    def _merged(self, terms: Terms) -> Terms:
        """Terms of one shape are one term."""
        found: dict[tuple[int, ...], c.Tensor] = {}
        for t in terms:
            found[t.shape] = self.builder.add(found[t.shape], t) if t.shape in found else t
        return list(found.values())

    def _taken_up(self, bias: c.Tensor, terms: Terms, other: c.Tensor, k: c.Add) -> Terms | None:
        """The terms of a sum where a bias has taken up one of the others, if it can."""
        views = self._views(bias)
        if views is None or len(self.terms[bias]) != 1:
            return None
        param = views[0].x if views else bias  # type: ignore[attr-defined]
        at = self.recipes.coordinates[param.name]
        shown = self.terms[bias][0]
        found = next((t for t in terms if t.shape == shown.shape and self._computed(t)), None)
        if (
            found is None
            or at.kind not in ("plain", "computed")
            or self._follows(self.cones.get(other, frozenset()), param.name)
        ):
            return None
        known = self.old.numbers is not None and self.old.numbers.knows(k.out)
        if self._evaluable(found):
            rest = c.Rest(views, found, self.recipes, cone=self.cones[other])
        elif known and len(terms) == 1 and bias in k.inputs:
            rest = c.Rest(views, found, self.recipes, k.out, cone=self.cones[other])
        else:
            return None
        self.recipes.coordinates[param.name] = replace(at, kind="computed", rests=(*at.rests, rest))
        return [*(t for t in terms if t is not found), shown]

    def _views(self, t: c.Tensor) -> tuple[c.Constraint, ...] | None:
        """The views that lead from a parameter to `t`, if what it shows is read here alone."""
        steps: list[c.Constraint] = []
        if len(self.readers.get(t, [])) != 1 or t in self.old.outputs:
            return None
        while t.role == "data":
            k = self.makers[t]
            if not isinstance(k, (c.Reshape, c.Permute, c.Slice)):
                return None
            steps.append(k)
            t, seen = k.x, self.readers[k.x]
            disjoint = all(isinstance(o, c.Slice) for o in seen) and _disjoint(seen)  # type: ignore[arg-type]
            if t in self.old.outputs or (len(seen) > 1 and not disjoint):
                return None
        return tuple(reversed(steps)) if t.role == "param" else None

    def _computed(self, t: c.Tensor) -> bool:
        """Whether more than views make it."""
        while t.role == "data":
            k = self.builder.producers[t]
            if not isinstance(k, VIEWS):
                return True
            t = k.x
        return False

    def _evaluable(self, t: c.Tensor) -> bool:
        """Whether the numbers of a term follow from the parameters."""
        if t.role == "param":
            return self.recipes.coordinates[t.name].kind in ("plain", "offset", "computed")
        if t.role == "const":
            return t.fill is not None
        numbers, origin = self.old.numbers, self.recipes.origins.get(t)
        if numbers is not None and origin is not None and numbers.knows(origin):
            return True
        k = self.builder.producers.get(t)
        return isinstance(k, LINEAR) and all(self._evaluable(x) for x in k.inputs)


def _mapped(value: object, take) -> object:
    if isinstance(value, c.Tensor):
        return take(value)
    if isinstance(value, tuple) and value and isinstance(value[0], c.Tensor):
        return tuple(take(t) for t in value)
    return value


def _disjoint(slices: Sequence[c.Slice]) -> bool:
    spans = sorted((k.start, k.stop) for k in slices)
    return len({k.dim for k in slices}) == 1 and all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
