"""Where the axes of the solved frames sit in each parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from torchgauge.spaces.axes import Axis, Label
from torchgauge.spaces.frames import Value


@dataclass(frozen=True)
class Leg:
    """One unfolded axis of a parameter block: its root, its label, and the dimension of the block it stands on."""

    root: Axis
    label: Label
    dim: int
    group: int = 0
    """The parameter's own dimension that it is part of."""


@dataclass(frozen=True)
class Block:
    """A rectangular part of a parameter on which every axis is unfolded (concatenations give several)."""

    path: tuple[tuple[int, int, int, tuple[int, ...]], ...]
    """Steps (dim, start, length, sizes): narrow a dimension, then unfold it."""
    sizes: tuple[int, ...]
    legs: tuple[Leg, ...]
    choices: tuple[tuple[Axis, int, int], ...] = ()
    """(concatenated axis, number of the summand, dimension of the parameter) that single out this block."""
    groups: tuple[int, ...] = ()
    """For each dimension of the block, the parameter's dimension that it is part of."""

    def choice(self, whole: Axis, group: int | None) -> int:
        """Which summand of an axis this block holds, as seen from one dimension of the parameter."""
        found = [(index, g) for axis, index, g in self.choices if axis is whole]
        near = [index for index, g in found if g == group]
        return (near or [index for index, _ in found] or [0])[0]

    def view(self, tensor: Tensor) -> Tensor:
        """The block as a view of the (contiguous) parameter."""
        out = tensor
        for dim, start, length, sizes in self.path:
            out = out.narrow(dim, start, length)
            if sizes != (length,):
                out = out.unflatten(dim, sizes) if sizes else out.squeeze(dim)
        return out


def place_of(axis: Axis, roots: tuple[Axis, ...], groups: tuple[int, ...], dim: int) -> int:
    """The dimension where an index axis stands, as seen from `dim`: within the same parameter dimension if it can."""
    found = [i for i, root in enumerate(roots) if root is axis]
    near = [i for i in found if groups and groups[i] == groups[dim]]
    return (near or found or [-1])[0]


def blocks(value: Value, shape: tuple[int, ...]) -> list[Block]:
    """All blocks of a parameter with the given axes."""
    return list(_unfold([list(d) for d in value.dims], shape, (), (), tuple(range(len(shape)))))


def _unfold(
    dims: list[list[Axis]], shape: tuple[int, ...], path: tuple, choices: tuple, groups: tuple[int, ...]
) -> Iterator[Block]:
    for i, dim in enumerate(dims):
        leaves = [leaf for a in dim for leaf in a.leaves()]
        if len(leaves) == 1 and leaves[0].root.summands:
            start, whole = 0, leaves[0].root
            for index, child in enumerate(leaves[0].children()):
                rest = [*dims[:i], [child], *dims[i + 1 :]]
                narrowed = (*shape[:i], child.size, *shape[i + 1 :])
                step = (i, start, child.size, (child.size,))
                yield from _unfold(rest, narrowed, (*path, step), (*choices, (whole, index, groups[i])), groups)
                start += child.size
            return
        if len(leaves) > 1:
            sizes = tuple(a.size for a in leaves)
            rest = [*dims[:i], *([a] for a in leaves), *dims[i + 1 :]]
            unfolded = (*shape[:i], *sizes, *shape[i + 1 :])
            origin = (*groups[:i], *(groups[i] for _ in sizes), *groups[i + 1 :])
            yield from _unfold(rest, unfolded, (*path, (i, 0, shape[i], sizes)), choices, origin)
            return
    legs = []
    for i, dim in enumerate(dims):
        for axis in dim:
            root, label = (axis.leaves()[0]).find()
            legs.append(Leg(root, label, i, groups[i]))
    yield Block(path, shape, tuple(legs), choices, groups)
