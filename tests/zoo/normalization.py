"""Catalogue 1.3: batch, layer, RMS, group, instance and weight norm. A name ending in `_eps` has eps = 1e-5."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.zoo.blocks import Fn, normal
from tests.zoo.case import Case

EPS = 1e-5


def between(
    norm: Callable[[], nn.Module], *after: Callable[[], nn.Module], bias: bool = True, wide: bool = False
) -> nn.Sequential:
    """Linear 5 (or 7) -> 6, the norm, what comes after it, Linear 6 -> 4."""
    return nn.Sequential(nn.Linear(7 if wide else 5, 6, bias=bias), norm(), *(a() for a in after), nn.Linear(6, 4))


class WrittenRMS(nn.Module):
    """RMS norm as pow, mean, rsqrt, mul, as model code writes it."""

    def __init__(self, n: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * (self.weight + self.offset) if self.offset else self.weight * x


class WrittenLayerNorm(nn.Module):
    """Layer norm written out; `std`: divided by the standard deviation of a sample plus eps."""

    def __init__(self, n: int, eps: float, std: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.bias = nn.Parameter(torch.zeros(n))
        self.eps, self.std = eps, std

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        if self.std:
            return self.weight * (x - mean) / (x.std(-1, keepdim=True) + self.eps) + self.bias
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return self.weight * (x - mean) / torch.sqrt(variance + self.eps) + self.bias


class ThreeReaders(nn.Module):
    """A biased layer norm read by three linears."""

    def __init__(self, n_in: int, d: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.write = nn.Linear(n_in, d)
        self.norm = nn.LayerNorm(d)
        self.readers = nn.ModuleList(nn.Linear(d, k) for k in (2, 3, 4))
        self.act = act

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.norm(self.write(x))
        return tuple(self.act(reader(x)) for reader in self.readers)


class Joined(nn.Module):
    """A layer norm over two tensors side by side."""

    def __init__(self, n: int, d: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(n, d), nn.Linear(n, d)
        self.norm, self.read = nn.LayerNorm(2 * d, eps=1e-2), nn.Linear(2 * d, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.norm(torch.cat((self.left(x), self.right(x.sin())), -1)))


class PlainReaders(nn.Module):
    """A biased layer norm on a stream, read by two linear maps without bias, one of which writes to the stream."""

    def __init__(self, n: int, d: int) -> None:
        super().__init__()
        self.write, self.norm = nn.Linear(n, d, bias=False), nn.LayerNorm(d, eps=1e-2)
        self.back, self.aside = nn.Linear(d, d, bias=False), nn.Linear(d, 4, bias=False)
        self.final, self.head = nn.LayerNorm(d, eps=1e-2), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.write(x)
        y = self.norm(x)
        return self.head(self.final(x + self.back(y))), torch.tanh(self.aside(y))


class PreNorm(nn.Module):
    """Two blocks on a residual stream, pre-norm (and a final norm) or post-norm, and a head."""

    def __init__(self, n_in: int, d: int, m: int, norm: Callable[[int], nn.Module], post: bool = False) -> None:
        super().__init__()
        self.read = nn.Linear(n_in, d)
        self.norms = nn.ModuleList(norm(d) for _ in range(2))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(d, m), nn.GELU(), nn.Linear(m, d)) for _ in range(2))
        self.final = nn.Identity() if post else norm(d)
        self.head = nn.Linear(d, 7)
        self.post = post

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = norm(x + block(x)) if self.post else x + block(norm(x))
        return self.head(self.final(x))


class IntoStream(nn.Module):
    """A layer norm writes into a stream of tokens, together with positions; norms and in the end a linear map read it.

    `post`: the block reads the stream itself, and two norms follow one another, so that no rotation is left.
    """

    def __init__(self, n_in: int, d: int, m: int, post: bool = False) -> None:
        super().__init__()
        self.write, self.places = nn.Linear(n_in, d), nn.Parameter(torch.zeros(3, d))
        self.norms = nn.ModuleList(nn.LayerNorm(d, eps=SOFT) for _ in range(3 if post else 2))
        self.block = nn.Sequential(nn.Linear(d, m), nn.GELU(), nn.Linear(m, d))
        self.head, self.post = nn.Linear(d, 7), post

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.write(x)) + self.places
        if not self.post:
            return self.head(x + self.block(self.norms[1](x)))
        x = self.norms[1](x + self.block(x))
        return self.head(self.norms[2](x + x.sin()))


class AroundMean(nn.Module):
    """The mean of two tokens between two layer norms."""

    def __init__(self, n_in: int, d: int) -> None:
        super().__init__()
        self.write, self.first, self.second = nn.Linear(n_in, d), nn.LayerNorm(d, eps=SOFT), nn.LayerNorm(d, eps=SOFT)
        self.head = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.write(x))
        return self.head(self.second((x[:, 0] + x[:, 1]) / 2))


class NormedBehind(nn.Module):
    """Weights of some streams, from a map of them whose result is divided by what they measure."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.read, self.weigh = nn.Linear(7, d), nn.Linear(d, 3, bias=False)
        self.out = nn.Linear(d, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        size = torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1)
        return torch.tanh(self.out(x)).sum(-1, keepdim=True) * torch.tanh(self.weigh(x) * size)


