"""The sweep: every model type of the installed transformers, as a tiny model, inferred and certified.

    python benchmarks/coverage.py [--only TYPE[,TYPE…]] [--minutes N] [--limit SECONDS] [--memory GB] [--again STATUS]

For every model type that has a default configuration: its base class and one head class, shrunk to a few thousand
parameters (`tiny_models.py`), with random weights. Each runs in a process of its own, forked from one that has imported
the libraries. Rows go to `coverage.jsonl` as they come, so that a sweep that was stopped goes on from there; at the end
`coverage.json` and `docs/coverage.md` are written from them. With --only, rows are printed and nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import resource
import select
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LINES, JSON, PAGE = HERE / "coverage.jsonl", HERE / "coverage.json", HERE.parent / "docs" / "coverage.md"
sys.path.insert(0, str(HERE))

from coverage_page import ROUNDING, page, relative, summary, versions  # noqa: E402

# seconds for further generic points of a network with kinks, and for an input that sees a hidden direction
KINKS, HUNT = 12.0, 10.0
# heads in the order of preference; then any other
HEADS = (
    "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "CTC",
    "IMAGE_CLASSIFICATION", "SEQUENCE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "OBJECT_DETECTION",
    "SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "DEPTH_ESTIMATION", "VIDEO_CLASSIFICATION",
    "TIME_SERIES_PREDICTION", "TEXT_TO_WAVEFORM", "TEXT_TO_SPECTROGRAM",
)  # fmt: skip

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, order=True)
class Target:
    """One model to try."""

    model_type: str
    role: str
    name: str

    @property
    def key(self) -> str:
        return f"{self.model_type}:{self.name}"


# -- what there is ---------------------------------------------------------------------------------------------
def targets() -> list[Target]:
    """A base class and a head class of every model type of the installed transformers, in an order that is a sample.

    The order does not depend on the machine, and a part of it is spread over the alphabet.
    """
    from transformers.models.auto import configuration_auto, modeling_auto

    tables = {k: v for k, v in vars(modeling_auto).items() if re.fullmatch(r"MODEL_FOR_\w+_MAPPING_NAMES", k)}
    preferred = [f"MODEL_FOR_{head}_MAPPING_NAMES" for head in HEADS]
    ordered = [k for k in preferred if k in tables] + sorted(tables.keys() - set(preferred))
    found: dict[str, Target] = {}
    for kind in configuration_auto.CONFIG_MAPPING_NAMES:
        base = _first(modeling_auto.MODEL_MAPPING_NAMES, kind)
        heads = [name for table in ordered if (name := _first(tables[table], kind)) not in (None, base)]
        for role, name in (("base", base), ("head", heads[0] if heads else None)):
            # several types may share a class: the one that it is named after counts
            if name is not None and (name not in found or _named_after(name, kind)):
                found[name] = Target(kind, role, name)
    return sorted(found.values(), key=lambda t: hashlib.sha256(t.key.encode()).hexdigest())


def _named_after(name: str, kind: str) -> bool:
    return name.lower().startswith(re.sub(r"\W|_", "", kind))


def _first(table: Mapping[str, Any], kind: str) -> str | None:
    name = table.get(kind)
    return name if isinstance(name, str) or name is None else name[0]


# -- one model, in its own process -----------------------------------------------------------------------------
def examine(target: Target, emit: Emit, quick: bool) -> None:
    """Builds, infers and, unless quick, certifies one model, and emits what is known after each stage."""
    import torch
    import transformers
    from tiny_models import SMALL, NotBuilt, one_line, tiny
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from torchgauge.errors import TorchGaugeError

    torch.manual_seed(0)
    emit({"stage": "build"})
    try:
        model_class = getattr(transformers, target.name)
        # a head may have a configuration of its own, a part of that of the type
        built = tiny(model_class, getattr(model_class, "config_class", None) or CONFIG_MAPPING[target.model_type])
    except NotBuilt as error:
        return emit({"error": str(error)})
    except (Exception, SystemExit) as error:  # anything in a constructor, and classes that want another library
        return emit({"error": one_line(error)})
    emit({"built": True, "parameters": built.parameters, "size": built.size, "stage": "export"})
    with contextlib.suppress(Exception):  # it is tried again, and reported, when soundness is
        generic_weights(built.model)
    group, inputs, start = None, built.inputs[0], 0.0
    failures: list[dict[str, Any]] = []
    for inputs in built.inputs:
        start = time.monotonic()
        shapes = {k: list(v.shape) for k, v in inputs.items()}
        emit({"inputs": shapes, "exported": False, "stage": "export"})
        try:
            group = infer(built.model, inputs, emit)
            break
        except TorchGaugeError as error:
            failures.append({"error": _cause(error)})
        except Exception as error:  # a crash of the engine is a result
            failures.append({"error": f"{one_line(error)} {_place(error)}"})
    if group is None:
        return emit(failures[0])
    if failures:
        emit({"other_inputs": failures[0]["error"]})
    emit({"infer_seconds": round(time.monotonic() - start, 2), "stage": "sound"})
    unknown = Counter(what for what, _ in group.program.opaque)
    emit({"unknown": dict(sorted(unknown.items())), "dimension": group.dimension})
    try:
        defect, worst = soundness(built.model, inputs, group)
        emit({"defect": defect, "sound": defect <= ROUNDING, "unsound_in": worst, "stage": "complete"})
        if built.parameters <= SMALL and not quick:
            emit(completeness(built.model, inputs, group))
    except Exception as error:
        return emit({"error": f"{one_line(error)} {_place(error)}"})
    return emit({"stage": "done"})


def generic_weights(model: Any) -> None:
    """Weights as a trained network may have them: initial ones can be so small that only rounding is left."""
    import torch

    from torchgauge.numerics import randomise

    state = randomise(model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])


def infer(model: Any, inputs: dict[str, Any], emit: Emit = lambda part: None) -> Any:
    """As `torchgauge.infer` does, in two stages, so that it can be said which one failed or took long."""
    from torchgauge.capture import capture
    from torchgauge.infer import solve
    from torchgauge.rules import lower

    start = time.monotonic()
    captured = capture(model, (), inputs)
    taken = round(time.monotonic() - start, 2)
    emit({"exported": True, "export_seconds": taken, "nodes": len(captured.graph_module.graph.nodes), "stage": "infer"})
    return solve(lower(captured), ties=captured.ties, dropped=captured.dropped_outputs)


def soundness(model: Any, inputs: dict[str, Any], group: Any) -> tuple[float, list[str]]:
    """The largest relative change of an output under two random elements; if there is one, generators that do it."""
    import torch

    from torchgauge.certify.subject import Subject

    generator = torch.Generator().manual_seed(0)
    subject = Subject(model, (), inputs, generator)
    state, evaluate = subject.generic, subject.example()
    with torch.no_grad():
        before = evaluate(state)
        defects = [_change(before, evaluate(group.act(group.random(generator), state))) for _ in range(2)]
    defect = max(defects)
    return defect, [] if defect <= ROUNDING else _moving(subject, group, evaluate, state)


def _change(before: list[Any], after: list[Any]) -> float:
    from torchgauge.numerics import relative_defect

    defect = relative_defect(before, after)
    return defect if math.isfinite(defect) else 1e9


def _moving(subject: Any, group: Any, evaluate: Any, state: Any) -> list[str]:
    """Names of the generators that move the outputs, worst first."""
    approximate = {factor.name for factor in group.factors if not factor.exact}
    found: dict[str, float] = {}
    for name, tangent in group.tangents(state):
        if name not in approximate:
            moved = float(subject.push(evaluate, state, tangent).norm())
            size = sum(float(v.norm()) ** 2 for v in tangent.values()) ** 0.5
            found[name] = max(found.get(name, 0.0), moved / max(size, 1e-30))
    worst = sorted(((size, name) for name, size in found.items() if size > 1e-7), reverse=True)
    return [f"{name} ({size:.1e})" for size, name in worst[:4]] or ["no generator: a discrete part"]


def completeness(model: Any, inputs: dict[str, Any], group: Any) -> dict[str, Any]:
    """The certificate, without the twin that a large model would need."""
    import torchgauge as tg
    from torchgauge.certify import completeness as search
    from torchgauge.certify import verdict

    # a network with kinks is looked at for so long; what is open then is undecided, never complete
    verdict.SECONDS, search.HUNT = KINKS, HUNT
    found = tg.certify(model, (), inputs, group=group)
    return {
        "certified": found.sound,
        "certificate_defect": max(found.defect, found.large_defect, found.own_defect or 0.0, found.tangent_defect),
        "orbit_dimension": found.orbit_dimension,
        "nullity": found.nullity,
        "hidden": found.hidden,
        "complete": found.complete,
        "undecided": found.undecided,
        "gap": None if not math.isfinite(found.gap) else round(found.gap, 1),
        "dead": found.dead_parameters,
        "approximate_dimension": found.approximate_dimension,
        "hidden_in": {name: round(share, 3) for name, share in found.hidden_in[:8]},
    }


def _cause(error: Any) -> str:
    return " ".join(part for part in (error.what.splitlines()[0][:300], error.where and f"at {error.where}") if part)


def _place(error: BaseException) -> str:
    """Where in torchgauge an exception came from."""
    place, trace = "", error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if "torchgauge" in path.parts:
            place = f"(at {path.name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place


# -- processes -------------------------------------------------------------------------------------------------
def preload() -> None:
    """Imports what every model needs, once, and fills caches; nothing may start a thread before the forks."""
    import torch
    import transformers
    from tiny_models import tiny

    import torchgauge.certify  # noqa: F401

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity(50)
    first = tiny(transformers.BertForSequenceClassification, transformers.BertConfig)
    soundness(first.model, first.inputs[0], infer(first.model, first.inputs[0]))


def isolated(target: Target, limit: float, memory: float, quick: bool = False) -> dict[str, Any]:
    """The row of one model, from a forked process with a time limit, and a memory limit in gigabytes."""
    start = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(target, writing, memory, quick)
    os.close(writing)
    row: dict[str, Any] = {
        "type": target.model_type, "class": target.name, "role": target.role, "built": False, "exported": False,
    }  # fmt: skip
    waiting, timed_out = b"", False
    while True:
        left = limit - (time.monotonic() - start)
        ready = select.select([reading], [], [], max(0.0, left))[0]
        if not ready:
            timed_out = True
            os.kill(child, signal.SIGKILL)
            break
        chunk = os.read(reading, 1 << 16)
        if not chunk:
            break
        *whole, waiting = (waiting + chunk).split(b"\n")
        for line in whole:
            row |= json.loads(line)
    os.close(reading)
    _, code = os.waitpid(child, 0)
    for key in ("error", "other_inputs"):
        if row.get(key):
            row[key] = relative(row[key])
    if timed_out:
        row["error"] = f"time limit of {limit:.0f} s at stage {row.get('stage', 'build')}"
    elif code:
        row["error"] = f"process ended with {code} at stage {row.get('stage', 'build')}"
    row["seconds"] = round(time.monotonic() - start, 1)
    row["status"] = status(row)
    return row


def _child(target: Target, writing: int, memory: float, quick: bool) -> None:
    code = 1
    try:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + int(memory * 1e9),) * 2)
        warnings.simplefilter("ignore")

        def emit(part: dict[str, Any]) -> None:
            os.write(writing, json.dumps(part).encode() + b"\n")

        examine(target, emit, quick)
        code = 0
    finally:
        os._exit(code)


def status(row: Mapping[str, Any]) -> str:
    """One word for what became of a model."""
    if not row.get("built"):
        return "not built"
    if not row.get("exported"):
        return "not exported"
    if row.get("stage") == "infer":
        return "not inferred"
    if "sound" not in row:
        return "not measured"
    if not row["sound"] or row.get("certified") is False:
        return "unsound"
    if row.get("complete") is None:
        return "sound"
    if row["complete"]:
        return "complete"
    return "undecided" if row.get("undecided") else "incomplete"


# -- the sweep -------------------------------------------------------------------------------------------------
def known(again: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Rows of an earlier run of the same versions, less those to be done again; the last of a model counts."""
    from tiny_models import SMALL

    rows: dict[str, dict[str, Any]] = {}
    if LINES.exists():
        for line in LINES.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut off by a crash
                continue
            if row.get("versions") == versions():
                rows[f"{row['type']}:{row['class']}"] = row

    def final(row: Mapping[str, Any]) -> bool:
        large = row["status"] == "sound" and row["parameters"] > SMALL
        return large or row["status"] not in again

    return {key: row for key, row in rows.items() if final(row)}


