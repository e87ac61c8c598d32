"""The terms of an effective action: integrals of kernels over a cube.

    T0 = 24 ∫ K_W(x, x1) … K_W(x, x4),   T2 the same with |x|²,
    TNL = 8 Σ_3 ∫∫ K_W(x, x1) K_W(x, x2) K_W(y, x3) K_W(y, x4)

over |x_i| < Λ, with K_W the kernel without its output bias ([HMS] 3, 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.combinatorics import exact_terms, pairings, slots
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.kernels import cross_kernel, layers_of
from torchgauge.fields.monomials import Plan
from torchgauge.fields.panels import cube

TermName = Literal["T0", "T2", "TNL"]
Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Integrals:
    """The terms of an effective action.

    Attributes:
        kernel: K_W, points [a, d], points [b, d] → [a, b].
        inputs: d.
        cutoff: Λ; infinite only where the closed form is known (Gauss nets of one hidden layer).
        gauss: (σ_w of the readout, inverse square length) of a Gaussian kernel, or None.
    """

    kernel: Kernel
    inputs: int
    cutoff: float
    gauss: tuple[float, float] | None = None

    def design(self, points: Tensor, tuples: Tensor, terms: Sequence[TermName]) -> Tensor:
        """The terms at index tuples [count, 4]: [count, terms]."""
        unknown = set(terms) - {"T0", "T2", "TNL"}
        if unknown or not terms:
            raise InputError(f"terms {tuple(terms)}", remedy="choose from T0, T2, TNL")
        if math.isinf(self.cutoff):
            columns = self._closed(points, tuples, terms)
        else:
            columns = self._by_panels(points, tuples, terms)
        return torch.stack([columns[name] for name in terms], 1)

    def _by_panels(self, points: Tensor, tuples: Tensor, terms: Sequence[TermName]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        pair = torch.zeros(len(points), len(points), dtype=torch.float64)
        plan = Plan(len(points), tuples, exact_terms(4, lambda mask: float(mask == 15), lambda k: 1.0))
        for x, weight in cube(self.cutoff, self.inputs):
            k = self.kernel(x, points)
            pair += k.T @ (k * weight[:, None])
            for name, extra in (("T0", weight), ("T2", weight * x.square().sum(1))):
                if name in terms:
                    part = 24 * plan.combine(plan.moments(k, extra))
                    out[name] = out[name] + part if name in out else part
        out["TNL"] = 8 * three_pairings(pair, tuples)
        return out

    def _closed(self, points: Tensor, tuples: Tensor, terms: Sequence[TermName]) -> dict[str, Tensor]:
        """Gaussian integrals: K_W = σ² exp(−a|x−x'|²) over all of space."""
        if self.gauss is None:
            raise InputError(
                "the integrals diverge without a cutoff: this kernel does not decay",
                remedy="give a finite cutoff, as in cutoff=100.0",
            )
        sigma, a = self.gauss
        x = points[tuples]  # [count, 4, d]
        mean = x.mean(1)
        spread = (x - mean[:, None]).square().sum((1, 2))
        local = 24 * sigma**8 * torch.exp(-a * spread) * (math.pi / (4 * a)) ** (self.inputs / 2)
        moment = mean.square().sum(1) + self.inputs / (8 * a)
        gap = torch.cdist(points, points).square()
        pair = sigma**4 * torch.exp(-a * gap / 2) * (math.pi / (2 * a)) ** (self.inputs / 2)
        return {"T0": local, "T2": local * moment, "TNL": 8 * three_pairings(pair, tuples)}


def three_pairings(pair: Tensor, tuples: Tensor) -> Tensor:
    """Σ over the three pairings of products of pair(a, b), at index tuples [count, 4]."""
    total = torch.zeros(len(tuples), dtype=pair.dtype)
    for one, two in pairings(0b1111):
        (a, b), (c, d) = slots(one), slots(two)
        total = total + pair[tuples[:, a], tuples[:, b]] * pair[tuples[:, c], tuples[:, d]]
    return total


def integrals(ensemble: Ensemble, cutoff: float) -> Integrals:
    """The terms for an ensemble of `Net`s.

    Raises:
        InputError: a cutoff that is not positive.
        EstimatorError: not a `Net` with suitable laws.
    """
    if not cutoff > 0:
        raise InputError(f"cutoff {cutoff}", remedy="give a positive cutoff; math.inf for Gauss nets")
    activation, layers = layers_of(ensemble)
    gauss = None
    if activation.name == "gauss" and len(layers) == 2:
        gauss = math.sqrt(layers[1].c_w), layers[0].c_w / (2 * layers[0].fan_in)
    return Integrals(lambda x, y: cross_kernel(ensemble, x, y), layers[0].fan_in, cutoff, gauss)
