"""Any object of torch.distributions as a law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from torchgauge.fields.errors import LawError
from torchgauge.fields.laws.base import Invariance, Kind, Law, Shape, closed, whole
from torchgauge.fields.laws.entries import Normal, Uniform

_TAILS: dict[type, Callable[[Any], float]] = {
    td.StudentT: lambda d: float(d.df.min()),
    td.Cauchy: lambda d: 1.0,
    td.HalfCauchy: lambda d: 1.0,
    td.Pareto: lambda d: float(d.alpha.min()),
    td.InverseGamma: lambda d: float(d.base_dist.concentration.min()),
    td.FisherSnedecor: lambda d: float(d.df2.min()) / 2,
}
_LIGHT = (
    td.Normal, td.Uniform, td.Laplace, td.Exponential, td.Gamma, td.Beta, td.Bernoulli, td.LogNormal, td.Gumbel,
    td.HalfNormal, td.VonMises, td.Weibull, td.Poisson, td.Geometric, td.MultivariateNormal, td.Dirichlet,
    td.LowRankMultivariateNormal, td.Binomial, td.ContinuousBernoulli, td.Kumaraswamy, td.LKJCholesky,
    td.LogisticNormal, td.Wishart, td.Categorical, td.NegativeBinomial, td.Chi2, td.OneHotCategorical, td.Multinomial,
    td.RelaxedBernoulli, td.RelaxedOneHotCategorical,
)  # fmt: skip
_EVEN = (td.Laplace, td.StudentT, td.Cauchy)


@dataclass(frozen=True, eq=False)
class Torch(Law):
    """Any object of torch.distributions: its batch and event shape fill the last axes of the parameter.

    It repeats independently over the other axes; a scalar one gives independent entries. The tails of the classes of
    torch.distributions are known, and of mixtures of them; other classes, as transformed distributions, have unknown
    moments (`nan`) unless `order` is given.
    """

    distribution: td.Distribution
    order: float = field(default=math.nan)
    """Override for classes that are not known: moments below this order exist."""

    def sample(
        self, count: int, shape: Shape, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        own = (*self.distribution.batch_shape, *self.distribution.event_shape)
        lead = len(shape) - len(own)
        if lead < 0 or tuple(shape[lead:]) != tuple(own):
            raise LawError(
                f"a distribution of shape {list(own)} on a parameter of shape {list(shape)}",
                remedy="give a scalar distribution, or one whose shape is that of the last axes (use .expand)",
            )
        seed = int(torch.randint(0, 2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):  # torch.distributions draws from the global generator alone
            torch.manual_seed(seed)
            return self.distribution.sample((count, *shape[:lead])).to(dtype)

    def moment_order(self) -> float:
        inner = self.distribution
        while isinstance(inner, (td.Independent, td.MixtureSameFamily)):
            inner = inner.base_dist if isinstance(inner, td.Independent) else inner.component_distribution
        if type(inner) in _TAILS:
            return _TAILS[type(inner)](inner)
        return math.inf if type(inner) in _LIGHT else self.order

    def invariances(self, shape: Shape, dtype: torch.dtype = torch.float64) -> frozenset[Invariance]:
        own = len(self.distribution.batch_shape) + len(self.distribution.event_shape)
        found = whole(Kind.PERMUTATIONS, shape, range(len(shape) - own))
        inner = self.distribution
        if not own and isinstance(inner, _EVEN) and type(inner) in _EVEN and float(inner.loc) == 0:  # type: ignore[attr-defined]
            found += whole(Kind.SIGNS, shape)
        return closed(found)

    def independent(self, shape: Shape, axis: int) -> bool:
        own = len(self.distribution.batch_shape) + len(self.distribution.event_shape)
        return axis % len(shape) < len(shape) - own


def as_law(law: Law | td.Distribution, name: str = "") -> Law:
    """A law as it is, or a torch.distributions object as a law; normal and uniform ones become `Normal`, `Uniform`.

    Raises:
        LawError: anything else.
    """
    if isinstance(law, Law):
        return law
    if not isinstance(law, td.Distribution):
        raise LawError(
            f"{law!r} is no law", name and f"parameter {name}", "give a law of torchgauge.fields or torch.distributions"
        )
    inner = law
    while isinstance(inner, td.Independent):
        inner = inner.base_dist
    if type(inner) is td.Normal:
        return Normal(_plain(inner.scale), _plain(inner.loc))
    if type(inner) is td.Uniform and not inner.low.ndim:
        return Uniform(float(inner.low), float(inner.high))
    return Torch(law)


def _plain(value: Tensor) -> float | Tensor:
    return float(value) if value.ndim == 0 else value
