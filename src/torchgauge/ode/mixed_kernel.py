"""Factored Dyson series in mixed precision: products in half the precision of w, all else in that of w.

A slice is W = 1 + M + Σ_i P_i with M = ∫ w linear in w, and products P_i of the order of M²/2. A product in float32 has
a relative error of some 10⁻⁷, and so an absolute one of 10⁻⁷ |M|²/2 in W, where W in float32 would have 10⁻⁷.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from torchgauge.ode.factored_kernel import Factors, Table, backward, propagate_plainly, stacked
from torchgauge.ode.slices import Kernel
from torchgauge.ode.wilson_base import Samples, column
from torchgauge.ode.wilson_chunks import chunks, workspace

HALF = {torch.float64: torch.float32, torch.complex128: torch.complex64}


@lru_cache(maxsize=64)
def _mean(table: Table, dtype: torch.dtype, device: torch.device) -> Tensor:
    """M in terms of w at the nodes."""
    return torch.tensor(table.forms[-1], dtype=dtype, device=device)


@lru_cache(maxsize=8)
def _products_alone(table: Table) -> Table:
    """The series without M."""
    return replace(table, forms=(*table.forms[:-1], (0.0,) * len(table.forms[-1])))


def _arrays(table: Table) -> int:
    """How many matrices are counted for a slice where chunks are cut: half of its buffers in the precision of w.

    Calls weigh twice as much where products take half the time, and so chunks are twice as long.
    """
    return (3 * table.products + 2 + len(table.forms[0])) // 4


def _halved(samples: Samples) -> Samples:
    return Samples(samples.values.to(HALF[samples.values.dtype]), samples.offsets, samples.count)


def _forward(table: Table, samples: Samples, steps: Tensor, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """The slices, and where wanted the factors of the products of every chunk, [2 s, n, d, d]."""
    values, s = samples.values, table.products
    _, fields, d, _ = values.shape
    lines = values.new_empty(samples.count, fields, d, d)
    flat, w, kept = lines.flatten(0, 1), stacked(samples), []
    alone, mean = _products_alone(table), _mean(table, values.dtype, values.device)
    parts = [*chunks(samples, steps, _arrays(table))]
    most = max(chunk.batch.stop - chunk.batch.start for chunk in parts)
    memory = workspace((3 * s + len(w) + 1) * most * d * d, values.new_empty(0, dtype=HALF[values.dtype]))
    buffers: dict[int, Factors] = {}
    for chunk in parts:
        first, last = chunk.batch.start, chunk.batch.stop
        n, size = last - first, (last - first) * d * d
        store, low, products = memory[: memory.numel()].split(
            [3 * s * most * d * d, len(w) * most * d * d, most * d * d]
        )
        own = buffers.get(n) or buffers.setdefault(n, Factors(alone, n, d, store))
        part, out = w[:, first * d * d : last * d * d], flat[chunk.batch]
        low, products = low[: len(w) * size].view(len(w), size), products[:size].view(n, d, d)
        own.run(low.copy_(part), chunk, products, one=False)
        torch.mv(part.T, mean * chunk.step, out=out.view(-1))
        if chunk.steps is not None:
            out.mul_(chunk.steps)
        out.add_(products).diagonal(dim1=1, dim2=2).add_(1)
        if keep:
            kept.append(own.forms[:-1].view(2 * s, n, d, d).clone())
    return lines, kept


def _backward(table: Table, samples: Samples, steps: Tensor, kept: list[Tensor], grad: Tensor) -> Tensor:
    """The gradient of the samples: through the products in half precision, which are small, and through M in full."""
    low = _halved(samples)
    slope, arrays = grad.to(low.values.dtype), 2 * _arrays(table)  # as many bytes as in the forward pass
    total = backward(_products_alone(table), low, steps, kept, slope, arrays).to(grad.dtype)
    scaled = grad * column(steps, grad)
    for j, k in enumerate(samples.offsets):
        total[k : k + samples.count].add_(scaled, alpha=table.forms[-1][j])
    return total


MIXED = Kernel(_forward, _backward, propagate_plainly, lambda table: table.products)
