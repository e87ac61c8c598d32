"""A Hugging Face folder: architecture from config.json, weights from safetensors, inputs from the config.

Without weights the model is built on the meta device, so that a configuration of any size takes no memory.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchgauge import checkpoint
from torchgauge.errors import CheckpointError, ModelError

BATCH, LENGTH, DECODER_LENGTH = 2, 8, 6


@dataclass(frozen=True)
class Folder:
    """A model of the transformers library with keyword inputs that fit it."""

    model: nn.Module
    inputs: dict[str, Tensor]
    notes: tuple[str, ...]


def load(folder: Path, *, weights: bool) -> Folder:
    """Builds the model of a folder in evaluation mode.

    Headers of safetensors files are checked against the architecture in either case. A folder without weights gives a
    model on the meta device.

    Raises:
        ModelError: no config.json, or one that makes no model. CheckpointError: weights damaged or of other shapes.
    """
    config = read_config(folder)
    with _quiet():
        skeleton = build(config, folder)
    notes: list[str] = []
    stored = checkpoint.has_weights(folder)
    quantised = getattr(config, "quantization_config", None) is not None
    if quantised:
        notes.append("the checkpoint is quantised: the architecture is read as if it were not")
    elif stored:
        _check_shapes(checkpoint.read(folder), skeleton, folder)
    model = skeleton
    if weights and stored and not quantised:
        with _quiet():
            model, missing = _fill(type(skeleton), folder)
        if missing:
            notes.append(f"{len(missing)} tensors are not in the files and have random values: {_some(missing)}")
    elif weights:
        notes.append("no safetensors weights that can be read: only the architecture is looked at")
    return Folder(model.eval(), example_inputs(model), tuple(notes))


def read_config(folder: Path) -> Any:
    """The configuration of a folder, as a transformers object.

    Raises:
        ModelError: transformers is not installed; no config.json; not JSON; not a known architecture.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError("no config.json in this folder", str(folder), "Name a folder of save_pretrained.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"not valid JSON: {error}", str(path), "Fetch the file again.") from error
    if not isinstance(raw, dict) or not ({"model_type", "architectures"} & raw.keys()):
        raise ModelError("config.json names no model_type", str(path), "Name a folder of save_pretrained.")
    try:
        from transformers import AutoConfig
    except ImportError as error:
        remedy = "pip install 'torchgauge[transformers]'"
        raise ModelError("reading this folder needs the transformers library", str(folder), remedy) from error
    try:
        with _quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here
        what = "it needs code of its own" if "auto_map" in raw else f"transformers cannot read it: {_line(error)}"
        remedy = "Build the model in Python and name it as package.module:callable."
        raise ModelError(what, str(path), remedy) from error


def build(config: Any, where: Path | str = "") -> nn.Module:
    """The model of a configuration on the meta device, without weights."""
    import transformers

    names = getattr(config, "architectures", None) or []
    cls = getattr(transformers, names[0], None) if names else None
    try:
        with torch.device("meta"):
            return cls(config) if cls is not None else transformers.AutoModel.from_config(config)
    except Exception as error:  # a config of impossible sizes fails anywhere in the constructor
        raise ModelError(
            f"the configuration makes no model: {_line(error)}", str(where), "Check the sizes in config.json."
        ) from error


# -- weights ---------------------------------------------------------------------------------------------------
def _check_shapes(stored: checkpoint.Checkpoint, skeleton: nn.Module, folder: Path) -> None:
    """Compares the headers with the architecture, where the names agree (up to the prefix of the base model)."""
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    prefix = getattr(skeleton, "base_model_prefix", "") + "."
    for name in stored:
        for key in (name, prefix + name, name.removeprefix(prefix)):
            if key in expected:
                found = stored.info(name).shape
                if found != expected[key]:
                    raise CheckpointError(
                        f"{name} has shape {list(found)} in the file, {list(expected[key])} by config.json",
                        str(folder),
                        "The weights and the configuration are of different models: fetch both from one place.",
                    )
                break


def _fill(cls: type, folder: Path) -> tuple[nn.Module, list[str]]:
    try:
        model, info = cls.from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype="auto"
        )
    except Exception as error:  # transformers raises many kinds here
        remedy = "Check that the weights belong to this config.json."
        raise CheckpointError(f"the weights cannot be loaded: {_line(error)}", str(folder), remedy) from error
    missing = sorted(str(name) for name in info.get("missing_keys", ()))
    if len(missing) == len(model.state_dict()):
        raise CheckpointError("no name in the files is a parameter of the model", str(folder), "Wrong config.json?")
    return model, missing


# -- inputs ----------------------------------------------------------------------------------------------------
def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Small inputs for `model.main_input_name`, and a decoder's where there is one."""
    config: Any = model.config
    main = str(getattr(model, "main_input_name", "input_ids"))
    accepted = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(0)
    inputs = {main: _MAKERS.get(main, _features)(config, generator)}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _ids(config, generator, DECODER_LENGTH)[: len(inputs[main])]
    two_towers = hasattr(config, "text_config") and hasattr(config, "vision_config") and hasattr(model, "logit_scale")
    if two_towers:  # CLIP and its kin compare a text with an image
        inputs["input_ids"] = _ids(config, generator)
        inputs["pixel_values"] = _pixels(config, generator)
    return inputs


def _ids(config: Any, generator: torch.Generator, length: int = LENGTH) -> Tensor:
    text = _part(config, "text_config")
    size = int(getattr(text, "vocab_size", 32))
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or LENGTH + 2
    ids = torch.randint(0, size, (BATCH, max(1, min(length, int(limit) - 2))), generator=generator)
    pad = getattr(text, "pad_token_id", None)
    # A padding token changes masks and positions in some models: keep to ordinary ones.
    return torch.where(ids == pad, (ids + 1) % size, ids) if pad is not None else ids


def _pixels(config: Any, generator: torch.Generator) -> Tensor:
    vision = _part(config, "vision_config")
    size = getattr(vision, "image_size", None) or 64
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    frames = getattr(vision, "num_frames", None)
    lead = (1, int(frames)) if frames else (BATCH,)
    return torch.randn(*lead, int(getattr(vision, "num_channels", 3)), int(height), int(width), generator=generator)


def _features(config: Any, generator: torch.Generator) -> Tensor:
    frames = 2 * int(getattr(config, "max_source_positions", 64))  # Whisper's encoder halves them
    if hasattr(config, "input_feat_per_channel"):  # Speech2Text puts time first
        return torch.randn(1, 64, int(config.input_feat_per_channel), generator=generator)
    return torch.randn(1, int(getattr(config, "num_mel_bins", 80)), frames, generator=generator)


def _waves(config: Any, generator: torch.Generator) -> Tensor:
    return torch.randn(1, 4000, generator=generator)


_MAKERS = {"input_ids": _ids, "pixel_values": _pixels, "input_features": _features, "input_values": _waves}


def _part(config: Any, name: str) -> Any:
    return getattr(config, name, None) or config


# -- the rest --------------------------------------------------------------------------------------------------
def _line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


def _some(names: list[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (", …" if len(names) > n else "")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the bars and the log of transformers; what matters of it becomes a note or an error."""
    from transformers.utils import logging as hf

    level, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hf.set_verbosity(logging.CRITICAL)
    hf.disable_progress_bar()
    try:
        yield
    finally:
        hf.set_verbosity(level)
        if bars:
            hf.enable_progress_bar()
