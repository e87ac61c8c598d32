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


def page(rows: list[dict[str, Any]], total: int, found: Mapping[str, str], older: int = 0) -> str:
    """docs/coverage.md.

    Args:
        rows: as in coverage.json.
        total: how many models there are to try.
        found: versions of the libraries that made the rows.
        older: how many rows older code made.
    """
    head = f"""# Coverage

`python benchmarks/coverage.py` makes this page: a tiny model with random weights of every model type of transformers
{found["transformers"]} (torch {found["torch"]}), one base class and one head class each, as far as its default
configuration can be shrunk and run without a network. {_tried(len(rows), total)}{_older(older)}

{summary(rows)}

- *sound*: two random elements of the group change no output by more than {ROUNDING:.0e}, relative, in float64.
- *complete*: nullity and orbit dimension agree, by `certify`: nothing is hidden. For an *incomplete* model the table
  names the parameters that the hidden directions move most, with the share of each module; `*` is any layer.
  *Undecided*: a network with kinks that was looked at too briefly, or singular values that do not part.
- *sound* alone: the model could not be made smaller than 6000 parameters, or certifying it ran out of time.
- A network of one layer that hides directions is judged again with two layers, and that row is taken if it hides fewer:
  one layer may hide some by accident, as a BERT does, or a head that reads a class token which has read nothing yet.
- A network whose experts hide something is judged again with a vocabulary of 160: experts in a first layer read as many
  vectors as there are tokens.
- *unknown*: operators without a rule. They block what they touch, and never make a claim.
- *seconds* of processor time, on one core.
- *orbit* is the rank of the generators on parameters that the inputs read. Special tokens are not among the inputs.
"""
    body = [head, "## Models that were inferred\n", *_inferred(rows), "\n## Hidden directions, by module\n"]
    body += [*_gaps(rows), "\n## Unknown operators\n", *_operators(rows)]
    body += ["\n## Not exported\n", *_failures(rows, ("not exported",))]
    body += ["\n## Not inferred, or not measured\n", *_failures(rows, ("not inferred", "not measured"))]
    body += ["\n## Not built\n", *_failures(rows, ("not built",))]
    return "\n".join(body) + "\n"


def _tried(count: int, total: int) -> str:
    if count == total:
        return f"All {total} were tried."
    return f"**A part: {count} of {total} were tried so far; shares are of these.**"


