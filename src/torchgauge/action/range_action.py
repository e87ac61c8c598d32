"""The fourth stage of a group element: readers change across what reaches them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torchgauge.action.additive import Additive
from torchgauge.action.kernel_action import offset_of, ordered, vectors
from torchgauge.action.shift_action import Coordinates, add_to_view, param_of
from torchgauge.spaces import constraints as c
from torchgauge.spaces.ranges import Ranges, Reader
from torchgauge.spaces.sources import Sources

ROUNDING = 1e-13
"""Of unit vectors: what is left of one that depends on the others."""


@dataclass
class RangeStage(Additive):
    """Additive: an arbitrary tensor per reader, of which the part across the range counts."""

    program: c.Program
    ranges: Ranges

    @property
    def sources(self) -> Sources:
        return self.ranges.sources

    @property
    def found(self) -> list[Reader]:
        return self.readers

    def name(self, key: Reader) -> str:
        return f"across {key.tensor.name}"

    def moved(self, key: Reader) -> str:
        return f"across {self.program.coordinates[param_of(self.sources.makers, key.tensor).name].name}"

    def dimension(self, key: Reader) -> int:
        return key.dimension

    def shape(self, key: Reader) -> tuple[int, ...]:
        return key.shape

    def width(self, key: Reader) -> int:
        return key.size

    @cached_property
    def readers(self) -> list[Reader]:
        return sorted(self.ranges.readers(), key=lambda r: r.tensor.name)

    def act(self, values: Mapping[Reader, Tensor], params: Coordinates) -> Coordinates:
        """Readers as they were give projectors, which the change itself leaves alone."""
        new, makers = dict(params), self.sources.makers
        for r, value in values.items():
            shape = [r.tensor.shape[d] for d in r.dims]
            change = value @ across(makers, r, params)
            weight = change[..., : change.shape[-1] - (r.bias is not None)]
            placed = weight.reshape(*weight.shape[:-1], *shape)
            order = [*r.rest, *r.dims]
            placed = placed.permute([order.index(d) for d in range(r.tensor.ndim)])
            name = param_of(makers, r.tensor).name
            new[name] = add_to_view(makers, r.tensor, new[name], placed)
            if r.bias is not None:
                # the bias has the dimensions that the reader keeps, in an order of its own
                wide = [d for d in r.rest if r.tensor.shape[d] > 1]
                off = change[..., -1].reshape([r.tensor.shape[d] for d in wide])
                off = off.permute([wide.index(d) for d in r.order]).reshape(r.bias.shape)
                name = param_of(makers, r.bias).name
                new[name] = add_to_view(makers, r.bias, new[name], off)
        return new


def across(makers: Mapping[c.Tensor, c.Constraint], reader: Reader, coordinates: Coordinates) -> Tensor:
    """The orthogonal projector onto what no value x, or (x, 1) in front of a bias, has a part along."""
    offset = offset_of(makers, reader.span, coordinates)
    loose = [vectors(makers, g, coordinates) for g in ordered(reader.span) if not g.fixed]
    rows = [v.reshape(v.shape[0], -1) for v in loose]
    if reader.bias is not None:
        rows = [torch.nn.functional.pad(v, (0, 1)) for v in rows]
        point = torch.zeros(1, reader.size - 1, dtype=torch.float64) if offset is None else offset.reshape(1, -1)
        rows.append(torch.cat([point, torch.ones(1, 1, dtype=torch.float64)], 1))
    elif offset is not None:
        rows.append(offset.reshape(1, -1))
    eye = torch.eye(reader.size, dtype=torch.float64)
    if not rows:
        return eye
    together = torch.cat(rows)
    together = together / together.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return eye - torch.linalg.pinv(together, rtol=ROUNDING) @ together
