"""Slices in chunks whose buffers stay in the cache of a processor."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.ode.wilson_base import Samples, column

CACHE_BYTES = 2_400_000  # for the samples and buffers of one chunk, so that the buffers stay in a level-2 cache
WORK_BYTES = 1 << 24  # up to this, working memory is kept between calls: fresh pages cost as much as using them
_kept = threading.local()


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive slices as one batch.

    Attributes:
        slices: their range.
        batch: the range of their matrices, which count slices times fields.
        step: the length that all of them have, or 1 where lengths differ:
        steps: then their lengths, [n, 1, 1].
    """

    slices: slice
    batch: slice
    step: float
    steps: Tensor | None

    def of(self, nodes: list[Tensor]) -> list[Tensor]:
        """The part of every node's samples."""
        if self.batch.stop - self.batch.start == len(nodes[0]):
            return nodes
        return [node[self.batch] for node in nodes]


def chunks(samples: Samples, steps: Tensor, arrays: int) -> Iterator[Chunk]:
    """Cuts the slices, on a processor so that `arrays` matrices for every slice of a chunk fit the cache."""
    _, fields, d, _ = samples.values.shape
    parts = 1
    if samples.values.device.type == "cpu":
        matrix = fields * d * d * samples.values.element_size()
        parts = -(-samples.count // max(1, CACHE_BYTES // max(1, arrays * matrix)))
    lengths = steps.detach().tolist()
    even = _alike(lengths)
    for k in range(parts):
        start, stop = samples.count * k // parts, samples.count * (k + 1) // parts
        part, own = lengths[start:stop], None
        if not even and not _alike(part):
            own = column(steps.detach()[start:stop], samples.values).expand(-1, fields, 1, 1).reshape(-1, 1, 1)
        batch = slice(start * fields, stop * fields)
        yield Chunk(slice(start, stop), batch, part[0] if own is None else 1.0, own)


def _alike(lengths: list[float]) -> bool:
    """Whether lengths are equal, to the rounding of the times between them."""
    return max(lengths) - min(lengths) <= 3e-14 * abs(lengths[0])


def workspace(size: int, like: Tensor) -> Tensor:
    """Memory for `size` numbers, with any contents, until the next call from this thread."""
    if like.device.type != "cpu" or type(like) is not Tensor or size * like.element_size() > WORK_BYTES:
        return like.new_empty(size)
    key = like.dtype, torch.is_inference_mode_enabled()
    held: dict[tuple[torch.dtype, bool], Tensor] = _kept.__dict__.setdefault("held", {})
    memory = held.get(key)
    if memory is None or len(memory) < size:
        memory = held[key] = torch.empty(size, dtype=like.dtype)
    return memory[:size]
