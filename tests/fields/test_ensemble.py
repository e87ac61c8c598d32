"""Ensembles: reproducible blocks, stacked evaluation, ready nets, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.func import functional_call, vmap

import torchgauge as tg
from torchgauge import fields
from torchgauge.errors import InputError

POINTS = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
READY = [fields.erf_net, fields.relu_net, fields.gauss_net, fields.cosine_net, fields.tanh_net]


def test_the_package_is_an_attribute() -> None:
    assert tg.fields is fields


@pytest.mark.parametrize("make", READY)
@pytest.mark.parametrize("width", [30, (12, 7)])
def test_stacked_evaluation_is_the_module(make, width) -> None:
    ensemble = make(width, 2, 3)
    params = ensemble.sample(20, seed=1)
    one = vmap(lambda p: functional_call(ensemble.module, p, (POINTS,)))(params)
    out = ensemble.evaluate(params, POINTS)
    assert out.shape == (20, 4, 3) and torch.allclose(out, one, rtol=1e-13, atol=1e-13)


def test_networks_do_not_depend_on_batches() -> None:
    ensemble = fields.erf_net(700, 2)
    assert ensemble.block < 400
    whole = ensemble.outputs(POINTS, 400, seed=3)
    pieces = torch.cat(
        [ensemble.outputs(POINTS, 13, seed=3, batch=5), ensemble.outputs(POINTS, 387, seed=3, start=13, batch=100)]
    )
    assert torch.allclose(whole, pieces, rtol=1e-14, atol=1e-14)
    same = ensemble.sample(3, seed=3, start=200)
    assert torch.equal(same["hidden.0.weight"], ensemble.sample(400, seed=3)["hidden.0.weight"][200:203])
    assert not torch.equal(ensemble.sample(3, seed=4)["readout.bias"], ensemble.sample(3, seed=3)["readout.bias"])
    only = ensemble.sample(5, seed=3, only=("readout.weight",))
    assert set(only) == {"readout.weight"}
    assert torch.equal(only["readout.weight"], ensemble.sample(5, seed=3)["readout.weight"])


class Scaled(nn.Module):
    """A module with a buffer, a tied weight and a complex parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        self.second = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        self.second.weight = self.first.weight
        self.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex128))
        self.register_buffer("scale", torch.tensor(3.0, dtype=torch.float64))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))) * self.scale * self.phase


def test_any_module() -> None:
    ensemble = fields.Ensemble(Scaled(), {"first.weight": fields.Haar("O"), "phase": fields.Sphere()})
    out = ensemble.outputs(POINTS, 10, seed=0)
    assert out.shape == (10, 4, 2) and out.is_complex()
    params = ensemble.sample(10, seed=0)
    w, phase = params["first.weight"][4], params["phase"][4]
    assert torch.allclose(out[4], 3 * torch.tanh(POINTS @ w.T) @ w.T * phase)


def test_parameters_drawn_together() -> None:
    ensemble = fields.Ensemble(nn.Linear(3, 4, dtype=torch.float64), {("weight", "bias"): fields.Sphere(2.0, axis=-1)})
    params = ensemble.sample(50, seed=0)
    assert params["weight"].shape == (50, 4, 3) and params["bias"].shape == (50, 4)
    radius = params["weight"].square().sum(2) + params["bias"].square()
    assert torch.allclose(radius, torch.full((50, 4), 4.0, dtype=torch.float64))
    assert torch.equal(ensemble.sample(50, seed=0, only=("bias",))["bias"], params["bias"])


def test_gauss_net_is_normalised_for_every_input_dimension() -> None:
    """⟨h h⟩ = 1 at every point, and the kernel is σ_b² + σ_w² exp(−σ_w²|x−x'|²/2d)."""
    for d, sigma_w, sigma_b in ((1, 1.0, 1.0), (3, 0.7, 1.3), (5, 1.2, 0.0)):
        ensemble = fields.gauss_net(10, d, sigma_w=sigma_w, sigma_b=sigma_b)
        x = torch.randn(4, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = sigma_b**2 + sigma_w**2 * torch.exp(-(sigma_w**2) * torch.cdist(x, x) ** 2 / (2 * d))
        assert torch.allclose(fields.kernel(ensemble, x), expected)
        assert torch.allclose(fields.correlator(ensemble, x, 2).dense(), expected)


def test_refusals() -> None:
    linear = nn.Linear(2, 1)
    with pytest.raises(fields.LawError, match="without a law: bias"):
        fields.Ensemble(linear, {"weight": fields.Normal()})
    with pytest.raises(fields.LawError, match="without a parameter: gain"):
        fields.Ensemble(linear, {"weight": fields.Normal(), "bias": fields.Normal(), "gain": fields.Normal()})
    with pytest.raises(fields.LawError, match="two laws"):
        fields.Ensemble(linear, {"weight": fields.Normal(), ("weight", "bias"): fields.Normal()})
    two = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    rest = dict.fromkeys(("0.bias", "1.bias"), fields.Normal())
    with pytest.raises(fields.LawError, match="drawn together"):
        fields.Ensemble(two, {("0.weight", "1.weight"): fields.Normal(), **rest})
    with pytest.raises(InputError, match="count"):
        fields.erf_net(3).sample(0, seed=0)
    with pytest.raises(InputError, match="finite"):
        fields.erf_net(3).outputs(torch.tensor([float("nan")]), 2, seed=0)
    for bad in (
        lambda: fields.erf_net(0),
        lambda: fields.erf_net(3, sigma_w=0.0),
        lambda: fields.erf_net(3, sigma_b=-1),
    ):
        with pytest.raises(InputError):
            bad()


def test_heavy_tails_are_refused() -> None:
    ensemble = fields.Ensemble(
        nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)),
        {
            "0.weight": td.StudentT(3.0),
            "0.bias": fields.Normal(),
            "2.weight": fields.Normal(),
            "2.bias": fields.Normal(),
        },
    )
    with pytest.raises(fields.MomentError, match="would not converge") as caught:
        fields.correlator(ensemble, POINTS, 4, estimator="plain")
    assert "0.weight" in caught.value.where and "growth" in caught.value.remedy
    with pytest.warns(fields.PrecisionWarning, match="error bars mean little"):
        fields.correlator(ensemble, POINTS, 2, connected=False, estimator="plain", networks=512)
    bounded = fields.Ensemble(
        nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), ensemble.laws, growth={"0.weight": 0}
    )
    assert fields.correlator(bounded, POINTS, 4, networks=512).estimator == "neurons"


