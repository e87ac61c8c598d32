"""The table of docs/symmetry_by_duality.md: what the laws say about each ensemble of the gallery, and what a test says.

    python examples/symmetry_table.py [--count 20000] [--why] [NAME ...]

Prints a Markdown table: + holds, − broken, ? undecided from the laws, each with the p-value of the statistical test.
The exit status is 1 if a decision and a test disagree at the level 0.00001. `--why` prints the derivations, NAME picks
ensembles by a part of their name.
"""

from __future__ import annotations

import argparse
import sys

from torchgauge.fields.symmetry import GALLERY, TRANSFORMATIONS, Symmetries, SymmetryTest, symmetries, test_symmetry

LEVEL = 1e-5  # of one test: there are some 280
SIGNS = {True: "+", False: "−", None: "?"}


def tests(name: str, found: Symmetries, count: int) -> dict[str, SymmetryTest]:
    """One test for each verdict."""
    case = GALLERY[name]
    changes = [v.transformation for v in found.verdicts]
    return {t.name: test_symmetry(case.ensemble, t, case.points, count=count, alpha=LEVEL) for t in changes}


def row(name: str, found: Symmetries, tested: dict[str, SymmetryTest]) -> str:
    cells = []
    for change in TRANSFORMATIONS:
        if change.name not in tested:
            cells.append("")
            continue
        p = tested[change.name].p_value
        cells.append(f"{SIGNS[found[change].holds]} {p:.2g}" if p >= 1e-99 else f"{SIGNS[found[change].holds]} 0")
    return f"| {name} | {' | '.join(cells)} |"


def disagreements(name: str, found: Symmetries, tested: dict[str, SymmetryTest]) -> list[str]:
    pairs = [(v, tested[v.transformation.name]) for v in found.verdicts if v.holds is not None]
    return [f"{name}: {v}\n  {test}" for v, test in pairs if v.holds == test.rejected]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names (all ensembles)")
    parser.add_argument("--count", type=int, default=20_000, help="networks per test (20000)")
    parser.add_argument("--why", action="store_true", help="print the derivations too")
    options = parser.parse_args(arguments)
    names = [n for n in GALLERY if not options.names or any(part in n for part in options.names)]
    if not names:
        print(f"error: no ensemble has {' or '.join(options.names)} in its name", file=sys.stderr)
        return 2
    print(f"| ensemble | {' | '.join(t.name for t in TRANSFORMATIONS)} |")
    print("|---" * (1 + len(TRANSFORMATIONS)) + "|")
    wrong: list[str] = []
    decided = undecided = 0
    for name in names:
        case = GALLERY[name]
        found = symmetries(case.ensemble, case.points)
        tested = tests(name, found, options.count)
        print(row(name, found, tested), flush=True)
        wrong += disagreements(name, found, tested)
        undecided += sum(v.holds is None for v in found.verdicts)
        decided += sum(v.holds is not None for v in found.verdicts)
        if options.why:
            print(f"\n{case.note}\n{found}\n")
    print(f"\n{len(names)} ensembles, {decided} decisions, {len(wrong)} contradicted by a test, {undecided} undecided")
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
