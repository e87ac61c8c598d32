"""The exact estimator: one hidden layer at normal preactivations, at every width.

A connected correlator is N times the joint cumulant of what one neuron contributes (docs/fields.md, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchgauge.fields.combinatorics import Term, alternating, block_weight, exact_terms, falling
from torchgauge.fields.errors import EstimatorError
from torchgauge.fields.gaussian import Expectation, expectation
from torchgauge.fields.monomials import Plan
from torchgauge.fields.readouts import Shallow
from torchgauge.fields.request import Request, bias_cumulant, moment_of, with_bias


def exact(request: Request, readout: Shallow) -> tuple[Tensor, Tensor, str]:
    """Values, error bounds (of the quadrature) and the name of the rule.

    Raises:
        EstimatorError: no rule fits these points.
    """
    found = readout.covariance(request.points)
    if found is None:
        raise EstimatorError("the preactivations are not jointly normal", remedy='use estimator="neurons"')
    if readout.activation.name == "kinked":
        raise EstimatorError("no exact rule for this activation", remedy='use estimator="neurons"')
    covariance, phase = found
    width = readout.width
    if request.connected:
        weight = block_weight(request.outputs, lambda k: moment_of(readout.weight, k))
        terms = exact_terms(request.n, weight, lambda k: width * alternating(k))
    else:
        terms = with_bias(lambda n, w: exact_terms(n, w, lambda k: falling(width, k)), request, readout)
    try:
        rules = [(torch.arange(len(request.tuples)), expectation(readout.activation, covariance, phase))]
        local = [request.tuples]
    except EstimatorError:
        rules, local = _tuple_by_tuple(request, readout, covariance, phase)
    values = torch.zeros(len(request.tuples), dtype=torch.float64)
    errors = torch.zeros_like(values)
    for (where, rule), tuples in zip(rules, local, strict=True):
        values[where], errors[where] = _with_rule(terms, rule, int(tuples.max()) + 1, tuples)
    constant = sum(c for c, blocks in terms if not blocks)
    shift = bias_cumulant(request, readout.bias) if request.connected else constant
    return values + shift, errors, rules[0][1].name


def _with_rule(terms: list[Term], rule: Expectation, variables: int, tuples: Tensor) -> tuple[Tensor, Tensor]:
    plan = Plan(variables, tuples, [t for t in terms if t[1]])
    moments = rule.moments(plan)
    error = rule.error(plan)
    moved = plan.combine({d: m + error[d] for d, m in moments.items()})
    values = plan.combine(moments)
    rounding = 1e-15 * plan_size(plan, moments)
    return values, (moved - values).abs() + rounding


def plan_size(plan: Plan, moments: dict[int, Tensor]) -> Tensor:
    """Σ |terms|: what rounding errors are relative to, where terms cancel."""
    positive = Plan(plan.variables, plan.tuples, [(abs(c), b) for c, b in plan.terms])
    return positive.combine({d: m.abs() for d, m in moments.items()})


def _tuple_by_tuple(
    request: Request, readout: Shallow, covariance: Tensor, phase: bool
) -> tuple[list[tuple[Tensor, Expectation]], list[Tensor]]:
    """A rule for each set of points that occurs together, where all points at once are too many."""
    sets: dict[tuple[int, ...], list[int]] = {}
    for row, indices in enumerate(request.tuples.tolist()):
        sets.setdefault(tuple(sorted(set(indices))), []).append(row)
    if len(sets) > 2000:
        raise EstimatorError(f"{len(sets)} sets of points, each with a quadrature", remedy='use estimator="neurons"')
    rules, local = [], []
    for chosen, rows in sets.items():
        at = torch.tensor(chosen)
        rules.append((torch.tensor(rows), expectation(readout.activation, covariance[at[:, None], at], phase)))
        local.append(torch.searchsorted(at, request.tuples[rows]))
    return rules, local
