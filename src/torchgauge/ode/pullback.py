"""How fields transform: finite pullback along a diffeomorphism, and its infinitesimal form, the Lie derivative.

In spacetime a field is F̂ = (1, F), and F̂' = (DΦ)⁻¹ F̂∘Φ. Where F̂'⁰ ≠ 1 the trajectories are the same curves, run through
at another speed, so that F' = F̂'ⁱ/F̂'⁰ is the field as a function of time again (paper, section 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, final

import torch
from torch import Tensor, nn

from torchgauge.ode.affine import Affine, Gauged, Slowed
from torchgauge.ode.calculus import known, material_derivative, per_sample, push
from torchgauge.ode.diffeomorphism import Composition, Diffeomorphism, Tangent, Temporal, short
from torchgauge.ode.errors import DiffeomorphismError, FoldError
from torchgauge.ode.fields import Field, ImpulsiveField, Jump, LinearField, VectorField, as_field, same_span

Function = Callable[[Tensor, Tensor], Any]


def pullback(field: Function, diffeo: Diffeomorphism) -> Field:
    """The field whose trajectories y(s) go to those of the given field under (t, x) = Φ(s, y): exact, at any size.

    Both fields map the start point to the same end point, since Φ is the identity at both ends (Theorem 2.1).

    Args:
        field: a field, or F(t, x).
        diffeo: Φ, on the span of the field.

    Returns:
        The pulled-back field. A linear field stays one under affine maps, (25), and under time maps, (20); kicks move
        with the field.

    Raises:
        DiffeomorphismError: spans that differ, or kicks under a map that does not keep moments moments.
        FoldError: when the new field is called, at a point where the map folds.
    """
    source = as_field(field, None if isinstance(field, VectorField | LinearField | ImpulsiveField) else diffeo.span)
    if not same_span(source.span, diffeo.span):
        what = f"the field lives on {source.span}, the diffeomorphism on {diffeo.span}"
        raise DiffeomorphismError(what, "span", "Both must fix the same start and end of time.")
    if isinstance(diffeo, Composition):
        return pullback(pullback(source, diffeo.outer), diffeo.inner)
    if isinstance(source, ImpulsiveField):
        return ImpulsiveField(pullback(source.field, diffeo), [_moved(jump, diffeo) for jump in source.jumps])
    if isinstance(source, LinearField) and isinstance(diffeo, Affine):
        return LinearField.of(Gauged(source.coefficients, diffeo), source.span)
    if isinstance(source, LinearField) and isinstance(diffeo, Temporal):
        return LinearField.of(Slowed(source.coefficients, diffeo.tau), source.span)
    return VectorField(Pulled(source, diffeo), source.span)


@final
class Pulled(nn.Module):
    """F' = −(Dφ − F ∂_yτ)⁻¹ (∂_sφ − F ∂_sτ), which is (DΦ)⁻¹ F̂ with F̂'⁰ divided out.

    Args:
        field: F.
        diffeo: Φ.
    """

    def __init__(self, field: Field, diffeo: Diffeomorphism) -> None:
        super().__init__()
        self.field, self.diffeo = field, diffeo

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        tangent = self.diffeo.tangent(t, x)
        flow = per_sample(self.field, tangent.t, tangent.x)
        return solve_frame(tangent, flow, relative_flow(tangent, flow), t, x)


def spacetime_pullback(field: Function, diffeo: Diffeomorphism, s: Tensor, y: Tensor) -> Tensor:
    """F̂' = (DΦ)⁻¹ F̂∘Φ with F̂ = (1, F), before F̂'⁰ is divided out.

    Args:
        field: F(t, x).
        diffeo: Φ.
        s: time, [].
        y: points [*batch, d].

    Returns:
        [*batch, d + 1], time first.
    """
    tangent = diffeo.tangent(s, y)
    flow = per_sample(field, tangent.t, tangent.x)
    d = y.shape[-1]
    rate = tangent.time_rate.expand(y.shape[:-1])[..., None, None]
    row = torch.zeros_like(y) if tangent.time_gradient is None else tangent.time_gradient
    column = torch.zeros_like(y) if tangent.shift is None else tangent.shift
    frame = torch.eye(d, dtype=y.dtype, device=y.device) if tangent.frame is None else tangent.frame
    lower = torch.cat([column[..., None], frame.expand(*y.shape[:-1], d, d)], -1)
    whole = torch.cat([torch.cat([rate, row[..., None, :]], -1), lower], -2)
    return torch.linalg.solve(whole, torch.cat([torch.ones_like(flow[..., :1]), flow], -1)[..., None])[..., 0]


def relative_flow(tangent: Tangent, flow: Tensor) -> Tensor:
    """F ∂_sτ − ∂_sφ: how fast trajectories run through the new coordinates' points at rest, in the old frame.

    Args:
        tangent: of the diffeomorphism at points [*batch, d].
        flow: F there, [*batch, d].
    """
    rate = tangent.time_rate if tangent.time_rate.ndim == 0 else tangent.time_rate[..., None]
    return rate * flow if tangent.shift is None else rate * flow - tangent.shift


def solve_frame(tangent: Tangent, flow: Tensor, vector: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """(Dφ − F ∂_yτ)⁻¹ of a vector; Dφ⁻¹ if τ does not depend on y.

    Raises:
        FoldError: the matrix is singular or reverses orientation, with the point where it does.
    """
    if tangent.frame is None:
        return vector
    frame = tangent.frame
    if tangent.time_gradient is not None:
        frame = frame - flow[..., :, None] * tangent.time_gradient[..., None, :]
    folded = torch.linalg.det(frame.detach()) <= 0
    if known(folded.any()):  # connected to the identity, a diffeomorphism keeps orientation
        place = int(folded.reshape(-1).nonzero()[0]) if folded.ndim else 0
        _refuse_fold(s, y, place, "reverses orientation")
    try:
        if frame.ndim == 2:
            return torch.linalg.solve(frame, vector.reshape(-1, vector.shape[-1]).mT).mT.reshape(vector.shape)
        return torch.linalg.solve(frame, vector[..., None])[..., 0]
    except torch.linalg.LinAlgError as error:
        sizes = torch.linalg.svdvals(frame)[..., -1].reshape(-1)
        _refuse_fold(s, y, int(sizes.argmin()) if len(sizes) > 1 else 0, "is singular", error)


def _refuse_fold(s: Tensor, y: Tensor, place: int, why: str, cause: Exception | None = None) -> NoReturn:
    """Raises FoldError for a point, by its place in the batch."""
    where = y.reshape(-1, y.shape[-1])[place].tolist()
    moment = float(s) if s.ndim == 0 else float(s.reshape(-1)[place])
    what = f"the diffeomorphism folds: its Jacobian {why}"
    raise FoldError(what, f"t = {moment:.6g}, x = {short(where)}", "Make it smaller, or `check` it.") from cause


def _moved(jump: Jump, diffeo: Diffeomorphism) -> Jump:
    """The kick seen in new coordinates: y ↦ φ⁻¹(map(φ(y))), at the moment that goes to its own."""
    if not diffeo.keeps_slices:
        what = "a kick at one moment is none for a map whose time depends on the place"
        raise DiffeomorphismError(what, f"kick at {jump.time}", "Use maps with t = τ(s).")
    moment = float(diffeo.moment(diffeo.time(jump.time)))
    own = getattr(jump.map, "gauged", None)  # a map that knows its form in linear coordinates keeps it
    if own is not None and isinstance(diffeo, Affine):
        made = own(diffeo.at(diffeo.time(moment)[None])[0])
        if made is not None:
            return Jump(moment, made)
    return Jump(moment, jump.map if isinstance(diffeo, Temporal) else Conjugate(jump.map, diffeo, moment))


@final
class Conjugate(nn.Module):
    """y ↦ φ⁻¹(map(φ(y))) at one moment.

    Args:
        map: what happens in the old coordinates.
        diffeo: the change of coordinates.
        time: the moment in the new time.
    """

    def __init__(self, map: Callable[[Tensor], Tensor], diffeo: Diffeomorphism, time: float) -> None:
        super().__init__()
        self.map, self.diffeo, self.time = map, diffeo, time

    def forward(self, y: Tensor) -> Tensor:
        t, x = self.diffeo(y.new_tensor(self.time), y)
        return self.diffeo.invert(t, self.map(x))[1]


def lie_derivative(field: Function, space: Function | None = None, time: Function | None = None) -> VectorField:
    """The first-order change of a field under x ↦ x + ε(t, x), t ↦ t + ε⁰(t, x), with F⁰ = 1 restored.

    δF = (ε⁰∂_t + ε·∂)F − (∂_t + F·∂)ε + F (∂_t + F·∂)ε⁰; for ε⁰ = 0 this is F + ε^j∂_jF − F^j∂_jε − ∂_tε less F, (16).
    An ε that does not vanish at the end of time moves the output by −ε(T, x(T)) to first order.

    Args:
        field: F(t, x).
        space: ε, from times [] and points [..., d] to [..., d]; None for zero.
        time: ε⁰, to [...]; None for zero.

    Returns:
        δF as a field, on the span of the given one.
    """
    source = as_field(field)

    def change(t: Tensor, x: Tensor) -> Tensor:
        flow = source(t, x)
        total = torch.zeros_like(flow)
        if space is not None:
            epsilon, rate = push(space, (t, x), (torch.ones_like(t), flow))
            if epsilon.shape != x.shape:
                what = f"a generator ε(t, x) must return shifts {[*x.shape]}, and returned {[*epsilon.shape]}"
                raise DiffeomorphismError(what, "ε", "ε takes (t, x) and returns one shift for every point.")
            total = total + push(lambda points: source(t, points), (x,), (epsilon,))[1] - rate
        if time is not None:
            epsilon0, rate = push(time, (t, x), (torch.ones_like(t), flow))
            steady = push(lambda moment: source(moment, x), (t,), (torch.ones_like(t),))[1]
            total = total + epsilon0[..., None] * steady + rate[..., None] * flow
        return total

    return VectorField(change, source.span)


def trivial_direction(field: Function, rate: Function) -> tuple[Function, Function]:
    """ε^μ = η F̂^μ: flows that slide along the trajectories and change nothing, which Theorem 2.1 divides out.

    Args:
        field: F(t, x).
        rate: η, from (t, x) to [...]; zero at both ends of time.

    Returns:
        (ε, ε⁰), the arguments `space` and `time` of `lie_derivative`, which maps them to zero.
    """

    def space(t: Tensor, x: Tensor) -> Tensor:
        return rate(t, x)[..., None] * field(t, x)

    return space, rate


def acceleration(field: Function, t: Tensor, x: Tensor) -> Tensor:
    """(∂_t + F·∂)F, the second derivative of the trajectory through x, [..., d]."""
    return material_derivative(field, t, x, field(t, x))
