"""Kernels in numbers: the projector onto the directions that the readers of a writer do not see."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from torchgauge.action.shift_action import Coordinates, computed_value, static_value
from torchgauge.groups.matrices import complement
from torchgauge.spaces import constraints as c
from torchgauge.spaces.kernels import Block, Seen
from torchgauge.spaces.steps import Against, Apart, Centre, Generators, Map, Pad, Repeat, Scale, Step, Total


def projector(
    makers: Mapping[c.Tensor, c.Constraint], seen: Seen, sizes: tuple[int, ...], coordinates: Coordinates
) -> Tensor:
    """The orthogonal projector [n, n] onto what is not seen, n the product of `sizes`."""
    n = prod(sizes)
    start = torch.eye(n, dtype=torch.float64).reshape(n, *sizes)
    blocks = sorted(seen or (), key=lambda block: repr(block))
    if not blocks:
        return torch.eye(n, dtype=torch.float64)
    conditions = torch.cat([_conditions(makers, block, start, coordinates) for block in blocks], 1)
    return torch.eye(n, dtype=torch.float64) - conditions @ torch.linalg.pinv(conditions)


def _conditions(
    makers: Mapping[c.Tensor, c.Constraint], block: Block, change: Tensor, coordinates: Coordinates
) -> Tensor:
    for step in block.steps:
        change = stepped(makers, step, change, coordinates)
    flat = change.reshape(change.shape[0], -1)
    return flat @ complement(flat.shape[1]) if block.end == "centred" else flat


def stepped(makers: Mapping[c.Tensor, c.Constraint], step: Step, change: Tensor, coordinates: Coordinates) -> Tensor:
    """One step of a batch of changes [batch, ...]."""
    if isinstance(step, Map):
        weight = static_value(makers, step.weight, coordinates)
        letters = {a: chr(98 + i) for i, a in enumerate(dict.fromkeys((*step.before, *step.labels)))}
        spec = ["".join(letters[a] for a in labels) for labels in (step.before, step.labels, step.after)]
        return torch.einsum(f"a{spec[0]},{spec[1]}->a{spec[2]}", change, weight)
    if isinstance(step, Scale):
        gain = static_value(makers, step.gain, coordinates).reshape(-1) ** step.power
        return change * gain.reshape([-1 if d == step.axis + 1 else 1 for d in range(change.ndim)])
    if isinstance(step, Against):
        offset = offset_of(makers, step.span, coordinates)
        found = [vectors(makers, g, coordinates) for g in ordered(step.span) if not g.fixed]
        met = torch.cat([*found, *([] if offset is None else [offset])])
        letters = {a: chr(99 + i) for i, a in enumerate(step.before)}
        before, after = ("".join(letters[a] for a in labels) for labels in (step.before, step.after))
        return torch.einsum(f"a{before},b{before}->ab{after}", change, met)
    if isinstance(step, Centre):
        return change - change.mean(tuple(range(1, change.ndim)), keepdim=True)
    if isinstance(step, Total):
        return change.sum([axis + 1 for axis in step.axes])
    if isinstance(step, Pad):
        behind = step.size - step.start - change.shape[step.axis + 1]
        sides = [0, 0] * (change.ndim - step.axis - 2) + [step.start, behind]
        return torch.nn.functional.pad(change, sides)
    if isinstance(step, Repeat):
        return change.unsqueeze(step.axis + 1).repeat_interleave(step.size, step.axis + 1)
    if isinstance(step, Apart):
        sizes = [n if d in step.axes else 1 for d, n in enumerate(change.shape[1:])]
        one_each = torch.eye(step.count, dtype=torch.float64).reshape(1, step.count, *sizes)
        return (change[:, None] * one_each).reshape(-1, *change.shape[1:])
    if step.order is not None:
        change = change.permute(0, *(i + 1 for i in step.order))
    if step.narrow is not None:
        axis, start, stop = step.narrow
        change = change.narrow(axis + 1, start, stop - start)
    return change if step.shape is None else change.reshape(change.shape[0], *step.shape)


def along(projection: Tensor, dims: tuple[int, ...], value: Tensor) -> Tensor:
    """A symmetric matrix applied along some dimensions of a tensor."""
    rest = [d for d in range(value.ndim) if d not in dims]
    order = [*rest, *dims]
    moved = value.permute(order)
    flat = moved.reshape(-1, projection.shape[0]) @ projection
    return flat.reshape(moved.shape).permute([order.index(d) for d in range(value.ndim)])


def offset_of(
    makers: Mapping[c.Tensor, c.Constraint], span: frozenset[Generators], coordinates: Coordinates
) -> Tensor | None:
    parts = [vectors(makers, g, coordinates) for g in ordered(span) if g.fixed]
    return torch.stack(parts).sum(0) if parts else None


def vectors(makers: Mapping[c.Tensor, c.Constraint], g: Generators, coordinates: Coordinates) -> Tensor:
    """Generators as numbers [rows, sizes of the dimensions...]."""
    if isinstance(g.start, frozenset):
        found = offset_of(makers, g.start, coordinates)
        assert found is not None
    elif isinstance(g.start, c.Tensor):
        value = computed_value(makers, g.start, coordinates)
        rest = [d for d in range(value.ndim) if d not in g.dims]
        found = value.permute(*rest, *g.dims).reshape(-1, *g.sizes)
        found = {"": found, "first": found[:1], "others": found[1:] - found[:1]}[g.part]
    elif g.start == "ones":
        found = torch.ones(1, *g.sizes, dtype=torch.float64)
    else:
        n = prod(g.sizes)
        found = torch.eye(n, dtype=torch.float64) if g.start == "all" else complement(n).T
        found = found.reshape(-1, *g.sizes)
    for step in g.steps:
        found = stepped(makers, step, found, coordinates)
    return found


def ordered(span: frozenset[Generators]) -> list[Generators]:
    """The same order in every process."""
    return sorted(span, key=_key)


def _key(g: Generators) -> str:
    start = sorted(map(_key, g.start)) if isinstance(g.start, frozenset) else g.start
    return repr((start, g.sizes, g.dims, g.rows, g.fixed, g.steps, g.part))
