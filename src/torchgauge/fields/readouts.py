"""What an ensemble is for the estimators: a last linear layer over neurons, and whether these are independent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.laws import Law, Normal, Uniform
from torchgauge.fields.nets import RELU, TANH, Activation, Net
from torchgauge.fields.stacking import stacked_call

_POINTWISE = (
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Identity, nn.Mish, nn.SELU,
    nn.Hardtanh, nn.ReLU6, nn.Softsign, nn.CELU, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid,
)  # fmt: skip


@dataclass(frozen=True)
class Readout:
    """f(x) = Σ_j W_j h_j(x) + b with a linear last layer.

    Attributes:
        features: stacked parameters, points → h [count, n_points, width].
        hidden: the parameters that h depends on.
        width: neurons N of the last hidden layer.
        weight: law of W; its entries are independent with one distribution.
        bias: law of b, or None.
        outputs: how many.
    """

    features: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    hidden: tuple[str, ...]
    width: int
    weight: Law
    bias: Law | None
    outputs: int


@dataclass(frozen=True)
class Shallow(Readout):
    """One hidden layer, whose neurons h_j are independent and identically distributed.

    Attributes:
        activation: the nonlinearity.
        first: laws of the first layer's weight and bias (None without one), and its number of inputs; None where
            they are drawn together.
    """

    activation: Activation
    first: tuple[Law, Law | None, int] | None

    def covariance(self, points: Tensor) -> tuple[Tensor, bool] | None:
        """Covariance [points, points] of the preactivations, if these are normal; and whether a phase is added.

        Raises:
            InputError: points of another number of inputs.
        """
        if self.first is None:
            return None
        weight, bias, inputs = self.first
        if points.ndim != 2 or points.shape[1] != inputs:
            raise InputError(f"points of shape {list(points.shape)}", remedy=f"give [n_points, {inputs}]")
        x = points.to(torch.float64)
        if not _centred(weight):
            return None
        cov = float(weight.std) ** 2 * x @ x.T  # type: ignore[attr-defined]
        if bias is None:
            return cov, False
        if _centred(bias):
            return cov + float(bias.std) ** 2, False  # type: ignore[attr-defined]
        circle = isinstance(bias, Uniform) and abs(bias.high - bias.low - 2 * torch.pi) < 1e-15
        return (cov, True) if circle and self.activation.name == "cosine" else None


def _centred(law: Law) -> bool:
    return (
        isinstance(law, Normal)
        and not isinstance(law.std, Tensor)
        and isinstance(law.mean, (int, float))
        and law.mean == 0
    )


def normal_readout(readout: Readout) -> bool:
    """Whether f is normal, given the hidden layers: then the readout can be integrated out."""
    return _centred(readout.weight) and (readout.bias is None or _centred(readout.bias))


def read(ensemble: Ensemble, points: Tensor) -> Readout | None:
    """The last linear layer of a `Net` or of an `nn.Sequential` that ends in `nn.Linear`; None for anything else.

    Subclasses with a `forward` of their own and modules with hooks are anything else: what they do is not known.
    """
    module = ensemble.module
    if any(d.is_complex for d in ensemble.dtypes.values()):
        return None
    if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
        return None
    if isinstance(module, Net):
        own = type(module).forward is Net.forward and type(module).features is Net.features
        return _of_net(ensemble, module) if own else None
    if not _plainly(module, nn.Sequential) or len(module) < 2 or not _plainly(module[-1], nn.Linear):  # type: ignore[arg-type,index]
        return None
    assert isinstance(module, nn.Sequential)
    return _of_sequential(ensemble, module, points)


def _plainly(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module does what its class does, and no more."""
    return isinstance(module, kind) and type(module).forward is kind.forward


def _of_net(ensemble: Ensemble, module: Net) -> Readout | None:
    hidden = tuple(name for name in ensemble.shapes if name.startswith("hidden."))
    last = _last(ensemble, "readout")
    if last is None:
        return None
    if len(module.hidden) > 1:
        return Readout(module.features, hidden, *last)
    return _maybe_shallow(ensemble, "hidden.0", Readout(module.features, hidden, *last), module.activation)


def _of_sequential(ensemble: Ensemble, module: nn.Sequential, points: Tensor) -> Readout | None:
    index = str(len(module) - 1)
    last = _last(ensemble, index)
    if last is None:
        return None
    body = module[:-1]
    hidden = tuple(name for name in ensemble.shapes if not name.startswith(f"{index}."))
    tied = {id(p) for p in module[-1].parameters()} & {id(p) for p in body.parameters()}
    if tied or not hidden:
        return None

    def features(params: Mapping[str, Tensor], points: Tensor) -> Tensor:
        return stacked_call(body, {name: params[name] for name in hidden}, points)

    shapes = {name: torch.zeros(1, *ensemble.shapes[name], dtype=ensemble.dtypes[name]) for name in hidden}
    if features(shapes, points).shape != (1, len(points), last[0]):
        return None  # an axis of tokens or pixels is left
    readout = Readout(features, hidden, *last)
    between = list(module)[1:-1]
    if _plainly(module[0], nn.Linear) and points.ndim == 2 and all(type(m) in _POINTWISE for m in between):
        return _maybe_shallow(ensemble, "0", readout, _activation(nn.Sequential(*between)))
    return readout


def _activation(layers: nn.Sequential) -> Activation:
    if len(layers) == 1 and isinstance(layers[0], nn.ReLU):
        return RELU
    if len(layers) == 1 and isinstance(layers[0], nn.Tanh):
        return TANH
    kinks = any(
        isinstance(m, (nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid)) for m in layers
    )
    return Activation("kinked" if kinks else "smooth", layers)


def _last(ensemble: Ensemble, name: str) -> tuple[int, Law, Law | None, int] | None:
    weight = ensemble.laws.get(f"{name}.weight")
    has_bias = f"{name}.bias" in ensemble.shapes
    bias = ensemble.laws.get(f"{name}.bias")
    if weight is None or weight.moment(2) is None or (has_bias and (bias is None or bias.moment(2) is None)):
        return None
    outputs, width = ensemble.shapes[f"{name}.weight"]
    return width, weight, bias, outputs


def _maybe_shallow(ensemble: Ensemble, name: str, readout: Readout, activation: Activation) -> Readout:
    """`Shallow` where the rows of the first layer are independent draws of one law."""
    shape = ensemble.shapes[f"{name}.weight"]
    names = set(readout.hidden)
    if names - {f"{name}.weight", f"{name}.bias"}:
        return readout  # activations with parameters
    laws = [(ensemble.laws[k], ensemble.shapes[k]) for k in readout.hidden if k in ensemble.laws]
    joint = [key for key in ensemble.joint if set(key) & names]
    if any(set(key) - names for key in joint):
        return readout
    rows = all(law.independent(s, 0) for law, s in laws)
    columns = sum(shape[1] if k.endswith("weight") else 1 for k in names)
    if not rows or not all(ensemble.joint[key].independent((shape[0], columns), 0) for key in joint):
        return readout
    first = None
    if not joint:
        first = (ensemble.laws[f"{name}.weight"], ensemble.laws.get(f"{name}.bias"), shape[1])
    return Shallow(
        readout.features,
        readout.hidden,
        readout.width,
        readout.weight,
        readout.bias,
        readout.outputs,
        activation,
        first,
    )
