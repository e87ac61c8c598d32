"""The last stage of a group element: parameters that only constants are computed from, which biases take up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.action.additive import Additive
from torchgauge.action.shift_action import Coordinates
from torchgauge.spaces import constraints as c


@dataclass(frozen=True, eq=False)
class Free:
    """A parameter with the places [n] of its entries that nothing reads but for constants."""

    name: str
    places: Tensor


@dataclass
class FreeStage(Additive):
    """Additive: arbitrary changes of entries, in coordinates that hold every constant where it is."""

    program: c.Program
    entries: list[Free]

    @property
    def found(self) -> list[Free]:
        return self.entries

    def name(self, key: Free) -> str:
        return f"free {key.name}"

    def moved(self, key: Free) -> str:
        return f"free {self.program.coordinates[key.name].name}"

    def dimension(self, key: Free) -> int:
        return key.places.numel()

    def shape(self, key: Free) -> tuple[int, ...]:
        return (key.places.numel(),)

    def width(self, key: Free) -> int:
        return self.program.params[key.name].shape[-1] if self.program.params[key.name].ndim else 1

    def act(self, values: Mapping[Free, Tensor], params: Coordinates) -> Coordinates:
        new = dict(params)
        for key, value in values.items():
            old = new[key.name]
            flat = torch.zeros(old.numel(), dtype=torch.float64).index_add(0, key.places, value)
            new[key.name] = old + flat.reshape(old.shape)
        return new
