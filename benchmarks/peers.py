"""Side by side: what peers do to tiny models of the sweep, and what a random element of the whole group does.

    python benchmarks/peers.py --environments DIR [--limit SECONDS] [--only METHOD] [--again METHOD]

DIR keeps a virtual environment for every peer (made on the first run), the saved models, and the results, one line of
JSON per model and method, so that a run that was stopped goes on from there. The table is printed, and written to
docs/benchmarks.md between its marks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- peers -->", "<!-- /peers -->"
OURS = "torchgauge"
INSTALL = 600
"""Seconds; a peer that does not install in this time is left out by name."""
PEERS: dict[str, tuple[str, ...]] = {
    "brevitas": ("brevitas", "transformers=={transformers}"),
    "llm-compressor": ("llmcompressor",),
    "Torch-Pruning": ("torch-pruning", "transformers=={transformers}"),
    "rebasin": ("rebasin", "transformers=={transformers}"),
}
"""The name of a peer → what is installed for it, beside the torch that runs this script."""
PACKAGES = {
    "brevitas": "brevitas",
    "llm-compressor": "llmcompressor",
    "Torch-Pruning": "torch-pruning",
    "rebasin": "rebasin",
}
OUTCOMES = ("kept", "wrong", "refused", "nothing", "not loaded")


# -- environments ----------------------------------------------------------------------------------------------
def environment(folder: Path, peer: str) -> Path | None:
    """The Python of a peer's environment, made on first use; None if it could not be installed."""
    home = folder / f"env-{peer.lower()}"
    python, done, failed = home / "bin" / "python", home / ".done", home / ".failed"
    if done.exists() or failed.exists():
        return python if done.exists() else None
    import torch
    import transformers

    start = time.monotonic()
    packages = [p.format(transformers=transformers.__version__) for p in PEERS[peer]]
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([*pip, f"torch=={torch.__version__.split('+')[0]}", *packages], check=True, timeout=INSTALL)
    except (subprocess.SubprocessError, OSError) as error:
        failed.write_text(f"{error}\n")
        return None
    done.write_text(f"{time.monotonic() - start:.0f} s\n")
    return python


def versions(folder: Path) -> str:
    """The versions of the peers that are installed, and of the transformers beside them."""
    found = []
    for peer, package in PACKAGES.items():
        python = folder / f"env-{peer.lower()}" / "bin" / "python"
        if python.exists():
            code = f"from importlib.metadata import version as v; print(v({package!r}), v('transformers'), v('torch'))"
            own, beside, torch = subprocess.run(
                [str(python), "-c", code], capture_output=True, text=True, check=True
            ).stdout.split()
            found.append(f"{peer} {own} (transformers {beside}, torch {torch.split('+')[0]})")
    return "; ".join(found)


