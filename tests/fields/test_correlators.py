"""Correlators: check values, slopes, agreement of the estimators, outputs, refusals."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from torch import nn

from torchgauge import fields
from torchgauge.errors import InputError
from torchgauge.fields.combinatorics import alternating, exact_terms, multisets, pairings, rank, unbiased_terms
from torchgauge.fields.gaussian import Hermite, square_root
from torchgauge.fields.monomials import Plan

STEPS = torch.tensor([-1, -0.6, -0.2, 0.2, 0.6, 1], dtype=torch.float64)
POSITIVE = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0, 1.2], dtype=torch.float64)
NETS = {"gauss": (fields.gauss_net, 0.01 * STEPS), "erf": (fields.erf_net, STEPS), "relu": (fields.relu_net, POSITIVE)}
CORNERS = (0, 1, 4, 5)  # x1, x2, x5, x6


@pytest.mark.parametrize(
    ("name", "rule", "same", "mixed", "six", "digits"),
    [
        ("gauss", "closed", 160.8599809848, 160.7504479977, 2441825.316, 1e-10),
        ("erf", "quadrature", 0.3997964146, 0.5268219186, -0.24848365, 1e-9),
        ("relu", "angles", 0.006, 0.36, 0.00528, 1e-12),
    ],
)
def test_check_values(name: str, rule: str, same: float, mixed: float, six: float, digits: float) -> None:
    """N κ4(x1⁴), N κ4(x1,x2,x5,x6) and N² κ6(x1⁶) of the three nets that were published."""
    make, points = NETS[name]
    width = 100
    kappa4 = fields.correlator(make(width), points, 4)
    kappa6 = fields.correlator(make(width), points, 6, tuples=[[0] * 6])
    assert kappa4.estimator == "exact" and kappa4.rule == rule
    assert float(kappa4.at(0, 0, 0, 0)) * width == pytest.approx(same, rel=digits)
    assert float(kappa4.at(*CORNERS)) * width == pytest.approx(mixed, rel=digits)
    assert float(kappa6.values[0]) * width**2 == pytest.approx(six, rel=max(digits, 4e-8))
    assert float(kappa4.error.max()) < 1e-9 * float(kappa4.values.abs().max())


@pytest.mark.parametrize("name", NETS)
def test_slopes_in_log_width_are_minus_one_and_minus_two(name: str) -> None:
    make, points = NETS[name]
    for n, slope in ((4, -1), (6, -2)):
        small, large = (fields.correlator(make(w), points, n, tuples=[[0] * n]).values[0].abs() for w in (3, 3000))
        assert float(torch.log(large / small) / math.log(1000)) == pytest.approx(slope, abs=1e-12)


def test_kernels_are_the_closed_forms() -> None:
    """Erf by quadrature against arcsin, ReLU by angles against the arc-cosine kernel."""
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for make in (fields.erf_net, fields.gauss_net, fields.cosine_net):
        ensemble = make(7, 2, sigma_w=1.3, sigma_b=0.8)
        assert torch.allclose(fields.correlator(ensemble, x, 2).dense(), fields.kernel(ensemble, x), rtol=1e-9)
    relu = fields.relu_net(7, 2, sigma_w=1.3)
    assert torch.allclose(fields.correlator(relu, x, 2).dense(), fields.kernel(relu, x), rtol=1e-12)
    one = fields.relu_net(7, 1, sigma_w=1.3, sigma_b=0.5)
    assert torch.allclose(fields.correlator(one, STEPS, 2).dense(), fields.kernel(one, STEPS), rtol=1e-12)


def test_fourth_cumulant_by_hand() -> None:
    """κ4 = (σ_w⁴/N)[3⟨h1h2h3h4⟩ − Σ_3⟨hh⟩⟨hh⟩]; the output bias enters K alone."""
    ensemble, width, sigma_w = fields.erf_net(11, sigma_w=1.2, sigma_b=0.9), 11, 1.2
    z = 0.9**2 + 1.2**2 * torch.outer(STEPS, STEPS)
    h, w = Hermite(torch.erf, square_root(z)).nodes()
    two = h.T @ (w[:, None] * h)
    a, b, c, d = CORNERS
    four = (w * h[:, a] * h[:, b] * h[:, c] * h[:, d]).sum()
    hand = sigma_w**4 / width * (3 * four - two[a, b] * two[c, d] - two[a, c] * two[b, d] - two[a, d] * two[b, c])
    assert float(fields.correlator(ensemble, STEPS, 4).at(*CORNERS)) == pytest.approx(float(hand), rel=1e-10)


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("n", [2, 4, 6])
def test_estimators_agree_with_the_exact_values(n: int, connected: bool) -> None:
    ensemble, points = fields.erf_net(20), STEPS[:3]
    exact = fields.correlator(ensemble, points, n, connected=connected)
    for name in ("neurons", "readout", "plain"):
        found = fields.correlator(ensemble, points, n, connected=connected, estimator=name, networks=8192)
        assert found.estimator == name and found.networks >= 8192
        pull = (found.values - exact.values) / found.error
        assert float(pull.abs().max()) < 5, name


def test_eight_points() -> None:
    ensemble, points = fields.cosine_net(12), STEPS[:2]
    exact = fields.correlator(ensemble, points, 8)
    found = fields.correlator(ensemble, points, 8, estimator="neurons", networks=20_000)
    assert exact.rule == "closed" and float(((found.values - exact.values) / found.error).abs().max()) < 5
    full = fields.correlator(ensemble, points, 8, connected=False)
    readout = fields.correlator(ensemble, points, 8, connected=False, estimator="readout", networks=8192)
    assert float(((readout.values - full.values) / readout.error).abs().max()) < 5


def test_full_correlators_are_contractions_of_connected_ones() -> None:
    ensemble = fields.erf_net(9)
    parts = {n: fields.correlator(ensemble, STEPS, n) for n in (2, 4, 6)}
    full = fields.correlator(ensemble, STEPS, 6, connected=False, tuples=[[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2]])

    def connected(slots):
        if len(slots) % 2:
            return None
        return torch.stack([parts[len(slots)].at(*(int(t[s]) for s in slots)) for t in full.tuples])

    assert torch.allclose(fields.contract(connected, 6), full.values, rtol=1e-11)
    wide = fields.correlator(fields.erf_net(10**7), STEPS, 6, connected=False, tuples=full.tuples)
    free = fields.wick(fields.kernel(ensemble, STEPS), full.tuples)
    assert torch.allclose(wide.values, free, rtol=1e-5) and len(pairings(63)) == 15


def test_outputs() -> None:
    """κ4_{ijkl} = (1/N)[δ_ij δ_kl V_(12)(34) + 2 perms]."""
    ensemble, points = fields.erf_net(30, outputs=3), STEPS[:2]
    one = fields.correlator(ensemble, points, 4)
    two = fields.correlator(ensemble, points, 4, outputs=(0, 0, 2, 2))
    crossed = fields.correlator(ensemble, points, 4, outputs=(0, 2, 0, 2))
    vertex = fields.quartic(ensemble, points)
    for t in itertools.product(range(2), repeat=4):
        a, b, c, d = t
        assert float(two.at(*t)) == pytest.approx(float(vertex.vertex[a, b, c, d]) / 30, rel=1e-9)
        assert float(crossed.at(*t)) == pytest.approx(float(vertex.vertex[a, c, b, d]) / 30, rel=1e-9)
        total = vertex.vertex[a, b, c, d] + vertex.vertex[a, c, b, d] + vertex.vertex[a, d, b, c]
        assert float(one.at(*t)) == pytest.approx(float(total) / 30, rel=1e-9)
    assert not fields.correlator(ensemble, points, 4, outputs=(0, 0, 0, 1)).values.any()
    for name in ("neurons", "readout", "plain"):
        found = fields.correlator(ensemble, points, 4, outputs=(0, 0, 2, 2), estimator=name, networks=8192)
        assert float(((found.values - two.values) / found.error).abs().max()) < 5


def test_other_readout_laws() -> None:
    """Uniform, and skew: odd correlators and every cumulant of the output bias."""
    for weight, bias in (
        (fields.Uniform(-1, 1), fields.Uniform(-1, 1)),
        (fields.Mixture([fields.Fixed(-0.5), fields.Fixed(1.0)], [2, 1], each="entry"), fields.Uniform(0, 1)),
    ):
        ensemble = fields.erf_net(6)
        laws = {**ensemble.laws, "readout.weight": weight, "readout.bias": bias}
        ensemble = fields.Ensemble(ensemble.module, laws)
        for n in (1, 2, 3, 4):
            exact = fields.correlator(ensemble, STEPS[:2], n)
            for name in ("neurons", "plain"):
                found = fields.correlator(ensemble, STEPS[:2], n, estimator=name, networks=8192)
                gap = (found.values - exact.values).abs()
                assert bool((gap <= 5 * found.error + 1e-12).all()), (n, name)


def test_the_choice_is_reported() -> None:
    smooth = fields.correlator(fields.tanh_net(8), STEPS, 4)
    assert smooth.estimator == "exact" and "quadrature" in str(smooth)
    corners = torch.eye(3, dtype=torch.float64)
    assert fields.correlator(fields.relu_net(8, 3), corners, 4).rule == "orthants"
    seven, each = torch.eye(7, dtype=torch.float64), [[0, 1, 2, 3, 4, 5, 6, 6]]
    relu = fields.correlator(fields.relu_net(8, 7), seven, 8, tuples=each, networks=64)
    assert relu.estimator == "neurons" and "ReLU in 7 directions" in relu.reason
    deep = fields.correlator(fields.erf_net((8, 8)), STEPS, 4, networks=512)
    assert deep.estimator == "readout" and deep.networks == 512
    module = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 1)).double()
    laws = {name: fields.Normal() for name, _ in module.named_parameters()}
    assert fields.correlator(fields.Ensemble(module, laws), STEPS, 2, networks=512).estimator == "readout"
    laws["3.weight"] = fields.Sphere()
    assert fields.correlator(fields.Ensemble(module, laws), STEPS, 2, networks=512).estimator == "plain"
    spheres = fields.erf_net(8, 2)
    rows = {**spheres.laws, "hidden.0.weight": fields.Sphere(axis=-1)}
    assert (
        fields.correlator(fields.Ensemble(spheres.module, rows), corners[:, :2], 4, networks=64).estimator == "neurons"
    )


def test_sequential_and_net_agree() -> None:
    module = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    net = fields.tanh_net(8)
    names = {"0": "hidden.0", "2": "readout"}
    laws = {n: net.laws[names[n[0]] + n[1:]] for n, _ in module.named_parameters()}
    a, b = (fields.correlator(e, STEPS, 4).values for e in (fields.Ensemble(module, laws), net))
    assert torch.allclose(a, b, rtol=1e-12)


class Doubled(nn.Sequential):
    """A sequence with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_readout_is_read_where_nothing_stands_behind_it() -> None:
    """A subclass that scales its outputs, a hook, and an axis of tokens: only plain averages know what these do."""
    laws = {"0.weight": fields.Normal(0.5), "0.bias": fields.Normal(0.5), "2.weight": fields.Normal(0.5)}
    layers = (nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1, bias=False))
    one = fields.correlator(fields.Ensemble(nn.Sequential(*layers).double(), laws), STEPS[:2], 2)
    two = fields.correlator(fields.Ensemble(Doubled(*layers).double(), laws), STEPS[:2], 2, networks=4096)
    assert one.estimator == "exact" and two.estimator == "plain"
    assert bool(((two.values - 4 * one.values).abs() < 5 * two.error).all())
    hooked = nn.Sequential(*layers).double()
    hooked.register_forward_hook(lambda module, given, out: 3 * out)
    three = fields.correlator(fields.Ensemble(hooked, laws), STEPS[:2], 2, networks=4096)
    assert bool(((three.values - 9 * one.values).abs() < 5 * three.error).all())
    tokens = STEPS.reshape(2, 3, 1)
    spread = fields.correlator(
        fields.Ensemble(nn.Sequential(*layers).double(), laws),
        tokens,
        2,
        outputs=(0, 2),
        tuples=[[0, 1]],
        networks=4096,
    )
    pair = fields.correlator(fields.Ensemble(nn.Sequential(*layers).double(), laws), STEPS[[0, 5]], 2).at(0, 1)
    assert spread.estimator == "plain" and float((spread.values[0] - pair).abs()) < 5 * float(spread.error[0])


