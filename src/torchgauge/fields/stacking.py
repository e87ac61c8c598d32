"""One module on a stack of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from torchgauge.errors import InputError

_NOT_BATCHED = ("Batching rule not implemented", "not yet support", "data-dependent", ".item()", "inplace arithmetic")


def stacked_call(module: nn.Module, params: Mapping[str, Tensor], points: Tensor) -> Any:
    """What a module returns for stacked parameters [count, *shape], its buffers being shared.

    Raises:
        InputError: a module that draws random numbers, or changes its buffers, as it runs.
    """
    buffers = dict(module.named_buffers())
    if any(b.is_meta for b in buffers.values()):
        raise InputError("the module's buffers hold no values", "meta device", "build the module on the CPU")

    def one(p: dict[str, Tensor]) -> Any:
        return functional_call(module, {**p, **buffers}, (points,))

    try:
        return vmap(one)(dict(params))
    except RuntimeError as error:
        text = str(error)
        if any(word in text for word in _NOT_BATCHED):
            return _one_by_one(module, one, params)
        if "randomness" in text:
            raise _impure(module, "draws random numbers as it runs (dropout?)") from error
        if "running_mean" in text:
            raise _impure(module, "changes its buffers as it runs (batch norm?)") from error
        if "Complex" in text and not points.is_complex():
            raise InputError(
                "real points meet complex parameters", type(module).__name__, "give points.to(torch.complex128)"
            ) from error
        raise


def _one_by_one(module: nn.Module, one: Callable[[dict[str, Tensor]], Any], params: Mapping[str, Tensor]) -> Any:
    """Networks in a loop: for operators that torch.func.vmap does not know, as recurrent ones."""
    count = len(next(iter(params.values())))
    before = torch.get_rng_state()
    parts = [one({name: p[i] for name, p in params.items()}) for i in range(count)]
    if not torch.equal(before, torch.get_rng_state()):
        raise _impure(module, "draws random numbers as it runs")
    return torch.stack(parts) if all(isinstance(part, Tensor) for part in parts) else parts


def _impure(module: nn.Module, what: str) -> InputError:
    return InputError(
        f"the module {what}: its outputs are no function of its parameters",
        type(module).__name__,
        "call module.eval(), or leave the layer out",
    )
