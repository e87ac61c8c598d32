"""What is asked of an estimator, and what the output bias adds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from torchgauge.fields.combinatorics import Term, alternating, block_weight, exact_terms, slots
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.errors import EstimatorError
from torchgauge.fields.laws import Law
from torchgauge.fields.readouts import Readout


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        ensemble: the ensemble.
        points: [n_points, ...].
        tuples: index tuples [count, n].
        outputs: the output index of each slot.
        connected: cumulants, or full correlators.
    """

    ensemble: Ensemble
    points: Tensor
    tuples: Tensor
    outputs: tuple[int, ...]
    connected: bool

    @property
    def n(self) -> int:
        """Number of slots."""
        return self.tuples.shape[1]


# -- bias --------------------------------------------------------------------------------------------------------------
def moment_of(law: Law | None, order: int) -> float:
    """E[b^order]; zero for a missing law and a positive order."""
    if law is None:
        return float(order == 0)
    value = law.moment(order)
    if value is None:
        raise EstimatorError(f"{law} has no moments in closed form", remedy='use estimator="plain"')
    return value


def cumulant_of(law: Law | None, order: int) -> float:
    """The cumulant of a law from its moments."""
    terms = exact_terms(order, lambda mask: moment_of(law, mask.bit_count()), alternating)
    return math.fsum(coefficient for coefficient, _ in terms)


def bias_cumulant(request: Request, bias: Law | None) -> float:
    """What the output bias adds to a connected correlator: its cumulant, where all outputs are one."""
    return cumulant_of(bias, request.n) if len(set(request.outputs)) == 1 else 0.0


def with_bias(
    terms: Callable[[int, Callable[[int], float]], list[Term]], request: Request, readout: Readout
) -> list[Term]:
    """Terms of a full correlator: the bias takes any subset of slots, the neurons take the rest."""
    weight = block_weight(request.outputs, lambda k: moment_of(readout.weight, k))
    shift = block_weight(request.outputs, lambda k: moment_of(readout.bias, k))
    full, out = (1 << request.n) - 1, []
    for taken in range(full + 1):
        factor = shift(taken) if taken else 1.0
        rest = slots(full ^ taken)
        if not factor:
            continue
        if not rest:
            out.append((factor, ()))
            continue

        def inner(mask: int, rest: list[int] = rest) -> float:
            return weight(_lifted(mask, rest))

        for coefficient, blocks in terms(len(rest), inner):
            out.append((factor * coefficient, tuple(_lifted(block, rest) for block in blocks)))
    return out


def _lifted(mask: int, rest: list[int]) -> int:
    return sum(1 << rest[s] for s in slots(mask))
