"""What of a model's outputs counts: the same module, with a function of its outputs as output."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.nesting import observe

Observable = str | Callable[[Any], Any]
"""A name ("outputs", "probabilities"), or a function of whatever the model returns."""

NAMES = ("outputs", "probabilities")


def observed(model: nn.Module, observable: Observable) -> nn.Module:
    """A module with the parameters, buffers and modules of `model` whose forward returns the observable.

    Args:
        model: left as it is; the result shares its tensors.
        observable: "outputs": `model` itself. "probabilities": softmax over the last dimension of the logits, that is
            of the output named `logits`, else of the only floating output. Or a function of what the model returns;
            it may return any nesting of tensors.

    Raises:
        InputError: an unknown name.
    """
    if isinstance(observable, str):
        if observable not in NAMES:
            raise InputError(
                f"there is no observable named {observable!r}",
                remedy=f"Give one of {', '.join(NAMES)}, or a function of the model's outputs.",
            )
        if observable == "outputs":
            return model
        observable = probabilities
    return _Watched.of(model, observable)


def probabilities(output: Any) -> dict[str, Tensor]:
    """Softmax over the last dimension of the logits.

    Args:
        output: what a classifier or a language model returns, logits [..., classes].

    Raises:
        InputError: several outputs, none of them named `logits`.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None:
        found = observe(output)[0]
        if len(found) != 1:
            names = ", ".join(name for name, _ in found) or "none"
            raise InputError(
                f"probabilities of which output? The model returns {names}",
                remedy="Give a function: observable=lambda out: out[0].softmax(-1).",
            )
        logits = found[0][1]
    return {"probabilities": logits.softmax(-1)}


class _Watched:
    """Makes a class like the model's own, so that its names, its modules and its configuration stay what they are."""

    @staticmethod
    def of(model: nn.Module, function: Callable[[Any], Any]) -> nn.Module:
        kind = type(model)
        original = model.__dict__.get("forward", kind.forward)
        bound = "forward" in model.__dict__

        @functools.wraps(original)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return function(original(*args, **kwargs) if bound else original(self, *args, **kwargs))

        watched = copy.copy(model)
        watched.__dict__.pop("forward", None)
        watched.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
        return watched
