"""How a coupling runs with the cutoff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.action import fit_action
from torchgauge.fields.correlators import correlator
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.results import Correlator


@dataclass(frozen=True, eq=False)
class Flow:
    """How a coupling runs with the cutoff.

    Attributes:
        cutoffs: Λ [count], rising.
        couplings: λ0 [count].
        error: [count].
        slope: of log|λ0| in log Λ by least squares over all cutoffs.
        slopes: between neighbours [count − 1].
        beta: Λ dλ0/dΛ [count − 1], at the geometric means of neighbours.
    """

    cutoffs: Tensor
    couplings: Tensor
    error: Tensor
    slope: float
    slopes: Tensor
    beta: Tensor


def flow(ensemble: Ensemble, points: Tensor, cutoffs: Sequence[float], kappa4: Correlator | None = None) -> Flow:
    """λ0 at every cutoff, from one κ4 ([HMS] 4: λ0 ∝ Λ^{−(d+4)} for ReLU nets, whose β function is −(d+4) λ0).

    Args:
        ensemble: of `Net`s.
        points: [n_points, inputs].
        cutoffs: at least two, rising.
        kappa4: computed by default.
    """
    at = torch.as_tensor(list(cutoffs), dtype=torch.float64)
    if len(at) < 2 or not bool((torch.diff(at) > 0).all()) or float(at[0]) <= 0:
        raise InputError(f"cutoffs {list(cutoffs)}", remedy="give at least two positive cutoffs, rising")
    data = kappa4 if kappa4 is not None else correlator(ensemble, points, 4)
    fits = [fit_action(data, ensemble, ("T0",), cutoff=float(c)) for c in at]
    values = torch.stack([f.couplings[0] for f in fits])
    logs, size = at.log(), values.abs().log()
    slope = float(((logs - logs.mean()) * (size - size.mean())).sum() / (logs - logs.mean()).square().sum())
    local = torch.diff(size) / torch.diff(logs)
    middle = torch.exp((size[1:] + size[:-1]) / 2) * torch.sign(values[1:])
    return Flow(at, values, torch.stack([f.error[0] for f in fits]), slope, local, local * middle)
