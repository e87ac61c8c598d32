"""The part of the gauge group that a prior keeps: named right, and the density says so."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from torchgauge.fields import (
    Blocks,
    Density,
    Ensemble,
    Fixed,
    Haar,
    Law,
    LawError,
    Mixture,
    Normal,
    Sphere,
    TruncatedNormal,
    Uniform,
    effective_symmetry,
    log_prior,
    prior_change,
    relu_net,
    tanh_net,
)
from torchgauge.fields.symmetry import GALLERY
from torchgauge.fields.symmetry.density import log_density

POINTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def linear(law: Law, *, rms: bool = False) -> Ensemble:
    middle: list[nn.Module] = [nn.RMSNorm(4, elementwise_affine=False)] if rms else []
    module = nn.Sequential(nn.Linear(3, 4), *middle, nn.Linear(4, 2)).double()
    return Ensemble(module, {name: law for name, _ in module.named_parameters()})


def kept(ensemble: Ensemble, points: Tensor = POINTS) -> dict[str, str]:
    return {s.factor.kind: s.kept for s in effective_symmetry(ensemble, points).factors}


def test_linear_layers() -> None:
    found = kept(linear(Normal(0.5)))
    assert found.pop("GL") == "O"
    assert set(found.values()) == {"trivial"}  # shifts and the like
    assert kept(linear(Uniform(-1.0, 1.0)))["GL"] == "signed permutations"
    assert kept(linear(Uniform(0.0, 1.0)))["GL"] == "permutations"
    assert kept(linear(Normal(0.5, 0.2)))["GL"] == "permutations"
    assert kept(linear(Normal(0.5), rms=True))["O"] == "O"


def test_rows_of_different_widths_keep_signs() -> None:
    ensemble = linear(Normal(0.5))
    widths = torch.tensor([[0.1], [0.2], [0.3], [0.4]], dtype=torch.float64)
    laws = ensemble.laws | {"0.weight": Normal(widths)}
    assert kept(Ensemble(ensemble.module, laws))["GL"] == "signs"
    shifted = laws | {"1.weight": Normal(0.5, 0.5)}
    assert kept(Ensemble(ensemble.module, shifted))["GL"] == "trivial"


def test_hidden_units() -> None:
    assert kept(relu_net(4, 3, 2)) == {"permutation": "permutations", "scale": "trivial"}
    tanh = effective_symmetry(tanh_net((4, 5), 3, 2), POINTS)
    assert tanh.order == math.factorial(4) * math.factorial(5) * 2**9
    assert tanh.dimension == 0
    one = GALLERY["readout with a mean"]
    assert kept(one.ensemble, one.points) == {"permutation": "permutations", "sign": "trivial"}


def test_attention() -> None:
    case = GALLERY["self-attention"]
    symmetry = effective_symmetry(case.ensemble, case.points)
    assert symmetry.dimension == 12 < symmetry.group.dimension  # O(4) twice, of GL(4) twice
    assert "GL(4) on {q.weight, k.weight} → O" in str(symmetry)


CASES = {
    "normal linear": (linear(Normal(0.5)), POINTS),
    "uniform linear": (linear(Uniform(-1.0, 1.0)), POINTS),
    "mean": (linear(Normal(0.5, 0.2)), POINTS),
    "rms norm": (linear(Normal(0.5), rms=True), POINTS),
    "ReLU": (relu_net(4, 3, 2, sigma_b=0.5), POINTS),
    "tanh, deep": (tanh_net((4, 5), 3, 2), POINTS),
    "attention": (GALLERY["self-attention"].ensemble, GALLERY["self-attention"].points),
    "drawn together": (GALLERY["weights and biases on one sphere"].ensemble, POINTS),
}
LARGER = ("normal linear", "uniform linear", "mean", "ReLU", "attention")
"""Gauge groups that are larger than what the prior keeps."""


@pytest.mark.parametrize("name", CASES)
def test_density(name: str) -> None:
    """Random elements of the kept part leave the density alone; random elements of the group do not."""
    ensemble, points = CASES[name]
    symmetry = effective_symmetry(ensemble, points)
    generator = torch.Generator().manual_seed(0)
    for seed in range(3):
        params = {k: v[0] for k, v in ensemble.sample(1, seed=seed).items()}
        assert abs(prior_change(symmetry, symmetry.random(generator), params)) < 1e-10
        if name in LARGER:
            assert abs(prior_change(symmetry, symmetry.group.random(generator), params)) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_kept_elements_do_not_change_the_network(name: str) -> None:
    ensemble, points = CASES[name]
    symmetry = effective_symmetry(ensemble, points)
    stacked = ensemble.sample(1, seed=0)
    params = {k: v[0] for k, v in stacked.items()}
    moved = symmetry.group.act(symmetry.random(torch.Generator().manual_seed(1)), params)
    before = ensemble.evaluate(stacked, points)
    after = ensemble.evaluate({k: v[None] for k, v in moved.items()}, points)
    assert (after - before).abs().max() < 1e-12 * before.abs().max()
    assert any(bool((moved[k] != params[k]).any()) for k in params)


def test_near_misses_of_the_kept_part() -> None:
    """For uniform weights rotations are lost, though they are orthogonal."""
    symmetry = effective_symmetry(linear(Uniform(-1.0, 1.0)), POINTS)
    rotation = effective_symmetry(linear(Normal(0.5)), POINTS).random(torch.Generator().manual_seed(2))
    params = {k: v[0] for k, v in symmetry.ensemble.sample(1, seed=0).items()}
    other = effective_symmetry(linear(Normal(0.5)), POINTS)
    moved = other.group.act(other.random(torch.Generator().manual_seed(2)), params)
    inside = log_prior(symmetry.ensemble, {k: v[None] for k, v in moved.items()})
    assert rotation is not None and float(inside) == -math.inf  # leaves the cube


DENSITIES: list[Law] = [
    Normal(0.5, 0.2),
    Uniform(-1.0, 1.0),
    TruncatedNormal(1.0, -1.0, 2.0),
    Blocks([(2, Normal(0.5)), (1, Normal(1.0, 0.3))]),
    Mixture([Normal(0.3), Normal(1.0)], weights=[0.2, 0.8]),
]


@pytest.mark.parametrize("law", DENSITIES, ids=str)
def test_log_density(law: Law) -> None:
    """Differences of log density are those of a histogram-free check: importance weights average to one."""
    shape = (3, 2)
    base = Normal(1.2)
    draws = base.sample(200_000, shape, torch.Generator().manual_seed(0))
    ratio = torch.exp(log_density(law, draws) - log_density(base, draws))
    weighted = ((ratio[:, None] * draws.flatten(1)).mean(0) / ratio.mean()).reshape(shape)
    own = law.sample(200_000, shape, torch.Generator().manual_seed(1)).mean(0)
    assert (weighted - own).abs().max() < 0.03


def test_log_density_on_a_sphere_and_of_fixed_numbers() -> None:
    on = Sphere(2.0, axis=0).sample(5, (3, 2), torch.Generator().manual_seed(0))
    assert bool((log_density(Sphere(2.0, axis=0), on) == 0).all())
    assert bool((log_density(Sphere(2.0, axis=0), 1.1 * on) == -math.inf).all())
    assert float(log_density(Fixed(0.5), torch.full((1, 2), 0.5))) == 0
    assert float(log_density(Fixed(0.5), torch.full((1, 2), 0.6))) == -math.inf
    laplace = linear(Normal(1.0)).laws | {"0.bias": td.Laplace(0.0, 1.0)}
    module = linear(Normal(1.0)).module
    zeros = {k: torch.zeros(1, *s) for k, s in Ensemble(module, laplace).shapes.items()}
    assert torch.isfinite(log_prior(Ensemble(module, laplace), zeros)).all()
    energetic = Density(Normal(1.0), lambda s: 0.5 * s)
    value = torch.ones(1, 2, 2, dtype=torch.float64)
    assert float(log_density(energetic, value)) == pytest.approx(-0.5 * 4 - 0.5 * 4)
    with pytest.raises(LawError, match="no density"):
        log_density(Haar("O"), value)
