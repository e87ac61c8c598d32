"""Proofs that a linear transformation of the inputs is no symmetry: rotations, permutations, flips.

All are about a network that reads its points in one affine layer, f(x) = F(W x + b), F independent of W and b. At x = 0
the first derivative along n is F'·(W n) and the second F''[W n, W n], derivatives taken at b, independent of W. For
independent centred weights of column variance v_a,
    E (D_n f)² = Σ_a v_a n_a² · E |F'|²,
    E (D_n² f)² = κ4 Σ_a n_a⁴ · E Σ_j (F''_jj)² + (a part that depends on |n| alone)      (all v_a equal),
so that unequal columns, or weights with a fourth cumulant, show. Weights of mean μ add μ² (Σ_a n_a)² E (Σ_j F'_j)² to
the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchgauge.fields.laws import Kind
from torchgauge.fields.symmetry.anatomy import Anatomy, Layer
from torchgauge.fields.symmetry.moments import cumulants, entries_independent
from torchgauge.fields.symmetry.operators import finite_moments, smooth
from torchgauge.fields.symmetry.transformations import Transformation

NONZERO = 1e-9


def refute_inputs(anatomy: Anatomy, change: Transformation) -> str | None:
    """A proof that a linear transformation of the inputs is no symmetry, or None if none was found."""
    layer = anatomy.first
    if layer is None or not finite_moments(anatomy) or not smooth(anatomy):
        return None
    law, shape = anatomy.ensemble.laws[layer.weight], anatomy.ensemble.shapes[layer.weight]
    found = cumulants(law, shape)
    if found is None or not entries_independent(law, shape):
        return None
    mean, variance, fourth = (part.movedim(layer.rows, 0) for part in found)
    return _linear(anatomy, layer, change, mean, variance, fourth)


def _linear(
    anatomy: Anatomy, layer: Layer, change: Transformation, mean: Tensor, variance: Tensor, fourth: Tensor
) -> str | None:
    """Rotations, permutations and flips, from the moments [units, inputs] of the first layer."""
    first, second, total = _derivatives(anatomy, layer)
    d = mean.shape[1]
    if bool((mean == 0).all()):
        # along e_a: E (D f)² = Σ_j v_ja E F'_j²
        for a in range(d) if change.kind is not Kind.SIGNS else ():
            for b in range(d):
                gap = variance[:, a] - variance[:, b]
                if bool((gap >= 0).all()) and bool((gap[first] > 0).any()):
                    more = f"E (∂f/∂x_{a + 1})² > E (∂f/∂x_{b + 1})²"
                    return f"{more} at x = 0, as the variances of the first layer say"
        if change.kind is not Kind.SPECIAL_ORTHOGONAL or d < 2:
            return None
        alike = bool((variance == variance[:, :1]).all()) and bool((fourth == fourth[:, :1]).all())
        terms, every = fourth[:, 0][second], fourth[:, 0]
        one_sign = bool((every >= 0).all()) or bool((every <= 0).all())
        if alike and one_sign and bool((terms != 0).any()):
            return (
                "at x = 0, E (D_n² f)² contains κ4(W) Σ_a n_a⁴ E Σ_j (F''_jj)² with "
                f"κ4(W) = {terms[terms != 0][0]:.3g}: it depends on the direction n"
            )
        return None
    mu = mean[0, 0]
    if bool((mean == mu).all()) and bool((variance == variance[:, :1]).all()) and total and d > 1:
        if change.kind is not Kind.PERMUTATIONS:
            return (
                f"E (∂f/∂x_1)(∂f/∂x_2) = ({mu:g})² E (Σ_j F'_j)² ≠ 0 at x = 0, as the first layer has the mean {mu:g}"
            )
    return None


def _derivatives(anatomy: Anatomy, layer: Layer) -> tuple[Tensor, Tensor, bool]:
    """Where F'_j and F''_jj do not vanish at x = 0 [units], and whether Σ_j F'_j does not: from one network."""
    params = {k: v[0] for k, v in anatomy.ensemble.sample(1, seed=2).items()}
    weight, start = params[layer.weight], torch.zeros_like(anatomy.points)
    units = weight.shape[layer.rows]
    along = torch.zeros_like(start)
    along[..., 0] = 1.0

    def both(columns: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative along e_1, for first-layer weights that read x_1 alone."""
        probe = torch.zeros_like(weight).movedim(layer.columns, 1)
        probe[:, 0] = columns
        fixed = params | {layer.weight: probe.movedim(1, layer.columns)}

        def f(t: Tensor) -> Tensor:
            return anatomy.outputs(fixed, start + t * along)

        zero = torch.zeros((), dtype=start.dtype)
        one = torch.ones_like(zero)

        def slope(t: Tensor) -> Tensor:
            return torch.func.jvp(f, (t,), (one,))[1]

        first, second = torch.func.jvp(slope, (zero,), (one,))[:2]
        return first, second

    found = [both(e) for e in torch.eye(units, dtype=weight.dtype)]
    first = torch.stack([a.abs().max() for a, _ in found])
    second = torch.stack([b.abs().max() for _, b in found])
    total = torch.stack([a for a, _ in found]).sum(0).abs().max()
    scale = max(float(first.max()), NONZERO)
    return first > NONZERO * scale, second > NONZERO * scale, bool(total > NONZERO * scale)
