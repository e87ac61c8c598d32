"""Calls of operators whose arguments a schema does not tell: layers, convolutions, normalisations, attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, init=False)
class Data:
    """A place for data that a linear layer makes."""

    shape: tuple[int, ...]

    def __init__(self, *shape: int) -> None:
        object.__setattr__(self, "shape", shape)


@dataclass(frozen=True, init=False)
class Weight:
    """A place for a parameter of its own, or for a buffer."""

    shape: tuple[int, ...]
    positive: bool
    buffer: bool

    def __init__(self, *shape: int, positive: bool = False, buffer: bool = False) -> None:
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "positive", positive)
        object.__setattr__(self, "buffer", buffer)

    def make(self, generator: torch.Generator | None = None) -> Tensor:
        """Generic numbers, float64."""
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        return 0.5 + x.abs() if self.positive else x


def _whole(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def _norm(*shape: int) -> list[Any]:
    return [Data(*shape), [shape[-1]], Weight(shape[-1], positive=True), Weight(shape[-1]), 1e-5]


def _batch_norm() -> list[Any]:
    mean, var = Weight(4, buffer=True), Weight(4, positive=True, buffer=True)
    return [Data(5, 4, 3), Weight(4, positive=True), Weight(4), mean, var, False, 0.1, 1e-5, False]


def _conv(n: int, *, transpose: bool = False, groups: int = 1) -> list[Any]:
    size = (4,) * n
    weight = Weight(4, 3, *(2,) * n) if transpose else Weight(3, 4 // groups, *(2,) * n)
    return [Data(2, 4, *size), weight, Weight(3), [1] * n, [0] * n]


def _pool(n: int) -> list[Any]:
    return [Data(2, 3, *(4,) * n), [2] * n, [2] * n]


def _upsample(n: int, *flags: bool) -> list[Any]:
    return [Data(2, 3, *(3,) * n), [6] * n, *flags]


def _recurrent(gates: int, states: int) -> list[Any]:
    zeros = torch.zeros(1, 2, 2, dtype=torch.float64)
    weights = [Weight(2 * gates, 4), Weight(2 * gates, 2), Weight(2 * gates), Weight(2 * gates)]
    return [Data(3, 2, 4), [zeros] * states if states > 1 else zeros, weights, True, 1, 0.0, False, False, False]


_MASK = torch.tensor([True, False, True, False])
_HEADS = (2, 2, 5, 4)
RECIPES: dict[str, Sequence[list[Any]]] = {
    "linear": [[Data(3, 4), Weight(5, 4), Weight(5)], [Data(3, 4), Weight(5, 4)]],
    "bilinear": [[Data(3, 4), Data(3, 4), Weight(2, 4, 4), Weight(2)]],
    "addmm": [[Weight(5), Data(3, 4), Weight(4, 5)]],
    "addmv": [[Weight(4), Data(4, 3), Weight(3)]],
    "addbmm": [[Weight(3, 5), Data(2, 3, 4), Data(2, 4, 5)]],
    "baddbmm": [[Weight(2, 3, 5), Data(2, 3, 4), Data(2, 4, 5)]],
    "mm": [[Data(3, 4), Data(4, 5)]],
    "bmm": [[Data(2, 3, 4), Data(2, 4, 5)]],
    "matmul": [[Data(2, 3, 4), Data(2, 4, 5)], [Data(3, 4), Weight(4, 5)]],
    "linalg_matmul": [[Data(2, 3, 4), Data(2, 4, 5)]],
    "mv": [[Data(3, 4), Data(4)]],
    "tensordot": [[Data(3, 4), Data(4, 5), [1], [0]]],
    "einsum": [["bqd,bkd->bqk", [Data(2, 3, 4), Data(2, 5, 4)]]],
    "conv1d": [_conv(1)],
    "conv2d": [_conv(2)],
    "conv3d": [[Data(1, 3, 3, 3, 3), Weight(2, 3, 2, 2, 2), Weight(2)]],
    "conv_transpose1d": [[Data(2, 4, 4), Weight(4, 3, 2), Weight(3)]],
    "conv_transpose2d": [[Data(2, 4, 4, 4), Weight(4, 3, 2, 2), Weight(3)]],
    "conv_transpose3d": [[Data(1, 3, 3, 3, 3), Weight(3, 2, 2, 2, 2), Weight(2)]],
    "convolution": [[*_conv(2), [1, 1], False, [0, 0], 1]],
    "_convolution": [[*_conv(2), [1, 1], False, [0, 0], 1, False, False, False, False]],
    "layer_norm": [_norm(3, 4)],
    "native_layer_norm": [_norm(3, 4)],
    "rms_norm": [[Data(3, 4), [4], Weight(4, positive=True), 1e-5]],
    "group_norm": [[Data(3, 4, 5), 2, Weight(4, positive=True), Weight(4), 1e-5]],
    "batch_norm": [_batch_norm()],
    "instance_norm": [[Data(3, 4, 5), Weight(4, positive=True), Weight(4), None, None, True, 0.1, 1e-5, False]],
    "_native_batch_norm_legit_no_training": [[*_batch_norm()[:5], 0.1, 1e-5]],
    "prelu": [[Data(3, 4), Weight(4, positive=True)], [Data(3, 4), Weight(1, positive=True)]],
    "embedding": [[Data(6, 4), _whole(0, 2, 3, 1)]],
    "embedding_bag": [[Data(6, 4), _whole(0, 2, 3, 1), _whole(0, 2)]],
    "_weight_norm": [[Data(4, 3), Weight(4, 1, positive=True), 0]],
    "_weight_norm_interface": [[Data(4, 3), Weight(4, 1, positive=True), 0]],
    "scaled_dot_product_attention": [[Data(*_HEADS), Data(*_HEADS), Data(*_HEADS)]],
    "glu": [[Data(3, 4), -1]],
    "softmax": [[Data(3, 4), -1]],
    "log_softmax": [[Data(3, 4), -1]],
    "_softmax": [[Data(3, 4), -1, False]],
    "_log_softmax": [[Data(3, 4), -1, False]],
    "dropout": [[Data(3, 4), 0.5, False]],
    "native_dropout": [[Data(3, 4), 0.5, False]],
    "alpha_dropout": [[Data(3, 4), 0.5, False]],
    "feature_dropout": [[Data(3, 4), 0.5, False]],
    "feature_alpha_dropout": [[Data(3, 4), 0.5, False]],
    "max_pool1d": [_pool(1)],
    "max_pool2d": [_pool(2)],
    "max_pool3d": [_pool(3)],
    "avg_pool1d": [_pool(1)],
    "avg_pool2d": [_pool(2)],
    "avg_pool3d": [_pool(3)],
    "adaptive_avg_pool1d": [[Data(2, 3, 4), [2]]],
    "adaptive_avg_pool2d": [[Data(2, 3, 4, 4), [2, 2]]],
    "adaptive_avg_pool3d": [[Data(1, 3, 4, 4, 4), [2, 2, 2]]],
    "_adaptive_avg_pool2d": [[Data(2, 3, 4, 4), [2, 2]]],
    "_adaptive_avg_pool3d": [[Data(1, 3, 4, 4, 4), [2, 2, 2]]],
    "adaptive_max_pool1d": [[Data(2, 3, 4), [2]]],
    "adaptive_max_pool2d": [[Data(2, 3, 4, 4), [2, 2]]],
    "adaptive_max_pool3d": [[Data(1, 3, 4, 4, 4), [2, 2, 2]]],
    "atleast_1d": [[Data(3, 4)]],
    "atleast_2d": [[Data(3, 4)]],
    "atleast_3d": [[Data(3, 4)]],
    "upsample_nearest1d": [_upsample(1)],
    "upsample_nearest2d": [_upsample(2)],
    "upsample_nearest3d": [_upsample(3)],
    "_upsample_nearest_exact1d": [_upsample(1)],
    "_upsample_nearest_exact2d": [_upsample(2)],
    "_upsample_nearest_exact3d": [_upsample(3)],
    "upsample_linear1d": [_upsample(1, False)],
    "upsample_bilinear2d": [_upsample(2, False)],
    "upsample_bicubic2d": [_upsample(2, False)],
    "upsample_trilinear3d": [_upsample(3, False)],
    "_upsample_bilinear2d_aa": [_upsample(2, False)],
    "_upsample_bicubic2d_aa": [_upsample(2, False)],
    "pixel_shuffle": [[Data(2, 4, 3, 3), 2]],
    "pixel_unshuffle": [[Data(2, 3, 4, 4), 2]],
    "channel_shuffle": [[Data(2, 4, 3), 2]],
    "native_channel_shuffle": [[Data(2, 4, 3), 2]],
    "pad": [[Data(2, 3, 4), [1, 1]]],
    "constant_pad_nd": [[Data(2, 3, 4), [1, 1]]],
    "im2col": [[Data(2, 3, 4, 4), [2, 2], [1, 1], [0, 0], [1, 1]]],
    "col2im": [[Data(2, 12, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1]]],
    "gather": [[Data(3, 4), -1, _whole(1, 0, 3).expand(3, 3)]],
    "take_along_dim": [[Data(3, 4), _whole(1, 0, 3).expand(3, 3), -1]],
    "index_select": [[Data(3, 4), -1, _whole(2, 0)]],
    "index_add": [[Data(3, 4), 0, _whole(0, 2), Data(2, 4)]],
    "index_copy": [[Data(3, 4), 0, _whole(0, 2), Data(2, 4)]],
    "index_fill": [[Data(3, 4), 0, _whole(0, 2), 0.5]],
    "index": [[Data(3, 4), [_whole(0, 2, 1, 1)]]],
    "_unsafe_index": [[Data(3, 4), [_whole(0, 2, 1, 1)]]],
    "index_put": [[Data(3, 4), [_whole(0, 2)], Data(2, 4)]],
    "_unsafe_index_put": [[Data(3, 4), [_whole(0, 2)], Data(2, 4)]],
    "scatter": [[Data(3, 4), 0, torch.zeros(2, 4, dtype=torch.int64), Data(2, 4)]],
    "scatter_add": [[Data(3, 4), 0, torch.zeros(2, 4, dtype=torch.int64), Data(2, 4)]],
    "scatter_reduce": [[Data(3, 4), 0, torch.zeros(2, 4, dtype=torch.int64), Data(2, 4), "sum"]],
    "masked_fill": [[Data(3, 4), _MASK, 0.5]],
    "where": [[_MASK, Data(3, 4), Data(3, 4)]],
    "select_scatter": [[Data(3, 4), Data(4), 0, 1]],
    "slice_scatter": [[Data(3, 4), Data(2, 4), 0, 0, 2]],
    "slice": [[Data(3, 4), 1, 0, 2]],
    "slice_copy": [[Data(3, 4), 1, 0, 2]],
    "narrow": [[Data(3, 4), 1, 0, 2]],
    "expand": [[Data(1, 4), [3, 4]]],
    "expand_as": [[Data(1, 4), torch.zeros(3, 4)]],
    "broadcast_to": [[Data(1, 4), [3, 4]]],
    "repeat_interleave": [[Data(3, 4), 2, 0]],
    "unfold": [[Data(3, 4), -1, 2, 1]],
    "unflatten": [[Data(3, 4), 1, [2, 2]]],
    "pow": [[Data(3, 4), 2], [Data(3, 4), 3], [1.7, Data(3, 4)], [Data(3, 4), Data(3, 4)]],
    "clamp": [[Data(3, 4), -1.0, 1.0], [Data(3, 4), 0.0, None]],
    "clip": [[Data(3, 4), -1.0, 1.0]],
    "topk": [[Data(3, 4), 2, -1]],
    "kthvalue": [[Data(3, 4), 2, -1]],
    "polygamma": [[1, Data(3, 4)]],
    "mvlgamma": [[Data(3, 4), 1]],
    "norm": [[Data(3, 4), 2, [-1]]],
    "linalg_vector_norm": [[Data(3, 4), 2, [-1]]],
    "lstm": [_recurrent(4, 2)],
    "gru": [_recurrent(3, 1)],
    "rnn_tanh": [_recurrent(1, 1)],
    "rnn_relu": [_recurrent(1, 1)],
    "lstm_cell": [[Data(3, 4), [Data(3, 2), Data(3, 2)], Weight(8, 4), Weight(8, 2), Weight(8), Weight(8)]],
    "gru_cell": [[Data(3, 4), Data(3, 2), Weight(6, 4), Weight(6, 2), Weight(6), Weight(6)]],
    "rnn_tanh_cell": [[Data(3, 4), Data(3, 2), Weight(2, 4), Weight(2, 2), Weight(2), Weight(2)]],
    "rnn_relu_cell": [[Data(3, 4), Data(3, 2), Weight(2, 4), Weight(2, 2), Weight(2), Weight(2)]],
}
"""Arguments in schema order, by the operator's name."""
