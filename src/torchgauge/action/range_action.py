"""The fourth stage of a group element: readers change across what reaches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
            shape = [r.tensor.shape[d] for d in r.changed]
            basis = across(makers, r, params)
            change = value @ basis.T @ basis
            weight = change[..., : change.shape[-1] - (r.bias is not None)]
            placed = weight.reshape(*weight.shape[:-1], *shape)
            order = [*r.rest, *r.changed]
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
    """An orthonormal basis [changes, size] of what no value x, or (x, 1) in front of a bias, has a part along.

    A kernel reads a value at each of its positions: any of the span at any of them, and the offset at those that meet
    no padding.
    """
    offset = offset_of(makers, reader.span, coordinates)
    loose = [vectors(makers, g, coordinates) for g in ordered(reader.span) if not g.fixed]
    inside = torch.ones(1, 1, dtype=torch.float64) if reader.inside is None else reader.inside
    biased = reader.bias is not None
    channels, taps = (reader.size - biased) // inside.shape[1], inside.shape[1]
    away = _complement([v.reshape(v.shape[0], -1) for v in loose], channels)
    point = torch.zeros(1, channels, dtype=torch.float64) if offset is None else offset.reshape(1, -1)
    met = torch.kron(point @ away.T, inside)
    met = torch.nn.functional.pad(met, (0, biased), value=1.0)
    free = _complement([met], met.shape[1])
    # a bias that no change needs stays as it is, and not up to rounding
    free = torch.where(free.abs() > ROUNDING, free, 0.0)
    last = free[:, len(away) * taps :]
    whole = torch.einsum("fat,ac->fct", free[:, : len(away) * taps].reshape(-1, len(away), taps), away)
    return torch.cat([whole.reshape(len(free), -1), last], 1)


def _complement(rows: Sequence[Tensor], size: int) -> Tensor:
    """An orthonormal basis of what is orthogonal to all rows."""
    found = [v / v.norm(dim=1, keepdim=True).clamp_min(1e-30) for v in rows]
    together = torch.cat([torch.zeros(1, size, dtype=torch.float64), *found])
    _, sizes, right = torch.linalg.svd(together)
    return right[int((sizes > ROUNDING * sizes[0]).sum()) :]
