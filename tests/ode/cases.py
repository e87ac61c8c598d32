"""Fields, maps and accuracies that several tests use; float64 throughout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchgauge import ode

FINE = ode.Accuracy("dopri8", 1e-10, 1e-11)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Gaussian numbers [*shape]."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Waves(nn.Module):
    """A smooth path Σ_k a_k cos(ω k t) + b_k sin(ω k t), at one time []."""

    def __init__(self, coefficients: Tensor, frequency: float = 3.0) -> None:
        super().__init__()
        self.coefficients, self.frequency = nn.Parameter(coefficients), frequency

    def forward(self, t: Tensor) -> Tensor:
        modes = len(self.coefficients) // 2
        phases = self.frequency * t * torch.arange(1, modes + 1, dtype=t.dtype)
        return torch.tensordot(torch.cat([torch.cos(phases), torch.sin(phases)]), self.coefficients, 1)


def linear_field(d: int, seed: int = 0, size: float = 1.0, bias: bool = True, span: ode.paths.Span = (0.0, 1.0)):
    """A smooth linear field."""
    w = size * normal(6, d, d, seed=seed) / (2 * d**0.5)
    b = Waves(normal(6, d, seed=seed + 1) / 2) if bias else None
    return ode.LinearField(Waves(w), b, span)


class Tanh(nn.Module):
    """F(t, x) = B tanh(A [x, t] + a)."""

    def __init__(self, d: int, hidden: int = 12, seed: int = 0) -> None:
        super().__init__()
        self.inner = nn.Parameter(normal(hidden, d + 1, seed=seed) / (d + 1) ** 0.5)
        self.offset = nn.Parameter(normal(hidden, seed=seed + 1))
        self.outer = nn.Parameter(normal(d, hidden, seed=seed + 2) / hidden**0.5)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        extended = torch.cat([x, t.expand(*x.shape[:-1], 1)], -1)
        return torch.tanh(extended @ self.inner.mT + self.offset) @ self.outer.mT


def tanh_field(d: int, seed: int = 0, span: ode.paths.Span = (0.0, 1.0)) -> ode.VectorField:
    """A smooth nonlinear field that depends on time."""
    return ode.VectorField(Tanh(d, seed=seed), span)


def swirl(t: Tensor, x: Tensor) -> Tensor:
    """The generator of a nonlinear flow."""
    return 0.6 * torch.sin(x.roll(1, -1) + t)


def spacetime_swirl(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The generator of a flow of spacetime."""
    return 0.4 * torch.sin(x).mean(-1), 0.5 * torch.cos(x.roll(1, -1) + t)


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a - b).detach().abs().max())
