"""Quadrature over a cube around the origin, for kernels that vary near it and are smooth far away."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from torchgauge.errors import InputError

_RATIO = {1: 1.5, 2: 2.5, 3: 4.0}
_NODES = {1: 24, 2: 12, 3: 8}


def line(cutoff: float, inputs: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on (−Λ, Λ): Gauss–Legendre on panels that grow geometrically from the origin, never at it."""
    ratio = _RATIO[inputs]
    edges = [cutoff]
    while edges[-1] > 0.05 * min(1.0, cutoff) and len(edges) < 60:
        edges.append(edges[-1] / ratio)
    edges = np.array([0.0, *reversed(edges)])
    t, w = np.polynomial.legendre.leggauss(_NODES[inputs])
    half = np.diff(edges)[:, None] / 2
    nodes = (edges[:-1, None] + half * (1 + t)).reshape(-1)
    weights = (half * w).reshape(-1)
    return torch.from_numpy(np.concatenate([-nodes[::-1], nodes])), torch.from_numpy(
        np.concatenate([weights[::-1], weights])
    )


def cube(cutoff: float, inputs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Nodes [count, inputs] and weights [count] on the cube |x_i| < Λ, slab by slab.

    Raises:
        InputError: more than three inputs.
    """
    if inputs not in _NODES:
        raise InputError(
            f"integrals over {inputs} inputs", remedy="one to three inputs, or a Gauss net without a cutoff"
        )
    t, w = line(cutoff, inputs)
    if inputs == 1:
        yield t[:, None], w
        return
    rest = torch.cartesian_prod(*[t] * (inputs - 1)).reshape(-1, inputs - 1)
    weights = torch.cartesian_prod(*[w] * (inputs - 1)).reshape(-1, inputs - 1).prod(1)
    for first, weight in zip(t, w, strict=True):
        yield torch.cat([first.expand(len(rest), 1), rest], 1), weight * weights
