"""Parameter points at which no unit of a piecewise linear network sleeps.

The kernel is smallest on an open set of parameters. A smooth network is on it almost surely; a network of ReLUs is
not: where a unit is dead, or always on, there is more to move. Biases that centre every unit on the data, but for
noise, leave each of them on for some inputs and off for others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchgauge.certify.subject import State, Subject

_CHANNEL_LAST = (nn.Linear, nn.LayerNorm)
_CHANNEL_SECOND = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm,
)  # fmt: skip


def balanced(subject: Subject, generator: torch.Generator, spread: float = 0.3) -> State:
    """A generic state whose biases centre what their layer puts out.

    Args:
        subject: the model; the state starts from `subject.generic`.
        generator: source of noise.
        spread: noise of the centre, in standard deviations of the layer's output.
    """
    state = dict(subject.generic)
    shifts: dict[str, Tensor] = {}
    handles = []
    for path, module in subject.model.named_modules():
        name = f"{path}.bias" if path else "bias"
        name = subject.ties.get(name, name)
        if isinstance(module, _CHANNEL_LAST + _CHANNEL_SECOND) and name in subject.names:
            handles.append(module.register_forward_hook(_centring(name, shifts, generator, spread)))
    try:
        with torch.no_grad():
            subject.at(*subject.draws.next())(state)
    finally:
        for handle in handles:
            handle.remove()
    for name, shift in shifts.items():
        if shift.shape == state[name].shape and bool(shift.isfinite().all()):
            state[name] = state[name] + shift
    return subject.resolve(state)


def _centring(name: str, shifts: dict[str, Tensor], generator: torch.Generator, spread: float) -> Any:
    """A hook that moves the bias `name`, and the layer's output with it."""

    def hook(module: nn.Module, inputs: Any, out: Any) -> Any:
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return None
        last = isinstance(module, _CHANNEL_LAST)
        batched = out.ndim > 1
        dim = out.ndim - 1 if last else min(1, out.ndim - 1)
        if name not in shifts:
            width = out.shape[dim]
            flat = out.movedim(dim, 0).reshape(width, -1)
            noise = torch.randn(width, generator=generator, dtype=torch.float64).to(out.device)
            deviation = flat.std(dim=1) if batched and flat.shape[1] > 1 else torch.ones_like(noise)
            # a little below the centre: behind a maximum over a window even a rare positive value keeps a unit on
            shifts[name] = spread * deviation * (noise - 1.0) - flat.mean(dim=1)
        shape = [-1 if i == dim else 1 for i in range(out.ndim)]
        return out + shifts[name].reshape(shape)

    return hook
