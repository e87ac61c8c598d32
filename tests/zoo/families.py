"""Families beyond the plain stack: mixtures of experts, graph networks, adapters, reparametrised weights and others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.zoo.blocks import Fn, mlp, normal
from tests.zoo.case import Case

Router = Literal["renormalised", "selected", "plain", "masked", "sigmoid", "corrected"]


# -- mixtures of experts -------------------------------------------------------------------------------------------
class Sparse(nn.Module):
    """The k best of several experts, by a linear router.

    "plain": the softmax of all scores, the best k kept; "renormalised": these divided by their sum; "selected": the
    softmax of the best k scores; "masked": all others set to −∞ before the softmax; "sigmoid": sigmoids, divided by
    their sum; "corrected": the same, chosen by a score with a fixed correction, as DeepSeek-V3 does.
    """

    def __init__(
        self, d: int, m: int, experts: int, k: int, router: Router, *, shared: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        self.router = nn.Linear(d, experts, bias=bias)
        self.up, self.down = nn.Parameter(torch.zeros(experts, m, d)), nn.Parameter(torch.zeros(experts, d, m))
        self.shared: nn.Module | None = mlp(d, m, d, act=nn.GELU, bias=False) if shared else None
        self.correction: Tensor
        self.register_buffer("correction", 0.1 * torch.arange(experts, dtype=torch.float64))
        self.k, self.kind = k, router

    def weights(self, scores: Tensor) -> Tensor:
        """Weight of every expert: [tokens, experts], zero for those left out."""
        zeros = torch.zeros_like(scores)
        if self.kind == "masked":
            chosen = zeros.scatter(-1, scores.topk(self.k, -1).indices, 1.0)
            return scores.masked_fill(chosen == 0, float("-inf")).softmax(-1)
        if self.kind == "selected":
            best, where = scores.topk(self.k, -1)
            return zeros.scatter(-1, where, best.softmax(-1))
        probability = torch.sigmoid(scores) if self.kind in ("sigmoid", "corrected") else scores.softmax(-1)
        if self.kind == "corrected":
            where = (probability + self.correction).topk(self.k, -1).indices
            best = probability.gather(-1, where)
        else:
            best, where = probability.topk(self.k, -1)
        if self.kind != "plain":
            best = best / best.sum(-1, keepdim=True)
        return zeros.scatter(-1, where, best)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("emd,td->tem", self.up, x))
        out = torch.einsum("edm,tem,te->td", self.down, hidden, self.weights(self.router(x)))
        return out if self.shared is None else out + self.shared(x)


class Picked(nn.Module):
    """The weights of the two best experts picked from a table; of the experts in the two best groups alone."""

    def __init__(self, d: int, m: int, experts: int, group: int) -> None:
        super().__init__()
        self.router = nn.Linear(d, experts, bias=False)
        self.up, self.down = nn.Parameter(torch.zeros(experts, m, d)), nn.Parameter(torch.zeros(experts, d, m))
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.sigmoid(self.router(x))
        groups = scores.unflatten(-1, (-1, self.group))
        best = groups.topk(min(2, self.group), -1).values.sum(-1).topk(2, -1).indices
        mask = torch.zeros_like(groups[..., 0]).scatter(-1, best, 1.0)[..., None].expand_as(groups)
        where = scores.masked_fill(mask.flatten(-2) == 0, float("-inf")).topk(2, -1).indices
        weights = scores.gather(-1, where)
        weights = weights / weights.sum(-1, keepdim=True)
        hidden = F.relu(torch.einsum("tkmd,td->tkm", self.up[where], x))
        return torch.einsum("tkdm,tkm,tk->td", self.down[where], hidden, weights)


class InOneList(nn.Module):
    """The two best experts of all tokens in one list, token by token, that is divided again behind them (Nemotron)."""

    def __init__(self, d: int, m: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(d, experts, bias=False)
        self.up, self.down = nn.Parameter(torch.zeros(experts, m, d)), nn.Parameter(torch.zeros(experts, d, m))

    def forward(self, x: Tensor) -> Tensor:
        weights, where = self.router(x).softmax(-1).topk(2, -1)
        listed = x[:, None].expand(-1, 2, -1).reshape(-1, x.shape[-1])
        hidden = F.relu(torch.bmm(self.up[where.reshape(-1)], listed[..., None]).squeeze(-1)).square()
        out = torch.bmm(self.down[where.reshape(-1)], hidden[..., None]).squeeze(-1) * weights.reshape(-1, 1)
        return out.view(*where.shape, -1).sum(1)


class Listed(nn.Module):
    """Experts in a list, each run on every token and weighted by a one-hot mask of the best k (as Mixtral did)."""

    def __init__(self, d: int, m: int, experts: int, k: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.router = nn.Linear(d, experts, bias=False)
        self.experts = nn.ModuleList(mlp(d, m, d, act=act, bias=False) for _ in range(experts))
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        weights, where = self.router(x).softmax(-1).topk(self.k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        mask = F.one_hot(where, len(self.experts)).to(x.dtype)  # [tokens, k, experts]
        mixed = torch.einsum("tk,tke->te", weights, mask)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + mixed[:, e, None] * expert(x)
        return out


# -- graph networks --------------------------------------------------------------------------------------------------
EDGES = torch.tensor([[0, 1, 1, 2, 3, 3, 4, 5, 5, 0, 2, 4], [1, 0, 2, 1, 2, 4, 5, 4, 3, 5, 0, 1]])
"""Source and target of every edge of a graph on six nodes."""


class GCN(nn.Module):
    """Two graph convolutions with symmetric normalisation; sums over edges by `index_add` or `scatter_add`."""

    def __init__(self, d: int, n: int, out: int, scatter: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(d, n), nn.Linear(n, out)
        self.scatter = scatter

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.mix(self.second(F.relu(self.mix(self.first(x), edges))), edges)

    def mix(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        ones = torch.ones(edges.shape[1], dtype=x.dtype)
        degree = torch.zeros(x.shape[0], dtype=x.dtype).index_add(0, target, ones) + 1
        norm = degree.rsqrt()
        sent = x[source] * (norm[source] * norm[target])[:, None]
        if self.scatter:
            summed = torch.zeros_like(x).scatter_add(0, target[:, None].expand(-1, x.shape[1]), sent)
        else:
            summed = torch.zeros_like(x).index_add(0, target, sent)
        return summed + x / degree[:, None]


class GIN(nn.Module):
    """Sums over neighbours, (1 + ε) times the node itself, and a small network; ε is learned."""

    def __init__(self, d: int, n: int, out: int) -> None:
        super().__init__()
        self.first, self.second = mlp(d, n, n, act=nn.ReLU), mlp(n, n, out, act=nn.ReLU)
        self.eps = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        for i, body in enumerate((self.first, self.second)):
            summed = torch.zeros_like(x).index_add_(0, target, x[source])
            x = body((1 + self.eps[i]) * x + summed)
            x = F.relu(x) if i == 0 else x
        return x


class GAT(nn.Module):
    """One layer of graph attention: the scores of a node's incoming edges go through a softmax."""

    def __init__(self, d: int, n: int, out: int, heads: int = 1, leaky: bool = True) -> None:
        super().__init__()
        self.leaky = leaky
        self.value = nn.Linear(d, heads * n, bias=False)
        self.to_source, self.to_target = nn.Parameter(torch.zeros(heads, n)), nn.Parameter(torch.zeros(heads, n))
        self.out = nn.Linear(heads * n, out)
        self.heads = heads

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        h = self.value(x).view(x.shape[0], self.heads, -1)
        scores = (h * self.to_source).sum(-1)[source] + (h * self.to_target).sum(-1)[target]
        scores = torch.exp(F.leaky_relu(scores, 0.2) if self.leaky else scores)
        total = torch.zeros(x.shape[0], self.heads, dtype=x.dtype).index_add(0, target, scores)
        weights = scores / total[target]
        mixed = torch.zeros_like(h).index_add(0, target, weights[..., None] * h[source])
        return self.out(F.relu(mixed).flatten(1))


