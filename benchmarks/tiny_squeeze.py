"""Smaller still: sizes of a configuration that its keys do not give away, found by trying them one at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from tiny_inputs import TOKEN, is_whole

# what is no size of a parameter, or must fit another number
_FIXED = re.compile(
    r"token|_ids?$|image_size|img_size|patch_size|window|kernel|stride|padding|dilation|index|indices|theta|rate|ratio|temperature|layer_types|version"
    r"|id2label|label2id|out_features|stage_names|vocab_size$|per_layer_config"
)
_COUNT = re.compile(r"layers?$|blocks?|depth|_per_block$|stages$")

Path = tuple[str, ...]
Raw = dict[str, Any]


def squeezed(
    raw: Raw, count: Callable[[Raw], int], runs: Callable[[Raw], bool], enough: int, seconds: float = 15.0
) -> Raw:
    """A configuration with fewer parameters that still makes a model that runs.

    Args:
        raw: the configuration, as a nested dict.
        count: parameters of the model of a configuration; raises where it makes none.
        runs: whether the model of a configuration can be called.
        enough: stop at so many parameters.
        seconds: stop after so long.
    """
    start, best = time.monotonic(), count(raw)
    for floor in (32, 8, 4):
        for path, value in sorted(_sizes(raw), key=lambda item: (-_largest(item[1]), item[0])):
            if best <= enough or time.monotonic() - start > seconds:
                return raw
            least = 2 if _COUNT.search(path[-1]) else floor
            if _largest(value) <= least:
                continue
            smaller = _with(raw, path, _at_most(value, least))
            try:
                now = count(smaller)
                if now < 0.98 * best and runs(smaller):
                    raw, best = smaller, now
            except Exception:  # a configuration of odd sizes fails anywhere
                continue
    return raw


def _sizes(raw: Raw, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Whole numbers, and lists of them, with the keys that lead there."""
    for key, value in raw.items():
        if _FIXED.search(key) or TOKEN.search(key):
            continue
        if isinstance(value, dict):
            yield from _sizes(value, (*path, key))
        elif _largest(value) > 1:
            yield (*path, key), value


def _largest(value: Any) -> int:
    if is_whole(value):
        return value
    return max(map(_largest, value), default=0) if isinstance(value, (list, tuple)) else 0


def _at_most(value: Any, least: int) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_at_most(v, least) for v in value)
    return min(value, least) if is_whole(value) else value


def _with(raw: Raw, path: Path, value: Any) -> Raw:
    key, *rest = path
    return raw | {key: _with(raw[key], tuple(rest), value) if rest else value}
