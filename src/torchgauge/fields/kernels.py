"""Kernels of nets at infinite width, by recursion over layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.errors import EstimatorError, SingularKernelError
from torchgauge.fields.gaussian import hermite, pair_moment
from torchgauge.fields.laws import Law, Normal, Uniform
from torchgauge.fields.nets import Activation, Net


@dataclass(frozen=True)
class Layer:
    """One linear layer: C_w = fan-in · Var(w), C_b = Var(b), fan-in, and whether a uniform phase is added."""

    c_w: float
    c_b: float
    fan_in: int
    phase: bool = False


def layers_of(ensemble: Ensemble) -> tuple[Activation, list[Layer]]:
    """The layers of a `Net` with independent centred entries.

    Raises:
        EstimatorError: another module, or laws with a mean or with correlated entries.
    """
    module = ensemble.module
    if not isinstance(module, Net):
        raise EstimatorError(
            "the recursion is for fields.Net", ensemble.name, "build the ensemble with fields.net(...)"
        )
    names = [f"hidden.{i}" for i in range(len(module.hidden))] + ["readout"]
    out = []
    for i, name in enumerate(names):
        weight, bias = ensemble.laws.get(f"{name}.weight"), ensemble.laws.get(f"{name}.bias")
        fan_in = ensemble.shapes[f"{name}.weight"][1]
        phase = isinstance(bias, Uniform) and module.activation.name == "cosine" and i + 1 < len(names)
        phase = phase and abs(bias.high - bias.low - 2 * math.pi) < 1e-12  # type: ignore[union-attr]
        c_w = _variance(weight, f"{name}.weight", first=i == 0) * fan_in
        out.append(Layer(c_w, 0.0 if phase else _variance(bias, f"{name}.bias", first=False), fan_in, phase))
    return module.activation, out


def _variance(law: Law | None, name: str, first: bool) -> float:
    mean = None if law is None else law.moment(1)
    second = None if law is None else law.moment(2)
    if law is None or second is None or mean != 0:
        raise EstimatorError(f"{law} is not a law of independent entries about zero", f"parameter {name}")
    if (first or name.endswith("bias")) and not isinstance(law, Normal):
        raise EstimatorError(
            f"{law} does not make the first preactivations normal", f"parameter {name}", "use Normal there"
        )
    return second


def kernel(ensemble: Ensemble, points: Tensor) -> Tensor:
    """The two-point function [points, points] of one output at infinite width; exact at any width for one hidden layer.

    K¹ = C_b + C_w x·x'/d, then K' = C_b + C_w ⟨φφ⟩_K layer by layer (theory: docs/fields.md, section 6).

    Raises:
        EstimatorError: not a `Net` with suitable laws.
        SingularKernelError: a preactivation of variance zero under ReLU.
    """
    return kernels(ensemble, points)[-1]


def kernels(ensemble: Ensemble, points: Tensor) -> list[Tensor]:
    """The kernels of the preactivations of every layer, the output last; without the uniform phase of a cosine net."""
    activation, layers = layers_of(ensemble)
    x = _points(ensemble, points, layers)
    out = [layers[0].c_b + layers[0].c_w * x @ x.T / layers[0].fan_in]
    for before, layer in zip(layers[:-1], layers[1:], strict=True):
        out.append(layer.c_b + layer.c_w * pair_moments(activation, out[-1], before.phase))
    return out


def _points(ensemble: Ensemble, points: Tensor, layers: list[Layer]) -> Tensor:
    x = ensemble.as_points(points).double()
    if x.ndim != 2 or x.shape[1] != layers[0].fan_in:
        raise InputError(f"points of shape {list(x.shape)}", remedy=f"give [n_points, {layers[0].fan_in}]")
    return x


def cross_kernel(ensemble: Ensemble, x: Tensor, y: Tensor) -> Tensor:
    """K_W [n_x, n_y] between two sets of points: the kernel at infinite width, less the variance of the output bias.

    Raises:
        EstimatorError: not a `Net` with suitable laws.
        SingularKernelError: a preactivation of variance zero.
    """
    activation, layers = layers_of(ensemble)
    x, y = _points(ensemble, x, layers), _points(ensemble, y, layers)
    first = layers[0]
    kx, ky = (first.c_b + first.c_w * p.square().sum(1) / first.fan_in for p in (x, y))
    k = first.c_b + first.c_w * x @ y.T / first.fan_in
    for i, (before, layer) in enumerate(zip(layers[:-1], layers[1:], strict=True)):
        offset = layer.c_b if i + 2 < len(layers) else 0.0
        k11, k22 = kx[:, None].expand_as(k), ky[None, :].expand_as(k)
        if before.phase:
            k = offset + layer.c_w * torch.exp(-(k11 + k22) / 2 + k) / 2
            kx, ky = (offset + layer.c_w * torch.full_like(v, 0.5) for v in (kx, ky))
        else:
            k = offset + layer.c_w * pair_moment(activation, k11, k, k22)
            kx, ky = (offset + layer.c_w * single_moment(activation, v) for v in (kx, ky))
    return k


def pair_moments(activation: Activation, k: Tensor, phase: bool) -> Tensor:
    """⟨φφ⟩ [points, points] at covariances k; `phase` adds a uniform phase."""
    diagonal = torch.diagonal(k)
    k11, k22 = diagonal[:, None].expand_as(k), diagonal[None, :].expand_as(k)
    if phase:
        return torch.exp(-(k11 + k22) / 2 + k) / 2
    return pair_moment(activation, k11, k, k22)


def single_moment(activation: Activation, k: Tensor) -> Tensor:
    """⟨φ(z)²⟩ at variances k [...], differentiable."""
    if activation.name == "erf":
        return 2 / math.pi * torch.asin(2 * k / (1 + 2 * k))
    if activation.name == "relu":
        return k / 2
    if activation.name == "gauss" and activation.normalised:
        return torch.exp(k - k)
    if activation.name == "cosine":
        return (1 + torch.exp(-2 * k)) / 2
    t, w = hermite(200)
    z = torch.sqrt(k)[..., None] * t
    return (activation.function(z).square() * w).sum(-1)


def inverse_kernel(k: Tensor, worst: float = 1e12) -> Tensor:
    """K^{-1} of points, or a refusal.

    Raises:
        SingularKernelError: a condition number above `worst`.
        InputError: not a square matrix.
    """
    if k.ndim != 2 or k.shape[0] != k.shape[1]:
        raise InputError(f"a kernel of shape {list(k.shape)}", remedy="give [points, points]")
    values = torch.linalg.eigvalsh(k)
    smallest = float(values.min())
    condition = float(values.max()) / smallest if smallest > 0 else math.inf
    if not condition <= worst:
        raise SingularKernelError(
            f"the kernel has the condition number {condition:.2g} on these {len(k)} points",
            remedy="leave out points that nearly repeat others; the kernel may have fewer directions than points",
        )
    return torch.linalg.inv(k)
