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
    """Sets batch-norm statistics near those of the data, so that few units are dead or always on; still generic."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms or case.train:
        return
    g = torch.Generator().manual_seed(case.number)
    momenta = [m.momentum for m in norms]
    model.train()
    for m in norms:
        m.momentum = 1.0
    with torch.no_grad(), Float64():
        model(*case.example(999), **case.kwargs)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
        assert m.running_mean is not None and m.running_var is not None
        m.running_mean += 0.3 * m.running_var.sqrt() * torch.randn(m.running_mean.shape, generator=g, dtype=torch.float64)
        m.running_var *= 0.6 + 0.8 * torch.rand(m.running_var.shape, generator=g, dtype=torch.float64)
    model.eval()


def generic_state(model: nn.Module, seed: int) -> State:
    """Generic values for every parameter and statistic: gains are not one, biases not zero.

    Weights have variance one over their fan-in, so that activations stay of order one at any depth.
    """
    g = torch.Generator().manual_seed(seed)
    embeddings = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    wide = 3.0 if any(isinstance(m, nn.ReLU6) for m in model.modules()) else 1.0
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
