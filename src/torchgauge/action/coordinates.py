"""From state dicts to the tensors that the group moves, and back.

Most coordinates are the parameters themselves; a (1 + weight) gain is moved as 1 + weight, and the bias of a batch
norm in evaluation mode as what it adds to the scaled input: bias − weight·mean/σ. If the norm has no bias, the one of
the linear map in front is moved as bias − mean. A bias that has taken up a constant is moved as the sum of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from torchgauge.action.computed import COMPUTED, Values, parameter
from torchgauge.action.computed import coordinate as computed
from torchgauge.errors import InputError
from torchgauge.spaces.constraints import Coordinate, Program, View

Params = Mapping[str, Tensor]
Pieces = list[tuple[tuple[View, ...], Tensor]]
"""Parts of one tensor: the views that lead to each, and its value."""
BIASES = ("batch_norm_bias", "centred_bias")
"""Kinds of coordinates that hold a running mean."""


def encode(program: Program, ties: Mapping[str, str], params: Params) -> dict[str, Tensor]:
    """Coordinates in float64, keyed by canonical parameter name, "buffer:" for batch-norm scales."""
    canonical = _canonical(ties, params)

    def get(name: str) -> Tensor:
        if name not in canonical:
            raise InputError(
                f"the state dict has no tensor named {name!r}",
                remedy="pass model.state_dict() of the model that the group was inferred from",
            )
        return canonical[name].double()

    out: dict[str, Tensor] = {}
    values = Values({}, get, {})
    for key, coordinate in program.coordinates.items():
        value = get(coordinate.name)
        _check(coordinate, value, program.params[key].shape)
        moved = coordinate.kind in COMPUTED
        value = computed(coordinate, values, value) if moved else _encoded(coordinate, value, get)
        out[key] = _part(value, coordinate.views)
    for key, coordinate in program.buffer_coordinates.items():
        out[f"buffer:{key}"] = _part(_encoded(coordinate, get(coordinate.name), get), coordinate.views)
        for other in statistics(program, key):
            out[f"raw:{key}:{other}"] = _part(get(other), coordinate.views)
    return out


def _check(coordinate: Coordinate, value: Tensor, shape: tuple[int, ...]) -> None:
    fits = value.numel() == prod(coordinate.views[0][0]) if coordinate.views else tuple(value.shape) == shape
    if not fits:
        wanted = coordinate.views[0][0] if coordinate.views else shape
        raise InputError(
            f"{coordinate.name} has shape {tuple(value.shape)}, the group was inferred for {wanted}",
            remedy="infer the group again from a model of this shape",
        )


def _part(value: Tensor, views: tuple[View, ...]) -> Tensor:
    for shape, dim, start, stop in views:
        value = value.reshape(shape).narrow(dim, start, stop - start)
    return value


def _encoded(coordinate: Coordinate, value: Tensor, get) -> Tensor:
    if coordinate.kind == "offset":
        return value + coordinate.offset
    if coordinate.kind == "batch_norm_bias":
        weight, mean, var = coordinate.refs
        scale = torch.rsqrt(get(var) + coordinate.eps)
        return value - (get(weight) if weight else 1.0) * get(mean) * scale
    if coordinate.kind == "centred_bias":
        return value - get(coordinate.refs[1])
    if coordinate.kind == "inverse_std":
        return torch.rsqrt(value + coordinate.eps)
    return value


def decode(
    program: Program, ties: Mapping[str, str], params: Params, coordinates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A state dict like `params` with moved coordinates, floating tensors in float64."""
    canonical = _canonical(ties, params)

    def get(name: str) -> Tensor:
        return canonical[name].double()

    new: dict[str, Tensor] = {}
    statistic: dict[str, Pieces] = {}
    for key, coordinate in program.buffer_coordinates.items():
        for other in statistics(program, key):
            statistic.setdefault(other, []).append((coordinate.views, coordinates[f"raw:{key}:{other}"]))
    for name, pieces in statistic.items():
        new[name] = _joined(get(name), pieces)
    parts: dict[str, Pieces] = {}
    for key, coordinate in program.coordinates.items():
        parts.setdefault(coordinate.name, []).append((coordinate.views, coordinates[key]))
    kinds = {coordinate.name: coordinate for coordinate in program.coordinates.values()}
    # biases at a batch norm are read off last, from the moved scale and statistics
    wholes: dict[str, Tensor] = {}
    before = Values({}, get, {})
    for name in sorted(parts, key=lambda n: kinds[n].kind in BIASES):
        coordinate = kinds[name]
        moved = coordinate.kind in COMPUTED
        if coordinate.views:
            old = get(name)
            old = computed(coordinate, before, old) if moved else _encoded(coordinate, old, get)
            wholes[name] = _joined(old, parts[name])
        else:
            wholes[name] = parts[name][0][1]
        if not moved:
            new[name] = _decoded(coordinate, wholes[name], new)
    values = Values(wholes, lambda name: new[name] if name in new else get(name), kinds)
    for name in (n for n in parts if kinds[n].kind in COMPUTED):
        new[name] = parameter(kinds[name], values, wholes[name])
    out: dict[str, Tensor] = {}
    for name, old in params.items():
        source = ties.get(name, name)
        if source != name and source in out:
            out[name] = out[source]
        elif source in new:
            out[name] = new[source]
        else:
            out[name] = old.double() if old.is_floating_point() else old
    return out


