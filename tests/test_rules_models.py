"""Whole modules and models lower to constraints with nothing opaque."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from torchgauge.capture import capture
from torchgauge.rules import lower
from torchgauge.spaces.constraints import Program, Rotate

ACTIVATIONS = [
    "CELU",
    "ELU",
    "GELU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "RReLU",
    "SELU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
]

X = torch.randn(2, 5, 8)
IMAGE = torch.randn(2, 4, 6, 6)


class First(nn.Module):
    """A module of which only the first output is observed."""

    def __init__(self, inner: nn.Module, inputs: int = 1) -> None:
        super().__init__()
        self.inner, self.inputs = inner, inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(*(x for _ in range(self.inputs)))[0]


MODULES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    **{n: (lambda n=n: nn.Sequential(nn.Linear(8, 8), getattr(nn, n)(), nn.Linear(8, 8)), X) for n in ACTIVATIONS},
    "GLU": (lambda: nn.Sequential(nn.Linear(8, 8), nn.GLU(), nn.Linear(4, 8)), X),
    "Threshold": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Threshold(0.0, 0.0)), X),
    "attention": (lambda: First(nn.MultiheadAttention(8, 2, batch_first=True), 3), X),
    "attention with bias rows": (
        lambda: First(nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True), 3),
        X,
    ),
    "attention of other sizes": (lambda: First(nn.MultiheadAttention(8, 2, kdim=8, vdim=8), 3), X),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), X),
    "encoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, norm_first=True), 2), X),
    "Conv1d": (lambda: nn.Conv1d(5, 6, 3, padding=1), X),
    "Conv2d groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), IMAGE),
    "Conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), IMAGE),
    "Conv2d circular": (lambda: nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular"), IMAGE),
    "Conv2d unbatched": (lambda: nn.Conv2d(4, 4, 3), IMAGE[0]),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 3), torch.randn(1, 2, 4, 4, 4)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), IMAGE),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(8), X[0]),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), IMAGE),
    "BatchNorm2d plain": (lambda: nn.BatchNorm2d(4, affine=False), IMAGE),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "LayerNorm": (lambda: nn.LayerNorm((5, 8)), X),
    "RMSNorm": (lambda: nn.RMSNorm(8), X),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3), IMAGE),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), IMAGE),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), IMAGE),
    "LPPool2d": (lambda: nn.LPPool2d(2, 2), IMAGE),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(1), IMAGE),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), IMAGE),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(1), IMAGE),
    "ZeroPad2d": (lambda: nn.ZeroPad2d((1, -1, 0, 2)), IMAGE),
    "Upsample": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), IMAGE),
    "Unfold": (lambda: nn.Unfold(2), IMAGE),
    "Embedding": (lambda: nn.Embedding(7, 4), torch.randint(0, 7, (2, 3))),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(7, 4), torch.randint(0, 7, (2, 3))),
    "RNN": (lambda: First(nn.RNN(8, 4, 2, bidirectional=True)), X),
    "LSTM": (lambda: First(nn.LSTM(8, 4, batch_first=True)), X),
    "GRU": (lambda: First(nn.GRU(8, 4)), X),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), X),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)), X),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_lowers_with_nothing_opaque(name: str) -> None:
    make, x = MODULES[name]
    program = lower(capture(make().eval(), (x,)))
    assert not program.opaque
    well_formed(program)


def well_formed(program: Program) -> None:
    """Every tensor is a leaf or defined before it is read, and shapes are positive integers."""
    defined = {*program.params.values(), *program.buffers.values()}
    for constraint in program.constraints:
        for x in constraint.inputs:
            assert x in defined or x.role in ("const", "input")
            assert all(isinstance(n, int) and n > 0 for n in x.shape)
        assert constraint.out not in defined
        defined.add(constraint.out)
    assert all(x in defined or x.role in ("const", "input") for x in program.outputs)
    assert set(program.params) == set(program.coordinates)


SIZES = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 8}
GPT = {"vocab_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
PATCHES = {k: v for k, v in SIZES.items() if k != "vocab_size"} | {"image_size": 16, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}

LANGUAGE: dict[str, tuple[dict[str, Any], int]] = {
    # model → (sizes, rotations in the program)
    "LlamaForCausalLM": (GROUPED, 4),
    "GPT2LMHeadModel": (GPT, 0),
    "BertForMaskedLM": (SIZES, 0),
    "GPTNeoXForCausalLM": (SIZES, 4),
    "GPTJForCausalLM": ({**GPT, "rotary_dim": 4}, 4),
    "PhiForCausalLM": (SIZES, 4),
    "OPTForCausalLM": ({**SIZES, "ffn_dim": 24, "max_position_embeddings": 16, "word_embed_proj_dim": 32}, 0),
    "Gemma2ForCausalLM": ({**WIDE, "query_pre_attn_scalar": 8}, 4),
    "Qwen3ForCausalLM": (WIDE, 4),
    "CohereForCausalLM": (GROUPED, 4),
    "BloomForCausalLM": ({"vocab_size": 32, "hidden_size": 32, "n_layer": 1, "n_head": 4}, 0),
    "FalconForCausalLM": ({**SIZES, "num_kv_heads": 2, "new_decoder_architecture": True}, 4),
    "MambaForCausalLM": ({"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}, 0),
}
VISION: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": PATCHES,
    "ResNetForImageClassification": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
    "ConvNextForImageClassification": {**STAGES, "num_stages": 2},
    "SwinForImageClassification": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2],
        "num_heads": [2],
        "window_size": 4,
    },
}


def hugging_face(name: str, sizes: dict[str, Any]) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    architecture = getattr(transformers, name)
    return architecture(architecture.config_class(**sizes)).eval()


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_lowers_with_nothing_opaque(name: str) -> None:
    sizes, rotations = LANGUAGE[name]
    captured = capture(hugging_face(name, sizes), (), {"input_ids": torch.randint(3, 32, (2, 6))})
    program = lower(captured)
    assert not program.opaque
    assert sum(isinstance(c, Rotate) for c in program.constraints) == rotations
    assert set(program.params) == set(captured.params)
    well_formed(program)


@pytest.mark.parametrize("name", VISION)
def test_a_vision_model_lowers_with_nothing_opaque(name: str) -> None:
    program = lower(capture(hugging_face(name, VISION[name]), (), {"pixel_values": torch.randn(2, 3, 16, 16)}))
    assert not program.opaque
    well_formed(program)


def test_a_model_on_the_meta_device_lowers_alike() -> None:
    for name in ("LlamaForCausalLM", "GPTJForCausalLM"):
        sizes, _ = LANGUAGE[name]
        ids = torch.randint(3, 32, (2, 6))
        real = hugging_face(name, sizes)
        with torch.device("meta"):
            meta = hugging_face(name, sizes)
        lines = [
            [f"{type(c).__name__} {c.out} {c.inputs}" for c in lower(capture(m, (), {"input_ids": i})).constraints]
            for m, i in ((real, ids), (meta, ids.to("meta")))
        ]
        assert lines[0] == lines[1]
