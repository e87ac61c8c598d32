"""Catalogue 1.1, 1.2 and 1.5: linear stacks, embeddings, activations, feed-forward parts, residual streams."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case


def normal(*shape: int, scale: float = 1.5) -> Callable[[torch.Generator], tuple[Tensor]]:
    """One float input of this shape, fresh normal numbers at every call."""
    return lambda g: (scale * torch.randn(shape, generator=g, dtype=torch.float64),)


def tokens(vocabulary: int, *shape: int) -> Callable[[torch.Generator], tuple[Tensor]]:
    return lambda g: (torch.randint(vocabulary, shape, generator=g),)


def mlp(*sizes: int, act: Callable[[], nn.Module] | None = None, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers.append(nn.Linear(a, b, bias=bias))
        if act is not None and i < len(sizes) - 2:
            layers.append(act())
    return nn.Sequential(*layers)


class Fn(nn.Module):
    """A plain function as a layer."""

    def __init__(self, fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Tensor) -> Tensor:
        return self.fn(*args)


class Adapted(nn.Module):
    """A hidden layer with a pair of narrow maps beside its weight, with numbers in between, as peft has them."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int, rank: int, *, bias: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(n_in, rank, bias=bias), nn.Linear(rank, n_hidden, bias=bias)
        self.weight, self.read = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(torch.tanh(self.weight(x) + 2.0 * self.up(0.5 * self.down(x))))


