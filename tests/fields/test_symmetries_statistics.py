"""The statistical test: it agrees with what the laws say, keeps its level, and has the power that it states."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchgauge import fields
from torchgauge.errors import InputError
from torchgauge.fields import Ensemble, Law, MomentError, Normal, TruncatedNormal, Uniform
from torchgauge.fields.laws import Kind
from torchgauge.fields.symmetry import GALLERY, Symmetries, symmetries
from torchgauge.fields.symmetry.projections import projected
from torchgauge.fields.symmetry.statistics import test_outputs as judge_outputs
from torchgauge.fields.symmetry.statistics import test_symmetry as judge

POINTS = torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
LEVEL = 1e-5  # of each of some 280 tests


@pytest.mark.parametrize("name", GALLERY)
def test_both_ways_agree(name: str, decided: Callable[[str], Symmetries]) -> None:
    """What holds is not rejected; what is broken is, by a few networks or by many."""
    case = GALLERY[name]
    values = case.ensemble.outputs(case.points, 4_500, seed=0)  # once, for all tests of outputs
    for verdict in decided(name).verdicts:
        if verdict.holds is None:
            continue
        change, given = verdict.transformation, {"alpha": LEVEL, "effect": 0.15}
        if change.side == "outputs":
            found = judge_outputs(values, change, **given)
        else:
            found = judge(case.ensemble, change, case.points, count=4_500 if verdict.holds else 3_000, **given)
        if not verdict.holds and not found.rejected:
            found = judge(case.ensemble, change, case.points, count=20_000, **given)
        assert found.rejected is not verdict.holds, f"{verdict}\n{found}"
        assert found.rejected or found.power > 0.9


def test_undecided_cases_can_be_tested() -> None:
    for name, change in (("heavy tails", "SO(D)"), ("self-attention, Laplace values", "SO(d)")):
        case = GALLERY[name]
        assert symmetries(case.ensemble, case.points, [change])[change].holds is None
        assert judge(case.ensemble, change, case.points).rejected


def test_gauss_net_is_translation_invariant_at_infinite_width_alone() -> None:
    """Its two-point function is, at every width; its four-point function is not."""
    net = fields.gauss_net(2, 2, 1, sigma_w=0.35, sigma_b=0.1)
    found = judge(net, "translation", 0.5 * POINTS[:, :2], count=40_000, bounded=False)
    assert found.orders[2] > 1e-3
    assert found.orders[4] < 1e-6


def test_level_and_power() -> None:
    """p-values of an invariant law are uniform, and a shift of the stated size is found as often as stated."""
    generator = torch.Generator().manual_seed(0)
    plain, moved, power = [], [], 0.0
    for _ in range(150):
        draws = torch.randn(400, 1, 3, generator=generator, dtype=torch.float64)
        plain.append(judge_outputs(draws, "SO(D)", orders=(1,), bounded=False).p_value)
        draws[..., 0] += 0.2  # a fifth of the spread of the first feature
        found = judge_outputs(draws, "SO(D)", orders=(1,), bounded=False, effect=0.2, alpha=0.05)
        moved.append(found.p_value < 0.05)
        power = found.power
    p = torch.tensor(plain).sort().values
    uniform = (torch.arange(150) + 0.5) / 150
    assert (p - uniform).abs().max() < 0.14  # Kolmogorov–Smirnov at one per cent
    assert abs(sum(moved) / 150 - power) < 4 * (power * (1 - power) / 150) ** 0.5


@pytest.mark.parametrize("kind", [Kind.SPECIAL_ORTHOGONAL, Kind.SPECIAL_UNITARY, Kind.PERMUTATIONS, Kind.SIGNS])
@pytest.mark.parametrize("d", [2, 3, 5])
def test_projections_average_to_zero_over_the_group(kind: Kind, d: int) -> None:
    """Exactly, for finite groups; over many elements, for the others: then the error falls with their number."""
    generator = torch.Generator().manual_seed(d)
    dtype = torch.complex128 if kind is Kind.SPECIAL_UNITARY else torch.float64
    value = torch.randn(1, 2, d, generator=generator, dtype=dtype)
    if kind is Kind.SIGNS:
        signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * d)
        orbit, bound = value * signs[:, None], 1e-12
    elif kind is Kind.PERMUTATIONS:
        from itertools import permutations

        orbit, bound = torch.cat([value[..., list(p)] for p in permutations(range(d))]), 1e-12
    else:
        q, r = torch.linalg.qr(torch.randn(10_000, d, d, generator=generator, dtype=dtype))
        diagonal = torch.diagonal(r, dim1=-2, dim2=-1)
        q = q * (diagonal / diagonal.abs())[:, None]
        q[..., 0] = q[..., 0] / torch.linalg.det(q)[:, None]
        orbit, bound = torch.einsum("gij,npj->gpi", q, value), 6.0
    for features in projected(orbit, kind).values():
        error = 1.0 if bound < 1 else features.std(0).max() / len(orbit) ** 0.5
        assert features.mean(0).abs().max() < bound * max(error, 1e-300)


def random_ensemble(seed: int) -> Ensemble:
    """One or two hidden layers of random kind, with random laws, some of them tempting."""
    generator = torch.Generator().manual_seed(seed)

    def pick(options: list) -> object:
        return options[int(torch.randint(len(options), (), generator=generator))]

    layers: list[nn.Module] = []
    width = 3
    for _ in range(int(torch.randint(1, 3, (), generator=generator))):
        layers += [nn.Linear(width, 4), pick([nn.Tanh(), nn.ReLU(), nn.Sigmoid(), nn.GELU()])]  # type: ignore[list-item]
        if pick([True, False, False]):
            layers.append(nn.LayerNorm(4, elementwise_affine=False))
        width = 4
    layers.append(nn.Linear(width, 3))
    if pick([True, False, False, False]):
        layers.append(pick([nn.Tanh(), nn.LayerNorm(3, elementwise_affine=False), nn.Softmax(-1)]))  # type: ignore[arg-type]
    module = nn.Sequential(*layers).double()
    mean = torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)
    laws: dict[str, Law] = {}
    for name, parameter in module.named_parameters():
        options: list = [
            Normal(0.7),
            Normal(0.7),
            Uniform(-1.0, 1.0),
            TruncatedNormal(0.7, -0.6, 0.6),
            Normal(0.5, 0.3),
        ]
        if parameter.ndim == 2:
            options += [fields.Sphere(1.2), fields.Sphere(1.2, axis=0), fields.Sphere(1.2, axis=1)]
        if tuple(parameter.shape) == (3,):
            options.append(Normal(0.5, mean))
        laws[name] = pick(options)  # type: ignore[assignment]
    return Ensemble(module, laws)


@pytest.mark.parametrize("seed", range(10))
def test_random_ensembles(seed: int) -> None:
    """No decision about a random architecture with random laws is contradicted by a test."""
    ensemble = random_ensemble(seed)
    for verdict in symmetries(ensemble, POINTS).verdicts:
        found = judge(ensemble, verdict.transformation, POINTS, count=4_000, seed=seed)
        if verdict.holds:
            assert found.p_value > 1e-5, f"{verdict}\n{found}"
        if verdict.holds is False and found.p_value > 0.5:
            assert found.power < 0.99, f"{verdict}\n{found}"


class Lengths(nn.Module):
    """A readout of tanh |x|², which is the same at turned points but for rounding."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.readout = nn.Linear(1, 2, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.tanh(x.square().sum(-1, keepdim=True)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding_errors_break_nothing(dtype: torch.dtype) -> None:
    net = Ensemble(Lengths(dtype), {"readout.weight": Normal(0.5), "readout.bias": Normal(0.5)})
    assert not judge(net, "SO(d)", POINTS, count=4_000).rejected
    same = Ensemble(nn.Linear(3, 2, dtype=dtype), {"weight": fields.Fixed(1.0), "bias": fields.Fixed(0.1)})
    assert not judge(same, "permutations of inputs", POINTS, count=4_000).rejected
    assert not judge(same, "permutations of outputs", POINTS, count=4_000).rejected
    assert judge(same, "signs of inputs", POINTS, count=4_000).rejected


