"""What shifts and readers are free because of what reaches them: levels of streams, ranges of maps, tokens in parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.blocks import mlp, normal, tokens
from tests.zoo.case import Case


class Stream(nn.Module):
    """Two pre-norm blocks on a stream that is observed as it is: layer norms do not see the levels of its biases."""

    def __init__(self, d: int, m: int) -> None:
        super().__init__()
        self.read = nn.Linear(5, d)
        self.norms = nn.ModuleList(nn.LayerNorm(d, eps=0.1) for _ in range(2))
        self.blocks = nn.ModuleList(mlp(d, m, d, act=nn.GELU) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return x


class Wide(nn.Module):
    """A narrow layer norm, mapped into a wider stream, which units with and without bias read."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, narrow), nn.LayerNorm(narrow, eps=0.1)
        self.map = nn.Linear(narrow, wide)
        self.one, self.two = nn.Linear(wide, 7), nn.Linear(wide, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.map(self.norm(self.first(x)))
        return torch.tanh(self.one(x)) + torch.sigmoid(self.two(x))


class WideHeads(nn.Module):
    """Attention on a stream that a narrower layer writes: each head averages few directions by weights of its own."""

    def __init__(self, narrow: int, heads: int, head: int) -> None:
        super().__init__()
        wide = heads * head
        self.heads = heads
        self.first, self.map = nn.Linear(6, narrow), nn.Linear(narrow, wide)
        self.q, self.k, self.v, self.o = (nn.Linear(wide, wide) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.map(torch.tanh(self.first(x)))
        q, k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        return torch.tanh(self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class Latents(nn.Module):
    """Cross attention whose queries are read from fewer latent vectors than these have entries."""

    def __init__(self, count: int, d: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(count, d))
        self.q, self.k, self.v = nn.Linear(d, d, bias=False), nn.Linear(4, d, bias=False), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        seen = F.layer_norm(self.latents, self.latents.shape[-1:], eps=0.1)
        weights = torch.einsum("qd,btd->bqt", self.q(seen), self.k(x)).softmax(-1)
        return torch.cat([weights @ self.v(x), self.latents.expand(x.shape[0], -1, -1)], -1)


class Asked(nn.Module):
    """Attention from one learned vector, mapped to a query per head: keys are read along that alone."""

    def __init__(self, d: int, heads: int, head: int) -> None:
        super().__init__()
        self.shape = (heads, head)
        self.probe = nn.Parameter(torch.zeros(1, d))
        self.q, self.k, self.v = (nn.Linear(d, heads * head) for _ in range(3))
        self.o = nn.Linear(heads * head, d)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(self.probe.expand(b, 1, -1)).view(b, 1, *self.shape)
        k, v = (m(x).view(b, t, *self.shape) for m in (self.k, self.v))
        weights = torch.einsum("bqhk,bthk->bhqt", q, k).softmax(-1)
        return self.o(torch.einsum("bhqt,bthv->bqhv", weights, v).flatten(2))


class Probe(nn.Module):
    """PyTorch's attention from one learned vector: batch and heads are one dimension inside (SigLIP's pooling head)."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, d))
        self.attention, self.head = nn.MultiheadAttention(d, heads, batch_first=True), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.attention(self.probe.repeat(x.shape[0], 1, 1), x, x)[0]))


class Tokens(nn.Module):
    """A token in front of patches; positions are added to all, those of the patches from a grid that is filtered."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.patches = nn.Linear(3, d)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, d)), nn.Parameter(torch.zeros(1, 5, d))
        self.norm, self.head = nn.LayerNorm(d, eps=0.1), nn.Linear(d, 4)
        self.read, self.ask = nn.Linear(d, 3), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.positions[:, 1:].transpose(1, 2).reshape(1, -1, 2, 2)
        grid = F.interpolate(grid, size=(2, 2), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        places = torch.cat([self.positions[:, :1], grid], 1)
        x = torch.cat([self.token.expand(x.shape[0], 1, -1), self.patches(x)], 1) + places
        x = self.norm(x)
        return self.head(F.scaled_dot_product_attention(self.read(x), self.ask(x), x))


class Observed(nn.Module):
    """A token beside patches in a stream with layer scales that is observed without a last norm."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.read, self.token = nn.Linear(7, d), nn.Parameter(torch.zeros(1, 2, d))
        self.norms = nn.ModuleList(nn.LayerNorm(d, eps=0.1) for _ in range(2))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(d, 3), nn.GELU(), nn.Linear(3, d)) for _ in range(2))
        self.scales = nn.ParameterList(torch.ones(d) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), 2, -1), self.read(x)], 1)
        for norm, block, scale in zip(self.norms, self.blocks, self.scales, strict=True):
            x = x + scale * block(norm(x))
        return x


class Averaged(nn.Module):
    """Attention without biases behind a layer norm with one: values may hold a constant that a later norm drops."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read, self.norm, self.last = nn.Linear(7, d), nn.LayerNorm(d, eps=0.1), nn.LayerNorm(d, eps=0.1)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        y = self.norm(x)
        q, k, v = (m(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last(x + self.o(y))


class Valued(nn.Module):
    """Attention without biases in a post-norm block: what values add trades with the bias of the norm in front."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read, self.norm, self.last = nn.Linear(7, d), nn.LayerNorm(d, eps=0.1), nn.LayerNorm(d, eps=0.1)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.read(x))
        q, k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        return self.last(x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class Slow(nn.Module):
    """Queries and keys with gains of their own, of which a rotary embedding turns the first planes only."""

    def __init__(self, d: int, head: int, turned: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d, head, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.RMSNorm(head, eps=0.1) for _ in range(2))
        rate = torch.tensor([2.0**-i if i < turned else 0.0 for i in range(head // 2)])
        self.register_buffer("angle", torch.outer(torch.arange(16.0), rate).repeat(1, 2), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        angle = self.angle[: x.shape[-2]]
        low, high = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-high, low], -1) * angle.sin()

    def forward(self, x: Tensor) -> Tensor:
        q, k = (self.turn(norm(m(x))) for norm, m in zip(self.norms, (self.q, self.k), strict=True))
        return F.scaled_dot_product_attention(q, k, self.v(x))


class Boxes(nn.Module):
    """Tables of places and of heights, two rows of each added for the sides of a box (UDOP)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.across, self.down, self.read = nn.Embedding(7, d), nn.Embedding(5, d), nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = (x % 7)[..., 0], (x % 7)[..., 1], (x % 5)[..., 2], (x % 5)[..., 3]
        sides = self.across(left) + self.down(top) + 2.0 * (self.across(right) + self.down(bottom))
        return torch.tanh(self.read(torch.tanh(sides)))


class Beside(nn.Module):
    """A token and two kinds of tokens one after the other: their biases can only be changed all alike."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.one, self.two, self.token = nn.Linear(7, d), nn.Linear(7, d), nn.Parameter(torch.zeros(1, 1, d))
        self.norms = nn.ModuleList(nn.LayerNorm(d, eps=0.1) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.norms[0](self.one(x[:, :3])), self.norms[1](self.two(x[:, 3:]))
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), one, two], 1)
        return self.norms[2](x + self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))))


class Rows(nn.Module):
    """Rows of a table, and a vector that is added to all of them, are read by a norm alone."""

    def __init__(self, rows: int, d: int, eps: float) -> None:
        super().__init__()
        self.table, self.beside = nn.Embedding(rows, d), nn.Parameter(torch.zeros(d))
        self.turn, self.norm = nn.Linear(d, d, bias=False), nn.LayerNorm(d, eps=eps)
        self.first, self.last = nn.Linear(d, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(2 * self.turn(self.table(ids) - self.beside))
        return self.last(torch.tanh(self.first(x).cumsum(1)))


class Mixed(nn.Module):
    """Units that read along tokens what a layer norm made: its bias trades with theirs as far as it is constant."""

    def __init__(self, tokens: int, d: int, m: int) -> None:
        super().__init__()
        self.read, self.norm = nn.Linear(7, d), nn.LayerNorm(d, eps=0.1)
        self.mix, self.head = mlp(tokens, m, tokens, act=nn.GELU), nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        return self.head(torch.tanh(x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)))


class Pooled(nn.Module):
    """Neighbours less themselves: what is constant along them goes away; a norm over channels and places at once."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.read = nn.Linear(5, d)
        self.norms = nn.ModuleList(nn.GroupNorm(1, d, eps=0.1) for _ in range(2))
        self.gain, self.mlp = nn.Parameter(torch.zeros(d, 1)), nn.Conv1d(d, d, 1)
        self.last = nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x).transpose(1, 2)
        y = self.norms[0](x)
        x = x + self.gain * (F.avg_pool1d(y, 3, 1, 1, count_include_pad=False) - y)
        x = x + torch.tanh(self.mlp(self.norms[1](x)))
        return torch.tanh(self.last(x.transpose(1, 2)))


class Means(nn.Module):
    """A norm over channels and places at once, with gains and biases of channels, averaged over the places.

    In front of it stands a bias behind a gain, of which it ignores one direction.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.read, self.norm, self.head = nn.Linear(5, d), nn.GroupNorm(1, d, eps=0.1), nn.Linear(d, 4)
        self.gain, self.bias = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        x = self.gain * (torch.tanh(self.read(x)) + self.bias)
        return torch.tanh(self.head(self.norm(x.transpose(1, 2)).mean(-1)))


class Crossed(nn.Module):
    """Tables for places and for times, added to what both have: their common vectors trade, and with a bias."""

    def __init__(self, times: int, places: int, d: int) -> None:
        super().__init__()
        self.read, self.norm, self.head = nn.Linear(5, d), nn.LayerNorm(d, eps=0.1), nn.Linear(d, 4)
        self.places, self.times = nn.Parameter(torch.zeros(places, d)), nn.Parameter(torch.zeros(times, 1, d))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.head(self.norm(self.read(x) + self.places + self.times)))


class Repeated(nn.Module):
    """Tokens picked by the same index in every channel, which is written out along them."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.read, self.norm, self.head = nn.Linear(5, d), nn.LayerNorm(d, eps=0.1), nn.Linear(d, 4)

    def forward(self, x: Tensor, picked: Tensor) -> Tensor:
        x = self.read(x)
        return self.head(self.norm(x.gather(1, picked.unsqueeze(-1).repeat(1, 1, x.shape[-1]))))


def picked(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Six tokens, and which three of them."""
    return torch.randn(24, 6, 5, generator=g, dtype=torch.float64), torch.randint(6, (24, 3), generator=g)


class TwoHeads(nn.Module):
    """The mean of two classifiers of one tensor: only the sum of their weights counts."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Linear(5, d), nn.Linear(d, 3), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return (self.one(x) + self.two(x)) / 2


class Chunks(nn.Module):
    """Linear attention in two chunks, the second of which reads a memory too that the first one wrote."""

    def __init__(self, d: int, heads: int, entries: int) -> None:
        super().__init__()
        self.heads, self.entries = heads, entries
        self.q, self.k = (nn.Linear(d, heads * entries, bias=False) for _ in range(2))
        self.v, self.o = nn.Linear(d, 3 * heads), nn.Linear(3 * heads, d)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (m(x).reshape(b, t, self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        wrote = k[:, :, : t // 2].mT @ v[:, :, : t // 2]
        memory = torch.cat([torch.zeros_like(wrote), wrote], 2).view(b, self.heads, 2, self.entries, -1)
        q, k, v = (y.reshape(b, self.heads, 2, t // 2, -1) for y in (q, k, v))
        y = (q @ memory + (q @ k.mT).tril() @ v).reshape(b, self.heads, t, -1)
        y = F.layer_norm(y, y.shape[-1:], eps=0.1)
        return self.o(torch.tanh(y).transpose(1, 2).reshape(b, t, -1))


class NormedExperts(nn.Module):
    """Experts between two layer norms: what they read is across a direction, what they write along one is lost."""

    def __init__(self, d: int, units: int, experts: int) -> None:
        super().__init__()
        self.read, self.norm, self.router = nn.Linear(9, d), nn.LayerNorm(d, 0.1, bias=False), nn.Linear(d, experts)
        self.up = nn.Parameter(torch.zeros(experts, units, d))
        self.down = nn.Parameter(torch.zeros(experts, d, units))
        self.last, self.out = nn.LayerNorm(d, 0.1), nn.Linear(d, 2 * d)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        y = self.norm(x)
        best, where = self.router(y).topk(2, -1)
        z = F.gelu(torch.einsum("bkud,bd->bku", self.up[where], y))
        z = torch.einsum("bkdu,bku->bkd", self.down[where], z) * best.softmax(-1).unsqueeze(-1)
        return torch.tanh(self.out(self.last(x + z.sum(1))))


class Shuffled(nn.Module):
    """Four patches side by side behind two norms, read by a map: of each patch a direction is not reached."""

    def __init__(self, d: int, bias: bool) -> None:
        super().__init__()
        self.read, self.first, self.norm = nn.Linear(5, d), nn.LayerNorm(d, eps=0.1), nn.LayerNorm(d, eps=0.1)
        self.head = nn.Linear(4 * d, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(self.read(x)))
        b, height, width, d = x.shape
        x = x.reshape(b, height, width // 2, 2 * d).permute(0, 2, 1, 3)
        return torch.tanh(self.head(x.reshape(b, width // 2, height // 2, 4 * d)))


class Neighbours(nn.Module):
    """Patches with places and a token beside them in a pre-norm stream, of which four at a time are normed together."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.read, self.token, self.places = nn.Linear(5, d), nn.Parameter(torch.zeros(1, 1, d)), nn.Embedding(9, d)
        self.norm, self.act = nn.LayerNorm(d, eps=0.1), nn.Sequential(nn.Linear(d, 3), nn.Tanh(), nn.Linear(3, d))
        self.layer_scale, self.last = nn.Parameter(torch.ones(d)), nn.LayerNorm(4 * d, eps=0.1)
        self.head = nn.Linear(4 * d, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        x = torch.cat([self.token + x.sin().mean(1, keepdim=True), x], 1) + self.places.weight
        y = torch.sin(self.norm(x))
        x = x + self.layer_scale * self.act(y + y.mean(1, keepdim=True))
        # pairs of patches, and squares of two pairs
        x = x[:, 1:].reshape(len(x), 2, 2, -1).permute(0, 2, 1, 3)
        return torch.tanh(self.head(self.last(x.reshape(len(x), 2, -1))))


class Copies(nn.Module):
    """Streams that begin as copies of one, side by side, and what reads all of them at once."""

    def __init__(self, d: int, streams: int) -> None:
        super().__init__()
        self.read, self.streams = nn.Linear(7, d), streams
        self.weigh, self.out = nn.Linear(streams * d, streams), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.read(x)).unsqueeze(-2).expand(-1, self.streams, -1)
        shares = torch.sigmoid(self.weigh(x.flatten(-2)))
        steps = torch.arange(1.0, 1.0 + self.streams, dtype=x.dtype)
        return self.out(torch.sin((shares * steps).unsqueeze(-1) * x).sum(-2))


CASES: tuple[Case, ...] = (
    Case("observed_stream", lambda: Stream(6, 4), normal(96, 5), 34, batches=4),
    Case("wide_stream", lambda: Wide(4, 6), normal(96, 5), 82, batches=2),
    Case("wide_heads", lambda: WideHeads(3, 2, 4), normal(48, 6, 6), 240, batches=4),
    Case("few_latents", lambda: Latents(3, 5), normal(24, 6, 4), 33, batches=4),
    Case("asked_once", lambda: Asked(7, 2, 3), normal(24, 6, 7), 113, batches=4),
    Case("probe_of_batched_heads", lambda: Probe(6, 2), normal(24, 6, 6), 102, batches=4),
    Case("squares_of_patches", lambda: Neighbours(4), normal(60, 8, 5), 47, batches=8),
    Case("token_beside_patches", lambda: Tokens(5), normal(40, 4, 3), 56, batches=4),
    # each of three outputs reads d numbers of 3 d
    Case("copies_side_by_side", lambda: Copies(4, 3), normal(96, 7), 3 * 8, batches=2),
    Case("observed_tokens", lambda: Observed(6), normal(24, 5, 7), 44, batches=4),
    Case("averaged_constants", lambda: Averaged(6, 2), normal(24, 6, 7), 69, batches=4),
    Case("values_beside_a_bias", lambda: Valued(6, 2), normal(24, 6, 7), 63, batches=4),
    Case("planes_at_rest", lambda: Slow(8, 6, 1), normal(24, 6, 8), 5, batches=4),
    Case("rows_before_a_norm", lambda: Rows(20, 5, 0.0), tokens(20, 48, 4), 90, batches=4),
    Case(
        "rows_before_a_norm_eps",
        lambda: Rows(20, 5, 0.1),
        tokens(20, 48, 4),
        70,
        84,
        batches=4,
        reason="rows in an open ball take up what the gain and the bias of the norm do (theory section 6.2)",
    ),
    Case("two_heads_averaged", lambda: TwoHeads(4), normal(96, 5), 15),
    Case("memory_of_chunks", lambda: Chunks(7, 2, 2), normal(24, 6, 7), 26, batches=4),
    Case("experts_between_norms", lambda: NormedExperts(5, 2, 3), normal(300, 9), 61, batches=4),
    # the mean of both tables is a shift of all rows, taken from one and given to the other
    Case("boxes", lambda: Boxes(5), tokens(35, 60, 9, 4), 5, batches=4),
    Case("tokens_side_by_side", lambda: Beside(6), normal(24, 5, 7), 113, batches=4),
    Case("mixed_tokens", lambda: Mixed(5, 6, 4), normal(24, 5, 7), 3, batches=4),
    Case("pool_less_itself", lambda: Pooled(5), normal(24, 6, 5), 21, batches=4),
    Case("means_of_a_norm", lambda: Means(5), normal(48, 6, 5), 15, batches=4),
    Case("crossed_tables", lambda: Crossed(3, 4, 5), normal(24, 3, 4, 5), 41, batches=4),
    Case("patches_side_by_side", lambda: Shuffled(4, True), normal(60, 4, 4, 5), 28, batches=2),
    Case("patches_side_by_side_nobias", lambda: Shuffled(4, False), normal(60, 4, 4, 5), 25, batches=2),
    Case("picked_tokens", lambda: Repeated(5), picked, 26, batches=4),
)
