"""Where the axes of the solved frames sit in each parameter."""

from __future__ import annotations

from dataclasses import dataclass

from torchgauge.spaces.axes import Axis, Label
from torchgauge.spaces.frames import Value


@dataclass(frozen=True)
class Leg:
    """One unfolded axis of a parameter: its root, its label, and the unfolded dimension it stands on."""

    root: Axis
    label: Label
    dim: int


@dataclass(frozen=True)
class Unfolded:
    """A parameter on which every axis is unfolded: one dimension per leg."""

    sizes: tuple[int, ...]
    legs: tuple[Leg, ...]
    groups: tuple[int, ...]
    """For each unfolded dimension, the parameter's dimension that it is part of."""

    @property
    def roots(self) -> dict[int, Axis]:
        return {leg.dim: leg.root for leg in self.legs}


def unfolded(value: Value, shape: tuple[int, ...]) -> Unfolded:
    """Where the axes of a parameter stand."""
    sizes: list[int] = []
    groups: list[int] = []
    legs: list[Leg] = []
    for group, (dim, size) in enumerate(zip(value.dims, shape, strict=True)):
        leaves = [leaf for axis in dim for leaf in axis.leaves()]
        if not leaves:
            sizes.append(size)
            groups.append(group)
        for leaf in leaves:
            root, label = leaf.find()
            legs.append(Leg(root, label, len(sizes)))
            sizes.append(leaf.size)
            groups.append(group)
    return Unfolded(tuple(sizes), tuple(legs), tuple(groups))


def place_of(axis: Axis, roots: tuple[Axis, ...], groups: tuple[int, ...], dim: int) -> int:
    """The dimension where an index axis stands, as seen from `dim`: within the same parameter dimension if it can."""
    found = [i for i, root in enumerate(roots) if root is axis]
    near = [i for i in found if groups and groups[i] == groups[dim]]
    return (near or found or [-1])[0]