def test_neurons_pool_where_networks_are_narrow() -> None:
    """A network of two neurons has no four-neuron products; its neighbours have."""
    ensemble = fields.erf_net(2)
    exact = fields.correlator(ensemble, STEPS[:2], 6)
    found = fields.correlator(ensemble, STEPS[:2], 6, estimator="neurons", networks=40_000)
    assert float(((found.values - exact.values) / found.error).abs().max()) < 5


def test_unbiased_terms_are_unbiased() -> None:
    """Averaged over every possible sample of four draws, the estimate is the cumulant."""
    states = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]], dtype=torch.float64)
    tuples = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]])
    plan = Plan(2, tuples, exact_terms(4, lambda mask: 1.0, alternating))
    exact = plan.combine(plan.moments(states))
    plan = Plan(2, tuples, unbiased_terms(4, lambda mask: 1.0, alternating, 4))
    every = torch.stack([states[list(draw)] for draw in itertools.product(range(3), repeat=4)])
    assert torch.allclose(plan.combine(plan.moments(every)).mean(0), exact)


def test_monomials_are_products() -> None:
    draws = torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for degree in (1, 3, 4, 6):
        sets = multisets(5, degree)
        assert torch.equal(rank(sets, 5), torch.arange(len(sets)))
        terms = [(1.0, ((1 << degree) - 1,))]
        full, few = Plan(5, sets, terms), Plan(5, sets[-3:], terms)
        direct = draws[:, sets].prod(2).mean(0)
        assert torch.allclose(full.combine(full.moments(draws)), direct)
        assert torch.allclose(few.combine(few.moments(draws)), direct[-3:]) and (degree < 4 or few.direct)


