"""From the MODEL of the command line to a module and example inputs.

MODEL is a Hugging Face folder, a `.pt2` exported program, or `package.module:callable`. Pickled checkpoints are not
read: they run code.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchgauge import hugging_face
from torchgauge.errors import InputError, ModelError

KINDS = (
    "Give a Hugging Face folder (config.json and safetensors), a .pt2 file of torch.export.save, or "
    "package.module:callable, a function that returns (model, args). Nothing is downloaded."
)


@dataclass(frozen=True)
class Loaded:
    """A model that can be called: `model(*args, **kwargs)`."""

    spec: str
    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load(spec: str, *, weights: bool = False) -> Loaded:
    """Finds and builds the model that `spec` names.

    Args:
        spec: MODEL of the command line.
        weights: load the numbers of a Hugging Face folder; else its architecture stands on the meta device.

    Raises:
        ModelError: nothing usable under that name. CheckpointError: damaged weights. InputError: inputs missing.
    """
    path = Path(spec)
    if path.is_dir():
        folder = hugging_face.load(path, weights=weights)
        return _checked(Loaded(spec, folder.model, (), folder.inputs, folder.notes))
    if path.is_file():
        return _checked(_load_program(path))
    if ":" in spec and path.suffix != ".pt2":
        return _checked(_call(spec))
    if path.suffix == ".pt2" or "/" in spec:
        raise ModelError("no such file or folder", spec, KINDS)
    raise ModelError("not a model", spec, KINDS)


# -- exported programs -----------------------------------------------------------------------------------------
def _load_program(path: Path) -> Loaded:
    if path.suffix != ".pt2":
        hint = " For weights alone, name the folder that holds their config.json." * (path.suffix == ".safetensors")
        raise ModelError("not a model", str(path), KINDS + hint)
    import torch.export

    try:
        program = torch.export.load(path)
        inputs = program.example_inputs
        model = program.module(check_guards=False)
    except Exception as error:  # whatever the archive reader stumbles on
        raise ModelError(
            f"not an exported program: {_first_line(error)}",
            str(path),
            "Write it with torch.export.save(torch.export.export(model, args), path), with a torch of this version.",
        ) from error
    if inputs is None:
        raise InputError("the program holds no example inputs", str(path), "Export it again and save it whole.")
    args, kwargs = inputs
    return Loaded(str(path), model, tuple(args), dict(kwargs))


# -- package.module:callable -----------------------------------------------------------------------------------
def _call(spec: str) -> Loaded:
    module_name, _, attribute = spec.partition(":")
    target: Any = _import(module_name, spec)
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise ModelError(f"{module_name} has no {attribute!r}", spec, "Check the name behind the colon.")
        target = getattr(target, part)
    if isinstance(target, nn.Module) or not callable(target):
        made = target
    else:
        made = _run(target, spec)
    return _unpack(made, spec)


def _import(name: str, spec: str) -> Any:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise ModelError(f"{name!r} is not the name of a Python module", spec, KINDS)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        remedy = "Run from the folder that holds it, or install it."
        raise ModelError(f"no module named {error.name!r}", spec, remedy) from error
    except Exception as error:  # the user's module, any error at all
        what = f"importing {name} failed: {_first_line(error)}"
        raise ModelError(what, _last_line(error, spec), f"Mend it until `python -c 'import {name}'` runs.") from error


def _run(target: Callable[[], Any], spec: str) -> Any:
    try:
        inspect.signature(target).bind()
    except TypeError as error:
        raise ModelError(f"it is called without arguments: {error}", spec, "Wrap it in a function of none.") from error
    except ValueError:  # no signature to look at
        pass
    try:
        return target()
    except Exception as error:  # the user's function, any error at all
        what = f"it raised {_first_line(error)}"
        raise ModelError(what, _last_line(error, spec), "Mend it: it is called without arguments.") from error


def _unpack(made: Any, spec: str) -> Loaded:
    parts: tuple[Any, ...] = made if isinstance(made, tuple) else (made,)
    model = next(iter(parts), None)
    if not isinstance(model, nn.Module) or len(parts) > 3:
        found = type(made).__name__ + (f" of {[type(part).__name__ for part in parts]}" if parts is made else "")
        raise ModelError(
            f"it gives a {found}, not a torch.nn.Module",
            spec,
            "Return a module, (module, args) or (module, args, kwargs).",
        )
    args = parts[1] if len(parts) > 1 else ()
    kwargs = parts[2] if len(parts) > 2 else {}
    if isinstance(args, Mapping) and len(parts) == 2:
        args, kwargs = (), args
    if isinstance(args, torch.Tensor):
        args = (args,)
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, Mapping):
        raise InputError("args must be a tuple and kwargs a dict", spec, "Return (module, args, kwargs).")
    return Loaded(spec, model, tuple(args), dict(kwargs))


# -- checks ----------------------------------------------------------------------------------------------------
def _checked(loaded: Loaded) -> Loaded:
    """Refuses inputs that cannot be bound to `forward`, which torch.export would report from far inside."""
    try:
        inspect.signature(loaded.model.forward).bind(*loaded.args, **loaded.kwargs)
    except TypeError as error:
        missing = "inputs are missing or too many" if loaded.args or loaded.kwargs else "example inputs are missing"
        raise InputError(
            f"{missing}: {type(loaded.model).__name__}.forward: {error}",
            loaded.spec,
            "Return (module, args) or (module, args, kwargs), such that module(*args, **kwargs) runs.",
        ) from error
    if not any(True for _ in loaded.model.parameters()):
        raise ModelError("the model has no parameters", loaded.spec, "There is nothing to transform.")
    return loaded


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _last_line(error: BaseException, spec: str) -> str:
    """The line that raised: the caller looks there first."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno} ({spec})" if frames else spec