class ChosenAndShared(nn.Module):
    """The two best of several experts, and one that is always asked, weighed by one softmax."""

    def __init__(self, d: int, m: int, experts: int, score: Fn = F.logsigmoid) -> None:
        super().__init__()
        self.router, self.count, self.score = nn.Linear(d, experts + 1, bias=False), experts, score
        shapes = {"gate": (m, d), "up": (m, d), "down": (d, m)}
        self.many = nn.ParameterDict({name: torch.zeros(experts, *shape) for name, shape in shapes.items()})
        self.one = nn.ParameterDict({name: torch.zeros(*shape) for name, shape in shapes.items()})

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        chosen = scores[:, : self.count].topk(2, dim=-1).indices
        weights = self.score(torch.cat([scores.gather(1, chosen), scores[:, self.count :]], dim=1)).softmax(-1)
        gate, up, down = (self.many[name][chosen] for name in ("gate", "up", "down"))
        hidden = F.silu(torch.einsum("bemd,bd->bem", gate, x)) * torch.einsum("bemd,bd->bem", up, x)
        best = torch.einsum("bedm,bem->bed", down, hidden)
        always = (F.silu(x @ self.one["gate"].T) * (x @ self.one["up"].T)) @ self.one["down"].T
        return (weights[:, :2, None] * best).sum(1) + weights[:, 2:] * always


