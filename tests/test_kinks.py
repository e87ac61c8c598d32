"""Networks with kinks: every unit has to be at work before a nullity is believed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchgauge as tg
from torchgauge.certify import verdict
from torchgauge.certify.kinks import Kinks

from .zoo import vision


def layers(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [m for a, b in zip(widths, widths[1:], strict=False) for m in (nn.Linear(a, b), act())]
    return nn.Sequential(*parts[:-1])


# -- what is a kink ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("function", "at"),
    [
        (torch.relu, (0.0,)),
        (lambda x: x.clone().relu_(), (0.0,)),
        (nn.ReLU(inplace=True), (0.0,)),
        (nn.ReLU6(), (0.0, 6.0)),
        (nn.Hardtanh(-2.0, 0.5), (-2.0, 0.5)),
        (torch.ops.aten.hardtanh.default, (-1.0, 1.0)),
        (nn.Softshrink(0.25), (-0.25, 0.25)),
        (lambda x: x.clamp(min=0.0), (0.0,)),
        (lambda x: torch.clamp(x, -1, 2), (-1.0, 2.0)),
        (nn.Threshold(0.5, 0.0), (0.5,)),
        (torch.ops.aten.relu.default, (0.0,)),
    ],
)
def test_kinks_are_seen(function: Any, at: tuple[float, ...]) -> None:
    kinks, x = Kinks(), torch.linspace(-3, 3, 7)
    with kinks:
        function(x.clone())
    assert kinks.met
    assert [call.at for call in kinks.calls] == [at]
    assert torch.equal(kinks.calls[0].x, x)


def test_what_is_chosen_is_above_a_kink() -> None:
    x = torch.tensor([[1.0, 4.0, 2.0, -torch.inf], [3.0, 0.0, 5.0, 1.0]])
    with Kinks(choices=True) as kinks:
        x.topk(2, dim=-1)
        torch.topk(x, 4)  # all of them
    (call,) = kinks.calls
    assert call.at == (0.0,)
    assert torch.equal(call.x, torch.tensor([[-0.5, 2.5, 0.5, 0.0], [1.0, -2.0, 3.0, -1.0]]))


def test_what_keeps_a_division_from_failing_is_no_kink_to_move_to() -> None:
    kinks = Kinks()
    with kinks:
        nn.functional.normalize(torch.randn(3, 4))
        torch.tanh(torch.randn(3))
    assert not kinks.calls
    with Kinks() as none:
        torch.tanh(torch.randn(3))
        torch.max(torch.randn(3), torch.full((), torch.finfo(torch.float32).min))
        torch.randn(3).clamp(max=3e38)
    assert not none.met


# -- networks ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_relu_network_is_complete_at_a_balanced_point(seed: int) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    found = tg.certify(net, (torch.randn(16, 4),), seed=seed)
    assert found.holds
    assert found.orbit_dimension == 16


@pytest.mark.parametrize("seed", range(3))
def test_deep_relu_network_is_complete(seed: int) -> None:
    """At random parameters some units of the last layers are never on together, and hide what is between them."""
    net = layers(8, 12, 12, 12, 12, 12, 4)
    found = tg.certify(net, (torch.randn(16, 8),), seed=seed)
    assert found.holds, found
    assert found.orbit_dimension == 60


@pytest.mark.parametrize("act", [nn.ReLU6, nn.Hardtanh, nn.Hardswish])
def test_functions_with_two_kinks_have_no_scale(act: type[nn.Module]) -> None:
    """A ReLU6 that never meets its six looks like a ReLU, and one that meets neither kink like the identity."""
    found = tg.certify(layers(6, 30, 30, 4, act=act), (torch.randn(16, 6),))
    assert found.holds, found
    assert found.nullity == 0


def test_one_row_at_a_time() -> None:
    found = tg.certify(layers(4, 8, 8, 2), (torch.randn(1, 4),))
    assert found.holds, found
    assert found.orbit_dimension == 16


def test_wide_relu_network_is_complete() -> None:
    found = tg.certify(layers(10, 80, 10), (torch.randn(16, 10),))
    assert found.holds, found
    assert (found.parameters, found.orbit_dimension) == (1690, 80)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "vgg_bn", "resnet"])
def test_vision_networks_are_complete_at_their_first_point(name: str) -> None:
    (case,) = [case for case in vision.CASES if case.name == name]
    model = case.build().double().eval()
    found = tg.certify(model, case.inputs(torch.Generator().manual_seed(0)))
    assert found.holds, found
    assert found.orbit_dimension == case.orbit


def test_sleeping_units_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden directions of random points, of which each has others, are not said to be the architecture's."""
    monkeypatch.setattr(verdict, "balanced", lambda subject, generator, choices: subject.generic)
    monkeypatch.setattr(verdict, "POINTS", 2)
    found = tg.certify(layers(8, 12, 12, 12, 12, 12, 4), (torch.randn(16, 8),))
    assert found.sound
    assert found.hidden
    assert not found.complete
    assert "never on together" in found.undecided
    assert "complete   open" in str(found)
    assert found.to_dict()["undecided"] == found.undecided
