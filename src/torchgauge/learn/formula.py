"""Conserved quantities in words, read off their generators at a random point."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from torchgauge.factors import place
from torchgauge.learn.closed import TINY, Closed
from torchgauge.learn.generators import Generators

Term = tuple[float, str]


ROWS = 300
"""Most combinations of a search that are put in words one by one."""


def described(generators: Generators, space: Closed, kind: str) -> tuple[str, str, tuple[str, ...], str, str]:
    """Name, factors, parameters, kind and formula of a space of gradients."""
    factors = [f for f in generators.group.factors if f.exact and f.dimension > 0]  # as in group.generators
    families = _taking_part(space)
    names = sorted({name for i in families for name in generators.moved[i]})
    weights = torch.randn(space.count, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    names = sorted(_terms(generators, space, names, weights))  # a combination may leave some of them alone
    kinds = "+".join(dict.fromkeys(factors[i].kind for i in families))
    (selection, *_), searched = space.parts.values(), space.basis is not None
    one = torch.eye(space.count, dtype=torch.float64)[0] if searched else selection.unit
    return place(names), kinds, tuple(names), kind, _sum(generators, space, names, one) + _how_often(space, kind)


def alike(generators: Generators, space: Closed) -> list[Closed]:
    """The combinations of a search, in groups that have one formula."""
    if space.basis is None or space.count > ROWS:
        return [space]
    names = sorted({name for i in space.parts for name in generators.moved[i]})
    groups: dict[str, list[int]] = {}
    for k, unit in enumerate(torch.eye(space.count, dtype=torch.float64)):
        groups.setdefault(_sum(generators, space, names, unit), []).append(k)
    return [Closed(space.parts, space.basis[torch.tensor(rows)]) for rows in groups.values()]


def _taking_part(space: Closed) -> list[int]:
    """The families that some combination uses."""
    if space.basis is None:
        return list(space.parts)
    columns = space.basis.split([selection.count for selection in space.parts.values()], 1)
    return [i for i, part in zip(space.parts, columns, strict=True) if bool((part != 0).any())]


def _terms(generators: Generators, space: Closed, names: list[str], weights: Tensor) -> dict[str, list[Term]]:
    """What each tensor adds to a combination of the basis elements."""
    state, _, _ = generators.draw(space.parts, torch.Generator().manual_seed(2))
    one = generators.velocity(space.embed(weights), state)
    two = generators.velocity(space.embed(weights), state | {n: 2 * state[n] for n in names})
    found = {n: _term(n, state[n].reshape(one[n].shape), two[n] - one[n], 2 * one[n] - two[n]) for n in names}
    return {name: terms for name, terms in found.items() if terms}


def _term(name: str, value: Tensor, square: Tensor, constant: Tensor) -> list[Term]:
    """One tensor's terms of ½⟨p, Xp⟩ + ⟨u, p⟩, from Xp and u, on the entries that take part."""
    size = TINY * float(value.abs().max())
    part = (square.abs() > size) | (constant.abs() > size)
    value, square, constant = value[part], square[part], constant[part]
    flat = _linear(name, constant) if bool((constant.abs() > size).any()) else []
    if not bool((square.abs() > size).any()):
        return flat
    ratio = float((value * square).sum() / value.square().sum())
    if float((square - ratio * value).abs().max()) > size:
        return [(1.0, f"½⟨{name}, X {name}⟩"), *flat]
    if not flat:
        return [(ratio, f"½|{name}|²")]
    shift = float(constant.mean()) / ratio
    if abs(shift - round(shift)) > TINY or float((constant - shift * ratio).abs().max()) > size:
        return [(ratio, f"½|{name} − centre|²")]
    return [(ratio, f"½|{name} {'+' if shift > 0 else '−'} {abs(shift):g}|²")]


def _linear(name: str, constant: Tensor) -> list[Term]:
    value = float(constant.mean())
    if float((constant - value).abs().max()) <= TINY * float(constant.abs().max()):
        return [(value, f"Σ {name}")]
    return [(1.0, f"⟨u, {name}⟩")]


def _sum(generators: Generators, space: Closed, names: list[str], weights: Tensor) -> str:
    """All terms with their signs, positive ones first; coefficients of one are not written."""
    found = _terms(generators, space, names, weights)
    terms, out = [term for name in names for term in found.get(name, [])], ""
    for value, text in sorted(terms, key=lambda term: term[0] < 0):
        sign = (" + " if value > 0 else " − ") if out else ("" if value > 0 else "−")
        out += sign + ("" if abs(abs(value) - 1) < 1e-9 else f"{abs(value):.4g}·") + text
    return out or "0"


def _how_often(space: Closed, kind: str) -> str:
    if space.basis is not None:
        return f", for each of {space.count} combinations" if space.count > 1 else ""
    (selection,) = space.parts.values()
    if selection.kind == "symmetric":
        n = isqrt(selection.shape[-1])
        text = f", each square as a symmetric {n}×{n} matrix" if n > 1 else ""
        return text + (f", {selection.copies} times" if selection.copies > 1 else "")
    each = "pair" if selection.kind == "real" else "component" if kind == "linear" else "unit"
    return f", for each of {selection.count} {each}s" if selection.count > 1 else ""
