"""Labelled images for the training experiments: scikit-learn's digits, and IDX files (MNIST, Fashion-MNIST)."""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchgauge.errors import InputError

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class ImageFileError(InputError):
    """An IDX file that cannot be read, or images and labels that do not belong together."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images as rows, and their classes.

    Attributes:
        x: float32 [count, pixels], in [0, 1].
        y: int64 [count], in 0..classes − 1.
        classes: how many classes there are.
        name: for titles.
    """

    x: Tensor
    y: Tensor
    classes: int
    name: str

    def __len__(self) -> int:
        return len(self.y)

    def split(self, *shares: float, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Disjoint index sets [·] in a random order: one for each share, and the rest last.

        Raises:
            ImageFileError: a part would be empty.
        """
        order = torch.randperm(len(self), generator=generator)
        sizes = [int(share * len(self)) for share in shares]
        sizes.append(len(self) - sum(sizes))
        if min(sizes) < 1:
            raise ImageFileError(
                f"{len(self)} images are too few for parts of {', '.join(map(str, sizes))}",
                self.name,
                "Give more images, or other shares.",
            )
        return order.split(sizes)


def digits() -> Images:
    """scikit-learn's 1,797 digits of 8 × 8 pixels, ten classes.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the digits come with scikit-learn, which is not installed", "", "pip install scikit-learn"
        ) from error
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16  # pyright: ignore[reportAttributeAccessIssue]
    y = torch.tensor(data.target, dtype=torch.int64)  # pyright: ignore[reportAttributeAccessIssue]
    return Images(x, y, 10, "scikit-learn digits")


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an IDX file, gzipped or not (http://yann.lecun.com/exdb/mnist describes the format).

    Two zero bytes, a type code, the number of dimensions, the sizes as big-endian 32-bit integers, then the entries.

    Raises:
        ImageFileError: the file is missing, not IDX, or of another length than its header says.
    """
    path = Path(path)
    raw = _bytes(path)
    where = str(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES or raw[3] == 0:
        raise ImageFileError(
            f"this is no IDX file: it begins with {raw[:4].hex(' ') or 'nothing'}, not with 00 00, a type and a rank",
            where,
            "Give the unpacked or gzipped file as it is published, for example train-images-idx3-ubyte.gz.",
        )
    kind, ndim = np.dtype(_TYPES[raw[2]]), raw[3]
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise ImageFileError(f"the header ends after {len(raw)} of {start} bytes", where, "Fetch the file again.")
    shape = struct.unpack(f">{ndim}I", raw[4:start])
    expected = start + kind.itemsize * prod(shape)
    if len(raw) != expected:
        raise ImageFileError(
            f"the header speaks of {' × '.join(map(str, shape))} entries, {expected} bytes; the file holds {len(raw)}",
            where,
            "The file is cut short or damaged: fetch it again.",
        )
    return np.frombuffer(raw, kind, offset=start).reshape(shape)


def idx_images(images: str | Path, labels: str | Path) -> Images:
    """Images and labels from two IDX files.

    Args:
        images: [count, ...] of unsigned bytes (divided by 255), or of floats (taken as they are).
        labels: [count] of integers from zero.

    Raises:
        ImageFileError: a file cannot be read, or the two do not fit each other.
    """
    x, y = read_idx(images), read_idx(labels)
    if x.ndim < 2:
        raise ImageFileError(
            f"{x.ndim} dimension in the file of images", str(images), "Are images and labels given in this order?"
        )
    if y.ndim != 1 or y.dtype.kind == "f":
        raise ImageFileError(
            f"labels are one integer each, not an array {list(y.shape)} of {y.dtype.name}",
            str(labels),
            "Are images and labels given in this order?",
        )
    if len(x) != len(y):
        raise ImageFileError(
            f"{len(x)} images but {len(y)} labels", str(labels), "Give the labels of the same part (train or t10k)."
        )
    if not len(y) or int(y.min()) < 0 or len(np.unique(y)) < 2:
        raise ImageFileError("at least two classes, numbered from zero, are needed", str(labels), "Look at the labels.")
    pixels = torch.from_numpy(x.reshape(len(x), -1).astype(np.float32))
    pixels = pixels / 255 if x.dtype.kind != "f" else pixels
    return Images(pixels, torch.from_numpy(y.astype(np.int64)), int(y.max()) + 1, Path(images).name.split(".")[0])


def _bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageFileError(f"the gzip data is damaged: {error}", str(path), "Fetch the file again.") from error
    except OSError as error:
        raise ImageFileError(
            f"the file cannot be read: {error.strerror}", str(path), "Give the path of an IDX file."
        ) from error
