"""Correlators of ensembles: n-point functions, full or connected, with errors, by the best estimator that fits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.combinatorics import multisets, number_of_multisets
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.errors import EstimatorError, MomentError, PrecisionWarning
from torchgauge.fields.exact import exact
from torchgauge.fields.readouts import Shallow, normal_readout, read
from torchgauge.fields.request import Request
from torchgauge.fields.results import Correlator
from torchgauge.fields.sampling import Sampler, integrated, neurons, plain
from torchgauge.fields.streaming import Sums, fingerprint, run

Name = Literal["auto", "exact", "neurons", "readout", "plain"]
_GOOD_RULE = 1e-4  # relative error up to which a quadrature is chosen without being asked for
_ENOUGH_GROUPS, _HEAVY = 100, 0.45  # of the variance in one group: below 0.35 for bounded activations and ReLU
_MOST_TUPLES = 2_000_000
_SECTION = "docs/fields.md says what each estimator needs"


def correlator(
    ensemble: Ensemble,
    points: Tensor,
    n: int,
    *,
    connected: bool = True,
    outputs: Sequence[int] | int = 0,
    tuples: Tensor | Sequence[Sequence[int]] | None = None,
    estimator: Name = "auto",
    networks: int = 4096,
    precision: float | None = None,
    seed: int = 0,
    covariance: bool = False,
    workers: int = 1,
    file: str | Path | None = None,
    progress: bool | None = None,
) -> Correlator:
    """E[f_{o1}(x_{i1}) … f_{on}(x_{in})], or its connected part, at tuples of points.

    Args:
        ensemble: the ensemble.
        points: [n_points, inputs], or [n_points] for one input.
        n: 2 to 8 (1 gives the mean).
        connected: the cumulant, or the full correlator.
        outputs: output index of each slot, or one for all; outputs of several axes are counted through.
        tuples: index tuples [count, n]; all distinct ones by default.
        estimator: "exact", "neurons", "readout", "plain"; "auto" takes the first that fits, in this order.
        networks: how many to sample, rounded up to whole groups (256 for "readout" and "plain"). Unused by "exact".
        precision: wanted relative error of every value. Sampling stops once it is reached; a warning says how many
            networks it would take where `networks` are too few.
        seed: of the ensemble.
        covariance: also keep the covariance of the values.
        workers: processes; the result does not depend on it.
        file: keep partial sums here, and take them up again; with more `networks` a finished run goes on.
        progress: a bar on standard error; by default only on a terminal.

    Raises:
        InputError: points, tuples or outputs that do not fit.
        EstimatorError: the estimator does not fit the ensemble.
        MomentError: the laws lack the moments that the average needs, or outputs that are not finite.
        RunFileError: a file that is damaged or of another run.

    Warns:
        PrecisionWarning: too few networks for the asked precision; error bars without the moments they need; a tail so
            heavy that one group of networks makes up most of the variance (Gauss nets).
    """
    request = _request(ensemble, points, n, connected, outputs, tuples)
    readout = read(ensemble, request.points)
    name, reason = _choose(request, estimator, readout)
    if name == "exact":
        found = _exactly(request, readout, estimator == "exact")
        if isinstance(found, Correlator):
            return _judged(found, precision)
        name, reason = "neurons", f"one hidden layer of independent neurons; no exact rule: {found}"
    ensemble.require_moments(n, f"the {n}-point function")
    _warn_of_errors(ensemble, n)
    if name == "neurons":
        assert isinstance(readout, Shallow)
        sampler = neurons(request, readout, seed, covariance)
    elif name == "readout":
        assert readout is not None
        sampler = integrated(request, readout, seed, covariance)
    else:
        sampler = plain(request, seed, covariance)
    sums = _sampled(sampler, request, name, networks, precision, seed, workers, file, progress)
    result = Correlator(
        request.tuples, sums.mean, sums.standard_error(), request.points, request.outputs, connected, name, "sampled",
        reason, sums.count * sampler.group, sums.covariance(),
    )  # fmt: skip
    return _judged(result, precision)


def _request(
    ensemble: Ensemble,
    points: Tensor,
    n: int,
    connected: bool,
    outputs: Sequence[int] | int,
    tuples: Tensor | Sequence[Sequence[int]] | None,
) -> Request:
    points = ensemble.as_points(points)
    if not 1 <= n <= 8:
        raise InputError(f"n = {n}", remedy="n is 1 to 8")
    chosen = (outputs,) * n if isinstance(outputs, int) else tuple(outputs)
    if len(chosen) != n or min(chosen) < 0:
        raise InputError(f"outputs {chosen} for {n} slots", remedy="give one output index, or one for each slot")
    if tuples is not None:
        at = torch.as_tensor(tuples, dtype=torch.long)
        if at.ndim != 2 or at.shape[1] != n or not len(at) or int(at.min()) < 0 or int(at.max()) >= len(points):
            raise InputError(
                f"tuples of shape {list(at.shape)}", remedy=f"rows of {n} indices of points, 0 to {len(points) - 1}"
            )
    elif len(set(chosen)) == 1:
        _bounded(number_of_multisets(len(points), n), len(points), n)
        at = multisets(len(points), n)
    else:
        _bounded(len(points) ** n, len(points), n)
        at = torch.cartesian_prod(*[torch.arange(len(points))] * n).reshape(-1, n)
    return Request(ensemble, points, at, chosen, connected)


def _bounded(count: int, points: int, n: int) -> None:
    if count > _MOST_TUPLES:
        raise InputError(
            f"{points} points have {count:.2g} tuples of {n}", remedy="name the ones you want: tuples=[[0, 1, …], …]"
        )


def _choose(request: Request, estimator: Name, readout: object) -> tuple[str, str]:
    """The estimator, and why."""
    shallow, linear = isinstance(readout, Shallow), readout is not None
    normal = linear and normal_readout(readout)  # type: ignore[arg-type]
    if linear and max(request.outputs) >= readout.outputs:  # type: ignore[attr-defined]
        raise InputError(f"outputs {request.outputs}", remedy=f"the networks have {readout.outputs} outputs")  # type: ignore[attr-defined]
    fits = {"exact": shallow, "neurons": shallow, "readout": normal, "plain": True}
    why = {
        "exact": "one hidden layer of independent neurons",
        "neurons": "one hidden layer of independent neurons",
        "readout": "a last linear layer with normal weights",
        "plain": "no structure of the networks is known",
    }
    if estimator == "auto":
        name = next(name for name, fit in fits.items() if fit)
        return name, why[name]
    if estimator not in fits:
        raise InputError(f"no estimator {estimator!r}", remedy=f"one of auto, {', '.join(fits)}")
    if not fits[estimator]:
        need = why[estimator].replace("no structure", "structure")
        raise EstimatorError(f"estimator {estimator!r} needs {need}", request.ensemble.name, _SECTION)
    return estimator, "asked for"


def _exactly(request: Request, readout: object, asked: bool) -> Correlator | str:
    """The exact correlator; or, unless it was asked for, why there is none."""
    assert isinstance(readout, Shallow)
    try:
        values, errors, rule = exact(request, readout)
    except EstimatorError as error:
        if asked:
            raise
        return error.what
    size = values.abs().max().clamp_min(1e-300)
    if not asked and rule == "quadrature" and float(errors.max() / size) > _GOOD_RULE:
        return f"the quadrature is off by {float(errors.max() / size):.0e}"
    reason = "asked for" if asked else f"one hidden layer, {readout.activation.name} at normal preactivations"
    return Correlator(
        request.tuples, values, errors, request.points, request.outputs, request.connected, "exact", rule, reason
    )


def _sampled(
    sampler: Sampler,
    request: Request,
    name: str,
    networks: int,
    precision: float | None,
    seed: int,
    workers: int,
    file: str | Path | None,
    progress: bool | None,
) -> Sums:
    if networks < 1:
        raise InputError(f"networks={networks}", remedy="sample at least one network")
    groups = max(2, math.ceil(networks / sampler.group))
    jobs, rest = divmod(groups, sampler.groups)
    identity, probe = "", None
    if file is not None:
        probe = _probe(request, seed)
        ensemble = request.ensemble
        identity = fingerprint(
            ensemble.name, repr(ensemble.module), ensemble.laws, list(ensemble.joint.items()), request.points,
            request.tuples, request.outputs, request.connected, name, seed, sampler.group, sampler.groups,
            sampler.covariance,
        )  # fmt: skip

    def enough(sums: Sums) -> bool:
        return sums.count >= 8 and bool((sums.standard_error() <= (precision or 0) * sums.mean.abs()).all())

    sums = run(
        sampler, jobs, workers=workers, file=file, identity=identity, probe=probe, progress=progress,
        enough=enough if precision else None, tail=partial(sampler, jobs, rest) if rest else None,
    )  # fmt: skip
    if not bool(torch.isfinite(sums.mean).all()):
        raise MomentError(
            f"the average over {sums.count * sampler.group} networks is not finite: some outputs overflow or are nan",
            request.ensemble.name,
            "look at ensemble.outputs(points, 100, seed=0); take laws with lighter tails, or smaller widths",
        )
    share = sums.largest_share()
    if sums.count >= _ENOUGH_GROUPS and share > _HEAVY:
        warnings.warn(
            f"one of {sums.count} groups of networks makes up {share:.0%} of the variance: the estimate has a heavy "
            "tail that these samples miss, so values and error bars are likely too small; take "
            'estimator="exact" where it fits',
            PrecisionWarning,
            stacklevel=4,
        )
    return sums


def _probe(request: Request, seed: int) -> Tensor:
    """Some outputs: names and laws in print do not tell a function, a buffer or an energy from another."""
    ensemble = request.ensemble
    starts = dict.fromkeys((0, max(ensemble.block - 4, 0)))
    return torch.stack([ensemble.outputs(request.points, 4, seed=seed, start=start) for start in starts])


def _judged(result: Correlator, precision: float | None) -> Correlator:
    """Warn where the asked precision was not reached."""
    if precision is None or not len(result.values):
        return result
    relative = (result.error / result.values.abs().clamp_min(1e-300)).nan_to_num(math.inf)
    worst = float(relative[result.values != 0].max()) if bool((result.values != 0).any()) else 0.0
    if worst > precision:
        if result.networks:
            need = result.networks * (worst / precision) ** 2
            advice = f"about {need:.2g} networks would do, by the measured variance; {result.networks} were sampled"
        else:
            advice = 'take estimator="neurons"'
        warnings.warn(
            f"the worst relative error is {worst:.2g}, not {precision:g}: {advice}", PrecisionWarning, stacklevel=3
        )
    return result


def _warn_of_errors(ensemble: Ensemble, n: int) -> None:
    try:
        ensemble.require_moments(2 * n, "an error bar")
    except MomentError as error:
        warnings.warn(
            f"the error bars mean little: {error.what.split(':')[0]} ({error.where})", PrecisionWarning, stacklevel=4
        )
