"""Ensembles under gradient descent: a loss of invariants keeps SO(D); a supervised one does not, nor does Adam."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from torchgauge import fields
from torchgauge.errors import InputError
from torchgauge.fields.training import Loss, Optimiser, evolve

POINTS = torch.tensor([[1.0, 0.2], [-0.3, 0.8], [-0.9, -0.7], [0.4, -1.1]], dtype=torch.float64)
CLASSES = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).double()
GRAM = torch.eye(4, dtype=torch.float64)
SLOW: Optimiser = partial(torch.optim.SGD, lr=0.004)


def ensemble() -> fields.Ensemble:
    return fields.tanh_net(5, inputs=2, outputs=3, sigma_b=0.5)


def last(loss: Loss, optimiser: Optimiser, params: dict[str, Tensor], steps: int = 30) -> dict[str, Tensor]:
    return [*evolve(ensemble().module, params, POINTS, loss, steps=steps, every=steps, optimiser=optimiser)][-1].params


def turned(params: dict[str, Tensor], rotation: Tensor) -> dict[str, Tensor]:
    return params | {
        "readout.weight": rotation @ params["readout.weight"],
        "readout.bias": params["readout.bias"] @ rotation.mT,
    }


def rotation() -> Tensor:
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    return q * torch.linalg.det(q)


MOMENTUM: Optimiser = partial(torch.optim.SGD, lr=0.001, momentum=0.8, weight_decay=0.01)
ADAM: Optimiser = partial(torch.optim.Adam, lr=0.02)


@pytest.mark.parametrize(
    ("loss", "optimiser", "commutes"),
    [
        (fields.of_invariants(GRAM), SLOW, True),
        (fields.of_invariants(GRAM), MOMENTUM, True),
        (fields.of_invariants(GRAM), ADAM, False),
        (fields.supervised(CLASSES), SLOW, False),
    ],
)
def test_training_commutes_with_rotations(loss: Loss, optimiser: Optimiser, commutes: bool) -> None:
    """Network by network: turn and train, or train and turn. This is why the law of the parameters stays invariant."""
    start = ensemble().sample(20, seed=1)
    one = turned(last(loss, optimiser, start), rotation())
    other = last(loss, optimiser, turned(start, rotation()))
    gap = max(float((one[k] - other[k]).abs().max()) for k in one)
    assert gap < 1e-11 if commutes else gap > 1e-2


def run(loss: Loss, optimiser: Optimiser) -> list[fields.SymmetryTest]:
    """Tests of the outputs and of the readout before and after training."""
    records = fields.track(
        ensemble(),
        "SO(D)",
        POINTS,
        loss,
        count=4_000,
        steps=30,
        every=30,
        optimiser=optimiser,
        parameters={"readout.weight": 0, "readout.bias": 0},
    )
    assert records[-1].loss < 0.5 * records[0].loss
    before, after = ([r.outputs, *r.parameters.values()] for r in records)
    assert not any(test.rejected for test in before)
    return after


def test_a_loss_of_invariants_keeps_the_symmetry() -> None:
    assert not any(test.rejected for test in run(fields.of_invariants(GRAM), SLOW))


def test_a_supervised_loss_breaks_it() -> None:
    outputs, weights, biases = run(fields.supervised(CLASSES), partial(torch.optim.SGD, lr=0.1))
    assert outputs.p_value < 1e-9 and biases.p_value < 1e-9
    assert weights.p_value < 1e-3


def test_adam_breaks_it_even_with_a_loss_of_invariants() -> None:
    outputs, _, biases = run(fields.of_invariants(GRAM), ADAM)
    assert outputs.p_value < 1e-6 and biases.p_value < 1e-6


def test_fixed_training_points_break_rotations_of_the_inputs() -> None:
    """The loss is invariant under SO(D) alone: the points stay where they are."""
    net = ensemble()
    trained = last(fields.of_invariants(GRAM), SLOW, net.sample(6_000, seed=0))
    rotated = POINTS @ torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    sizes = [net.evaluate(trained, x).square().sum(-1) for x in (POINTS, rotated)]
    gap = (sizes[0] - sizes[1]).mean(1)
    assert gap.mean().abs() > 5 * gap.std() / len(gap) ** 0.5


def test_a_stack_is_many_networks() -> None:
    """Each network of a stack takes the steps that it takes alone, in torch's own loop."""
    module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    net = fields.Ensemble(module, {n: fields.Normal(0.5) for n, _ in module.named_parameters()})
    start = net.sample(3, seed=0)
    loss = fields.supervised(CLASSES)
    for optimiser in (MOMENTUM, ADAM):
        shots = [*evolve(module, start, POINTS, loss, steps=5, every=2, optimiser=optimiser)]
        assert [shot.step for shot in shots] == [0, 2, 4, 5]
        alone = {k: v[1].clone().requires_grad_() for k, v in start.items()}
        engine = optimiser(list(alone.values()))
        for _ in range(5):
            engine.zero_grad()
            loss(functional_call(module, alone, (POINTS,))).backward()
            engine.step()
        for name, value in alone.items():
            assert torch.allclose(shots[-1].params[name][1], value, rtol=1e-12, atol=1e-14)
        assert all(bool((shots[0].params[k] == start[k]).all()) for k in start)


def test_bad_input() -> None:
    net = ensemble()
    fast = partial(torch.optim.SGD, lr=50.0)
    with pytest.raises(InputError, match="smaller rate"):
        list(evolve(net.module, net.sample(5, seed=0), POINTS, fields.of_invariants(GRAM), steps=50, optimiser=fast))
    with pytest.raises(InputError, match="every"):
        list(evolve(net.module, net.sample(5, seed=0), POINTS, fields.of_invariants(GRAM), steps=5, every=0))
    with pytest.raises(InputError, match="acts on inputs"):
        fields.track(net, "SO(d)", POINTS, fields.of_invariants(GRAM), count=100, steps=1, every=1)
