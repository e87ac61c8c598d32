"""A commutator-free Magnus integrator: a product of exponentials of weighted means of w.

Source: S. Blanes and P. C. Moan, Fourth- and sixth-order commutator-free Magnus integrators for linear and non-linear
dynamical systems, Appl. Numer. Math. 56 (2006) 1519; M. Thalhammer, SIAM J. Numer. Anal. 44 (2006) 851.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from torchgauge.ode.magnus_exponential import exponential
from torchgauge.ode.wilson_base import Method, Samples, column


@final
class CommutatorFree4(Method):
    """Order 4: two nodes, two exponentials."""

    name, order, group_preserving = "free4", 4, True
    nodes = (0.5 - 3**0.5 / 6, 0.5 + 3**0.5 / 6)

    def propagators(self, samples: Samples, steps: Tensor) -> Tensor:
        h = column(steps, samples.values)
        first, second = h * samples.node(0), h * samples.node(1)
        near, far = 1 / 4 + 3**0.5 / 6, 1 / 4 - 3**0.5 / 6
        return exponential(far * first + near * second) @ exponential(near * first + far * second)
