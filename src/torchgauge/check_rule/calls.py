"""Small calls of an operator: arguments made from its schema, with a table for those that a schema does not tell."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from torchgauge.check_rule.recipes import RECIPES, Data, Weight

DOMAINS = ("real", "unit", "fraction", "positive", "above one")
"""Where the data of a call lie: normal numbers, |x| < 1, 0 < x < 1, x > 0, x > 1."""
SAMPLES = 8
MOST = 4000
"""Combinations of arguments that are tried."""


@dataclass(frozen=True)
class Call:
    """Arguments of an operator, with places for data and weights, and where the data must lie."""

    operator: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    domain: str

    @property
    def data(self) -> list[Data]:
        return [leaf for leaf in _leaves(self) if isinstance(leaf, Data)]

    def filled(self, data: list[Tensor], weights: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with tensors in their places."""
        given, own = iter(data), iter(weights)

        def leaf(x: Any) -> Any:
            return next(given) if isinstance(x, Data) else next(own) if isinstance(x, Weight) else x

        flat, spec = pytree.tree_flatten((self.args, self.kwargs))
        return pytree.tree_unflatten([leaf(x) for x in flat], spec)

    @property
    def weights(self) -> list[Weight]:
        return [leaf for leaf in _leaves(self) if isinstance(leaf, Weight)]

    def __str__(self) -> str:
        shown = [_shown(a) for a in self.args] + [f"{k}={_shown(v)}" for k, v in self.kwargs.items()]
        return f"{self.operator}({', '.join(shown)})"


def _leaves(call: Call) -> list[Any]:
    return pytree.tree_leaves((call.args, call.kwargs))


def _shown(value: Any) -> str:
    if isinstance(value, Data | Weight):
        return f"{type(value).__name__}({', '.join(map(str, value.shape))})"
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_shown(v) for v in value)}]"
    return str(value)


def calls(operator: OpOverload, given: list[Any] | None = None) -> Iterator[Call]:
    """Calls that run: those that are given, else those of the table, else the first that the schema allows.

    Args:
        operator: an overload.
        given: arguments in schema order, with `Data(...)` and `Weight(...)` for tensors.
    """
    recipes = [given] if given is not None else RECIPES.get(operator.overloadpacket.__name__)
    if recipes is not None:
        for recipe in recipes:
            args = tuple(recipe)
            if len(args) <= len(operator._schema.arguments) and (found := _running(operator, args, {})):
                yield found
        return
    for shape in ((3, 4), (2, 4, 4), (2, 3, 4, 4), (4,)):
        choices = [list(_choices(a, shape)) for a in operator._schema.arguments if not _optional(a)]
        names = [a for a in operator._schema.arguments if not _optional(a)]
        for combination in itertools.islice(itertools.product(*choices), MOST):
            pairs = list(zip(names, combination, strict=True))
            args = tuple(v for a, v in pairs if not a.kwarg_only)
            kwargs = {a.name: v for a, v in pairs if a.kwarg_only}
            if found := _running(operator, args, kwargs, meta=True):
                yield found
                return


def _optional(argument: torch.Argument) -> bool:
    return argument.has_default_value() and argument.name not in ("dim", "dim0", "dim1")


def _choices(argument: torch.Argument, shape: tuple[int, ...]) -> Iterator[Any]:
    """Values that an argument of this type may take."""
    kind, n = str(argument.type), shape[-1]
    exact = str(argument.real_type)
    if exact.startswith(("ScalarType", "Layout", "Device", "MemoryFormat")):
        yield torch.float64 if exact == "ScalarType" else torch.device("cpu") if exact == "Device" else None
    elif argument.name in ("index", "indices") and kind == "Tensor":
        yield torch.zeros(shape, dtype=torch.int64)
        yield torch.zeros(1, dtype=torch.int64)
    elif argument.name == "mask" or argument.name == "condition":
        yield torch.arange(n) % 2 == 0
    elif kind == "Tensor":
        yield Data(*shape)
    elif kind == "List[Tensor]":
        yield [Data(*shape), Data(*shape)]
    elif kind in ("number", "float"):
        yield from (1.5, 2, 0.5)
    elif kind == "int":
        yield from (0, 1, -1, 2)
    elif kind == "List[int]":
        yield from ([0], [n], [prod(shape)], [2], [2, 2], list(shape), [1] * len(shape), [0, 1], [1, 0])
    elif kind == "bool":
        yield False
    elif kind == "str":
        yield from ("mean", "sum", "amax", "none")
    else:
        yield None


def _running(operator: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], *, meta: bool = False) -> Call | None:
    """The call in the first domain where it gives finite floating numbers; with `meta`, if its shapes fit."""
    for domain in DOMAINS:
        generator = torch.Generator().manual_seed(0)
        call = Call(operator, args, kwargs, domain)
        if not call.data or (meta and not _fits(call)):
            return None
        try:
            weights = [w.make(generator) for w in call.weights]
            tried = [
                run(call, [sample(d.shape, domain, generator) for d in call.data], weights) for _ in range(SAMPLES)
            ]
        except Exception:  # whatever an operator says of wrong arguments
            return None
        if tried[0] and all(bool(r.isfinite().all()) for results in tried for r in results):
            return call
    return None


def _fits(call: Call) -> bool:
    """Whether the call runs on shapes alone: kernels may crash on arguments that do not fit."""
    flat, spec = pytree.tree_flatten(call.filled([torch.empty(d.shape) for d in call.data], []))
    args, kwargs = pytree.tree_unflatten([x.to("meta") if isinstance(x, Tensor) else x for x in flat], spec)
    try:
        call.operator(*args, **kwargs)
    except Exception:  # whatever an operator says of wrong arguments, and operators without shapes
        return False
    return True


def run(call: Call, data: list[Tensor], weights: list[Tensor] | None = None) -> list[Tensor]:
    """The floating results of a call."""
    own = weights if weights is not None else [w.make() for w in call.weights]
    if call.operator._schema.is_mutable:  # the data are used again
        data = [d.clone() for d in data]
    args, kwargs = call.filled(data, own)
    result = call.operator(*args, **kwargs)
    floating: Callable[[Any], bool] = lambda r: isinstance(r, Tensor) and r.is_floating_point() and r.numel() > 0  # noqa: E731
    return [r for r in pytree.tree_leaves(result) if floating(r)]


def sample(shape: tuple[int, ...], domain: str, generator: torch.Generator | None) -> Tensor:
    """Numbers of a domain, float64."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    match domain:
        case "unit":
            return 0.8 * torch.tanh(x)
        case "fraction":
            return 0.5 + 0.4 * torch.tanh(x)
        case "positive":
            return 0.1 + torch.nn.functional.softplus(x)
        case "above one":
            return 1.1 + torch.nn.functional.softplus(x)
    return x
