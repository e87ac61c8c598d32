"""Small nets with the numbers of their conserved quantities and of their gauge directions, as catalogued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.zoo.attention import Attention, Shape
from tests.zoo.blocks import Factorised, Gated, Latent, LoRA, Parallel, mlp
from tests.zoo.models import LLAMA, hf
from tests.zoo.normalization import between
from torchgauge.numerics import randomise


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Net:
    """A net, its inputs, and the numbers of laws and of gauge directions at generic parameters."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    laws: int
    gauge: int
    train: bool = False
    nullity: int | None = None
    """Of the Jacobian, where it is larger than the orbit."""

    def model(self) -> nn.Module:
        """In double precision at generic parameters and running statistics."""
        if self.name.startswith("LLaMA"):
            pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
        torch.manual_seed(0)
        model = self.build().double().train(self.train)
        state = randomise(model, torch.Generator().manual_seed(1))
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        return model


def attention(**options: object) -> Callable[[], nn.Module]:
    sizes = {"d": 4, "heads": 2, "groups": 2, "head": 2, "value": 2}
    return lambda: Attention(Shape(**{**sizes, **options}))  # type: ignore[arg-type]


def words(count: int, length: int, vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(vocabulary, generator=generator)[:length] for _ in range(count)])


TOKENS = normal(12, 5, 4)
SMALL_LLAMA = LLAMA | {
    "vocab_size": 12, "hidden_size": 4, "head_dim": 2, "intermediate_size": 4, "rms_norm_eps": 0.1,
}  # fmt: skip

CATALOGUE = (
    Net("linear 5-3-4", lambda: mlp(5, 3, 4, bias=False), (normal(24, 5),), 6, 9),
    Net("linear with bias", lambda: mlp(5, 3, 4), (normal(24, 5),), 6, 12),
    Net("softmax", lambda: nn.Sequential(nn.Linear(5, 4), nn.LogSoftmax(-1)), (normal(24, 5),), 6, 6),
    Net("SwiGLU", lambda: Gated(5, 4, F.silu), (normal(48, 5),), 4, 4),
    Net("MHA", attention(), (TOKENS,), 12, 16),
    Net("MHA with bias", attention(bias=True, out_bias=True), (TOKENS,), 16, 24),
    Net(
        "MHA with rotary embedding",
        attention(d=6, heads=1, groups=1, head=4, value=4, rotary="half"),
        (normal(12, 5, 6),),
        12,
        20,
    ),
    Net("LoRA", lambda: LoRA(5, 4, 2), (normal(24, 5),), 3, 4),
    Net("tied embeddings", lambda: Factorised(9, 3, tie=True), (torch.arange(9),), 0, 3),
    Net("untied embeddings", lambda: Factorised(9, 3, tie=False), (torch.arange(9),), 6, 9),
    Net(
        "weight norm",
        lambda: nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)),
        (normal(48, 3),),
        4,
        4,
    ),
    Net("LLaMA-like", hf("LlamaConfig", "LlamaForCausalLM", **SMALL_LLAMA), (words(60, 6, 12),), 20, 28),
)

X = normal(200, 5)
MORE = (
    Net("ReLU", lambda: mlp(5, 6, 3, act=nn.ReLU), (normal(400, 5),), 6, 6),
    Net("exponential of a log variance", lambda: Latent(3, 4, 5), (normal(48, 3), normal(48, 4)), 4, 8),
    Net("two biases in one sum", lambda: Parallel(3, 4), (normal(48, 3),), 16, 16),
    Net("GRU", lambda: nn.GRU(3, 2), (normal(6, 24, 3),), 4, 4),
    Net(
        "batch norm, training",
        lambda: between(lambda: nn.BatchNorm1d(6, 0.1), nn.ReLU),
        (X,),
        12,
        12,
        train=True,
        nullity=18,
    ),
    Net("batch norm, evaluation", lambda: between(lambda: nn.BatchNorm1d(6), nn.ReLU), (X,), 12, 18),
    Net("layer norm", lambda: between(lambda: nn.LayerNorm(6, 0.1)), (X,), 12, 32),
    Net("layer norm and GELU", lambda: between(lambda: nn.LayerNorm(6, 0.1), nn.GELU), (X,), 6, 6),
    Net("RMS norm", lambda: between(lambda: nn.RMSNorm(6, 0.1), bias=False), (X,), 6, 25),
)
