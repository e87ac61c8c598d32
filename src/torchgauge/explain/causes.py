"""What may stand between a space and a larger group: the operators, gains and ties that touch it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import singledispatchmethod

from torchgauge.explain.spaces import behind
from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import Axis
from torchgauge.spaces.frames import FramePass

VIEWS = (c.Reshape, c.Permute, c.Slice, c.Expand)


@dataclass(frozen=True)
class Cause:
    """One kind of thing that touches a space, wherever in the network it does.

    Attributes:
        what: a noun phrase.
        sources: lines of the user's model.
        count: how many operators there are of it.
        remedy: what a user can do about it, "" where nothing is to be done.
        skipped: constraints that it consists of.
        untied: parameters that it consists of.
    """

    what: str
    sources: tuple[str, ...]
    count: int
    remedy: str = ""
    skipped: frozenset[c.Constraint] = field(default=frozenset(), repr=False)
    untied: frozenset[c.Tensor] = field(default=frozenset(), repr=False)


@dataclass(frozen=True)
class Noun:
    """What something is called: one of it, several of it, under which key they are one thing, and what helps.

    `parts`: what stands at one place is told together.
    """

    one: str
    many: str
    key: tuple[str, ...] = ()
    remedy: str = ""
    parts: bool = False


@dataclass(frozen=True)
class Found:
    """One operator or tie, before equal ones are put together."""

    key: tuple[str, ...]
    noun: Noun
    source: str
    skipped: c.Constraint | None = None
    untied: c.Tensor | None = None


class Touching:
    """What touches the axes of a network."""

    def __init__(self, frames: FramePass, ties: Mapping[str, str]) -> None:
        self.frames, self.program = frames, frames.program
        self.roots = {t: self._grounds(t) for t in frames.values}
        self.makers = {k.out: k for k in self.program.constraints}
        self.uses: dict[c.Tensor, list[c.Constraint]] = {}
        for k in self.program.constraints:
            for t in dict.fromkeys(k.inputs):
                self.uses.setdefault(t, []).append(k)
        self.aliases: dict[str, list[str]] = {}
        for alias, name in ties.items():
            if alias != name:
                self.aliases.setdefault(name, []).append(alias)

    def _grounds(self, t: c.Tensor) -> list[set[Axis]]:
        return [{behind(g) for axis in dim for g in axis.ground()} for dim in self.frames.values[t].dims]

    def touches(self, t: c.Tensor, roots: frozenset[Axis]) -> bool:
        """Whether a tensor has a dimension with one of these axes."""
        return any(dim & roots for dim in self.roots.get(t, ()))

    def causes(self, roots: frozenset[Axis]) -> list[Cause]:
        """Everything that could be taken away, equal things put together, in order of appearance."""
        noted = {n.at for r in roots for n in r.narrowings if n.at is not None}
        found: dict[tuple[str, ...], list[Found]] = {}
        for k in self.program.constraints:
            if any(self.touches(t, roots) for t in (k.out, *k.inputs)):
                for one in self._of(k, roots, k in noted):
                    found.setdefault(one.key, []).append(one)
        for t in self.program.params.values():
            if self.touches(t, roots) and (one := self.tie(t)) is not None:
                found.setdefault(one.key, []).append(one)
        return [_together(group) for group in found.values()]

    def fixed(self, roots: frozenset[Axis]) -> list[tuple[str, str]]:
        """(reason, source line) of what holds a space still and cannot be taken away."""
        out: dict[str, str] = {}
        program = self.program
        for t, name in zip(program.outputs, program.output_names, strict=True):
            if self.touches(t, roots):
                out.setdefault(f"{name} is observed as it is", t.source)
        for k in program.constraints:
            for t in k.inputs:
                if t.role == "input" and self.touches(t, roots):
                    out.setdefault(f"the input ({t.name}) is read as it is", k.out.source)
            if isinstance(k, c.Gather) and self.roots[k.table][0] & roots:
                out.setdefault("its rows are numbered by what the input picks", k.out.source)
            if isinstance(k, c.Choice) and self.roots[k.x][k.dim] & roots:
                out.setdefault("entries of it are chosen by value", k.out.source)
            if isinstance(k, c.Contract) and k.window:
                for t, labels in ((k.x, k.x_labels), (k.y, k.y_labels)):
                    if any(a in k.window and d & roots for a, d in zip(labels, self.roots.get(t, ()), strict=False)):
                        out.setdefault("its entries are positions of a convolution's window", k.out.source)
        return list(out.items())

    # -- one constraint ----------------------------------------------------------------------------------------
    def _of(self, k: c.Constraint, roots: frozenset[Axis], noted: bool) -> Iterator[Found]:
        noun = self._noun(k, roots) or (_OTHER.get(type(k)) if noted else None)
        if noun is not None:
            yield Found(noun.key or (noun.one, _place(k.out.source)), noun, k.out.source, skipped=k)

    @singledispatchmethod
    def _noun(self, k: c.Constraint, roots: frozenset[Axis]) -> Noun | None:
        """What a constraint that can be taken away is called."""
        return None

    @_noun.register
    def _(self, k: c.Pointwise, roots: frozenset[Axis]) -> Noun | None:
        return _entrywise(k, k.profile.name)

    @_noun.register
    def _(self, k: c.Normalize, roots: frozenset[Axis]) -> Noun | None:
        ones = " and the vector of ones" if k.kind == "layer" else ""
        one, many = f"the normalisation (it keeps lengths{ones})", f"the {{}} normalisations (they keep lengths{ones})"
        return Noun(one, many, ("normalisation", k.kind))

    @_noun.register
    def _(self, k: c.Softmax, roots: frozenset[Axis]) -> Noun | None:
        return Noun("the softmax (entry by entry)", "the {} softmaxes (entry by entry)")

    @_noun.register
    def _(self, k: c.Rotate, roots: frozenset[Axis]) -> Noun | None:
        if not self.roots[k.x][-1] & roots:
            return None
        one = "the rotary embedding (it turns fixed pairs)"
        return Noun(one, one, ("rotary embedding",))

    @_noun.register
    def _(self, k: c.Opaque, roots: frozenset[Axis]) -> Noun | None:
        what = f"{k.reason.removeprefix('no rule for ')} (no rule is known)"
        return Noun(what, what, remedy="write a rule for it")

    @_noun.register
    def _(self, k: c.Choice, roots: frozenset[Axis]) -> Noun | None:
        return None

    @_noun.register
    def _(self, k: c.Mul, roots: frozenset[Axis]) -> Noun | None:
        static = self.static(k.y)
        if static is not None and static.role in ("param", "buffer"):
            name = self.name(static)
            one, family = f"the gain {name}", _NUMBER.sub("#", name)
            return Noun(one, f"the {{}} gains such as {name}", ("gain", family), f"fold {name} into what reads it")
        if k.y.role == "const":
            plain = k.y.fill is not None or not self._varies(k, roots)
            return None if plain else _entrywise(k, "a product with constants")
        return _entrywise(k, "a product")

    @_noun.register
    def _(self, k: c.Add, roots: frozenset[Axis]) -> Noun | None:
        constant = any(t.role == "const" and t.fill != 0.0 for t in (k.x, k.y))
        return _entrywise(k, "a sum with constants") if constant else None

    @_noun.register
    def _(self, k: c.Contract, roots: frozenset[Axis]) -> Noun | None:
        both = set(k.x_labels) & set(k.y_labels) & set(k.out_labels)
        if not any(a in both and d & roots for a, d in zip(k.y_labels, self.roots.get(k.y, ()), strict=False)):
            return None
        one = "a product that goes block by block (by head, group or channel)"
        return Noun(one, one.replace("a product that goes", "{} products that go"))

    @_noun.register
    def _(self, k: c.Reduce, roots: frozenset[Axis]) -> Noun | None:
        if not any(self.roots[k.x][d] & roots for d in k.dims) and k.mode != "max":
            return None
        return Noun(f"a reduction ({k.mode})", f"{{}} reductions ({k.mode})")

    @_noun.register
    def _(self, k: c.Spatial, roots: frozenset[Axis]) -> Noun | None:
        if k.mode == "max":
            return Noun("a maximum over a window (entry by entry)", "{} maxima over windows (entry by entry)")
        inside = any(self.roots[k.x][d] & roots for d in k.dims)
        return Noun("a map along it", "{} maps along it") if inside else None

    @_noun.register
    def _(self, k: c.Slice, roots: frozenset[Axis]) -> Noun | None:
        return (
            Noun("a part that is taken of it", "{} parts that are taken of it") if self._along(k, k.x, roots) else None
        )

    @_noun.register
    def _(self, k: c.Concat, roots: frozenset[Axis]) -> Noun | None:
        joined = any(self._along(k, t, roots) for t in k.xs) or self._along(k, k.out, roots)
        return Noun("a concatenation", "{} concatenations") if joined else None

    @_noun.register
    def _(self, k: c.Reshape, roots: frozenset[Axis]) -> Noun | None:
        many = [d for d in self.roots.get(k.x, ()) if len(d & roots) > 1]
        if not many or all(any(d <= e for e in self.roots[k.out]) for d in many):
            return None
        return _BLOCKS

    def _along(self, k: c.Slice | c.Concat, t: c.Tensor, roots: frozenset[Axis]) -> bool:
        return t in self.roots and bool(self.roots[t][k.dim] & roots)

    def _varies(self, k: c.Mul, roots: frozenset[Axis]) -> bool:
        return any(d & roots and n > 1 for d, n in zip(self.roots[k.out], k.y.shape, strict=True))

    # -- parameters --------------------------------------------------------------------------------------------
    def static(self, t: c.Tensor) -> c.Tensor | None:
        """The parameter that a tensor is a view of."""
        while t.role == "data" and isinstance(made := self.makers.get(t), VIEWS):
            t = made.x
        return t if t.role in ("param", "buffer", "const") else None

    def name(self, t: c.Tensor) -> str:
        """The name of the parameter or statistic that a tensor is, or is a part of."""
        coordinate = self.program.coordinates.get(t.name) or self.program.buffer_coordinates.get(t.name)
        return coordinate.name if coordinate else t.name

    def maker(self, t: c.Tensor) -> c.Constraint | None:
        """What a tensor, or the tensor that it is a view of, is made by."""
        while isinstance(made := self.makers.get(t), VIEWS):
            t = made.x
        return made

    def input_of(self, k: c.Contract) -> str:
        """The name of the input that a linear map reads, "" if it reads none."""
        for t in k.inputs:
            while isinstance(made := self.makers.get(t), VIEWS):
                t = made.x
            if t.role == "input":
                return t.name
        return ""

    def readers(self, t: c.Tensor) -> list[c.Constraint]:
        """What reads a tensor or a view of it."""
        out = []
        for k in self.uses.get(t, ()):
            out += self.readers(k.out) if isinstance(k, VIEWS) else [k]
        return out

    def tie(self, t: c.Tensor) -> Found | None:
        """A parameter that is used several times."""
        readers = self.readers(t)
        if len(readers) < 2:
            return None
        name = self.name(t)
        source = readers[-1].out.source
        if aliases := self.aliases.get(name):
            both = f"{name}, tied to {' and '.join(aliases)}"
            return Found(("tie", name), Noun(both, both, remedy=f"untie {name}"), source, untied=t)
        one = f"{name}, used in {len(readers)} places"
        noun = Noun(one, f"{{}} parameters used in {len(readers)} places", remedy="give each use its own weights")
        return Found(("shared",), noun, source, untied=t)


_BLOCKS = Noun("the division into blocks (heads, groups)", "the division into blocks (heads, groups)", ("blocks",))
_OTHER = {
    c.Reshape: _BLOCKS,
    c.Add: Noun("a sum with something constant along it", "{} sums with something constant along it"),
    c.Take: Noun("entries chosen by value", "entries chosen by value in {} places"),
}
"""What narrowed a space, where it is not plain by itself."""
_NUMBER = re.compile(r"\d+")


def _entrywise(k: c.Constraint, what: str) -> Noun:
    """Entrywise operators of one line are one thing: an activation that is written out."""
    return Noun(what, what, ("entries", _place(k.out.source)), parts=True)


def _place(source: str) -> str:
    """A source without the numbers of layers: "file.py:12 in forward (layers.#.mlp)"."""
    line, bracket, module = source.partition("(")
    return line + bracket + _NUMBER.sub("#", module)


def _together(group: list[Found]) -> Cause:
    skipped = frozenset(one.skipped for one in group if one.skipped is not None)
    untied = frozenset(one.untied for one in group if one.untied is not None)
    sources = tuple(dict.fromkeys(one.source for one in group if one.source))
    first = group[0].noun
    count = len(sources) if first.parts else len(group)
    if first.parts:
        parts = list(dict.fromkeys(one.noun.one for one in group))
        names = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        places = f" in {count} places" if count > 1 else ""
        what = f"{names}{places} (entry by entry)"
    else:
        what = first.one if count == 1 else first.many.format(count)
    return Cause(what, sources, count, first.remedy, skipped, untied)
