"""Parameters that take up what other parameters compute, so that a program becomes simpler in other coordinates.

A bias that is read nowhere else takes up a constant, a linear map that is read nowhere else a product of two maps
beside it (theory section 2, "Signs with a shift", and section 3, "Maps beside maps"). The new coordinate is the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

from torchgauge.spaces import constraints as c

VIEWS = (c.Reshape, c.Permute, c.Slice)
Readers = Mapping[c.Tensor, list[c.Constraint]]
Added = list[tuple[str, c.Rest]]
"""What parameters take up, by name."""


class Held(Exception):
    """Something else would see the change."""


def readers_of(program: c.Program) -> dict[c.Tensor, list[c.Constraint]]:
    """The constraints that read each tensor."""
    found: dict[c.Tensor, list[c.Constraint]] = {}
    for k in program.constraints:
        for t in dict.fromkeys(k.inputs):
            found.setdefault(t, []).append(k)
    return found


class Absorber:
    """A program, and the coordinates of its parameters as they change."""

    def __init__(self, program: c.Program) -> None:
        self.program = program
        self.readers = readers_of(program)
        self.makers = {k.out: k for k in program.constraints}
        self.coordinates = dict(program.coordinates)

    def take_up(self, added: Added) -> None:
        """Changes coordinates; what was made of them before stays as it was."""
        for name, rest in added:
            at = self.coordinates[name]
            self.coordinates[name] = replace(at, kind="computed", rests=(*at.rests, rest))

    # -- maps beside maps ------------------------------------------------------------------------------------------
    def beside(self, r: c.Contract, y: c.Tensor, made: c.Contract, a: c.Tensor | None, slope: float) -> Added:
        """What a map of the same source beside r takes up, and a bias where there is one in between.

        Args:
            r: a map that reads y.
            y: slope times what `made` and the bias a in front give, and something else.
        """
        w, wl, yl = self.weight(r, y)
        inner, al, il, source = self.reading(made)
        # labels of the first map in the words of the second
        words = dict(zip(made.out_labels, yl, strict=True))
        words = {b: words.get(b, f"in {b}") for b in (*al, *il)}
        al, il = tuple(words[b] for b in al), tuple(words[b] for b in il)
        outside = {b for b in (*wl, *al) if b in r.out_labels or b in il}
        leaves, factor = self.summands(r.out)
        names = {t.name for t in map(self.root, (w, inner, *([a] if a is not None else [])))}
        found: Added = []
        for leaf, times in leaves:
            u = self.makers.get(leaf)
            if found or not isinstance(u, c.Contract) or self.alone(leaf) is None:
                continue
            if spec := self._parallel(u, source, il, r.out_labels):
                shown, labels = spec
                if self.free(shown, names) and set(labels) == outside:
                    x = self.times(self.product(w, wl, inner, al, labels), slope * factor / times)
                    if x.shape == shown.shape:
                        found.append((self.root(shown).name, self.rest(self.steps(shown), x)))
        if not found:
            raise Held
        if a is None:
            return found
        if a.shape != tuple(n if b in wl else 1 for b, n in zip(yl, y.shape, strict=True)):
            raise Held
        shape = tuple(n if b in wl else 1 for b, n in zip(r.out_labels, r.out.shape, strict=True))
        for leaf, times in leaves:
            if leaf.shape == shape and self.free(leaf, names):
                shared = tuple(b for b in yl if b in wl)
                sizes = dict(zip(wl, w.shape, strict=True))
                bias = self.shown(a, tuple(sizes[b] for b in shared))
                x = self.product(w, wl, bias, shared, tuple(b for b in r.out_labels if b in wl))
                x = self.times(self.shown(x, shape), slope * factor / times)
                return [*found, (self.root(leaf).name, self.rest(self.steps(leaf), x))]
        raise Held

    def reading(self, k: c.Contract) -> tuple[c.Tensor, tuple[str, ...], tuple[str, ...], c.Tensor]:
        """The parameter of a linear map with its labels, the labels of what it reads, and that."""
        for w, wl, xl, x in ((k.y, k.y_labels, k.x_labels, k.x), (k.x, k.x_labels, k.y_labels, k.y)):
            if self.parameter(w) and not self.parameter(x):
                return w, wl, xl, x
        raise Held

    def _parallel(
        self, u: c.Contract, source: c.Tensor, il: tuple[str, ...], zl: tuple[str, ...]
    ) -> tuple[c.Tensor, tuple[str, ...]] | None:
        """The weight of a map of the same source, if it is one, with its labels in the words of the hidden layer."""
        if u.window or source not in (u.x, u.y) or u.x is u.y or len(u.out_labels) != len(zl):
            return None
        w, wl, xl = (u.y, u.y_labels, u.x_labels) if source is u.x else (u.x, u.x_labels, u.y_labels)
        words = dict(zip(xl, il, strict=True))
        for mine, theirs in zip(u.out_labels, zl, strict=True):
            if words.setdefault(mine, theirs) != theirs:
                return None
        return w, tuple(words[b] for b in wl)

    def summands(self, z: c.Tensor) -> tuple[list[tuple[c.Tensor, float]], float]:
        """The terms of the sum that z is one of, if they stand there once, with their factors, and the factor of z."""
        root = z
        while (k := self.alone(root)) is not None and (isinstance(k, c.Add) or multiple(k)) and k.out.shape == z.shape:
            root = k.out
        leaves: list[tuple[c.Tensor, float]] = []
        stack = [(root, 1.0)]
        while stack:
            t, by = stack.pop()
            k = self.makers.get(t)
            if k is None or t.shape != z.shape or (t is not root and self.alone(t) is None):
                leaves.append((t, by))
            elif isinstance(k, c.Add):
                stack += [(k.y, by * k.alpha), (k.x, by)]
            elif multiple(k):
                stack.append((k.x, by * k.y.fill))  # type: ignore[attr-defined]
            else:
                leaves.append((t, by))
        mine = [by for t, by in leaves if t is z]
        if len(mine) != 1:
            raise Held
        return [(t, by) for t, by in leaves if sum(t is other for other, _ in leaves) == 1], mine[0]

    # -- parameters --------------------------------------------------------------------------------------------
    def weight(self, k: c.Contract, t: c.Tensor) -> tuple[c.Tensor, tuple[str, ...], tuple[str, ...]]:
        """The parameter that a contraction multiplies t with, its labels and those of t."""
        w, wl, tl = (k.y, k.y_labels, k.x_labels) if t is k.x else (k.x, k.x_labels, k.y_labels)
        if k.x is k.y or not self.parameter(w):
            raise Held
        return w, wl, tl

    def alone(self, t: c.Tensor) -> c.Constraint | None:
        """The only reader of a tensor."""
        found = self.readers.get(t, [])
        return found[0] if len(found) == 1 and t not in self.program.outputs else None

    def bias(self, k: c.Add, x: c.Tensor) -> tuple[str, tuple[c.Constraint, ...]]:
        """The bias that is added to x, and the views that lead to it, if it is read here alone."""
        if k.x is not x or x.shape != k.out.shape or not self.free(k.y, set()):
            raise Held
        return self.root(k.y).name, self.steps(k.y)

    def free(self, t: c.Tensor, names: set[str]) -> bool:
        """Whether t shows a parameter that is read nowhere else, and is none of some."""
        if not self.parameter(t, ("plain", "computed")) or self.root(t).name in names:
            return False
        return all(self.alone(s) is not None for s in (t, *(k.x for k in self.steps(t))))  # type: ignore[attr-defined]

    def parameter(self, t: c.Tensor, kinds: tuple[str, ...] = ("plain", "offset", "computed")) -> bool:
        root = self.root(t)
        return root.role == "param" and self.coordinates[root.name].kind in kinds

    def root(self, t: c.Tensor) -> c.Tensor:
        steps = self.steps(t)
        return steps[0].x if steps else t  # type: ignore[attr-defined]

    def steps(self, t: c.Tensor) -> tuple[c.Constraint, ...]:
        """The views that lead to t."""
        steps: list[c.Constraint] = []
        while t.role == "data" and isinstance(made := self.makers.get(t), VIEWS):
            steps.append(made)
            t = made.x
        return tuple(reversed(steps))

    # -- what is taken up --------------------------------------------------------------------------------------
    def rest(self, views: tuple[c.Constraint, ...], x: c.Tensor) -> c.Rest:
        """Coordinates are those of now: a later change is none of this."""
        recipes = c.Recipes(self.makers, {}, dict(self.coordinates), self.program.numbers)
        return c.Rest(views, x, recipes, cone=frozenset(self._cone(x)))

    def _cone(self, x: c.Tensor) -> Iterator[str]:
        if x.role == "param":
            yield x.name
        for t in self.makers[x].inputs if x in self.makers else ():
            yield from self._cone(t)

    def product(
        self, x: c.Tensor, xl: tuple[str, ...], y: c.Tensor, yl: tuple[str, ...], out: tuple[str, ...]
    ) -> c.Tensor:
        sizes = dict(zip(xl, x.shape, strict=True)) | dict(zip(yl, y.shape, strict=True))
        made = c.Tensor(tuple(sizes[a] for a in out), "data", "product", x.source)
        self.makers[made] = c.Contract(made, x, y, xl, yl, out)
        return made

    def times(self, x: c.Tensor, by: float) -> c.Tensor:
        made = c.Tensor(x.shape, "data", "multiple", x.source)
        number = c.Tensor((1,) * x.ndim, "const", "number", x.source, by)
        self.makers[made] = c.Mul(made, x, number)
        return made

    def shown(self, x: c.Tensor, shape: tuple[int, ...]) -> c.Tensor:
        if prod(x.shape) != prod(shape):
            raise Held
        made = c.Tensor(shape, "data", "view", x.source)
        self.makers[made] = c.Reshape(made, x)
        return made


def multiple(k: c.Constraint) -> bool:
    """Whether the result is a number that is not zero times the operand."""
    return isinstance(k, c.Mul) and k.power == 1 and k.y.role == "const" and bool(k.y.fill)


def number(shape: tuple[int, ...], value: float, k: c.Constraint) -> c.Tensor:
    """A constant that is the same everywhere."""
    return c.Tensor(shape, "const", "number", k.out.source, value)
