"""Side by side: what peers do to the tiny models of the sweep, and what a random element of the whole group does.

    python benchmarks/peers.py --environments DIR [--causal N] [--vision N] [--limit SECONDS] [--only METHOD]

DIR keeps a virtual environment for every peer (made on the first run), the saved models, and the results, one line of
JSON per model and method, so that a run that was stopped goes on from there. The table is printed, and written to
docs/benchmarks.md between its marks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
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
    "brevitas": ("brevitas", "transformers"),
    "llm-compressor": ("llmcompressor",),
    "Torch-Pruning": ("torch-pruning", "transformers"),
    "rebasin": ("rebasin", "torchvision", "transformers"),
}
"""The name of a peer → what is installed for it, beside the torch that runs this script."""
SECTION = """## Side by side with peers

`python benchmarks/peers.py --environments DIR` makes this table: causal language models and image classifiers of the
sweep, tiny, at generic weights, in float64. Each peer runs in an environment of its own and does what it offers.
*Function kept* means that no output changed by more than 1e-6 of the largest; *wrong without error* is a larger change
and no word of it; *nothing to do* means that the peer found no place where it applies. For Torch-Pruning the
groups of its dependency graph are read as permutations of channels; for rebasin the model is permuted towards another.
"""
KINDS = {"causal": "ForCausalLM", "vision": "ForImageClassification"}


# -- environments and models -----------------------------------------------------------------------------------
def environment(folder: Path, peer: str) -> Path | None:
    """The Python of a peer's environment, made on first use; None if it could not be installed."""
    home = folder / f"env-{peer.lower()}"
    python, done, failed = home / "bin" / "python", home / ".done", home / ".failed"
    if done.exists() or failed.exists():
        return python if done.exists() else None
    import torch

    start = time.monotonic()
    version = torch.__version__.split("+")[0]
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([*pip, f"torch=={version}", *PEERS[peer]], check=True, timeout=INSTALL)
    except (subprocess.SubprocessError, OSError) as error:
        failed.write_text(f"{error}\n")
        return None
    done.write_text(f"{time.monotonic() - start:.0f} s\n")
    return python


def models(folder: Path, counts: dict[str, int]) -> None:
    """Saves tiny models with generic weights: class, configuration, weights and inputs."""
    import torch
    import transformers
    from coverage import generic_weights, targets
    from peers_worker import load
    from tiny_models import NotBuilt, tiny

    transformers.utils.logging.set_verbosity(50)
    folder.mkdir(parents=True, exist_ok=True)
    tried = folder / "tried.json"
    known: dict[str, str] = json.loads(tried.read_text()) if tried.exists() else {}
    made = {kind: sum(1 for v in known.values() if v == kind) for kind in counts}
    for target in targets():
        kind = next((k for k, end in KINDS.items() if target.name.endswith(end)), None)
        if kind is None or target.name in known or made[kind] >= counts[kind]:
            continue
        torch.manual_seed(0)
        known[target.name] = "not built"
        try:
            model_class = getattr(transformers, target.name)
            built = tiny(model_class, model_class.config_class)
            generic_weights(built.model)
            saved = {
                "class": target.name,
                "config_class": type(built.model.config).__name__,
                "config": built.model.config.to_json_string(use_diff=False),
                "state": built.model.state_dict(),
                "inputs": dict(built.inputs[0]),
            }
            path = folder / f"{target.name}.pt"
            torch.save(saved, path)
            try:
                load(path)
            except Exception:
                path.unlink()
                raise
            known[target.name] = kind
            made[kind] += 1
        except (NotBuilt, Exception, SystemExit) as error:
            known[target.name] = f"not built: {type(error).__name__}"
        tried.write_text(json.dumps(known))


# -- runs ------------------------------------------------------------------------------------------------------
def ours(path: Path) -> dict[str, Any]:
    """A random element of the whole group, in this environment."""
    import torch
    from peers_worker import KEPT, load

    import torchgauge as tg
    from torchgauge.numerics import evaluator, relative_defect

    model, inputs = load(path)
    group = tg.infer(model, (), inputs)
    state = {name: t.detach() for name, t in model.state_dict().items()}
    evaluate = evaluator(model, (), inputs)
    with torch.no_grad():
        moved = group.act(group.random(torch.Generator().manual_seed(0)), state)
        change = relative_defect(evaluate(state), evaluate(moved))
    outcome = "kept" if change <= KEPT else "wrong"
    permuted = {label: s.size for s in group.spaces if _permutes(s) for label in s.labels}
    return {
        "outcome": outcome,
        "change": change,
        "symmetries": len([f for f in group.factors if f.exact]),
        "dimension": group.dimension,
        "permuted": permuted,
    }


