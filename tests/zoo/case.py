"""One network of the zoo, at generic parameters, evaluated in float64. Shares no code with the package."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

State = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A network with what is known of its redundancy.

    Attributes:
        build: makes the module (its initial values do not matter, `state` replaces them).
        inputs: makes one batch of inputs, fresh at every call.
        orbit: dimension of the orbit at generic parameters, measured or from the catalogue.
        nullity: nullity of the Jacobian, measured; `None` means the same as `orbit`.
        row: where the number comes from.
        reason: why nullity and orbit differ, where they do.
        batches: how many batches the nullity needs.
        centre: move biases so that hidden units are neither dead nor always on.
        seed: another draw of the parameters, where the first met a dead or an always-on unit.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], tuple[Any, ...]]
    orbit: int
    nullity: int | None = None
    row: str = ""
    reason: str = ""
    batches: int = 1
    seed: int = 0
    centre: bool = False
    train: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def expected_nullity(self) -> int:
        return self.orbit if self.nullity is None else self.nullity

    def module(self) -> nn.Module:
        """The module in double precision, at generic parameters."""
        torch.manual_seed(0)
        model = self.build().double().train(self.train)
        model.load_state_dict(self.state(model))
        calibrate(model, self)
        return model

    def example(self, seed: int = 0) -> tuple[Any, ...]:
        return self.inputs(torch.Generator().manual_seed(1000 + seed))

    def state(self, model: nn.Module) -> State:
        return generic_state(model, self.number)

    @property
    def number(self) -> int:
        return zlib.crc32(self.name.encode()) + self.seed


def calibrate(model: nn.Module, case: Case) -> None:
    """Moves biases and statistics near the data, so that few units are dead or always on; still generic."""
    g = torch.Generator().manual_seed(case.number)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=g, dtype=torch.float64)

    def centre_bias(m: Any, _: Any, out: Tensor) -> Tensor:
        axes = [i for i in range(out.ndim) if i != (1 if out.ndim == 4 else out.ndim - 1)]
        shift = -out.mean(axes) + 0.3 * out.std(axes) * noise(m.bias)
        m.bias += shift
        return out + (shift[:, None, None] if out.ndim == 4 else shift)

    def centre_statistics(m: Any, args: Any) -> None:
        (x,) = args
        axes = [i for i in range(x.ndim) if i != 1]
        deviation = x.std(axes)
        m.running_mean.copy_(x.mean(axes) + 0.3 * deviation * noise(m.running_mean))
        m.running_var.copy_((deviation * (1 + 0.2 * torch.tanh(noise(m.running_var)))) ** 2)

    hooks = []
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats and not case.train:
            hooks.append(m.register_forward_pre_hook(centre_statistics))
        elif case.centre and isinstance(m, (nn.Linear, nn.Conv2d)) and m.bias is not None:
            hooks.append(m.register_forward_hook(centre_bias))
    if hooks:
        with torch.no_grad(), Float64():
            model(*case.example(999), **case.kwargs)
    for hook in hooks:
        hook.remove()


def generic_state(model: nn.Module, seed: int) -> State:
    """Generic values for every parameter and statistic: gains are not one, biases not zero.

    Weights have variance one over their fan-in, so that activations stay of order one at any depth.
    """
    g = torch.Generator().manual_seed(seed)
    embeddings = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    wide = 12.0 if any(isinstance(m, nn.ReLU6) for m in model.modules()) else 1.0
    state: State = {}
    by_pointer: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    for name, old in model.state_dict().items():
        key = (old.data_ptr(), tuple(old.shape))
        if name in parameters and key in by_pointer:
            state[name] = by_pointer[key]
            continue
        value = old.clone()
        if not old.is_floating_point():
            pass
        elif name.endswith("running_var"):
            value = 0.5 + torch.rand(old.shape, generator=g, dtype=torch.float64)
        elif name.endswith("running_mean"):
            value = 0.3 * torch.randn(old.shape, generator=g, dtype=torch.float64)
        elif name not in parameters:
            pass
        elif name in embeddings:
            value = torch.randn(old.shape, generator=g, dtype=torch.float64)
        elif old.ndim >= 2:
            fan_in = max(old[0].numel(), 1)
            value = torch.randn(old.shape, generator=g, dtype=torch.float64) * min(1.0, 1.2 * fan_in**-0.5)
        elif "bias" in name.rsplit(".", 1)[-1]:
            value = 0.4 * torch.randn(old.shape, generator=g, dtype=torch.float64)
        else:
            value = wide * (0.6 + 0.8 * torch.rand(old.shape, generator=g, dtype=torch.float64))
        state[name] = value
        by_pointer[key] = value
    return state


class Float64(TorchFunctionMode):
    """Turns every cast to a shorter float into a cast to float64: norms and softmaxes of Hugging Face cast down."""

    SHORT = frozenset({torch.float32, torch.float16, torch.bfloat16})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            return args[0].double()
        kwargs = {k: torch.float64 if self._short(v) else v for k, v in (kwargs or {}).items()}
        return func(*(torch.float64 if self._short(a) else a for a in args), **kwargs)

    def _short(self, value: Any) -> bool:
        return isinstance(value, torch.dtype) and value in self.SHORT


def floats(value: Any) -> Iterator[Tensor]:
    """The observed outputs: every floating tensor, but no cache."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("past_key_values", "cache_params"):
                yield from floats(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from floats(item)
    elif is_dataclass(value):
        yield from floats(vars(value))


def evaluate(
    model: nn.Module, state: State, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> list[Tensor]:
    """The outputs at `state` in the precision of `state`; buffers that the model updates are copies."""
    parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    state = {n: v if n in parameters else v.clone() for n, v in state.items()}
    out = torch.func.functional_call(model, state, args, kwargs or {}, tie_weights=False)
    return list(floats(out))


def evaluate64(
    model: nn.Module, state: State, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> list[Tensor]:
    with Float64():
        return evaluate(model, state, args, kwargs)


def relative_defect(old: list[Tensor], new: list[Tensor]) -> float:
    """Largest over the outputs of ‖new − old‖_max / ‖old‖_max."""
    assert len(old) == len(new)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(old, new, strict=True))
