"""Nullity of the Jacobian by parameters, from random combinations of outputs (a sketch keeps the rank)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.case import Case, Float64, evaluate


@dataclass(frozen=True)
class Nullity:
    nullity: int
    gap: float
    """log10 of the ratio of the smallest kept to the largest dropped singular value."""
    smallest: tuple[float, ...]
    """Singular values around the cut, relative to the largest."""
    dead: int
    parameters: int


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters()}


def row_sketch(case: Case, model: nn.Module, batches: int, rows: int, chunk: int = 64) -> Tensor:
    """`rows` random combinations of the rows of the Jacobian over `batches` batches: [rows, P], float64."""
    params = trainable(model)
    generator = torch.Generator().manual_seed(77)
    total = torch.zeros(rows, sum(p.numel() for p in params.values()), dtype=torch.float64)
    for b in range(batches):
        args = case.example(b)

        def outputs(p: dict[str, Tensor], args: tuple[Any, ...] = args) -> list[Tensor]:
            return evaluate(model, {**dict(model.state_dict()), **tied(model, p)}, args, case.kwargs)

        with Float64():
            out, pull = torch.func.vjp(outputs, params)
            for start in range(0, rows, chunk):
                n = min(chunk, rows - start)
                seeds = [torch.randn((n, *o.shape), generator=generator, dtype=torch.float64) for o in out]
                (grads,) = torch.func.vmap(pull)(seeds)
                total[start : start + n] += torch.cat([g.reshape(n, -1) for g in grads.values()], 1)
    return total


def tied(model: nn.Module, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """`params` under every name that a tied parameter has."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {n: params[names[id(p)]] for n, p in model.named_parameters(remove_duplicate=False)}


def nullity(case: Case, batches: int | None = None) -> Nullity:
    model = case.module()
    count = sum(p.numel() for p in trainable(model).values())
    sketch = row_sketch(case, model, batches or case.batches, count + 40)
    norms = sketch.norm(dim=0)
    alive = norms > 1e-13 * norms.max()
    dead = int((~alive).sum())
    sketch = torch.where(alive, sketch / norms, 0.0)
    values = torch.linalg.svdvals(sketch)
    values = torch.cat([values / values[0], torch.zeros(1, dtype=torch.float64)]).clamp(min=1e-17)
    ratio = (values[:-1] / values[1:]).log10()
    # the cut is the largest jump among those that leave only rounding below
    candidates = [i for i in range(len(ratio)) if values[i + 1] < 1e-9]
    if not candidates:
        return Nullity(0, float(-values[count - 1].log10()), tuple(values[count - 4 : count].tolist()), dead, count)
    cut = max(candidates, key=lambda i: float(ratio[i]) if values[i] > 1e-11 else -1.0)
    around = tuple(float(f"{v:.1e}") for v in values[max(cut - 2, 0) : cut + 4])
    return Nullity(count - cut - 1, float(ratio[cut]), around, dead, count)
