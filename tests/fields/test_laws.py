"""Distributions over parameters: draws, moments, and the invariances that they declare."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from torchgauge import fields
from torchgauge.fields import Kind

C128 = torch.complex128
SHAPE = (3, 4)
LAWS: list[tuple[fields.Law, torch.dtype]] = [
    (fields.Normal(0.7), torch.float64),
    (fields.Normal(0.7), C128),
    (fields.Normal(0.5, torch.tensor([[1.0], [0.0], [0.0]])), torch.float64),
    (fields.Normal(torch.tensor([1.0, 1.0, 2.0, 2.0])), torch.float64),
    (fields.Uniform(-1, 1), torch.float64),
    (fields.TruncatedNormal(1.0, -1.5, 1.5), torch.float64),
    (fields.Sphere(2.0), torch.float64),
    (fields.Sphere(2.0, axis=-1), torch.float64),
    (fields.Sphere(2.0, axis=0), C128),
    (fields.Haar("O"), torch.float64),
    (fields.Haar("U"), C128),
    (fields.Complex(fields.Normal(1.0), fields.Normal(1.0)), C128),
    (fields.Complex(fields.Sphere(axis=0), fields.Sphere(axis=0)), C128),
    (fields.Mixture([fields.Normal(1.0), fields.Sphere(3.0)], [0.3, 0.7]), torch.float64),
    (fields.Mixture([fields.Normal(1.0), fields.Uniform(-2, 2)], each="entry"), torch.float64),
    (fields.Blocks([(1, fields.Normal(1.0, 0.5)), (2, fields.Normal(1.0))]), torch.float64),
    (fields.Density(fields.Normal(1.0), lambda t: t**2 / 10), torch.float64),
    (fields.Density(fields.Normal(1.0), lambda g: g.square().sum((1, 2)) / 10, of="gram"), torch.float64),
    (fields.Torch(td.Laplace(0.0, 1.0)), torch.float64),
    (fields.Torch(td.StudentT(9.0)), torch.float64),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def element(kind: Kind, size: int, dtype: torch.dtype, seed: int = 5) -> Tensor:
    """A matrix of the group."""
    g = generator(seed)
    if kind in (Kind.ORTHOGONAL, Kind.SPECIAL_ORTHOGONAL):
        name = "O" if kind is Kind.ORTHOGONAL else "SO"
        return fields.Haar(name).sample(1, (size, size), g)[0].to(dtype)
    if kind in (Kind.UNITARY, Kind.SPECIAL_UNITARY):
        return fields.Haar("U" if kind is Kind.UNITARY else "SU").sample(1, (size, size), g, C128)[0]
    if kind is Kind.PERMUTATIONS:
        return torch.eye(size, dtype=dtype)[torch.arange(size).roll(1)]
    if kind is Kind.SIGNS:
        signs = torch.ones(size, dtype=dtype)
        signs[0] = -1
        return torch.diag(signs)
    return torch.diag(torch.exp(1j * torch.linspace(0.3, 2.0, size, dtype=torch.float64)))


def moments(w: Tensor) -> Tensor:
    """Powers one to four of fixed random projections, [count, features]."""
    flat = torch.view_as_real(w).flatten(1) if w.is_complex() else w.flatten(1)
    directions = torch.randn(flat.shape[1], 20, generator=generator(8), dtype=torch.float64)
    projected = flat @ directions / math.sqrt(flat.shape[1])
    return torch.cat([projected**k for k in range(1, 5)], 1)


@pytest.mark.parametrize(("law", "dtype"), LAWS, ids=lambda x: str(x)[:40])
def test_declared_invariances_hold(law: fields.Law, dtype: torch.dtype) -> None:
    """Every declared group element leaves the moments alone, within six standard errors."""
    count = 8_000
    first = law.sample(count, SHAPE, generator(1), dtype)
    other = law.sample(count, SHAPE, generator(2), dtype)
    declared = [one for one in law.invariances(SHAPE, dtype) if one.kind is not Kind.TRANSLATIONS]
    assert declared
    for one in declared:
        matrix = torch.eye(SHAPE[one.axis], dtype=dtype)
        matrix[one.start : one.stop, one.start : one.stop] = element(one.kind, one.stop - one.start, dtype)
        moved = torch.einsum("ij,cjk->cik" if one.axis == 0 else "ij,ckj->cki", matrix, first)
        a, b = moments(moved), moments(other)
        error = ((a.var(0) + b.var(0)) / count).sqrt() + 1e-12
        assert float(((a.mean(0) - b.mean(0)) / error).abs().max()) < 6, one


def test_real_and_imaginary_spheres_are_not_declared_unitary() -> None:
    """The corrected case: parts from invariant laws are not enough for unitary invariance."""
    spheres = fields.Complex(fields.Sphere(axis=0), fields.Sphere(axis=0))
    normals = fields.Complex(fields.Normal(1.0), fields.Normal(1.0))
    assert not spheres.invariant(Kind.UNITARY, 0, SHAPE, C128) and spheres.invariant(Kind.ORTHOGONAL, 0, SHAPE, C128)
    assert normals.invariant(Kind.UNITARY, 0, SHAPE, C128)
    unequal = fields.Complex(fields.Normal(1.0), fields.Normal(2.0))
    assert not unequal.invariant(Kind.UNITARY, 0, SHAPE, C128)


def test_what_is_not_invariant_is_not_declared() -> None:
    for law in (
        fields.TruncatedNormal(),
        fields.Uniform(-1, 1),
        fields.Normal(1.0, 0.1),
        fields.Torch(td.Laplace(0.0, 1.0)),
    ):
        assert not law.invariant(Kind.ORTHOGONAL, 0, SHAPE)
    assert not fields.Normal(1.0, 0.1).invariant(Kind.SIGNS, 0, SHAPE)
    assert not fields.Haar("SO").invariant(Kind.SIGNS, 0, (3, 3))
    assert not fields.Density(fields.Normal(1.0), lambda g: g[:, 0, 0], of="gram").invariant(Kind.ORTHOGONAL, 1, SHAPE)
    rows = fields.Normal(1.0, torch.tensor([[1.0], [0.0], [0.0]]))
    ranges = {(o.start, o.stop) for o in rows.invariances(SHAPE) if o.kind is Kind.ORTHOGONAL and o.axis == 0}
    assert ranges == {(1, 3)} and rows.invariant(Kind.PERMUTATIONS, 1, SHAPE)
    assert not rows.invariant(Kind.ORTHOGONAL, 1, SHAPE)


def test_uniform_laws_are_invariant_under_translations() -> None:
    found = [o for o in fields.Uniform(2.0, 3.0).invariances(()) if o.kind is Kind.TRANSLATIONS]
    assert [o.period for o in found] == [1.0]


@pytest.mark.parametrize(
    "law",
    [fields.Normal(0.7, 0.3), fields.Uniform(-1, 2), fields.TruncatedNormal(1.3, -1.0, 2.0), fields.Normal(2.0)],
    ids=str,
)
def test_moments_of_entries(law: fields.Law) -> None:
    draws = law.sample(40_000, (1,), generator(3))
    for order in range(9):
        sample = draws**order
        assert abs(float(sample.mean()) - (law.moment(order) or 0.0)) < 5 * float(sample.std()) / 200 + 1e-12


def test_groups_hold_their_matrices() -> None:
    eye = torch.eye(4, dtype=C128)
    for name in ("U", "SU"):
        u = fields.Haar(name).sample(7, (4, 4), generator(), C128)
        assert torch.allclose(u @ u.mH, eye.expand(7, 4, 4))
    assert torch.allclose(
        torch.linalg.det(fields.Haar("SU").sample(7, (4, 4), generator(), C128)), torch.ones(7, dtype=C128)
    )
    so = fields.Haar("SO", 2.0).sample(7, (3, 3), generator())
    assert torch.allclose(torch.linalg.det(so), torch.full((7,), 8.0, dtype=torch.float64))
    rows = fields.Haar("O").sample(5, (2, 6), generator())
    assert torch.allclose(rows @ rows.mT, torch.eye(2, dtype=torch.float64).expand(5, 2, 2))


def test_a_density_is_drawn_exactly() -> None:
    """p(r) ∝ r^{k−1} exp(−r²/2 − r⁴): compare E r² with one-dimensional integrals."""
    law = fields.Density(fields.Normal(1.0), lambda t: t**2)
    draws = law.sample(40_000, (2, 2), generator(4)).square().sum((1, 2))
    r = torch.linspace(0, 6, 60_001, dtype=torch.float64)
    p = r**3 * torch.exp(-(r**2) / 2 - r**4)
    exact = float((p * r**2).sum() / p.sum())
    assert abs(float(draws.mean()) - exact) < 5 * float(draws.std()) / math.sqrt(len(draws))


def test_tails_are_known() -> None:
    assert fields.as_law(td.StudentT(3.0)).moment_order() == 3.0
    assert fields.as_law(td.Cauchy(0.0, 1.0)).moment_order() == 1.0
    assert fields.as_law(td.LogNormal(0.0, 1.0)).moment_order() == math.inf
    mixed = fields.Mixture([fields.Normal(1.0), fields.Torch(td.Pareto(1.0, 2.5))])
    assert mixed.moment_order() == 2.5
    unknown = td.TransformedDistribution(td.Normal(0.0, 1.0), [td.ExpTransform()])
    assert math.isnan(fields.as_law(unknown).moment_order())


def test_torch_distributions_draw_by_the_generator() -> None:
    law = fields.as_law(td.Gamma(2.0, 1.0))
    torch.manual_seed(0)
    first = law.sample(5, (2,), generator(9))
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert torch.equal(first, law.sample(5, (2,), generator(9)))
    assert torch.equal(before, torch.random.get_rng_state())
    rows = fields.as_law(td.MultivariateNormal(torch.zeros(4), torch.eye(4)))
    assert rows.sample(6, SHAPE, generator()).shape == (6, 3, 4) and rows.independent(SHAPE, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fields.Normal(-1.0),
        lambda: fields.Uniform(1.0, 1.0),
        lambda: fields.TruncatedNormal(1.0, 40.0, 41.0),
        lambda: fields.Sphere(0.0),
        lambda: fields.Haar("SO").sample(1, (2, 3), generator()),
        lambda: fields.Haar("O").sample(1, (2, 2), generator(), C128),
        lambda: fields.Uniform().sample(1, (2,), generator(), C128),
        lambda: fields.Mixture([]),
        lambda: fields.Blocks([(2, fields.Normal())]).sample(1, SHAPE, generator()),
        lambda: fields.Normal(torch.ones(5)).sample(1, SHAPE, generator()),
        lambda: fields.Density(fields.Normal(), lambda t: -t).sample(1, SHAPE, generator()),
        lambda: fields.Density(fields.Normal(), lambda t: t + 50, tries=10).sample(1, SHAPE, generator()),
        lambda: fields.Torch(td.Normal(torch.zeros(3), 1.0)).sample(1, SHAPE, generator()),
        lambda: fields.as_law("normal"),  # type: ignore[arg-type]
    ],
)
def test_bad_laws_have_named_errors(make) -> None:
    with pytest.raises(fields.LawError):
        make()


def test_laws_of_laws_take_torch_distributions() -> None:
    g = torch.Generator().manual_seed(0)
    for law in (
        fields.Mixture([td.Laplace(0.0, 1.0), td.Normal(0.0, 1.0)]),  # type: ignore[list-item]
        fields.Blocks([(1, td.Laplace(0.0, 1.0)), (2, fields.Normal())]),  # type: ignore[list-item]
        fields.Density(td.Normal(0.0, 1.0), lambda s: 0.1 * s),  # type: ignore[arg-type]
    ):
        assert law.sample(5, SHAPE, g).shape == (5, *SHAPE)
    both = fields.Complex(td.Normal(0.0, 1.0), td.Normal(0.0, 1.0))  # type: ignore[arg-type]
    assert both.invariant(Kind.SPECIAL_UNITARY, 0, SHAPE, C128)
    with pytest.raises(fields.LawError, match="positive sizes"):
        fields.Blocks([])


def test_tails_of_mixtures() -> None:
    heavy = td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.StudentT(torch.tensor([3.0, 5.0])))
    light = td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.Normal(torch.zeros(2), torch.ones(2)))
    assert fields.as_law(heavy).moment_order() == 3.0
    assert fields.as_law(light).moment_order() == math.inf
    assert math.isnan(
        fields.as_law(td.TransformedDistribution(td.Normal(0.0, 1.0), [td.ExpTransform()])).moment_order()
    )
