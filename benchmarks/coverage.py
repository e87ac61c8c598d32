"""The sweep: every model type of the installed transformers, as a tiny model, inferred and certified.

    python benchmarks/coverage.py [--only TYPE[,TYPE…]] [--again STATUS[,STATUS…]] [--limit SECONDS] [--memory GB]
                                  [--points N] [--minutes N] [--part K/N] [--page]

For every model type that has a default configuration: its base class and one head class, shrunk to a few thousand
parameters (`tiny_models.py`), with random weights. Each runs in a process of its own, forked from one that has imported
the libraries. Rows go to `coverage.jsonl` as they come, so that a sweep that was stopped goes on from there; at the end
`coverage.json` and `docs/coverage.md` are written from them. With --only, rows are printed and nothing is written.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LINES, JSON, PAGE = HERE / "coverage.jsonl", HERE / "coverage.json", HERE.parent / "docs" / "coverage.md"
sys.path.insert(0, str(HERE))

from coverage_model import POINTS, examine, infer, soundness  # noqa: E402
from coverage_page import page, relative, summary, versions  # noqa: E402

# a process may wait for others: so many times its limit of processor time
PATIENT = 20
# heads in the order of preference; then any other
HEADS = (
    "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "CTC",
    "IMAGE_CLASSIFICATION", "SEQUENCE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "OBJECT_DETECTION",
    "SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "DEPTH_ESTIMATION", "VIDEO_CLASSIFICATION",
    "TIME_SERIES_PREDICTION", "TEXT_TO_WAVEFORM", "TEXT_TO_SPECTROGRAM",
)  # fmt: skip


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


def isolated(target: Target, limit: float, memory: float, points: int = POINTS) -> dict[str, Any]:
    """The row of one model, from a forked process with a limit on processor time, and on memory in gigabytes."""
    start = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(target, writing, limit, memory, points)
    os.close(writing)
    row: dict[str, Any] = {
        "type": target.model_type, "class": target.name, "role": target.role, "built": False, "exported": False,
    }  # fmt: skip
    waiting, timed_out = b"", False
    while True:
        left = PATIENT * limit - (time.monotonic() - start)
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
    _, code, used = os.wait4(child, 0)
    timed_out |= os.WIFSIGNALED(code) and os.WTERMSIG(code) == signal.SIGXCPU
    for key in ("error", "other_inputs"):
        if row.get(key):
            row[key] = relative(row[key])
    if timed_out:
        row["error"] = f"time limit of {limit:.0f} s at stage {row.get('stage', 'build')}"
    elif code:
        row["error"] = f"process ended with {code} at stage {row.get('stage', 'build')}"
    row["seconds"] = round(used.ru_utime + used.ru_stime, 1)
    row["status"] = status(row)
    return row


def _child(target: Target, writing: int, limit: float, memory: float, points: int) -> None:
    code = 1
    try:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
        resource.setrlimit(resource.RLIMIT_AS, (now + int(memory * 1e9),) * 2)
        warnings.simplefilter("ignore")

        def emit(part: dict[str, Any]) -> None:
            os.write(writing, json.dumps(part).encode() + b"\n")

        examine(target.model_type, target.name, emit, points)
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
def known(again: tuple[str, ...], now: str) -> dict[str, dict[str, Any]]:
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
        if "old" in again and row.get("engine") != now:
            return False
        large = row["status"] == "sound" and row["parameters"] > SMALL
        return large or row["status"] not in again

    return {key: row for key, row in rows.items() if final(row)}


def engine() -> str:
    """A mark of the code that makes the rows, so that rows of older code can be found (`--again old`)."""
    digest = hashlib.sha256()
    sizes = [*HERE.glob("tiny_*.py"), HERE / "coverage_model.py"]
    for path in sorted([*(HERE.parent / "src" / "torchgauge").rglob("*.py"), *sizes]):
        if not {"ode", "fields", "learn", "orbit", "report", "cli.py"} & set(path.parts):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def write(rows: list[dict[str, Any]], total: int, older: int = 0) -> None:
    """The JSON file and the page; so many rows were made by older code."""
    rows = sorted(rows, key=lambda r: (r["type"], r["role"]))
    JSON.write_text(
        json.dumps({"versions": versions(), "targets": total, "older": older, "rows": rows}, indent=1) + "\n"
    )
    PAGE.write_text(page(rows, total, versions(), older))


def sweep(todo: list[Target], options: argparse.Namespace) -> None:
    """Makes the rows that are missing, one model after the other, and writes the page."""
    now, again = engine(), tuple(filter(None, options.again.split(",")))
    rows = known(again, now)
    start = time.monotonic()
    part, parts = map(int, options.part.split("/"))
    left = [] if options.page else [t for t in todo[part - 1 :: parts] if t.key not in rows]
    print(f"{len(todo)} models, {len(rows)} known, {len(left)} to do", file=sys.stderr, flush=True)
    for i, target in enumerate(left):
        if time.monotonic() - start > 60 * options.minutes:
            print("time is over; run again to go on", file=sys.stderr)
            break
        row = isolated(target, options.limit, options.memory, options.points)
        with LINES.open("a") as lines:
            lines.write(json.dumps(row | {"versions": versions(), "engine": now}) + "\n")
        told = f"[{i + 1}/{len(left)}] {row['seconds']:5.1f} s  {target.key}  {row['status']}"
        print(told, file=sys.stderr, flush=True)
    # rows of sweeps side by side, and old ones where there are no new ones
    keys = {t.key for t in todo}
    rows = {key: row for key, row in known((), now).items() if key in keys}
    older = sum(row.get("engine") != now for row in rows.values())
    found = [{k: v for k, v in row.items() if k not in ("versions", "engine")} for row in rows.values()]
    write(found, len(todo), older)
    print(summary(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="model types or classes, with commas: print their rows as JSON lines")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of processor time for one model")
    parser.add_argument("--memory", type=float, default=6.0, help="gigabytes for one model")
    parser.add_argument("--minutes", type=float, default=math.inf, help="when to stop the sweep")
    parser.add_argument(
        "--points", type=int, default=POINTS, help="generic points of a network with kinks; 0: soundness alone"
    )
    parser.add_argument("--again", default="", help="statuses to do again, with commas; old: rows of older code")
    parser.add_argument("--part", default="1/1", help="k/n: every n-th model from the k-th, for n sweeps side by side")
    parser.add_argument("--page", action="store_true", help="only write the page and the JSON file from the rows known")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    preload()
    todo = targets()
    if options.only:
        names = set(options.only.split(","))
        for target in todo:
            if names & {target.model_type, target.name, target.key}:
                print(json.dumps(isolated(target, options.limit, options.memory, options.points)), flush=True)
        return
    sweep(todo, options)


if __name__ == "__main__":
    main()
