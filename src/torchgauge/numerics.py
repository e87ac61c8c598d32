"""A model as a function of its state, computed in float64, and generic states to evaluate it at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from torchgauge.capture import Call, State, call_of, plain_layers, state_of, unchanged
from torchgauge.errors import InputError, ModelError
from torchgauge.nesting import observe

_WIDER = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
_WIDER_METHOD: dict[Any, Any] = {
    Tensor.float: Tensor.double,
    Tensor.half: Tensor.double,
    Tensor.bfloat16: Tensor.double,
    Tensor.cfloat: Tensor.cdouble,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.chalf: Tensor.cdouble,  # pyright: ignore[reportAttributeAccessIssue]
}
_WIDER_NAME = {
    "torch.FloatTensor": "torch.DoubleTensor",
    "torch.HalfTensor": "torch.DoubleTensor",
    "torch.BFloat16Tensor": "torch.DoubleTensor",
}
_KEEPS_BITS = frozenset({Tensor.view})  # view(dtype) reads the same bits: a wider type would change the shape


class Promote(TorchFunctionMode):
    """Runs what is written for single or half precision in double precision.

    Inside, every request for a lower floating type is one for float64: dtype arguments, `.float()`, `.half()`, the
    default type of factory functions, and tensors of a lower type that meet an operation. Integers stay as they are.

    Derivatives are those of the function, whatever training would make of it: a detached tensor is the tensor, regions
    without gradients have them, and embedding tables have no padding row (its gradient would be dropped, though the
    function reads the row). Batch norm in training mode updates no running statistics, and weight norm is written out
    (it has no forward-mode derivative).

    Operators that fix a precision in C++ or in TorchScript are out of reach.
    """

    def __enter__(self) -> Promote:
        self._defaults = [*getattr(self, "_defaults", []), torch.get_default_dtype()]
        torch.set_default_dtype(torch.float64)
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        torch.set_default_dtype(self._defaults.pop())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").split(".")[0]  # "add_" for `aten.add_.Tensor`
        if name == "__get__":
            return func(*args, **kwargs)
        if name == "_set_grad_enabled":
            return None
        if name == "detach":
            return _widen(args[0]).view_as(args[0])
        if func in _EQUALS:
            func, args, kwargs = _EQUALS[func](args, kwargs)
        func = _WIDER_METHOD.get(func, func)
        if func not in _KEEPS_BITS:
            kept = args[:1] if _writes(name) else ()  # a copy would lose the write
            args = (*kept, *(_widen(a) for a in args[len(kept) :]))
            kwargs = {k: v if k == "out" else _widen(v) for k, v in kwargs.items()}
        result = func(*args, **kwargs)
        return result if _writes(name) or "out" in kwargs else _widen(result)


def _writes(name: str) -> bool:
    return name in ("__setitem__", "__set__") or name.startswith("__i") or (name[-1:] == "_" and name[-2:] != "__")


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        wider = _WIDER.get(value.dtype)
        return value if wider is None else value.to(wider)
    if isinstance(value, torch.dtype):
        return _WIDER.get(value, value)
    if type(value) in (tuple, list):
        return type(value)([_widen(item) for item in value])
    if type(value) is str or type(value) is type(torch.FloatTensor):
        return _WIDER_NAME.get(value if isinstance(value, str) else f"torch.{value.__name__}", value)
    return value


def _whole_table(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    kwargs = {key: value for key, value in kwargs.items() if key != "padding_idx"}
    return F.embedding, (*args[:2], *((None,) if len(args) > 2 else ()), *args[3:]), kwargs


def _whole_table_aten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return torch.embedding, args[:2], {key: value for key, value in kwargs.items() if key in ("weight", "indices")}


def _without_statistics(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    if given.get("training", False):
        given |= {"running_mean": None, "running_var": None}
    return F.batch_norm, (), given


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    over = [i for i in range(v.ndim) if dim == -1 or i != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=over, keepdim=dim != -1))


def _written_out(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return _weight_norm, args, kwargs


_EQUALS: dict[Any, Callable[..., tuple[Any, tuple[Any, ...], dict[str, Any]]]] = {
    F.embedding: _whole_table,
    torch.embedding: _whole_table_aten,
    torch.ops.aten.embedding.default: _whole_table_aten,
    F.batch_norm: _without_statistics,
    torch._weight_norm: _written_out,
}


def evaluator(
    model: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None
) -> Callable[[Mapping[str, Tensor]], list[Tensor]]:
    """The model at fixed inputs as a function of its state, in float64.

    Args:
        model: the module; it is left unchanged by every evaluation.
        args: positional inputs.
        kwargs: keyword inputs.

    Returns:
        A function from a state dict (parameters and buffers; of tied names the canonical one counts; what is missing
        is the model's own) to the observed outputs, the same and in the same order as `capture` reports. It is pure:
        random draws are the same at every call and buffers are not written to. `torch.func` transforms go through.
        It raises InputError for a state that does not fit and for inputs that the model refuses.
    """
    own = state_of(model)
    call = call_of(model, args, kwargs)
    placed: dict[torch.device, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def evaluate(state: Mapping[str, Tensor]) -> list[Tensor]:
        full = _full_state(own, state)
        device = next((t.device for t in full.values()), torch.device("cpu"))
        if device not in placed:
            placed[device] = _double_inputs(call, device)
        inner_args, inner_kwargs = placed[device]
        with _deterministic(device), Promote(), unchanged(model), plain_layers(model):
            output = torch.func.functional_call(model, full, inner_args, inner_kwargs)
        return [value for _, value in observe(output)[0]]

    return evaluate


def relative_defect(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """max over outputs of max|a − b| / max|a|; infinite where one is not finite and the other differs.

    Raises:
        InputError: the lists do not have the same shapes.
    """
    if [t.shape for t in a] != [t.shape for t in b]:
        raise InputError("Two lists of outputs of different shapes have no defect.")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.numel() == 0:
            continue
        difference = torch.where(x == y, torch.zeros_like(x), x - y).abs().max().item()
        finite = x[x.isfinite()].abs()
        size = finite.max().item() if finite.numel() else 0.0
        if difference != 0.0:
            defect = difference / size if size > 0.0 else math.inf
            worst = max(worst, defect if math.isfinite(defect) else math.inf)
    return worst


def randomise(model: nn.Module, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """A generic float64 state dict of `model`: no gain is one, no bias is zero, no running statistic is trivial.

    Weights have variance 1.7 / fan-in, so that activations stay of order one; embedding tables are standard normal.
    Parameters that start as one constant (gains, slopes) are spread around it. Other buffers keep their values.

    Raises:
        ModelError: a buffer on the meta device, whose value only the real model knows.
    """
    own = state_of(model)
    owners = {name: owner for path, owner in model.named_modules() for name in _names_in(path, owner)}
    state = {name: _generic(name, p, owners.get(name), generator) for name, p in own.params.items()}
    for name, buffer in own.buffers.items():
        state[name] = _generic_buffer(name, buffer, generator)
    return state | {name: state[canonical] for name, canonical in own.ties.items()}


def _names_in(path: str, owner: nn.Module) -> Iterator[str]:
    for name, _ in owner.named_parameters(recurse=False, remove_duplicate=False):
        yield f"{path}.{name}" if path else name


def _generic(name: str, p: Tensor, owner: nn.Module | None, generator: torch.Generator | None) -> Tensor:
    device = torch.device("cpu") if p.is_meta else p.device
    if not (p.is_floating_point() or p.is_complex()):
        if p.is_meta:
            raise _unknown(name)
        return p.detach().clone()
    dtype = torch.complex128 if p.is_complex() else torch.float64
    normal = torch.randn(p.shape, generator=generator, dtype=dtype)
    linear = isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd)) and p.ndim >= 2
    if isinstance(owner, nn.Embedding):
        value = normal
    elif not linear and p.numel() == max(p.shape, default=1):  # a vector, or a scalar
        constant = _constant(p) if not p.is_meta else (1.0 if name.endswith("weight") else 0.0)
        if constant:
            spread = 0.5 + torch.rand(p.shape, generator=generator, dtype=torch.float64)
            value = (spread * (constant if abs(constant) >= 0.1 else 1.0)).to(dtype)
        else:
            value = 0.5 * normal
    else:
        value = 1.3 * normal / math.sqrt(_fan_in(p, owner))
    return value.to(device)


def _constant(p: Tensor) -> float:
    """The value of a vector of one repeated entry, 1.0 for a positive vector (a trained gain), else 0.0."""
    if p.is_complex() or p.numel() == 0:
        return 0.0
    low, high = p.detach().min().item(), p.detach().max().item()
    if low == high:
        return high
    return 1.0 if low > 0 else 0.0


def _fan_in(p: Tensor, owner: nn.Module | None) -> float:
    if isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd)):
        return math.prod(p.shape[1:]) or 1  # a layer may have no rows, or none to read
    if type(owner).__name__ == "Conv1D":  # Hugging Face's transposed linear layer
        return p.shape[0] or 1
    if p.ndim == 2:
        return p.shape[1] or 1
    return math.sqrt(p.shape[-1] * p.shape[-2]) or 1.0  # a stack of matrices, either way round


def _generic_buffer(name: str, buffer: Tensor, generator: torch.Generator | None) -> Tensor:
    device = torch.device("cpu") if buffer.is_meta else buffer.device
    if name.endswith("running_mean"):
        return (0.5 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64)).to(device)
    if name.endswith("running_var"):
        return (0.5 + 1.5 * torch.rand(buffer.shape, generator=generator, dtype=torch.float64)).to(device)
    if buffer.is_meta:
        if name.endswith("num_batches_tracked"):
            return torch.zeros(buffer.shape, dtype=buffer.dtype)
        raise _unknown(name)
    return _double(buffer.detach().clone())


def _unknown(name: str) -> ModelError:
    return ModelError(
        "A tensor on the meta device has no value to compute with.",
        where=name,
        remedy="Build the model, or a small one of its kind, on a real device.",
    )


def _double(t: Tensor) -> Tensor:
    wider = _WIDER.get(t.dtype)
    return t if wider is None else t.to(wider)


def _full_state(own: State, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every name of the model on a float64 tensor; tied names on that of their canonical name."""
    canonical = own.params | own.buffers
    unknown = [name for name in state if name not in canonical and name not in own.ties]
    if unknown:
        raise InputError("The state has a tensor that the model has not.", where=unknown[0])
    tied = {own.ties[name]: value for name, value in state.items() if name in own.ties}
    full: dict[str, Tensor] = {}
    for name, default in canonical.items():
        value = state.get(name, tied.get(name, default))
        if value.is_meta:
            raise _unknown(name)
        if value.shape != default.shape:
            raise InputError(f"The model has shape {list(default.shape)}, the state {list(value.shape)}.", where=name)
        value = _double(value if name in state or name in tied else value.detach())
        full[name] = value.clone() if name in own.buffers else value  # forward may write to a buffer
    return full | {name: full[of] for name, of in own.ties.items()}


def _double_inputs(call: Call, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for name, value in call.tensors.items():
        if value.is_meta:
            raise InputError(
                "An input on the meta device has no value to compute with.", where=name, remedy="Give a real tensor."
            )
    return call.put({name: _double(value.detach().to(device)) for name, value in call.tensors.items()})


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """The same random draws at every call, and attention by the kernel that has derivatives of every kind."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), sdpa_kernel(SDPBackend.MATH):
        if devices:
            torch.manual_seed(0)
        else:  # the general function keeps a stack trace of every call for a GPU that may come later
            torch.default_generator.manual_seed(0)
        yield
