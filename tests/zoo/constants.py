"""Constants that parameters compute, and biases that take them up (theory section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.blocks import normal
from tests.zoo.case import Case


class Queries(nn.Module):
    """Object queries: a decoder layer that begins with zeros, attends to itself, then to what it is given."""

    def __init__(self, d: int, n: int, given: int, normed: bool = False) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(n, d))
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.q2, self.k2, self.v2, self.o2 = nn.Linear(d, d), nn.Linear(given, d), nn.Linear(given, d), nn.Linear(d, d)
        self.norm, self.norm2, self.out = nn.LayerNorm(d), nn.LayerNorm(d), nn.Linear(d, d)
        self.first = nn.LayerNorm(d) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        positions = self.positions[None].expand(len(x), -1, -1)
        h = torch.zeros_like(positions)
        y = self.first(h)
        queries, keys = self.q(y + positions), self.k(y + positions)
        h = self.norm(h + self.o(F.scaled_dot_product_attention(queries, keys, self.v(y))))
        h = h + self.o2(F.scaled_dot_product_attention(self.q2(h + positions), self.k2(x), self.v2(x)))
        return self.out(self.norm2(h))


class Latents(nn.Module):
    """A few latent vectors, normalised, ask about what is given, and are the stream that takes the answers."""

    def __init__(self, d: int, n: int, given: int, heads: int = 1) -> None:
        super().__init__()
        self.latents, self.norm, self.heads = nn.Parameter(torch.zeros(n, d)), nn.LayerNorm(d), heads
        self.q, self.k, self.v, self.o = nn.Linear(d, 6), nn.Linear(given, 6), nn.Linear(given, 6), nn.Linear(6, d)
        self.out = nn.Linear(d, d + 2)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

        y = F.scaled_dot_product_attention(
            split(self.q(self.norm(self.latents)))[None], split(self.k(x)), split(self.v(x))
        )
        return self.out((self.latents + self.o(y.transpose(1, 2).flatten(2))).tanh())


class Timed(nn.Module):
    """A norm whose gain is one plus what two maps make of fixed features of a time (Voxtral Realtime)."""

    features: Tensor

    def __init__(self, d: int, wide: int) -> None:
        super().__init__()
        self.read, self.norm = nn.Linear(7, d), nn.RMSNorm(d, eps=1e-5)
        self.first, self.second = nn.Linear(d, wide, bias=False), nn.Linear(wide, d, bias=False)
        self.out = nn.Linear(d, 3)
        self.register_buffer("features", torch.linspace(0.2, 1.0, d), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + self.second(F.gelu(self.first(self.features.cos())))
        return self.out(self.norm(self.read(x)) * scale)


class ShortConvolution(nn.Module):
    """A stream plus a convolution of it with one kernel per channel, causal or centred."""

    def __init__(self, d: int, centred: bool) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(4, d), nn.Linear(d, d + 1)
        self.mix = nn.Conv1d(d, d, 3, padding=1 if centred else 2, groups=d, bias=centred)
        self.act = nn.Identity() if centred else nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(x)
        return self.write(self.act(h + self.mix(h.mT)[..., : h.shape[1]].mT))


class Packed(nn.Module):
    """Attention from one probe, with queries, keys and values in one packed map."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.probe, self.heads = nn.Parameter(torch.zeros(1, d)), heads
        self.weight, self.bias = nn.Parameter(torch.zeros(3 * d, d)), nn.Parameter(torch.zeros(3 * d))
        self.o = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        given = (self.probe[None].expand(len(x), -1, -1), x, x)
        maps = zip(given, self.weight.chunk(3), self.bias.chunk(3), strict=True)
        q, k, v = (F.linear(y, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2) for y, w, b in maps)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)[:, 0])


class Beside(nn.Module):
    """Numbers that parameters compute through a network of their own, added to a map of the input."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.seed, self.grow, self.shape = nn.Parameter(torch.zeros(3)), nn.Linear(3, d), nn.Linear(d, d, bias=False)
        self.read, self.out = nn.Linear(5, d), nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.read(x) + self.shape(torch.tanh(self.grow(self.seed)))))


class PerLayer(nn.Module):
    """A table of gates next to the words, on top of what a map makes of the words themselves."""

    def __init__(self, tokens: int, d: int, gates: int, mixed: bool = False) -> None:
        super().__init__()
        self.words, self.extra = nn.Embedding(tokens, d), nn.Embedding(tokens, 2 * gates)
        self.project, self.norm = nn.Linear(d, 2 * gates, bias=False), nn.RMSNorm(gates, eps=0.1)
        self.register_buffer("scale", torch.tensor(gates**0.5), persistent=False)
        self.gate, self.up = (nn.ModuleList(nn.Linear(*s) for _ in range(2)) for s in ((d, gates), (gates, d)))
        self.read, self.out, self.mixed = nn.Linear(3, d), nn.Linear(d, 3), mixed

    def forward(self, ids: Tensor, given: Tensor) -> Tensor:
        words = self.words(ids)
        x, computed = words + self.read(given), self.project(words)
        if self.mixed:  # what a position computes is not a function of its own token
            computed = computed + computed.mean(1, keepdim=True)
        extra = (self.extra(ids) * self.scale).unflatten(-1, (2, -1))
        each = (self.norm(computed.unflatten(-1, (2, -1))) - 0.5 * extra) * 0.7
        for i, (gate, up) in enumerate(zip(self.gate, self.up, strict=True)):
            x = x + up(torch.tanh(gate(x)) * each[:, :, i])
        return self.out(torch.tanh(x))


def words_and_more(g: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randint(0, 7, (24, 5), generator=g), torch.randn(24, 5, 3, generator=g, dtype=torch.float64)


CASES: tuple[Case, ...] = (
    Case("queries_from_zeros", lambda: Queries(4, 3, 5), normal(24, 6, 5), 170, batches=4),
    Case("queries_from_normed_zeros", lambda: Queries(4, 3, 5, normed=True), normal(24, 6, 5), 178, batches=4),
    Case("latents", lambda: Latents(6, 3, 4), normal(24, 7, 4), 120, batches=4),
    Case("latents_in_heads", lambda: Latents(6, 3, 4, heads=2), normal(24, 7, 4), 90, batches=4),
    Case("latents_as_many", lambda: Latents(4, 4, 5), normal(24, 7, 5), 98, batches=4),
    Case("gain_of_a_time", lambda: Timed(5, 4), normal(64, 7), 55),
    Case("short_convolution", lambda: ShortConvolution(5, False), normal(12, 9, 4), 5),
    Case("centred_kernel", lambda: ShortConvolution(5, True), normal(12, 9, 4), 5 + 5 + 5),
    Case("packed_probe", lambda: Packed(4, 2), normal(24, 6, 4), 48, batches=4),
    Case("constant_beside_a_map", lambda: Beside(6), normal(24, 5), 63),
    Case("table_beside_a_map", lambda: PerLayer(7, 4, 3), words_and_more, 45, batches=4),
    Case("table_beside_a_mixing_map", lambda: PerLayer(7, 4, 3, mixed=True), words_and_more, 11, batches=4),
)
