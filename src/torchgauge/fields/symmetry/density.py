"""The density of a prior, for the laws that have one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.errors import LawError
from torchgauge.fields.laws import Blocks, Density, Law, Mixture, Normal, Sphere, Torch, TruncatedNormal, Uniform


def log_prior(ensemble: Ensemble, params: Mapping[str, Tensor]) -> Tensor:
    """log p(θ) [count] of stacked parameters [count, *shape], up to a constant that depends on the ensemble alone.

    On a sphere the density is the one with respect to its surface, −∞ off the sphere. Fixed entries count as −∞ where
    they are not what they should be.

    Raises:
        LawError: a law without a density that is known here.
    """
    total = torch.zeros(())
    for name, law in ensemble.laws.items():
        total = total + log_density(law, params[name])
    for key, law in ensemble.joint.items():
        columns = [params[name].reshape(*params[name].shape[:2], -1) for name in key]
        total = total + log_density(law, torch.cat(columns, 2))
    return total


def log_density(law: Law, value: Tensor) -> Tensor:
    """log p up to a constant [count], for values [count, *shape]."""
    if isinstance(law, Normal) and not value.is_complex():
        std = torch.as_tensor(law.std, dtype=value.dtype).expand(value.shape[1:])
        gap = value - torch.as_tensor(law.mean, dtype=value.dtype)
        fixed = std == 0
        off = (gap.abs() > 1e-12) & fixed
        terms = torch.where(
            fixed, torch.zeros_like(gap), -0.5 * (gap / torch.where(fixed, torch.ones_like(std), std)) ** 2
        )
        return _sum(torch.where(off, torch.full_like(gap, -math.inf), terms))
    if isinstance(law, Uniform):
        return _inside((value >= law.low) & (value <= law.high), torch.zeros_like(value))
    if isinstance(law, TruncatedNormal):
        return _inside((value >= law.low) & (value <= law.high), -0.5 * (value / law.std) ** 2)
    if isinstance(law, Torch):
        return _sum(law.distribution.log_prob(value))
    if isinstance(law, Blocks):
        parts = value.split([size for size, _ in law.parts], law.axis % (value.ndim - 1) + 1)
        return torch.stack([log_density(part, v) for (_, part), v in zip(law.parts, parts, strict=True)]).sum(0)
    if isinstance(law, Sphere):
        over = tuple(range(1, value.ndim)) if law.axis is None else (law.axis % (value.ndim - 1) + 1,)
        radius = torch.linalg.vector_norm(value, dim=over)
        return _inside((radius - law.radius).abs() < 1e-9 * law.radius, torch.zeros_like(radius))
    if isinstance(law, Density):
        return log_density(law.base, value) - law.energy(law.invariant_of(value))
    if isinstance(law, Mixture) and law.each == "network" and all(isinstance(one, Normal) for one in law.laws):
        return _mixture(law, value)
    raise LawError(f"no density is known for {law}", remedy="compare samples instead: test_outputs of the parameters")


def _mixture(law: Mixture, value: Tensor) -> Tensor:
    """Normal components with their norms, which differ."""
    raw = list(law.weights) or [1.0] * len(law.laws)
    logs = []
    for weight, part in zip(raw, law.laws, strict=True):
        assert isinstance(part, Normal)
        std = torch.as_tensor(part.std, dtype=value.dtype).expand(value.shape[1:])
        logs.append(log_density(part, value) - std.log().sum() + math.log(weight / sum(raw)))
    return torch.logsumexp(torch.stack(logs), 0)


def _inside(inside: Tensor, terms: Tensor) -> Tensor:
    return _sum(torch.where(inside, terms, torch.full_like(terms, -math.inf)))


def _sum(terms: Tensor) -> Tensor:
    return terms.flatten(1).sum(1) if terms.ndim > 1 else terms
