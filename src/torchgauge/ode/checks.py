"""Is a map a diffeomorphism of spacetime that fixes both ends? Checked at sampled points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchgauge.ode.diffeomorphism import Diffeomorphism, short
from torchgauge.ode.errors import BoundaryError, FoldError, TimeOrderError
from torchgauge.ode.pullback import spacetime_pullback


@final
@dataclass(frozen=True)
class Health:
    """What `check` measured.

    Attributes:
        boundary: the largest distance that a point is moved at either end of time, relative to the size of the points.
        smallest: the smallest singular value of ∂φ/∂y.
        condition: the largest condition number of ∂φ/∂y.
        slowest: the smallest ∂τ/∂s.
        points: how many points of spacetime were looked at.
    """

    boundary: float
    smallest: float
    condition: float
    slowest: float
    points: int


@torch.no_grad()
def check(
    diffeo: Diffeomorphism,
    points: Tensor,
    times: int = 33,
    tolerance: float | None = None,
    field: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Health:
    """Looks at a diffeomorphism where it is sampled.

    Args:
        diffeo: Φ.
        points: y, [n, d]: where the field lives.
        times: how many moments, equally spaced, both ends included.
        tolerance: of the boundary condition; by default 10⁴ roundings of the points' dtype.
        field: F, to see whether its trajectories move forward in the new time too, which is a condition only where τ
            depends on y: F̂'⁰ > 0.

    Returns:
        What was measured. Nothing is said of points in between.

    Raises:
        BoundaryError: not the identity at the start or at the end.
        FoldError: ∂φ/∂y is singular or reverses orientation, or a number is not finite.
        TimeOrderError: ∂τ/∂s ≤ 0; or det DΦ ≤ 0 or F̂'⁰ ≤ 0 where τ depends on y.
    """
    if tolerance is None:
        tolerance = 1e4 * torch.finfo(points.dtype).eps
    boundary = max(_boundary(diffeo, end, points, tolerance) for end in diffeo.span)
    smallest, condition, slowest = float("inf"), 0.0, float("inf")
    for s in torch.linspace(*diffeo.span, times, dtype=points.dtype, device=points.device):
        tangent = diffeo.tangent(s, points)
        rate = tangent.time_rate.expand(points.shape[:-1])
        _refuse(~(rate > 0), s, points, TimeOrderError, "time stands still or runs backwards: ∂τ/∂s ≤ 0")
        slowest = min(slowest, float(rate.min()))
        if tangent.frame is None:
            smallest, condition = min(smallest, 1.0), max(condition, 1.0)
            continue
        frame = tangent.frame.expand(*points.shape, points.shape[-1])
        values = torch.linalg.svdvals(torch.nan_to_num(frame))
        folded = ~torch.isfinite(frame).all(-1).all(-1) | (
            values[..., -1] <= torch.finfo(points.dtype).eps * values[..., 0]
        )
        folded = folded | (torch.linalg.det(torch.nan_to_num(frame)) <= 0)
        _refuse(folded, s, points, FoldError, "the map folds: its spatial Jacobian is singular or reverses orientation")
        if tangent.time_gradient is not None and tangent.shift is not None:
            top = torch.cat([rate[..., None, None], tangent.time_gradient[..., None, :]], -1)
            whole = torch.cat([top, torch.cat([tangent.shift[..., None], frame], -1)], -2)
            _refuse(torch.linalg.det(whole) <= 0, s, points, TimeOrderError, "the map reverses spacetime: det DΦ ≤ 0")
            if field is not None:
                forward = spacetime_pullback(field, diffeo, s, points)[..., 0]
                _refuse(~(forward > 0), s, points, TimeOrderError, "a trajectory runs backwards in the new time")
        smallest = min(smallest, float(values[..., -1].min()))
        condition = max(condition, float((values[..., 0] / values[..., -1]).max()))
    return Health(boundary, smallest, condition, slowest, times * points.shape[:-1].numel())


def _boundary(diffeo: Diffeomorphism, end: float, points: Tensor, tolerance: float) -> float:
    """How far the map is from the identity at one end."""
    s = points.new_tensor(end)
    t, x = diffeo(s, points)
    size = points.abs().amax().clamp(min=1.0)
    moved = torch.maximum((x - points).abs().amax(-1), (t - s).abs().expand(points.shape[:-1]))
    name = "start" if end == diffeo.span[0] else "end"
    what = f"the map is not the identity at the {name} of time: it moves a point by {float(moved.max()):.2e}"
    _refuse(~(moved <= tolerance * size), s, points, BoundaryError, what)
    return float(moved.max() / size)


def _refuse(bad: Tensor, s: Tensor, points: Tensor, error: type[Exception], what: str) -> None:
    """Raises the error at the first bad point."""
    if not bool(bad.any()):
        return
    index = int(bad.reshape(-1).nonzero()[0])
    place = short(points.reshape(-1, points.shape[-1])[index].tolist())
    remedy = {
        BoundaryError: "Multiply what it adds by a function of time that vanishes at both ends, such as `bump`.",
        FoldError: "Make the map smaller, or leave out the points where it is not meant to be used.",
        TimeOrderError: "Use an increasing τ, and one that varies less from place to place.",
    }[error]
    raise error(what, f"t = {float(s):.6g}, x = {place}", remedy)  # pyright: ignore[reportCallIssue]
