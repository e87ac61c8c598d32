"""A stream plus a convolution of it with one kernel per channel: the kernel takes the stream up.

x + w * x = (w + δ) * x, where δ is one at the tap that leaves every place where it is. With w* = w + δ for
coordinate, where w is read nowhere else, scales of channels pass through the kernel (theory section 3, "Maps beside
maps").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torchgauge.spaces import constraints as c
from torchgauge.spaces.absorb import VIEWS, Absorber, Held
from torchgauge.spaces.directions import grouping


def tapped(program: c.Program) -> c.Program:
    """An equal program without such sums; the same object if there are none."""
    return (
        _Tapper(program).run() if any(isinstance(k, c.Contract) and k.still for k in program.constraints) else program
    )


@dataclass
class _Trace:
    """Where the dimensions of a tensor come from: dimension → one of the first tensor; and what was cut off."""

    places: dict[int, int]
    starts: dict[int, int] = field(default_factory=dict)

    def through(self, k: c.Constraint) -> None:
        match k:
            case c.Permute():
                self.places = {i: self.places[d] for i, d in enumerate(k.dims) if d in self.places}
            case c.Reshape():
                found: dict[int, int] = {}
                for left, right in grouping(k.x.shape, k.out.shape):
                    wide = [d for d in left if k.x.shape[d] > 1], [d for d in right if k.out.shape[d] > 1]
                    if [len(w) for w in wide] not in ([0, 0], [1, 1]):
                        raise Held
                    found |= {d: self.places[e] for e, d in zip(*wide, strict=True)}
                self.places = found
            case c.Slice() if k.dim in self.places:
                first = self.places[k.dim]
                self.starts[first] = self.starts.get(first, 0) + k.start
            case _:
                raise Held


def _traced(shape: Sequence[int], steps: Sequence[c.Constraint]) -> _Trace:
    trace = _Trace({d: d for d, n in enumerate(shape) if n > 1})
    for k in steps:
        trace.through(k)
    return trace


class _Tapper(Absorber):
    def run(self) -> c.Program:
        numbers = self.program.numbers
        left: dict[c.Constraint, c.Tensor] = {}
        for k in self.program.constraints:
            if not isinstance(k, c.Add) or k.x is k.y or not k.x.shape == k.y.shape == k.out.shape:
                continue
            for made, stream, by in ((k.x, k.y, k.alpha), (k.y, k.x, 1.0 if k.alpha == 1.0 else 0.0)):
                try:
                    conv, views = self._convolution(made)
                    if by and not (numbers is not None and numbers.steady(conv.out)):
                        self.take_up([self._taken(conv, views, stream, by)])
                        left[k] = made
                        break
                except Held:
                    continue
        if not left:
            return self.program
        written = [c.Reshape(k.out, left[k]) if k in left else k for k in self.program.constraints]
        return replace(self.program, constraints=written, coordinates=self.coordinates)

    def _convolution(self, t: c.Tensor) -> tuple[c.Contract, list[c.Constraint]]:
        """The convolution that a tensor shows, with or without a bias, and the views that lead to it."""
        views: list[c.Constraint] = []
        while self.alone(t) is not None and (k := self.makers.get(t)) is not None:
            if isinstance(k, c.Contract) and k.still:
                return k, views[::-1]
            if isinstance(k, VIEWS):
                views.append(k)
            elif not (isinstance(k, c.Add) and k.x.shape == k.out.shape and self.parameter(k.y)):
                break
            t = k.x  # type: ignore[attr-defined]
        raise Held

    def _taken(self, k: c.Contract, views: list[c.Constraint], stream: c.Tensor, by: float) -> tuple[str, c.Rest]:
        """What the kernel takes up: a number at one tap."""
        sizes = dict(zip(k.y_labels, k.y.shape, strict=True))
        moving = {a for still in k.still for a in still[:3]}
        own = [a for a in k.y_labels if a not in k.x_labels and a not in moving]
        summed = [a for a in k.x_labels if a not in k.out_labels and a not in moving]
        if k.window != moving or any(sizes.get(a, 2) > 1 for a in (*own, *summed)) or not self.free(k.y, set()):
            raise Held
        back, ahead = self._source(k.x, stream), _traced(k.out.shape, views)
        first = {made: place for place, made in ahead.places.items()}
        renamed = {t: s for _, s, t, _, _ in k.still}
        for d, a in enumerate(k.out_labels):  # every dimension stands where it stood
            at = k.x_labels.index(renamed.get(a, a)) if renamed.get(a, a) in k.x_labels else None
            if k.out.shape[d] > 1 and (at is None or first.get(d) is None or back.get(at) != first[d]):
                raise Held
        steps: list[c.Constraint] = [*self.steps(k.y)]
        shown = k.y
        for kernel, _, t, pad, apart in k.still:
            tap, left = divmod(pad - ahead.starts.get(k.out_labels.index(t), 0), apart)
            at = k.y_labels.index(kernel)
            if left or not 0 <= tap < shown.shape[at]:
                raise Held
            shape = tuple(1 if d == at else n for d, n in enumerate(shown.shape))
            cut = c.Tensor(shape, "data", "tap", k.out.source)
            steps.append(c.Slice(cut, shown, at, tap, tap + 1))
            shown = cut
        number = c.Tensor(shown.shape, "const", "number", k.out.source, by)
        return self.root(k.y).name, self.rest(tuple(steps), number)

    def _source(self, x: c.Tensor, stream: c.Tensor) -> dict[int, int]:
        """The dimensions of the stream that those of a view of it are."""
        steps: list[c.Constraint] = []
        for t, views in self._above(x):
            steps = views
            if t is stream:
                return _traced(stream.shape, steps).places
        raise Held

    def _above(self, x: c.Tensor) -> Iterator[tuple[c.Tensor, list[c.Constraint]]]:
        """What a tensor is a view of, one after the other, with the views that lead back."""
        views: list[c.Constraint] = []
        yield x, []
        while isinstance(k := self.makers.get(x), (c.Reshape, c.Permute)):
            views, x = [k, *views], k.x
            yield x, views
