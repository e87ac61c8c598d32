"""Functions with a kink, and what reaches them: on either side of a kink the network is another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchgauge.rules.pointwise import FAR

# where the kinks of a function of one tensor are
_AT: dict[str, tuple[float, ...]] = {
    "relu": (0.0,), "leaky_relu": (0.0,), "prelu": (0.0,), "rrelu": (0.0,), "abs": (0.0,), "elu": (0.0,),
    "celu": (0.0,), "selu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (-3.0, 3.0), "hardsigmoid": (-3.0, 3.0),
}  # fmt: skip
# where two arguments of it say where; their names and default values
_GIVEN: dict[str, tuple[tuple[str, float | None], tuple[str, float | None]]] = {
    "hardtanh": (("min_val", -1.0), ("max_val", 1.0)),
    "clamp": (("min", None), ("max", None)),
    "clip": (("min", None), ("max", None)),
}
_ONE_GIVEN = {"clamp_min": ("min", 1.0), "clamp_max": ("max", 1.0), "threshold": ("threshold", 1.0)}
_ABOUT_ZERO = {"hardshrink": 0.5, "softshrink": 0.5}
# where two numbers meet; beginnings of names
_ORDER = ("max", "min", "amax", "amin", "adaptive_max_pool", "topk", "sort")
# a bound as small as that keeps a division from failing, one as large nothing at all
_SMALL, _LARGE = 1e-3, 1e3


def base_name(func: Any) -> str:
    """ "relu" for `torch.relu`, `Tensor.relu_` and `aten.relu_.default` alike."""
    return getattr(func, "__name__", "").split(".")[0].strip("_")


@dataclass(frozen=True)
class Kinked:
    """One call of a function with kinks.

    Attributes:
        x: a copy of what it was applied to, with its history.
        at: where the kinks are, in ascending order.
    """

    x: Tensor
    at: tuple[float, ...]


class Kinks(TorchFunctionMode):
    """Notes every call of a function with a kink.

    Attributes:
        met: whether there was one.
        calls: those with kinks at known values, in order.

    Args:
        choices: whether a choice of the k largest counts as a call, with a kink where an entry is just taken.
    """

    def __init__(self, *, choices: bool = False) -> None:
        super().__init__()
        self.choices = choices
        self.met = False
        self.calls: list[Kinked] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def note(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        name = base_name(func)
        if name.startswith(_ORDER) and not _far(args):
            self.met = True
        x = args[0] if args else kwargs.get("input", kwargs.get("self"))
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return
        if self.choices and name == "topk" and (above := _above(x, args, kwargs)) is not None:
            self.calls.append(Kinked(above, (0.0,)))
        if not (at := _kinks(name, args, kwargs)):
            return
        if all(abs(k) >= FAR for k in at):
            return
        self.met = True
        at = tuple(sorted(k for k in at if k == 0.0 or _SMALL <= abs(k) <= _LARGE))
        if at:
            self.calls.append(Kinked(x.clone(), at))  # the function may write over it


def _above(x: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """By how much each entry is above the border of the k largest, zero if it is infinite; None where all are taken."""
    k, dim = _argument(args, kwargs, 1, "k", None), _argument(args, kwargs, 2, "dim", -1.0)
    if k is None or dim is None or kwargs.get("largest") is False or not 0 < k < x.shape[int(dim)]:
        return None
    best = x.detach().topk(int(k) + 1, int(dim)).values
    return (x - best.narrow(int(dim), int(k) - 1, 2).mean(int(dim), keepdim=True)).nan_to_num(0.0, 0.0, 0.0)


def _far(args: Any) -> bool:
    """Whether the second operand is one number that nothing reaches."""
    other = args[1] if len(args) > 1 else None
    return isinstance(other, Tensor) and other.numel() == 1 and bool((other.abs() >= FAR).all())


def _kinks(name: str, args: Any, kwargs: dict[str, Any]) -> tuple[float, ...]:
    """Where a function has its kinks; () for one that has none, or has them at values that are tensors."""
    if name in _AT:
        return _AT[name]
    if name in _GIVEN:
        given = [_argument(args, kwargs, i + 1, *which) for i, which in enumerate(_GIVEN[name])]
        return tuple(k for k in given if k is not None)
    if name in _ONE_GIVEN:
        key, default = _ONE_GIVEN[name]
        k = _argument(args, kwargs, 1, key, default)
        return () if k is None else (k,)
    if name in _ABOUT_ZERO:
        k = _argument(args, kwargs, 1, "lambd", _ABOUT_ZERO[name])
        return () if k is None else (-k, k)
    return ()


def _argument(args: Any, kwargs: dict[str, Any], place: int, name: str, default: float | None) -> float | None:
    value = args[place] if len(args) > place else kwargs.get(name, default)
    return float(value) if isinstance(value, (int, float)) else None