def test_outputs_that_overflow_are_named() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    laws = {name: fields.Normal(1e200) for name, _ in module.named_parameters()}
    laws["1.weight"] = fields.Sphere(1e200)
    with pytest.raises(fields.MomentError, match="not finite"):
        fields.correlator(fields.Ensemble(module, laws), POINTS, 4, networks=512)


def normal(module: nn.Module, **laws) -> fields.Ensemble:
    module = module.double()
    return fields.Ensemble(module, {name: fields.Normal(0.5) for name, _ in module.named_parameters()} | laws)


def test_modules_that_are_no_function_of_their_parameters_are_refused() -> None:
    dropout = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    norm = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    for module, word in ((dropout, "random"), (norm, "buffers")):
        with pytest.raises(InputError, match=word) as caught:
            fields.correlator(normal(module), POINTS, 2, networks=256)
        assert "eval()" in caught.value.remedy
        assert normal(module.eval()).outputs(POINTS, 3, seed=0).shape == (3, 4, 1)


class Recurrent(nn.Module):
    """An operator that torch.func.vmap does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.readout = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.readout(self.cell(x)[0][:, -1])


def test_operators_without_a_batching_rule_run_one_by_one() -> None:
    ensemble, x = normal(Recurrent()), torch.randn(3, 4, 2, dtype=torch.float64)
    params = ensemble.sample(5, seed=0)
    out = ensemble.evaluate(params, x)
    assert torch.equal(out[2], functional_call(ensemble.module, {k: p[2] for k, p in params.items()}, (x,)))
    with pytest.raises(InputError, match="random"):
        normal(nn.Sequential(nn.Linear(2, 2), nn.RReLU())).outputs(POINTS, 3, seed=0)
    with pytest.raises(InputError, match="returns list"):
        normal(nn.GRU(2, 3, batch_first=True)).outputs(x, 3, seed=0)


def test_tokens_and_images() -> None:
    """Whole numbers for embeddings; outputs with axes of their own are counted through."""
    words = nn.Sequential(nn.Embedding(7, 2), nn.Flatten(), nn.Linear(4, 1))
    assert normal(words).outputs(torch.tensor([[1, 2], [3, 4]]), 5, seed=0).shape == (5, 2, 1)
    conv = normal(nn.Conv2d(1, 2, 3, padding=1))
    images = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    out = conv.outputs(images, 512, seed=0)
    assert out.shape == (512, 2, 2, 3, 3)
    two = fields.correlator(conv, images, 2, outputs=(4, 17), connected=False, networks=512, tuples=[[0, 1]])
    assert torch.allclose(two.values[0], (out[:, 0, 0, 1, 1] * out[:, 1, 1, 2, 2]).mean())
    with pytest.raises(InputError, match="18 outputs"):
        fields.correlator(conv, images, 2, outputs=(4, 18), networks=512)


def test_points_that_do_not_fit_are_named() -> None:
    for bad in (
        lambda: fields.correlator(fields.erf_net(5, 2), POINTS[:, :1], 2),
        lambda: fields.kernel(fields.erf_net((5, 5), 2), POINTS[:, :1]),
        lambda: fields.erf_net((5, 5), 2).outputs(POINTS[:, :1], 2, seed=0),
        lambda: fields.correlator(fields.erf_net(5, 2), torch.zeros(0, 2), 2),
        lambda: fields.correlator(normal(nn.Linear(2, 1, dtype=torch.float64)), torch.randn(60, 2), 8),
    ):
        with pytest.raises(InputError):
            bad()
    one = nn.Linear(2, 1, dtype=torch.complex128)
    laws = {"weight": fields.Normal(), "bias": fields.Normal()}
    with pytest.raises(InputError, match="complex"):
        fields.Ensemble(one, laws).outputs(POINTS, 2, seed=0)
    with pytest.raises(fields.LawError, match="no parameters"):
        fields.Ensemble(nn.ReLU(), {})
