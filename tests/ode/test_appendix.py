"""Convolutions, pooling and graph convolutions (paper, appendix C): one scale for each channel, found by `infer`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import torchgauge as tg
from tests.ode.cases import gap, normal


class Norm(nn.Module):
    """L_s pooling: (mean |x|^s)^{1/s} over windows; the mean for s = 1 on positive input, the maximum for s = ∞."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s = s

    def forward(self, x: Tensor) -> Tensor:
        if self.s == float("inf"):
            return nn.functional.max_pool2d(x, 2)
        if self.s == 1:
            return nn.functional.avg_pool2d(x, 2)
        return nn.functional.avg_pool2d(x.abs() ** self.s, 2) ** (1 / self.s)


class Graph(nn.Module):
    """Two graph convolutions, h ↦ ReLU(A h W + b), A h W."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", normal(5, 5, seed=3).abs())
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.adjacency @ self.second(torch.relu(self.adjacency @ self.first(x)))


def rescaled(model: nn.Module, first: str, second: str, alpha: Tensor) -> dict[str, Tensor]:
    """h⁽ⁿ⁾ ↦ α h⁽ⁿ⁾, h⁽ⁿ⁺¹⁾ ↦ α⁻¹ h⁽ⁿ⁺¹⁾, a scale for each channel in between."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    extra = [1] * (state[f"{first}.weight"].ndim - 2)
    state[f"{first}.weight"] *= alpha.reshape(-1, 1, *extra)
    state[f"{first}.bias"] *= alpha
    state[f"{second}.weight"] /= alpha.reshape(1, -1, *extra)
    return state


@pytest.mark.parametrize("s", [1, 2, 3, float("inf")])
def test_scales_pass_through_relu_and_pooling(s: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), Norm(s), nn.Conv2d(4, 3, 2)).double()
    x, alpha = normal(2, 2, 8, 8), torch.exp(normal(4))
    assert gap(functional_call(model, rescaled(model, "0", "3", alpha), (x,)), model(x)) < 1e-12
    if s in (1, float("inf")):
        group = tg.infer(model, (x,))
        assert group.dimension == 4
        certificate = tg.certify(model, (x,), group=group)
        assert certificate.sound and certificate.hidden == 0


def test_a_normalisation_in_between_takes_the_scale() -> None:
    """Then the scale of what stands before the norm is invisible, up to ε, and trades with nothing behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, eps=0.0), nn.ReLU(), nn.Conv2d(4, 3, 2)).double()
    x, alpha = normal(2, 2, 8, 8), torch.exp(normal(4))
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    state["0.weight"] *= alpha.reshape(-1, 1, 1, 1)
    state["0.bias"] += 3.0
    assert gap(functional_call(model, state, (x,)), model(x)) < 1e-12
    assert gap(functional_call(model, rescaled(model, "0", "3", alpha), (x,)), model(x)) > 1e-3


def test_graph_convolutions() -> None:
    torch.manual_seed(0)
    model = Graph().double()
    x, alpha = normal(7, 5, 3), torch.exp(normal(4))
    assert gap(functional_call(model, rescaled(model, "first", "second", alpha), (x,)), model(x)) < 1e-12
    group = tg.infer(model, (x,))
    assert group.dimension == 4
    certificate = tg.certify(model, (x,), group=group)
    assert certificate.sound and certificate.hidden == 0
