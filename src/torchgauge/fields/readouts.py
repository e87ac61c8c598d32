"""What an ensemble is for the estimators: a last linear layer over neurons, and whether these are independent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.laws import Law, Normal, Uniform
from torchgauge.fields.nets import RELU, TANH, Activation, Net

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
        """Covariance [points, points] of the preactivations, if these are normal; and whether a phase is added."""
        if self.first is None:
            return None
        weight, bias, _ = self.first
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


def read(ensemble: Ensemble) -> Readout | None:
    """The last linear layer of a `Net` or of an `nn.Sequential` that ends in `nn.Linear`; None for anything else."""
    module = ensemble.module
    if any(d.is_complex for d in ensemble.dtypes.values()):
        return None
    if isinstance(module, Net):
        return _of_net(ensemble, module)
    if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[-1], nn.Linear):
        return _of_sequential(ensemble, module)
    return None


def _of_net(ensemble: Ensemble, module: Net) -> Readout | None:
    hidden = tuple(name for name in ensemble.shapes if name.startswith("hidden."))
    last = _last(ensemble, "readout")
    if last is None:
        return None
    if len(module.hidden) > 1:
        return Readout(module.features, hidden, *last)
    return _maybe_shallow(ensemble, "hidden.0", Readout(module.features, hidden, *last), module.activation)


def _of_sequential(ensemble: Ensemble, module: nn.Sequential) -> Readout | None:
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
        shared = dict(body.named_buffers())
        kept = {name: params[name] for name in hidden}
        return vmap(lambda p: functional_call(body, {**p, **shared}, (points,)), randomness="different")(kept)

    readout = Readout(features, hidden, *last)
    between = list(module)[1:-1]
    if isinstance(module[0], nn.Linear) and all(type(m) in _POINTWISE for m in between):
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
