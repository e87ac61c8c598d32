"""From nets back to neural ODEs: the constructive Theorem 3.1, rescalings of ReLU nets, suspension."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.ode.affine import Affine
from torchgauge.ode.coefficients import Coefficients
from torchgauge.ode.connect import Connected, Steps
from torchgauge.ode.errors import NotEquivalentError, OrientationError
from torchgauge.ode.fields import LinearField
from torchgauge.ode.layers import Layers, connecting_gauge, discretise
from torchgauge.ode.lines import layer_edges
from torchgauge.ode.pullback import pullback


def lift(
    net_b: nn.Module | Layers, field_a: LinearField, layers: int | Tensor | None = None, tolerance: float | None = None
) -> LinearField:
    """The neural ODE B whose integrated net is net B, gauge equivalent to neural ODE A (Theorem 3.1, corrected).

    Args:
        net_b: the same function as A's integrated net, layers of positive determinant.
        field_a: neural ODE A.
        layers: how A is cut: N equal pieces, or edges [N + 1]; by default as many as net B has layers.
        tolerance: how closely the nets must agree, relative to the size of the gauge; by default 10⁶ roundings.

    Returns:
        Neural ODE B.

    Raises:
        NotEquivalentError: the nets are different functions.
        SingularLayerError: a layer of B has no inverse.
        OrientationError: layers of B have negative determinant; see `suspend`.
    """
    made = pullback(field_a, lifting_gauge(net_b, field_a, layers, tolerance))
    assert isinstance(made, LinearField)
    return made


def lifting_gauge(
    net_b: nn.Module | Layers, field_a: LinearField, layers: int | Tensor | None = None, tolerance: float | None = None
) -> Affine:
    """The gauge transformation x = G(t) y + c(t) that `lift` pulls neural ODE A back along.

    The G_n of the recursion Γ_{n+1} = A_n Γ_n B_n⁻¹ are joined by a smooth path. Inside GL(d) that is possible only if
    every det G_n > 0, which is to say every det w̄_n of net B, as time-ordered exponentials have positive determinant.

    Args, Raises: as for `lift`.
    """
    b = Layers.of(net_b)
    edges = layer_edges(field_a, len(b) if layers is None else layers)
    a = discretise(field_a, edges)
    gauge = connecting_gauge(a, b)
    _refuse_different(gauge, tolerance or 1e6 * torch.finfo(gauge.dtype).eps)
    _refuse_orientation(b)
    identity = torch.eye(a.dim + 1, dtype=gauge.dtype, device=gauge.device)
    gauge = torch.cat([gauge[:-1], identity[None]])  # closed exactly, so that the ends of time stay fixed
    return Affine(Connected(edges, gauge[:, :-1, :-1]), Steps(edges, gauge[:, :-1, -1]), field_a.span)


def _refuse_different(gauge: Tensor, tolerance: float) -> None:
    """Raises unless the recursion closes."""
    d = gauge.shape[-1] - 1
    end = gauge[-1].detach()
    defect = end - torch.eye(d + 1, dtype=end.dtype, device=end.device)
    sizes = torch.linalg.matrix_norm(gauge.detach(), ord=2)
    scale = float((sizes * torch.linalg.cond(gauge.detach()[:, :d, :d])).amax().clamp(min=1))
    error = float(defect.abs().max())
    if not error <= tolerance * scale:
        what = (
            f"the nets are different functions: after the last layer the recursion ends with |G − 1| = "
            f"{float(defect[:d, :d].abs().max()):.2e} and |c| = {float(defect[:d, d].abs().max()):.2e}, not zero"
        )
        remedy = f"What rounding can explain is {tolerance * scale:.1e}. No gauge transformation joins the nets."
        raise NotEquivalentError(what, f"layer {len(gauge) - 2}, where G and c must close", remedy)


def _refuse_orientation(b: Layers) -> None:
    """Raises if a layer reverses orientation."""
    signs = torch.linalg.slogdet(b.weight.detach())[0]
    bad = (signs < 0).nonzero()[:, 0].tolist()
    if bad:
        what = f"layers {bad} of net B have negative determinant, and no neural ODE in {b.dim} dimensions passes there"
        remedy = f"Lift in {b.dim + 1} dimensions: lift(suspend(net_b), suspend(field_a))."
        raise OrientationError(what, f"layer {bad[0]}", remedy)


def suspend(of: nn.Module | Layers | LinearField) -> Layers | LinearField:
    """One more dimension: w̄ ⊕ −1 for layers that reverse orientation, w̄ ⊕ 1 for the others; w ⊕ 0 for a field.

    The suspended layers all have positive determinant. A net that is equivalent to the integrated net of a field has an
    even number of reversing layers, so that the suspended net does not move the new coordinate, as the suspended field.

    Args:
        of: a net or a field of dimension d.

    Returns:
        `Layers` or a `LinearField` of dimension d + 1.
    """
    if isinstance(of, LinearField):
        return LinearField.of(_Suspended(of.coefficients), of.span)
    layers = Layers.of(of)
    signs = torch.linalg.slogdet(layers.weight.detach())[0]
    side = torch.zeros_like(layers.weight[..., :1])
    corner = signs[:, None, None].to(layers.weight.dtype)
    weight = torch.cat([torch.cat([layers.weight, side], -1), torch.cat([side.mT, corner], -1)], -2)
    return Layers(weight, torch.cat([layers.bias, torch.zeros_like(layers.bias[..., :1])], -1))


@final
class _Suspended(Coefficients):
    """(w ⊕ 0, b ⊕ 0)."""

    def __init__(self, coefficients: Coefficients) -> None:
        super().__init__()
        self.coefficients = coefficients

    def sample(self, times: Tensor) -> tuple[Tensor, Tensor | None]:
        w, b = self.coefficients.sample(times)
        return nn.functional.pad(w, (0, 1, 0, 1)), None if b is None else nn.functional.pad(b, (0, 1))


def rescaling_gauge(field: LinearField, scales: Tensor, layers: int | Tensor | None = None) -> Affine:
    """The diffeomorphism that does to a ReLU neural ODE what a rescaling of units does to its integrated net.

    Between pieces a ReLU acts, which commutes with positive diagonal matrices: G_n = diag α^(n), joined by a path that
    is linear in log α. Pulling back along it takes w̄_n to diag(1/α^(n+1)) w̄_n diag(α^(n)) and b̄_n to b̄_n/α^(n+1).

    Args:
        field: between the ReLUs.
        scales: α^(n) > 0 at the edges n = 1 … N − 1, [N − 1, d]; the ends are 1.
        layers: N equal pieces or edges [N + 1]; N equal pieces by default.

    Raises:
        InputError: scales that are not positive, or do not fit.
    """
    edges = layer_edges(field, len(scales) + 1 if layers is None else layers)
    if scales.shape != (len(edges) - 2, field.dim):
        what = f"scales must have shape {[len(edges) - 2, field.dim]}, and have {[*scales.shape]}"
        raise InputError(what, "scales", "One row for each layer of hidden units.")
    if not bool((scales > 0).all()):
        n, unit = (scales <= 0).nonzero()[0].tolist()
        what = f"ReLU commutes with positive scales only, and a scale is {float(scales[n, unit]):.3g}"
        raise InputError(what, f"hidden layer {n + 1}, unit {unit}", "Use positive scales.")
    ones = scales.new_zeros(1, field.dim)
    return Affine(_DiagonalExponential(Steps(edges, torch.cat([ones, scales.log(), ones]))), None, field.span)


@final
class _DiagonalExponential(nn.Module):
    """diag exp a(t)."""

    vectorised = True

    def __init__(self, exponent: Steps) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, t: Tensor) -> Tensor:
        return torch.diag_embed(torch.exp(self.exponent(t)))

    def velocity(self, t: Tensor) -> Tensor:
        return torch.diag_embed(torch.exp(self.exponent(t)) * self.exponent.velocity(t))
