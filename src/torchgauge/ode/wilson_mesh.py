"""How the layers of a Wilson line are cut into slices, and how many slices a tolerance asks for.

The error of a slice is estimated by step doubling on a few random vectors: a vector costs d² where a matrix costs d³,
so the mesh is settled before the first matrix product. A piece with the error e of one step of order p has the error
e n^{-p} when cut into n.
"""

from __future__ import annotations

from functools import lru_cache
from heapq import heapify, heapreplace
from itertools import groupby, pairwise
from math import ceil, isfinite

import numpy as np
import torch
from torch import Tensor

from torchgauge.ode.errors import FieldError, SolverError
from torchgauge.ode.wilson_base import Method, Samples
from torchgauge.ode.wilson_grid import Mesh, block, cut, sample, times_at
from torchgauge.ode.wilson_source import Edges, Source

PIECES = 6  # with which the search begins
STRETCH = 8  # e n^{-p} is trusted up to this n; but only n = 1
ROUGH = 1e-2  # from larger errors,
UNEVEN = 7.0  # and where the errors of neighbours differ more, in the logarithm: w is not resolved, or not smooth
SAFETY = 0.5  # of the tolerance is what estimates may use up
PROBES = 2  # random vectors for every piece
SMALL = 16  # matrices up to this size cost less than the calls that make them,
KEPT_NUMBERS = 1 << 14  # up to this many, random numbers are kept between calls
MOST_PIECES = 64  # so the search begins with many pieces, up to this, and its lines are kept

Piece = tuple[int, float, float]  # a part of a layer: its number, and where it starts and ends as fractions


@torch.no_grad()
def plan(method: Method, source: Source, edges: Edges, tolerance: float, most: int) -> tuple[Mesh, Tensor | None]:
    """A mesh on which the estimated errors of the slices of every layer sum up to at most the tolerance.

    Args:
        method: the integrator.
        source: w.
        edges: where layers meet.
        tolerance: rms error of a random unit vector, taken along a layer.
        most: slices allowed.

    Returns:
        The mesh; and the lines of its slices, without a gradient, where the search has come by them.

    Raises:
        FieldError: w is not finite at a time that is named.
        SolverError: more slices would be needed.
    """
    small, tolerance = source.size <= SMALL, SAFETY * tolerance
    least = min(ceil(2 * tolerance ** (-1 / method.order)), MOST_PIECES) if small else PIECES
    pieces, done = _first_pieces(source, edges, least), []
    first = True
    while pieces:
        errors, halves = _doubled(method, source, edges, pieces, small)
        uneven = _unevenness(edges, pieces, errors, method.order)
        trusted = [error <= ROUGH and jump <= UNEVEN for error, jump in zip(errors, uneven, strict=True)]
        if first and halves is not None:
            halved = [error * 2.0 ** (-method.order * good) for error, good in zip(errors, trusted, strict=True)]
            worst = float(np.bincount([n for n, *_ in pieces], weights=halved).max())
            if worst <= tolerance:
                return cut([(*piece, 2) for piece in pieces], worst), halves
        first = False
        again = []
        for piece, error, good in zip(pieces, errors, trusted, strict=True):
            share = tolerance * (piece[2] - piece[1])  # for a first look
            slices = (error / share) ** (1 / method.order)
            if slices <= (STRETCH if good else 1):
                done.append((piece, error))
            else:
                again += _split(piece, min(max(2, ceil(slices / 3)), 4 * STRETCH))
        pieces = again
        if len(pieces) + len(done) > most:
            n, a, b = max(pieces, key=lambda piece: piece[1] - piece[2])
            at = _time(edges, n, (a + b) / 2)
            what = f"a Wilson line to {tolerance:.1e} needs more than {most} slices, most of them near t = {at:.6g}"
            remedy = "Loosen the tolerance, put an edge where w jumps, or raise max_slices."
            raise SolverError(what, f"t = {at:.6g}", remedy)
    done.sort(key=lambda item: item[0])
    return _distribute(done, tolerance, method.order, source), None


