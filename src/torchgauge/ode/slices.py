"""The lines of many slices as one differentiable function, with the reverse pass of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchgauge.ode.wilson_base import Samples

KEEP_BYTES = 1 << 28  # above this much, the reverse pass computes again what the forward pass had


@dataclass(frozen=True, eq=False)
class Kernel:
    """The arithmetic of a family of methods, of which a table of coefficients is one.

    Attributes:
        forward: (table, samples, steps, keep) to the lines, [N, fields, d, d], and what is kept of every chunk.
        backward: (table, samples, steps, kept, gradient) to the gradient of the samples.
        plainly: (table, samples, steps) to the lines in plain operations, differentiable any number of times.
        kept: how many matrices are kept for every line.
    """

    forward: Callable[[Any, Samples, Tensor, bool], tuple[Tensor, list[Tensor]]]
    backward: Callable[[Any, Samples, Tensor, list[Tensor], Tensor], Tensor]
    plainly: Callable[[Any, Samples, Tensor], Tensor]
    kept: Callable[[Any], int]

    def propagate(self, table: Any, samples: Samples, steps: Tensor) -> Tensor:
        """The lines of the slices, [N, fields, d, d]; see `Method.propagators`. The steps are constants."""
        if torch.is_grad_enabled() and samples.values.requires_grad:
            return _Slices.apply(samples.values, self, table, samples.offsets, steps)  # pyright: ignore[reportReturnType]
        with torch.no_grad():
            return self.forward(table, samples, steps, False)[0]


class _Slices(torch.autograd.Function):
    """Slices with the reverse pass written out, at two products for each of the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, kernel: Kernel, table: Any, offsets: tuple[int, ...], steps: Tensor
    ) -> Tensor:
        samples = Samples(values, offsets, len(steps))
        size = len(steps) * values[0].numel() * kernel.kept(table) * values.element_size()
        result, ctx.kept = kernel.forward(table, samples, steps, size <= KEEP_BYTES)
        ctx.save_for_backward(values)
        ctx.kernel, ctx.table, ctx.offsets, ctx.steps = kernel, table, offsets, steps
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (values,) = ctx.saved_tensors
        kernel, samples = ctx.kernel, Samples(values, ctx.offsets, len(ctx.steps))
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            result = kernel.plainly(ctx.table, samples, ctx.steps)
            return (*torch.autograd.grad(result, values, grads[0], create_graph=True), None, None, None, None)
        return kernel.backward(ctx.table, samples, ctx.steps, ctx.kept, grads[0]), None, None, None, None