def cast_like(params: Params, moved: Params, ties: Mapping[str, str]) -> dict[str, Tensor]:
    """A moved state with the dtypes and devices of the one that it comes from; what is tied stays one tensor."""
    out: dict[str, Tensor] = {}
    for name, old in params.items():
        source = ties.get(name, name)
        tied = source != name and source in out
        out[name] = out[source] if tied else moved[name].to(old.dtype).to(old.device)
        if out[name] is old:
            out[name] = old.clone()
    return out


def _decoded(coordinate: Coordinate, value: Tensor, new: Params) -> Tensor:
    if coordinate.kind == "offset":
        return value - coordinate.offset
    if coordinate.kind == "batch_norm_bias":
        weight, mean, var = coordinate.refs
        scale = torch.rsqrt(new[var] + coordinate.eps)
        return value + (new[weight] if weight else 1.0) * new[mean] * scale
    if coordinate.kind == "centred_bias":
        return value + new[coordinate.refs[1]]
    return value


def _joined(old: Tensor, parts: Pieces) -> Tensor:
    """A parameter from its moved parts; what no part covers stays."""
    if not parts[0][0]:
        return parts[0][1].reshape(old.shape)
    groups: dict[View, Pieces] = {}
    for views, value in parts:
        groups.setdefault(views[0], []).append((views[1:], value))
    shape, dim = parts[0][0][0][:2]
    whole, pieces, end = old.reshape(shape), [], 0
    for _, _, start, stop in sorted(groups, key=lambda view: view[2]):
        pieces.append(whole.narrow(dim, end, start - end))
        pieces.append(_joined(whole.narrow(dim, start, stop - start), groups[shape, dim, start, stop]))
        end = stop
    pieces.append(whole.narrow(dim, end, shape[dim] - end))
    return torch.cat(pieces, dim).reshape(old.shape)


def _canonical(ties: Mapping[str, str], params: Params) -> dict[str, Tensor]:
    out = dict(params)
    for name, source in ties.items():
        if source not in out and name in out:
            out[source] = out[name]
    return out


def statistics(program: Program, key: str) -> list[str]:
    """The buffers that move together with a statistic's channels: the running mean goes with the running variance."""
    name = program.buffer_coordinates[key].name
    for coordinate in program.coordinates.values():
        if coordinate.kind in BIASES and coordinate.refs[2] == name:
            return [coordinate.refs[1], name]
    return [name]
