"""Four-point functions of deep nets to first order in 1/width, by recursion over layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.fields.combinatorics import Term, exact_terms, multisets, rank
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.errors import EstimatorError, SingularKernelError
from torchgauge.fields.gaussian import expectation, pair_moment
from torchgauge.fields.kernels import kernels, layers_of, pair_moments, single_moment
from torchgauge.fields.laws import Normal
from torchgauge.fields.monomials import Plan
from torchgauge.fields.nets import Activation


@dataclass(frozen=True, eq=False)
class Quartic:
    """The four-point vertex of one layer: κ4_{ijkl} = (1/width)(δ_ij δ_kl V_(12)(34) + 2 permutations) + O(1/width²).

    Attributes:
        vertex: V_(12)(34) [points, points, points, points].
        width: the fan-in of the output layer.
    """

    vertex: Tensor
    width: int

    def connected(self, tuples: Tensor | None = None, outputs: Sequence[int] = (0, 0, 0, 0)) -> Tensor:
        """κ4 [count] at index tuples [count, 4], all distinct ones by default."""
        at = multisets(len(self.vertex), 4) if tuples is None else torch.as_tensor(tuples)
        a, b, c, d = at.T
        i, j, k, l = outputs
        total = torch.zeros(len(at), dtype=self.vertex.dtype)
        for same, value in (
            (i == j and k == l, self.vertex[a, b, c, d]),
            (i == k and j == l, self.vertex[a, c, b, d]),
            (i == l and j == k, self.vertex[a, d, b, c]),
        ):
            total = total + value if same else total
        return total / self.width


def quartic(ensemble: Ensemble, points: Tensor) -> Quartic:
    """V of the outputs by recursion over layers, to first order in 1/width; exact for one hidden layer.

    V'_(12)(34) = C_w² (⟨φφφφ⟩ − ⟨φφ⟩⟨φφ⟩) + C_w² (n'/n) Σ ∂⟨φ1φ2⟩/∂K_ab ∂⟨φ3φ4⟩/∂K_cd V_(ab)(cd), the sums over the
    three covariances that each pair depends on. By Price's theorem the derivatives are ½ K^{-1} K^{-1} ⟨φφ(zz − K)⟩, as
    the recursion is written by Roberts, Yaida and Hanin (2106.10165, eq. 4.90); in this form no kernel is inverted.

    Raises:
        EstimatorError: not a `Net` with normal weights, or an activation without a rule at these points.
        SingularKernelError: a preactivation of variance zero.
    """
    activation, layers = layers_of(ensemble)
    for name in [*(f"hidden.{i}.weight" for i in range(len(layers) - 1)), "readout.weight"]:
        if not isinstance(ensemble.laws[name], Normal):
            raise EstimatorError("the vertex is for normal weights", f"parameter {name}", "use Normal laws")
    every = kernels(ensemble, points)
    count = len(every[0])
    vertex = torch.zeros((count,) * 4, dtype=torch.float64)
    for i, (before, layer) in enumerate(zip(layers[:-1], layers[1:], strict=True)):
        fresh = _four(activation, every[i], before.phase)
        flat = pair_moments(activation, every[i], before.phase)
        new = fresh - flat[:, :, None, None] * flat[None, None]
        if i:
            slope = _slopes(activation, every[i], before.phase)
            new = new + layer.fan_in / before.fan_in * _transported(slope, vertex)
        vertex = layer.c_w**2 * new
    return Quartic(vertex, layers[-1].fan_in)


def _four(activation: Activation, k: Tensor, phase: bool) -> Tensor:
    """⟨φ1 φ2 φ3 φ4⟩ as a dense tensor."""
    count = len(k)
    sets = multisets(count, 4)
    terms = exact_terms(4, lambda mask: float(mask == 15), lambda blocks: 1.0)
    try:
        rule = expectation(activation, k, phase)
        plan = Plan(count, sets, terms)
        values = plan.combine(rule.moments(plan))
    except EstimatorError:
        values = torch.stack([_one(activation, k, phase, s, terms) for s in sets])
    grid = torch.cartesian_prod(*[torch.arange(count)] * 4).sort(1).values
    return values[rank(grid, count)].reshape((count,) * 4)


def _one(activation: Activation, k: Tensor, phase: bool, at: Tensor, terms: list[Term]) -> Tensor:
    points, local = torch.unique(at, return_inverse=True)
    plan = Plan(len(points), local[None], terms)
    return plan.combine(expectation(activation, k[points[:, None], points], phase).moments(plan))[0]


def _slopes(activation: Activation, k: Tensor, phase: bool) -> Tensor:
    """∂⟨φ_a φ_b⟩ / ∂(K_aa, K_ab, K_bb), [3, points, points]; K_aa and K_bb are one variable where a = b."""
    count = len(k)
    diagonal = torch.diagonal(k)
    with torch.enable_grad():
        parts = [diagonal[:, None].expand_as(k), k, diagonal[None].expand_as(k)]
        k11, k12, k22 = (p.clone().requires_grad_() for p in parts)
        value = torch.exp(-(k11 + k22) / 2 + k12) / 2 if phase else pair_moment(activation, k11, k12, k22)
        slopes = torch.stack(torch.autograd.grad(value.sum(), (k11, k12, k22)))
    one = torch.diagonal(k).clone().requires_grad_()
    with torch.enable_grad():
        same = torch.full_like(one, 0.5) if phase else single_moment(activation, one)
        total = torch.autograd.grad(same.sum(), one)[0] if same.requires_grad else torch.zeros_like(one)
    at = torch.arange(count)
    slopes[:, at, at] = 0.0
    slopes[1, at, at] = total
    if not bool(torch.isfinite(slopes).all()):
        raise SingularKernelError(
            "two points with the same preactivation in every network, at which the kernel has no derivative",
            remedy="leave out repeated or parallel points",
        )
    return slopes


def _transported(slopes: Tensor, vertex: Tensor) -> Tensor:
    """Σ ∂⟨12⟩/∂K_ab ∂⟨34⟩/∂K_cd V_(ab)(cd) over ab in (11, 12, 22) and cd in (33, 34, 44)."""
    left = _three(vertex, slopes)  # on the first pair
    return _three(left.permute(2, 3, 0, 1), slopes).permute(2, 3, 0, 1)


def _three(vertex: Tensor, slopes: Tensor) -> Tensor:
    diagonal = torch.einsum("aacd->acd", vertex)
    return (
        slopes[0][:, :, None, None] * diagonal[:, None]
        + slopes[1][:, :, None, None] * vertex
        + slopes[2][:, :, None, None] * diagonal[None, :]
    )
