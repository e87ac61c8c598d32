"""Catalogue 1.4: one attention layer on float inputs. Numbers are for eps = 0 where the name says so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.blocks import normal
from tests.zoo.case import Case

Score = Literal["sdpa", "softmax", "einsum", "relu", "sigmoid", "linear"]


@dataclass(frozen=True)
class Shape:
    """Sizes and options of one attention layer."""

    d: int = 6
    heads: int = 2
    groups: int = 2
    head: int = 3
    value: int = 3
    bias: bool = False
    out_bias: bool = False
    score: Score = "softmax"
    causal: bool = True
    rotary: Literal["", "half", "interleaved", "reordered"] = ""
    rotated: int = 0
    alibi: bool = False
    qk_norm: float | None = None
    qk_norm_all: float | None = None
    """ε of a norm over all heads at once, as in OLMo-2."""
    plain_norm: Literal["", "before", "after"] = ""
    """A norm of queries and keys without gains (ε = 1e-5), before or after they are rotated."""


def angles(length: int, size: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency: [length, size / 2]."""
    frequency = 1.0 / 100.0 ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    phase = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return phase.cos(), phase.sin()


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def turn(x: Tensor, layout: str) -> Tensor:
    """Rotary embedding of x [..., T, size], in either layout; "reordered": from interleaved to half (DeepSeek)."""
    cos, sin = angles(x.shape[-2], x.shape[-1])
    if layout == "half":
        return x * torch.cat((cos, cos), -1) + rotate_half(x) * torch.cat((sin, sin), -1)
    a, b = x[..., 0::2], x[..., 1::2]
    if layout == "reordered":
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class LearnedAngles(nn.Module):
    """Attention of one head, rotary by angles of which those of the first place are parameters (MLCD)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1, d // 2))
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = (torch.cat((a, a), -1)[1:] for a in angles(x.shape[-2], x.shape[-1]))
        first = torch.cat((self.first, self.first), -1)
        cos, sin = torch.cat((first.cos(), cos)), torch.cat((first.sin(), sin))
        q, k = (y * cos + rotate_half(y) * sin for y in (self.q(x), self.k(x)))
        return self.o(F.scaled_dot_product_attention(q, k, self.v(x)))


class DroppedAngles(nn.Module):
    """Attention of one head, rotary, whose cosines and sines pass dropouts of their own (LASR)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = (self.dropout(torch.cat((a, a), -1)) for a in angles(x.shape[-2], x.shape[-1]))
        q, k = (y * cos + rotate_half(y) * sin for y in (self.q(x), self.k(x)))
        return self.o(F.scaled_dot_product_attention(q, k, self.v(x)))


