"""Runs one method on saved tiny models, in the environment of the peer: one forked process per model.

    python peers_worker.py METHOD FOLDER LIMIT [MODEL,MODEL…]

Reads FOLDER/*.pt, but for the models named last, and writes one line of JSON per model to standard output.

Every method is given the model in float64. Where it fails there, or changes the function, it is given the same weights
in float32, as its users would, and what comes out is measured in float64 with a tolerance for that rounding.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

KEPT = {"float64": 1e-6, "float32": 1e-4}
"""Largest relative change of the outputs that counts as none, by the precision that a method computed in."""
SAME = 1e-4
"""Largest relative difference between the outputs of two versions of transformers that is rounding of their own."""
MEMORY = 10_000_000_000
"""Bytes of address space for one model."""
PATIENT = 8
"""A process may wait for others: so many times its limit of processor time."""
LOW = (torch.float32, torch.float16, torch.bfloat16)


class Double(TorchFunctionMode):
    """Everything that asks for a lower precision gets float64, so that a change is no rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0].double()
        args = tuple(torch.float64 if isinstance(a, torch.dtype) and a in LOW else a for a in args)
        kwargs = {k: torch.float64 if isinstance(v, torch.dtype) and v in LOW else v for k, v in kwargs.items()}
        return func(*args, **kwargs)


# -- models ----------------------------------------------------------------------------------------------------
def load(path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model at its saved weights in float64, and its inputs."""
    import transformers

    saved = torch.load(path, weights_only=True)
    model_class = getattr(transformers, saved["class"])
    config_class = getattr(transformers, saved["config_class"], None) or model_class.config_class
    config = config_class.from_dict(json.loads(saved["config"]))
    for part in (config, getattr(config, "text_config", None)):
        if hasattr(part, "use_cache"):
            part.use_cache = False
        if hasattr(part, "_experts_implementation"):
            part._experts_implementation = "eager"
    model = model_class(config).eval()
    model.load_state_dict(saved["state"], strict=False)
    for p in model.parameters():
        p.requires_grad_(True)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in saved["inputs"].items()}
    return model.double(), inputs


def first(out: Any) -> Tensor | None:
    """The first floating tensor of the output."""
    if isinstance(out, Tensor):
        return out if out.is_floating_point() else None
    values = out.values() if hasattr(out, "values") else out if isinstance(out, tuple | list) else ()
    return next((t for v in values if (t := first(v)) is not None), None)


@contextlib.contextmanager
def double(active: bool = True) -> Iterator[None]:
    """What is made without a type is float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if active else default)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def observe(model: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
    """The first output, computed in float64; random draws are always the same."""
    torch.manual_seed(0)
    with torch.no_grad(), double(), Double():
        out = first(model(**inputs))
    assert out is not None, "no floating output"
    return out.detach().clone()


def change(before: Tensor, after: Tensor) -> float:
    """max|after − before| / max|before|."""
    known = before.isfinite()
    difference = (after - before)[known].abs().max() / before[known].abs().max()
    return float(difference.nan_to_num(1e9, 1e9)) if before.shape == after.shape else 1e9


# -- methods ---------------------------------------------------------------------------------------------------
def examine(method: str, path: Path) -> dict[str, Any]:
    """One method on one model: the better of what it does in float64 and in float32."""
    warnings.simplefilter("ignore")
    try:
        model, inputs = load(path)
        before = torch.load(path, weights_only=True)["output"]
        at_home, before = before, observe(model, inputs)
        if (off := change(at_home, before)) > SAME:
            return {"outcome": "not loaded", "error": f"other outputs than at home, by {off:.1e}"}
    except Exception as error:  # an older transformers may lack the class
        return {"outcome": "not loaded", "error": told(error)}
    from peers_methods import METHODS, OPTIONAL

    rows = []
    for precision, way in itertools.product(KEPT, range(len(METHODS[method]))):
        row = _tried(method, way, path, before, precision) | {"precision": precision}
        if row["outcome"] == "kept" or not (way and method in OPTIONAL):
            rows.append(row)
        if rows[-1]["outcome"] in ("kept", "nothing"):
            break
    return min(rows, key=lambda row: ("kept", "nothing", "wrong", "refused").index(row["outcome"]))


def _tried(method: str, way: int, path: Path, before: Tensor, precision: str) -> dict[str, Any]:
    from peers_methods import METHODS, Refused

    torch.manual_seed(0)
    model, inputs = load(path)
    wide = precision == "float64"
    if not wide:
        model, inputs = model.float(), {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
    # dynamo cannot trace under a mode; what it traced runs under it below
    mode = Double() if wide and not method.startswith("brevitas") else contextlib.nullcontext()
    try:
        with double(wide), mode:
            done = METHODS[method][way](model, inputs)
        if done.judge is not None:
            return done.judge(before, KEPT[precision]) | done.told
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        off = change(before, observe(done.model.double(), inputs))
    except Refused as reason:
        return {"outcome": "nothing", "error": str(reason)}
    except BaseException as error:  # whatever a peer raises
        return {"outcome": "refused", "error": told(error)}
    outcome = "wrong" if off > KEPT[precision] else "kept" if done.told["symmetries"] else "nothing"
    return {"outcome": outcome, "change": off} | done.told


def told(error: BaseException) -> str:
    """Kind, first line and place of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    cause = f" from {told(error.__cause__)}" if error.__cause__ is not None else ""
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''} ({place}){cause}"


def isolated(work: Callable[[], dict[str, Any]], limit: float) -> dict[str, Any]:
    """What `work` returns, from a forked process with a limit on processor time, and on memory."""
    start = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            os.write(writing, json.dumps(work()).encode())
        os._exit(0)
    os.close(writing)
    waiting, out = b"", None
    while select.select([reading], [], [], max(0.0, PATIENT * limit - (time.monotonic() - start)))[0]:
        if not (chunk := os.read(reading, 1 << 16)):
            break
        waiting += chunk
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, code, used = os.wait4(child, 0)
    if os.WIFSIGNALED(code) and os.WTERMSIG(code) in (signal.SIGXCPU, signal.SIGKILL):
        out = {"outcome": "refused", "error": f"time limit of {limit:.0f} s"}
    with contextlib.suppress(ValueError):
        out = out or json.loads(waiting)
    out = out or {"outcome": "refused", "error": "the process ended"}
    return out | {"seconds": round(used.ru_utime + used.ru_stime, 1)}


def main() -> None:
    method, folder, limit = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    skip = set(sys.argv[4].split(",")) if len(sys.argv) > 4 else set()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    torch.set_num_threads(1)
    import peers_methods
    import transformers  # noqa: F401  (once, before the forks)

    peers_methods.preload(method)
    for path in sorted(folder.glob("*.pt")):
        if path.stem not in skip:
            row = isolated(lambda p=path: examine(method, p), limit)
            print(json.dumps(row | {"model": path.stem, "method": method}), flush=True)


if __name__ == "__main__":
    main()
