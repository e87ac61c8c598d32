"""Our side of the comparison: a random element of the whole group, and whether the group holds what a peer found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def ours(path: Path) -> dict[str, Any]:
    """Infers the group of a saved model and moves the model by a random element; all outputs count.

    `spaces` tells, for every dimension of a parameter, the axes that it is a product of, outermost first: [size, free
    to be permuted, serial number].
    """
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
    spaces = {
        label: [[root.size, not (root.pinned or root.kind.plane), root.serial] for root in space.roots]
        for space in group.spaces
        for label in space.labels
    }
    return {
        "outcome": "kept" if change <= KEPT["float64"] else "wrong",
        "change": change,
        "symmetries": len([f for f in group.factors if f.exact]),
        "dimension": group.dimension,
        "ties": group.ties,
        "spaces": spaces,
    }


def beyond(rows: dict[tuple[str, str], dict[str, Any]]) -> tuple[int, list[str]]:
    """How many permutations of Torch-Pruning that keep the function were looked up, and those our group lacks.

    Those that untie a parameter are no moves of the model that was given, and are not looked up.
    """
    compared, missing = 0, []
    for (method, model), row in rows.items():
        mine = rows.get(("torchgauge", model))
        if method != "Torch-Pruning" or mine is None or "spaces" not in mine:
            continue
        for group in row.get("found", []):
            if group.get("change", 1.0) > 1e-6 or _unties(group["touched"], mine["ties"]):
                continue
            wrong = []
            for name, axis, source in group["touched"]:
                places = _places(mine["spaces"], mine["ties"].get(name, name), axis)
                if not places:
                    break  # of a parameter in parts, such as fused projections, only the inputs can be looked up
                wrong += [f"{name}[{axis}]" for axes in places if not _holds(axes, source)]
            else:
                compared += 1
            if wrong:
                missing.append(f"{model}: {group['root']}, {group['reading']} ({', '.join(wrong[:3])})")
    return compared, missing


def _places(spaces: dict[str, Any], name: str, axis: int) -> list[list[list[Any]] | None]:
    """The axes of a dimension of a parameter, or, of a parameter in parts, those of every part's inputs.

    Running statistics go with the gain of their norm.
    """
    name = re.sub(r"running_(mean|var)$", "weight", name)
    if f"{name}[{axis}]" in spaces:
        return [spaces[f"{name}[{axis}]"]]
    last: dict[str, int] = {}
    for label in spaces:
        part, _, dim = label.removesuffix("]").rpartition("[")
        if part.startswith(f"{name}["):
            last[part] = max(last.get(part, 0), int(dim))
    if last:
        return [spaces[f"{part}[{dim}]"] for part, dim in last.items()] if axis == 1 else []
    return [None]


def _unties(touched: list[list[Any]], ties: dict[str, str]) -> bool:
    """Whether names of one parameter are moved differently."""
    places = {name for name, _, _ in touched}
    moves: dict[tuple[str, int], list[Any]] = {}
    for name, axis, source in touched:
        if moves.setdefault((ties.get(name, name), axis), source) != source:
            return True
    others = [{alias, name} for alias, name in ties.items()]
    return any(places & pair and not pair <= places for pair in others)


def _holds(axes: list[list[Any]] | None, source: list[int]) -> bool:
    """Whether a product of axes lets this permutation of its entries through.

    An axis is permuted by itself, inner ones possibly by other permutations for every entry of outer ones.
    """
    if axes is None:
        return source == list(range(len(source)))
    if not axes:
        return len(source) <= 1
    (size, free, _), inner = axes[0], axes[1:]
    block = len(source) // size
    order = [source[i * block] // block for i in range(size)]
    if not free and order != list(range(size)):
        return False
    for i, to in enumerate(order):
        part = [s - to * block for s in source[i * block : (i + 1) * block]]
        if any(not 0 <= s < block for s in part) or not _holds(inner, part):
            return False
    return True
