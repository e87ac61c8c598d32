"""Lazy reading and streamed writing of safetensors files and folders, with their ties.

A `Checkpoint` reads headers alone; a tensor is loaded when it is asked for. Writing goes tensor by tensor into a file
beside the target, which is renamed when it is whole: an error leaves what was there before.

A tie is a second name of one tensor. Safetensors stores each tensor once, so ties live in the metadata, as
`safetensors.torch.save_model` writes them: {second name: stored name}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchgauge.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER = 100_000_000  # bytes, as in the reference implementation

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Checkpoint(Mapping[str, Tensor]):
    """A safetensors file or folder, opened but not loaded.

    Attributes:
        path: the file or folder.
        infos: name → dtype and shape, in the order of the files.
        files: name → the file that holds it.
        ties: second name → stored name; a tied name can be read like any other.
        metadata: the free-form strings of the headers, without the ties.
    """

    path: Path
    infos: dict[str, TensorInfo]
    files: dict[str, Path]
    ties: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import SafetensorError, safe_open

        stored = self.ties.get(name, name)
        if stored not in self.files:
            raise KeyError(name)
        try:
            with safe_open(self.files[stored], framework="pt") as file:
                return file.get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {stored}: {error}", str(self.files[stored]), _FETCH_AGAIN) from error

    def __iter__(self) -> Iterator[str]:
        yield from self.infos
        yield from self.ties

    def __len__(self) -> int:
        return len(self.infos) + len(self.ties)

    def info(self, name: str) -> TensorInfo:
        return self.infos[self.ties.get(name, name)]

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.infos.values())


_FETCH_AGAIN = "The file is damaged or was not fetched to its end: fetch it again."


# -- reading ---------------------------------------------------------------------------------------------------
def has_weights(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds safetensors weights."""
    folder = Path(path)
    return (folder / INDEX).is_file() or any(folder.glob("*.safetensors"))


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a safetensors file, or a folder of them (sharded or not), and checks every header.

    Raises:
        CheckpointError: no such file, a damaged header, a truncated file, a shard or a tensor that is missing.
    """
    path = Path(path)
    if path.is_file():
        return _read_shards(path, [path])
    if not path.is_dir():
        raise CheckpointError("no such checkpoint", str(path), "Give a .safetensors file or a folder of them.")
    index = path / INDEX
    if index.is_file():
        return _read_indexed(path, index)
    if (path / SINGLE).is_file():
        return _read_shards(path, [path / SINGLE])
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise CheckpointError("no safetensors file in this folder", str(path), "Save the model as safetensors.")
    return _read_shards(path, shards)


def _read_indexed(folder: Path, index: Path) -> Checkpoint:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {name: folder / str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"the index is not valid: {error!r}", str(index), _FETCH_AGAIN) from error
    for shard in sorted(set(shards.values())):
        if shard.parent != folder or not shard.is_file():
            raise CheckpointError(f"the index names {shard.name}, which is not there", str(folder), _FETCH_AGAIN)
    found = _read_shards(folder, sorted(set(shards.values())))
    for name, shard in shards.items():
        if found.files.get(name) != shard:
            raise CheckpointError(f"{name} is in the index but not in {shard.name}", str(folder), _FETCH_AGAIN)
    return found


def _read_shards(path: Path, shards: list[Path]) -> Checkpoint:
    infos: dict[str, TensorInfo] = {}
    files: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        tensors, extra = read_header(shard)
        for name, info in tensors.items():
            if name in files:
                raise CheckpointError(f"{name} is in {files[name].name} and in {shard.name}", str(path))
            infos[name], files[name] = info, shard
        metadata.update(extra)
    ties = {a: b for a, b in metadata.items() if b in infos and a not in infos}
    rest = {key: value for key, value in metadata.items() if key not in ties}
    return Checkpoint(path, infos, files, ties, rest)


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata that a safetensors file declares, checked against the size of the file.

    Raises:
        CheckpointError: the header is not valid, or the file is shorter or longer than it says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise CheckpointError("not a safetensors file, or truncated inside its header", str(path), _FETCH_AGAIN)
            header = json.loads(file.read(length).decode("utf-8"))
        metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        tensors: dict[str, TensorInfo] = {}
        end = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            info = TensorInfo(DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"]))
            start, stop = entry["data_offsets"]
            if start != end or stop - start != info.nbytes or min(info.shape, default=0) < 0:
                raise CheckpointError(f"the header is wrong about the bytes of {name}", str(path), _FETCH_AGAIN)
            tensors[name], end = info, stop
    except OSError as error:
        raise CheckpointError(f"cannot open: {error.strerror}", str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the header is not valid: {error!r}", str(path), _FETCH_AGAIN) from error
    if size != 8 + length + end:
        state = "truncated" if size < 8 + length + end else "longer than its header says"
        raise CheckpointError(f"the file is {state}: {size} bytes of {8 + length + end}", str(path), _FETCH_AGAIN)
    return tensors, metadata


# -- writing ---------------------------------------------------------------------------------------------------
def find_ties(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Second name → first name of the entries of a state dict that are one and the same memory."""
    first: dict[tuple[Any, ...], str] = {}
    ties: dict[str, str] = {}
    for name, tensor in state.items():
        if tensor.is_meta or tensor.numel() == 0:
            continue
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key in first:
            ties[name] = first[key]
        else:
            first[key] = name
    return ties


