"""Two linear maps in a row beside another one of the same source, as in low-rank adaptation: it takes them up.

W₂ W₁ y + U y = (U + W₂ W₁) y. With U* = U + W₂ W₁ for coordinate, where U is read nowhere else, nothing reads W₂ and
W₁ any more, so that they are free (theory section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torchgauge.spaces import constraints as c
from torchgauge.spaces.absorb import Absorber, Added, Held, multiple


def adapted(program: c.Program) -> c.Program:
    """An equal program without such pairs; the same object if there are none."""
    merger = _Merger(program)
    return merger.run() if any(merger.pairs()) else program


class _Merger(Absorber):
    def pairs(self) -> Iterator[tuple[c.Contract, c.Tensor]]:
        """Maps of maps that are added to something."""
        for k in self.program.constraints:
            if isinstance(k, c.Contract) and not k.window and k.out.role == "data":
                for y in (k.x, k.y):
                    if self._inner(y)[0] is not None and isinstance(self._entering(k.out)[0], c.Add):
                        yield k, y

    def _inner(self, y: c.Tensor) -> tuple[c.Contract | None, c.Tensor | None, float]:
        """The first map of a pair, its bias, and a number in between."""
        by, a, k = 1.0, None, self.makers.get(y)
        while k is not None and multiple(k) and k.inputs[0].shape == y.shape:
            by, k = by * k.y.fill, self.makers.get(k.x)  # type: ignore[attr-defined]
        if isinstance(k, c.Add) and k.alpha == 1.0 and k.x.shape == y.shape and self.parameter(k.y):
            k, a = self.makers.get(k.x), k.y
        return (k, a, by) if isinstance(k, c.Contract) and not k.window and k.out.shape == y.shape else (None, None, by)

    def _entering(self, z: c.Tensor) -> tuple[c.Constraint | None, c.Tensor]:
        """What reads z alone, through multiples of it, and the last of these."""
        while (k := self.alone(z)) is not None and multiple(k):
            z = k.out
        return k, z

    def run(self) -> c.Program:
        numbers = self.program.numbers
        left: dict[c.Constraint, c.Tensor] = {}
        for r, y in list(self.pairs()):
            made, a, by = self._inner(y)
            if made is None or (numbers is not None and numbers.steady(r.out)):
                continue
            try:
                added: Added = self.beside(r, y, made, a, by)
                k, other = self._sum(r.out)
            except Held:
                continue
            if k not in left:
                self.take_up(added)
                left[k] = other
        if not left:
            return self.program
        written = [c.Expand(k.out, left[k]) if k in left else k for k in self.program.constraints]
        return replace(self.program, constraints=written, coordinates=self.coordinates)

    def _sum(self, z: c.Tensor) -> tuple[c.Add, c.Tensor]:
        """The sum that z enters, and the term of it that is left without z."""
        k, z = self._entering(z)
        if not isinstance(k, c.Add) or k.x is k.y or (z is k.x and k.alpha != 1.0):
            raise Held
        return k, k.x if z is k.y else k.y
