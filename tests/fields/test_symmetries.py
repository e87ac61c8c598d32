"""Symmetries decided from laws and graph: the gallery against its known answers, and cases of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.fields import (
    Blocks,
    Ensemble,
    Fixed,
    Haar,
    Law,
    Mixture,
    Normal,
    Sphere,
    TruncatedNormal,
    Uniform,
    erf_net,
    symmetries,
)
from torchgauge.fields.symmetry import GALLERY, TRANSFORMATIONS, Symmetries

# in the order of TRANSFORMATIONS: SO(D), SO(d), translation, SU(D), permutations and signs of outputs, of inputs
KNOWN = {
    "(a) outputs: normal readout": "+--.++++",
    "(b) inputs: normal first layer": "-+-.++++",
    "(c) translations: (W x + b) mod 1": "+++.++++",
    "(d) SU(D): complex normal readout": "++-+++++",
    "translations: (W x mod 1) + b": "++-.++++",
    "translations: sin 2π((W x mod 1) + b)": "+++.++++",
    "SU(D): parts from independent spheres": "++--++++",
    "SU(D): complex sphere": "++-+++++",
    "erf net": "++-.++++",
    "ReLU net without biases": "++-.++++",
    "Gauss net": "++-.++++",
    "cosine net": "+++.++++",
    "deep tanh net": "++-.++++",
    "self-attention": "++?.++++",
    "readout on one sphere": "++-.++++",
    "Haar readout": "++-.++++",
    "weights and biases on one sphere": "++-.++++",
    "density of the norm": "++-.++++",
    "width drawn anew for each network": "++-.++++",
    "layer norm before the readout": "++-.++++",
    "layer norm before a readout with a mean": "++-.++++",
    "readout with a mean": "-+-.+-++",
    "one row with a mean": "-+-.-?++",
    "rows of different widths": "-+-.-+++",
    "blocks of rows": "-+-.-+++",
    "bias with a mean": "-+-.+-++",
    "uniform bias": "-+-.++++",
    "truncated normal readout": "-+-.++++",
    "truncated normal first layer": "+--.++++",
    "mixed widths, entry by entry": "-+-.++++",
    "heavy tails": "?+-.++++",
    "first layer with a mean": "+--.+++-",
    "columns of different widths": "+--.++-+",
    "cosine with normal biases": "++-.++++",
    "tanh behind the readout": "-+-.++++",
    "ReLU behind the readout": "-+-.+-++",
    "softmax behind the readout": "-+-.+-++",
    "layer norm behind the readout": "-+-.+-++",
    "layer norm of the inputs": "+--.+++-",
    "self-attention, Laplace values": "+??.++++",
}
WORDS = {"+": True, "-": False, "?": None}
POINTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ensemble(*layers: nn.Module, laws: dict[str, Law] | None = None) -> Ensemble:
    module = nn.Sequential(*layers).double()
    plain = {name: Normal(0.6) for name, _ in module.named_parameters()}
    return Ensemble(module, plain | (laws or {}))


def linear(n: int, m: int, bias: bool = True) -> nn.Module:
    return nn.Linear(n, m, bias=bias)


def test_the_gallery_is_known() -> None:
    assert set(KNOWN) == set(GALLERY)
    assert len(KNOWN) >= 20


@pytest.mark.parametrize("name", KNOWN)
def test_gallery(name: str, decided: Callable[[str], Symmetries]) -> None:
    found = decided(name)
    known = {t.name: WORDS[word] for t, word in zip(TRANSFORMATIONS, KNOWN[name], strict=True) if word != "."}
    assert {v.transformation.name: v.holds for v in found.verdicts} == known
    assert all(bool(v.absorbed) == (v.holds is True) for v in found.verdicts)
    assert all("Proof" in v.derivation for v in found.verdicts if v.holds is False)


def test_absorbing_parameters() -> None:
    found = symmetries(erf_net(4, 3, 2), POINTS)
    assert found["SO(D)"].absorbed == ("readout.bias", "readout.weight")
    assert found["SO(d)"].absorbed == ("hidden.0.weight",)
    assert "readout.weight ↦ R along axis 0" in found["SO(D)"].derivation
    case = GALLERY["self-attention"]
    assert symmetries(case.ensemble, case.points, ["SO(d)"])["SO(d)"].absorbed == ("k.weight", "q.weight", "v.weight")
    circle = GALLERY["(c) translations: (W x + b) mod 1"]
    assert symmetries(circle.ensemble, circle.points)["translation"].absorbed == ("b",)
    assert found.to_dict()["SO(d)"] == {
        "holds": True,
        "absorbed": ["hidden.0.weight"],
        "derivation": found["SO(d)"].derivation,
    }
    assert "SO(D): holds" in str(found)


def test_one_output_alone() -> None:
    found = symmetries(erf_net(4, 3, 1), POINTS)
    assert found["SO(D)"].holds and found["signs of outputs"].holds
    assert found["signs of outputs"].absorbed == ("readout.bias", "readout.weight")
    shifted = ensemble(linear(3, 4), nn.Tanh(), linear(4, 1), laws={"2.bias": Normal(0.3, 0.2)})
    assert symmetries(shifted, POINTS)["signs of outputs"].holds is False


def test_one_input_alone() -> None:
    net = ensemble(linear(1, 4), nn.Tanh(), linear(4, 2), laws={"0.weight": Normal(1.0, 0.5)})
    found = symmetries(net, POINTS[:, :1])
    assert found["SO(d)"].holds
    assert found["signs of inputs"].holds is not True


def test_a_network_that_sees_lengths_alone() -> None:
    class Length(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.readout = nn.Linear(1, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(torch.tanh(x.square().sum(-1, keepdim=True)))

    laws = {"readout.weight": Normal(0.5), "readout.bias": Normal(0.5)}
    found = symmetries(Ensemble(Length(), laws), POINTS)
    assert found["SO(d)"].holds and found["SO(d)"].absorbed == ()
    assert "does not see it" in found["SO(d)"].derivation


def test_residual_stream_moves_both_sides() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = (nn.Linear(3, 3, dtype=torch.float64) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.outer(torch.tanh(self.inner(x)))

    module = Residual()
    found = symmetries(Ensemble(module, {n: Normal(0.5) for n, _ in module.named_parameters()}), POINTS)
    assert found["SO(D)"].holds is None and "share one frame" in found["SO(D)"].derivation
    assert found["SO(d)"].holds is None


def test_tied_weights_absorb_on_one_side_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.weight.mT) @ self.weight

    found = symmetries(Ensemble(Tied(), {"weight": Normal(0.5)}), POINTS)
    assert not any(found[name].holds for name in ("SO(D)", "SO(d)"))


def test_a_gain_behind_the_readout() -> None:
    net = ensemble(
        linear(3, 4), nn.Tanh(), linear(4, 3), nn.LayerNorm(3), laws={"3.weight": Fixed(1.0), "3.bias": Fixed(0.0)}
    )
    assert symmetries(net, POINTS)["SO(D)"].holds is not True


def test_batch_norm_statistics_do_not_move() -> None:
    net = ensemble(linear(3, 4), nn.Tanh(), linear(4, 3), nn.BatchNorm1d(3).eval(), laws={})
    net.module.eval()
    found = symmetries(net, POINTS)
    assert all(found[name].holds is not True for name in ("SO(D)", "permutations of outputs"))


@pytest.mark.parametrize(
    ("law", "holds"),
    [(Haar("SO"), True), (Sphere(axis=0), True), (Sphere(axis=1), None), (TruncatedNormal(1.0, -1.0, 3.0), None)],
)
def test_laws_of_the_readout(law: Law, holds: bool | None) -> None:
    net = ensemble(linear(3, 3), nn.Tanh(), linear(3, 3, bias=False), laws={"2.weight": law})
    assert (symmetries(net, POINTS)["SO(D)"].holds or None) is holds


def test_circles_that_do_not_fit() -> None:
    class Wave(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale, self.first, self.readout = scale, nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(torch.cos(self.scale * self.first(x)))

    def holds(scale: float, law: Law) -> bool | None:
        module = Wave(scale).double()
        laws = {n: Normal(0.5) for n, _ in module.named_parameters()} | {"first.bias": law}
        return symmetries(Ensemble(module, laws), POINTS)["translation"].holds

    assert holds(2 * torch.pi, Uniform(0.0, 1.0))
    assert holds(2 * torch.pi, Uniform(-1.0, 1.0))  # twice around
    assert holds(torch.pi, Uniform(0.0, 2.0))
    assert not holds(torch.pi, Uniform(0.0, 1.0))  # half a turn
    assert not holds(2.0, Uniform(0.0, 1.0))


def test_a_bias_shared_by_all_units_absorbs_nothing() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.readout = nn.Linear(3, 4, bias=False), nn.Linear(4, 2)
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(torch.remainder(self.first(x) + self.bias, 1.0))

    module = Shared().double()
    laws = {n: Normal(0.5) for n, _ in module.named_parameters()} | {"bias": Uniform(0.0, 1.0)}
    assert symmetries(Ensemble(module, laws), POINTS)["translation"].holds is not True


def test_a_bias_used_twice_absorbs_nothing() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.readout = nn.Linear(3, 4, bias=False), nn.Linear(4, 2)
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(torch.remainder(self.first(x) + self.bias, 1.0) + self.bias)

    module = Twice().double()
    laws = {n: Normal(0.5) for n, _ in module.named_parameters()} | {"bias": Uniform(0.0, 1.0)}
    assert symmetries(Ensemble(module, laws), POINTS)["translation"].holds is not True


class Through(nn.Module):
    """tanh(W x + b) through some map, then a readout."""

    def __init__(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.change = change
        self.W, self.b = (nn.Parameter(torch.zeros(*s, dtype=torch.float64)) for s in ((4, 3), (4,)))
        self.V = nn.Parameter(torch.zeros(2, 4, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.change(nn.functional.linear(x, self.W, self.b)).to(self.V.dtype) @ self.V.mT


def through(change: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64, b: Law | None = None) -> Ensemble:
    return Ensemble(Through(change, dtype), {"W": Normal(0.5), "b": b or Normal(0.5), "V": Normal(0.5)})


def test_casts_to_integers_let_no_translation_through() -> None:
    """The bias is uniform on the circle, but a whole number is taken before the periodic map."""
    net = through(lambda z: torch.cos(2 * torch.pi * (z.to(torch.int64).double() / 3)), b=Uniform(0.0, 1.0))
    assert symmetries(net, POINTS, ["translation"])["translation"].holds is not True


def test_positive_and_bounded_proofs_are_about_real_outputs() -> None:
    class Phase(Through):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(super().forward(x))

    net = Ensemble(Phase(torch.tanh, torch.complex128), {"W": Normal(0.5), "b": Normal(0.5), "V": Normal(3.0)})
    found = symmetries(net, POINTS)
    assert all("never negative" not in v.derivation for v in found.verdicts)


def test_real_weights_absorb_no_phase() -> None:
    class Real(Through):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).to(torch.complex128)

    net = Ensemble(Real(torch.tanh), {"W": Normal(0.5), "b": Normal(0.5), "V": Normal(0.5)})
    found = symmetries(net, POINTS)
    assert found["SU(D)"].holds is not True
    assert found["SO(D)"].holds


def test_rescaled_circles_and_differences() -> None:
    """(W x + b) / 3 has the period 1/3; features that depend on differences of shifted sums see no constant."""
    third = through(lambda z: torch.cos(6 * torch.pi * (z / 3)), b=Uniform(0.0, 1.0))
    assert symmetries(third, POINTS, ["translation"])["translation"].holds
    half = through(lambda z: torch.cos(2 * torch.pi * (z / 3)), b=Uniform(0.0, 1.0))
    assert symmetries(half, POINTS, ["translation"])["translation"].holds is not True


def test_linear_networks() -> None:
    """An affine function of the inputs: rotations pass, translations make its law grow."""
    found = symmetries(ensemble(linear(3, 4), linear(4, 2)), POINTS)
    assert found["SO(D)"].holds and found["SO(d)"].holds
    assert found["translation"].holds is not True


def test_normalised_weights() -> None:
    """A squared norm of weights in the graph: rotations leave it alone, and no rescaling is needed."""

    class Normalised(Through):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.W / self.W.square().sum().sqrt()
            return torch.tanh(nn.functional.linear(x, weight, self.b)) @ self.V.mT

    laws = {"W": Normal(0.5), "b": Normal(0.5), "V": Normal(0.5)}
    found = symmetries(Ensemble(Normalised(torch.tanh), laws), POINTS)
    assert found["SO(D)"].holds
    uniform = symmetries(Ensemble(Normalised(torch.tanh), laws | {"W": Uniform(-1.0, 1.0)}), POINTS)
    assert uniform["SO(d)"].holds is not True


def test_functions_that_hold_on_to_the_first_copy_are_refused() -> None:
    """A traced copy would not read the parameters that the ensemble draws, and nothing would follow from it."""

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2, dtype=torch.float64)
            self.steps = [lambda x: self.linear(x)]

        def forward(self, x: Tensor) -> Tensor:
            return self.steps[0](x)

    net = Ensemble(Held(), {"linear.weight": Normal(), "linear.bias": Normal()})
    with pytest.raises(InputError, match="copy of the module"):
        symmetries(net, POINTS)


def test_outputs_in_pieces_are_undecided() -> None:
    class Pieces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Linear(3, 2, dtype=torch.float64) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.a(x), torch.tanh(self.b(x))], -1)

    module = Pieces()
    found = symmetries(Ensemble(module, {n: Normal(0.5) for n, _ in module.named_parameters()}), POINTS)
    assert found["SO(D)"].holds is None and "pieces" in found["SO(D)"].derivation
    assert found["SO(d)"].holds


def test_cumulants_of_both_signs_prove_nothing() -> None:
    """Features that vanish in one network need not in another: their weights count, too."""
    laws: dict[str, Law] = {
        "2.weight": Blocks([(3, Uniform(-1.0, 1.0)), (1, Mixture([Normal(0.1), Normal(1.0)], each="entry"))], axis=1)
    }
    net = ensemble(linear(3, 4), nn.ReLU(), linear(4, 2, bias=False), laws=laws)
    assert symmetries(net, POINTS, ["SO(D)"])["SO(D)"].holds is None


def test_bad_input() -> None:
    net = erf_net(4, 3, 2)
    with pytest.raises(InputError, match="no transformation 'SO\\(7\\)'"):
        symmetries(net, POINTS, ["SO(7)"])
    two = ensemble(linear(3, 4), nn.Flatten(0))
    with pytest.raises(InputError, match="one tensor"):
        symmetries(two, POINTS)
    with pytest.raises(KeyError):
        symmetries(net, POINTS, ["SO(D)"])["SO(d)"]
