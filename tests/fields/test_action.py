"""Effective actions: exact targets, published exponents, predictions, identifiability; vertices of deep nets."""

from __future__ import annotations

import math

import pytest
import torch

from torchgauge import fields
from torchgauge.errors import InputError
from torchgauge.fields.combinatorics import multisets
from torchgauge.fields.gaussian import Hermite, square_root

POSITIVE = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0, 1.2], dtype=torch.float64)
STEPS = torch.tensor([-1, -0.6, -0.2, 0.2, 0.6, 1], dtype=torch.float64)


@pytest.mark.parametrize("cutoff", [7.0, 100.0, 1e5])
def test_relu_coupling_is_exact(cutoff: float) -> None:
    """λ0 = 12.5/(N Λ⁵), N = 20, with no misfit at all."""
    ensemble = fields.relu_net(20)
    fitted = fields.fit_action(fields.correlator(ensemble, POSITIVE, 4), ensemble, cutoff=cutoff)
    assert fitted.coupling("T0") == pytest.approx(12.5 / (20 * cutoff**5), rel=1e-12)
    assert fitted.misfit < 1e-12 and fitted.condition == pytest.approx(1) and fitted.identifiable


def test_relu_coupling_runs_with_the_published_exponents() -> None:
    """log λ0 against log Λ has the slopes −5, −6, −7 for one, two, three inputs (published sets of inputs)."""
    square = torch.cartesian_prod(*[torch.tensor([0.5, 1.0], dtype=torch.float64)] * 2)
    cube = torch.tensor([[0.2, 0.2, 0.2], [1, 1, 0.2], [0.2, 1, 1], [1, 0.2, 1]], dtype=torch.float64)
    for points, cutoffs in ((POSITIVE[:, None], [7, 50, 1000, 1e5]), (square, [7, 50, 1000]), (cube, [7, 20])):
        d = points.shape[1]
        ensemble = fields.relu_net(20, d)
        kappa4 = fields.correlator(ensemble, points, 4, networks=2000)
        run = fields.flow(ensemble, points, cutoffs, kappa4)
        assert run.slope == pytest.approx(-(d + 4), abs=1e-6)
        assert torch.allclose(run.slopes, torch.full_like(run.slopes, -(d + 4.0)), atol=1e-6)
        middle = (run.couplings[1:] * run.couplings[:-1]).sqrt()
        assert torch.allclose(run.beta, -(d + 4) * middle, rtol=1e-5)


def test_published_windows_predict_held_out_tuples() -> None:
    """Fitted on the published windows, one coupling predicts κ4 on the inputs divided by √2; two do better."""
    for make, width, window, cutoff in (
        (fields.gauss_net, 1000, 0.01 * POSITIVE, math.inf),
        (fields.erf_net, 5, 0.01 * POSITIVE, 100.0),
    ):
        ensemble = make(width)
        data, held_out = (fields.correlator(ensemble, x, 4) for x in (window, window / math.sqrt(2)))
        one = fields.fit_action(data, ensemble, cutoff=cutoff)
        assert one.identifiable and one.condition == pytest.approx(1)
        assert float(one.relative_errors(held_out).max()) < 5e-4
        with pytest.warns(fields.IdentifiabilityWarning, match="not identifiable"):
            two = fields.fit_action(data, ensemble, ("T0", "T2"), cutoff=cutoff)
        assert float(two.relative_errors(held_out).mean()) < 0.1 * float(one.relative_errors(held_out).mean())


