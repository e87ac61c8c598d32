"""Tensors inside nested values: the inputs and outputs of a model, whatever containers hold them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

_CACHE_KEYS = frozenset({"past_key_values", "past_key_value", "cache_params", "past_buckets_states", "mems"})


def children(value: Any) -> list[tuple[str, Any]] | None:
    """The entries of a container as (path step, value), or None for a leaf.

    Containers are mappings (`UserDict` and Hugging Face's `BatchEncoding` and `ModelOutput` too), lists, tuples,
    named tuples and dataclass instances; entries whose value is None are left out.
    """
    if isinstance(value, Mapping):
        found = [(f"[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        found = [(f".{key}", item) for key, item in zip(value._fields, value, strict=True)]  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(value, (list, tuple)):
        found = [(f"[{i}]", item) for i, item in enumerate(value)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = [(f".{f.name}", getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    else:
        return None
    return [(step, item) for step, item in found if item is not None]


def tensors_in(value: Any, path: str = "") -> dict[str, Tensor]:
    """Every tensor of a nested value by its path, such as "['batch'].mask[0]"."""
    if isinstance(value, Tensor):
        return {path: value}
    found: dict[str, Tensor] = {}
    for step, item in children(value) or ():
        found |= tensors_in(item, path + step)
    return found


def map_tensors(value: Any, change: Callable[[str, Tensor], Tensor], path: str = "") -> Any:
    """A copy of a nested value with every tensor changed; containers keep their type, other leaves their identity."""
    if isinstance(value, Tensor):
        return change(path, value)
    entries = children(value)
    if not entries:
        return value
    new = {step: map_tensors(item, change, path + step) for step, item in entries}
    if isinstance(value, Mapping):
        fresh = copy.copy(value)
        for key in value:
            if value[key] is not None:
                fresh[key] = new[f"[{key!r}]"]  # pyright: ignore[reportIndexIssue]
        return fresh
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return value._replace(**{step[1:]: item for step, item in new.items()})  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, (list, tuple)):
        items = [new.get(f"[{i}]", item) for i, item in enumerate(value)]
        return type(value)(items)
    fresh = copy.copy(value)
    for step, item in new.items():
        object.__setattr__(fresh, step[1:], item)
    return fresh


def observe(output: Any) -> tuple[list[tuple[str, Tensor]], list[str]]:
    """The observed outputs of a model, named, and the names of what is dropped.

    Floating and complex tensors are observed. Integer tensors, caches (by class name or by key) and values that are
    no tensors are dropped. A single tensor is "output", the entries of a tuple are "outputs[0]", a field goes by its
    own name.
    """
    seen: list[tuple[str, Tensor]] = []
    dropped: list[str] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Tensor):
            if value.is_floating_point() or value.is_complex():
                seen.append((name, value))
            else:
                dropped.append(name)
            return
        entries = None if _is_cache(value) else children(value)
        if entries is None:
            if value is not None:
                dropped.append(name)
            return
        for step, item in entries:
            key = step.strip(".[]'")
            if key in _CACHE_KEYS:
                dropped.append(_join(name, step))
            else:
                walk(item, _join(name, step))

    if isinstance(output, Tensor):
        walk(output, "output")
    elif children(output) is None or _is_cache(output):
        dropped.append("output")
    else:
        walk(output, "")
    return seen, dropped


def _join(name: str, step: str) -> str:
    """Paths as a reader says them: "text_model.hidden_states[0]"; a bare position belongs to "outputs"."""
    if step.startswith("['") and step[2:-2].isidentifier():
        step = f".{step[2:-2]}"
    return name + step if name else (f"outputs{step}" if step.startswith("[") else step[1:])


def _is_cache(value: Any) -> bool:
    return any(kind.__name__.endswith("Cache") for kind in type(value).__mro__)
