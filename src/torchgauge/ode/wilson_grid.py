"""Slices of layers, and w at the nodes of many slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from torchgauge.ode.wilson_base import Samples
from torchgauge.ode.wilson_source import Edges, Source

KEPT_SLICES = 512  # up to this many, times of even slices are kept between calls
W_BYTES = 1 << 24  # of w in one call on a processor; larger blocks go back to the system with every free
W_BYTES_ELSEWHERE = 1 << 30


@dataclass(frozen=True, eq=False)
class Mesh:
    """Slices in the order of time.

    Attributes:
        layer: the layer of each slice, [N].
        left, right: where it starts and ends, as fractions of its layer, [N].
        counts: slices of each layer.
        error: estimate of the largest error of a layer, NaN where none was made.
        even: whether the slices of each layer are equal and nothing else is to be known, so that times may be kept.
    """

    layer: np.ndarray
    left: np.ndarray
    right: np.ndarray
    counts: tuple[int, ...]
    error: float = float("nan")
    even: bool = False

    def __len__(self) -> int:
        return len(self.layer)

    def part(self, start: int, stop: int) -> Mesh:
        """The slices start..stop; counts are those of the whole."""
        if stop - start == len(self):
            return self
        return Mesh(self.layer[start:stop], self.left[start:stop], self.right[start:stop], self.counts)

    def steps(self, edges: Edges) -> Tensor:
        """Lengths of the slices, [N] float64, differentiable in the edges."""
        if self.even and edges.kept:
            return _even_steps(self.counts, edges.kept)
        return edges.lengths(self.layer, self.right - self.left)


def even(counts: Sequence[int]) -> Mesh:
    """Equal slices in every layer."""
    return _even(tuple(counts))


@lru_cache(maxsize=32)
def _even(counts: tuple[int, ...]) -> Mesh:
    if len(counts) == 1:
        ends = np.linspace(0.0, 1.0, counts[0] + 1)
        return Mesh(np.zeros(counts[0], int), ends[:-1], ends[1:], counts, even=True)
    mesh = cut([(n, 0.0, 1.0, count) for n, count in enumerate(counts)])
    return Mesh(mesh.layer, mesh.left, mesh.right, counts, even=True)


def cut(pieces: Sequence[tuple[int, float, float, int]], error: float = float("nan")) -> Mesh:
    """Pieces (layer, left, right, slices) cut evenly."""
    layers, a, b, counts = (np.asarray(column) for column in zip(*pieces, strict=True))
    which = np.repeat(np.arange(len(pieces)), counts)
    k = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = ((b - a) / counts)[which]
    left = a[which] + k * width
    right = np.where(k + 1 == counts[which], b[which], left + width)
    totals = np.bincount(layers, weights=counts).astype(int)
    return Mesh(layers[which], left, right, tuple(totals.tolist()), error)


def sample(source: Source, mesh: Mesh, edges: Edges, nodes: Sequence[float], share: bool = True) -> Samples:
    """w at the nodes of every slice.

    Slices of one layer share the nodes at their common ends. At the ends of a layer w is read from inside, so that it
    may jump there.
    """
    times, offsets = grid(source.eps, mesh, edges, nodes, share)
    return Samples(source.sample(times), offsets, len(mesh))


def grid(
    eps: float, mesh: Mesh, edges: Edges, nodes: Sequence[float], share: bool = True
) -> tuple[Tensor, tuple[int, ...]]:
    """The times that `sample` asks for, and where those of each node begin."""
    if mesh.even and share and edges.kept and len(mesh) <= KEPT_SLICES:
        times, offsets = _even_grid(eps, mesh.counts, edges.kept, tuple(nodes))
        return times.clone(), offsets
    return _grid(eps, mesh, edges, nodes, share)


@lru_cache(maxsize=32)
def _even_grid(
    eps: float, counts: tuple[int, ...], ends: tuple[float, ...], nodes: tuple[float, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    return _grid(eps, _even(counts), Edges.of(ends), nodes, share=True)


@lru_cache(maxsize=32)
def _even_steps(counts: tuple[int, ...], ends: tuple[float, ...]) -> Tensor:
    mesh = _even(counts)
    return Edges.of(ends).lengths(mesh.layer, mesh.right - mesh.left)


def _grid(eps: float, mesh: Mesh, edges: Edges, nodes: Sequence[float], share: bool) -> tuple[Tensor, tuple[int, ...]]:
    n, width = len(mesh), mesh.right - mesh.left
    if share and n > 1 and nodes[0] == 0 and nodes[-1] == 1 and mesh.layer[0] == mesh.layer[-1]:
        fractions = [mesh.left, mesh.right[-1:], *(mesh.left + c * width for c in nodes[1:-1])]
        layers = np.full(n * (len(nodes) - 1) + 1, mesh.layer[0])
        offsets = (0, *(n * j + 1 for j in range(1, len(nodes) - 1)), 1)
    else:
        fractions = [mesh.left + c * width for c in nodes]
        layers = np.tile(mesh.layer, len(nodes))
        offsets = tuple(n * j for j in range(len(nodes)))
    return times_at(eps, edges, layers, np.concatenate(fractions)), offsets


def times_at(eps: float, edges: Edges, layers: np.ndarray, fractions: np.ndarray) -> Tensor:
    """Times at fractions of layers, a few roundings inside of their ends."""
    size = np.maximum(np.abs(edges.values[1:]), np.abs(edges.values[:-1])) / np.abs(np.diff(edges.values))
    margin = np.minimum(2 * eps * (1 + size), 0.01)[layers]
    return edges.at(layers, np.clip(fractions, margin, 1 - margin))


def block(source: Source, nodes: int) -> int:
    """How many slices' samples are taken in one call of w."""
    return max(1, (W_BYTES if source.device.type == "cpu" else W_BYTES_ELSEWHERE) // (source.matrices * nodes))
