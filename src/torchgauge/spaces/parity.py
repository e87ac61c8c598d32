"""Functions that are odd or even but for what the maps around them take up, so that their units change signs.

Odd about another point than zero: if f(c + x) − v is odd, then f(x) = v + h(x − c) with h odd. The bias a in front of f
is moved as a − c, and a linear map W behind it with a bias b as W h + (b + W v), so that b + W v is the coordinate.

Even but for a slope: f(x) = κ x + e(x) with e even (relu(x) = x/2 + |x|/2). Where x = A y + a and a map U runs beside,
W f(x) + U y + b = W e(x) + (U + κ W A) y + (b + κ W a), and U + κ W A and b + κ W a are the coordinates (theory
section 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torchgauge.spaces import constraints as c
from torchgauge.spaces.absorb import Absorber, Added, Held, multiple, number
from torchgauge.spaces.directions import grouping


def symmetrised(program: c.Program) -> c.Program:
    """An equal program in which such functions are odd or even; the same object if there are none."""
    if not any(isinstance(k, c.Pointwise) and (_elsewhere(k.profile) or k.profile.slope) for k in program.constraints):
        return program
    return _Symmetriser(program).run()


def _elsewhere(p: c.Profile) -> bool:
    return p.parity == "odd" and p.centre != (0.0, 0.0)


class _Symmetriser(Absorber):
    def run(self) -> c.Program:
        written: list[c.Constraint] = []
        for k in self.program.constraints:
            if isinstance(k, c.Pointwise) and (found := self._better(k)) is not None:
                profile, added = found
                self.take_up(added)
                k = replace(k, profile=profile)
            written.append(k)
        return replace(self.program, constraints=written, coordinates=self.coordinates)

    def _better(self, k: c.Pointwise) -> tuple[c.Profile, Added] | None:
        """A profile with a parity about zero, and what parameters take up for it; None if they cannot."""
        numbers, p = self.program.numbers, k.profile
        if k.out.role != "data" or (numbers is not None and numbers.steady(k.out)):
            return None
        try:
            if _elsewhere(p):
                return replace(p, centre=(0.0, 0.0)), self._about_zero(k)
            if p.slope:
                return replace(p, parity="even", slope=0.0), self._level(k)
        except Held:
            pass
        return None

    # -- odd about a point -------------------------------------------------------------------------------------
    def _about_zero(self, k: c.Pointwise) -> Added:
        before, value = k.profile.centre
        found: Added = []
        if before:
            made = self.makers.get(k.x)
            if not isinstance(made, c.Add) or made.alpha != 1.0 or self.alone(k.x) is not k:
                raise Held
            name, views = self.bias(made, made.x)
            found.append((name, self.rest(views, number(made.y.shape, -before, k))))
        return found + (list(self._behind(k.out, value)) if value else [])

    def _behind(self, t: c.Tensor, value: float) -> Iterator[tuple[str, c.Rest]]:
        """What the biases behind a tensor take up if a number is taken off all its entries."""
        if t in self.program.outputs or t not in self.readers:
            raise Held
        for k in self.readers[t]:
            match k:
                case c.Reshape() | c.Permute() | c.Slice() | c.Expand() | c.Reduce(mode="mean"):
                    yield from self._behind(k.out, value)
                case c.Spatial(mode="linear", keeps_constants=True):
                    yield from self._behind(k.out, value)
                case c.Mul() if multiple(k):
                    yield from self._behind(k.out, value * (k.y.fill or 0.0))
                case c.Add() if k.x.shape == k.y.shape and k.x.role == k.y.role == "data" and k.x is not k.y:
                    yield from self._behind(k.out, value * (k.alpha if t is k.y else 1.0))
                case c.Contract():
                    yield self._mapped(k, t, value)
                case _:
                    raise Held

    def _mapped(self, k: c.Contract, t: c.Tensor, value: float) -> tuple[str, c.Rest]:
        """What the bias of a linear map takes up: the map of a constant."""
        w, wl, tl = self.weight(k, t)
        if (k.window and not k.shift_safe) or any(a not in (*wl, *k.out_labels, *k.window) for a in tl):
            raise Held
        z, shape = k.out, tuple(n if a in wl else 1 for a, n in zip(k.out_labels, k.out.shape, strict=True))
        while isinstance(after := self.alone(z), c.Reshape):
            shape = _reshaped(shape, z.shape, after.out.shape)
            z = after.out
        if not isinstance(after, c.Add) or after.alpha != 1.0:
            raise Held
        name, views = self.bias(after, z)
        # the sums over what the weight has beside the output, of a constant
        summed = tuple(a for a in wl if a not in k.out_labels)
        sizes = dict(zip(wl, w.shape, strict=True))
        ones = number(tuple(sizes[a] for a in summed), value, k)
        made = self.product(ones, summed, w, wl, tuple(a for a in k.out_labels if a in wl))
        if after.y.shape != shape:
            raise Held
        return name, self.rest(views, self.shown(made, shape))

    # -- even but for a slope ----------------------------------------------------------------------------------
    def _level(self, k: c.Pointwise) -> Added:
        made, a = self.makers.get(k.x), None
        if isinstance(made, c.Add) and made.alpha == 1.0 and made.x.shape == k.x.shape:
            made, a = self.makers.get(made.x), made.y
            if not self.parameter(a):
                raise Held
        readers = self.readers.get(k.out, [])
        if not isinstance(made, c.Contract) or made.window or k.out in self.program.outputs or not readers:
            raise Held
        found: Added = []
        for r in readers:
            if not isinstance(r, c.Contract) or r.window:
                raise Held
            found += self.beside(r, k.out, made, a, k.profile.slope)
        return found


def _reshaped(short: tuple[int, ...], old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, behind a reshape, of what is repeated along the dimensions of size one in `short`."""
    shape = list(new)
    for left, right in grouping(old, new):
        repeated = {short[d] == 1 for d in left if old[d] > 1}
        if len(repeated) > 1:
            raise Held
        if repeated == {True}:
            for d in right:
                shape[d] = 1
    return tuple(shape)
