"""What every method for time-ordered exponentials offers, and the samples of w that it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """w at the nodes of consecutive slices, in one tensor, so that nodes that two slices share are stored once.

    Attributes:
        values: [times, fields, d, d].
        offsets: node j of slice n is values[offsets[j] + n].
        count: number of slices, N.
    """

    values: Tensor
    offsets: tuple[int, ...]
    count: int

    def node(self, j: int, start: int = 0, stop: int | None = None) -> Tensor:
        """w at node j of the slices start..stop, a view [n, fields, d, d]."""
        stop = self.count if stop is None else stop
        return self.values[self.offsets[j] + start : self.offsets[j] + stop]

    def flat(self, j: int, start: int, stop: int) -> Tensor:
        """The same with slices and fields in one axis, [n · fields, d, d]."""
        return self.node(j, start, stop).flatten(0, 1)


class Method(ABC):
    """One way to integrate dW/dt = w(t) W over many slices at once, each from the identity.

    Attributes:
        name: what `wilson(method=...)` calls it.
        order: p; the error of a slice of length h is O(h^{p+1}).
        nodes: where it reads w, increasing fractions of a slice in [0, 1].
        group_preserving: whether w(t) in a matrix Lie algebra gives lines in its group to rounding, whatever the step.
    """

    name: str
    order: int
    nodes: tuple[float, ...]
    group_preserving: bool = False

    @abstractmethod
    def propagators(self, samples: Samples, steps: Tensor) -> Tensor:
        """The lines of the slices.

        Args:
            samples: w at the nodes.
            steps: lengths of the slices, [N], real; negative where time runs backwards.

        Returns:
            [N, fields, d, d], differentiable in the samples and the steps.
        """

    def transport(self, samples: Samples, steps: Tensor, vectors: Tensor) -> Tensor | None:
        """Vectors [N, fields, d, r] moved along the slices, without a gradient; None where lines cost no more."""
        return None


def column(steps: Tensor, like: Tensor) -> Tensor:
    """Steps [N] in the shape and dtype that multiplies matrices [N, fields, d, d]."""
    return steps.to(like.dtype).to(like.device)[:, None, None, None]


def transformed() -> bool:
    """Whether a transformation of torch.func or forward-mode differentiation is at work, which kernels are not for."""
    if torch._C._are_functorch_transforms_active():
        return True
    return torch.autograd.forward_ad._current_level >= 0
