"""docs/coverage.md, from the rows of the sweep."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

# a random element changes the outputs by no more than this, relative, in float64
ROUNDING = 1e-9


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name).split("+")[0] for name in ("torch", "transformers")}


def page(rows: list[dict[str, Any]], total: int) -> str:
    """docs/coverage.md."""
    found = versions()
    head = f"""# Coverage

`python benchmarks/coverage.py` makes this page: a tiny model with random weights of every model type of transformers
{found["transformers"]} (torch {found["torch"]}), one base class and one head class each, as far as its default
configuration can be shrunk and run without a network. Tried: {len(rows)} of {total}.

{summary(rows)}

- *sound*: two random elements of the group change no output by more than {ROUNDING:.0e}, relative, in float64.
- *complete*: nothing is hidden, by `certify`. *Incomplete* rows say where hidden directions live. Models of more than
  4000 parameters, and those that ran out of time, are only checked for soundness.
- *unknown*: operators without a rule. They block what they touch, and never make a claim.
- *dimension* is the rank of the generators on parameters that the inputs read.
"""
    body = [head, "## Models that were inferred\n", *_inferred(rows), "\n## Unknown operators\n", *_operators(rows)]
    body += ["\n## Not exported\n", *_failures(rows, ("not exported",))]
    body += ["\n## Not inferred, or not measured\n", *_failures(rows, ("not inferred", "not measured"))]
    body += ["\n## Not built\n", *_failures(rows, ("not built",))]
    return "\n".join(body) + "\n"


def summary(rows: list[dict[str, Any]]) -> str:
    """A small table of counts."""
    counts = Counter(row["status"] for row in rows)
    built = sum(1 for r in rows if r["built"])
    exported = sum(1 for r in rows if r["exported"])
    measured = counts["complete"] + counts["incomplete"] + counts["undecided"]
    sound = measured + counts["sound"]
    slow = max((r.get("infer_seconds", 0.0) for r in rows), default=0.0)
    lines = [
        "| | models | share |",
        "|---|---:|---:|",
        f"| tried | {len(rows)} | |",
        f"| built and run | {built} | {_share(built, len(rows))} of tried |",
        f"| exported | {exported} | {_share(exported, built)} of built |",
        f"| sound | {sound} | {_share(sound, exported)} of exported |",
        f"| unsound | {counts['unsound']} | |",
        f"| completeness measured | {measured} | {_share(measured, sound)} of sound |",
        f"| complete | {counts['complete']} | {_share(counts['complete'], measured)} of measured |",
        f"| undecided | {counts['undecided']} | {_share(counts['undecided'], measured)} of measured |",
        f"| incomplete | {counts['incomplete']} | {_share(counts['incomplete'], measured)} of measured |",
        "",
        f"Longest inference: {slow:.1f} s.",
    ]
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _inferred(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| type | class | parameters | unknown | sound | dimension | nullity | hidden | status | seconds |"
    yield "|---|---|---:|---:|---|---:|---:|---:|---|---:|"
    for r in rows:
        if "sound" in r:
            sound = "**no**" if r["status"] == "unsound" else "yes"
            numbers = [_number(r.get(key)) for key in ("orbit_dimension", "nullity", "hidden")]
            words = [
                r["type"],
                r["class"],
                str(r["parameters"]),
                str(sum(r.get("unknown", {}).values())),
                sound,
                *numbers,
            ]
            yield "| " + " | ".join([*words, _remark(r), f"{r['seconds']:.1f}"]) + " |"


def _number(value: Any) -> str:
    return "" if value is None else str(value)


def _remark(row: dict[str, Any]) -> str:
    if row["status"] == "unsound":
        return f"**unsound**, defect {max(row['defect'], row.get('certificate_defect', 0.0)):.0e}: " + "; ".join(
            f"`{name}`" for name in row.get("unsound_in", ())
        )
    if row["status"] in ("incomplete", "undecided") and row.get("hidden_in"):
        where = ", ".join(f"`{n}` {share:.0%}" for n, share in blocks(row["hidden_in"]))
        return f"{row['status']}: {where}"
    if row["status"] == "sound" and row.get("error"):
        return f"sound; {_short(row['error'])}"
    return row["status"]


def blocks(hidden_in: Mapping[str, float], most: int = 3) -> list[tuple[str, float]]:
    """Parameter names without the numbers of layers, with the shares of the hidden directions added up."""
    found: Counter[str] = Counter()
    for name, share in hidden_in.items():
        found[re.sub(r"\.\d+\.", ".*.", name)] += share
    return found.most_common(most)


def _operators(rows: list[dict[str, Any]]) -> Iterator[str]:
    models: Counter[str] = Counter()
    for r in rows:
        models.update(set(r.get("unknown", {})))
    yield "| operator or reason | models |"
    yield "|---|---:|"
    yield from (f"| `{what}` | {count} |" for what, count in sorted(models.items(), key=lambda kv: (-kv[1], kv[0])))


def _failures(rows: list[dict[str, Any]], kinds: tuple[str, ...]) -> Iterator[str]:
    yield "| type | class | first error |"
    yield "|---|---|---|"
    for r in rows:
        if r["status"] in kinds:
            yield f"| {r['type']} | {r['class']} | {_short(r.get('error') or '')} |"


def relative(text: str) -> str:
    """Without the folders of this machine."""
    return re.sub(r"/\S*/(?:site-packages|src)/", "", text)


def _short(text: str) -> str:
    text = relative(text).split(" | ")[0]
    return text.replace("|", "\\|").replace("<", "&lt;")[:200]
