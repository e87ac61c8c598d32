"""Ensembles whose symmetries are known: textbook cases, corrected ones and near misses.

Each is small, so that what breaks a symmetry at finite width shows. `examples/symmetry_table.py` prints what is decided
about each from its laws, next to the outcome of the statistical test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as td

from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.laws import (
    Blocks,
    Complex,
    Density,
    Fixed,
    Haar,
    Law,
    Mixture,
    Normal,
    Sphere,
    TruncatedNormal,
    Uniform,
)
from torchgauge.fields.nets import cosine_net, erf_net, gauss_net, relu_net, tanh_net

INPUTS, WIDTH, OUTPUTS = 3, 4, 3
Laws = Mapping[Any, Law | td.Distribution]
"""Name, or tuple of names, → law."""


class OneLayer(nn.Module):
    """x ↦ after(V inner(W x + b) + c), the general form of one hidden layer.

    Args:
        inner: of the hidden layer.
        after: of the outputs.
        dtype: of V and c.
        late: b is added behind `inner`, not before.
        widths: inputs, hidden units, outputs.
    """

    def __init__(
        self,
        inner: Callable[[Tensor], Tensor],
        after: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
        late: bool = False,
        widths: tuple[int, int, int] = (INPUTS, WIDTH, OUTPUTS),
    ) -> None:
        super().__init__()
        d, n, out = widths
        self.inner, self.after, self.late = inner, after, late
        self.W = nn.Parameter(torch.zeros(n, d, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(n, dtype=torch.float64))
        self.V = nn.Parameter(torch.zeros(out, n, dtype=dtype))
        self.c = nn.Parameter(torch.zeros(out, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] → [n, D]."""
        z = nn.functional.linear(x, self.W)
        h = self.inner(z) + self.b if self.late else self.inner(z + self.b)
        out = nn.functional.linear(h.to(self.V.dtype), self.V, self.c)
        return out if self.after is None else self.after(out)


class LateWave(OneLayer):
    """x ↦ V sin 2π((W x mod 1) + b) + c."""

    def __init__(self) -> None:
        super().__init__(torch.sin)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.remainder(nn.functional.linear(x, self.W), 1.0)
        return nn.functional.linear(torch.sin(2 * torch.pi * (z + self.b)), self.V, self.c)


class Attention(nn.Module):
    """One head of self-attention over tokens, averaged, and a readout: [n, tokens, d] → [n, D]."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        make = {"bias": False, "dtype": torch.float64}
        self.q, self.k, self.v = (nn.Linear(INPUTS, size, **make) for _ in range(3))  # type: ignore[arg-type]
        self.readout = nn.Linear(size, OUTPUTS, **make)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, tokens, d]."""
        mixed = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.readout(mixed.mean(1))


@dataclass(eq=False)
class Case:
    """One entry of the gallery.

    Attributes:
        make: builds the ensemble.
        note: what it shows.
        tokens: 0 for points [n, d], else points [n, tokens, d].
    """

    make: Callable[[], Ensemble]
    note: str
    tokens: int = 0

    @cached_property
    def ensemble(self) -> Ensemble:
        return self.make()

    @property
    def points(self) -> Tensor:
        """Three generic points."""
        shape = (3, self.tokens, INPUTS) if self.tokens else (3, INPUTS)
        return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def one_layer(inner: Callable[[Tensor], Tensor], laws: Laws | None = None, **options: object) -> Callable[[], Ensemble]:
    """An ensemble of `OneLayer` nets, all laws normal but for those given."""

    def make() -> Ensemble:
        module = OneLayer(inner, **options)  # type: ignore[arg-type]
        given = dict(laws or {})
        drawn = {name for key in given for name in (key if isinstance(key, tuple) else (key,))}
        plain: dict[Any, Law | td.Distribution] = {name: law for name, law in NORMAL.items() if name not in drawn}
        return Ensemble(module, plain | given)

    return make


