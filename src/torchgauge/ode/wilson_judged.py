"""Lines on a mesh that is guessed, and then judged: compared with what a method of higher order makes of vectors.

The error is measured on the finished lines, rounding included, so that the method may compute in mixed precision. A
vector costs d² where a line costs d³. The judge reads w at nodes of its own. Of small matrices a batch half as long
again costs little more, so that they are judged by slices twice as long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, isfinite

import numpy as np
import torch
from torch import Tensor

from torchgauge.ode.wilson_base import Method, Samples
from torchgauge.ode.wilson_grid import Mesh, block, even, grid, sample
from torchgauge.ode.wilson_mesh import PROBES, ROUGH, SAFETY, STRETCH, UNEVEN, explain, probes, relative
from torchgauge.ode.wilson_source import Edges, Source

TRIED = 2  # slices that are tried before all, of a mesh of
GUESS = 1.6  # times the slices that a w of size and frequency one asks for
MARGIN = 1.06  # slices more than the error of those tried asks for


@torch.no_grad()
def single(method: Method, judge: Method, source: Source, edges: Edges, tolerance: float) -> tuple[Mesh, Tensor] | None:
    """One slice for each layer, if that is enough.

    Args:
        method: the integrator.
        judge: an integrator of higher order that can transport vectors.
        source: w.
        edges: where layers meet.
        tolerance: rms error of a random unit vector, taken along a layer.

    Returns:
        The mesh and the lines, without a gradient; None where a layer needs more, of which a few are asked first.
    """
    if source.knots:
        return None
    tolerance, layers = SAFETY * tolerance, len(edges) - 1
    mesh = even([1] * layers)
    if max(_judged(method, judge, source, edges, _few(mesh, 4))[0]) > tolerance:
        return None
    errors, lines = _judged(method, judge, source, edges, mesh)
    worst = max(errors)
    return (replace(mesh, error=worst), lines) if worst <= tolerance else None


@torch.no_grad()
def evenly(
    method: Method, judge: Method, source: Source, edges: Edges, tolerance: float, most: int
) -> tuple[Mesh, Tensor] | None:
    """Equal slices in every layer, as many as the errors of a few ask for, if they are enough.

    Args:
        method, judge, source, edges, tolerance: as for `single`.
        most: slices allowed.

    Returns:
        The mesh and the lines of its slices, without a gradient; None where equal slices do not suit w, or the search
        goes on for long.
    """
    if source.knots:
        return None
    trial = _trial(source.eps, method, judge, edges, tolerance)
    tolerance, count = SAFETY * tolerance, trial.count
    errors = _judged(method, judge, source, edges, trial.mesh, trial.grid)[0]
    factor = (max(errors) * trial.slices / tolerance) ** (1 / method.order)
    if max(errors) > ROUGH or factor > STRETCH:
        return None
    for _ in range(2):
        count *= MARGIN * factor
        counts = _counts(edges, count)
        if sum(counts) > most:
            return None
        mesh = even(counts)
        errors, lines = _judged(method, judge, source, edges, mesh)
        worst = float(np.bincount(mesh.layer, weights=errors).max())
        if worst <= tolerance:
            return replace(mesh, error=worst), lines
        factor = (worst / tolerance) ** (1 / method.order)
        if max(errors) > ROUGH or factor > 2:
            return None
    return None


@dataclass(frozen=True, eq=False)
class _Trial:
    """A few slices of a first mesh.

    Attributes:
        mesh: the few.
        count, slices: slices of the longest layer of that first mesh, before and after rounding.
        grid: times and offsets of the few, for a method and its judge.
    """

    mesh: Mesh
    count: float
    slices: int
    grid: tuple[Tensor, tuple[int, ...]]


def _trial(eps: float, method: Method, judge: Method, edges: Edges, tolerance: float) -> _Trial:
    if edges.kept is None:
        return _trial_of(eps, method, judge, edges, tolerance)
    return _kept_trial(eps, method, judge, edges.kept, tolerance)


@lru_cache(maxsize=16)
def _kept_trial(eps: float, method: Method, judge: Method, ends: tuple[float, ...], tolerance: float) -> _Trial:
    return _trial_of(eps, method, judge, Edges.of(ends), tolerance)


def _trial_of(eps: float, method: Method, judge: Method, edges: Edges, tolerance: float) -> _Trial:
    count = GUESS * _guess(method, SAFETY * tolerance)
    mesh = even(_counts(edges, count))
    few = _few(mesh, TRIED)
    return _Trial(few, count, max(mesh.counts), grid(eps, few, edges, (*method.nodes, *judge.nodes), share=False))


def first_look(method: Method, judge: Method, edges: Edges, tolerance: float, small: bool) -> Callable[[float], Tensor]:
    """The times that `halved`, for small matrices, or `evenly` will ask for first."""
    if small:
        return lambda eps: _doubles(eps, method, edges, tolerance).times.clone()
    return lambda eps: _trial(eps, method, judge, edges, tolerance).grid[0].clone()


@torch.no_grad()
def halved(method: Method, source: Source, edges: Edges, tolerance: float) -> tuple[Mesh, Tensor] | None:
    """Equal slices of small matrices, judged by slices twice as long in the same batch.

    Args:
        method, source, edges, tolerance: as for `single`.

    Returns:
        The mesh and the lines of pairs of its slices; None as for `evenly`.
    """
    if source.knots:
        return None
    both = _doubles(source.eps, method, edges, tolerance)
    samples = Samples(source.sample(both.times.clone()), both.offsets, len(both.steps))
    lines, n = method.propagators(samples, both.steps), len(both.coarse)
    whole, halves = lines[:n], lines[n:]
    pairs = torch.bmm(halves[1::2].flatten(0, 1), halves[0::2].flatten(0, 1)).view_as(whole)
    errors = np.array(relative(whole, pairs, source.size**0.5))
    if not errors.max() <= ROUGH:
        return None
    jumps = np.diff(np.log(np.maximum(errors, 1e-18)) - both.levels)  # of errors at equal lengths
    worst = float(np.bincount(both.coarse.layer, weights=errors).max()) * 2.0**-method.order
    if np.abs(jumps).max(initial=0.0) > UNEVEN or worst > SAFETY * tolerance:
        return None
    return replace(both.fine, error=worst), pairs


@dataclass(frozen=True, eq=False)
class _Doubles:
    """A mesh and one twice as coarse.

    Attributes:
        coarse, fine: the two.
        times, offsets, steps: of first the coarse and then the fine slices, as one batch.
        levels: logarithms of what errors are proportional to, for coarse slices.
    """

    coarse: Mesh
    fine: Mesh
    times: Tensor
    offsets: tuple[int, ...]
    steps: Tensor
    levels: np.ndarray


def _doubles(eps: float, method: Method, edges: Edges, tolerance: float) -> _Doubles:
    if edges.kept is None:
        return _doubles_of(eps, method, edges, tolerance)
    return _kept_doubles(eps, method, edges.kept, tolerance)


@lru_cache(maxsize=16)
def _kept_doubles(eps: float, method: Method, ends: tuple[float, ...], tolerance: float) -> _Doubles:
    return _doubles_of(eps, method, Edges.of(ends), tolerance)


def _doubles_of(eps: float, method: Method, edges: Edges, tolerance: float) -> _Doubles:
    counts = _counts(edges, _guess(method, SAFETY * tolerance))
    coarse, fine = even(counts), even([2 * n for n in counts])
    both = [np.concatenate([getattr(mesh, name) for mesh in (coarse, fine)]) for name in ("layer", "left", "right")]
    mesh = Mesh(both[0], both[1], both[2], coarse.counts)
    times, offsets = grid(eps, mesh, edges, method.nodes, share=False)
    levels = (method.order + 1) * np.log(np.abs(coarse.steps(edges).detach().numpy()))
    return _Doubles(coarse, fine, times, offsets, mesh.steps(edges), levels)


def _guess(method: Method, tolerance: float) -> float:
    """Slices of the longest layer, to begin with."""
    return tolerance ** (-1 / method.order)


def _counts(edges: Edges, count: float) -> list[int]:
    """Slices of about equal length, `count` in the longest layer."""
    spans = np.abs(np.diff(edges.values))
    return [max(1, ceil(count * span)) for span in (spans / spans.max()).tolist()]


def _few(mesh: Mesh, count: int) -> Mesh:
    """About `count` slices, spread over the mesh."""
    n = len(mesh)
    few = np.arange(n)[(n % -(-n // count)) // 2 :: -(-n // count)]
    return Mesh(mesh.layer[few], mesh.left[few], mesh.right[few], (1,) * len(few))


def _judged(
    method: Method,
    judge: Method,
    source: Source,
    edges: Edges,
    mesh: Mesh,
    known: tuple[Tensor, tuple[int, ...]] | None = None,
) -> tuple[list[float], Tensor]:
    """For every slice the rms error on random unit vectors, by comparison with a better method; and the lines.

    Args:
        method, judge, source, edges: as for `single`.
        mesh: the slices.
        known: times and offsets of few slices at all nodes, where they are known.
    """
    nodes, own = (*method.nodes, *judge.nodes), len(method.nodes)
    errors, lines, length = [], [], block(source, len(nodes))
    for first in range(0, len(mesh), length):
        part = mesh.part(first, min(first + length, len(mesh)))
        steps, n = part.steps(edges), len(part)
        if known is not None and n == len(mesh):
            both = Samples(source.sample(known[0].clone()), known[1], n)
        else:
            both = sample(source, part, edges, nodes, share=False)  # w is called once
        lines.append(method.propagators(Samples(both.values[: own * n], both.offsets[:own], n), steps))
        v = probes(source, n, first)
        offsets = both.offsets[: len(judge.nodes)]
        fine = judge.transport(Samples(both.values[own * n :], offsets, n), steps, v)
        if fine is None:
            raise TypeError(f"{judge.name} transports no vectors")
        errors += relative(lines[-1] @ v, fine, (source.size * PROBES) ** 0.5)
        if not isfinite(sum(errors)):
            k = next(k for k, value in enumerate(errors) if not isfinite(value))
            explain(source, mesh.part(k, k + 1), edges, nodes)
    return errors, torch.cat(lines) if len(lines) > 1 else lines[0]