def test_precision_is_judged() -> None:
    ensemble, points = fields.erf_net(50), STEPS[:2]
    with pytest.warns(fields.PrecisionWarning, match="networks would do"):
        fields.correlator(ensemble, points, 4, estimator="plain", networks=1024, precision=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fields.correlator(
            ensemble, points, 4, estimator="neurons", networks=10**7, precision=0.05, tuples=[[0, 0, 1, 1]]
        )
    assert found.networks < 10**6 and float(found.error[0] / found.values[0].abs()) <= 0.05


def test_tails_that_samples_miss_are_named() -> None:
    """Gauss nets have all moments, but log-normal ones: 400 000 neurons see a fifth of κ6, with a small error bar."""
    ensemble = fields.gauss_net(50)
    with pytest.warns(fields.PrecisionWarning, match="heavy tail"):
        found = fields.correlator(ensemble, 0.01 * STEPS, 6, tuples=[[0] * 6], estimator="neurons", networks=8000)
    exact = fields.correlator(ensemble, 0.01 * STEPS, 6, tuples=[[0] * 6])
    assert float(found.values[0] + 3 * found.error[0]) < float(exact.values[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fields.correlator(fields.erf_net(50), STEPS, 6, tuples=[[0] * 6], estimator="neurons", networks=8000)


def test_refusals() -> None:
    ensemble = fields.erf_net(5)
    for bad in (
        lambda: fields.correlator(ensemble, STEPS, 9),
        lambda: fields.correlator(ensemble, STEPS, 4, outputs=(0, 0)),
        lambda: fields.correlator(ensemble, STEPS, 4, outputs=1),
        lambda: fields.correlator(ensemble, STEPS, 4, tuples=[[0, 0, 0, 6]]),
        lambda: fields.correlator(ensemble, STEPS, 4, estimator="best"),  # type: ignore[arg-type]
        lambda: fields.correlator(ensemble, STEPS, 4).at(0, 0),
        lambda: fields.correlator(ensemble, STEPS, 4, tuples=[[0, 0, 0, 0]]).dense(),
    ):
        with pytest.raises(InputError):
            bad()
    with pytest.raises(fields.EstimatorError, match="one hidden layer"):
        fields.correlator(fields.erf_net((5, 5)), STEPS, 4, estimator="neurons")
    with pytest.raises(fields.EstimatorError, match="7 directions"):
        fields.correlator(fields.relu_net(5, 7), torch.eye(7), 8, tuples=[[0, 1, 2, 3, 4, 5, 6, 6]], estimator="exact")
    with pytest.raises(fields.EstimatorError, match="five dimensions|5 dimensions"):
        fields.correlator(fields.tanh_net(5, 5), torch.eye(5), 6, tuples=[[0, 1, 2, 3, 4, 4]], estimator="exact")
    complex_net = fields.Ensemble(
        nn.Linear(1, 1, dtype=torch.complex128), {"weight": fields.Normal(), "bias": fields.Normal()}
    )
    assert fields.correlator(
        complex_net, STEPS[:2].to(torch.complex128), 2, connected=False, networks=512
    ).values.is_complex()
