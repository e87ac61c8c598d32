"""The third stage of a group element: writers add anything along directions that no reader sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from torchgauge.action.shift_action import Coordinates, add_to_view, gain_product, param_of
from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import Pattern, PatternPass
from torchgauge.spaces.shifts import ShiftPass


@dataclass(frozen=True, eq=False)
class Writer:
    """A view of a parameter whose changes along `pattern` are invisible."""

    tensor: c.Tensor
    pattern: Pattern

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the arbitrary factor."""
        return tuple(1 if d in self.pattern.dims else n for d, n in enumerate(self.tensor.shape))

    @property
    def width(self) -> int:
        """Length of the invisible direction."""
        return prod(self.tensor.shape[d] for d in self.pattern.dims)


@dataclass
class InvisibleStage:
    """Additive: an arbitrary tensor per writer."""

    program: c.Program
    patterns: PatternPass
    shifts: ShiftPass

    @cached_property
    def writers(self) -> list[Writer]:
        out = []
        for t in self.shifts.sources.parts:
            pattern = self.patterns.of(t)
            if pattern is not None and (len(pattern.dims) == 1 or not pattern.gains):
                out.append(Writer(t, pattern))
        return sorted(out, key=lambda w: w.tensor.name)

    def act(self, values: Mapping[Writer, Tensor], params: Coordinates) -> Coordinates:
        new = dict(params)
        for w, value in values.items():
            name = param_of(self.shifts.makers, w.tensor).name
            delta = value.expand(w.tensor.shape)
            if w.pattern.gains:
                (dim,) = w.pattern.dims
                v = gain_product(w.pattern.gains, params)
                assert isinstance(v, torch.Tensor)
                delta = delta * v.reshape([-1 if d == dim else 1 for d in range(delta.ndim)])
            new[name] = add_to_view(self.shifts.makers, w.tensor, new[name], delta)
        return new