def test_tokens_are_points() -> None:
    """Outputs [points, tokens, D] turn along their last axis."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()
    laws = {name: Normal(0.5) for name, _ in module.named_parameters()}
    tokens = POINTS.reshape(1, 3, 3)
    assert not judge(Ensemble(module, laws), "SO(D)", tokens, count=3_000).rejected
    uneven = laws | {"2.weight": Normal(torch.tensor([[0.3], [0.6]], dtype=torch.float64))}
    assert judge(Ensemble(module, uneven), "SO(D)", tokens, count=3_000).rejected


def test_seeds_and_reports() -> None:
    net = fields.erf_net(3, 3, 3)
    first, again = (judge(net, "SO(d)", POINTS, count=1_000, seed=3) for _ in range(2))
    assert first == again
    assert not first.rejected
    assert "no departure seen" in str(first) and "1,000 networks" in str(first)
    assert first.detectable > 0


def test_complex_outputs_under_real_groups() -> None:
    case = GALLERY["SU(D): parts from independent spheres"]
    values = case.ensemble.outputs(case.points, 4_000, seed=0)
    assert not judge_outputs(values, "SO(D)").rejected
    assert judge_outputs(values, "SU(D)").rejected


def test_values_without_spread() -> None:
    """A constant that is not invariant is rejected for certain; one that is, is not."""
    constant = torch.ones(100, 1, 2, dtype=torch.float64)
    assert judge_outputs(constant, "SO(D)").p_value == 0
    assert judge_outputs(constant, "permutations of outputs").p_value == 1
    assert judge_outputs(torch.zeros(100, 1, 2, dtype=torch.float64), "SO(D)").p_value == 1
    assert judge_outputs(constant[..., :1], "SO(D)").p_value == 1


def test_bad_input() -> None:
    net = fields.erf_net(3, 3, 3)
    values: Tensor = net.outputs(POINTS, 50, seed=0)
    with pytest.raises(InputError, match="networks for"):
        judge_outputs(values, "SO(D)")
    with pytest.raises(InputError, match="complex"):
        judge_outputs(values, "SU(D)")
    with pytest.raises(InputError, match="acts on inputs"):
        judge_outputs(values, "SO(d)")
    with pytest.raises(InputError, match="orders"):
        judge_outputs(values, "SO(D)", orders=(6,))
    heavy = GALLERY["heavy tails"]
    with pytest.raises(MomentError):
        judge(heavy.ensemble, "SO(D)", heavy.points, bounded=False)
