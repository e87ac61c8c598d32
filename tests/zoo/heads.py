"""A stream divided into heads: steps on [batch, positions, heads, entries] that do or do not tell the heads apart.

Frames of heads, gains that span heads and entries, and maps between heads must meet at one head; where they do not, a
frame that depends on the head is no symmetry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.blocks import normal
from tests.zoo.case import Case

HEADS, ENTRIES = 3, 4
Step = Callable[[Any, Tensor], Tensor]


def flat(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm over all heads and entries at once."""
    return norm(x.flatten(-2)).reshape(x.shape)


def gram(x: Tensor) -> Tensor:
    """Heads compared with heads."""
    return torch.einsum("bthc,btgc->bthg", x, x)


STEPS: dict[str, tuple[Step, dict[str, Callable[[], Any]]]] = {
    "gain": (lambda s, x: x * s.gain, {"gain": lambda: (HEADS, ENTRIES)}),
    "gain_entries": (lambda s, x: x * s.gain, {"gain": lambda: (ENTRIES,)}),
    "gain_heads": (lambda s, x: x * s.gain, {"gain": lambda: (HEADS, 1)}),
    "gain_flat": (lambda s, x: (x.flatten(-2) * s.gain).reshape(x.shape), {"gain": lambda: (HEADS * ENTRIES,)}),
    "gain_turned": (lambda s, x: (x.mT * s.gain.mT).mT, {"gain": lambda: (HEADS, ENTRIES)}),
    "offset": (lambda s, x: x + s.bias, {"bias": lambda: (HEADS, ENTRIES)}),
    "rms": (lambda s, x: s.norm(x), {"norm": lambda: nn.RMSNorm(ENTRIES, eps=1e-3)}),
    "plain_rms": (lambda s, x: F.rms_norm(x, (ENTRIES,), eps=1e-3), {}),
    "layer": (lambda s, x: s.norm(x), {"norm": lambda: nn.LayerNorm(ENTRIES)}),
    "rms_all": (lambda s, x: flat(s.norm, x), {"norm": lambda: nn.RMSNorm(HEADS * ENTRIES, eps=1e-3)}),
    "layer_all": (lambda s, x: flat(s.norm, x), {"norm": lambda: nn.LayerNorm(HEADS * ENTRIES)}),
    "gram_mix": (lambda s, x: torch.einsum("bthg,btgc->bthc", 0.1 * gram(x), x), {}),
    "gram_softmax": (lambda s, x: torch.einsum("bthg,btgc->bthc", gram(x).softmax(-1), x), {}),
    "attend": (lambda s, x: torch.einsum("bths,bshc->bthc", torch.einsum("bthc,bshc->bths", x, x).softmax(-1), x), {}),
    "shared_map": (lambda s, x: s.map(x), {"map": lambda: nn.Linear(ENTRIES, ENTRIES)}),
    "own_maps": (lambda s, x: torch.einsum("bthc,hcd->bthd", x, s.map), {"map": lambda: (HEADS, ENTRIES, ENTRIES)}),
    "between_heads": (lambda s, x: torch.einsum("bthc,hg->btgc", x, s.map), {"map": lambda: (HEADS, HEADS)}),
    "whole_map": (
        lambda s, x: torch.einsum("bthc,hcgd->btgd", x, s.map),
        {"map": lambda: (HEADS, ENTRIES, HEADS, ENTRIES)},
    ),
    "whole_residual": (
        lambda s, x: x + torch.einsum("bthc,hcgd->btgd", x, s.map),
        {"map": lambda: (HEADS, ENTRIES, HEADS, ENTRIES)},
    ),
    "flat_residual": (
        lambda s, x: x + s.map(x.flatten(-2)).reshape(x.shape),
        {"map": lambda: nn.Linear(HEADS * ENTRIES, HEADS * ENTRIES)},
    ),
    "add_mean": (lambda s, x: x + x.mean(-2, keepdim=True), {}),
    "mean_back": (lambda s, x: x.mean(-2, keepdim=True).expand_as(x), {}),
    "roll": (lambda s, x: x.roll(1, -2), {}),
    "relu": (lambda s, x: torch.relu(x), {}),
    "tanh": (lambda s, x: torch.tanh(x), {}),
    "tanh_heads": (lambda s, x: x * torch.tanh(x.sum(-1, keepdim=True)), {}),
}


class InHeads(nn.Module):
    """A linear map into heads, steps on them, and a linear map back; features last."""

    def __init__(self, n: int, out: int, steps: tuple[str, ...], bias: bool = True, turned: bool = False) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(n, HEADS * ENTRIES, bias=bias), nn.Linear(HEADS * ENTRIES, out, bias=bias)
        self.names, self.turned = steps, turned
        self.steps = nn.ModuleList(nn.Module() for _ in steps)
        for name, step in zip(steps, self.steps, strict=True):
            for key, make in STEPS[name][1].items():
                part = make()
                setattr(step, key, nn.Parameter(torch.zeros(part)) if isinstance(part, tuple) else part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x).unflatten(-1, (HEADS, ENTRIES))
        for name, step in zip(self.names, self.steps, strict=True):
            x = STEPS[name][0](step, x)
        return self.write((x.mT if self.turned else x).flatten(-2))


