"""How inference scales: Llama-3-70B or DeepSeek-V2 (236 billion parameters) on the meta device, at several depths.

    python benchmarks/scale.py [--model llama-3-70b|deepseek-v2] [--layers 10,20] [--repeats 3] [--no-collector]
        [--json FILE]

Every run is a process of its own, so that peak memory is that run's. In it, after a warm-up on two layers: plain
`torch.export.export`; `capture`, which exports again and reads the graph; then what torchgauge adds, lowering,
solving and listing the factors. Times are processor seconds (the work runs on one thread), so that other work on the
machine counts little; medians over the repeats, and the largest peak. The time of `torchgauge --help`, measured at
the end, is wall-clock time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LENGTH = 16
TIMES = ("export", "capture", "lower", "solve", "factors")
COLUMNS = (
    ("layers", "layers", "d"),
    ("parameters", "parameters", ".3g"),
    ("export", "export s", ".2f"),
    ("capture", "capture s", ".2f"),
    ("lower", "lower s", ".2f"),
    ("solve", "solve s", ".2f"),
    ("factors", "factors s", ".2f"),
    ("after_export", "after export s", ".2f"),
    ("ratio", "after / export", ".2f"),
    ("per_layer_ms", "ms per layer", ".1f"),
    ("peak_gb", "peak GB", ".2f"),
    ("dimension", "dimension", "d"),
)


def llama_3_70b(layers: int) -> Any:
    """The configuration of Llama-3-70B, with this many layers (it has 80)."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        num_hidden_layers=layers,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        use_cache=False,
    )


def deepseek_v2(layers: int) -> Any:
    """The configuration of DeepSeek-V2, with this many layers (it has 60): 160 experts, latent attention."""
    from transformers import DeepseekV2Config

    return DeepseekV2Config(
        hidden_size=5120,
        intermediate_size=12288,
        moe_intermediate_size=1536,
        num_attention_heads=128,
        num_key_value_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=160,
        n_shared_experts=2,
        num_experts_per_tok=6,
        topk_method="group_limited_greedy",
        n_group=8,
        topk_group=3,
        routed_scaling_factor=16.0,
        first_k_dense_replace=1,
        vocab_size=102400,
        num_hidden_layers=layers,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        use_cache=False,
    )


MODELS = {"llama-3-70b": (llama_3_70b, "10,20,40,80"), "deepseek-v2": (deepseek_v2, "8,15,30,60")}
"""Name → configuration of a depth, and the depths to measure."""


def model_on_meta(name: str, layers: int) -> tuple[Any, tuple[Any, ...]]:
    """The model, without weights, and token ids."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MODELS[name][0](layers)).eval()
        ids = torch.zeros(1, LENGTH, dtype=torch.long)
    return model, (ids,)


def clocked(work: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> tuple[Any, float]:
    """The result, and the seconds that it took."""
    start = clock()
    out = work()
    return out, clock() - start


def stages(name: str, layers: int) -> dict[str, Any]:
    """All stages once, with their times in processor seconds."""
    import torch

    from torchgauge.capture import capture
    from torchgauge.infer import solve
    from torchgauge.rules import lower

    model, args = model_on_meta(name, layers)
    took: dict[str, Any] = {}
    with torch.no_grad():
        _, took["export"] = clocked(lambda: torch.export.export(model, args, strict=False))
    captured, took["capture"] = clocked(lambda: capture(model, args))
    program, took["lower"] = clocked(lambda: lower(captured))
    group, took["solve"] = clocked(lambda: solve(program, ties=captured.ties, dropped=captured.dropped_outputs))
    factors, took["factors"] = clocked(lambda: group.factors)
    took["parameters"] = sum(p.numel() for p in model.parameters())
    took["dimension"] = group.dimension
    took["listed"] = len(factors)
    return took


def one_run(name: str, layers: int, *, collector: bool = True) -> dict[str, Any]:
    stages(name, 2)
    if not collector:
        gc.disable()
    found = stages(name, layers)
    # kilobytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    return found


def median_of_runs(layers: int, repeats: int, *flags: str) -> dict[str, Any]:
    """Medians over processes; what does not vary is taken from the first."""
    runs: list[dict[str, Any]] = []
    for i in range(repeats):
        print(f"{layers} layers, run {i + 1} of {repeats}", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--one", str(layers), *flags]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    row: dict[str, Any] = {"layers": layers, **runs[0]}
    for key in TIMES:
        row[key] = statistics.median(run[key] for run in runs)
    after = [run["lower"] + run["solve"] + run["factors"] for run in runs]
    row["after_export"] = statistics.median(after)
    row["ratio"] = statistics.median(a / run["export"] for a, run in zip(after, runs, strict=True))
    row["per_layer_ms"] = 1e3 * row["after_export"] / layers
    row["peak_gb"] = max(run["peak_gb"] for run in runs)
    row["runs"] = runs
    return row


def help_seconds(repeats: int = 5) -> list[float]:
    """Wall-clock times of `torchgauge --help`, after one run that fills the caches."""
    found = shutil.which("torchgauge", path=str(Path(sys.executable).parent))
    start = [found] if found else [sys.executable, "-c", "from torchgauge.cli import main; main()"]

    def ask() -> None:
        subprocess.run([*start, "--help"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    ask()
    return [clocked(ask, time.perf_counter)[1] for _ in range(repeats)]


def machine() -> dict[str, Any]:
    import torch
    import transformers

    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load": os.getloadavg()[0],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(title for _, title, _ in COLUMNS) + " |", "|" + "---:|" * len(COLUMNS)]
    lines += ["| " + " | ".join(format(row[key], how) for key, _, how in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="llama-3-70b")
    parser.add_argument("--layers", help="depths, separated by commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write everything here as well as to standard output")
    parser.add_argument("--no-collector", action="store_true", help="without Python's garbage collector")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one_run(options.model, options.one, collector=not options.no_collector)))
        return
    flags = ["--model", options.model, *(["--no-collector"] if options.no_collector else [])]
    depths = options.layers or MODELS[options.model][1]
    rows = [median_of_runs(int(n), options.repeats, *flags) for n in depths.split(",")]
    seconds = help_seconds()
    print(table(rows))
    print(f"\ntorchgauge --help: {statistics.median(seconds):.2f} s (median of {len(seconds)})\n")
    report = {"machine": machine(), "rows": rows, "help_seconds": seconds}
    text = json.dumps(report, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
