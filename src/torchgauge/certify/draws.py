"""Further inputs, shaped as the example: random numbers, and identifiers within the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchgauge.certify.kinks import Kinks, base_name

# inputs small and large in turn: ReLU6 looks like ReLU below six, and a unit that is always on looks linear
_SCALES = (1.0, 2.0, 0.5, 4.0)
_INTEGERS = (torch.int64, torch.int32)


class _Watch(Kinks):
    """Notes which integer tensors pick rows of a table, and of how many rows, beside functions with a kink."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, int]] = []

    def note(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        super().note(func, args, kwargs)
        name = base_name(func)
        if func is torch.nn.functional.embedding or func is torch.nn.functional.embedding_bag:
            self._pair(args[0] if args else kwargs.get("input"), args[1] if len(args) > 1 else kwargs.get("weight"))
        elif name in ("embedding", "embedding_bag", "getitem") and len(args) > 1:
            self._pair(args[1], args[0])
        elif name == "index" and len(args) > 1 and isinstance(args[1], (tuple, list)) and args[1]:
            self._pair(args[1][0], args[0])
        elif name == "index_select" and len(args) > 2 and args[1] == 0:
            self._pair(args[2], args[0])

    def _pair(self, index: Any, table: Any) -> None:
        if isinstance(index, Tensor) and isinstance(table, Tensor) and index.dtype in _INTEGERS and table.ndim > 0:
            self.found.append((index, int(table.shape[0])))


@dataclass
class _Slot:
    """How one leaf of the example is drawn again: kind "normal", "identifier", "shuffle" or "keep"."""

    kind: str
    value: Any
    rows: int = 0
    left: Tensor | None = None


class Draws:
    """A stream of inputs shaped as an example.

    Floating tensors are drawn from a normal distribution, at scales that change from input to input. Integers that
    pick rows of a table are drawn so that every row comes up as often as any other. Masks, positions and everything
    else keep the example's values.

    Args:
        args: example positional arguments.
        kwargs: example keyword arguments.
        run: calls the model on (args, kwargs); used once to see which integers are identifiers.
        generator: source of randomness.
    """

    def __init__(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        run: Callable[[tuple, dict], Any],
        generator: torch.Generator,
    ) -> None:
        self.generator = generator
        self.count = 0
        leaves, self._spec = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
        values = [(pytree.keystr(path).lower(), _real(leaf)) for path, leaf in leaves]
        self.example: tuple[tuple, dict] = pytree.tree_unflatten([v for _, v in values], self._spec)
        watch = _Watch()
        with torch.no_grad(), watch:
            run(*self.example)
        self._slots = [_slot(name, value, watch.found) for name, value in values]
        self.kinks = watch.met
        self.varied = any(s.kind in ("normal", "identifier") for s in self._slots)

    def next(self) -> tuple[tuple, dict]:
        """The next input, as (args, kwargs)."""
        scale = _SCALES[self.count % len(_SCALES)]
        self.count += 1
        return pytree.tree_unflatten([self._draw(slot, scale) for slot in self._slots], self._spec)

    def _draw(self, slot: _Slot, scale: float) -> Any:
        value = slot.value
        if slot.kind == "normal":
            drawn = scale * torch.randn(value.shape, generator=self.generator, dtype=torch.float64)
            return drawn.to(value.device, value.dtype)
        if slot.kind == "identifier":
            # whole permutations of the rows, one after another: every row is drawn
            left = slot.left if slot.left is not None else torch.empty(0, dtype=torch.int64)
            while left.numel() < value.numel():
                left = torch.cat([left, torch.randperm(slot.rows, generator=self.generator)])
            slot.left = left[value.numel() :]
            return left[: value.numel()].reshape(value.shape).to(value.device, value.dtype)
        if slot.kind == "shuffle":
            order = torch.randperm(value.numel(), generator=self.generator).to(value.device)
            return value.reshape(-1)[order].reshape(value.shape)
        return value


def _real(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.device.type != "meta":
        return leaf.detach()
    if leaf.is_floating_point():
        return torch.randn(leaf.shape).to(leaf.dtype)
    # a mask without values lets everything through; an identifier without values is the first one
    return torch.full(leaf.shape, leaf.dtype == torch.bool, dtype=leaf.dtype)


def _slot(name: str, value: Any, lookups: list[tuple[Tensor, int]]) -> _Slot:
    if not isinstance(value, Tensor) or value.numel() == 0:
        return _Slot("keep", value)
    if value.is_floating_point():
        huge = not bool(value.isfinite().all()) or float(value.abs().max()) > 1e6
        return _Slot("keep" if huge or "mask" in name else "normal", value)
    if value.dtype == torch.bool or value.is_complex():
        return _Slot("keep", value)
    same = [rows for index, rows in lookups if _same_storage(index, value)]
    if not same and "mask" not in name and "position" not in name:
        same = [rows for index, rows in lookups if index.numel() == value.numel() and _equal(index, value)]
    if same:
        return _Slot("identifier", value, rows=min(same))
    binary = bool(((value == 0) | (value == 1)).all())
    return _Slot("keep" if binary or "mask" in name or "position" in name else "shuffle", value)


def _same_storage(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool((a.reshape(-1).to(b.device) == b.reshape(-1)).all())
