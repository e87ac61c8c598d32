"""Choices by value: what may move when data pick entries, experts or positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchgauge as tg
from tests.zoo.case import evaluate64, relative_defect


class Net(nn.Module):
    """A function of its parameters and one input; a tuple is the shape of a parameter."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module | tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(torch.zeros(part)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def experts(m: Any, x: Tensor, places: Tensor) -> Tensor:
    """Two layers of every chosen expert, [tokens, slots, 2]."""
    hidden = torch.relu(m.first[places] @ x[:, None, :, None])
    return (m.second[places] @ hidden).squeeze(-1)


def mixture(m: Any, x: Tensor) -> Tensor:
    weights, places = m.router(x).softmax(-1).topk(2)
    return (experts(m, x, places) * weights[..., None]).sum(1)


def renormalised(m: Any, x: Tensor) -> Tensor:
    weights, places = m.router(x).topk(2)
    return (experts(m, x, places) * weights.softmax(-1)[..., None]).sum(1)


def corrected(m: Any, x: Tensor) -> Tensor:
    scores = m.router(x).sigmoid()
    places = (scores + m.correction).topk(2).indices
    return (experts(m, x, places) * scores.gather(1, places)[..., None]).sum(1)


def one_expert(m: Any, x: Tensor) -> Tensor:
    weights, places = m.router(x).softmax(-1).topk(1)
    return (experts(m, x, places) * weights[..., None]).sum(1)


def router() -> nn.Module:
    return nn.Linear(3, 4)


ROUTED = {"first": (4, 5, 3), "second": (4, 2, 5)}
NETS: dict[str, tuple[nn.Module, int, dict[str, int]]] = {
    # 20 unit scales, and the shift of all logits (3 + 1)
    "mixture": (Net(mixture, router=router(), **ROUTED), 24, {"4!": 1, "5!": 4}),
    "renormalised": (Net(renormalised, router=router(), **ROUTED), 24, {"4!": 1, "5!": 4}),
    # the logits meet a sigmoid, and a correction that trades with nothing but itself
    "corrected": (Net(corrected, router=router(), correction=(4,), **ROUTED), 21, {"4!": 1, "5!": 4}),
    # one chosen expert: frames of its own are not followed through a dimension of size one
    "one expert": (Net(one_expert, router=router(), **ROUTED), 9, {"4!": 1, "5!": 1}),
}
RIGID: dict[str, nn.Module] = {
    "position as a one-hot vector": Net(
        lambda m, x: F.one_hot(m.router(x).argmax(-1), 4).to(x.dtype) @ m.rows, router=router(), rows=(4, 5)
    ),
    "position as a number": Net(
        lambda m, x: m.out(x) * m.router(x).argmax(-1, keepdim=True), router=router(), out=nn.Linear(3, 2)
    ),
    "half of a position": Net(
        lambda m, x: (m.first[m.router(x).topk(2).indices // 2] @ x[:, None, :, None]).squeeze(-1).sum(1),
        router=router(),
        first=(2, 5, 3),
    ),
    "one row": Net(
        lambda m, x: (m.first[m.router(x).argmax(-1)] @ x[..., None]).squeeze(-1), router=router(), first=(4, 5, 3)
    ),
    "a weight for every slot": Net(
        lambda m, x: (experts(m, x, m.router(x).topk(2).indices) * m.slots).sum(1),
        router=router(),
        slots=(2, 1),
        **ROUTED,
    ),
    "a weight for every slot of a full order": Net(
        lambda m, x: (experts(m, x, m.router(x).topk(4).indices) * m.slots[:, None]).sum(1),
        router=router(),
        slots=(4,),
        **ROUTED,
    ),
    "two choices meet": Net(
        lambda m, x: (
            ((m.first[m.a(x).topk(2).indices] + m.first[m.b(x).topk(2).indices]) @ x[:, None, :, None])
            .squeeze(-1)
            .sum(1)
        ),
        a=router(),
        b=router(),
        first=(4, 5, 3),
    ),
    "units of two choices multiplied": Net(
        lambda m, x: (
            (
                torch.relu(m.first[m.a(x).topk(2).indices] @ x[:, None, :, None])
                * (m.other[m.b(x).topk(2).indices] @ x[:, None, :, None])
            )
            .squeeze(-1)
            .sum(1)
        ),
        a=router(),
        b=router(),
        first=(4, 5, 3),
        other=(4, 5, 3),
    ),
    "sorted units": Net(
        lambda m, x: m.out(torch.relu(m.router(x)).sort(-1).values), router=router(), out=nn.Linear(4, 2)
    ),
    "values taken from another map": Net(
        lambda m, x: m.out(torch.take_along_dim(m.a(x), m.b(x).topk(2).indices, 1)),
        a=router(),
        b=router(),
        out=nn.Linear(2, 2),
    ),
    "scattered back": Net(
        lambda m, x: (lambda p, t: torch.zeros_like(p).scatter(1, t.indices, t.values) @ m.rows)(
            m.router(x), m.router(x).topk(2)
        ),
        router=router(),
        rows=(4, 5),
    ),
}
"""Where little or nothing may move; named after what stands in the way."""


def judged(model: nn.Module) -> tuple[tg.GaugeGroup, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    state = {n: torch.randn(p.shape, generator=g, dtype=torch.float64) for n, p in model.state_dict().items()}
    x = torch.randn(16, 3, generator=g, dtype=torch.float64)
    group = tg.infer(model, (x.float(),))
    old = evaluate64(model, state, (x,))
    for _ in range(4):
        new = evaluate64(model, group.act(group.random(g), state), (x,))
        assert relative_defect(old, new) < 1e-12
    return group, state


@pytest.mark.parametrize("name", NETS)
def test_experts_are_permuted_with_their_router(name: str) -> None:
    model, orbit, components = NETS[name]
    group, state = judged(model)
    assert group.orbit_dimension(state) == orbit
    assert group.components == components
    assert not group.program.opaque


@pytest.mark.parametrize("name", RIGID)
def test_what_a_choice_forbids_is_not_claimed(name: str) -> None:
    judged(RIGID[name])
