"""Runs one method on saved tiny models, in the environment of the peer: one forked process per model.

    python peers_worker.py METHOD FOLDER LIMIT

Reads FOLDER/*.pt, writes one line of JSON per model to standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

KEPT = 1e-6
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
    model = model_class(config).eval()
    model.load_state_dict(saved["state"], strict=False)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in saved["inputs"].items()}
    return model.double(), inputs


def observed(out: Any) -> list[Tensor]:
    """Floating tensors of the output, without caches."""
    if isinstance(out, Tensor):
        return [out] if out.is_floating_point() else []
    if hasattr(out, "items"):
        return [t for k, v in out.items() if "past" not in str(k) and "cache" not in str(k) for t in observed(v)]
    return [t for v in out for t in observed(v)] if isinstance(out, tuple | list) else []


def examine(method: str, path: Path) -> dict[str, Any]:
    """One method on one model."""
    from peers_methods import METHODS, Refused

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, inputs = load(path)
    with torch.no_grad(), Double():
        before = observed(model(**inputs))[:1]
    try:
        # dynamo cannot trace under a mode; what it traced runs under it below
        with contextlib.nullcontext() if method.startswith("brevitas") else Double():
            call, count, found = METHODS[method](model, inputs)
        with torch.no_grad(), Double():
            after = observed(call())[:1]
        change = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(before, after, strict=True))
    except Refused as reason:
        return {"outcome": "nothing", "error": str(reason)}
    except BaseException as error:  # whatever a peer raises
        return {
            "outcome": "refused",
            "error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200],
        }
    kept = change <= KEPT
    return {"outcome": "kept" if kept else "wrong", "change": change, "symmetries": count, "found": found}


def isolated(method: str, path: Path, limit: float) -> dict[str, Any]:
    """The result of one model from a forked process with a time limit."""
    start = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setsid()
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            os.write(writing, json.dumps(examine(method, path)).encode())
        os._exit(0)
    os.close(writing)
    waiting, out = b"", None
    while select.select([reading], [], [], max(0.0, limit - (time.monotonic() - start)))[0]:
        if not (chunk := os.read(reading, 1 << 16)):
            break
        waiting += chunk
    else:
        os.kill(child, signal.SIGKILL)
        out = {"outcome": "refused", "error": f"time limit of {limit:.0f} s"}
    os.close(reading)
    os.waitpid(child, 0)
    with contextlib.suppress(ValueError):
        out = out or json.loads(waiting)
    out = out or {"outcome": "refused", "error": "the process ended"}
    return out | {"model": path.stem, "method": method, "seconds": round(time.monotonic() - start, 1)}


def main() -> None:
    method, folder, limit = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    skip = set(sys.argv[4].split(",")) if len(sys.argv) > 4 else set()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    torch.set_num_threads(1)
    import transformers  # noqa: F401  (once, before the forks)

    with contextlib.suppress(ImportError):
        match method.split()[0]:
            case "brevitas":
                import brevitas.graph.equalize  # noqa: F401
            case "llm-compressor":
                import llmcompressor.modifiers.transform  # noqa: F401
            case "Torch-Pruning":
                import torch_pruning  # noqa: F401
    for path in sorted(folder.glob("*.pt")):
        if path.stem not in skip:
            print(json.dumps(isolated(method, path, limit)), flush=True)


if __name__ == "__main__":
    main()
