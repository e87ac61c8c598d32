"""Effective actions: couplings from connected four-point functions, and their predictions.

To first order in the couplings κ4(x1..x4) = λ0 T0 + λ2 T2 + λNL TNL (`terms.py`). The action is then
S_GP − ∫ (λ0 + λ2 x²) f⁴ − …: λ is positive where κ4 is, as in the code that was published with [HMS].
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.combinatorics import multisets
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.errors import IdentifiabilityError, IdentifiabilityWarning, MisfitWarning
from torchgauge.fields.results import Correlator
from torchgauge.fields.terms import Integrals, TermName, integrals, three_pairings

_HOPELESS = 1e12  # condition number above which rounding errors of κ4 alone swamp a coupling


@dataclass(frozen=True, eq=False)
class EffectiveAction:
    """Fitted couplings.

    Attributes:
        terms: names of the terms.
        couplings: [terms].
        error: standard errors [terms], of the sampling and of the misfit together.
        covariance: [terms, terms].
        interval: confidence intervals [terms, 2].
        confidence: their level.
        condition: condition number of the design matrix, rows relative and columns normalised.
        uncertainty: relative size of what κ4 = Σ λ T leaves open: the sampling error, or the next order in the
            couplings, about |κ4| / Σ_3 K_W K_W, whichever is larger. The intervals leave the next order out.
        identifiable: whether condition · uncertainty is below one, so that every coupling is known to its own size.
        misfit: mean of |κ4 − fit| / |κ4| over the fitted tuples.
        integrals: the terms, to predict with.
    """

    terms: tuple[TermName, ...]
    couplings: Tensor
    error: Tensor
    covariance: Tensor
    interval: Tensor
    confidence: float
    condition: float
    uncertainty: float
    identifiable: bool
    misfit: float
    integrals: Integrals = field(repr=False)

    def predict(self, points: Tensor, tuples: Tensor | None = None) -> Tensor:
        """κ4 [count] at index tuples [count, 4] of any points."""
        points = points.double().reshape(len(points), -1)
        at = multisets(len(points), 4) if tuples is None else torch.as_tensor(tuples)
        return self.integrals.design(points, at, self.terms) @ self.couplings

    def relative_errors(self, held_out: Correlator) -> Tensor:
        """|prediction − κ4| / |κ4| [count] at the tuples of a connected four-point function."""
        _check(held_out)
        return (self.predict(held_out.points, held_out.tuples) / held_out.values - 1).abs()

    def coupling(self, name: TermName) -> float:
        """The coupling of one term."""
        return float(self.couplings[self.terms.index(name)])

    def __str__(self) -> str:
        rows = [
            f"λ({name}) = {v:.6g} ± {e:.2g}   [{low:.6g}, {high:.6g}] at {self.confidence:.0%}"
            for name, v, e, (low, high) in zip(
                self.terms, self.couplings.tolist(), self.error.tolist(), self.interval.tolist(), strict=True
            )
        ]
        verdict = (
            "identifiable" if self.identifiable else "NOT identifiable: only some combinations of these couplings are"
        )
        rows.append(f"cutoff {self.integrals.cutoff:g}, condition number {self.condition:.3g}, {verdict}")
        rows.append(f"mean relative misfit {self.misfit:.2e}")
        return "\n".join(rows)


def fit_action(
    kappa4: Correlator,
    ensemble: Ensemble | Integrals,
    terms: Sequence[TermName] = ("T0",),
    *,
    cutoff: float = math.inf,
    confidence: float = 0.95,
    strict: bool = False,
) -> EffectiveAction:
    """Couplings by relative least squares: minimise Σ ((κ4 − Σ λ T)/κ4)² over the tuples.

    Args:
        kappa4: a connected four-point function, of one output.
        ensemble: whose kernel and cutoff make the terms; or the terms themselves.
        terms: which ones.
        cutoff: Λ.
        confidence: level of the intervals (Student's t with count − terms degrees of freedom). They add what the
            sampling error of κ4 does to the couplings and what the misfit does, as if it were random.
        strict: refuse a fit that is not identifiable, instead of a warning.

    Raises:
        IdentifiabilityError: fewer tuples than terms, or terms that are proportional on these points.
        InputError: values that vanish, or not a connected four-point function.

    Warns:
        IdentifiabilityWarning: the couplings are not determined by these points.
        MisfitWarning: the terms miss κ4 by more than a tenth on average; the couplings are then no properties of it.
    """
    _check(kappa4)
    made = ensemble if isinstance(ensemble, Integrals) else integrals(ensemble, cutoff)
    names = tuple(terms)
    design = made.design(kappa4.points.double(), kappa4.tuples, names)
    count, width = design.shape
    if count < width:
        raise IdentifiabilityError(f"{count} tuples for {width} couplings", remedy="give more points, or fewer terms")
    rows = design / kappa4.values[:, None]
    scale = rows.norm(dim=0)
    _, singular, _ = torch.linalg.svd(rows / scale, full_matrices=False)
    condition = float(singular[0] / singular[-1]) if float(singular[-1]) > 0 else math.inf
    if condition > _HOPELESS:
        raise IdentifiabilityError(
            f"the terms {', '.join(names)} are proportional to each other on these points to {1 / condition:.0e}",
            remedy="spread the points over the length on which the kernel varies, or fit fewer terms",
        )
    solution = torch.linalg.pinv(rows / scale, rcond=1e-15) / scale[:, None]  # [terms, count]
    couplings = solution @ torch.ones(count, dtype=torch.float64)
    residual = 1 - rows @ couplings
    covariance, noise = _uncertainty(kappa4, solution, residual, width)
    spread = max(noise, _next_order(made, kappa4))
    error = torch.diagonal(covariance).clamp_min(0).sqrt()
    half = _student(confidence, max(count - width, 1)) * error
    interval = torch.stack([couplings - half, couplings + half], 1)
    fitted = EffectiveAction(
        names, couplings, error, covariance, interval, confidence, condition, spread, condition * spread < 1,
        float(residual.abs().mean()), made,
    )  # fmt: skip
    _warn(fitted, strict)
    return fitted


def _student(confidence: float, freedom: int) -> float:
    """Half the width of an interval of this level, in standard errors."""
    from scipy.special import stdtrit  # SciPy loads slowly, and only fits need it

    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence}", remedy="give a level between 0 and 1, as 0.95")
    return float(stdtrit(freedom, (1 + confidence) / 2))


def _uncertainty(kappa4: Correlator, solution: Tensor, residual: Tensor, width: int) -> tuple[Tensor, float]:
    """Covariance of the couplings, and the relative error of the data."""
    relative = kappa4.error / kappa4.values.abs()
    if kappa4.covariance is not None:
        sampling = kappa4.covariance / torch.outer(kappa4.values, kappa4.values)
    else:
        sampling = torch.diag(relative.square())
    freedom = max(len(residual) - width, 1)
    misfit = solution @ solution.T * residual.square().sum() / freedom
    return solution @ sampling @ solution.T + misfit, float(relative.square().mean().sqrt())


def _next_order(made: Integrals, kappa4: Correlator) -> float:
    """Median of |κ4| / Σ_3 K_W K_W: the relative size of what first order in λ leaves out."""
    points = kappa4.points.double().reshape(len(kappa4.points), -1)
    free = three_pairings(made.kernel(points, points), kappa4.tuples).abs()
    return float((kappa4.values.abs() / free.clamp_min(1e-300)).median())


def _warn(fitted: EffectiveAction, strict: bool) -> None:
    if fitted.misfit > 0.1:
        warnings.warn(
            f"the terms {', '.join(fitted.terms)} miss κ4 by {fitted.misfit:.0%} on average: these couplings are "
            "averages over the points, no properties of the ensemble; add terms, or take points closer together",
            MisfitWarning,
            stacklevel=3,
        )
    if fitted.identifiable:
        return
    text = (
        f"the couplings of {', '.join(fitted.terms)} are not identifiable on these points: condition number "
        f"{fitted.condition:.2g}, and first order in λ and the sampling leave κ4 open by {fitted.uncertainty:.1g}"
    )
    remedy = "spread the points, fit fewer terms, or take a more precise κ4"
    if strict:
        raise IdentifiabilityError(text, remedy=remedy)
    warnings.warn(f"{text}; {remedy}", IdentifiabilityWarning, stacklevel=3)


def _check(kappa4: Correlator) -> None:
    if kappa4.n != 4 or not kappa4.connected or len(set(kappa4.outputs)) > 1:
        raise InputError(
            "not a connected four-point function of one output", remedy="take correlator(ensemble, points, 4)"
        )
    size = kappa4.values.abs()
    lost = size <= torch.maximum(kappa4.error, 1e-12 * size.max())
    if bool(lost.any()):
        where = kappa4.tuples[lost][0].tolist()
        raise InputError(
            f"κ4 vanishes to its error at {int(lost.sum())} of {len(size)} tuples, as at {where}, and relative least "
            "squares divides by it",
            remedy="leave out such tuples (points on both sides of the origin for ReLU), or sample more networks",
        )