def probes(source: Source, pieces: int, seed: int) -> Tensor:
    """Random vectors for every piece, [pieces, fields, size, PROBES]."""
    shape = pieces, max(1, source.batch.numel()), source.size, PROBES
    return (_probes if pieces * shape[1] * source.size <= KEPT_NUMBERS else _probes.__wrapped__)(
        shape, seed, source.dtype, source.device, torch.is_inference_mode_enabled()
    )


@lru_cache(maxsize=16)
def _probes(shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: torch.device, _inference: bool) -> Tensor:
    v = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v.to(device, dtype)


def relative(rough: Tensor, fine: Tensor, unit: float) -> list[float]:
    """Errors of transported vectors or lines, for every piece the largest of all fields."""
    size = torch.linalg.vector_norm(fine, dim=(-2, -1)).clamp(min=unit)
    return (torch.linalg.vector_norm(rough - fine, dim=(-2, -1)) / size).amax(-1).tolist()


def _unevenness(edges: Edges, pieces: list[Piece], errors: list[float], order: int) -> list[float]:
    """How much the logarithms of errors differ between neighbours, at equal lengths."""
    size = np.array([b - a for _, a, b in pieces]) * np.abs(np.diff(edges.values))[[n for n, *_ in pieces]]
    level = np.log(np.maximum(errors, 1e-18)) - (order + 1) * np.log(size)
    jumps = np.abs(np.diff(level))
    return np.maximum(np.append(jumps, 0.0), np.append(0.0, jumps)).tolist()


def _split(piece: Piece, parts: int) -> list[Piece]:
    n, a, b = piece
    return [(n, a + (b - a) * k / parts, a + (b - a) * (k + 1) / parts) for k in range(parts)]


def _time(edges: Edges, layer: int, fraction: float) -> float:
    return float(edges.values[layer] + (edges.values[layer + 1] - edges.values[layer]) * fraction)


