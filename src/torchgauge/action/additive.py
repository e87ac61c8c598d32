"""What the stages behind the frames have in common: each is an additive group."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from torchgauge.spaces.constraints import Program


class Additive(ABC):
    """A stage whose elements are tensors by key, one key for every family of generators, composed by addition."""

    program: Program
    """In whose coordinates it acts."""
    chosen: Sequence[Any] | None = None

    @property
    def free(self) -> Sequence[Any]:
        """The keys of its families of generators."""
        return self.found if self.chosen is None else self.chosen

    @property
    @abstractmethod
    def found(self) -> Sequence[Any]:
        """All that there are."""

    @abstractmethod
    def shape(self, key: Any) -> tuple[int, ...]:
        """Of the coordinates of one family."""

    @abstractmethod
    def width(self, key: Any) -> int:
        """How many entries a reader of what is moved sums, roughly: sets the size of random elements."""

    @abstractmethod
    def dimension(self, key: Any) -> int:
        """Of one family."""

    @abstractmethod
    def name(self, key: Any) -> str:
        """What a family is called."""

    @abstractmethod
    def moved(self, key: Any) -> str:
        """How a family moves which parameter of the model first."""

    @abstractmethod
    def act(self, values: Mapping[Any, Tensor], params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Coordinates moved by an element."""

    def beyond(self, known: Iterable[Additive]) -> Self:
        """The families of parameters for which the known stages find less."""
        found: dict[str, int] = {}
        for stage in known:
            for key in stage.free:
                found[stage.moved(key)] = found.get(stage.moved(key), 0) + stage.dimension(key)
        rest = copy.copy(self)
        rest.chosen = [key for key in self.free if self.dimension(key) > found.get(self.moved(key), 0)]
        return rest
