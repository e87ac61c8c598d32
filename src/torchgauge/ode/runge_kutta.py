"""Explicit Runge–Kutta methods for the matrix equation dW/dt = w(t) W, as data.

For this equation only the order conditions of the words b C^{a_1} A C^{a_2} A ... C^{a_n} 1 count, not those of every
rooted tree. Cooper and Verner's method of order 8 suits it well: ten products per slice, five nodes (those of Lobatto
quadrature, of which neighbouring slices share one), and sparse rows. On smooth w its error is that of DOP853, which
needs eleven products and twelve nodes.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from torchgauge.ode.runge_kutta_kernel import KERNEL, Tableau, propagate_plainly, transport
from torchgauge.ode.wilson_base import Method, Samples, transformed


@final
class RungeKutta(Method):
    """An explicit Runge–Kutta method.

    Args:
        name: of the method.
        order: its order.
        rows: the lower triangle of A, row by row.
        weights: b.
        store: order in which stages are kept, so that what a row reads lies together.

    Attributes:
        products: matrix products of a slice.
    """

    def __init__(
        self,
        name: str,
        order: int,
        rows: tuple[tuple[float, ...], ...],
        weights: tuple[float, ...],
        store: tuple[int, ...] = (),
    ) -> None:
        self.name, self.order = name, order
        self.tableau = Tableau.of(rows, weights, store or tuple(range(len(weights))))
        self.nodes = self.tableau.nodes
        self.products = self.tableau.stages - 1

    def propagators(self, samples: Samples, steps: Tensor) -> Tensor:
        if steps.requires_grad or transformed():
            return propagate_plainly(self.tableau, samples, steps)
        return KERNEL.propagate(self.tableau, samples, steps)

    @torch.no_grad()
    def transport(self, samples: Samples, steps: Tensor, vectors: Tensor) -> Tensor:
        return transport(self.tableau, samples, steps, vectors)


def _classical() -> RungeKutta:
    """Kutta's method of order 4, three products per slice."""
    return RungeKutta("rk4", 4, ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def _sixth() -> RungeKutta:
    """A method of order 6 with seven stages on the four Lobatto nodes (Butcher 1964; Hammud 2001), six products."""
    q = 5**0.5
    rows = (
        (),
        ((5 - q) / 10,),
        (-q / 10, (5 + 2 * q) / 10),
        ((-15 + 7 * q) / 20, (-1 + q) / 4, (15 - 7 * q) / 10),
        ((5 - q) / 60, 0, 1 / 6, (15 + 7 * q) / 60),
        ((5 + q) / 60, 0, (9 - 5 * q) / 12, 1 / 6, (-5 + 3 * q) / 10),
        (1 / 6, 0, (-55 + 25 * q) / 12, (-25 - 7 * q) / 12, 5 - 2 * q, (5 + q) / 2),
    )
    return RungeKutta("rk6", 6, rows, (1 / 12, 0, 0, 0, 5 / 12, 5 / 12, 1 / 12), (1, 0, 2, 3, 4, 5, 6))


def _eighth() -> RungeKutta:
    """Cooper and Verner's method of order 8 with eleven stages on the five Lobatto nodes (1972), ten products.

    Source: G. J. Cooper and J. H. Verner, Some explicit Runge–Kutta methods of high order, SIAM J. Numer. Anal. 9
    (1972) 389.
    """
    s = 21**0.5
    rows = (
        (),
        (1 / 2,),
        (1 / 4, 1 / 4),
        (1 / 7, (-7 - 3 * s) / 98, (21 + 5 * s) / 49),
        ((11 + s) / 84, 0, (18 + 4 * s) / 63, (21 - s) / 252),
        ((5 + s) / 48, 0, (9 + s) / 36, (-231 + 14 * s) / 360, (63 - 7 * s) / 80),
        ((10 - s) / 42, 0, (-432 + 92 * s) / 315, (633 - 145 * s) / 90, (-504 + 115 * s) / 70, (63 - 13 * s) / 35),
        (1 / 14, 0, 0, 0, (14 - 3 * s) / 126, (13 - 3 * s) / 63, 1 / 9),
        (1 / 32, 0, 0, 0, (91 - 21 * s) / 576, 11 / 72, (-385 - 75 * s) / 1152, (63 + 13 * s) / 128),
        (
            1 / 14,
            0,
            0,
            0,
            1 / 9,
            (-733 - 147 * s) / 2205,
            (515 + 111 * s) / 504,
            (-51 - 11 * s) / 56,
            (132 + 28 * s) / 245,
        ),
        (
            *(0, 0, 0, 0, (-42 + 7 * s) / 18, (-18 + 28 * s) / 45),
            *((-273 - 53 * s) / 72, (301 + 53 * s) / 72, (28 - 28 * s) / 45, (49 - 7 * s) / 18),
        ),
    )
    weights = (1 / 20, 0, 0, 0, 0, 0, 0, 49 / 180, 16 / 45, 49 / 180, 1 / 20)
    return RungeKutta("rk8", 8, rows, weights, (2, 1, 0, 3, 4, 5, 6, 7, 8, 9, 10))


RK4, RK6, RK8 = _classical(), _sixth(), _eighth()
