"""Feed-forward nets as values, the nets that linear fields integrate to, and their discrete gauge transformations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.ode.affine import affine_matrix
from torchgauge.ode.errors import SingularLayerError
from torchgauge.ode.fields import ImpulsiveField, Jump, LinearField
from torchgauge.ode.lines import layer_edges, layer_lines

Activation = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class Layers:
    """The layers h_{n+1} = w_n h_n + b_n of a net of constant width, differentiable.

    Attributes:
        weight: w, [N, d, d].
        bias: b, [N, d].
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, net: nn.Module | Layers) -> Layers:
        """Reads the linear layers of a module, in the order in which it holds them.

        Raises:
            InputError: no linear layers, or widths that differ.
        """
        if isinstance(net, Layers):
            return net
        linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise InputError("the net holds no nn.Linear", type(net).__name__, "Pass a chain of linear layers.")
        d = linear[0].in_features
        for n, layer in enumerate(linear):
            if (layer.in_features, layer.out_features) != (d, d):
                what = f"a neural ODE has one width, here {d}, and layer {n} goes from {layer.in_features} to "
                raise InputError(f"{what}{layer.out_features}", f"layer {n}", "Pad the layers to one width.")
        weight = torch.stack([layer.weight for layer in linear])
        bias = [layer.bias if layer.bias is not None else layer.weight.new_zeros(d) for layer in linear]
        return cls(weight, torch.stack(bias))

    @classmethod
    def from_affine(cls, matrices: Tensor) -> Layers:
        """The layers with given matrices [[w, b], [0, 1]], [N, d + 1, d + 1]."""
        return cls(matrices[..., :-1, :-1], matrices[..., :-1, -1])

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def dim(self) -> int:
        """d."""
        return self.weight.shape[-1]

    def affine(self) -> Tensor:
        """The matrices [[w, b], [0, 1]], [N, d + 1, d + 1]."""
        return affine_matrix(self.weight, self.bias)

    def total(self) -> Tensor:
        """The matrix [[W, β], [0, 1]] of the whole net without activations, [d + 1, d + 1]."""
        matrices = self.affine()
        whole = matrices[0]
        for matrix in matrices[1:]:
            whole = matrix @ whole
        return whole

    def apply(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """The net as a function of points [..., d]; an activation acts between layers, and not after the last."""
        for n, (w, b) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = (x if activation is None or n == 0 else activation(x)) @ w.mT + b
        return x

    def module(self, activation: nn.Module | None = None) -> nn.Sequential:
        """An ordinary `nn.Sequential` of linear layers with these parameters (copied)."""
        parts: list[nn.Module] = []
        for n, (w, b) in enumerate(zip(self.weight, self.bias, strict=True)):
            if activation is not None and n > 0:
                parts.append(activation)
            layer = nn.utils.skip_init(nn.Linear, self.dim, self.dim, dtype=w.dtype, device=w.device)
            layer.weight = nn.Parameter(w.detach().clone())
            layer.bias = nn.Parameter(b.detach().clone())
            parts.append(layer)
        return nn.Sequential(*parts)


def discretise(field: LinearField, layers: int | Tensor, tolerance: float | None = None) -> Layers:
    """The integrated relation: w̄_n = W_{n+1:n} and b̄_n = ∫ W_{n+1:t} b dt over each piece of time (32).

    Args:
        field: (w, b).
        layers: N equal pieces, or their edges [N + 1].
        tolerance: of the Wilson lines; by default 10³ roundings.

    Returns:
        The layers, differentiable in the parameters of the field.
    """
    return Layers.from_affine(layer_lines(field, layer_edges(field, layers), tolerance))


def integrate(field: LinearField, layers: int | Tensor, activation: nn.Module | None = None) -> nn.Sequential:
    """The feed-forward net that a linear field integrates to; its parameters are new leaves.

    Args:
        field: (w, b).
        layers: N equal pieces, or their edges [N + 1].
        activation: acts between layers.
    """
    return discretise(field, layers).module(activation)


def with_activation(field: LinearField, layers: int | Tensor, activation: Activation) -> ImpulsiveField:
    """The field with an activation as a kick where layers meet: `solve` of it is what `integrate` computes.

    Args:
        field: (w, b).
        layers: N equal pieces, or their edges [N + 1].
        activation: acts at the N − 1 edges inside.
    """
    edges = layer_edges(field, layers)
    return ImpulsiveField(field, [Jump(float(t), activation) for t in edges[1:-1]])


def transform(layers: Layers, gauge: Tensor) -> Layers:
    """Discrete gauge: w̄_n ↦ G_{n+1}⁻¹ w̄_n G_n, b̄_n ↦ G_{n+1}⁻¹ [b̄_n + w̄_n c_n − c_{n+1}] (33).

    Args:
        layers: (w̄, b̄).
        gauge: the matrices [[G_n, c_n], [0, 1]], [N + 1, d + 1, d + 1]; the first and the last being the identity,
            the function of the net stays.
    """
    return Layers.from_affine(transform_lines(layers.affine(), gauge[1:], gauge[:-1]))


def transform_lines(lines: Tensor, after: Tensor, before: Tensor) -> Tensor:
    """W ↦ G⁻¹(t₁) W G(t₂) for Wilson lines from t₂ to t₁, plain or affine (46).

    Args:
        lines: [..., n, n].
        after, before: G(t₁) and G(t₂), [..., n, n].

    Raises:
        SingularLayerError: a G(t₁) that has no inverse.
    """
    try:
        return torch.linalg.solve(after, lines @ before)
    except torch.linalg.LinAlgError as error:
        smallest = torch.linalg.svdvals(after)[..., -1].reshape(-1)
        place = int(smallest.argmin())
        what = f"matrix {place} of the gauge transformation (at the end of a line) cannot be inverted"
        raise SingularLayerError(what, f"after[{place}]", "Gauge transformations are invertible.") from error


def connecting_gauge(a: Layers, b: Layers) -> Tensor:
    """The gauge that takes net A to net B, from G_0 = 1 on: Γ_{n+1} = A_n Γ_n B_n⁻¹ (proof of Theorem 3.1).

    Args:
        a, b: nets of N layers each.

    Returns:
        [N + 1, d + 1, d + 1], the matrices [[G_n, c_n], [0, 1]]. The last is the identity if and only if the nets,
        without activations, are the same function.

    Raises:
        InputError: nets of different depth or width.
        SingularLayerError: a layer of B has no inverse (to rounding).
    """
    if a.weight.shape != b.weight.shape:
        what = f"the nets have {len(a)} layers of width {a.dim} and {len(b)} layers of width {b.dim}"
        raise InputError(what, "", "Theorem 3.1 compares nets of the same depth and width.")
    refuse_singular(b, "B")
    gauge = [torch.eye(a.dim + 1, dtype=a.weight.dtype, device=a.weight.device)]
    for first, second in zip(a.affine(), b.affine(), strict=True):
        gauge.append(torch.linalg.solve(second, first @ gauge[-1], left=False))
    return torch.stack(gauge)


def refuse_singular(layers: Layers, name: str) -> None:
    """Raises if a layer's weight cannot be inverted.

    Raises:
        SingularLayerError: naming the first such layer.
    """
    if not bool(torch.isfinite(layers.weight).all() and torch.isfinite(layers.bias).all()):
        raise InputError(f"net {name} holds numbers that are not finite", f"net {name}", "")
    values = torch.linalg.svdvals(layers.weight.detach())
    limit = layers.dim * torch.finfo(layers.weight.dtype).eps
    for n, row in enumerate(values.tolist()):
        if row[-1] <= limit * row[0]:
            sizes = f"singular values {row[0]:.1e} … {row[-1]:.1e}"
            what = f"the weight of layer {n} of net {name} cannot be inverted: {sizes}"
            raise SingularLayerError(
                what, f"layer {n}", "Theorem 3.1 needs invertible layers, and a flow has no others."
            )
