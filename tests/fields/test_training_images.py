"""Images from IDX files: what is read, and what is refused and how."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from torchgauge.fields.images import ImageFileError, Images, digits, idx_images, read_idx


def idx(array: np.ndarray, code: int) -> bytes:
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


PIXELS = np.arange(6 * 2 * 3, dtype=np.uint8).reshape(6, 2, 3)
LABELS = np.array([0, 1, 2, 1, 0, 2], dtype=np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    images, labels = tmp_path / "x-idx3-ubyte.gz", tmp_path / "y-idx1-ubyte"
    images.write_bytes(gzip.compress(idx(PIXELS, 0x08)))
    labels.write_bytes(idx(LABELS, 0x08))
    return images, labels


def test_reads_zipped_and_plain_files(files: tuple[Path, Path]) -> None:
    assert (read_idx(files[0]) == PIXELS).all()
    read = idx_images(*files)
    assert read.x.shape == (6, 6) and read.classes == 3 and len(read) == 6
    assert torch.allclose(read.x[1, 0], torch.tensor(6 / 255))
    assert read.y.tolist() == LABELS.tolist()


@pytest.mark.parametrize(("code", "dtype"), [(0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")])
def test_every_type_of_number(tmp_path: Path, code: int, dtype: str) -> None:
    array = np.arange(-3, 3).astype(dtype).reshape(2, 3)
    (tmp_path / "a").write_bytes(idx(array, code))
    assert (read_idx(tmp_path / "a") == array).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"\x89PNG\r\n", "no IDX file: it begins with 89 50 4e 47"),
        (bytes([0, 0, 0x07, 1]), "no IDX file"),
        (bytes([0, 0, 0x08, 3, 0, 0]), "the header ends after 6 of 16 bytes"),
        (idx(PIXELS, 0x08)[:-1], "6 × 2 × 3 entries, 52 bytes; the file holds 51"),
        (gzip.compress(idx(PIXELS, 0x08))[:-9], "gzip data is damaged"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ImageFileError, match=message) as caught:
        read_idx(tmp_path / "bad")
    assert str(tmp_path / "bad") in str(caught.value) and caught.value.remedy


def test_files_that_do_not_fit(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match="cannot be read"):
        read_idx(tmp_path / "missing")
    with pytest.raises(ImageFileError, match="given in this order"):
        idx_images(files[1], files[0])
    with pytest.raises(ImageFileError, match="given in this order"):
        idx_images(files[0], files[0])
    short = tmp_path / "short"
    short.write_bytes(idx(LABELS[:4], 0x08))
    with pytest.raises(ImageFileError, match="6 images but 4 labels"):
        idx_images(files[0], short)
    short.write_bytes(idx(np.zeros(6, dtype=np.uint8), 0x08))
    with pytest.raises(ImageFileError, match="two classes"):
        idx_images(files[0], short)


def test_digits() -> None:
    pytest.importorskip("sklearn")
    read = digits()
    assert read.x.shape == (1797, 64) and read.classes == 10
    assert float(read.x.min()) >= 0 and float(read.x.max()) == 1


def test_split() -> None:
    read = Images(torch.zeros(20, 2), torch.arange(20) % 2, 2, "made up")
    parts = read.split(0.25, 0.25, generator=torch.Generator().manual_seed(0))
    assert [len(p) for p in parts] == [5, 5, 10]
    assert sorted(torch.cat(parts).tolist()) == list(range(20))
    with pytest.raises(ImageFileError, match="too few"):
        read.split(0.01, 0.5, generator=torch.Generator())