_segments = "a softmax over the edges of a node, written with sums, is not seen to ignore what the node adds"


def graph(d: int, scale: float = 1.5) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Forty copies of the graph side by side, with fresh features."""
    copies = 40
    edges = torch.cat([EDGES + 6 * i for i in range(copies)], 1)
    return lambda g: (scale * torch.randn(6 * copies, d, generator=g, dtype=torch.float64), edges)


# -- other layers ----------------------------------------------------------------------------------------------------
class Bilinear(nn.Module):
    """nn.Bilinear between linear maps."""

    def __init__(self, d: int, n: int, m: int, out: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(d, n, bias=False), nn.Linear(d, n, bias=False)
        self.form, self.read = nn.Bilinear(n, n, m), nn.Linear(m, out)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.read(torch.tanh(self.form(self.left(x), self.right(y))))


class Bags(nn.Module):
    """nn.EmbeddingBag and a linear reader."""

    def __init__(self, words: int, d: int, out: int, mode: str) -> None:
        super().__init__()
        self.table, self.read = nn.EmbeddingBag(words, d, mode=mode), nn.Linear(d, out)

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(self.table(ids))


class Adapted(nn.Module):
    """Frozen attention maps with trainable low-rank pairs on queries and values, as LoRA has them."""

    def __init__(self, d: int, rank: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.query: Tensor
        self.key: Tensor
        self.value: Tensor
        for name in ("query", "key", "value"):
            self.register_buffer(name, torch.randn(d, d, generator=g) / d**0.5)
        self.query_down, self.value_down = nn.Linear(d, rank, bias=False), nn.Linear(d, rank, bias=False)
        self.query_up, self.value_up = nn.Linear(rank, d, bias=False), nn.Linear(rank, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q = x @ self.query.T + 2.0 * self.query_up(self.query_down(x))
        v = x @ self.value.T + 2.0 * self.value_up(self.value_down(x))
        return F.scaled_dot_product_attention(q, x @ self.key.T, v)


class Relative(nn.Module):
    """Attention with T5's relative positions: a learned number for each bucket of distances and each head."""

    def __init__(self, d: int, heads: int, head: int, buckets: int, causal: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d, heads * head, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * head, d, bias=False)
        self.bias = nn.Embedding(buckets, heads)
        self.heads, self.buckets, self.causal = heads, buckets, causal

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (m(x).view(n, t, self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        places = torch.arange(t)
        least = 0 if self.causal else 1 - t
        distance = (places[:, None] - places[None, :] - least).clamp(0, self.buckets - 1)
        bias = self.bias(distance).permute(2, 0, 1)
        if self.causal:
            seen = torch.ones(t, t, dtype=torch.bool).tril()
            mask = torch.where(seen, bias[None], torch.finfo(torch.float32).min)
            return self.out(F.scaled_dot_product_attention(q, k, v, mask, scale=1.0).transpose(1, 2).flatten(2))
        scores = q @ k.transpose(-1, -2) + bias
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Squeeze(nn.Module):
    """A convolution whose channels are weighted by a network of their means (squeeze and excitation)."""

    def __init__(self, channels: int, inner: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, channels, 2)
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.out = nn.Conv2d(channels, 2, 1)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        weights = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.out(x * weights)


class Contrast(nn.Module):
    """Two towers, normalised, and a learned temperature, as CLIP has them."""

    def __init__(self, d: int, n: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(d, n, bias=False), nn.Linear(d + 1, n, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = (t / t.norm(dim=-1, keepdim=True) for t in (self.left(x), self.right(y)))
        return self.logit_scale.exp() * x @ y.T


class Codes(nn.Module):
    """A code word for the largest of several hidden units, which are read as they are too."""

    def __init__(self, d: int, n: int, out: int) -> None:
        super().__init__()
        self.body, self.read, self.codes = nn.Linear(d, n), nn.Linear(n, out), nn.Embedding(n, out)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.body(x))
        return self.read(h) + self.codes(h.argmax(-1))


def mix_fourier(x: Tensor) -> Tensor:
    """Low frequencies along the positions of x [batch, positions, features]."""
    return torch.fft.irfft(torch.fft.rfft(x, dim=1)[:, :3], n=x.shape[1], dim=1)


class Tempered(nn.Module):
    """A learned temperature in front of a linear map: the two trade one scale."""

    def __init__(self, d: int, m: int, out: int) -> None:
        super().__init__()
        self.body, self.read = nn.Linear(d, m), nn.Linear(m, out, bias=False)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(torch.tanh(self.body(x))) / self.temperature


def normed(kind: Callable[..., nn.Module], act: Callable[[], nn.Module], **options: object) -> Callable[[], nn.Module]:
    """A reparametrised Linear, an activation, a reader."""
    return lambda: nn.Sequential(kind(nn.Linear(4, 5), **options), act(), nn.Linear(5, 2))


def pair(rows: int, left: int, right: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    return lambda g: tuple(torch.randn(rows, k, generator=g, dtype=torch.float64) for k in (left, right))


def bags(words: int, count: int, length: int) -> Callable[[torch.Generator], tuple[Tensor]]:
    return lambda g: (torch.randint(words, (count, length), generator=g),)


def moe(name: str, router: Router, orbit: int, nullity: int | None = None, **options: object) -> Case:
    k = int(options.pop("k", 2))  # type: ignore[call-overload]
    reason = str(options.pop("reason", ""))
    make = lambda: Sparse(5, 3, 4, k, router, **options)  # type: ignore[arg-type]  # noqa: E731
    return Case(f"moe_{name}", make, normal(300, 5), orbit, nullity, row="1.5", reason=reason)


CASES: tuple[Case, ...] = (
    moe("topk_renormalised", "renormalised", 5),
    moe("topk_renormalised_bias", "renormalised", 6, bias=True),
    moe("topk_selected", "selected", 5),
    moe("topk_plain", "plain", 5),
    moe("topk_masked", "masked", 5),
    moe("topk_sigmoid", "sigmoid", 0),
    moe("topk_corrected", "corrected", 0),
    moe("topk_shared", "renormalised", 5, shared=True),
    moe("top1", "plain", 5, k=1),
    moe("top1_renormalised", "renormalised", 5, 20, k=1, reason="one expert has weight one: the router is not seen"),
    Case("moe_grouped", lambda: Picked(5, 3, 6, 2), normal(900, 5), 6 * 3, row="1.5"),
    Case("moe_in_one_list", lambda: InOneList(5, 3, 4), normal(900, 5), 5 + 4 * 3, row="1.5"),
    Case("moe_listed", lambda: Listed(5, 3, 4, 2, nn.GELU), normal(300, 5), 5, row="1.5"),
    Case("moe_listed_relu", lambda: Listed(5, 3, 4, 2, nn.ReLU), normal(900, 5), 5 + 4 * 3, row="1.5"),
    Case("gcn_index_add", lambda: GCN(3, 4, 2, scatter=False), graph(3), 4, row="1.6"),
    Case("gcn_scatter_add", lambda: GCN(3, 4, 2, scatter=True), graph(3), 4, row="1.6"),
    Case("gin", lambda: GIN(3, 4, 2), graph(3), 4 + 4 + 4, row="1.6", centre=True, seed=1),
    Case("gat", lambda: GAT(4, 3, 2), graph(4), 3, row="1.6"),
    Case("gat_wide", lambda: GAT(3, 5, 2), graph(3), 5 + 2 * 2, row="1.6"),
    Case("gat_plain", lambda: GAT(4, 3, 2, leaky=False), graph(4), 3, 6, "1.6", _segments),
    Case(
        "chosen_and_shared_softmax",
        lambda: ChosenAndShared(5, 3, 4, lambda x: x),
        normal(400, 5),
        5 * 3,
        5 * 3 + 5,
        "1.5",
        "a common change of the rows of a router that are cut into chosen and shared ones",
    ),
    Case("chosen_and_shared_experts", lambda: ChosenAndShared(5, 3, 4), normal(400, 5), 5 * 3),
    Case("gat_heads", lambda: GAT(4, 3, 2, heads=2), graph(4), 6, row="1.6"),
    Case("torch_bilinear", lambda: Bilinear(4, 3, 4, 2), pair(200, 4, 4), 9 + 9, row="theory 2"),
    Case("embedding_bag_mean", lambda: Bags(9, 3, 4, "mean"), bags(9, 80, 3), 9 + 3, row="1.1"),
    Case("embedding_bag_sum", lambda: Bags(9, 3, 4, "sum"), bags(9, 80, 3), 9 + 3, row="1.1"),
    Case("embedding_bag_max", lambda: Bags(9, 3, 4, "max"), bags(9, 400, 2), 3 + 3, row="1.1"),
    Case("lora_attention", lambda: Adapted(5, 2), normal(24, 5, 5), 8, row="1.1"),
    Case("attn_t5_causal", lambda: Relative(6, 2, 3, 4, causal=True), normal(24, 5, 6), 36 + 2, row="1.4"),
    Case("attn_t5", lambda: Relative(6, 2, 3, 6), normal(24, 4, 6), 36 + 2, row="1.4"),
    Case("weight_norm_gelu", normed(parametrizations.weight_norm, nn.GELU), normal(96, 4), 5, row="1.3"),
    Case("weight_norm_relu", normed(parametrizations.weight_norm, nn.ReLU), normal(400, 4), 10, row="1.3", seed=1),
    Case("spectral_norm_gelu", normed(parametrizations.spectral_norm, nn.GELU), normal(96, 4), 1, row="1.3"),
    Case("squeeze_relu", lambda: Squeeze(4, 3, F.relu), normal(90, 2, 3, 3), 4 + 3, row="theory 2", centre=True),
    Case("squeeze_silu", lambda: Squeeze(4, 3, F.silu), normal(90, 2, 3, 3), 3, row="theory 2", centre=True),
    Case("clip_head", lambda: Contrast(5, 4), pair(40, 5, 6), 6 + 2, row="theory 2"),
    Case("temperature", lambda: Tempered(4, 5, 3), normal(96, 4), 1, row="theory 2"),
    Case(
        "product",
        lambda: nn.Sequential(nn.Linear(4, 3), Fn(lambda x: x.prod(-1))),
        normal(96, 4),
        0,
        2,
        reason="scales whose product is one: scales through a product along a dimension are given up",
    ),
    Case(
        "fourier",
        lambda: nn.Sequential(nn.Linear(4, 3), Fn(mix_fourier), nn.Linear(3, 4)),
        normal(24, 6, 4),
        9,
        12,
        reason="a filter that keeps constants: the two biases trade",
    ),
    Case(
        "argmax_codes",
        lambda: Codes(4, 3, 3),
        normal(600, 4),
        4,
        6,
        reason="scales of single units near one change no place, larger ones do: one common scale is exact",
    ),
)
