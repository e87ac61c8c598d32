"""Measure one network of the zoo: `python -m tests.zoo.measure llama mha ...` (names, else prefixes; `all`).

Prints the nullity of the Jacobian, the orbit dimension, the defect of a random element and the table of factors.
"""

from __future__ import annotations

import argparse
import time
import traceback

from tests.zoo import catalogue
from tests.zoo.case import Case, evaluate64, relative_defect
from tests.zoo.jacobian import nullity


def measure(case: Case, *, with_nullity: bool, with_group: bool, batches: int | None, factors: bool) -> None:
    expected = f"expect orbit {case.orbit} nullity {case.expected_nullity}"
    if with_nullity:
        start = time.time()
        n = nullity(case, batches)
        mark = "" if n.nullity == case.expected_nullity else "  <-- NULLITY DIFFERS"
        print(
            f"{case.name:28s} P={n.parameters:5d} nullity={n.nullity:4d} dead={n.dead} gap={n.gap:.1f} "
            f"{expected} [{time.time() - start:.1f}s]{mark}",
            flush=True,
        )
        if mark or n.gap < 4:
            print("    around the cut:", n.smallest)
    if with_group:
        measure_group(case, expected, factors)


def measure_group(case: Case, expected: str, factors: bool) -> None:
    import torch

    import torchgauge as tg

    model, args = case.module(), case.example()
    state = dict(model.state_dict())
    start = time.time()
    group = tg.infer(model, args, case.kwargs)
    took = time.time() - start
    dimension = group.orbit_dimension(state)
    mark = "" if dimension == case.orbit else "  <-- ORBIT DIFFERS"
    old = evaluate64(model, state, args, case.kwargs)
    worst = 0.0
    for seed in range(3):
        element = group.random(torch.Generator().manual_seed(seed))
        new = evaluate64(model, group.act(element, state), args, case.kwargs)
        worst = max(worst, relative_defect(old, new))
    bad = "  <-- UNSOUND" if worst > 1e-12 else ""
    print(f"{case.name:28s} orbit={dimension} defect={worst:.1e} {expected} [{took:.1f}s]{mark}{bad}", flush=True)
    if factors or mark or bad:
        for f in getattr(group, "factors", ()):
            print(f"    {f.kind:28s} size {f.size} dim {f.dimension} exact {f.exact} {f.name} {list(f.parameters)[:4]}")
        for r in getattr(group, "rigid", ()):
            print("    rigid:", r)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--no-nullity", action="store_true")
    parser.add_argument("--no-group", action="store_true")
    parser.add_argument("--batches", type=int)
    parser.add_argument("--factors", action="store_true", help="always print the table of factors")
    options = parser.parse_args()
    cases = catalogue.CASES
    prefixes = [n for n in options.names if n not in cases]
    chosen = [c for n, c in cases.items() if n in options.names or any(p == "all" or n.startswith(p) for p in prefixes)]
    for case in chosen:
        try:
            measure(
                case,
                with_nullity=not options.no_nullity,
                with_group=not options.no_group,
                batches=options.batches,
                factors=options.factors,
            )
        except Exception:
            print(f"{case.name:28s} FAILED\n{traceback.format_exc(limit=-4)}", flush=True)


if __name__ == "__main__":
    main()