def test_three_couplings_are_not_identifiable_on_the_published_window() -> None:
    """λ0 changes its sign and its size with the terms that are added: only combinations are known."""
    ensemble = fields.gauss_net(1000)
    data = fields.correlator(ensemble, 0.01 * POSITIVE, 4)
    with pytest.warns(fields.IdentifiabilityWarning) as caught:
        three = fields.fit_action(data, ensemble, ("T0", "T2", "TNL"))
    assert three.condition > 1e5 and not three.identifiable and "condition number" in str(caught[0].message)
    assert "NOT identifiable" in str(three)
    with pytest.raises(fields.IdentifiabilityError, match="not identifiable"):
        fields.fit_action(data, ensemble, ("T0", "T2", "TNL"), strict=True)
    relu = fields.relu_net(20)
    with pytest.raises(fields.IdentifiabilityError, match="proportional"):
        fields.fit_action(fields.correlator(relu, POSITIVE, 4), relu, ("T0", "T2", "TNL"), cutoff=100.0)
    some = fields.correlator(ensemble, POSITIVE, 4, tuples=[[0, 0, 0, 0], [0, 0, 1, 1]])
    with pytest.raises(fields.IdentifiabilityError, match="2 tuples for 3"):
        fields.fit_action(some, ensemble, ("T0", "T2", "TNL"))


def test_a_wide_window_misfits_and_says_so() -> None:
    ensemble = fields.gauss_net(1000)
    with pytest.warns(fields.MisfitWarning, match="miss κ4"):
        fields.fit_action(fields.correlator(ensemble, POSITIVE, 4), ensemble)


def test_planted_couplings_come_back_within_their_intervals() -> None:
    """Synthetic κ4 with noise: intervals hold the truth about as often as they say."""
    ensemble = fields.gauss_net(10**6)
    terms = fields.integrals(ensemble, math.inf)
    x = torch.tensor([-1.5, -0.4, 0.9, 2.0], dtype=torch.float64)[:, None]
    tuples = multisets(4, 4)
    truth = torch.tensor([3e-3, 1e-3, 2e-3], dtype=torch.float64)
    clean = terms.design(x, tuples, ("T0", "T2", "TNL")) @ truth
    hits, generator = 0, torch.Generator().manual_seed(0)
    for _ in range(60):
        error = 0.01 * clean.abs()
        noisy = clean + error * torch.randn(len(clean), generator=generator, dtype=torch.float64)
        data = fields.Correlator(tuples, noisy, error, x, (0,) * 4, True, "plain", "sampled", "")
        fitted = fields.fit_action(data, terms, ("T0", "T2", "TNL"))
        inside = (fitted.interval[:, 0] <= truth) & (truth <= fitted.interval[:, 1])
        hits += int(inside.sum())
    assert hits >= 0.93 * 180


