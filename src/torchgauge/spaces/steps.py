"""Linear maps whose numbers are parameters, as steps: what kernels and ranges are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from torchgauge.spaces import constraints as c

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Map:
    """Multiply by a weight and sum over what both have; the change's labels before and after."""

    weight: c.Tensor
    before: tuple[str, ...]
    labels: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class Scale:
    """Multiply by gain^power along one of the change's axes."""

    gain: c.Tensor
    power: int
    axis: int


@dataclass(frozen=True)
class View:
    """Bring the change's axes into an order, narrow one of them, or regroup them."""

    order: tuple[int, ...] | None = None
    narrow: tuple[int, int, int] | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Centre:
    """Take the mean off."""


@dataclass(frozen=True)
class Total:
    """Sum over some of the change's axes."""

    axes: tuple[int, ...]


@dataclass(frozen=True)
class Pad:
    """Become a part of a longer axis, with zeros beside it."""

    axis: int
    start: int
    size: int


@dataclass(frozen=True)
class Repeat:
    """Become the same at every index of a new axis."""

    axis: int
    size: int


@dataclass(frozen=True)
class Apart:
    """Become one change for every index along some axes, of the entries there, with zeros beside them."""

    axes: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Against:
    """Multiply by vectors that another tensor may hold, and sum over what is not kept."""

    span: frozenset[Generators]
    before: tuple[str, ...]
    after: tuple[str, ...]


Step = Map | Scale | View | Centre | Total | Pad | Repeat | Apart | Against


@dataclass(frozen=True)
class Generators:
    """Vectors that span a part of the values: where they start, and the steps that lead on.

    `start`: "all" vectors of the given sizes, "centred" all whose entries sum to zero, "ones" the constant one, the
    rows of a parameter, or of what linear maps make of parameters, along `dims`, or the sum of an offset. `part`: of
    such rows the first, or the others less the first.
    """

    start: c.Tensor | Literal["all", "centred", "ones"] | frozenset[Generators]
    sizes: tuple[int, ...]
    dims: Dims
    rows: int
    fixed: bool = False
    """Whether this is one vector that is added at every input, a part of the offset."""
    steps: tuple[Step, ...] = ()
    part: Literal["", "first", "others"] = ""

    def then(self, *steps: Step) -> Generators:
        rows = self.rows * prod(step.count for step in steps if isinstance(step, Apart))
        return replace(self, rows=rows, steps=(*self.steps, *steps))
