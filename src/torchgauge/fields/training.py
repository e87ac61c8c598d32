"""Ensembles under gradient descent: what training keeps of their symmetry.

All networks of an ensemble take a step at once, as one stack of tensors. If the law of the initial parameters is
invariant under a group, and a step commutes with the group, the law stays invariant (arXiv 2106.00694: a loss whose
gradient is ∂L/∂θ = I_L θ, I_L an invariant). A loss of the invariants f(x)·f(y) does that for rotations of the outputs,
under gradient descent; a target that names directions does not, and neither does an optimiser that works entry by
entry, such as Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import vmap

from torchgauge.errors import InputError
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.stacking import stacked_call
from torchgauge.fields.symmetry.statistics import SymmetryTest, test_outputs
from torchgauge.fields.symmetry.transformations import Transformation

Loss = Callable[[Tensor], Tensor]
"""From the outputs [n, D] of one network at the training points to a number."""
Optimiser = Callable[[list[Tensor]], torch.optim.Optimizer]
Params = dict[str, Tensor]

DESCENT: Optimiser = partial(torch.optim.SGD, lr=0.02)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An ensemble during training.

    Attributes:
        step: steps taken.
        params: name → [count, *shape].
        losses: of each network [count], before the step that follows.
    """

    step: int
    params: Params
    losses: Tensor


@dataclass(frozen=True, eq=False)
class Record:
    """What is left of a symmetry of the outputs at one step.

    Attributes:
        step: steps taken.
        loss: mean over networks.
        outputs: the test on correlators of outputs.
        parameters: the test on the law of each asked parameter.
    """

    step: int
    loss: float
    outputs: SymmetryTest
    parameters: Mapping[str, SymmetryTest]


def evolve(
    module: nn.Module,
    params: Mapping[str, Tensor],
    points: Tensor,
    loss: Loss,
    *,
    steps: int,
    every: int = 1,
    optimiser: Optimiser = DESCENT,
) -> Iterator[Snapshot]:
    """Train a stack of networks, each on its own loss, and yield snapshots at step 0, every, 2 every, ... and the last.

    Args:
        module: the architecture; its own parameters are not read.
        params: name → [count, *shape], left as they are.
        points: training points [n, d].
        loss: of one network's outputs [n, D].
        steps: how many.
        every: steps between snapshots.
        optimiser: makes an optimiser of a list of tensors. It must act on each entry by itself (SGD with or without
            momentum and weight decay, Adam, ...), so that the networks of a stack do not mix.

    Raises:
        InputError: no steps, a loss that is not finite (a rate too large), or a module that draws random numbers.
    """
    if steps < 0 or every < 1:
        raise InputError(f"steps={steps}, every={every}", "evolve", "steps is not negative, every is positive.")
    moving = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    engine = optimiser(list(moving.values()))
    for step in range(steps + 1):
        losses = vmap(loss)(stacked_call(module, moving, points))
        if not bool(torch.isfinite(losses).all()):
            raise InputError(
                f"the loss of {int((~torch.isfinite(losses)).sum())} networks is not finite at step {step}",
                "evolve",
                "Take a smaller rate.",
            )
        if step % every == 0 or step == steps:
            copied = {name: value.detach().clone() for name, value in moving.items()}
            yield Snapshot(step, copied, losses.detach())
        if step < steps:
            engine.zero_grad()
            losses.sum().backward()
            engine.step()


def track(
    ensemble: Ensemble,
    change: Transformation | str,
    points: Tensor,
    loss: Loss,
    *,
    count: int = 5_000,
    seed: int = 0,
    steps: int = 100,
    every: int = 25,
    optimiser: Optimiser = DESCENT,
    parameters: Mapping[str, int] | None = None,
    at: Tensor | None = None,
) -> list[Record]:
    """Test a symmetry of the outputs, and of the laws of some parameters, along a run of training.

    Args:
        ensemble: at initialisation.
        change: a transformation of outputs, or its name.
        points: training points [n, d].
        loss: see `evolve`.
        count: networks.
        seed: of the ensemble.
        steps: see `evolve`.
        every: see `evolve`.
        optimiser: see `evolve`.
        parameters: name → the axis along which the transformation acts on it; its law is tested, too.
        at: points of the test; the training points by default.

    Raises:
        InputError: see `evolve` and `test_outputs`.
    """
    points = ensemble.as_points(points)
    where = points if at is None else ensemble.as_points(at)
    start = ensemble.sample(count, seed=seed)
    records = []
    for shot in evolve(ensemble.module, start, points, loss, steps=steps, every=every, optimiser=optimiser):
        tests = {
            name: test_outputs(_vectors(shot.params[name], axis), change) for name, axis in (parameters or {}).items()
        }
        outputs = ensemble.evaluate(shot.params, where)
        records.append(Record(shot.step, float(shot.losses.mean()), test_outputs(outputs, change), tests))
    return records


def supervised(targets: Tensor) -> Loss:
    """Mean squared error to targets [n, D]: it names directions of the outputs."""
    return lambda out: (out - targets).square().mean()


def of_invariants(gram: Tensor) -> Loss:
    """Mean squared error of the inner products f(x_a)·f(x_b) to gram [n, n]: no rotation of the outputs changes it."""
    return lambda out: (out @ out.mT - gram).square().mean()


def _vectors(parameter: Tensor, axis: int) -> Tensor:
    """A stack of parameters as vectors along one axis [count, vectors, size]; at most four of them, which are alike."""
    return parameter.movedim(axis + 1, -1).reshape(len(parameter), -1, parameter.shape[axis + 1])[:, :4]
