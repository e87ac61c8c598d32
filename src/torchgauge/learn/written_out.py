"""Normalisations written out in elementary operators.

PyTorch's own have right first and second derivatives, but a third derivative in nested forward mode comes out wrong
(seen up to version 2.13: brackets of brackets of gradients through `layer_norm` or training-mode `batch_norm` are off
by several percent). Lie brackets need such derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class WrittenOut(TorchFunctionMode):
    """Computes every normalisation by elementary operators while the context lasts."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function: Any = _INSTEAD.get(func, func)
        return function(*args, **(kwargs or {}))


def _centred(x: Tensor, axes: list[int], eps: float) -> Tensor:
    x = x - x.mean(axes, keepdim=True)
    return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _channels(x: Tensor, value: Tensor | None) -> Tensor | None:
    return None if value is None else value.reshape(1, -1, *[1] * (x.ndim - 2))


def layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    axes = list(range(input.ndim - len(tuple(normalized_shape)), input.ndim))
    return _affine(_centred(input, axes, eps), weight, bias)


def rms_norm(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    axes = list(range(input.ndim - len(tuple(normalized_shape)), input.ndim))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(input * torch.rsqrt((input * input).mean(axes, keepdim=True) + eps), weight, None)


def group_norm(input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    split = input.reshape(input.shape[0], num_groups, -1)
    x = _centred(split, [2], eps).reshape(input.shape)
    return _affine(x, _channels(x, weight), _channels(x, bias))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        x = _centred(input, [0, *range(2, input.ndim)], eps)
    else:
        mean, scale = _channels(input, running_mean), _channels(input, torch.rsqrt(running_var + eps))
        assert mean is not None and scale is not None
        x = (input - mean) * scale
    return _affine(x, _channels(x, weight), _channels(x, bias))


_INSTEAD: dict[Any, Callable[..., Any]] = {
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    F.group_norm: group_norm,
    F.batch_norm: batch_norm,
}
