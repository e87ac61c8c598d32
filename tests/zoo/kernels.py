"""Directions that nobody sees because of the values of other weights (theory 6.3): kernels and preimages of readers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.blocks import mlp, normal, tokens
from tests.zoo.case import Case


class Narrow(nn.Module):
    """A residual stream of width 6 that ends in a mean over positions and a classifier of two classes."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.read = nn.Linear(5, 6, bias=bias)
        self.body = mlp(6, 4, 6, act=nn.GELU, bias=bias)
        self.head = nn.Linear(6, 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.read(x))
        return self.head((x + self.body(x)).mean(1))


class Probe(nn.Module):
    """Attention from one learned query per head: keys are read along it alone."""

    def __init__(self, d: int, heads: int, head: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(heads, head))
        self.k, self.v = (nn.Linear(d, heads * head, bias=False) for _ in range(2))
        self.o = nn.Linear(heads * head, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        k, v = (m(x).view(b, t, *self.probe.shape) for m in (self.k, self.v))
        weights = torch.einsum("hk,bthk->bht", self.probe, k).softmax(-1)
        return self.o(torch.einsum("bht,bthv->bhv", weights, v).flatten(1))


class Mapped(nn.Module):
    """A table behind a map W in front of a layer norm, which does not see W⁻¹1 of any row."""

    def __init__(self, words: int, d: int) -> None:
        super().__init__()
        self.words, self.map = nn.Embedding(words, d), nn.Linear(d, d, bias=False)
        self.norm, self.head = nn.LayerNorm(d, eps=1e-3, elementwise_affine=False), nn.Linear(d, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.gelu(self.norm(self.map(self.words(ids)))))


class Joined(nn.Module):
    """Packed queries, keys and values that read two tensors side by side: the map is cut, its heads stay."""

    def __init__(self, d: int, heads: int, head: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.qkv, self.o = nn.Linear(2 * d, heads * 3 * head, bias=False), nn.Linear(heads * head, d, bias=False)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        x = torch.cat((torch.tanh(self.a(x)), torch.sin(self.b(x))), -1)
        q, k, v = self.qkv(x).view(b, t, self.heads, -1).transpose(1, 2).chunk(3, -1)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))


class Summed(nn.Module):
    """Gates from sums over groups of a map's outputs, of which only the sums are seen."""

    def __init__(self, d: int, gates: int, each: int) -> None:
        super().__init__()
        self.map, self.sizes = nn.Linear(d, gates * each), (gates, each)
        self.value, self.out = nn.Linear(d, gates), nn.Linear(gates, 4)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.map(x).unflatten(-1, self.sizes).sum(-1))
        return self.out(torch.tanh(self.value(x)) * gate)


CASES: tuple[Case, ...] = (
    Case("narrow_head", lambda: Narrow(bias=False), normal(120, 4, 5), 16, row="theory 6.3"),
    Case("narrow_head_bias", lambda: Narrow(bias=True), normal(120, 4, 5), 22, row="theory 6.3"),
    Case("probe", lambda: Probe(5, 2, 3), normal(60, 4, 5), 44, row="theory 6.3"),
    Case("mapped_table", lambda: Mapped(30, 4), tokens(30, 400), 46, row="theory 6.3"),
    Case("sums_of_outputs", lambda: Summed(5, 2, 3), normal(60, 5), 24, row="theory 3"),
    Case("attn_joined", lambda: Joined(4, 2, 3), normal(24, 5, 4), 36, row="theory 2"),
)