def write(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes a state dict, or a `Checkpoint`, to a safetensors file, or a folder where `path` has no suffix.

    Tensors that share memory are stored once, and their other names as ties.

    Args:
        path: `name.safetensors`, or a folder, which gets model.safetensors or shards with an index.
        state: names and tensors; a `Checkpoint` is read one tensor at a time.
        metadata: strings for the header.
        max_shard_bytes: start a new file beyond this size (folders only).
    """
    if isinstance(state, Checkpoint):
        infos, ties = dict(state.infos), dict(state.ties)
    else:
        ties = find_ties(state)
        infos = {k: TensorInfo(v.dtype, tuple(v.shape)) for k, v in state.items() if k not in ties}
    write_stream(path, infos, state.__getitem__, ties=ties, metadata=metadata, max_shard_bytes=max_shard_bytes)


def write_stream(
    path: str | os.PathLike[str],
    infos: Mapping[str, TensorInfo],
    load: Callable[[str], Tensor],
    *,
    ties: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes tensors that `load` makes one at a time; only one is in memory at once.

    Raises:
        CheckpointError: `load` returned another dtype or shape than announced, or the folder holds another
            checkpoint. Nothing is left behind.
    """
    path = Path(path)
    extra = {"format": "pt", **(metadata or {}), **(ties or {})}
    if path.suffix == ".safetensors":
        plan = [(path, list(infos))]
    else:
        path.mkdir(parents=True, exist_ok=True)
        plan = _plan(path, infos, max_shard_bytes)
        _refuse_mixture(path, {target.name for target, _ in plan} | ({INDEX} if len(plan) > 1 else set()))
    written: list[tuple[Path, Path]] = []
    try:
        for target, names in plan:
            beside = target.with_name(f".{target.name}.{os.getpid()}.part")
            written.append((beside, target))
            _write_file(beside, {name: infos[name] for name in names}, load, extra)
        if len(plan) > 1:
            index = {
                "metadata": {"total_size": sum(info.nbytes for info in infos.values())},
                "weight_map": {name: target.name for target, names in plan for name in names},
            }
            beside = path / f".{INDEX}.{os.getpid()}.part"
            written.append((beside, path / INDEX))
            beside.write_text(json.dumps(index, indent=2), encoding="utf-8")
        for beside, target in written:
            os.replace(beside, target)
    finally:
        for beside, _ in written:
            beside.unlink(missing_ok=True)


def _refuse_mixture(folder: Path, names: set[str]) -> None:
    # Two layouts in one folder would leave it open which one a reader takes.
    for old in [*folder.glob("*.safetensors"), *folder.glob(INDEX)]:
        if old.name not in names:
            raise CheckpointError(f"the folder holds {old.name} of another checkpoint", str(folder), "Write elsewhere.")


def _plan(folder: Path, infos: Mapping[str, TensorInfo], limit: int | None) -> list[tuple[Path, list[str]]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in infos.items():
        if limit is not None and shards[-1] and size + info.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += info.nbytes
    if len(shards) == 1:
        return [(folder / SINGLE, shards[0])]
    n = len(shards)
    return [(folder / f"model-{i:05d}-of-{n:05d}.safetensors", names) for i, names in enumerate(shards, 1)]


def _write_file(
    path: Path, infos: Mapping[str, TensorInfo], load: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    # Wide types first keeps every tensor aligned, as readers that map the file expect.
    order = sorted(infos, key=lambda name: -infos[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        info = infos[name]
        if info.dtype not in _NAMES:
            raise CheckpointError(f"{name} has dtype {info.dtype}, which safetensors cannot hold", str(path))
        end = offset + info.nbytes
        header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            tensor, info = load(name), infos[name]
            if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
                found = f"{tensor.dtype} {list(tensor.shape)}"
                raise CheckpointError(f"{name} came as {found}, announced as {info.dtype} {list(info.shape)}")
            if tensor.numel():
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
