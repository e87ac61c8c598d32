"""Windows with edges: which changes of a kernel's positions add the same at every place, padding or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

Reach = tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]
"""By label of a kernel: its positions that lie inside what is read, at every kind of place of the result."""
Still = tuple[tuple[str, str, str, int, int], ...]
"""Of convolutions without strides, by dimension: labels of kernel, source and result, padding, steps between taps."""


@dataclass(frozen=True, eq=False)
class Taps:
    """Changes of a kernel along its positions adding the same at every place; `basis` [how many, *sizes of `dims`]."""

    dims: tuple[int, ...]
    basis: Tensor
    inside: Tensor
    """One for the positions inside at one of the places [*sizes of `dims`]."""

    @property
    def shape(self) -> dict[int, int]:
        """Sizes of the coordinates along `dims`: all changes along the first."""
        return {d: len(self.basis) if d == self.dims[0] else 1 for d in self.dims}

    def spread(self, value: Tensor) -> Tensor:
        """Coordinates as a change of the kernel."""
        first, *others = self.dims
        whole = torch.tensordot(value.movedim(first, -1), self.basis.to(value.dtype), 1)
        # the dimensions of the kernel come last; those of size one stand where they stood
        kept = [d for d in range(value.ndim) if d != first]
        whole = whole.squeeze([kept.index(d) for d in others]) if others else whole
        order = [*(d for d in kept if d not in others), *self.dims]
        return whole.permute([order.index(d) for d in range(value.ndim)])

    def silent(self) -> Taps | None:
        """Those of the changes that add nothing at any place."""
        sums = (self.basis * self.inside).flatten(1).sum(1, keepdim=True)
        left = torch.linalg.svd(sums.T, full_matrices=True).Vh
        basis = left[1 if float(sums.abs().max()) > 1e-9 else 0 :] @ self.basis.flatten(1)
        return replace(self, basis=basis.reshape(-1, *self.inside.shape)) if len(basis) else None

    def seen(self, change: Tensor) -> Tensor:
        """A change of the kernel, with zeros where the place looks at the padding."""
        shape = [self.inside.shape[self.dims.index(d)] if d in self.dims else 1 for d in range(change.ndim)]
        return change * self.inside.reshape(shape)


def taps(reach: Reach, labels: tuple[str, ...], shape: tuple[int, ...]) -> Taps | None:
    """All changes of the positions of a kernel whose sum over those inside is the same at every place."""
    found = places(reach, labels, shape)
    if found is None:
        return None
    dims, inside = found
    sizes, rows = inside.shape[1:], inside.flatten(1)
    _, values, right = torch.linalg.svd(rows - rows[0])
    rank = int((values > 1e-9 * prod(sizes)).sum())
    basis = right[rank:]
    return Taps(dims, basis.reshape(-1, *sizes), inside[0]) if len(basis) else None


def places(reach: Reach, labels: tuple[str, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor] | None:
    """Dimensions of a kernel that are its positions, and one for those inside, by kind of place [kinds, *sizes]."""
    if not reach or any(a not in labels for a, _ in reach):
        return None
    dims = tuple(labels.index(a) for a, _ in reach)
    inside = torch.ones(1, dtype=torch.float64)
    for d, (_, found) in zip(dims, reach, strict=True):
        mask = torch.zeros(len(found), shape[d], dtype=torch.float64)
        for i, positions in enumerate(found):
            mask[i, list(positions)] = 1.0
        inside = torch.tensordot(inside, mask, 0).movedim(-2, 1).flatten(0, 1)
    return dims, inside
