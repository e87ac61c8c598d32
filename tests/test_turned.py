"""Weights that take up the constants that they read: as a group, at degenerate parameters, in conserved quantities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchgauge as tg
from torchgauge import learn
from torchgauge.errors import InputError

from .zoo.case import evaluate64, relative_defect
from .zoo.constants import Latents, Timed


def latents() -> tuple[Latents, tuple[Tensor]]:
    torch.manual_seed(0)
    model = Latents(6, 3, 4, heads=2).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    return model, (torch.randn(2, 7, 4, dtype=torch.float64),)


def test_elements_compose_and_have_inverses() -> None:
    model, args = latents()
    group, state = tg.infer(model, args), dict(model.state_dict())
    draw = torch.Generator().manual_seed(0)
    g, h = group.random(draw, scale=0.3), group.random(draw, scale=0.3)
    one, two = group.act(g @ h, state), group.act(g, group.act(h, state))
    back = group.act(g.inverse(), group.act(g, state))
    for name, value in state.items():
        assert torch.allclose(one[name], two[name], rtol=1e-8, atol=1e-9), name
        assert torch.allclose(back[name], value, rtol=1e-8, atol=1e-9), name
    old = evaluate64(model, state, args)
    assert relative_defect(old, evaluate64(model, one, args)) < 1e-11
    assert float((one["norm.weight"] - state["norm.weight"]).abs().max()) > 1e-2


def test_rows_that_are_alike_are_an_error() -> None:
    model, args = latents()
    group, state = tg.infer(model, args), dict(model.state_dict())
    state["latents"] = torch.zeros_like(state["latents"])
    with pytest.raises(InputError, match=r"q\.weight reads.*linearly dependent"):
        group.act(group.random(torch.Generator().manual_seed(0)), state)


def test_certificate_of_a_model_before_training() -> None:
    found = tg.certify(Latents(6, 3, 4), (torch.randn(2, 7, 4),))
    assert found.sound
    assert found.complete
    assert found.own_defect is None
    assert any("own parameters were not moved: what q.weight reads" in note for note in found.notes)


def test_followers_are_named() -> None:
    model, args = latents()
    found = [f for f in tg.infer(model, args).factors if "norm.weight" in f.parameters]
    assert found
    assert all("q.weight" in f.parameters for f in found)


def test_conserved_quantities_are_those_of_whole_weights() -> None:
    model, args = latents()
    laws = learn.conserved(model, args)
    assert any(law.kind == "quadratic" and {"q.weight", "k.weight"} <= set(law.parameters) for law in laws)


def test_features_of_a_time_on_another_state() -> None:
    model, args = Timed(5, 4).double(), (torch.randn(9, 7, dtype=torch.float64),)
    group = tg.infer(model, args)
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    old = evaluate64(model, state, args)
    moved = group.act(group.random(torch.Generator().manual_seed(1)), state)
    assert relative_defect(old, evaluate64(model, moved, args)) < 1e-11
    assert float((moved["first.weight"] - state["first.weight"]).abs().max()) > 1e-3
