"""Every activation that torch.nn has: an element of the inferred group never changes the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchgauge as tg
from tests.zoo.blocks import Fn, Skip, mlp, normal
from tests.zoo.case import Case, evaluate64, relative_defect

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Threshold": (0.1, 20.0),
    "Softmax": (-1,),
    "LogSoftmax": (-1,),
    "Softmin": (-1,),
}
NOT_POINTWISE = {"MultiheadAttention", "GLU", "Softmax2d"}
HOMOGENEOUS = {"ReLU", "LeakyReLU", "PReLU", "RReLU"}
ALL = sorted(set(nn.modules.activation.__all__) - NOT_POINTWISE)
NAMES = (
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6 selu sigmoid silu "
    "softplus softshrink softsign tanh tanhshrink"
)
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {name: getattr(F, name) for name in NAMES.split()}


def assert_sound(build: Callable[[], nn.Module], name: str, width: int = 3, orbit: int | None = None) -> None:
    case = Case(f"activation_{name}", build, normal(40, width, scale=4.0), 0)
    model = case.module()
    state = dict(model.state_dict())
    group = tg.infer(model, case.example())
    if orbit is not None:
        assert group.orbit_dimension(state) == orbit
    for seed in range(3):
        moved = group.act(group.random(torch.Generator().manual_seed(seed)), state)
        old, new = (evaluate64(model, s, case.example(4)) for s in (state, moved))
        assert relative_defect(old, new) <= 1e-12


@pytest.mark.parametrize("name", ALL)
def test_module_in_one_hidden_layer(name: str) -> None:
    activation = getattr(nn, name)
    args = ARGUMENTS.get(name, ())
    assert_sound(lambda: mlp(3, 5, 2, act=lambda: activation(*args)), name, orbit=5 if name in HOMOGENEOUS else None)


@pytest.mark.parametrize("name", ALL)
def test_module_twice_with_a_skip(name: str) -> None:
    activation = getattr(nn, name)
    args = ARGUMENTS.get(name, ())

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.act = activation(*args)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.act(self.read(x))
            return self.out(x + self.act(self.inner(x)))

    assert_sound(Block, f"skip_{name}")


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_function(name: str) -> None:
    assert_sound(lambda: mlp(3, 5, 2, act=lambda: Fn(FUNCTIONS[name])), f"function_{name}")


SIGNED = {
    "Sigmoid": (), "ReLU6": (), "Hardsigmoid": (), "Hardtanh": (-1.0, 3.0),
    "Tanh": (), "Softsign": (), "Tanhshrink": (),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNED)
def test_signs_of_functions_that_are_odd_about_a_point(name: str) -> None:
    def group_of(*widths: int, bias: bool = True) -> tg.GaugeGroup:
        model = mlp(*widths, act=lambda: getattr(nn, name)(*SIGNED[name]), bias=bias)
        return tg.infer(model, torch.randn(6, widths[0]))

    assert group_of(3, 5, 4, 2).components == {"5!": 1, "4!": 1, "2^5": 1, "2^4": 1}
    about_zero = name in ("Tanh", "Softsign", "Tanhshrink")
    assert ("2^5" in group_of(3, 5, 2, bias=False).components) == about_zero


@pytest.mark.parametrize(("name", "signs"), [("ReLU", True), ("GELU", True), ("SiLU", True), ("ELU", False)])
def test_signs_of_units_with_a_linear_path_beside(name: str, signs: bool) -> None:
    group = tg.infer(Skip(3, 5, 2, getattr(nn, name)), torch.randn(6, 3))
    assert ("2^5" in group.components) == signs
    alone = tg.infer(mlp(3, 5, 2, act=getattr(nn, name)), torch.randn(6, 3))
    assert "2^5" not in alone.components
    assert_sound(lambda: Skip(3, 5, 2, getattr(nn, name)), f"beside_{name}")


class Sums(nn.Module):
    """Sigmoids and units beside maps, layer on layer, so that what one bias takes up is a coordinate of the next."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.act = act
        self.first, self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4)
        self.beside, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 4)
        self.over, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(self.first(x))
        x = torch.sigmoid(self.beside(x) - 2 * self.outer(self.act(self.inner(x))))
        return self.last(F.relu6(self.over(x) - 3 * self.third(self.act(self.second(x)))))


@pytest.mark.parametrize("act", [F.relu, F.gelu])
def test_signs_of_layers_one_after_the_other(act: Callable[[torch.Tensor], torch.Tensor]) -> None:
    group = tg.infer(Sums(act), torch.randn(6, 3))
    assert {"2^4": 2, "2^5": 1, "2^6": 1}.items() <= group.components.items()
    assert_sound(lambda: Sums(act), f"sums_{act.__name__}")


@pytest.mark.parametrize("padding", [0, 1])
def test_signs_in_front_of_kernels(padding: int) -> None:
    def build() -> nn.Module:
        first, second = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 2, groups=2, padding=padding)
        return nn.Sequential(first, nn.Sigmoid(), nn.AvgPool2d(2), second, nn.ReLU6(), nn.Flatten(), nn.LazyLinear(2))

    case = Case("activation_kernels", lambda: _warm(build(), torch.randn(2, 2, 8, 8)), normal(4, 2, 8, 8), 0)
    model = case.module()
    group = tg.infer(model, case.example())
    assert ("2^6" in group.components) == (padding == 0) and "2^4" in group.components
    state = dict(model.state_dict())
    moved = group.act(group.random(torch.Generator().manual_seed(1)), state)
    old, new = (evaluate64(model, s, case.example(4)) for s in (state, moved))
    assert relative_defect(old, new) <= 1e-12


def _warm(model: nn.Module, x: torch.Tensor) -> nn.Module:
    model(x)
    return model


@pytest.mark.parametrize("name", ["ReLU", "ReLU6", "SiLU", "Hardtanh", "ELU"])
def test_in_place(name: str) -> None:
    assert_sound(lambda: mlp(3, 5, 2, act=lambda: getattr(nn, name)(inplace=True)), f"in_place_{name}")


def test_glu_halves() -> None:
    assert_sound(lambda: nn.Sequential(nn.Linear(3, 8), nn.GLU(-1), nn.Linear(4, 2)), "glu", orbit=4)


LOWEST = torch.finfo(torch.float32).min
BOUNDS = {
    "maximum": lambda x: torch.maximum(x, torch.full((), LOWEST)),
    "clamp": lambda x: x.clamp(min=LOWEST, max=-LOWEST),
    "clamp_min": lambda x: torch.clamp_min(x, -3e38),
    "minimum": lambda x: torch.minimum(torch.tensor(3e38), x),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_that_no_number_reaches_bounds_nothing(name: str) -> None:
    # matrices of a layer in between: 4 × 4
    assert_sound(lambda: mlp(5, 4, 6, act=lambda: Fn(BOUNDS[name])), f"bound_{name}", width=5, orbit=16 + 4)
    assert_sound(lambda: mlp(5, 4, 6, act=lambda: Fn(lambda x: x.clamp(min=-2.0))), "bound_near", width=5, orbit=0)


def test_softmax_over_channels_of_images() -> None:
    case = Case(
        "activation_softmax2d",
        lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.Softmax2d(), nn.Conv2d(4, 2, 1)),
        normal(4, 2, 3, 3),
        0,
    )
    model = case.module()
    group = tg.infer(model, case.example())
    moved = group.act(group.random(torch.Generator().manual_seed(1)), dict(model.state_dict()))
    old, new = (evaluate64(model, s, case.example(4)) for s in (dict(model.state_dict()), moved))
    assert relative_defect(old, new) <= 1e-12
