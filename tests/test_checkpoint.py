"""Reading and writing safetensors: lazily, with ties, and never half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from torchgauge import checkpoint
from torchgauge.errors import CheckpointError


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    made = {f"w.{d}": torch.randn(3, 5, generator=generator).to(d) for d in dtypes}
    made |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "mask": torch.tensor([True, False, True])}
    return made | {"count": torch.tensor(7), "strided": torch.randn(4, 6, generator=generator).t()}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))


def test_file_round_trip_is_exact_and_read_by_others(tmp_path: Path) -> None:
    wanted = state()
    checkpoint.write(tmp_path / "x.safetensors", wanted, metadata={"who": "me"})
    found = checkpoint.read(tmp_path / "x.safetensors")
    assert set(found) == set(wanted)
    assert found.metadata["who"] == "me"
    others = load_file(tmp_path / "x.safetensors")
    for name, tensor in wanted.items():
        assert same(found[name], tensor)
        assert same(others[name], tensor)
        assert found.info(name).shape == tuple(tensor.shape)


def test_files_of_others_are_read(tmp_path: Path) -> None:
    wanted = {k: v.contiguous() for k, v in state().items()}
    save_file(wanted, tmp_path / "model.safetensors")
    found = checkpoint.read(tmp_path)
    assert {k: tuple(v.shape) for k, v in wanted.items()} == {k: found.info(k).shape for k in found}


def test_folder_with_shards(tmp_path: Path) -> None:
    wanted = {f"layers.{i}.weight": torch.full((10, 10), float(i)) for i in range(7)}
    checkpoint.write(tmp_path / "m", wanted, max_shard_bytes=900)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == 4
    found = checkpoint.read(tmp_path / "m")
    assert all(same(found[name], tensor) for name, tensor in wanted.items())
    assert found.nbytes == 7 * 400
    checkpoint.write(tmp_path / "copy.safetensors", found)
    assert len(checkpoint.read(tmp_path / "copy.safetensors")) == 7


def test_ties_are_stored_once_and_read_under_both_names(tmp_path: Path) -> None:
    shared = torch.randn(6, 3)
    checkpoint.write(tmp_path / "x.safetensors", {"embed": shared, "head": shared, "other": shared.clone()})
    found = checkpoint.read(tmp_path / "x.safetensors")
    assert found.ties == {"head": "embed"}
    assert same(found["head"], shared)
    assert len(found) == 3
    assert "head" not in load_file(tmp_path / "x.safetensors")
    checkpoint.write(tmp_path / "again.safetensors", found)
    assert checkpoint.read(tmp_path / "again.safetensors").ties == {"head": "embed"}


def test_ties_as_safetensors_writes_them(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_model(model, str(tmp_path / "m.safetensors"))
    assert len(checkpoint.read(tmp_path / "m.safetensors").ties) == 1


def test_reading_is_lazy(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "x.safetensors", {"a": torch.ones(4), "b": torch.ones(4)})
    found = checkpoint.read(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot read a"):
        found["a"]
    with pytest.raises(KeyError):
        found["c"]


@pytest.mark.parametrize("keep", [0, 4, 8, 20, 60, -1])
def test_truncated_anywhere(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.write(path, {"a": torch.ones(40)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated|not a safetensors") as caught:
        checkpoint.read(tmp_path)
    assert caught.value.where
    assert caught.value.remedy


def _with_header(path: Path, header: object, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


@pytest.mark.parametrize(
    "header",
    [
        b"{]",
        b"\xff\xfe\xfd",
        [1, 2],
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}},
        {"a": 3},
        {"__metadata__": 3, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    ],
)
def test_corrupt_headers(tmp_path: Path, header: object) -> None:
    _with_header(tmp_path / "model.safetensors", header, b"\0" * 8)
    with pytest.raises(CheckpointError):
        checkpoint.read(tmp_path)


def test_bad_index(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, {f"w{i}": torch.ones(100) for i in range(3)}, max_shard_bytes=450)
    index = tmp_path / checkpoint.INDEX
    good = index.read_text()
    for bad in (
        "{",
        "[]",
        good.replace("00002-of", "00009-of"),
        good.replace('"w0"', '"w9"'),
        good.replace("model-", "../m-"),
    ):
        index.write_text(bad)
        with pytest.raises(CheckpointError):
            checkpoint.read(tmp_path)


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such"):
        checkpoint.read(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no safetensors"):
        checkpoint.read(tmp_path)


def test_an_error_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"a": torch.ones(4)})
    before = path.read_bytes()
    info = checkpoint.TensorInfo(torch.float32, (4,))

    def load(name: str) -> torch.Tensor:
        if name == "b":
            raise RuntimeError("stop")
        return torch.zeros(4)

    with pytest.raises(RuntimeError, match="stop"):
        checkpoint.write_stream(path, {"a": info, "b": info}, load)
    with pytest.raises(CheckpointError, match="announced"):
        checkpoint.write_stream(path, {"a": info}, lambda name: torch.zeros(5))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_two_layouts_in_one_folder_are_refused(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.ones(100) for i in range(3)}
    checkpoint.write(tmp_path, tensors, max_shard_bytes=450)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        checkpoint.write(tmp_path, tensors)
    checkpoint.write(tmp_path, {name: -tensor for name, tensor in tensors.items()}, max_shard_bytes=450)
    assert checkpoint.read(tmp_path)["w2"][0] == -1
