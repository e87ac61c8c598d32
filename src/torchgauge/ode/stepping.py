"""A fixed-step integrator whose code has no branches, so that it can be differentiated and batched by torch.func."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def runge_kutta(field: Callable[[Tensor, Tensor], Tensor], start: Tensor, end: Tensor, x: Tensor, steps: int) -> Tensor:
    """The classical Runge–Kutta method of order 4.

    Args:
        field: F(t, x), times [] and points [..., d].
        start, end: times [], in any order.
        x: points at the start, [..., d].
        steps: number of equal steps.

    Returns:
        The points at the end.
    """
    h = (end - start) / steps
    for k in range(steps):
        t = start + k * h
        k1 = field(t, x)
        k2 = field(t + h / 2, x + h / 2 * k1)
        k3 = field(t + h / 2, x + h / 2 * k2)
        k4 = field(t + h, x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x