class GainReadTwice(nn.Module):
    """A gain in front of a norm that a linear map of the same tensor reads too: rotations must keep h·γ."""

    def __init__(self, n: int, d: int) -> None:
        super().__init__()
        self.read, self.write, self.gain = nn.Linear(n, d), nn.Linear(d, 3), nn.Parameter(torch.ones(d))
        self.norm = nn.RMSNorm(d, eps=EPS, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(x)
        y = self.norm(h * self.gain)
        return self.write(y) + torch.einsum("bd,d->b", h, self.gain).tanh()[:, None]


def batch(eps: float = 0.0) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm1d(6, eps=eps)


def layer(eps: float = 0.0) -> Callable[[], nn.Module]:
    return lambda: nn.LayerNorm(6, eps=eps)


def rms(eps: float = 0.0) -> Callable[[], nn.Module]:
    return lambda: nn.RMSNorm(6, eps=eps)


def group(groups: int, eps: float = 0.0) -> Callable[[], nn.Module]:
    return lambda: nn.GroupNorm(groups, 6, eps=eps)


def image_norm(norm: Callable[[], nn.Module], act: Callable[[], nn.Module]) -> nn.Sequential:
    """Convolution 2 -> 6, the norm over channels, an activation, convolution 6 -> 3."""
    return nn.Sequential(nn.Conv2d(2, 6, 3), norm(), act(), nn.Conv2d(6, 3, 2))


def normed_rows() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(3, 5)), nn.Tanh(), nn.Linear(5, 2))