def write(rows: list[dict[str, Any]], total: int) -> None:
    """The JSON file and the page."""
    rows = sorted(rows, key=lambda r: (r["type"], r["role"]))
    JSON.write_text(json.dumps({"versions": versions(), "targets": total, "rows": rows}, indent=1) + "\n")
    PAGE.write_text(page(rows, total))


def sweep(
    todo: list[Target], limit: float, memory: float, minutes: float, again: tuple[str, ...], quick: bool = False
) -> None:
    rows = known(again)
    start = time.monotonic()
    left = [t for t in todo if t.key not in rows]
    print(f"{len(todo)} models, {len(rows)} known, {len(left)} to do", file=sys.stderr, flush=True)
    with LINES.open("a") as lines:
        for i, target in enumerate(left):
            if time.monotonic() - start > 60 * minutes:
                print("time is over; run again to go on", file=sys.stderr)
                break
            row = isolated(target, limit, memory, quick)
            rows[target.key] = row
            lines.write(json.dumps(row | {"versions": versions()}) + "\n")
            lines.flush()
            print(
                f"[{i + 1}/{len(left)}] {row['seconds']:5.1f} s  {target.key}  {row['status']}",
                file=sys.stderr,
                flush=True,
            )
    keys = {t.key for t in todo}
    write([{k: v for k, v in r.items() if k != "versions"} for key, r in rows.items() if key in keys], len(todo))
    print(summary([r for key, r in rows.items() if key in keys]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="model types or classes, with commas: print their rows as JSON lines")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one model")
    parser.add_argument("--memory", type=float, default=6.0, help="gigabytes for one model")
    parser.add_argument("--minutes", type=float, default=math.inf, help="when to stop the sweep")
    parser.add_argument("--quick", action="store_true", help="soundness alone; --again sound measures the rest later")
    parser.add_argument("--again", default="", help="statuses to do again, with commas")
    parser.add_argument("--page", action="store_true", help="only write the page and the JSON file from the rows known")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    preload()
    todo = targets()
    if options.only:
        names = set(options.only.split(","))
        for target in todo:
            if names & {target.model_type, target.name, target.key}:
                print(json.dumps(isolated(target, options.limit, options.memory, options.quick)), flush=True)
        return
    minutes = 0.0 if options.page else options.minutes
    again = tuple(filter(None, options.again.split(",")))
    sweep(todo, options.limit, options.memory, minutes, again, options.quick)


if __name__ == "__main__":
    main()
