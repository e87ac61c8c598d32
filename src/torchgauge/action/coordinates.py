"""From state dicts to the tensors that the group moves, and back.

Most coordinates are the parameters themselves; a (1 + weight) gain is moved as 1 + weight, and the bias of a batch
norm in evaluation mode as what it adds to the scaled input: bias − weight·mean/σ.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.spaces.constraints import Coordinate, Program, View

Params = Mapping[str, Tensor]


def encode(program: Program, ties: Mapping[str, str], params: Params) -> dict[str, Tensor]:
    """Coordinates in float64, keyed by canonical parameter name, "buffer:" for batch-norm scales."""
    canonical = _canonical(ties, params)

    def get(name: str) -> Tensor:
        if name not in canonical:
            raise InputError(
                f"the state dict has no tensor named {name!r}",
                remedy="pass model.state_dict() of the model that the group was inferred from",
            )
        return canonical[name].detach().double()

    out: dict[str, Tensor] = {}
    for key, coordinate in program.coordinates.items():
        value = get(coordinate.name)
        for shape, dim, start, stop in coordinate.views:
            value = value.reshape(shape).narrow(dim, start, stop - start)
        if tuple(value.shape) != program.params[key].shape:
            raise InputError(
                f"{coordinate.name} has shape {tuple(value.shape)}, the group was inferred for "
                f"{program.params[key].shape}",
                remedy="infer the group again from a model of this shape",
            )
        out[key] = _encoded(coordinate, value, get)
    for name in program.buffers:
        eps = program.buffer_eps[name]
        out[f"buffer:{name}"] = get(name) if eps is None else torch.rsqrt(get(name) + eps)
        for other in statistics(program, name):
            out[f"raw:{other}"] = get(other)
    return out


def _encoded(coordinate: Coordinate, value: Tensor, get) -> Tensor:
    if coordinate.kind == "offset":
        return value + coordinate.offset
    if coordinate.kind == "batch_norm_bias":
        weight, mean, var = coordinate.refs
        scale = torch.rsqrt(get(var) + coordinate.eps)
        return value - (get(weight) if weight else 1.0) * get(mean) * scale
    return value


def decode(
    program: Program, ties: Mapping[str, str], params: Params, coordinates: Mapping[str, Tensor], *, cast: bool = True
) -> dict[str, Tensor]:
    """A state dict like `params` with moved coordinates; unmoved tensors are the same objects' clones."""
    new: dict[str, Tensor] = {}
    for name in program.buffers:
        for other in statistics(program, name):
            new[other] = coordinates[f"raw:{other}"]
    parts: dict[str, list[str]] = {}
    for key, coordinate in program.coordinates.items():
        value = coordinates[key]
        if coordinate.views:
            parts.setdefault(coordinate.name, []).append(key)
            continue
        if coordinate.kind == "offset":
            value = value - coordinate.offset
        new[coordinate.name] = value
    canonical = _canonical(ties, params)
    for name, keys in parts.items():
        pieces = [(program.coordinates[k].views, coordinates[k]) for k in keys]
        new[name] = _joined(canonical[name].double(), pieces)
    for key, coordinate in program.coordinates.items():
        if coordinate.kind == "batch_norm_bias":
            weight, mean, var = coordinate.refs
            scale = torch.rsqrt(new[var] + coordinate.eps)
            new[coordinate.name] = coordinates[key] + (new[weight] if weight else 1.0) * new[mean] * scale
    out: dict[str, Tensor] = {}
    for name, old in params.items():
        source = ties.get(name, name)
        if source != name and source in out:
            out[name] = out[source]
        elif source in new:
            out[name] = new[source].to(old.dtype).to(old.device) if cast else new[source]
        else:
            out[name] = old.clone() if cast else old.double() if old.is_floating_point() else old
    return out


def _joined(old: Tensor, parts: list[tuple[tuple[View, ...], Tensor]]) -> Tensor:
    """A parameter from its moved parts; what no part covers stays."""
    if not parts[0][0]:
        return parts[0][1].reshape(old.shape)
    groups: dict[View, list[tuple[tuple[View, ...], Tensor]]] = {}
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


def statistics(program: Program, var_name: str) -> list[str]:
    """Running variance and mean that move together with a batch norm's channels."""
    for coordinate in program.coordinates.values():
        if coordinate.kind == "batch_norm_bias" and coordinate.refs[2] == var_name:
            return [coordinate.refs[1], var_name]
    return [var_name]