NORMAL = {"W": Normal(0.8), "b": Normal(0.5), "V": Normal(0.5), "c": Normal(0.3)}
SILENT = {"c": Fixed(0.0)}
CIRCLE = Uniform(0.0, 1.0)
C128 = torch.complex128


def _mod(x: Tensor) -> Tensor:
    return torch.remainder(x, 1.0)


def _plain_norm(x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:])


def _normed_inputs() -> Ensemble:
    module = nn.Sequential(
        nn.LayerNorm(INPUTS, elementwise_affine=False), nn.Linear(INPUTS, WIDTH), nn.Tanh(), nn.Linear(WIDTH, OUTPUTS)
    ).double()
    return Ensemble(module, {name: Normal(0.7) for name, _ in module.named_parameters()})


def _attention(values: Law | td.Distribution | None = None) -> Ensemble:
    laws: dict[str, Law | td.Distribution] = {name: Normal(0.8) for name in ("q.weight", "k.weight", "v.weight")}
    return Ensemble(Attention(), laws | {"readout.weight": Normal(0.5)} | ({"v.weight": values} if values else {}))


_first_rows = torch.tensor([[0.6], [0.0], [0.0]], dtype=torch.float64)
_widths = torch.tensor([[0.3], [0.5], [0.8]], dtype=torch.float64)

