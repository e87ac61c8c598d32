"""Ready ensembles: Erf, ReLU, Gauss, cosine and tanh nets, with one hidden layer or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.laws import Law, Normal, Uniform


@dataclass(frozen=True)
class Activation:
    """A pointwise nonlinearity.

    Attributes:
        name: "erf", "relu", "gauss", "cosine", "tanh", or your own.
        function: acts on tensors of any shape.
        growth: the power with which it grows.
        normalised: divide by √exp(2(σ_b² + σ_w² |x|²/d)), as the Gauss net does ([HMS] 2.3).
    """

    name: str
    function: Callable[[Tensor], Tensor]
    growth: float = 1.0
    normalised: bool = False


ERF = Activation("erf", torch.erf, 0.0)
RELU = Activation("relu", torch.relu, 1.0)
GAUSS = Activation("gauss", torch.exp, math.inf, normalised=True)  # bounded and normal laws have its moments
COSINE = Activation("cosine", torch.cos, 0.0)
TANH = Activation("tanh", torch.tanh, 0.0)


class Net(nn.Module):
    """x ↦ readout(φ(hidden_L(… φ(hidden_1(x))))), a multilayer perceptron.

    Args:
        widths: (inputs, N_1, …, N_L, outputs).
        activation: the nonlinearity after every hidden layer.
        sigma_w: normalisation of the Gauss net alone.
        sigma_b: likewise.
        dtype: of the parameters, float64 by default.
        device: the meta device by default: values come from an ensemble.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation,
        sigma_w: float = 1.0,
        sigma_b: float = 1.0,
        *,
        dtype: torch.dtype = torch.float64,
        device: str = "meta",
    ) -> None:
        super().__init__()
        if len(widths) < 3 or min(widths) < 1:
            raise InputError(
                f"widths {tuple(widths)}", remedy="give (inputs, hidden widths ..., outputs), all positive"
            )
        self.widths, self.activation, self.sigma_w, self.sigma_b = tuple(widths), activation, sigma_w, sigma_b
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.hidden = nn.ModuleList(nn.Linear(m, n, dtype=dtype, device=device) for m, n in pairs[:-1])
        self.readout = nn.Linear(*pairs[-1], dtype=dtype, device=device)

    def extra_repr(self) -> str:
        """What a printed module shows besides its layers."""
        return f"activation={self.activation.name}, sigma_w={self.sigma_w}, sigma_b={self.sigma_b}"

    def activate(self, z: Tensor, inputs: Tensor) -> Tensor:
        """Hidden values of preactivations z [..., N]; `inputs` [..., d] are what the layer read."""
        if not self.activation.normalised:
            return self.activation.function(z)
        scale = self.sigma_b**2 + self.sigma_w**2 * inputs.square().mean(-1, keepdim=True)
        return torch.exp(z - scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        for layer in self.hidden:
            x = self.activate(layer(x), x)
        return self.readout(x)

    def features(self, params: Mapping[str, Tensor], points: Tensor) -> Tensor:
        """Last hidden layer [count, n_points, N] of stacked parameters.

        Raises:
            InputError: points that are not [n_points, inputs].
        """
        if points.ndim != 2 or points.shape[1] != self.widths[0]:
            raise InputError(f"points of shape {list(points.shape)}", remedy=f"give [n_points, {self.widths[0]}]")
        x = points
        for i in range(len(self.hidden)):
            weight, bias = params[f"hidden.{i}.weight"], params[f"hidden.{i}.bias"]
            if x.shape[-1] == 1:  # one input: an outer product is faster than a matrix product
                z = torch.addcmul(bias[:, None, :], x, weight[:, None, :, 0])
            else:
                z = torch.baddbmm(bias[:, None, :], x.expand(len(weight), *x.shape[-2:]), weight.mT)
            x = self.activate(z, x)
        return x

    def stacked(self, params: Mapping[str, Tensor], points: Tensor) -> Tensor:
        """Outputs [count, n_points, outputs] of stacked parameters, the same numbers as through vmap."""
        h = self.features(params, points)
        return torch.baddbmm(params["readout.bias"][:, None, :], h, params["readout.weight"].mT)


def net(
    activation: Activation,
    widths: Sequence[int],
    sigma_w: float = 1.0,
    sigma_b: float = 1.0,
    *,
    dtype: torch.dtype = torch.float64,
    hidden_bias: Law | None = None,
) -> Ensemble:
    """The ensemble with W ~ N(0, σ_w²/fan-in) and b ~ N(0, σ_b²) in every layer.

    Args:
        activation: the nonlinearity.
        widths: (inputs, N_1, …, N_L, outputs).
        sigma_w: of all weights, before the division by √(fan-in).
        sigma_b: of all biases; zero switches them off.
        dtype: of the parameters.
        hidden_bias: another law for the biases of the hidden layers.
    """
    if not (sigma_w > 0 and math.isfinite(sigma_w) and sigma_b >= 0 and math.isfinite(sigma_b)):
        raise InputError(f"sigma_w={sigma_w}, sigma_b={sigma_b}", remedy="sigma_w is positive, sigma_b is not negative")
    module = Net(widths, activation, sigma_w, sigma_b, dtype=dtype)
    laws: dict[str, Law] = {}
    growth = {}
    for i, fan_in in enumerate(widths[:-2]):
        laws[f"hidden.{i}.weight"] = Normal(sigma_w / math.sqrt(fan_in))
        laws[f"hidden.{i}.bias"] = hidden_bias or Normal(sigma_b)
        growth |= {f"hidden.{i}.{part}": activation.growth for part in ("weight", "bias")}
    laws["readout.weight"] = Normal(sigma_w / math.sqrt(widths[-2]))
    laws["readout.bias"] = Normal(sigma_b)
    shape = "-".join(map(str, widths))
    return Ensemble(module, laws, name=f"{activation.name} net {shape}", growth=growth)


def _ready(
    activation: Activation,
    width: int | Sequence[int],
    inputs: int,
    outputs: int,
    w: float,
    b: float,
    dtype: torch.dtype,
) -> Ensemble:
    hidden = [width] if isinstance(width, int) else list(width)
    bias = Uniform(-math.pi, math.pi) if activation is COSINE else None
    made = net(activation, (inputs, *hidden, outputs), w, b, dtype=dtype, hidden_bias=bias)
    return made


def erf_net(
    width: int | Sequence[int],
    inputs: int = 1,
    outputs: int = 1,
    sigma_w: float = 1.0,
    sigma_b: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Ensemble:
    """Erf net ([HMS] 2.3). `width` is N, or (N_1, …, N_L) for a deep one."""
    return _ready(ERF, width, inputs, outputs, sigma_w, sigma_b, dtype)


def relu_net(
    width: int | Sequence[int],
    inputs: int = 1,
    outputs: int = 1,
    sigma_w: float = 1.0,
    sigma_b: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Ensemble:
    """ReLU net ([HMS] 2.3), without biases unless `sigma_b` is given."""
    return _ready(RELU, width, inputs, outputs, sigma_w, sigma_b, dtype)


def gauss_net(
    width: int | Sequence[int],
    inputs: int = 1,
    outputs: int = 1,
    sigma_w: float = 1.0,
    sigma_b: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Ensemble:
    """Gauss net ([HMS] 2.3): h = exp(z)/√exp(2(σ_b² + σ_w²|x|²/d)), translation invariant at infinite width alone."""
    return _ready(GAUSS, width, inputs, outputs, sigma_w, sigma_b, dtype)


def cosine_net(
    width: int | Sequence[int],
    inputs: int = 1,
    outputs: int = 1,
    sigma_w: float = 1.0,
    sigma_b: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Ensemble:
    """Cosine net: hidden biases uniform on a circle, so translation invariant at every width; σ_b is the output's."""
    return _ready(COSINE, width, inputs, outputs, sigma_w, sigma_b, dtype)


def tanh_net(
    width: int | Sequence[int],
    inputs: int = 1,
    outputs: int = 1,
    sigma_w: float = 1.0,
    sigma_b: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Ensemble:
    """Tanh net. `width` is N, or (N_1, …, N_L) for a deep one."""
    return _ready(TANH, width, inputs, outputs, sigma_w, sigma_b, dtype)