class LoRA(nn.Module):
    """A frozen map plus a low-rank pair: x W^T + x A^T B^T."""

    def __init__(self, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(5)))
        self.a = nn.Linear(n_in, rank, bias=False)
        self.b = nn.Linear(rank, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.frozen.T + self.b(self.a(x))


class Skip(nn.Module):
    """x -> linear(x) + body(x): a trainable path beside a hidden layer."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.body = mlp(n_in, n_hidden, n_out, act=act)
        self.skip = nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


class Factorised(nn.Module):
    """Word vectors: scores E U^T of every pair of words; tied when U is E."""

    def __init__(self, words: int, width: int, *, tie: bool, log: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.head = nn.Linear(width, words, bias=False)
        if tie:
            self.head.weight = self.embed.weight
        self.log = log

    def forward(self, ids: Tensor) -> Tensor:
        scores = self.head(self.embed(ids))
        return F.log_softmax(scores, -1) if self.log else scores


class Gated(nn.Module):
    """down(act(gate x) * up x)."""

    def __init__(self, d: int, m: int, act: Callable[[Tensor], Tensor], bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(d, m, bias=bias)
        self.up = nn.Linear(d, m, bias=bias)
        self.down = nn.Linear(m, d, bias=bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """A dense mixture of experts, written with stack and einsum."""

    def __init__(self, d: int, m: int, experts: int, router: Callable[[Tensor], Tensor], bias: bool) -> None:
        super().__init__()
        self.router = nn.Linear(d, experts, bias=bias)
        self.experts = nn.ModuleList(mlp(d, m, d, act=nn.GELU, bias=False) for _ in range(experts))
        self.weigh = router

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weigh(self.router(x))
        return torch.einsum("be,bed->bd", weights, torch.stack([e(x) for e in self.experts], 1))


class Residual(nn.Module):
    """read(x) into a stream, blocks added to it, a read-out: a stream without norms."""

    def __init__(self, d_in: int, d: int, d_out: int, m: int, act: Callable[[], nn.Module], skip: bool = True) -> None:
        super().__init__()
        self.read = nn.Linear(d_in, d, bias=False)
        self.blocks = nn.ModuleList(mlp(d, m, d, act=act, bias=False) for _ in range(2))
        self.out = nn.Linear(d, d_out, bias=False)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for block in self.blocks:
            x = x + block(x) if self.skip else block(x)
        return self.out(x)


class Shared(nn.Module):
    """One square Linear used twice."""

    def __init__(self, n: int, d: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(n, d)
        self.middle = nn.Linear(d, d)
        self.last = nn.Linear(d, 2)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        return self.last(self.act(self.middle(self.act(self.middle(x)))))


class Transposed(nn.Module):
    """A matrix tied to its own transpose: an autoencoder W^T act(W x), or the square W^T act(W x) + W x."""

    def __init__(self, n: int, m: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(m, n))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x @ self.weight.T) @ self.weight


class Positions(nn.Module):
    """Token and learned position embeddings, a hidden layer, scores of another vocabulary."""

    def __init__(self, words: int, length: int, d: int, m: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, d)
        self.places = nn.Embedding(length, d)
        self.body = mlp(d, m, 5, act=nn.GELU)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.body(self.words(ids) + self.places(places))


class TiedDecoder(nn.Module):
    """Words and places, a tanh, a hidden layer, a layer norm, and scores of all words by the same table."""

    def __init__(self, words: int, length: int, d: int, m: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, d), nn.Embedding(length, d)
        self.body, self.norm = mlp(d, m, d, act=nn.GELU), nn.LayerNorm(d, eps=1e-2)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))
        return F.linear(self.norm(self.body(x)), self.words.weight, self.bias)


class Siamese(nn.Module):
    """One linear map of two inputs, each read by its own map, with one bias behind both."""

    def __init__(self, n: int, d: int, m: int) -> None:
        super().__init__()
        self.shared = nn.Linear(n, d)
        self.left, self.right = nn.Linear(d, m, bias=False), nn.Linear(d, m)
        self.out = nn.Linear(m, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.tanh(self.left(self.shared(x)) + self.right(self.shared(y))))


class Parallel(nn.Module):
    """Two linear maps of one tensor that are added."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.one, self.other, self.read = nn.Linear(n, m), nn.Linear(n, m), nn.Linear(m, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(torch.tanh(self.one(x) - 2 * self.other(x)))


class Latent(nn.Module):
    """A variational autoencoder with its noise as an input: decode(mean + exp(log variance / 2)·noise)."""

    def __init__(self, n: int, latent: int, out: int) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(n, latent), nn.Linear(n, latent)
        self.decode = nn.Linear(latent, out)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.decode(self.mean(x) + torch.exp(0.5 * self.log_variance(x)) * noise)


class TwoRates(nn.Module):
    """One bias in two exponentials, whose scales are a power of one another."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.slow, self.fast = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.score(x)
        return self.slow(torch.exp(x)) + self.fast(torch.exp(2 * x))


class WrittenSoftmax(nn.Module):
    """A softmax as exponentials over their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.read = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.score(x)
        x = torch.exp(x - x.amax(-1, keepdim=True))
        return self.read(x / x.sum(-1, keepdim=True))


def noisy(rows: int, n: int, latent: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    return lambda g: tuple(torch.randn(rows, k, generator=g, dtype=torch.float64) for k in (n, latent))


def hidden(name: str, act: Callable[[], nn.Module], orbit: int, scale: float = 1.5) -> Case:
    """One hidden layer of five units between three inputs and two outputs."""
    return Case(f"act_{name}", lambda: mlp(3, 5, 2, act=act), normal(96, 3, scale=scale), orbit, row="1.2")


UNITS = 5
_filling = "a polynomial space that the units fill: the fibre is larger than one orbit (catalogue 1.2)"

CASES: tuple[Case, ...] = (
    # -- 1.1 linear stacks, low rank, embeddings
    Case("linear_2_3_1", lambda: mlp(2, 3, 1), normal(24, 2), 10, row="1.1"),
    Case("linear_2_4_4_1", lambda: mlp(2, 4, 4, 1), normal(48, 2), 34, row="1.1"),
    Case("linear_4_8_8_2", lambda: mlp(4, 8, 8, 2), normal(96, 4), 120, row="1.1"),
    Case(
        "linear_5_4_3_nobias",
        lambda: mlp(5, 4, 3, bias=False),
        normal(24, 5),
        17,
        row="theory 6.3",
    ),
    Case("linear_5_3_4_nobias", lambda: mlp(5, 3, 4, bias=False), normal(24, 5), 9, row="1.1"),
    Case("lora", lambda: LoRA(5, 4, 2), normal(24, 5), 4, row="1.1"),
    Case("lora_beside", lambda: Adapted(5, 4, 3, 2, bias=False), normal(48, 5), 10 + 8, row="1.1"),
    Case("lora_beside_bias", lambda: Adapted(5, 4, 3, 2, bias=True), normal(48, 5), 10 + 8 + 2 + 4, row="1.1"),
    Case("word_vectors", lambda: Factorised(9, 4, tie=False), tokens(9, 80), 16, row="1.1"),
    Case("word_vectors_tied", lambda: Factorised(9, 4, tie=True), tokens(9, 80), 6, row="1.1"),
    Case("word_vectors_log", lambda: Factorised(9, 4, tie=False, log=True), tokens(9, 80), 20, row="1.1"),
    Case("word_vectors_tied_log", lambda: Factorised(9, 4, tie=True, log=True), tokens(9, 80), 6, row="1.1"),
    Case("logits", lambda: nn.Linear(5, 4), normal(24, 5), 0, row="1.1"),
    Case("log_softmax", lambda: nn.Sequential(nn.Linear(5, 4), nn.LogSoftmax(-1)), normal(24, 5), 6, row="1.1"),
    Case("softmax", lambda: nn.Sequential(nn.Linear(5, 4), nn.Softmax(-1)), normal(24, 5), 6, row="1.1"),
    Case("positions", lambda: Positions(16, 6, 4, 7), tokens(16, 24, 6), 4 * 4 + 4 + 4, row="1.1"),
    # -- 1.2 activations
    hidden("relu", nn.ReLU, UNITS),
    hidden("leaky_relu", nn.LeakyReLU, UNITS),
    hidden("prelu", nn.PReLU, UNITS),
    hidden("prelu_per_unit", lambda: nn.PReLU(UNITS), UNITS),
    hidden("abs", lambda: Fn(torch.abs), UNITS),
    hidden("relu_squared", lambda: Fn(lambda x: F.relu(x) ** 2), UNITS),
    hidden("tanh", nn.Tanh, 0),
    hidden("erf", lambda: Fn(torch.erf), 0),
    hidden("softsign", nn.Softsign, 0),
    hidden("hardtanh", nn.Hardtanh, 0),
    hidden("sigmoid", nn.Sigmoid, 0),
    hidden("relu6", nn.ReLU6, 0, scale=8.0),
    hidden("gelu", nn.GELU, 0),
    hidden("gelu_tanh", lambda: nn.GELU("tanh"), 0),
    hidden("silu", nn.SiLU, 0),
    hidden("softplus", nn.Softplus, 0),
    hidden("hardswish", nn.Hardswish, 0, scale=8.0),
    hidden("elu", nn.ELU, 0),
    hidden("selu", nn.SELU, 0),
    hidden("mish", nn.Mish, 0),
    hidden("sin", lambda: Fn(torch.sin), 0),
    hidden("gaussian", lambda: Fn(lambda x: torch.exp(-x * x)), 0),
    hidden("exp", lambda: Fn(torch.exp), UNITS),
    Case("tied_decoder", lambda: TiedDecoder(32, 5, 4, 6), tokens(32, 32, 5), 12, row="theory 4", batches=4),
    Case("siamese", lambda: Siamese(5, 3, 4), noisy(96, 5, 5), 12, row="theory 4"),
    Case("parallel", lambda: Parallel(3, 4), normal(96, 3), 16, row="theory 4"),
    Case("exp_latent", lambda: Latent(3, 4, 5), noisy(96, 3, 4), 8, row="theory 4"),
    Case("exp_at_two_rates", TwoRates, normal(96, 3), 6, row="theory 4"),
    Case("softmax_written", WrittenSoftmax, normal(96, 3), 6, row="1.1"),
    Case("cube_4_8_8_2", lambda: mlp(4, 8, 8, 2, act=lambda: Fn(lambda x: x**3)), normal(240, 4), 16, row="1.2"),
    Case("square_4_8_8_2", lambda: mlp(4, 8, 8, 2, act=lambda: Fn(torch.square)), normal(240, 4), 16, row="1.2"),
    Case("square_2_3_1", lambda: mlp(2, 3, 1, act=lambda: Fn(torch.square)), normal(48, 2), 3, 7, "1.2", _filling),
    Case("relu_4_8_8_2", lambda: mlp(4, 8, 8, 2, act=nn.ReLU), normal(4000, 4), 16, row="2a", centre=True),
    Case("tanh_4_8_8_2", lambda: mlp(4, 8, 8, 2, act=nn.Tanh), normal(240, 4), 0, row="2a"),
    Case("relu_with_skip", lambda: Skip(3, 5, 2, nn.ReLU), normal(96, 3), UNITS + 2, row="1.2"),
    Case("gelu_with_skip", lambda: Skip(3, 5, 2, nn.GELU), normal(96, 3), 2, row="1.2"),
    # -- 1.5 feed-forward parts, experts, residual streams
    Case("swiglu", lambda: Gated(5, 6, F.silu), normal(96, 5), 6, row="1.5"),
    Case("swiglu_bias", lambda: Gated(5, 6, F.silu, bias=True), normal(96, 5), 6, row="1.5"),
    Case("geglu", lambda: Gated(5, 6, F.gelu), normal(96, 5), 6, row="1.5"),
    Case("reglu", lambda: Gated(5, 6, F.relu), normal(400, 5), 12, row="1.5"),
    Case("bilinear_filling", lambda: Gated(5, 6, lambda x: x), normal(96, 5), 12, 15, "1.5", _filling),
    Case("bilinear", lambda: Gated(8, 4, lambda x: x), normal(96, 8), 8, row="1.5"),
    Case("glu", lambda: nn.Sequential(nn.Linear(5, 8), nn.GLU(-1), nn.Linear(4, 5)), normal(96, 5), 4, row="1.5"),
    Case("moe_softmax", lambda: Experts(5, 3, 4, lambda x: x.softmax(-1), False), normal(200, 5), 5, row="1.5"),
    Case("moe_softmax_bias", lambda: Experts(5, 3, 4, lambda x: x.softmax(-1), True), normal(200, 5), 6, row="1.5"),
    Case("moe_sigmoid", lambda: Experts(5, 3, 4, torch.sigmoid, False), normal(200, 5), 0, row="1.5"),
    Case("residual_gelu", lambda: Residual(5, 4, 5, 3, nn.GELU), normal(200, 5), 16, row="1.5"),
    Case("residual_relu", lambda: Residual(5, 4, 5, 3, nn.ReLU), normal(400, 5), 16 + 2 * 3, row="1.5"),
    Case("no_skip", lambda: Residual(5, 4, 5, 4, nn.GELU, skip=False), normal(300, 5), 3 * 16, row="1.5"),
    Case("shared_relu", lambda: Shared(3, 4, F.relu), normal(400, 3), 4, row="theory 2", seed=6),
    Case("shared_gelu", lambda: Shared(3, 4, F.gelu), normal(96, 3), 0, row="theory 2"),
    Case("transpose_linear", lambda: Transposed(5, 3, lambda x: x), normal(48, 5), 3, row="theory 2"),
    Case("transpose_gelu", lambda: Transposed(5, 3, F.gelu), normal(48, 5), 0, row="theory 2"),
)