GALLERY: dict[str, Case] = {
    # the four classes of Maiti, Stoner and Halverson
    "(a) outputs: normal readout": Case(
        one_layer(torch.tanh, {"W": Uniform(-1.5, 1.5), "b": Uniform(-1.0, 1.0)}),
        "the readout absorbs SO(D), whatever stands before",
    ),
    "(b) inputs: normal first layer": Case(
        one_layer(torch.tanh, {"V": Uniform(-1.0, 1.0)}), "the first layer absorbs SO(d), whatever stands behind"
    ),
    "(c) translations: (W x + b) mod 1": Case(
        one_layer(_mod, {"b": CIRCLE}), "the sum is taken modulo 1, and b is uniform on the circle"
    ),
    "(d) SU(D): complex normal readout": Case(
        one_layer(torch.tanh, dtype=C128), "circular complex normal weights absorb SU(D)"
    ),
    # corrections
    "translations: (W x mod 1) + b": Case(
        one_layer(_mod, {"b": CIRCLE, "W": Normal(0.3)}, late=True),
        "no outer mod 1: not translation invariant at finite width",
    ),
    "translations: sin 2π((W x mod 1) + b)": Case(
        lambda: Ensemble(LateWave(), NORMAL | {"b": CIRCLE}),
        "the next map has period 1, which stands for the outer mod 1",
    ),
    "SU(D): parts from independent spheres": Case(
        one_layer(torch.tanh, {"V": Complex(Sphere(axis=0), Sphere(axis=0)), "c": Fixed(0.0)}, dtype=C128),
        "each part is SO(D) invariant, but the phases are not",
    ),
    "SU(D): complex sphere": Case(
        one_layer(torch.tanh, {"V": Sphere(axis=0), "c": Fixed(0.0)}, dtype=C128),
        "columns uniform on the complex sphere",
    ),
    # ready nets
    "erf net": Case(lambda: erf_net(WIDTH, INPUTS, OUTPUTS), "all normal"),
    "ReLU net without biases": Case(lambda: relu_net(WIDTH, INPUTS, OUTPUTS), "all normal"),
    "Gauss net": Case(
        lambda: gauss_net(WIDTH, INPUTS, OUTPUTS, 0.8, 0.3), "translation invariant at infinite width alone"
    ),
    "cosine net": Case(lambda: cosine_net(WIDTH, INPUTS, OUTPUTS), "biases uniform on the circle of the cosine"),
    "deep tanh net": Case(lambda: tanh_net((WIDTH, 5), INPUTS, OUTPUTS), "two hidden layers"),
    "self-attention": Case(_attention, "queries, keys and values absorb SO(d) together", tokens=4),
    # other invariant laws
    "readout on one sphere": Case(one_layer(torch.tanh, {"V": Sphere(1.5)}), "correlated weights, still invariant"),
    "Haar readout": Case(one_layer(torch.tanh, {"V": Haar("O")}, widths=(3, 3, 3)), "an orthogonal matrix"),
    "weights and biases on one sphere": Case(
        one_layer(torch.tanh, {("V", "c"): Sphere(axis=0)}), "columns of (V, c) drawn together"
    ),
    "density of the norm": Case(
        one_layer(torch.tanh, {"V": Density(Normal(0.6), lambda s: 0.1 * (s - 4) ** 2)}), "correlated by its energy"
    ),
    "width drawn anew for each network": Case(
        one_layer(torch.tanh, {"V": Mixture([Normal(0.2), Normal(1.0)])}), "a mixture of invariant laws"
    ),
    "layer norm before the readout": Case(
        one_layer(lambda x: _plain_norm(torch.tanh(x))), "hidden norms do not matter"
    ),
    "layer norm before a readout with a mean": Case(
        one_layer(lambda x: _plain_norm(torch.tanh(x)), {"V": Normal(0.5, 0.4)}),
        "features add up to zero: the mean is not seen",
    ),
    # near misses
    "readout with a mean": Case(one_layer(torch.tanh, {"V": Normal(0.5, 0.4)} | SILENT), "outputs stay exchangeable"),
    "one row with a mean": Case(
        one_layer(torch.tanh, {"V": Normal(0.5, _first_rows)} | SILENT), "k = 1 of the training experiment"
    ),
    "rows of different widths": Case(one_layer(torch.tanh, {"V": Normal(_widths)}), "signs alone survive"),
    "blocks of rows": Case(
        one_layer(torch.tanh, {"V": Blocks([(1, Normal(0.9)), (2, Normal(0.4))])}), "as before, by blocks"
    ),
    "bias with a mean": Case(one_layer(torch.tanh, {"c": Normal(0.3, 0.25)}), "the bias is not invariant"),
    "uniform bias": Case(one_layer(torch.tanh, {"c": Uniform(-1.2, 1.2)}), "centred, and still not invariant"),
    "truncated normal readout": Case(
        one_layer(torch.tanh, {"V": TruncatedNormal(0.5, -0.5, 0.5)} | SILENT), "a cut at one standard deviation"
    ),
    "truncated normal first layer": Case(
        one_layer(torch.tanh, {"W": TruncatedNormal(1.5, -1.5, 1.5)}), "a cut at one standard deviation"
    ),
    "mixed widths, entry by entry": Case(
        one_layer(torch.tanh, {"V": Mixture([Normal(0.1), Normal(1.0)], each="entry")}),
        "fourth cumulants do not vanish",
    ),
    "heavy tails": Case(
        one_layer(torch.tanh, {"V": td.StudentT(2.5)}),
        "no fourth moment: proved by nothing here, tested by bounded averages",
    ),
    "first layer with a mean": Case(one_layer(torch.tanh, {"W": Normal(0.8, 0.5)}), "inputs stay exchangeable"),
    "columns of different widths": Case(one_layer(torch.tanh, {"W": Normal(_widths.T)}), "inputs of different size"),
    "cosine with normal biases": Case(one_layer(torch.cos), "biases are not uniform on the circle"),
    "tanh behind the readout": Case(
        one_layer(torch.tanh, after=torch.tanh), "signs and permutations pass, rotations do not"
    ),
    "ReLU behind the readout": Case(one_layer(torch.tanh, after=torch.relu), "permutations alone pass"),
    "softmax behind the readout": Case(one_layer(torch.tanh, after=lambda x: x.softmax(-1)), "probabilities"),
    "layer norm behind the readout": Case(
        one_layer(torch.tanh, after=_plain_norm), "only rotations that fix (1, …, 1)"
    ),
    "layer norm of the inputs": Case(_normed_inputs, "only rotations that fix (1, …, 1)"),
    "self-attention, Laplace values": Case(
        lambda: _attention(td.Laplace(0.0, 0.8)), "one of three that have to absorb does not", tokens=4
    ),
}