# -- runs ------------------------------------------------------------------------------------------------------
def results(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows so far, by method and model; the last of each counts."""
    rows = {}
    for path in sorted(folder.glob("results-*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut off by a crash
                continue
            rows[row["method"], row["model"]] = row
    return rows


def lines(folder: Path, method: str) -> Path:
    """Where the rows of a method go: methods may run side by side."""
    return folder / f"results-{method.replace(',', '').replace(' ', '-')}.jsonl"


def run(folder: Path, families: dict[str, str], limit: float, only: str | None, again: str | None) -> None:
    """Runs what is not known yet."""
    from peers_methods import FAMILIES, METHODS

    known = {key for key in results(folder) if key[0] != again}
    if only in (None, OURS):
        _run_ours(folder, limit, {model for m, model in known if m == OURS})
    for method in METHODS:
        peer = next(p for p in PEERS if method.startswith(p))
        if only not in (None, method) or (python := environment(folder, peer)) is None:
            continue
        skip = [name for name, family in families.items() if family not in FAMILIES[method] or (method, name) in known]
        if len(skip) == len(families):
            continue
        command = [str(python), str(HERE / "peers_worker.py"), method, str(folder / "models"), str(limit)]
        with lines(folder, method).open("a") as out:
            subprocess.run(
                [*command, ",".join(skip)], stdout=out, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
            )
        print(f"{method}: done", file=sys.stderr, flush=True)


def _run_ours(folder: Path, limit: float, known: set[str]) -> None:
    from peers_ours import ours
    from peers_worker import isolated, told

    def caught(path: Path) -> dict[str, Any]:
        try:
            return ours(path)
        except Exception as error:  # a model that cannot be traced is refused
            return {"outcome": "refused", "error": told(error)}

    for path in sorted((folder / "models").glob("*.pt")):
        if path.stem not in known:
            row = isolated(lambda p=path: caught(p), limit) | {"method": OURS, "model": path.stem}
            with lines(folder, OURS).open("a") as out:
                out.write(json.dumps(row) + "\n")


# -- the table -------------------------------------------------------------------------------------------------
def table(rows: dict[tuple[str, str], dict[str, Any]], families: dict[str, str]) -> str:
    """The counts by method and family, in Markdown."""
    from peers_methods import METHODS

    heads = ("method", "family", "models", "function kept", "wrong without error", "refused or crashed")
    lines = [f"| {' | '.join(heads)} | nothing to do | symmetries, median (largest) |", f"|---|---|{'---:|' * 6}"]
    for method in (OURS, *METHODS):
        for family in dict.fromkeys(families.values()):
            mine = [r for (m, name), r in rows.items() if m == method and families.get(name) == family]
            mine = [r for r in mine if r["outcome"] != "not loaded"]
            if not mine:
                continue
            count = {o: sum(1 for r in mine if r["outcome"] == o) for o in OUTCOMES}
            used = sorted(r["symmetries"] for r in mine if r.get("symmetries") and r["outcome"] in ("kept", "wrong"))
            middle = f"{used[len(used) // 2]} ({used[-1]})" if used else "–"
            name = "torchgauge, a random element of the whole group" if method == OURS else method
            cells = [name, family, len(mine), *(count[o] for o in OUTCOMES[:4]), middle]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def remarks(rows: dict[tuple[str, str], dict[str, Any]], folder: Path) -> str:
    """Versions, models that an environment could not load, peers that are left out, and groups of Torch-Pruning."""
    lost = [f"{name} ({m})" for (m, name), r in rows.items() if r["outcome"] == "not loaded"]
    left_out = [p for p in PEERS if (folder / f"env-{p.lower()}" / ".failed").exists()]
    groups = [g for (m, _), r in rows.items() if m == "Torch-Pruning" for g in r.get("found", [])]
    right = sum(1 for g in groups if g.get("change", 1.0) <= 1e-6)
    single = sum(1 for r in rows.values() if r.get("precision") == "float32" and r["outcome"] in ("kept", "wrong"))
    said = [f"Versions: {versions(folder)}."]
    said.append(f"Torch-Pruning's {len(groups)} groups one by one: {right} keep the function.")
    said.append(f"{single} results are from float32, with its tolerance.")
    if lost:
        said.append(f"Not counted, since their environment has another transformers: {', '.join(sorted(lost))}.")
    if left_out:
        said.append(f"Left out, since they did not install in ten minutes: {', '.join(left_out)}.")
    return " ".join(said)


def write(text: str) -> None:
    """Puts the table into the page, between its marks."""
    page = PAGE.read_text()
    head, begin, rest = page.partition(BEGIN)
    if not begin:
        raise SystemExit(f"{PAGE} has no mark {BEGIN}")
    PAGE.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, required=True, help="folder for environments, models and results")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of processor time for one model")
    parser.add_argument("--only", help="one method; the page is not written")
    parser.add_argument("--again", help="a method whose results are made again")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    from peers_models import COUNTS, save
    from peers_ours import beyond

    folder = arguments.environments.resolve()
    families = save(folder / "models", COUNTS)
    run(folder, families, arguments.limit, arguments.only, arguments.again)
    rows = {key: row for key, row in results(folder).items() if key[1] in families}
    compared, missing = beyond(rows)
    more = f"{compared} permutations of Torch-Pruning that keep the function were looked up in torchgauge's group: "
    more += "it holds all of them." if not missing else f"{len(missing)} are not in it: {'; '.join(missing)}."
    text = f"{table(rows, families)}\n\n{remarks(rows, folder)} {more}"
    print(text)
    if arguments.only is None:
        write(text)


if __name__ == "__main__":
    main()
