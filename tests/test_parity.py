"""What looks like a bias or a map beside units and is none: signs are found where they are right, and are sound."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import torchgauge as tg
from tests.zoo.case import evaluate64, relative_defect

Forward = Callable[["Net", torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """Hidden units, a map beside them and one bias, put together by a function; as many tokens as outputs."""

    def __init__(self, forward: Forward, bias: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 4, bias=False)
        self.beside, self.last = nn.Linear(3, 4, bias=False), nn.Linear(4, 2)
        self.bias = nn.Parameter(torch.randn(*bias))
        self.run = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


def signs(forward: Forward, bias: tuple[int, ...] = (4,)) -> bool:
    """Whether the five units have signs; asserts that elements change nothing."""
    torch.manual_seed(0)
    model, x = Net(forward, bias).double(), torch.randn(6, 4, 3, dtype=torch.float64)
    state, group = dict(model.state_dict()), tg.infer(model, x)
    for seed in range(3):
        moved = group.act(group.random(torch.Generator().manual_seed(seed)), state)
        assert relative_defect(evaluate64(model, state, (x,)), evaluate64(model, moved, (x,))) <= 1e-12
    return "2^5" in group.components


SHAPES = {(4,): True, (1, 4): True, (4, 1): False, (4, 4): False, (1, 1): False}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bias_of_the_units_behind_takes_up_the_point(shape: tuple[int, ...]) -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        return m.last(torch.tanh(m.second(torch.sigmoid(m.first(x))) + m.bias))

    assert signs(forward, shape) == SHAPES[shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bias_beside_units_takes_up_their_slope(shape: tuple[int, ...]) -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        return m.last(torch.tanh(m.second(torch.relu(m.first(x))) + m.beside(x) + m.bias))

    assert signs(forward, shape) == SHAPES[shape]


def _twice(m: Net, x: torch.Tensor) -> torch.Tensor:
    u = m.beside(x)
    return m.last(torch.tanh(m.second(torch.relu(m.first(x))) + u + u + m.bias))


def _elsewhere(m: Net, x: torch.Tensor) -> torch.Tensor:
    u = m.beside(x)
    return m.last(torch.tanh(m.second(torch.relu(m.first(x))) + u + m.bias)) + m.last(u)


def _units_elsewhere(m: Net, x: torch.Tensor) -> torch.Tensor:
    z = m.second(torch.relu(m.first(x)))
    return m.last(torch.tanh(2 * (z - 3 * m.beside(x)) + m.bias) + z)


def _product(m: Net, x: torch.Tensor) -> torch.Tensor:
    h = torch.sigmoid(m.first(x))
    return m.last(torch.tanh(m.second(h) + m.bias)) + h.mean(-1, keepdim=True)


@pytest.mark.parametrize("forward", [_twice, _elsewhere, _units_elsewhere, _product])
def test_what_is_read_twice_takes_up_nothing(forward: Forward) -> None:
    assert not signs(forward)


def test_numbers_in_between() -> None:
    assert signs(lambda m, x: m.last(torch.tanh(2 * (m.second(torch.relu(m.first(x))) - 3 * m.beside(x) + m.bias))))
    assert signs(lambda m, x: m.last(torch.tanh(m.second(3 * torch.sigmoid(m.first(x))) + m.bias)))
