"""Parameter points at which every unit of a piecewise smooth network is at work.

The kernel is smallest on an open set of parameters. A smooth network is on it almost surely; a network of ReLUs is
not: where a unit is dead or always on, or where two units in a row are never on for the same input, there is more to
move. Some steps of descent bring a random state to where every unit is on both sides of its kinks, and different
units at different inputs. The noise that is added then keeps it generic.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from torchgauge.certify.kinks import Kinked, Kinks
from torchgauge.certify.subject import Evaluate, State, Subject

# units of all layers together whose correlations are looked at in one step
UNITS = 192
# a correlation that does no harm
HARMLESS = 0.3


def balanced(
    subject: Subject,
    generator: torch.Generator,
    *,
    steps: int = 160,
    rate: float = 0.1,
    seconds: float = 8.0,
    choices: bool = False,
) -> State:
    """A generic state at which the units of a network with kinks are balanced on the data.

    Args:
        subject: the model; the state starts from `subject.generic`.
        generator: source of noise.
        steps: steps of descent, at most.
        rate: its learning rate, relative to the size of each parameter.
        seconds: time for the descent.
        choices: whether entries of which the k largest are chosen, such as experts, are balanced too.
    """
    state, start = dict(subject.generic), time.monotonic()
    base = {name: state[name].detach() for name in subject.names}
    sizes = {name: max(float(p.square().mean().sqrt()), 0.1) if p.numel() else 1.0 for name, p in base.items()}
    moves = {name: torch.zeros_like(p, requires_grad=True) for name, p in base.items()}
    evaluates = [subject.sample() for _ in range(4)]  # one of every scale
    descent = torch.optim.Adam(moves.values(), lr=rate)
    for step in range(steps):
        if time.monotonic() - start > seconds:
            break
        for group in descent.param_groups:
            group["lr"] = rate * (1.0 - 0.9 * step / steps)
        here = {name: base[name] + sizes[name] * moves[name] for name in base}
        loss = _imbalance([_calls(subject, evaluate, state, here, choices) for evaluate in evaluates], generator)
        if loss is None or not loss.requires_grad or not bool(loss.isfinite()):
            break
        descent.zero_grad()
        loss.backward()
        descent.step()
    found = dict(state)
    for name, p in base.items():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
        found[name] = p + sizes[name] * (moves[name].detach() + 0.02 * noise)
    found = subject.resolve(found)
    with torch.no_grad():
        finite = all(bool(o.isfinite().all()) for evaluate in evaluates for o in evaluate(found))
    return found if finite else state


def calm(subject: Subject) -> State:
    """The generic state with weights of half the size, at which fewer smooth functions are flat to rounding.

    A GELU far below zero moves nothing in floating point, though no two parameters are redundant.
    """
    state = subject.generic
    return subject.resolve({name: p * 0.5 if name in subject.names and p.ndim > 1 else p for name, p in state.items()})


def _calls(subject: Subject, evaluate: Evaluate, state: State, leaves: State, choices: bool) -> list[Kinked]:
    kinks = Kinks(choices=choices)
    with torch.enable_grad(), kinks:
        evaluate(subject.with_leaves(state, leaves))
    return kinks.calls


def _imbalance(runs: list[list[Kinked]], generator: torch.Generator) -> Tensor | None:
    """How far the units are from being balanced and independent; None where there is nothing to balance."""
    layers = [_rows([call.x for call in same]) for same in zip(*runs, strict=False)]
    kinks = [same[0].at for same in zip(*runs, strict=False)]
    if not layers:
        return None
    loss = torch.stack([_one_sided(z, at) for z, at in zip(layers, kinks, strict=True)]).sum()
    return loss + _dependence(layers, generator)


def _rows(tensors: list[Tensor]) -> Tensor:
    """All inputs and examples as rows, entries of one example as columns, [n, units]."""
    return torch.cat([x.reshape(x.shape[0] if x.ndim > 1 else 1, -1) for x in tensors])


def _one_sided(z: Tensor, at: tuple[float, ...]) -> Tensor:
    """Zero where each unit is on both sides of each kink, most often below a single one.

    Below, because behind a maximum over a window even a rare positive value keeps a unit on.
    """
    spread = z.detach().std(dim=0, correction=0)
    spread = spread.clamp_min(1e-6 * float(z.detach().abs().max()) + 1e-12)
    if len(at) == 1:
        return (F.softsign(2.0 * (z - at[0]) / spread).mean(dim=0) + 0.2).square().mean()
    low, high = at[0], at[-1]
    spread = spread.clamp_min((high - low) / 2)
    above_low = F.softsign(2.0 * (z - low) / spread).mean(dim=0)
    above_high = F.softsign(2.0 * (z - high) / spread).mean(dim=0)
    # what stays in the middle of its range would look linear
    narrow = F.relu(1.0 - z.var(dim=0, correction=0).add(1e-12).sqrt() / (0.7 * (high - low)))
    return ((above_low - 0.3).square() + (above_high + 0.3).square() + narrow.square()).mean()


def _dependence(layers: list[Tensor], generator: torch.Generator) -> Tensor:
    """Correlations between some units of all layers: units that exclude each other hide the weight between them."""
    rows = min(z.shape[0] for z in layers)
    if rows < 3:
        return layers[0].new_zeros(())
    each = max(8, UNITS // len(layers))
    chosen = torch.cat(
        [z[:rows, torch.randperm(z.shape[1], generator=generator)[:each].to(z.device)] for z in layers], dim=1
    )
    chosen = chosen - chosen.mean(dim=0)
    chosen = chosen / (chosen.norm(dim=0) + 1e-9)
    correlation = chosen.T @ chosen
    correlation = correlation - torch.diag(torch.diag(correlation))
    return F.relu(correlation.abs() - HARMLESS).square().sum(dim=1).mean()
