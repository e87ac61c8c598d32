"""The last stage: rows of tables are scaled, each about what is added to it. Exact where no norm has an ε."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.action.additive import Additive
from torchgauge.action.shift_action import Coordinates
from torchgauge.spaces import constraints as c
from torchgauge.spaces.row_scales import Table


@dataclass
class RowScaleStage(Additive):
    """Additive: the logarithm of the scale of every row. What is added to the rows stands still meanwhile."""

    program: c.Program
    tables: tuple[Table, ...]

    @property
    def found(self) -> tuple[Table, ...]:
        return self.tables

    def name(self, key: Table) -> str:
        return f"rows of {key.tensor.name}"

    def moved(self, key: Table) -> str:
        return f"rows of {self.program.coordinates[key.tensor.name].name}"

    def dimension(self, key: Table) -> int:
        return key.tensor.shape[0]

    def shape(self, key: Table) -> tuple[int, ...]:
        return (key.tensor.shape[0],)

    def width(self, key: Table) -> int:
        return 1

    def act(self, values: Mapping[Table, Tensor], params: Coordinates) -> Coordinates:
        new = dict(params)
        for table, value in values.items():
            rows = params[table.tensor.name]
            away = torch.zeros(rows.shape[1:], dtype=rows.dtype)
            for tensor, row, factor in table.offsets:
                away = away + factor * params[tensor.name].reshape(-1, *rows.shape[1:])[row]
            scale = value.exp().reshape(-1, *[1] * (rows.ndim - 1))
            new[table.tensor.name] = scale * (rows + away) - away
        return new
