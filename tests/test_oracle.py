"""The judge is judged: it must reproduce measured numbers that do not depend on the package."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .oracle import nullity


def vectors(n: int, batch: int = 4, scale: float = 2.0):
    return lambda g: scale * torch.randn(batch, n, generator=g, dtype=torch.float64)


def tokens(vocabulary: int, batch: int = 2, length: int = 6):
    return lambda g: torch.randint(vocabulary, (batch, length), generator=g)


def stack(*widths: int, act: type[nn.Module] | None = None, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        layers.append(nn.Linear(a, b, bias=bias))
        if act is not None and i < len(widths) - 2:
            layers.append(act())
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("widths", "bias", "expected"), [((2, 3, 1), True, 10), ((2, 4, 4, 1), True, 34), ((5, 4, 3), False, 17)]
)
def test_linear_stack(widths: tuple[int, ...], bias: bool, expected: int) -> None:
    found = nullity(stack(*widths, bias=bias), vectors(widths[0]))
    assert found.nullity == expected
    assert found.gap > 6


@pytest.mark.parametrize("act", [nn.Tanh, nn.GELU, nn.SiLU])
def test_smooth_mlp_has_none(act: type[nn.Module]) -> None:
    found = nullity(stack(2, 4, 4, 1, act=act), vectors(2, scale=3.0))
    assert (found.nullity, found.parameters, found.dead) == (0, 37, 0)


@pytest.mark.parametrize(
    ("widths", "seed", "expected"), [((2, 3, 1), 0, 3), ((4, 8, 8, 2), 0, 16), ((4, 8, 8, 2), 3, 16)]
)
def test_relu_mlp_has_one_per_unit(widths: tuple[int, ...], seed: int, expected: int) -> None:
    # seeds without units that are always on, dead or never co-active; many inputs, or regions are missed
    found = nullity(stack(*widths, act=nn.ReLU), vectors(widths[0], 64, 4.0), seed=seed, oversample=20)
    assert found.nullity == expected


def test_relu_mlp_with_a_dead_unit_has_more() -> None:
    assert nullity(stack(4, 8, 8, 2, act=nn.ReLU), vectors(4, 64, 4.0), seed=1, oversample=20).nullity > 16


class Attention(nn.Module):
    """Multi-head attention written by hand; rotary when asked."""

    def __init__(
        self, d: int, heads: int, kv: int, d_h: int, d_v: int, bias: bool = False, rotary: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.kv, self.d_h, self.d_v, self.rotary = heads, kv, d_h, d_v, rotary
        self.q = nn.Linear(d, heads * d_h, bias=bias)
        self.k = nn.Linear(d, kv * d_h, bias=bias)
        self.v = nn.Linear(d, kv * d_v, bias=bias)
        self.o = nn.Linear(heads * d_v, d, bias=bias)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            m(x).view(b, t, n, e).transpose(1, 2)
            for m, n, e in ((self.q, self.heads, self.d_h), (self.k, self.kv, self.d_h), (self.v, self.kv, self.d_v))
        )
        if self.rotary:
            q, k = turn(q), turn(k)
        k, v = (z.repeat_interleave(self.heads // self.kv, dim=1) for z in (k, v))
        score = q @ k.transpose(-1, -2) / math.sqrt(self.d_h)
        if causal:
            score = score.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), -math.inf)
        return self.o((score.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1))


def turn(x: Tensor) -> Tensor:
    """Rotary embedding, half layout."""
    t, d = x.shape[-2:]
    rate = 1.0 / 100.0 ** (torch.arange(0, d, 2, dtype=x.dtype) / d)
    angle = torch.outer(torch.arange(t, dtype=x.dtype), rate).repeat(1, 2)
    low, high = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat([-high, low], dim=-1) * angle.sin()


def sequences(d: int, length: int = 5, batch: int = 2):
    return lambda g: torch.randn(batch, length, d, generator=g, dtype=torch.float64)


@pytest.mark.parametrize(
    ("heads", "kv", "d_h", "d_v", "bias", "rotary"),
    [
        (2, 2, 3, 3, False, False),
        (2, 2, 2, 4, False, False),
        (2, 1, 3, 3, False, False),
        (2, 2, 3, 3, True, False),
        (2, 2, 4, 4, False, True),
    ],
)
def test_attention(heads: int, kv: int, d_h: int, d_v: int, bias: bool, rotary: bool) -> None:
    # kv d_h² + kv d_v² + with biases heads (d_h + d_v); rotary: the commutant d_h instead of d_h²
    expected = kv * (d_h if rotary else d_h**2) + kv * d_v**2 + (heads * (d_h + d_v) if bias else 0)
    found = nullity(Attention(8, heads, kv, d_h, d_v, bias, rotary), sequences(8))
    assert found.nullity == expected
    assert found.zero_columns == (heads * d_h if bias else 0)  # the key bias moves nothing


class Norm(nn.Module):
    def __init__(self, d: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class TinyLlama(nn.Module):
    """One block: width 8, two query heads and one key/value head of size 4, SwiGLU of width 6, three norms."""

    def __init__(self, vocabulary: int = 24, tied: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 8)
        self.n1, self.n2, self.n3 = Norm(8, eps), Norm(8, eps), Norm(8, eps)
        self.attention = Attention(8, 2, 1, 4, 4, rotary=True)
        self.gate, self.up = nn.Linear(8, 6, bias=False), nn.Linear(8, 6, bias=False)
        self.down = nn.Linear(6, 8, bias=False)
        self.head = nn.Linear(8, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.attention(self.n1(x), causal=True)
        y = self.n2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.n3(x))


@pytest.mark.parametrize(("tied", "eps", "expected"), [(False, 1e-5, 78), (True, 1e-5, 42), (False, 0.0, 79)])
def test_tiny_llama(tied: bool, eps: float, expected: int) -> None:
    found = nullity(TinyLlama(tied=tied, eps=eps), tokens(24))
    assert found.nullity == expected
    assert found.dead == 0
    assert found.gap > 3


def test_batch_norm_in_training_mode() -> None:
    # per unit: scale of the row (soft but for a vanishing eps), the dead bias, and ReLU's scale of gamma and beta
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6, eps=1e-14), nn.ReLU(), nn.Linear(6, 2))
    found = nullity(net, vectors(3, 12))
    assert found.nullity == 18
    assert found.zero_columns == 6


def test_rows_never_read_are_dead_and_apart() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(20, 4, padding_idx=0), nn.Embedding(9, 4)
            self.mix, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
            self.idle = nn.Linear(2, 2)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids) + self.place(torch.arange(ids.shape[1]))
            return self.out(torch.tanh(self.mix(x).cumsum(1)))

    found = nullity(Positions(), tokens(20))
    # three positions of width 4 and the idle layer are never read; GL(4) acts on the tables, and both tables and the
    # bias of `mix` trade two shifts of four dimensions
    assert found.dead == 3 * 4 + 6
    assert found.nullity == 4 + 16 + 4