class HeadNorm(nn.Module):
    """Grouped attention with a norm and its gain over all heads at once in front of the output map (BitNet)."""

    def __init__(self, d: int = 12, heads: int = 4, groups: int = 2, size: int = 3) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, size
        self.q, self.k = nn.Linear(d, heads * size, bias=False), nn.Linear(d, groups * size, bias=False)
        self.v, self.o = nn.Linear(d, groups * size, bias=False), nn.Linear(heads * size, d, bias=False)
        self.norm = nn.RMSNorm(heads * size, eps=1e-2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.size).transpose(1, 2)
        k, v = (w(x).view(b, t, self.groups, self.size).transpose(1, 2) for w in (self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(self.norm(y.transpose(1, 2).reshape(b, t, -1)))


class Temperatures(nn.Module):
    """Grouped attention with a temperature of its own for every head and place: s_h log t + b_h (Mistral Large 4)."""

    def __init__(self, groups: int, d: int = 6, heads: int = 4, size: int = 3) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, size
        self.q, self.k = nn.Linear(d, heads * size, bias=False), nn.Linear(d, groups * size, bias=False)
        self.v, self.o = nn.Linear(d, groups * size, bias=False), nn.Linear(heads * size, 3, bias=False)
        self.scale, self.bias = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.zeros(heads))
        self.register_buffer("logs", torch.arange(1.0, 6.0).log())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for w in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) if self.groups > 1 else t for t in (k, v))
        q = q * (self.scale[:, None] * self.logs + self.bias[:, None])[..., None]
        return self.o((torch.softmax(q @ k.mT, -1) @ v).transpose(1, 2).flatten(2))


class PixelShuffle(nn.Module):
    """A normed stream over patches, four neighbours side by side in a second norm, and a map (InternVL)."""

    def __init__(self, n: int = 9, d: int = 6, out: int = 5) -> None:
        super().__init__()
        self.read, self.norm = nn.Linear(n, d), nn.LayerNorm(d, eps=1e-2)
        self.up, self.down = nn.Linear(d, 7), nn.Linear(7, d, bias=False)
        self.joined, self.head = nn.LayerNorm(4 * d, eps=1e-2), nn.Linear(4 * d, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        b, height, width, d = x.shape
        x = x.view(b, height, width // 2, 2 * d).transpose(1, 2)
        x = x.reshape(b, width // 2, height // 2, 4 * d)
        return torch.tanh(self.head(self.joined(x)))


class GatesInBlocks(nn.Module):
    """A kernel for each channel, and gates that a map of each block of channels makes of it (RecurrentGemma)."""

    def __init__(self, d: int = 4, heads: int = 2, size: int = 3) -> None:
        super().__init__()
        n = heads * size
        self.read, self.write = nn.Linear(d, n), nn.Linear(n, 3, bias=False)
        self.conv = nn.Conv1d(n, n, 3, groups=n, padding=1)
        self.maps, self.bias = nn.Parameter(torch.zeros(heads, size, size)), nn.Parameter(torch.zeros(heads, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(self.read(x).mT).mT
        blocks = h.reshape(-1, len(self.maps), self.maps.shape[1]).transpose(0, 1)
        gates = torch.sigmoid(torch.baddbmm(self.bias, blocks, self.maps))
        return self.write(h * gates.transpose(0, 1).reshape(h.shape))


def steps(*names: str) -> Callable[[], nn.Module]:
    return lambda: InHeads(14, 15, names, bias=False)


X = normal(40, 3, 14)
TOKENS = normal(60, 5, 6)

CASES: tuple[Case, ...] = (
    Case("heads_norm_over_all", HeadNorm, normal(30, 5, 12), 36, row="theory 2"),
    Case("heads_temperatures", lambda: Temperatures(4), TOKENS, 36 + 36 + 4, batches=2),
    Case("heads_temperatures_grouped", lambda: Temperatures(2), TOKENS, 18 + 18 + 4, batches=2),
    Case("heads_temperatures_shared", lambda: Temperatures(1), TOKENS, 9 + 9 + 4, batches=2),
    Case("heads_pixel_shuffle", PixelShuffle, normal(30, 4, 4, 9), 83, row="theory 2"),
    Case("heads_gates_in_blocks", GatesInBlocks, normal(30, 5, 4), 12, row="theory 2"),
    Case("heads_gain", steps("rms", "gain"), X, 34, row="theory 2"),
    Case("heads_gram", steps("gram_softmax"), X, 6, row="theory 2"),
    Case("heads_shared_map", steps("rms", "gain", "shared_map", "tanh"), X, 8, row="theory 2"),
    Case("heads_whole_map", steps("plain_rms", "whole_map", "plain_rms"), X, 36, row="theory 2"),
)
