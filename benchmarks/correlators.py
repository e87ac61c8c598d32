"""Correlators: how many networks each estimator needs, how fast networks are sampled, how fast tensors are filled.

    python benchmarks/correlators.py [--parts networks,throughput,evaluation,tensors] [--rounds 5] [--peer PYTHON]
                                     [--json FILE]

One run, one thread, float64.

- networks: for κ4(x1, x2, x5, x6) of the Erf net of width 1000 to within 1 %. Every estimator is run, its variance is
  measured, and the number follows as networks · (relative error / 1 %)². For plain averages that is an extrapolation by
  many orders of magnitude; nobody samples that many networks. "subtracted" takes full correlators less Wick's
  contractions of the exact kernel, as in the code published with arXiv 2008.08601; the others are unbiased cumulants.
- throughput: networks per second for the two-point function of six inputs by plain averages, sampling included, against
  `torch.func.vmap` of the same module with parameters from `torch.randn`, and against the Monte Carlo kernel of
  neural-tangents. The latter needs jax ≤ 0.5.3 in an environment of its own, whose interpreter is given by --peer:
  python -m venv peer && peer/bin/pip install "jax<=0.5.3" neural-tangents
- evaluation: the same against `torch.func.vmap`, without the sampling, on the same stacked parameters.
- tensors: all six-point moments of six inputs, by matrix products of symmetric monomials against direct products: of
  all 6⁶ index tuples by broadcasting, of the 462 distinct ones alone, and of these in blocks of draws that stay in the
  processor's cache, the best that direct products can do.

All contestants of a part take turns, round by round; times are medians and ratios are medians of the ratios in a round.
The clock counts processor seconds.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from torchgauge import fields
from torchgauge.fields.combinatorics import multisets
from torchgauge.fields.monomials import Plan

POINTS = torch.tensor([-1, -0.6, -0.2, 0.2, 0.6, 1], dtype=torch.float64)
CORNERS = [[0, 1, 4, 5]]
WIDTH = 1000
PEER = """
import os, json, sys, time
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
import jax
jax.config.update("jax_enable_x64", True)
import neural_tangents as nt
from neural_tangents import stax
init, apply, _ = stax.serial(stax.Dense(1000, W_std=1, b_std=1), stax.Erf(), stax.Dense(1, W_std=1, b_std=1))
x = jax.numpy.array([-1, -0.6, -0.2, 0.2, 0.6, 1])[:, None]
count, rounds = int(sys.argv[1]), int(sys.argv[2])
kernel = nt.monte_carlo_kernel_fn(init, apply, jax.random.PRNGKey(0), count)
kernel(x, None, "nngp").block_until_ready()
for _ in range(rounds):
    start = time.process_time(); k = kernel(x, None, "nngp").block_until_ready()
    print(json.dumps({"seconds": time.process_time() - start, "corner": float(k[0, 0])}), flush=True)
"""


def seconds(work: Callable[[], Any]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def networks_needed() -> list[dict[str, Any]]:
    """Networks for 1 %, by the measured variance of each estimator."""
    ensemble = fields.erf_net(WIDTH)
    exact = float(fields.correlator(ensemble, POINTS, 4, tuples=CORNERS).values[0])
    rows = []
    free = float(fields.wick(fields.kernel(ensemble, POINTS), torch.tensor(CORNERS))[0])
    for name, connected, count in (
        ("neurons", True, 4096),
        ("readout", True, 32768),
        ("readout", False, 32768),
        ("plain", False, 65536),
        ("plain", True, 65536),
    ):
        start = time.process_time()
        found = fields.correlator(
            ensemble, POINTS, 4, tuples=CORNERS, connected=connected, estimator=name, networks=count, progress=False
        )
        spent = time.process_time() - start
        value, error = float(found.values[0]) - (0.0 if connected else free), float(found.error[0])
        rows.append(
            {
                "estimator": name if connected else f"{name}, subtracted",
                "sampled": found.networks,
                "value": value,
                "relative_error": error / exact,
                "deviations": (value - exact) / error,
                "needed": found.networks * (error / exact / 0.01) ** 2,
                "seconds": spent,
            }
        )
    for row in rows:
        row["factor"] = rows[-1]["needed"] / row["needed"]
        row["extrapolated"] = row["needed"] > row["sampled"]
    return [{"exact": exact, **row} for row in rows]


class Erf(nn.Module):
    """x ↦ erf x."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


def plain_contestants(count: int) -> dict[str, Callable[[], Tensor]]:
    """Two-point functions of `count` networks, by plain averages."""
    ensemble = fields.erf_net(WIDTH)
    module = nn.Sequential(nn.Linear(1, WIDTH), Erf(), nn.Linear(WIDTH, 1)).double()
    generator = torch.Generator().manual_seed(0)
    scale = {"0.weight": 1.0, "0.bias": 1.0, "2.weight": WIDTH**-0.5, "2.bias": 1.0}
    shapes = {name: p.shape for name, p in module.named_parameters()}
    batch = ensemble.batch(len(POINTS))
    x = POINTS[:, None]

    def by_vmap() -> Tensor:
        total = torch.zeros(6, 6, dtype=torch.float64)
        with torch.no_grad():
            for first in range(0, count, batch):
                size = min(batch, count - first)
                params = {
                    name: scale[name] * torch.randn(size, *shape, generator=generator, dtype=torch.float64)
                    for name, shape in shapes.items()
                }
                out = vmap(lambda p: functional_call(module, p, (x,)))(params)[..., 0]
                total += out.T @ out
        return total / count

    def ours() -> Tensor:
        found = fields.correlator(
            ensemble, POINTS, 2, connected=False, estimator="plain", networks=count, progress=False
        )
        return found.dense()

    return {"torchgauge": ours, "torch.func.vmap": by_vmap}


