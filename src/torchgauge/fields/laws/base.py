"""What a distribution over one parameter tensor is: how to draw it, its moments, and its declared symmetries."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]


class Kind(StrEnum):
    """Groups that act linearly on one axis of a parameter, and the shifts of its entries."""

    ORTHOGONAL = "orthogonal"
    SPECIAL_ORTHOGONAL = "special orthogonal"
    UNITARY = "unitary"
    SPECIAL_UNITARY = "special unitary"
    PERMUTATIONS = "permutations"
    SIGNS = "signs"
    PHASES = "phases"
    TRANSLATIONS = "translations"


_SUBGROUPS = {
    Kind.UNITARY: (Kind.SPECIAL_UNITARY, Kind.ORTHOGONAL, Kind.PHASES),
    Kind.SPECIAL_UNITARY: (Kind.SPECIAL_ORTHOGONAL,),
    Kind.ORTHOGONAL: (Kind.SPECIAL_ORTHOGONAL, Kind.PERMUTATIONS, Kind.SIGNS),
    Kind.PHASES: (Kind.SIGNS,),
}


@dataclass(frozen=True, order=True)
class Invariance:
    """A group under which a law is exactly invariant.

    Attributes:
        kind: the group. Matrix groups act along `axis`; real matrices act on complex parameters too.
        axis: the axis of the parameter it acts on (never negative); −1 for translations, which act on entries.
        start: first index of the axis that moves.
        stop: one past the last index that moves; the others stay.
        period: translations alone: every entry may be shifted by its own amount modulo this period.
    """

    kind: Kind
    axis: int
    start: int = 0
    stop: int = 0
    period: float = 0.0

    def __str__(self) -> str:
        if self.kind is Kind.TRANSLATIONS:
            return f"translations of entries modulo {self.period:g}"
        return f"{self.kind} on axis {self.axis}[{self.start}:{self.stop}]"


def closed(found: Iterable[Invariance]) -> frozenset[Invariance]:
    """With every subgroup that follows."""
    todo, done = list(found), set()
    while todo:
        one = todo.pop()
        if one not in done:
            done.add(one)
            todo += [Invariance(k, one.axis, one.start, one.stop, one.period) for k in _SUBGROUPS.get(one.kind, ())]
    return frozenset(done)


def whole(kind: Kind, shape: Shape, axes: Iterable[int] | None = None) -> list[Invariance]:
    """The group on the whole of each axis."""
    return [Invariance(kind, a, 0, shape[a]) for a in (range(len(shape)) if axes is None else axes)]


class Law(ABC):
    """A distribution over one parameter tensor."""

    @abstractmethod
    def sample(
        self, count: int, shape: Shape, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Independent draws [count, *shape]. A complex dtype asks for complex parameters."""

    @abstractmethod
    def moment_order(self) -> float:
        """The absolute moments of an entry exist for every order strictly below this one.

        `math.inf` where all exist, `nan` where it is not known.
        """

    @abstractmethod
    def invariances(self, shape: Shape, dtype: torch.dtype = torch.float64) -> frozenset[Invariance]:
        """Every declared invariance, with its subgroups. Sound, not necessarily complete."""

    def independent(self, shape: Shape, axis: int) -> bool:
        """Whether the slices along `axis` are independent and identically distributed."""
        return False

    def moment(self, order: int) -> float | None:
        """E[w^order] of an entry, if all entries are independent and real with one distribution; else None."""
        return None

    def invariant(self, kind: Kind, axis: int, shape: Shape, dtype: torch.dtype = torch.float64) -> bool:
        """Whether the group acts on the whole of `axis` without a change of the law."""
        axis = axis % len(shape) if shape and kind is not Kind.TRANSLATIONS else -1
        for one in self.invariances(shape, dtype):
            if one.kind is kind and one.axis == axis:
                if kind is Kind.TRANSLATIONS or (one.start == 0 and one.stop == shape[axis]):
                    return True
        return False


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the real part."""
    return dtype.to_real() if dtype.is_complex else dtype


def standard_normal(shape: Shape, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers, circular where complex (E|w|² = 1).

    Many numbers in double precision come from NumPy's SFC64 generator, seeded by `generator`: twice as fast.
    """
    if real_dtype(dtype) != torch.float64 or math.prod(shape) < 4096:
        return torch.randn(shape, generator=generator, dtype=dtype)
    source = np.random.Generator(np.random.SFC64(int(torch.randint(0, 2**62, (), generator=generator))))
    if not dtype.is_complex:
        return torch.from_numpy(source.standard_normal(shape))
    return torch.view_as_complex(torch.from_numpy(source.standard_normal((*shape, 2)))).mul_(math.sqrt(0.5))
