"""Magnus integrators: each slice is the exponential of a sum of commutators, so lines stay in the group.

With α_k = h^k w^{(k−1)}/(k−1)! at the middle of the slice, from Gauss–Legendre nodes:
order 4, Ω = α_1 − [α_1, α_2]/12; order 6 with three commutators. Source: S. Blanes, F. Casas, J. A. Oteo, J. Ros,
The Magnus expansion and some of its applications, Phys. Rep. 470 (2009) 151, section 5.4.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from torchgauge.ode.magnus_exponential import exponential
from torchgauge.ode.wilson_base import Method, Samples, column


def _commutator(a: Tensor, b: Tensor) -> Tensor:
    return a @ b - b @ a


@final
class Magnus4(Method):
    """Order 4: two nodes, one commutator."""

    name, order, group_preserving = "magnus4", 4, True
    nodes = (0.5 - 3**0.5 / 6, 0.5 + 3**0.5 / 6)

    def propagators(self, samples: Samples, steps: Tensor) -> Tensor:
        h = column(steps, samples.values)
        first, second = h * samples.node(0), h * samples.node(1)
        a1, a2 = (first + second) / 2, 3**0.5 * (second - first)
        return exponential(a1 - _commutator(a1, a2) / 12)


@final
class Magnus6(Method):
    """Order 6: three nodes, three commutators."""

    name, order, group_preserving = "magnus6", 6, True
    nodes = (0.5 - 15**0.5 / 10, 0.5, 0.5 + 15**0.5 / 10)

    def propagators(self, samples: Samples, steps: Tensor) -> Tensor:
        h = column(steps, samples.values)
        first, a1, last = h * samples.node(0), h * samples.node(1), h * samples.node(2)
        a2, a3 = 15**0.5 / 3 * (last - first), 10 / 3 * (last - 2 * a1 + first)
        c1 = _commutator(a1, a2)
        c2 = _commutator(a1, 2 * a3 + c1) / -60
        return exponential(a1 + a3 / 12 + _commutator(c1 - 20 * a1 - a3, a2 + c2) / 240)
