"""Weakly nonlinear fields dx/dt = w x + λ x³ and their response to first order (paper, section 4)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from torchgauge.ode.calculus import Path, quadrature, sample
from torchgauge.ode.errors import FieldError
from torchgauge.ode.fields import LinearField
from torchgauge.ode.lines import LinePath


@final
class Cubic(nn.Module):
    """F(t, x)ⁱ = w x + b + λⁱ_jkl(t) xʲ xᵏ xˡ; wrap it as `VectorField(Cubic(...), span)`.

    Args:
        field: (w, b).
        coupling: λ, a path of tensors [d, d, d, d].
    """

    def __init__(self, field: LinearField, coupling: Path) -> None:
        super().__init__()
        self.field, self.coupling = field, coupling

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.field(t, x) + contract(self.coupling(t).to(x.dtype), x)


def contract(coupling: Tensor, x: Tensor) -> Tensor:
    """λⁱ_jkl xʲ xᵏ xˡ for points [..., d]."""
    return torch.einsum("ijkl,...j,...k,...l->...i", coupling, x, x, x)


def response(field: LinearField, coupling: Path, nodes: int = 48) -> Tensor:
    """Λ(T) = ∫₀ᵀ W_{T:t} λ(t) [W_{t:0}·, W_{t:0}·, W_{t:0}·] dt, so that x(T) = W_{T:0} x + Λ(T) x³ + O(λ²).

    Args:
        field: w, with b = 0.
        coupling: λ, a smooth path of tensors [d, d, d, d].
        nodes: of Gauss–Legendre quadrature.

    Returns:
        [d, d, d, d].

    Raises:
        FieldError: b is not zero.
    """
    if not field.homogeneous and bool(field.sample(torch.tensor(field.span, dtype=field.dtype))[1].any()):
        raise FieldError("the first-order response is that of a field without bias", "b", "Use b = 0.")
    line = LinePath(field)
    times, weights = quadrature(field.span, nodes, torch.empty(0, dtype=field.dtype, device=field.device))
    before = line(times)[:, :-1, :-1]
    total = line(times.new_tensor([field.span[1]]))[0, :-1, :-1]
    after = torch.linalg.solve(before, total.expand_as(before), left=False)
    values = sample(coupling, times)
    return torch.einsum("n,nai,nijkl,njb,nkc,nld->abcd", weights, after, values, before, before, before)
