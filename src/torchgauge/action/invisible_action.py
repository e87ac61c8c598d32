"""The third stage of a group element: writers add anything along directions that no reader sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from torchgauge.action.additive import Additive
from torchgauge.action.kernel_action import along, projector
from torchgauge.action.shift_action import Coordinates, add_to_view, gain_product, param_of
from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import Pattern, PatternPass
from torchgauge.spaces.kernels import Kernels, Seen
from torchgauge.spaces.levels import full
from torchgauge.spaces.patches import Parts, Patches
from torchgauge.spaces.ranges import Ranges
from torchgauge.spaces.shifts import ShiftPass
from torchgauge.spaces.sources import Source
from torchgauge.spaces.windows import Taps


@dataclass(frozen=True, eq=False)
class Writer:
    """A view of a parameter whose changes along `pattern` are invisible.

    `dims`: instead, all changes along these dimensions of which readers see nothing; `left` of them are independent.
    With both: such changes along `dims` times the fixed vector along the pattern. `taps`: changes of a kernel with
    edges that add nothing at any place, times that vector. `parts`: changes that are the same within
    parts of other dimensions.
    """

    tensor: c.Tensor
    pattern: Pattern
    dims: tuple[int, ...] = ()
    seen: Seen = None
    left: int = 0
    taps: Taps | None = None
    parts: Parts = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the coordinates: of the arbitrary factor, or of the tensor, to be projected."""
        if self.parts:
            counts = {d: max(labels) + 1 for d, labels in self.parts.items() if labels is not None}
            return tuple(1 if d in self.pattern.dims else counts.get(d, n) for d, n in enumerate(self.tensor.shape))
        if self.dims and not self.pattern.dims:
            return self.tensor.shape
        sizes = self.taps.shape if self.taps is not None else {}
        return tuple(1 if d in self.pattern.dims else sizes.get(d, n) for d, n in enumerate(self.tensor.shape))

    @property
    def width(self) -> int:
        """Length of the invisible direction."""
        if self.parts:
            return prod(self.tensor.shape) // prod(self.shape)
        return prod(self.tensor.shape[d] for d in self.dims or self.pattern.dims)

    @property
    def dimension(self) -> int:
        """Of the changes."""
        if self.parts:
            return prod(self.shape)
        rest = prod(n for d, n in enumerate(self.tensor.shape) if d not in (*self.dims, *self.pattern.dims))
        return self.left * rest if self.dims else prod(self.shape)


@dataclass
class InvisibleStage(Additive):
    """Additive: an arbitrary tensor per writer."""

    program: c.Program
    patterns: PatternPass
    shifts: ShiftPass
    ranges: Ranges

    @property
    def found(self) -> list[Writer]:
        return self.writers

    def name(self, key: Writer) -> str:
        return f"invisible {key.tensor.name}"

    def moved(self, key: Writer) -> str:
        return f"invisible {self.program.coordinates[param_of(self.shifts.makers, key.tensor).name].name}"

    def dimension(self, key: Writer) -> int:
        return key.dimension

    def shape(self, key: Writer) -> tuple[int, ...]:
        return key.shape

    def width(self, key: Writer) -> int:
        return key.width

    @cached_property
    def writers(self) -> list[Writer]:
        out: list[Writer] = []
        kernels, patches = Kernels(self.program, self.shifts.sources, self.ranges), Patches(self.program)
        for t in self.shifts.sources.parts:
            pattern, found = self.patterns.of(t), []
            if pattern is not None and (len(pattern.dims) == 1 or not pattern.gains):
                found.append(Writer(t, pattern))
            elif pattern is None and (ignored := patches.of(t)) is not None and ignored.whole:
                found.append(Writer(t, ignored.pattern, parts=ignored.divided))
            for dims in _choices(t):
                if (left := kernels.left(t, dims)) > 0:
                    found.append(Writer(t, Pattern(frozenset()), dims, kernels.seen(t, dims), left))
            if (left := kernels.left(t, whole := tuple(sorted(full(t))), even=True)) > 0:
                found.append(Writer(t, Pattern(frozenset()), whole, kernels.seen(t, whole, even=True), left))
            out += [max(found, key=lambda w: w.dimension)] if found else []
        known = {w.tensor for w in out}
        held = [s for s in self.shifts.sources if s in self.shifts.dead or s in self.shifts.solved]
        out += [w for s in held if s.tensor not in known for w in self._constant(s, kernels)]
        known = {w.tensor for w in out}
        out += [w for s in held if s.tensor not in known and s not in self.shifts.solved for w in self._edged(s)]
        return sorted(out, key=lambda w: w.tensor.name)

    def _edged(self, s: Source) -> Iterator[Writer]:
        """What a kernel with edges may add along a relation that it reads, where all of it cancels at every place."""
        e = s.entries[0]
        taps = e.taps.silent() if e.taps is not None and s.kind == "relation" and e.tensor is s.tensor else None
        if taps is not None and e.way is not None and (len(e.way.dims) == 1 or not e.way.gains):
            yield Writer(s.tensor, e.way, taps=taps)

    def _constant(self, s: Source, kernels: Kernels) -> Iterator[Writer]:
        """Constants that the reader of a relation adds: those of which nothing is seen."""
        e = s.entries[0]
        if s.kind != "relation" or e.tensor is not s.tensor or e.way is None or not isinstance(e.at, c.Contract):
            return
        _, _, xl, labels = self.shifts.sources.operands(e.at)
        dims = tuple(sorted(full(s.tensor) - e.way.dims))
        if any(labels[d] in xl or labels[d] not in e.at.out_labels for d in dims):
            return
        behind = tuple(e.at.out_labels.index(labels[d]) for d in dims)
        if (left := kernels.left(e.at.out, behind, even=True)) > 0:
            yield Writer(s.tensor, e.way, dims, kernels.seen(e.at.out, behind, even=True), left)

    def act(self, values: Mapping[Writer, Tensor], params: Coordinates) -> Coordinates:
        new = dict(params)
        for w, value in values.items():
            name = param_of(self.shifts.makers, w.tensor).name
            for d, labels in w.parts.items():
                value = value.index_select(d, torch.tensor(labels))
            delta = (value if w.taps is None else w.taps.spread(value)).expand(w.tensor.shape)
            if w.dims:
                sizes = tuple(w.tensor.shape[d] for d in w.dims)
                delta = along(projector(self.shifts.makers, w.seen, sizes, params), w.dims, delta)
            if w.pattern.gains:
                (dim,) = w.pattern.dims
                v = gain_product(w.pattern.gains, params, w.pattern.tiles)
                assert isinstance(v, torch.Tensor)
                delta = delta * v.reshape([-1 if d == dim else 1 for d in range(delta.ndim)])
            new[name] = add_to_view(self.shifts.makers, w.tensor, new[name], delta)
        return new


def _choices(t: c.Tensor) -> list[tuple[int, ...]]:
    """Dimensions along which a change of a parameter may have a fixed direction."""
    wide = tuple(sorted(full(t)))
    return [(d,) for d in wide] + [wide[:n] for n in range(2, len(wide) + 1)]
