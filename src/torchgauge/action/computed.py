"""Constants that parameters compute, in numbers: what biases have taken up (spaces/folding.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.spaces import constraints as c
from torchgauge.spaces.turned import invertible, matrix, rows_of

VIEWS = (c.Reshape, c.Permute, c.Slice, c.Expand)
COMPUTED = ("computed", "turned")
"""Kinds of coordinates that depend on other parameters by recipes."""


def rest(coordinate: c.Coordinate, values: Values, like: Tensor) -> Tensor:
    """What a computed coordinate has on top of the parameter, of its shape."""
    total = torch.zeros_like(like)
    for one in coordinate.rests:
        total = total + _placed(one, values.taken_up(one, coordinate.name), like)
    return total


def coordinate(at: c.Coordinate, values: Values, value: Tensor) -> Tensor:
    """A computed coordinate, from the parameter."""
    value = value + rest(at, values, value)
    for turn in at.turns:
        value = _turned(turn, values, value, at.name, inverse=False)
    return value


def parameter(at: c.Coordinate, values: Values, value: Tensor) -> Tensor:
    """The parameter, from its computed coordinate."""
    for turn in reversed(at.turns):
        value = _turned(turn, values, value, at.name, inverse=True)
    return value - rest(at, values, value)


def _turned(turn: c.Turn, values: Values, value: Tensor, name: str, *, inverse: bool) -> Tensor:
    """A parameter of which one view is multiplied by the matrix of a turn, or the coordinate by its inverse."""
    m = matrix(turn, values.raw)
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(m)  # pyright: ignore[reportAttributeAccessIssue]
    if not wrapped and not invertible(m.detach()):
        raise InputError(
            f"what {name} reads, constants that parameters compute, is linearly dependent at these parameters",
            where=turn.x.source,
            remedy="take parameters that are trained, or random; zeros, as a table may have at first, do this",
        )
    places = _places(turn.views, value).permute(*turn.free, *turn.summed).reshape(-1, m.shape[0])
    flat, offset = value.reshape(-1), turn.offset * (torch.arange(m.shape[0]) < rows_of(turn))
    if inverse:
        moved = torch.linalg.solve(m, flat[places] - offset, left=False)
    else:
        moved = flat[places] @ m + offset
    return flat.index_copy(0, places.reshape(-1), moved.reshape(-1)).reshape(value.shape)


def _placed(one: c.Rest, value: Tensor, like: Tensor) -> Tensor:
    """Numbers of a view at their places in the parameter."""
    if not one.views:
        return value.reshape(like.shape)
    flat = torch.zeros(like.numel(), dtype=torch.float64)
    return flat.index_add(0, _places(one.views, like).reshape(-1), value.reshape(-1)).reshape(like.shape)


def _places(views: tuple[c.Constraint, ...], like: Tensor) -> Tensor:
    """Where the entries of a view stand in the parameter."""
    places = torch.arange(like.numel()).reshape(like.shape)
    for k in views:
        places = _viewed(k, places)
    return places


def _viewed(k: c.Constraint, value: Tensor) -> Tensor:
    match k:
        case c.Reshape():
            return value.reshape(k.out.shape)
        case c.Permute():
            return value.permute(k.dims)
        case c.Slice():
            return value.narrow(k.dim, k.start, k.stop - k.start)
        case c.Expand():
            return value.expand(k.out.shape)
    raise TypeError(type(k).__name__)


@dataclass
class Values:
    """Tensors that parameters alone make, from some coordinates that are given and parameters for the rest."""

    given: Mapping[str, Tensor]
    """Coordinates of whole parameters."""
    parameter: Callable[[str], Tensor]
    """A parameter that no given coordinate is computed for."""
    final: Mapping[str, c.Coordinate]
    """What the given coordinates are; recipes may speak of earlier ones."""
    _raw: dict[str, Tensor] = field(default_factory=dict)
    _known: dict[tuple[int, c.Tensor], Tensor] = field(default_factory=dict)

    def raw(self, name: str) -> Tensor:
        """A parameter."""
        if name not in self._raw:
            at = self.final.get(name)
            if at is not None and at.kind in COMPUTED and name in self.given:
                self._raw[name] = parameter(at, self, self.given[name])
            else:
                self._raw[name] = self.parameter(name)
        return self._raw[name]

    def whole(self, name: str, coordinates: Mapping[str, c.Coordinate]) -> Tensor:
        """The coordinate of a parameter."""
        at = coordinates[name]
        if name in self.given and (self.final[name].rests, self.final[name].turns) == (at.rests, at.turns):
            return self.given[name]
        value = self.raw(name)
        return coordinate(at, self, value) if at.kind in COMPUTED else value + at.offset

    def taken_up(self, one: c.Rest, name: str) -> Tensor:
        """What is added to the view of a parameter."""
        if one.rows is not None:
            return self._by_row(one, one.rows, name)
        if one.sum is None:
            return self.of(one.x, one.recipes)
        numbers = one.recipes.numbers
        assert numbers is not None

        def without(other: str) -> Tensor:
            return torch.zeros_like(self.parameter(name)) if other == name else self.raw(other)

        return _short(numbers.value(one.sum, without), one.x)

    def _by_row(self, one: c.Rest, rows: c.Rows, name: str) -> Tensor:
        """What is added to every row of a table."""
        numbers, like = one.recipes.numbers, self.parameter(name)
        assert numbers is not None
        ones = torch.ones(1, dtype=torch.float64).expand(like.shape)
        factor = numbers.rows(rows.shown, rows.index, 1, lambda other: ones)
        found = numbers.rows(one.x, rows.index, like.shape[0], self.raw)
        return (rows.alpha * found / factor).reshape(like.shape)

    def of(self, t: c.Tensor, recipes: c.Recipes) -> Tensor:
        """The numbers of a tensor."""
        key = id(recipes), t  # the same tensor may be of other coordinates in other recipes
        if key not in self._known:
            self._known[key] = self._of(t, recipes)
        return self._known[key]

    def _of(self, t: c.Tensor, recipes: c.Recipes) -> Tensor:
        if t.role == "param":
            return self.whole(t.name, recipes.coordinates).reshape(t.shape)
        if t.role == "const":
            assert t.fill is not None
            return torch.full(t.shape, t.fill, dtype=torch.float64)
        numbers, origin = recipes.numbers, recipes.origins.get(t)
        if numbers is not None and origin is not None and numbers.knows(origin):
            return _short(numbers.value(origin, self.raw), t)
        k = recipes.makers[t]
        if isinstance(k, VIEWS):
            return _viewed(k, self.of(k.x, recipes))
        assert isinstance(k, (c.Add, c.Mul, c.Contract))
        return combined(k, self.of(k.x, recipes), self.of(k.y, recipes))


def combined(k: c.Add | c.Mul | c.Contract, x: Tensor, y: Tensor) -> Tensor:
    """The result of a constraint of two tensors, in numbers."""
    if isinstance(k, c.Add):
        return x + k.alpha * y
    if isinstance(k, c.Mul):
        return x * y**k.power
    letters = {a: chr(97 + i) for i, a in enumerate(dict.fromkeys((*k.x_labels, *k.y_labels)))}
    spec = ["".join(letters[a] for a in labels) for labels in (k.x_labels, k.y_labels, k.out_labels)]
    return torch.einsum(f"{spec[0]},{spec[1]}->{spec[2]}", x, y)


def _short(value: Tensor, t: c.Tensor) -> Tensor:
    """Of a tensor that is repeated along some dimensions, one copy."""
    for d, n in enumerate(t.shape):
        if n == 1 and value.shape[d] > 1:
            value = value.narrow(d, 0, 1)
    return value.reshape(t.shape)
