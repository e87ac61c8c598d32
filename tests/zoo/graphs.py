"""Random networks from the supported operators, traps included, as trees of names that hypothesis can shrink.

A tree is a tuple of steps; a step is the name of a leaf, or (combinator, tree). Leaves are small modules on a stream:
sequences [batch, positions, width], or images [batch, channels, height, width].
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.heads import STEPS, InHeads

Step = str | tuple[str, tuple[Any, ...]]
Tree = tuple[Step, ...]
Kind = Literal["sequence", "image"]
Made = tuple[nn.Module, int] | None
"""A module and the width that it leaves; None where it does not apply."""

WIDEST = 12


class Op(nn.Module):
    """fn(self, x), with submodules and parameters by keyword."""

    def __init__(self, fn: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.fn = fn
        for name, part in parts.items():
            if isinstance(part, tuple):
                setattr(self, name, nn.Parameter(torch.zeros(part)))
            elif isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self, x)


@dataclass(frozen=True)
class Maker:
    """Builds the leaves of one kind; `mix` is the linear map of the stream, `axis` its feature axis."""

    kind: Kind
    draw: random.Random

    @property
    def axis(self) -> int:
        return -1 if self.kind == "sequence" else 1

    def mix(self, a: int, b: int, bias: bool = True) -> nn.Module:
        return nn.Linear(a, b, bias=bias) if self.kind == "sequence" else nn.Conv2d(a, b, 1, bias=bias)

    def shape(self, n: int) -> tuple[int, ...]:
        return (n,) if self.kind == "sequence" else (n, 1, 1)


POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "relu6": lambda x: F.relu6(4 * x),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 1.0),
    "abs": torch.abs,
    "square": torch.square,
    "self_product": lambda x: x * x,
    "relu_squared": lambda x: F.relu(x) ** 2,
    "x_times_relu": lambda x: x * F.relu(x),
    "x_plus_relu": lambda x: x + F.relu(x),
    "x_minus_x": lambda x: x - 0.5 * x,
    "add_constant": lambda x: x + 0.7,
    "constant_minus": lambda x: 1.0 - x,
    "scale": lambda x: -2.0 * x,
    "clamp": lambda x: x.clamp(min=-0.3),
    "clamp_zero": lambda x: x.clamp(min=0.0),
    "exp_tanh": lambda x: torch.exp(torch.tanh(x)),
    "sign_times": lambda x: torch.sign(x) * x,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "where_other": lambda x: torch.where(x > 0.2, x, torch.tanh(x)),
    "maximum_half": lambda x: torch.maximum(x, 0.5 * x),
    "detour": lambda x: x / (1 + x.abs()),
    "inverse": lambda x: 1.0 / (2.0 + x * x),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "sin": torch.sin,
    "pow3": lambda x: (0.5 * x) ** 3,
    "softplus": F.softplus,
    "elu": F.elu,
}


def pointwise(fn: Callable[[Tensor], Tensor]) -> Callable[[Maker, int], Made]:
    return lambda m, n: (Op(lambda _, x: fn(x)), n)


def on_features(fn: Callable[[Tensor, int], Tensor]) -> Callable[[Maker, int], Made]:
    """A function of (x, feature axis) that keeps the width."""
    return lambda m, n: (Op(lambda _, x: fn(x, m.axis)), n)


def halves(fn: Callable[[Tensor, Tensor, int], Tensor], widen: bool = False) -> Callable[[Maker, int], Made]:
    """A function of the two halves of the stream."""
    return lambda m, n: None if n % 2 else (Op(lambda _, x: fn(*x.chunk(2, m.axis), m.axis)), n if widen else n // 2)


def resized(fn: Callable[[Tensor, int], Tensor], width: Callable[[int], int | None]) -> Callable[[Maker, int], Made]:
    def make(m: Maker, n: int) -> Made:
        out = width(n)
        return None if not out or out > WIDEST else (Op(lambda _, x: fn(x, m.axis)), out)

    return make


def pad_features(x: Tensor, axis: int) -> Tensor:
    return F.pad(x, (1, 1)) if axis == -1 else F.pad(x, (0, 0, 0, 0, 1, 1))


def pool_features(x: Tensor, axis: int) -> Tensor:
    y = x.movedim(axis, -1)
    return F.avg_pool1d(y.flatten(0, -3) if y.ndim > 3 else y, 2).reshape(*y.shape[:-1], -1).movedim(-1, axis)


def expand_features(x: Tensor, axis: int) -> Tensor:
    y = x.movedim(axis, -1)
    return y.unsqueeze(-1).expand(*y.shape, 2).flatten(-2).movedim(-1, axis)


def shuffle(x: Tensor, axis: int) -> Tensor:
    y = x.movedim(axis, -1)
    return y.reshape(*y.shape[:-1], 2, -1).transpose(-1, -2).flatten(-2).movedim(-1, axis)


def linear(m: Maker, n: int) -> Made:
    out = m.draw.choice((3, 4, 6))
    return m.mix(n, out, m.draw.random() < 0.7), out


def used_twice(m: Maker, n: int) -> Made:
    act = m.draw.choice((torch.relu, torch.tanh, F.gelu, lambda x: x))
    return Op(lambda s, x: s.inner(act(s.inner(x))), inner=m.mix(n, n)), n


def two_places(m: Maker, n: int) -> Made:
    """One map read by two branches and by itself."""
    return Op(lambda s, x: s.inner(torch.relu(x)) + s.inner(x), inner=m.mix(n, n)), n


def own_transpose(m: Maker, n: int) -> Made:
    act = m.draw.choice((torch.relu, torch.tanh, lambda x: x))

    def forward(s: Any, x: Tensor) -> Tensor:
        y = x.movedim(m.axis, -1)
        return (act(y @ s.matrix.T) @ s.matrix).movedim(-1, m.axis)

    return Op(forward, matrix=(m.draw.choice((n, 4)), n)), n


def three_readers(m: Maker, n: int) -> Made:
    norm = nn.LayerNorm(n)

    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.norm(x.movedim(m.axis, -1)).movedim(-1, m.axis)
        return s.a(y) + torch.tanh(s.b(y)) * s.c(y)

    return Op(forward, norm=norm, a=m.mix(n, 4), b=m.mix(n, 4), c=m.mix(n, 4)), 4


def norm(make: Callable[[int], nn.Module | None], move: bool) -> Callable[[Maker, int], Made]:
    """A norm; `move`: it wants the features last, otherwise first after the batch."""

    def build(m: Maker, n: int) -> Made:
        inner = make(n)
        if inner is None:
            return None
        if move:
            return Op(lambda s, x: s.inner(x.movedim(m.axis, -1)).movedim(-1, m.axis), inner=inner), n
        if m.kind == "image":
            return inner, n
        return Op(lambda s, x: s.inner(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2), inner=inner), n

    return build


def swiglu(m: Maker, n: int) -> Made:
    act = m.draw.choice((F.silu, F.relu, lambda x: x, torch.sigmoid))
    return Op(lambda s, x: s.d(act(s.g(x)) * s.u(x)), g=m.mix(n, 5), u=m.mix(n, 5), d=m.mix(5, n)), n


def gain(m: Maker, n: int) -> Made:
    return Op(lambda s, x: x * s.gain, gain=m.shape(n)), n


def offset(m: Maker, n: int) -> Made:
    return Op(lambda s, x: x + s.bias, bias=m.shape(n)), n


def fixed_offset(m: Maker, n: int) -> Made:
    return Op(lambda s, x: x + s.fixed, fixed=torch.linspace(-1, 1, n).reshape(m.shape(n))), n


def fixed_gain(m: Maker, n: int) -> Made:
    return Op(lambda s, x: x * s.fixed, fixed=torch.linspace(0.5, 2, n).reshape(m.shape(n))), n


def squeeze_excite(m: Maker, n: int) -> Made:
    places = 1 if m.kind == "sequence" else (2, 3)
    return Op(lambda s, x: x * torch.sigmoid(s.inner(x.mean(places, keepdim=True))), inner=m.mix(n, n)), n


def attention(m: Maker, n: int) -> Made:
    if m.kind == "image" or n % 2:
        return None
    fused, groups = m.draw.random() < 0.5, m.draw.choice((1, 2))
    parts = {"q": nn.Linear(n, 4), "k": nn.Linear(n, 2 * groups), "v": nn.Linear(n, 3 * groups), "o": nn.Linear(6, n)}

    def forward(s: Any, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = s.q(x).view(b, t, 2, 2).transpose(1, 2)
        k = s.k(x).view(b, t, groups, 2).transpose(1, 2)
        v = s.v(x).view(b, t, groups, 3).transpose(1, 2)
        if groups == 1:
            k, v = k.expand(b, 2, t, 2), v.expand(b, 2, t, 3)
        if fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.mT / 2).softmax(-1) @ v
        return s.o(y.transpose(1, 2).reshape(b, t, 6))

    return Op(forward, **parts), n


def turned(x: Tensor, size: int, interleaved: bool) -> Tensor:
    """Rotary embedding of the first `size` entries of every head, [batch, heads, positions, width]."""
    head, rest = x[..., :size], x[..., size:]
    rates = torch.arange(1.0, size // 2 + 1, dtype=x.dtype)
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] / rates
    if interleaved:
        angles = angles.repeat_interleave(2, -1)
        other = torch.stack((-head[..., 1::2], head[..., ::2]), -1).flatten(-2)
    else:
        angles = torch.cat((angles, angles), -1)
        other = torch.cat((-head[..., size // 2 :], head[..., : size // 2]), -1)
    return torch.cat((head * angles.cos() + other * angles.sin(), rest), -1)


def rotary_attention(m: Maker, n: int) -> Made:
    """Rotary embeddings, whole or partial, in either layout, behind norms of queries and keys or not."""
    if m.kind == "image":
        return None
    size, interleaved = m.draw.choice((2, 4)), m.draw.random() < 0.5
    make = m.draw.choice((nn.Identity, lambda: nn.LayerNorm(4), lambda: nn.RMSNorm(4, eps=1e-3)))
    parts = {"qkv": nn.Linear(n, 24), "o": nn.Linear(8, n), "q_norm": make(), "k_norm": make()}

    def forward(s: Any, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = s.qkv(x).view(b, t, 2, 12).transpose(1, 2).chunk(3, -1)
        q, k = turned(s.q_norm(q), size, interleaved), turned(s.k_norm(k), size, interleaved)
        return s.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, 8))

    return Op(forward, **parts), n


def in_heads(m: Maker, n: int) -> Made:
    """One to four steps on heads."""
    names = tuple(m.draw.choice(sorted(STEPS)) for _ in range(m.draw.randint(1, 4)))
    inner = InHeads(n, n, names, m.draw.random() < 0.5, m.draw.random() < 0.3)
    if m.kind == "sequence":
        return inner, n
    return Op(lambda s, x: s.inner(x.flatten(2).mT).mT.reshape(x.shape), inner=inner), n


def self_gram(m: Maker, n: int) -> Made:
    if m.kind == "image":
        return None
    return Op(lambda s, x: (0.1 * x @ x.mT) @ x), n


def made_gain(m: Maker, n: int) -> Made:
    """A gain that a small network makes of one vector."""
    parts = {"first": nn.Linear(3, 4), "second": nn.Linear(4, n, bias=m.draw.random() < 0.5)}
    shape = m.shape(n)
    return Op(lambda s, x: x * (1 + s.second(s.first(s.seed).tanh())).reshape(shape), seed=(3,), **parts), n


def latents(m: Maker, n: int) -> Made:
    """Attention to a few normalised vectors, and to nothing else."""
    norm = nn.LayerNorm(5)
    parts = {"q": m.mix(n, 4), "k": nn.Linear(5, 4), "v": nn.Linear(5, 3, bias=m.draw.random() < 0.5), "o": m.mix(3, n)}

    def forward(s: Any, x: Tensor) -> Tensor:
        keys = s.norm(s.table)
        scores = s.q(x).movedim(m.axis, -1) @ s.k(keys).mT
        return s.o((scores.softmax(-1) @ s.v(keys)).movedim(-1, m.axis))

    return Op(forward, norm=norm, table=(3, 5), **parts), n


def depthwise_after_split(m: Maker, n: int) -> Made:
    if m.kind == "sequence" or n % 2:
        return None
    inner = nn.Conv2d(n // 2, n // 2, 3, padding=1, groups=n // 2)

    def forward(s: Any, x: Tensor) -> Tensor:
        a, b = x.split(n // 2, 1)
        return torch.cat((s.inner(a), b), 1)

    return Op(forward, inner=inner), n


def convolution(**options: Any) -> Callable[[Maker, int], Made]:
    def make(m: Maker, n: int) -> Made:
        groups = {"one": 1, "two": 2, "all": n}[options["groups"]]
        if m.kind == "sequence" or n % groups:
            return None
        return nn.Conv2d(n, n, 3, padding=1, groups=groups), n

    return make


def transposed(m: Maker, n: int) -> Made:
    return None if m.kind == "sequence" else (nn.ConvTranspose2d(n, 4, 3, padding=1), 4)


def images_only(make: Callable[[], nn.Module]) -> Callable[[Maker, int], Made]:
    return lambda m, n: None if m.kind == "sequence" else (make(), n)


LEAVES: dict[str, Callable[[Maker, int], Made]] = {
    **{name: pointwise(fn) for name, fn in POINTWISE.items()},
    "linear": linear,
    "used_twice": used_twice,
    "two_places": two_places,
    "own_transpose": own_transpose,
    "three_readers": three_readers,
    "swiglu": swiglu,
    "gain": gain,
    "offset": offset,
    "fixed_offset": fixed_offset,
    "fixed_gain": fixed_gain,
    "squeeze_excite": squeeze_excite,
    "attention": attention,
    "rotary_attention": rotary_attention,
    "self_gram": self_gram,
    "in_heads": in_heads,
    "made_gain": made_gain,
    "latents": latents,
    "depthwise_after_split": depthwise_after_split,
    "depthwise": convolution(groups="all"),
    "grouped": convolution(groups="two"),
    "convolution": convolution(groups="one"),
    "transposed": transposed,
    "max_pool": images_only(lambda: nn.MaxPool2d(3, 1, 1)),
    "avg_pool": images_only(lambda: nn.AvgPool2d(3, 1, 1)),
    "upsample": images_only(lambda: Op(lambda _, x: F.interpolate(x, scale_factor=2)[..., :4, :4])),
    "layer_norm": norm(lambda n: nn.LayerNorm(n), move=True),
    "layer_norm_plain": norm(lambda n: nn.LayerNorm(n, elementwise_affine=False), move=True),
    "rms_norm": norm(lambda n: nn.RMSNorm(n, eps=1e-3), move=True),
    "batch_norm": norm(lambda n: nn.BatchNorm2d(n), move=False),
    "batch_norm_plain": norm(lambda n: nn.BatchNorm2d(n, affine=False), move=False),
    "group_norm": norm(lambda n: nn.GroupNorm(2, n) if n % 2 == 0 and n > 2 else None, move=False),
    "instance_norm": norm(lambda n: nn.InstanceNorm2d(n, affine=True), move=False),
    "flip": on_features(lambda x, a: x.flip(a)),
    "roll": on_features(lambda x, a: x.roll(1, a)),
    "flip_sum": on_features(lambda x, a: x + x.flip(a)),
    "softmax": on_features(lambda x, a: x.softmax(a)),
    "centre": on_features(lambda x, a: x - x.mean(a, keepdim=True)),
    "normalise": on_features(lambda x, a: F.normalize(x, dim=a)),
    "over_max": on_features(lambda x, a: x / (1 + x.abs().amax(a, keepdim=True))),
    "cumsum": on_features(lambda x, a: 0.3 * x.cumsum(a)),
    "add_mean": on_features(lambda x, a: x + x.mean(a, keepdim=True)),
    "mean_positions": on_features(lambda x, a: x + x.mean(1 if a == -1 else 2, keepdim=True)),
    "shuffle": lambda m, n: None if n % 2 else (Op(lambda _, x: shuffle(x, m.axis)), n),
    "swap_halves": halves(lambda a, b, axis: torch.cat((b, a), axis), widen=True),
    "relu_one_half": halves(lambda a, b, axis: torch.cat((F.relu(a), b), axis), widen=True),
    "rotate_halves": halves(lambda a, b, axis: torch.cat((-b, a), axis), widen=True),
    "glu": halves(lambda a, b, axis: torch.sigmoid(a) * b),
    "product_of_halves": halves(lambda a, b, axis: a * b),
    "sum_of_halves": halves(lambda a, b, axis: a + b),
    "stacked_halves": halves(lambda a, b, axis: torch.stack((a, 2 * b), 0).sum(0)),
    "max_of_halves": halves(lambda a, b, axis: torch.maximum(a, b)),
    "pad_features": resized(pad_features, lambda n: n + 2),
    "slice_features": resized(lambda x, a: x.narrow(a, 1, x.shape[a] - 1), lambda n: n - 1 if n > 2 else None),
    "every_second": resized(
        lambda x, a: x[..., ::2] if a == -1 else x[:, ::2], lambda n: n // 2 if n % 2 == 0 and n > 2 else None
    ),
    "pool_features": resized(pool_features, lambda n: n // 2 if n % 2 == 0 and n > 2 else None),
    "expand_features": resized(expand_features, lambda n: 2 * n),
    "repeat_features": resized(lambda x, a: torch.cat((x, x), a), lambda n: 2 * n),
    "with_own_relu": resized(lambda x, a: torch.cat((x, F.relu(x)), a), lambda n: 2 * n),
    "interleave": resized(lambda x, a: x.repeat_interleave(2, a), lambda n: 2 * n),
}


class Chain(nn.Module):
    """A tree as a module."""

    def __init__(self, tree: Tree, m: Maker, n: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        for step in tree:
            made = LEAVES[step](m, n) if isinstance(step, str) else combine(step[0], step[1], m, n)
            if made is not None:
                self.steps.append(made[0])
                n = made[1]
        self.width = n

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


COMBINATORS = ("residual", "bare_residual", "post_norm", "pre_norm", "pad_shortcut", "gate", "beside", "minus", "twice")


def combine(name: str, tree: Tree, m: Maker, n: int) -> Made:
    """A body on the stream: added to it, behind or before a norm, as a gate, beside it, or applied twice."""
    inner = Chain(tree, m, n)
    if name == "beside":
        out = n + inner.width
        return (Op(lambda s, x: torch.cat((x, s.inner(x)), m.axis), inner=inner), out) if out <= WIDEST else None
    if name == "pad_shortcut":
        extra = inner.width - n
        if extra < 0:
            return None
        widths = (0, extra) if m.kind == "sequence" else (0, 0, 0, 0, 0, extra)
        return Op(lambda s, x: s.inner(x) + F.pad(x, widths), inner=inner), inner.width
    if name == "bare_residual":
        return (Op(lambda s, x: x + s.inner(x), inner=inner), n) if inner.width == n else None
    body = nn.Sequential(inner, m.mix(inner.width, n))
    if name == "twice":
        return Op(lambda s, x: s.inner(s.inner(x)), inner=body), n
    if name == "gate":
        return Op(lambda s, x: x * s.inner(x), inner=body), n
    if name == "minus":
        return Op(lambda s, x: x - s.inner(x), inner=body), n
    if name == "residual":
        return Op(lambda s, x: x + s.inner(x), inner=body), n
    layer = nn.LayerNorm(n) if m.draw.random() < 0.5 else nn.RMSNorm(n, eps=1e-3)

    def normed(s: Any, x: Tensor) -> Tensor:
        return s.norm(x.movedim(m.axis, -1)).movedim(-1, m.axis)

    if name == "post_norm":
        return Op(lambda s, x: normed(s, x + s.inner(x)), inner=body, norm=layer), n
    return Op(lambda s, x: x + s.inner(normed(s, x)), inner=body, norm=layer), n


class Network(nn.Module):
    """Read-in, a chain, a head (or the bare stream as output)."""

    def __init__(self, tree: Tree, kind: Kind, seed: int, head: bool = True) -> None:
        super().__init__()
        m = Maker(kind, random.Random(seed))
        self.read = m.mix(3, 6)
        self.chain = Chain(tree, m, 6)
        self.head = m.mix(self.chain.width, 3) if head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.chain(self.read(x)))


def example(kind: Kind, g: torch.Generator) -> tuple[Tensor]:
    shape = (3, 4, 3) if kind == "sequence" else (3, 3, 4, 4)
    return (1.5 * torch.randn(shape, generator=g, dtype=torch.float64),)