def _older(count: int) -> str:
    if not count:
        return ""
    return (
        f"\n{count} rows are from before the last changes to the code: a model that was complete is not judged again at"
        "\neach of them, and some that were not will be now (`--again old`)."
    )


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    """What the summary counts."""
    found = Counter(row["status"] for row in rows)
    measured = found["complete"] + found["incomplete"] + found["undecided"]
    return {
        "tried": len(rows),
        "built": sum(1 for r in rows if r["built"]),
        "exported": sum(1 for r in rows if r["exported"]),
        "sound": measured + found["sound"],
        "unsound": found["unsound"],
        "measured": measured,
        "complete": found["complete"],
        "undecided": found["undecided"],
        "incomplete": found["incomplete"],
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """The three shares that matter, and a small table of counts."""
    n = counts(rows)
    slow = max((r.get("infer_seconds", 0.0) for r in rows), default=0.0)
    lines = [
        f"**Unsound: {n['unsound']}.**",
        f"Sound: **{_share(n['sound'], n['exported'])}** of those that were exported.",
        f"Complete: **{_share(n['complete'], n['measured'])}** of those whose completeness was measured.",
        f"Built: **{_share(n['built'], n['tried'])}** of those tried.",
        "",
        "| | models | share |",
        "|---|---:|---:|",
        f"| tried | {n['tried']} | |",
        f"| built and run | {n['built']} | {_share(n['built'], n['tried'])} of tried |",
        f"| exported | {n['exported']} | {_share(n['exported'], n['built'])} of built |",
        f"| sound | {n['sound']} | {_share(n['sound'], n['exported'])} of exported |",
        f"| unsound | {n['unsound']} | |",
        f"| completeness measured | {n['measured']} | {_share(n['measured'], n['sound'])} of sound |",
        f"| complete | {n['complete']} | {_share(n['complete'], n['measured'])} of measured |",
        f"| undecided | {n['undecided']} | {_share(n['undecided'], n['measured'])} of measured |",
        f"| incomplete | {n['incomplete']} | {_share(n['incomplete'], n['measured'])} of measured |",
        "",
        f"Longest inference: {slow:.1f} s.",
    ]
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _inferred(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| type | class | parameters | unknown | sound | orbit | nullity | hidden | status | seconds |"
    yield "|---|---|---:|---:|---|---:|---:|---:|---|---:|"
    for r in rows:
        if "sound" in r:
            unknown = str(sum(r.get("unknown", {}).values()))
            sound = "**no**" if r["status"] == "unsound" else "yes"
            numbers = [_number(r.get(key)) for key in ("orbit_dimension", "nullity", "hidden")]
            words = [r["type"], r["class"], str(r["parameters"]), unknown, sound, *numbers]
            yield "| " + " | ".join([*words, _remark(r), f"{r['seconds']:.1f}"]) + " |"


def _number(value: Any) -> str:
    return "" if value is None else str(value)


def _remark(row: dict[str, Any]) -> str:
    if row["status"] == "unsound":
        return f"**unsound**, defect {max(row['defect'], row.get('certificate_defect', 0.0)):.0e}: " + "; ".join(
            f"`{name}`" for name in row.get("unsound_in", ())
        )
    if row["status"] in ("incomplete", "undecided"):
        return f"{row['status']}: {gap(row.get('hidden_in') or {}) if row.get('hidden') else row.get('undecided')}"
    if row["status"] == "sound":
        return f"sound; {_uncertified(row)}"
    return row["status"]


def _uncertified(row: Mapping[str, Any]) -> str:
    """Why a sound model has no certificate."""
    return _short(row["error"]) if row.get("error") else "too large to certify"


def gap(hidden_in: Mapping[str, float], most: int = 3) -> str:
    """The parameters that hidden directions move most, by module, in words."""
    if not hidden_in:
        return "spread over all parameters, each with less than one percent"
    leaves: dict[str, list[str]] = {}
    for name in hidden_in:
        module, _, leaf = name.rpartition(".")
        leaves.setdefault(_numberless(module or name), []).append(leaf if module else "")
    words = []
    for module, share in blocks(hidden_in, most):
        of = [leaf for leaf in dict.fromkeys(leaves[module]) if leaf]
        ending = f".{of[0]}" if len(of) == 1 else f".{{{','.join(of)}}}" if of else ""
        words.append(f"`{module}{ending}` {share:.0%}")
    return ", ".join(words)


def blocks(hidden_in: Mapping[str, float], most: int = 3) -> list[tuple[str, float]]:
    """Modules without the numbers of layers, with the shares of the hidden directions added up."""
    found: Counter[str] = Counter()
    for name, share in hidden_in.items():
        found[_numberless(name.rpartition(".")[0] or name)] += share
    return found.most_common(most)


def _numberless(module: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", module)


def _gaps(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Where hidden directions live, by the last words of the module's name, the most frequent first."""
    models: dict[str, list[str]] = {}
    for r in rows:
        if r["status"] in ("incomplete", "undecided") and r.get("hidden_in"):
            name, _ = blocks(r["hidden_in"], most=1)[0]
            models.setdefault(".".join(re.sub(r"\.\*", "", name).split(".")[-2:]), []).append(r["class"])
    yield "| module | models | |"
    yield "|---|---:|---|"
    for name, classes in sorted(models.items(), key=lambda item: (-len(item[1]), item[0])):
        more = ", …" if len(classes) > 4 else ""
        yield f"| `{name}` | {len(classes)} | {', '.join(sorted(classes)[:4])}{more} |"


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