def _permutes(space: Any) -> bool:
    """Whether all entries of a space may be exchanged."""
    return len(space.roots) == 1 and not space.roots[0].pinned


def results(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows so far, by method and model."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []
    return {(row["method"], row["model"]): row for row in rows}


def run(folder: Path, lines: Path, limit: float, only: str | None) -> list[str]:
    """Runs what is not known yet; returns the names of the peers that were left out."""
    from peers_methods import METHODS

    left_out = []
    if only in (None, OURS):
        _run_ours(folder / "models", lines, limit)
    for peer in PEERS:
        methods = [m for m in METHODS if m.startswith(peer) and only in (None, m)]
        if not methods:
            continue
        python = environment(folder, peer)
        if python is None:
            left_out.append(peer)
            continue
        for method in methods:
            known = [model for m, model in results(lines) if m == method]
            command = [str(python), str(HERE / "peers_worker.py"), method, str(folder / "models"), str(limit)]
            with lines.open("a") as out:
                subprocess.run([*command, ",".join(known)], stdout=out, check=False)
            print(f"{method}: done", file=sys.stderr, flush=True)
    return left_out


def _run_ours(models: Path, lines: Path, limit: float) -> None:
    import peers_worker

    known = {model for m, model in results(lines) if m == OURS}
    peers_worker.examine = lambda method, path: _caught(path)  # type: ignore[assignment]
    for path in sorted(models.glob("*.pt")):
        if path.stem not in known:
            row = peers_worker.isolated(OURS, path, limit)
            with lines.open("a") as out:
                out.write(json.dumps(row) + "\n")


def _caught(path: Path) -> dict[str, Any]:
    try:
        return ours(path)
    except Exception as error:  # a model that cannot be traced is refused
        return {"outcome": "refused", "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200]}


# -- the table -------------------------------------------------------------------------------------------------
def table(rows: dict[tuple[str, str], dict[str, Any]], left_out: list[str]) -> str:
    """The table, in Markdown."""
    from peers_methods import METHODS

    heads = ("method", "models", "function kept", "wrong without error", "refused or crashed", "nothing to do")
    lines = [f"| {' | '.join(heads)} | symmetries used, median (largest) |", "|---|---:|---:|---:|---:|---:|---:|"]
    for method in (OURS, *METHODS):
        mine = [row for (m, _), row in rows.items() if m == method]
        if not mine:
            continue
        count = {o: sum(1 for r in mine if r["outcome"] == o) for o in ("kept", "wrong", "refused", "nothing")}
        used = sorted(r["symmetries"] for r in mine if r["outcome"] == "kept")
        middle = f"{used[len(used) // 2]} ({used[-1]})" if used else "–"
        name = "torchgauge, a random element of the whole group" if method == OURS else method
        cells = [name, len(mine), count["kept"], count["wrong"], count["refused"], count["nothing"], middle]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if left_out:
        lines.append(f"\nLeft out, since it did not install in ten minutes: {', '.join(left_out)}.")
    return "\n".join(lines)


def beyond(rows: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """Permutations that Torch-Pruning found, that keep the function, and that our group lacks."""
    for (method, model), row in rows.items():
        mine = rows.get((OURS, model))
        if method != "Torch-Pruning" or row["outcome"] != "kept" or not mine or mine["outcome"] != "kept":
            continue
        for group in row["found"]:
            label = f"{group['root'].split(' ')[0]}.weight[0]"
            if mine["permuted"].get(label) != group["width"]:
                yield f"{model}: {label}, {group['width']} channels"


def write(text: str) -> None:
    """Puts the table into the page, between its marks."""
    page = PAGE.read_text()
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n{SECTION}\n{BEGIN}{END}\n"
    head, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, required=True, help="folder for environments, models and results")
    parser.add_argument("--causal", type=int, default=46, help="causal language models")
    parser.add_argument("--vision", type=int, default=14, help="image classifiers")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one model")
    parser.add_argument("--only", help="one method")
    arguments = parser.parse_args()
    folder = arguments.environments.resolve()
    lines = folder / "peers.jsonl"
    models(folder / "models", {"causal": arguments.causal, "vision": arguments.vision})
    left_out = run(folder, lines, arguments.limit, arguments.only)
    rows = results(lines)
    text = table(rows, left_out)
    print(text)
    missing = list(beyond(rows))
    print("\nfound by Torch-Pruning and not by torchgauge: " + ("none" if not missing else "\n".join(["", *missing])))
    if arguments.only is None:
        write(text)


if __name__ == "__main__":
    main()