class Gain(nn.Module):
    """RMS norm over a head, written out."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Attention(nn.Module):
    """Grouped-query attention with the options of `Shape`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        s = self.shape = shape
        self.q = nn.Linear(s.d, s.heads * s.head, bias=s.bias)
        self.k = nn.Linear(s.d, s.groups * s.head, bias=s.bias)
        self.v = nn.Linear(s.d, s.groups * s.value, bias=s.bias)
        self.o = nn.Linear(s.heads * s.value, s.d, bias=s.out_bias)
        if s.qk_norm is not None:
            self.q_norm, self.k_norm = Gain(s.head, s.qk_norm), Gain(s.head, s.qk_norm)
        if s.qk_norm_all is not None:
            self.q_all, self.k_all = Gain(s.heads * s.head, s.qk_norm_all), Gain(s.groups * s.head, s.qk_norm_all)

    def forward(self, x: Tensor) -> Tensor:
        s = self.shape
        b, t, _ = x.shape
        q, k = self.q(x), self.k(x)
        if s.qk_norm_all is not None:
            q, k = self.q_all(q), self.k_all(k)
        q = q.view(b, t, s.heads, s.head).transpose(1, 2)
        k = k.view(b, t, s.groups, s.head).transpose(1, 2)
        v = self.v(x).view(b, t, s.groups, s.value).transpose(1, 2)
        if s.qk_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if s.plain_norm == "before":
            q, k = (F.rms_norm(y, (s.head,), eps=1e-5) for y in (q, k))
        q, k = self._rotate(q), self._rotate(k)
        if s.plain_norm == "after":
            q, k = (F.rms_norm(y, (s.head,), eps=1e-5) for y in (q, k))
        if s.heads != s.groups:
            k, v = (y.repeat_interleave(s.heads // s.groups, 1) for y in (k, v))
        y = self._mix(q, k, v).transpose(1, 2).reshape(b, t, s.heads * s.value)
        return self.o(y)

    def _rotate(self, x: Tensor) -> Tensor:
        s = self.shape
        if not s.rotary:
            return x
        if not s.rotated:
            return turn(x, s.rotary)
        return torch.cat((turn(x[..., : s.rotated], s.rotary), x[..., s.rotated :]), -1)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s, t = self.shape, q.shape[-2]
        if s.score == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, is_causal=s.causal)
        if s.score == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(s.head)
        else:
            scores = q @ k.transpose(-1, -2) * s.head**-0.5
        mask = torch.ones(t, t, dtype=torch.bool).tril()
        if s.alibi:
            slopes = torch.tensor([2.0 ** -(i + 1) for i in range(s.heads)], dtype=x_dtype(q))
            distance = torch.arange(t)[None, :] - torch.arange(t)[:, None]
            scores = scores + slopes[:, None, None] * distance
        if s.score in ("softmax", "einsum"):
            weights = scores.masked_fill(~mask, float("-inf")).softmax(-1) if s.causal else scores.softmax(-1)
        elif s.score == "linear":
            weights = scores * mask
        else:
            weights = (F.relu(scores) if s.score == "relu" else torch.sigmoid(scores)) * mask
        return torch.einsum("bhij,bhjd->bhid", weights, v) if s.score == "einsum" else weights @ v


def x_dtype(x: Tensor) -> torch.dtype:
    return x.dtype


class MultiHead(nn.Module):
    """torch.nn.MultiheadAttention on one input."""

    def __init__(self, d: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(d, heads, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Cross(nn.Module):
    """torch.nn.MultiheadAttention from one input to another of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, kdim=5, vdim=4, batch_first=True)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x, y, z)


class Distances(nn.Module):
    """Scores get a number for each distance to the past that every token makes for itself, up to an extent."""

    def __init__(self, d: int, profiles: int, extent: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.r, self.profiles = nn.Linear(d, profiles), nn.Parameter(torch.zeros(profiles, extent))

    def forward(self, x: Tensor) -> Tensor:
        place, extent = torch.arange(x.shape[1]), self.profiles.shape[1]
        distance = (place[:, None] - place)[None]
        near = self.r(x) @ self.profiles
        near = near.gather(-1, distance.clamp(0, extent - 1).expand(len(x), -1, -1))
        near = near.masked_fill((distance < 0) | (distance >= extent), 0.0)
        scores = (self.q(x) @ self.k(x).mT + near).masked_fill(distance < 0, float("-inf"))
        return scores.softmax(-1) @ self.v(x)


X = normal(24, 6, 6)


def case(name: str, orbit: int, *, row: str = "1.4", **options: object) -> Case:
    shape = Shape(**options)  # type: ignore[arg-type]
    return Case(f"attn_{name}", lambda: Attention(shape), normal(24, 6, shape.d), orbit, row=row)


CASES: tuple[Case, ...] = (
    case("mha", 36),
    case("mha_sdpa", 36, score="sdpa"),
    case("mha_sdpa_full", 36, score="sdpa", causal=False),
    case("mha_einsum", 36, score="einsum"),
    case("alibi", 36, alibi=True),
    case("sigmoid", 36, score="sigmoid"),
    case("wide_heads", 96, d=4, head=5, value=5),
    case("bias", 48, bias=True, out_bias=True),
    case("bias_no_out_bias", 42, bias=True),
    case("gqa", 36, d=8, heads=4, head=3),
    case("gqa_sdpa_bias", 36 + 4 * 3 + 0, d=8, heads=4, bias=True, out_bias=True, score="sdpa"),
    case("mqa", 18, heads=2, groups=1),
    case("rope_half", 40, d=8, head=4, value=4, rotary="half"),
    case("rope_interleaved", 40, d=8, head=4, value=4, rotary="interleaved"),
    case("rope_half_sdpa", 40, d=8, head=4, value=4, rotary="half", score="sdpa"),
    case("rope_bias", 48, d=8, head=4, value=4, rotary="half", bias=True, out_bias=True),
    case("rope_reordered", 40, d=8, head=4, value=4, rotary="reordered"),
    case("rope_reordered_partial", 44, d=8, head=4, value=4, rotary="reordered", rotated=2),
    case("rope_relu", 42, d=8, head=4, value=4, rotary="half", score="relu"),
    case("rope_norm_plain", 36, d=8, head=4, value=4, rotary="half", plain_norm="before"),
    case("rope_plain_norm", 36, d=8, head=4, value=4, rotary="half", plain_norm="after"),
    case("rope_plain_norm_gqa", 18, d=8, groups=1, head=4, value=4, rotary="interleaved", plain_norm="after"),
    case("rope_gqa", 20, d=8, groups=1, head=4, value=4, rotary="half"),
    case("rope_partial", 44, d=8, head=4, value=4, rotary="half", rotated=2),
    case("rope_partial_interleaved", 44, d=8, head=4, value=4, rotary="interleaved", rotated=2),
    Case("rope_learned", lambda: LearnedAngles(6), X, 42, batches=4),
    Case("rope_dropped", lambda: DroppedAngles(6), X, 42, batches=4),
    # what is masked twice need not be: a number for all of the past passes the softmax, and one for a part does not
    Case("distances", lambda: Distances(6, 2, 6), X, 36 + 4 + 2, batches=4),
    Case("distances_near", lambda: Distances(6, 2, 4), X, 36 + 4, batches=4),
    case("qk_norm", 25, qk_norm=0.0),
    case("qk_norm_eps", 21, qk_norm=1e-5),
    case("qk_norm_rope", 38, d=8, head=4, value=4, rotary="half", qk_norm=0.0),
    case("qk_norm_rope_eps", 34, d=8, head=4, value=4, rotary="half", qk_norm=1e-5),
    case("qk_norm_all", 24, qk_norm_all=1e-5),
    case("qk_norm_all_rope", 36, d=8, head=4, value=4, rotary="half", qk_norm_all=1e-5),
    case("qk_norm_all_gqa", 24, d=8, heads=4, qk_norm_all=1e-5),
    case("relu", 38, score="relu"),
    case("linear", 38, score="linear"),
    Case("attn_torch_mha", lambda: MultiHead(6, 2, bias=True), X, 48, row="1.4"),
    Case("attn_torch_mha_nobias", lambda: MultiHead(6, 2, bias=False), X, 36, row="1.4"),
    Case(
        "attn_torch_cross",
        Cross,
        lambda g: tuple(torch.randn(24, t, d, generator=g, dtype=torch.float64) for t, d in ((5, 6), (6, 5), (6, 4))),
        48,
        row="1.4",
    ),
)
