"""Affine Wilson lines of linear fields: layer by layer, and as a path in time (paper, section 3, (32))."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from torchgauge.ode.affine import affine_matrix
from torchgauge.ode.errors import FieldError
from torchgauge.ode.fields import LinearField, as_linear
from torchgauge.ode.wilson import WilsonLines, wilson


def layer_edges(field: LinearField, layers: int | Tensor) -> Tensor:
    """The times where layers meet, [N + 1]: N equal pieces of the span, or the given edges.

    Raises:
        FieldError: edges that do not increase from the start to the end of the span.
    """
    start, end = as_linear(field, "integration into layers").span
    if isinstance(layers, float):
        raise FieldError(f"a number of layers is an integer, not {layers}", "layers", "Pass an int, or edges [N + 1].")
    if isinstance(layers, int):
        if layers < 1:
            raise FieldError(f"a net needs at least one layer, not {layers}", "layers", "Pass a positive number.")
        return torch.linspace(start, end, layers + 1, dtype=field.dtype, device=field.device)
    edges = torch.as_tensor(layers).to(dtype=field.dtype, device=field.device)
    rising = edges.ndim == 1 and len(edges) > 1 and bool((edges[1:] > edges[:-1]).all())
    slack = 64 * torch.finfo(edges.dtype).eps * max(abs(start), abs(end))
    if not rising or abs(float(edges[0]) - start) > slack or abs(float(edges[-1]) - end) > slack:
        raise FieldError(f"edges must increase from {start} to {end}", "layers", "Pass [N + 1] times.")
    return edges


def layer_lines(field: LinearField, edges: Tensor, tolerance: float | None = None) -> Tensor:
    """T exp ∫ [[w, b], [0, 0]] dt = [[w̄, b̄], [0, 1]] over each piece (32).

    Args:
        field: (w, b).
        edges: times [N + 1], increasing or decreasing.
        tolerance: see `wilson`.

    Returns:
        [N, ..., d + 1, d + 1].
    """
    return _bordered(wilson(field, edges, tolerance=tolerance))


def _bordered(lines: WilsonLines) -> Tensor:
    """The lines of the layers as affine matrices, whether there is a b or not."""
    return lines.layers if lines.affine else affine_matrix(lines.layers)


PARTS = 16  # pieces of time whose numbers of slices are found one by one


@final
class LinePath(nn.Module):
    """t ↦ the affine Wilson line from the start of time to t, a path of matrices [d + 1, d + 1].

    Lines are kept at so many nodes that between two of them one slice of the method of order 8 meets the tolerance.

    Args:
        field: (w, b).
        tolerance: see `wilson`.
    """

    vectorised = True

    def __init__(self, field: LinearField, tolerance: float | None = None) -> None:
        super().__init__()
        self.field = field
        coarse = torch.linspace(*field.span, PARTS + 1, dtype=field.dtype, device=field.device)
        counts = wilson(field, coarse, tolerance=tolerance, method="rk8").slices
        ends = [
            start + (end - start) * torch.arange(count, dtype=coarse.dtype, device=coarse.device) / count
            for start, end, count in zip(coarse[:-1], coarse[1:], counts, strict=True)
        ]
        nodes = torch.cat([*ends, coarse[-1:]])
        lines = wilson(field, nodes, slices=1, method="rk8")
        self.register_buffer("nodes", nodes, persistent=False)
        kept = lines.prefix if lines.affine else affine_matrix(lines.prefix)
        self.register_buffer("kept", kept, persistent=False)

    nodes: Tensor
    kept: Tensor

    def forward(self, t: Tensor) -> Tensor:
        """Lines [..., d + 1, d + 1] at times [...]."""
        flat = t.reshape(-1).to(self.nodes.dtype)
        k = (torch.searchsorted(self.nodes, flat.detach(), right=True) - 1).clamp(0, len(self.nodes) - 2)
        start, step = self.nodes[k], flat - self.nodes[k]

        def stretched(u: Tensor) -> Tensor:
            """Each time's own last slice as a field of a batch, on u from 0 to 1."""
            times = start + u[:, None] * step
            return step[:, None, None] * self.field.affine(times.reshape(-1)).unflatten(0, times.shape)

        stretched.vectorised = True  # pyright: ignore[reportFunctionMemberAccess]
        last = wilson(stretched, self.nodes.new_tensor([0.0, 1.0]), slices=1, method="rk8").layers[0]
        return (last @ self.kept[k]).reshape(*t.shape, *self.kept.shape[1:])

    def velocity(self, t: Tensor) -> Tensor:
        rate = self.field.affine(t.reshape(-1).to(self.nodes.dtype))
        return rate.reshape(*t.shape, *rate.shape[1:]) @ self.forward(t)