def _first_pieces(source: Source, edges: Edges, least: int) -> list[Piece]:
    """The layers, cut where w is not smooth, and evenly if they are few."""
    pieces = []
    for n, (start, end) in enumerate(pairwise(edges.values.tolist())):
        inside = sorted((t - start) / (end - start) for t in source.knots)
        cuts = [0.0, *(u for u in inside if 1e-9 < u < 1 - 1e-9), 1.0]
        pieces += [(n, a, b) for a, b in pairwise(cuts) if b - a > 1e-12]
    parts = -(-least // len(pieces))
    return [part for piece in pieces for part in _split(piece, parts)]


def _doubled(
    method: Method, source: Source, edges: Edges, pieces: list[Piece], keep: bool
) -> tuple[list[float], Tensor | None]:
    """For every piece the rms error of one step on a random unit vector, by comparison with two half steps.

    Returns:
        Errors; and, where lines were computed and are to be kept, those of the half steps, two for each piece.
    """
    errors, lines, length = [], [], block(source, 3 * len(method.nodes))
    for first in range(0, len(pieces), length):
        part = cut([(*piece, 1) for piece in pieces[first : first + length]])
        moved = None if source.size <= SMALL else _transported(method, source, part, edges, first)
        if moved is None:
            whole, halves = _lines(method, source, part, edges)
            lines.append(halves)
            fine = (halves[1::2].flatten(0, 1) @ halves[0::2].flatten(0, 1)).view_as(whole)
            moved, unit = (whole, fine), source.size**0.5
        else:
            whole, fine = moved
            unit = (source.size * PROBES) ** 0.5
        error = relative(whole, fine, unit)
        if not all(map(isfinite, error)):
            k = next(k for k, value in enumerate(error) if not isfinite(value))
            explain(source, part.part(k, k + 1), edges, (*method.nodes, *(c / 2 for c in method.nodes)))
        errors += error
    return errors, torch.cat(lines) if keep and lines else None


def _transported(method: Method, source: Source, part: Mesh, edges: Edges, seed: int) -> tuple[Tensor, Tensor] | None:
    """Random vectors after one step and after two half steps, where that costs less than lines."""
    v = probes(source, len(part), seed)
    rows = [[*method.nodes], [c / 2 for c in method.nodes], [0.5 + c / 2 for c in method.nodes]]
    union = sorted({round(c, 14) for row in rows for c in row})
    samples = sample(source, part, edges, tuple(union))
    steps, moved = part.steps(edges), []
    for row, factor in zip(rows, (1.0, 0.5, 0.5), strict=True):
        offsets = tuple(samples.offsets[min(range(len(union)), key=lambda j: abs(union[j] - c))] for c in row)
        start = moved[-1] if len(moved) == 2 else v
        result = method.transport(Samples(samples.values, offsets, len(part)), steps * factor, start)
        if result is None:
            return None
        moved.append(result)
    return moved[0], moved[2]


def _lines(method: Method, source: Source, part: Mesh, edges: Edges) -> tuple[Tensor, Tensor]:
    """Lines of pieces by one step, [P, fields, d, d], and of their halves, [2 P, fields, d, d], in one batch."""
    middle = (part.left + part.right) / 2
    left = np.concatenate([part.left, np.stack([part.left, middle], 1).ravel()])
    right = np.concatenate([part.right, np.stack([middle, part.right], 1).ravel()])
    mesh = Mesh(np.concatenate([part.layer, np.repeat(part.layer, 2)]), left, right, part.counts)
    lines = method.propagators(sample(source, mesh, edges, method.nodes, share=False), mesh.steps(edges))
    return lines[: len(part)], lines[len(part) :]


@torch.no_grad()
def explain(source: Source, mesh: Mesh, edges: Edges, nodes: tuple[float, ...]) -> None:
    """Raises the error that says why the line over some slices is not finite."""
    fractions = np.concatenate([mesh.left + c * (mesh.right - mesh.left) for c in nodes])
    times = times_at(source.eps, edges, np.tile(mesh.layer, len(nodes)), fractions).sort().values
    bad = (~source.sample(times).flatten(1).isfinite().all(1)).nonzero()
    if len(bad):
        t = float(times[int(bad[0])])
        remedy = "Look for divisions by zero and overflows in w or b."
        raise FieldError(f"w(t) is not finite at t = {t:.6g}", f"t = {t:.6g}", remedy)
    t = float(times.min())
    what = f"the Wilson line overflows {source.dtype} near t = {t:.6g}, where w is finite"
    raise SolverError(what, f"t = {t:.6g}", "Take a shorter interval, or a wider dtype.")


def _distribute(done: list[tuple[Piece, float]], tolerance: float, order: int, source: Source) -> Mesh:
    """The fewest slices. A layer is cut evenly where that costs little, and w has no knots inside."""
    result: list[tuple[int, float, float, int]] = []
    worst = 0.0
    for n, group in groupby(done, key=lambda item: item[0][0]):
        units = list(group)
        floor = 8 * torch.finfo(source.dtype).eps / len(units)
        units = [(piece, max(error, floor)) for piece, error in units]
        evenly = sum(error * (b - a) ** -order for (_, a, b), error in units)  # error of the layer as one step
        apart = sum(error ** (1 / (order + 1)) for _, error in units)
        # the slices that both need for the same error
        if not source.knots and evenly ** (1 / order) <= 1.15 * apart ** (1 + 1 / order):
            units = [((n, 0.0, 1.0), evenly)]
        counts = _share([error for _, error in units], tolerance, order)
        worst = max(worst, sum(error * k**-order for (_, error), k in zip(units, counts, strict=True)))
        result += [(*piece, count) for (piece, _), count in zip(units, counts, strict=True)]
    return cut(result, worst)


def _share(errors: list[float], tolerance: float, order: int) -> list[int]:
    """The smallest numbers n_i with Σ e_i n_i^{-p} at most the tolerance.

    The optimum in real numbers is n_i ∝ e_i^{1/(p+1)}; it is rounded down, and then the best one is raised until all is
    well.
    """
    roots = [error ** (1 / (order + 1)) for error in errors]
    scale = (sum(roots) / tolerance) ** (1 / order)
    counts = [max(1, int(scale * root)) for root in roots]

    def gain(i: int) -> float:
        return errors[i] * (counts[i] ** -order - (counts[i] + 1) ** -order)

    left = sum(error * n**-order for error, n in zip(errors, counts, strict=True)) - tolerance
    heap = [(-gain(i), i) for i in range(len(errors))]
    heapify(heap)
    while left > 0:
        left -= gain(i := heap[0][1])
        counts[i] += 1
        heapreplace(heap, (-gain(i), i))
    return counts