def test_closed_terms_are_the_integrals() -> None:
    for d in (1, 2):
        ensemble = fields.gauss_net(10, d, sigma_w=1.2)
        x = torch.randn(3, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
        names = ("T0", "T2", "TNL")
        closed, panels = (fields.integrals(ensemble, c).design(x, multisets(3, 4), names) for c in (math.inf, 25.0))
        assert torch.allclose(closed, panels, rtol=1e-8)


def test_refusals() -> None:
    ensemble = fields.relu_net(20)
    data = fields.correlator(ensemble, POSITIVE, 4)
    for bad in (
        lambda: fields.fit_action(data, ensemble),  # no cutoff, and the integrals diverge
        lambda: fields.fit_action(data, ensemble, cutoff=-1.0),
        lambda: fields.fit_action(data, ensemble, ("T4",), cutoff=10.0),  # type: ignore[arg-type]
        lambda: fields.fit_action(fields.correlator(ensemble, POSITIVE, 2), ensemble, cutoff=10.0),
        lambda: fields.fit_action(fields.correlator(ensemble, STEPS, 4, connected=False), ensemble, cutoff=10.0),
        lambda: fields.fit_action(
            fields.correlator(ensemble, STEPS, 4, tuples=[[0, 0, 0, 0]] * 2), ensemble, cutoff=0.0
        ),
        lambda: fields.flow(ensemble, POSITIVE, [10.0]),
        # 1 + x x' = 0 for x = −1, x' = 1: κ4 vanishes there, but for rounding
        lambda: fields.fit_action(fields.correlator(fields.erf_net(20), STEPS, 4), fields.erf_net(20), cutoff=5.0),
    ):
        with pytest.raises(InputError):
            bad()


# -- deep nets ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [fields.erf_net, fields.gauss_net, fields.cosine_net, fields.tanh_net])
def test_the_vertex_of_one_layer_is_exact(make) -> None:
    ensemble = make(50, 2, sigma_w=1.2, sigma_b=0.5)
    x = torch.tensor([[0.3, -0.5], [1.0, 0.2], [-0.7, 0.9]], dtype=torch.float64)
    exact = fields.correlator(ensemble, x, 4, estimator="exact").values
    assert torch.allclose(fields.quartic(ensemble, x).connected(), exact, rtol=1e-7)


def test_the_vertex_recursion_is_the_one_with_inverse_kernels() -> None:
    """(C_w²/4)(n'/n) Σ V^{(ab)(cd)} ⟨φφ(zz − K)⟩⟨φφ(zz − K)⟩ with indices raised by K^{-1} (Price's theorem)."""
    x = torch.tensor([0.3, 1.0], dtype=torch.float64)
    first, deep = fields.erf_net(30, sigma_b=0.7), fields.erf_net((30, 20), sigma_b=0.7)
    v, k = fields.quartic(first, x).vertex, fields.kernel(first, x)
    h, w = Hermite(torch.erf, square_root(k)).nodes()
    t, _ = Hermite(lambda z: z, square_root(k)).nodes()
    four = torch.einsum("m,ma,mb,mc,md->abcd", w, h, h, h, h)
    two = torch.einsum("m,ma,mb->ab", w, h, h)
    away = t[:, :, None] * t[:, None, :] - k
    response = torch.einsum("m,ma,mb,mcd->abcd", w, h, h, away)
    inverse = fields.inverse_kernel(k)
    raised = torch.einsum("abcd,ae,bf,cg,dh->efgh", v, *[inverse] * 4)
    moved = torch.einsum("abef,efgh,cdgh->abcd", response, raised, response)
    hand = four - two[:, :, None, None] * two[None, None] + 20 / 30 * moved / 4
    assert torch.allclose(fields.quartic(deep, x).vertex, hand, rtol=1e-7, atol=1e-10)


def test_deep_nets_follow_the_recursion() -> None:
    """Sampled κ4 and kernel of two hidden layers, against first order in 1/width."""
    ensemble, x = fields.erf_net((60, 60), 2), torch.tensor([[0.3, -0.5], [1.0, 0.2]], dtype=torch.float64)
    found = fields.correlator(ensemble, x, 4, networks=8_000)
    predicted = fields.quartic(ensemble, x).connected()
    assert bool(((found.values - predicted).abs() < 5 * found.error + 0.02 * predicted.abs()).all())
    two = fields.correlator(ensemble, x, 2, networks=4_000)
    assert torch.allclose(two.dense(), fields.kernel(ensemble, x), rtol=0.02)


def test_singular_kernels_are_named() -> None:
    repeated = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)
    with pytest.raises(fields.SingularKernelError, match="condition number"):
        fields.inverse_kernel(fields.kernel(fields.erf_net(5), repeated))
    with pytest.raises(fields.SingularKernelError, match="angle is undefined"):
        fields.kernel(fields.relu_net(5), torch.tensor([0.0, 1.0]))
    with pytest.raises(fields.SingularKernelError, match="variance zero"):
        fields.kernel(fields.tanh_net((5, 5), sigma_b=0.0), torch.tensor([0.0, 1.0]))
    odd = fields.erf_net(5)
    flat = fields.Ensemble(odd.module, {**odd.laws, "readout.weight": fields.Uniform(-1, 1)})
    with pytest.raises(fields.EstimatorError, match="normal"):
        fields.quartic(flat, repeated)
