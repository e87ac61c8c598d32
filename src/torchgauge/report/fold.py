"""Folds repeated names: `layers.0.w`, `layers.1.w`, … become `layers.{0-79}.w`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

# A number that stands alone: `layers.3.w` has one, `conv1.w` has none.
_NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])")
_LEAF = re.compile(r"\.(weight|bias|in_proj_weight|in_proj_bias|running_mean|running_var)$")


def template(name: str) -> str:
    """The name with every number that stands alone replaced by `{}`."""
    return _NUMBER.sub("{}", name.replace("{}", "{ }"))


def fold(names: Iterable[str]) -> list[str]:
    """Patterns that stand for exactly these names, in order of first appearance."""
    families: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for name in names:
        families[template(name)].add(tuple(int(n) for n in _NUMBER.findall(name)))
    return [item for shape, numbers in families.items() for item in _boxes(shape, numbers)]


def _boxes(shape: str, numbers: set[tuple[int, ...]]) -> list[str]:
    """Covers a set of index tuples by boxes: merge, axis by axis, what agrees in all other indices."""
    boxes: list[tuple[tuple[int, ...], ...]] = sorted(tuple((n,) for n in index) for index in numbers)
    for axis in range(len(boxes[0])):
        merged: dict[tuple[tuple[int, ...], ...], tuple[int, ...]] = defaultdict(tuple)
        for box in boxes:
            merged[box[:axis] + box[axis + 1 :]] += box[axis]
        boxes = [(*rest[:axis], tuple(sorted(run)), *rest[axis:]) for rest, run in merged.items()]
    pieces = shape.split("{}")
    return [
        pieces[0] + "".join(_run(values) + piece for values, piece in zip(box, pieces[1:], strict=True))
        for box in sorted(boxes)
    ]


def _run(values: Sequence[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) + "}"


def modules(parameters: Iterable[str]) -> list[str]:
    """The modules that hold these parameters, folded; those of one parent stand together: `mlp.{up, down}`."""
    families: dict[str, list[str]] = defaultdict(list)
    for pattern in fold(dict.fromkeys(_LEAF.sub("", name) for name in parameters)):
        parent, _, child = pattern.rpartition(".")
        families[parent].append(child)
    return [
        ".".join(part for part in (parent, children[0] if len(children) == 1 else f"{{{', '.join(children)}}}") if part)
        for parent, children in families.items()
    ]
