"""Estimators from samples.

- `neurons`: one hidden layer; a U-statistic over neurons, the readout and the bias integrated by hand.
- `integrated`: any depth; the readout and the last bias integrated by hand, the hidden layers sampled.
- `plain`: anything; averages over outputs of networks (k-statistics where connected).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.combinatorics import (
    Term,
    alternating,
    block_weight,
    falling,
    most_blocks,
    multisets,
    pairings,
    rank,
    slots,
    unbiased_terms,
)
from torchgauge.fields.monomials import Plan
from torchgauge.fields.readouts import Readout, Shallow
from torchgauge.fields.request import Request, bias_cumulant, moment_of, with_bias
from torchgauge.fields.streaming import Sums

_JOB_NUMBERS = 2**19
_NEURONS_PER_GROUP = 256
NETWORKS_PER_GROUP = 256


@dataclass(frozen=True)
class Sampler:
    """One estimate from a group of networks; groups are independent.

    Attributes:
        group: networks per group.
        groups: groups per job.
        estimate: first network, networks → estimates [groups, count of tuples].
        constant: added to every estimate.
    """

    group: int
    groups: int
    estimate: Callable[[int, int], Tensor]
    constant: float = 0.0
    covariance: bool = False

    def __call__(self, job: int, groups: int | None = None) -> Sums:
        """The sums of one job, or of its first groups."""
        networks = self.group * (groups or self.groups)
        parts = self.estimate(job * self.group * self.groups, networks)
        return Sums.of(parts + self.constant, self.covariance)


def _groups(request: Request, group: int, numbers: int) -> int:
    """Groups per job: whole blocks of the ensemble, so that none is drawn twice, unless these hold too much.

    Args:
        request: whose ensemble is sampled.
        group: networks per group, a power of two as the blocks are.
        numbers: that each network adds to what a job holds.
    """
    unit = max(group, request.ensemble.block)
    if unit * numbers > 16 * _JOB_NUMBERS:
        unit = group
    return max(1, _JOB_NUMBERS // (numbers * unit)) * (unit // group)


def neurons(request: Request, readout: Shallow, seed: int, covariance: bool) -> Sampler:
    """The U-statistic over neurons; several narrow networks share one, since all their neurons are independent."""
    weight = block_weight(request.outputs, lambda k: moment_of(readout.weight, k))
    need = max(1, most_blocks(request.n, weight))
    pool = _NEURONS_PER_GROUP if request.n <= 4 else 4 * _NEURONS_PER_GROUP
    group = 1 << math.ceil(math.log2(max(1.0, max(need, pool) / readout.width)))
    draws, width = group * readout.width, readout.width
    if request.connected:
        terms = unbiased_terms(request.n, weight, lambda k: width * alternating(k), draws)
        constant = bias_cumulant(request, readout.bias)
    else:
        terms = with_bias(lambda n, w: unbiased_terms(n, w, lambda k: falling(width, k), draws), request, readout)
        constant = sum(c for c, blocks in terms if not blocks)
    plan = Plan(len(request.points), request.tuples, [t for t in terms if t[1]])
    groups = _groups(request, group, readout.width * plan.columns())

    def estimate(first: int, networks: int) -> Tensor:
        if not plan.terms:  # odd correlators of symmetric readouts vanish
            return torch.zeros(networks // group, len(request.tuples), dtype=torch.float64)
        params = request.ensemble.sample(networks, seed=seed, start=first, only=readout.hidden)
        h = readout.features(params, request.points).double()  # [networks, points, width]
        h = h.transpose(1, 2).reshape(networks // group, draws, len(request.points))
        return plan.combine(plan.moments(h))

    return Sampler(group, groups, estimate, constant, covariance)


def integrated(request: Request, readout: Readout, seed: int, covariance: bool) -> Sampler:
    """The readout and the output bias integrated out: cumulants of K̂ = σ_b² + (σ_w²/N) Σ_j h_j h_j over networks.

    Given the hidden layers f is normal with covariance K̂, so by the law of total cumulance a connected correlator is
    the sum over pairings of the joint cumulants of the K̂ (docs/fields.md, section 5).
    """
    n, count = request.n, len(request.points)
    pairs = multisets(count, 2)
    group = NETWORKS_PER_GROUP
    half = n // 2
    terms = _pair_terms(half, group, request.connected)
    legal = (
        [p for p in pairings((1 << n) - 1) if all(_same_output(pair, request.outputs) for pair in p)]
        if n % 2 == 0
        else []
    )
    wanted = [_pair_tuples(request.tuples, pairing, count) for pairing in legal]
    every = torch.cat(wanted) if wanted else torch.zeros(0, half, dtype=torch.long)
    unique, place = torch.unique(every, dim=0, return_inverse=True)
    place = place.reshape(len(legal), len(request.tuples))
    plan = Plan(len(pairs), unique, terms)
    weight_variance, bias_variance = moment_of(readout.weight, 2), moment_of(readout.bias, 2)
    groups = _groups(request, group, count * readout.width + plan.columns())

    def estimate(first: int, networks: int) -> Tensor:
        kernel = bias_variance + weight_variance * _inner_products(request, readout, seed, first, networks)
        y = kernel[:, pairs[:, 0], pairs[:, 1]].reshape(networks // group, group, len(pairs))
        if not legal:
            return torch.zeros(networks // group, len(request.tuples), dtype=torch.float64)
        shift = y.mean(1, keepdim=True) if request.connected and half > 1 else torch.zeros(())
        cumulants = plan.combine(plan.moments(y - shift))
        total = torch.zeros(networks // group, len(request.tuples), dtype=torch.float64)
        for row in place:
            total += cumulants[:, row]
        return total

    return Sampler(group, groups, estimate, 0.0, covariance)


def _inner_products(request: Request, readout: Readout, seed: int, first: int, networks: int) -> Tensor:
    """Σ_j h_j h_j [networks, points, points], in batches that bound the memory however wide the networks are."""
    ensemble, points, parts = request.ensemble, request.points, []
    size = ensemble.batch(len(points))
    for start in range(first, first + networks, size):
        count = min(size, first + networks - start)
        params = ensemble.sample(count, seed=seed, start=start, only=readout.hidden)
        for piece in ensemble.pieces(params, len(points)):
            h = readout.features(piece, points).double()
            parts.append(h @ h.mT)
    return torch.cat(parts)


@lru_cache(maxsize=32)
def _pair_terms(half: int, group: int, connected: bool) -> list[Term]:
    if not connected:
        return [(1.0, ((1 << half) - 1,))]
    terms = unbiased_terms(half, lambda mask: 1.0, alternating, group)
    return [t for t in terms if half == 1 or all(b.bit_count() > 1 for b in t[1])]  # centred: no single ones


def _same_output(pair: int, outputs: tuple[int, ...]) -> bool:
    a, b = slots(pair)
    return outputs[a] == outputs[b]


def _pair_tuples(tuples: Tensor, pairing: tuple[int, ...], points: int) -> Tensor:
    columns = [rank(tuples[:, slots(pair)].sort(1).values, points) for pair in pairing]
    return torch.stack(columns, 1).sort(1).values


def plain(request: Request, seed: int, covariance: bool) -> Sampler:
    """Averages over networks: products of outputs, or the unbiased k-statistics of them where connected."""
    group, n, count = NETWORKS_PER_GROUP, request.n, len(request.points)
    used = sorted(set(request.outputs))
    place = torch.tensor([used.index(o) for o in request.outputs])
    tuples = request.tuples * len(used) + place  # a variable is a pair (point, output)
    if request.connected:
        terms = unbiased_terms(n, lambda mask: 1.0, alternating, group)
        terms = [t for t in terms if n == 1 or all(b.bit_count() > 1 for b in t[1])]
    else:
        terms = [(1.0, ((1 << n) - 1,))]
    plan = Plan(count * len(used), tuples, terms)
    groups = _groups(request, group, plan.columns() + count * 8)

    def estimate(first: int, networks: int) -> Tensor:
        out = request.ensemble.outputs(request.points, networks, seed=seed, start=first).flatten(2)
        if used[-1] >= out.shape[2]:
            raise InputError(f"outputs {request.outputs}", remedy=f"the networks have {out.shape[2]} outputs")
        out = out.to(torch.complex128 if out.is_complex() else torch.float64)
        y = out[:, :, used].reshape(networks // group, group, count * len(used))
        y = y - y.mean(1, keepdim=True) if request.connected and n > 1 else y
        return plan.combine(plan.moments(y))

    return Sampler(group, groups, estimate, 0.0, covariance)
