"""Which part of a change of a linear field moves along its gauge orbit, and which part changes the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchgauge.ode.calculus import quadrature
from torchgauge.ode.fields import LinearField, as_linear
from torchgauge.ode.lines import LinePath


@final
@dataclass(frozen=True)
class OrbitParts:
    """Lengths in the norm ∫ ‖δw‖² + ‖δb‖² dt of the two orthogonal parts of a change.

    Attributes:
        along: of the part that is a gauge transformation to first order.
        across: of the part that changes the input-output map.
    """

    along: float
    across: float


@torch.no_grad()
def orbit_parts(field: LinearField, change: LinearField, nodes: int = 24) -> OrbitParts:
    """Splits a change (δw, δb) of a linear field.

    The orbit has the tangents δA = [A, E] − Ė, A = [[w, b], [0, 0]], with E zero at both ends of time. What is
    orthogonal to them is spanned by the gradients of the end map, r(t) = W_{T:t}ᵀ Γ W_{t:0}ᵀ, Γ any matrix [d, d + 1].
    The gradient of a loss is of that form: without a regulariser, gradient flow in the functions (w, b) does not move
    along the orbit (paper, section 5).

    Args:
        field: (w, b).
        change: (δw, δb), as a field.
        nodes: of the quadrature in time.

    Raises:
        FieldError: fields that are not linear.
    """
    field, change = as_linear(field, "a split into parts"), as_linear(change, "a split into parts")
    d = field.dim
    times, weights = quadrature(field.span, nodes, torch.empty(0, dtype=field.dtype, device=field.device))
    line = LinePath(field)
    before = line(times)
    after = torch.linalg.solve(before, line(times.new_tensor([field.span[1]])).expand_as(before), left=False)
    delta = change.affine(times)[:, :d]
    # δ(end map) of r(Γ) is K Γ, K = ∫ (M Mᵀ) ⊗ (Nᵀ N), M the linear part behind t and N the affine line before t
    behind, gram = after[:, :d, :d], before.mT @ before
    kernel = torch.einsum("n,nab,nij->aibj", weights, behind @ behind.mT, gram)
    moved = torch.einsum("n,nab,nbi,nij->aj", weights, behind, delta, before)
    size = d * (d + 1)
    gamma = torch.linalg.solve(kernel.reshape(size, size), moved.reshape(size)).reshape(d, d + 1)
    across = behind.mT @ gamma @ before.mT

    def length(values: Tensor) -> float:
        return float((values.square().sum((-1, -2)) * weights).sum().clamp(min=0).sqrt())

    return OrbitParts(length(delta - across), length(across))
