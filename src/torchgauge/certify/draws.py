"""Further inputs, shaped as the example: random numbers, and identifiers within the vocabulary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchgauge.certify.kinks import Kinks, base_name

# inputs small and large in turn: ReLU6 looks like ReLU below six, and a unit that is always on looks linear
_SCALES = (1.0, 2.0, 0.5, 4.0)
_INTEGERS = (torch.int64, torch.int32)
# what moves integers about and leaves each as it is
_MOVES = frozenset({
    "transpose", "t", "permute", "swapaxes", "movedim", "contiguous", "clone", "to", "type", "long", "int", "view",
    "reshape", "flatten", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "repeat_interleave", "flip", "roll",
    "cat", "concat", "concatenate", "stack", "getitem", "narrow", "select",
})  # fmt: skip
# keys of a configuration for tokens that stand for features of something else
_PLACEHOLDER = re.compile(
    r"(image|video|audio|speech|vision|boi|eoi).*token(_id|_index)$|^(image|video|audio)_(id|index)$"
)


class _Watch(Kinks):
    """Notes which integer tensors pick rows of a table, and of how many rows, beside functions with a kink."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[_Lookup] = []
        self._copies: dict[int, tuple[Tensor, frozenset[int]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs)
        if base_name(func) in _MOVES and isinstance(out, Tensor) and out.dtype in _INTEGERS:
            moved = args[0] if args else (kwargs or {}).get("tensors")
            parts = moved if isinstance(moved, (tuple, list)) else [moved]
            # the tensor is held, so that nothing else gets its number
            self._copies[id(out)] = out, frozenset().union(*(self._origins(t) for t in parts))
        return out

    def _origins(self, t: Any) -> frozenset[int]:
        """Where the integers of a tensor come from: addresses."""
        if not isinstance(t, Tensor):
            return frozenset()
        known = self._copies.get(id(t))
        return frozenset([t.untyped_storage().data_ptr()]) | (known[1] if known else frozenset())

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
            self.found.append(_Lookup(index, self._origins(index), int(table.shape[0])))


@dataclass(frozen=True)
class _Lookup:
    """A tensor that picks rows of a table, where its integers come from, and how many rows the table has."""

    index: Tensor
    origins: frozenset[int]
    rows: int


@dataclass
class _Slot:
    """How one leaf of the example is drawn again: kind "normal", "identifier", "shuffle" or "keep".

    Identifiers are drawn from those below `rows` that are not reserved; reserved ones of the example stay.
    """

    kind: str
    value: Any
    rows: int = 0
    left: Tensor | None = None


def reserved(model: nn.Module) -> frozenset[int]:
    """Identifiers that are no words: they stay where the example has them, and are drawn nowhere else.

    Placeholders of pictures and sounds, as many as there are features, and padding that has a position of its own (the
    two rows are never read apart, so that what one gives the other can take).
    """
    found: set[int] = set()
    for part in _parts(getattr(model, "config", None)):
        found |= {v for k, v in vars(part).items() if type(v) is int and _PLACEHOLDER.search(k)}
    tables = [m for m in model.modules() if isinstance(getattr(m, "weight", None), Tensor)]
    padding = Counter(getattr(m, "padding_idx", None) for m in tables)
    return frozenset(found | {index for index, n in padding.items() if type(index) is int and n > 1})


def _parts(config: Any, depth: int = 3) -> Iterator[Any]:
    """A configuration and those inside of it."""
    if depth and hasattr(config, "to_dict"):
        yield config
        for value in list(vars(config).values()):
            yield from _parts(value, depth - 1)


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
        reserved: identifiers that stay where they are and are never drawn.
    """

    def __init__(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        run: Callable[[tuple, dict], Any],
        generator: torch.Generator,
        reserved: frozenset[int] = frozenset(),
    ) -> None:
        self.generator, self.reserved = generator, reserved
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

    @property
    def absent(self) -> frozenset[int]:
        """Reserved identifiers that occur in no input."""
        slots = [slot for slot in self._slots if slot.kind == "identifier"]
        found = frozenset(i for i in self.reserved if all(self._reserved(torch.tensor([i]), s.rows)[0] for s in slots))
        return found - {int(i) for slot in slots for i in slot.value.unique()}

    def next(self) -> tuple[tuple, dict]:
        """The next input, as (args, kwargs)."""
        scale = _SCALES[self.count % len(_SCALES)]
        self.count += 1
        return pytree.tree_unflatten([self._draw(slot, scale) for slot in self._slots], self._spec)

    def _draw(self, slot: _Slot, scale: float) -> Any:
        value = slot.value
        if slot.kind == "normal":
            drawn = scale * self._normal(value.shape)
            return drawn.to(value.device, value.dtype)
        if slot.kind == "identifier":
            # whole permutations of the rows, one after another: every row is drawn
            left = slot.left if slot.left is not None else torch.empty(0, dtype=torch.int64)
            while left.numel() < value.numel():
                order = torch.randperm(slot.rows, generator=self.generator)
                left = torch.cat([left, order[~self._reserved(order, slot.rows)]])
            slot.left = left[value.numel() :]
            drawn = left[: value.numel()].reshape(value.shape).to(value.device, value.dtype)
            return torch.where(self._reserved(value, slot.rows), value, drawn)
        if slot.kind == "shuffle":
            order = torch.randperm(value.numel(), generator=self.generator).to(value.device)
            return value.reshape(-1)[order].reshape(value.shape)
        return value

    def _normal(self, shape: Sequence[int]) -> Tensor:
        """Noise on top of what is constant along some dimensions: means of noise alone are nearly the same always."""
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        constant = torch.randint(2, (len(shape),), generator=self.generator).tolist()
        smooth = [1 if c and d else n for d, (n, c) in enumerate(zip(shape, constant, strict=True))]
        return noise + torch.randn(smooth, generator=self.generator, dtype=torch.float64)

    def _reserved(self, ids: Tensor, rows: int) -> Tensor:
        """Which identifiers are reserved; none of a table that has little else, or not even those."""
        if rows <= max(2 * len(self.reserved), *self.reserved, 0):
            return torch.zeros_like(ids, dtype=torch.bool)
        return torch.isin(ids, torch.tensor(sorted(self.reserved), dtype=ids.dtype, device=ids.device))


def _real(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.device.type != "meta":
        return leaf.detach()
    if leaf.is_floating_point():
        return torch.randn(leaf.shape).to(leaf.dtype)
    # a mask without values lets everything through; an identifier without values is the first one
    return torch.full(leaf.shape, leaf.dtype == torch.bool, dtype=leaf.dtype)


def _slot(name: str, value: Any, lookups: list[_Lookup]) -> _Slot:
    if not isinstance(value, Tensor) or value.numel() == 0:
        return _Slot("keep", value)
    if value.is_floating_point():
        huge = not bool(value.isfinite().all()) or float(value.abs().max()) > 1e6
        return _Slot("keep" if huge or "mask" in name else "normal", value)
    if value.dtype == torch.bool or value.is_complex():
        return _Slot("keep", value)
    same = [k.rows for k in lookups if value.untyped_storage().data_ptr() in k.origins]
    if not same and "mask" not in name and "position" not in name:
        same = [k.rows for k in lookups if k.index.numel() == value.numel() and _equal(k.index, value)]
    if same:
        return _Slot("identifier", value, rows=min(same))
    binary = bool(((value == 0) | (value == 1)).all())
    return _Slot("keep" if binary or "mask" in name or "position" in name else "shuffle", value)


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool((a.reshape(-1).to(b.device) == b.reshape(-1)).all())