class WeightNormed(nn.Module):
    """w = g v / ‖v‖ per row, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.zeros(5, 3))
        self.g = nn.Parameter(torch.ones(5, 1))
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.g * self.v / self.v.norm(dim=1, keepdim=True)
        return self.head(torch.tanh(F.linear(x, weight)))


def quick_gelu() -> nn.Module:
    """A layer norm, a map, and x σ(1.702 x) with the factor written out, as CLIP has it."""
    act = Fn(lambda x: x * torch.sigmoid(1.702 * x))
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6, eps=EPS), nn.Linear(6, 4), act, nn.Linear(4, 3))


def stream(norm: Callable[[int], nn.Module], post: bool = False) -> Callable[[], nn.Module]:
    return lambda: PreNorm(7, 6, 4, norm, post)


SOFT = 1e-2
STREAM = normal(240, 7)
X = normal(96, 5)
WIDE = normal(96, 7)
IMAGES = normal(24, 2, 6, 6)


CASES: tuple[Case, ...] = (
    # batch norm in training mode (eps cannot be zero): a dead bias, gain and bias against the reader
    Case("bn_train_relu_eps", lambda: between(batch(EPS), nn.ReLU), X, 12, row="1.3", train=True, batches=3),
    Case("bn_train_gelu_eps", lambda: between(batch(EPS), nn.GELU), X, 6, row="1.3", train=True, batches=3),
    Case(
        "bn_train_relu_nobias_eps",
        lambda: between(batch(EPS), nn.ReLU, bias=False),
        X,
        6,
        row="1.3",
        train=True,
        batches=3,
    ),
    Case("bn_train_linear_eps", lambda: between(batch(EPS)), X, 18, row="1.3", train=True, batches=3),
    # batch norm in eval mode
    Case("bn_eval_relu", lambda: between(batch(EPS), nn.ReLU), X, 18, row="1.3"),
    Case("bn_eval_gelu", lambda: between(batch(EPS), nn.GELU), X, 12, row="1.3"),
    Case("bn_eval_gelu_nobias", lambda: between(batch(EPS), nn.GELU, bias=False), X, 6, row="1.3"),
    Case("bn_eval_noaffine_relu", lambda: between(lambda: nn.BatchNorm1d(6, affine=False), nn.ReLU), X, 6, row="1.3"),
    # layer norm
    Case("ln_linear", lambda: between(layer()), X, 33, row="1.3"),
    Case("ln_linear_eps", lambda: between(layer(EPS)), X, 32, row="1.3"),
    Case("ln_gelu", lambda: between(layer(), nn.GELU), X, 7, row="1.3"),
    Case("ln_gelu_eps", lambda: between(layer(EPS), nn.GELU), X, 6, row="1.3"),
    Case("ln_relu", lambda: between(layer(), nn.ReLU), normal(600, 5), 13, row="1.3"),
    Case("ln_relu_eps", lambda: between(layer(EPS), nn.ReLU), normal(600, 5), 12, row="1.3"),
    Case("ln_written_eps", lambda: between(lambda: WrittenLayerNorm(6, EPS)), X, 32, row="1.3"),
    Case("ln_std_eps", lambda: between(lambda: WrittenLayerNorm(6, EPS, std=True)), X, 32, row="1.3"),
    Case("ln_quick_gelu_eps", quick_gelu, X, 32, row="1.3"),
    Case("ln_three_readers", lambda: ThreeReaders(5, 6, torch.tanh), X, 37, row="theory 2"),
    Case("ln_plain_readers", lambda: PlainReaders(5, 4), X, 31, row="theory 4"),
    Case(
        "ln_joined",
        lambda: Joined(5, 3),
        X,
        19,
        row="theory 4",
    ),
    # RMS norm
    Case("rms_linear", lambda: between(rms(), bias=False, wide=True), WIDE, 22, row="1.3"),
    Case("rms_linear_eps", lambda: between(rms(EPS), bias=False, wide=True), WIDE, 21, row="1.3"),
    Case("rms_gelu", lambda: between(rms(), nn.GELU, bias=False, wide=True), WIDE, 1, row="1.3"),
    Case("rms_written_eps", lambda: between(lambda: WrittenRMS(6, EPS), bias=False, wide=True), WIDE, 21, row="1.3"),
    Case(
        "rms_offset_eps", lambda: between(lambda: WrittenRMS(6, EPS, 1.0), bias=False, wide=True), WIDE, 21, row="1.3"
    ),
    Case("rms_bias_eps", lambda: between(rms(EPS), wide=True), WIDE, 21, row="1.3"),
    Case(
        "rms_narrow_eps",
        lambda: between(rms(EPS), bias=False),
        X,
        25,
        row="1.3, and 4 across the range of five inputs",
    ),
    # group, instance and weight norm
    Case("gn_gelu", lambda: between(group(2), nn.GELU), X, 14, row="1.3"),
    Case("gn_relu", lambda: between(group(2), nn.ReLU), normal(600, 5), 20, row="1.3"),
    Case("gn_gelu_eps", lambda: between(group(2, EPS), nn.GELU), X, 12, row="1.3"),
    Case("gn_conv_relu_eps", lambda: image_norm(group(2, EPS), nn.ReLU), IMAGES, 8, row="1.3"),
    Case(
        "in_conv_gelu_eps", lambda: image_norm(lambda: nn.InstanceNorm2d(6, affine=True), nn.GELU), IMAGES, 6, row="1.3"
    ),
    Case("bn_conv_eval_relu", lambda: image_norm(lambda: nn.BatchNorm2d(6), nn.ReLU), IMAGES, 18, row="1.3"),
    Case(
        "bn_conv_train_relu_eps",
        lambda: image_norm(lambda: nn.BatchNorm2d(6), nn.ReLU),
        IMAGES,
        12,
        row="1.3",
        train=True,
        batches=3,
    ),
    Case("weight_norm", lambda: WeightNormed(), normal(96, 3), 5, row="1.3"),
    Case("weight_norm_torch", normed_rows, normal(96, 3), 5, row="1.3"),
    # streams behind norms
    Case("norm_behind_a_map", lambda: NormedBehind(5), normal(96, 7), 10),
    Case("pre_rms", stream(lambda d: nn.RMSNorm(d, eps=SOFT)), STREAM, 33, row="1.7"),
    Case("pre_ln", stream(lambda d: nn.LayerNorm(d, eps=SOFT)), STREAM, 79, row="1.7"),
    Case("post_rms", stream(lambda d: nn.RMSNorm(d, eps=SOFT), post=True), STREAM, 12, row="1.7"),
    Case("post_ln", stream(lambda d: nn.LayerNorm(d, eps=SOFT), post=True), STREAM, 52, row="1.7"),
    Case("norm_into_stream", lambda: IntoStream(5, 6, 4), normal(60, 3, 5), 37, row="theory 5"),
    Case("norms_around_a_mean", lambda: AroundMean(7, 5), normal(96, 2, 7), 25, row="theory 5"),
    Case(
        "gain_read_twice",
        lambda: GainReadTwice(5, 4),
        X,
        4,
        4 + 3,
        "theory 2",
        "rotations behind the gain that keep the vector of ones: a frame that a gain conjugates may not turn this gain",
    ),
    Case("norm_beside_positions", lambda: IntoStream(5, 6, 4, post=True), normal(60, 3, 5), 43, row="theory 4, 5"),
)