def throughput(rounds: int, peer: str | None) -> list[dict[str, Any]]:
    """Networks per second."""
    count = 8192
    contestants = plain_contestants(count)
    for work in contestants.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    corner = {name: float(work()[0, 0]) for name, work in contestants.items()}
    running, samples = None, 512
    if peer:
        command = [peer, "-c", PEER, str(samples), str(rounds)]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        times["neural-tangents"] = []
    for _ in range(rounds):
        for name, work in contestants.items():
            times[name].append(seconds(work) / count)
        if running and running.stdout:
            line = json.loads(running.stdout.readline())
            times["neural-tangents"].append(line["seconds"] / samples)
            corner["neural-tangents"] = line["corner"]
    return [
        {
            "contestant": name,
            "networks_per_second": 1 / statistics.median(spent),
            "torchgauge_is_faster_by": statistics.median(
                t / o for t, o in zip(spent, times["torchgauge"], strict=True)
            ),
            "K(x1,x1)": corner[name],
        }
        for name, spent in times.items()
    ]


def evaluation(rounds: int) -> list[dict[str, Any]]:
    """Networks per second, parameters given."""
    ensemble, count = fields.erf_net(WIDTH), 512
    module = nn.Sequential(nn.Linear(1, WIDTH), Erf(), nn.Linear(WIDTH, 1)).double()
    params = ensemble.sample(count, seed=0)
    names = dict(zip(params, ("0.weight", "0.bias", "2.weight", "2.bias"), strict=True))
    given, x = {names[k]: p for k, p in params.items()}, POINTS[:, None]

    @torch.no_grad()
    def by_vmap(size: int) -> Tensor:
        every = zip(*(p.split(size) for p in given.values()), strict=True)
        call = vmap(lambda p: functional_call(module, p, (x,)))
        return torch.cat([call(dict(zip(given, piece, strict=True))) for piece in every])

    work = {
        "torchgauge": lambda: torch.cat([ensemble.evaluate(p, x) for p in ensemble.pieces(params, len(x))]),
        "torch.func.vmap": lambda: by_vmap(count),
        "torch.func.vmap, in our pieces": lambda: by_vmap(len(next(ensemble.pieces(params, len(x)))["readout.bias"])),
    }
    assert torch.allclose(work["torchgauge"](), by_vmap(count), rtol=1e-12, atol=1e-12)
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, job in work.items():
            times[name].append(min(seconds(job) for _ in range(3)) / count)
    return [
        {
            "contestant": name,
            "networks_per_second": 1 / statistics.median(spent),
            "torchgauge_is_faster_by": statistics.median(
                t / o for t, o in zip(spent, times["torchgauge"], strict=True)
            ),
        }
        for name, spent in times.items()
    ]


def tensors(rounds: int) -> list[dict[str, Any]]:
    """Seconds per draw for all six-point moments of six inputs."""
    sets = multisets(6, 6)
    plan = Plan(6, sets, [(1.0, (0b111111,))])
    draws = torch.randn(20_000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few = draws[:400]

    def symmetric() -> Tensor:
        return plan.combine(plan.moments(draws))

    def distinct() -> Tensor:
        product = draws[:, sets[:, 0]]
        for slot in range(1, 6):
            product = product * draws[:, sets[:, slot]]
        return product.mean(0)

    def in_blocks() -> Tensor:
        total = torch.zeros(len(sets))
        for x in draws.mT.split(512, 1):
            product = x[sets[:, 0]]
            for slot in range(1, 6):
                product *= x[sets[:, slot]]
            total += product.sum(1)
        return total / len(draws)

    def broadcast() -> Tensor:
        product = few
        for _ in range(5):
            product = (product[:, :, None] * few[:, None, :]).flatten(1)
        return product.mean(0)

    assert torch.allclose(symmetric(), distinct()) and torch.allclose(symmetric(), in_blocks())
    flat = broadcast()[(sets * 6 ** torch.arange(5, -1, -1)).sum(1)]
    assert torch.allclose(flat, draws[:400][:, sets].prod(2).mean(0))
    work = {
        "symmetric monomials": (symmetric, 20_000),
        "462 distinct": (distinct, 20_000),
        "462 distinct, in blocks": (in_blocks, 20_000),
        "all 6⁶": (broadcast, 400),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, (job, count) in work.items():
            times[name].append(min(seconds(job) for _ in range(3)) / count)
    first = times["symmetric monomials"]
    return [
        {
            "products": name,
            "seconds_per_draw": statistics.median(spent),
            "slower_by": statistics.median(t / o for t, o in zip(spent, first, strict=True)),
        }
        for name, spent in times.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [f"{v:.4g}" if isinstance(v, float) and math.isfinite(v) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the parts, print tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default="networks,throughput,evaluation,tensors")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help="interpreter of an environment with jax<=0.5.3 and neural-tangents")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "networks": networks_needed,
        "throughput": lambda: throughput(arguments.rounds, arguments.peer),
        "evaluation": lambda: evaluation(arguments.rounds),
        "tensors": lambda: tensors(arguments.rounds),
    }
    report: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "width": WIDTH}
    for name in arguments.parts.split(","):
        report[name] = parts[name]()
        print(f"\n{name}\n\n{table(report[name])}", flush=True)
    if not arguments.peer and "throughput" in report:
        print("\nneural-tangents was left out: give --peer")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
