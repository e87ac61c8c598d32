"""The gauge group of a network: its factors, its elements, and how they move parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from torchgauge import explain
from torchgauge import factors as describe
from torchgauge.action.additive import Additive
from torchgauge.action.coordinates import cast_like, decode, encode
from torchgauge.action.frame_action import FrameElement, FrameStage, depends, sizes, var_sizes
from torchgauge.explain import Space, Why
from torchgauge.groups import matrices
from torchgauge.spaces.axes import Axis
from torchgauge.spaces.constraints import Program
from torchgauge.values import Factor, Rigid

Params = Mapping[str, Tensor]
Move = Callable[[dict[str, Tensor]], dict[str, Tensor]]
FRAMES = 0
# entries of all tangents that are computed in one pass
TOGETHER = 20_000_000


@dataclass(frozen=True)
class Shear:
    """The generators 1wᵀ in front of a layer norm."""

    axis: Axis


@dataclass(frozen=True)
class Element:
    """A group element: a word of stage elements, the first one acting first. `g @ h` acts with h, then g."""

    group: GaugeGroup = field(repr=False)
    letters: tuple[tuple[int, Any], ...]

    def __matmul__(self, other: Element) -> Element:
        if other.group is not self.group:
            raise ValueError("elements of two different groups cannot be composed")
        letters = list(other.letters)
        for stage, value in self.letters:
            if letters and letters[-1][0] == stage:
                letters[-1] = (stage, self.group._compose(stage, value, letters[-1][1]))
            else:
                letters.append((stage, value))
        return Element(self.group, tuple(letters))

    def inverse(self) -> Element:
        return Element(self.group, tuple((s, self.group._invert(s, v)) for s, v in reversed(self.letters)))


class GaugeGroup:
    """The gauge group of a traced model; made by `infer`."""

    def __init__(
        self,
        program: Program,
        frames: FrameStage,
        additive: tuple[Additive, ...],
        *,
        ties: Mapping[str, str],
        observed: tuple[str, ...],
        dropped: tuple[str, ...] = (),
        limit: FrameStage | None = None,
        beyond: tuple[Additive, ...] = (),
    ) -> None:
        self.program = program
        self.frames, self.additive = frames, additive
        self.ties = dict(ties)
        self.observed, self.dropped = observed, dropped
        self._limit, self._beyond = limit, beyond

    # -- description -------------------------------------------------------------------------------------------
    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """All factors; those that hold only as ε → 0 (`exact` False) come last and are not part of the group."""
        followers = self._followers
        additive = (factor for stage in self.additive for factor in describe.additive_factors(stage))
        exact = [
            *describe.frame_factors(self.frames, followers),
            *(describe.followed(factor, followers) for factor in additive),
        ]
        limit = describe.approximate_factors(self.frames, self._limit) if self._limit is not None else []
        more = [replace(factor, exact=False) for stage in self._beyond for factor in describe.additive_factors(stage)]
        # one number for a whole table is a part of one for each of its rows
        rows = {factor.parameters for factor in more}
        return (*exact, *(factor for factor in limit if factor.parameters not in rows), *more)

    @cached_property
    def _followers(self) -> dict[str, frozenset[str]]:
        """Parameters that take up what others compute, with these others."""
        programs = (self.program, *(stage.program for stage in self.additive))
        found: dict[str, frozenset[str]] = {}
        for at in (at for program in programs for at in program.coordinates.values() if at.cone):
            found[at.name] = found.get(at.name, frozenset()) | at.cone
        return found

    @cached_property
    def rigid(self) -> tuple[Rigid, ...]:
        """Where frames were lost and why, unknown operators first. `why` says it of one space at length."""
        return explain.rigid(self.frames, self.ties)

    @cached_property
    def spaces(self) -> tuple[Space, ...]:
        """All spaces that parameters touch."""
        return explain.spaces(self.frames.frames)

    def select(self, name: str) -> tuple[Space, ...]:
        """The spaces that carry a factor, or that a parameter or a module touches.

        Raises:
            InputError: nothing is called that.
        """
        return explain.select(self.spaces, name, self.frames, self.ties, self.factors)

    def why(self, space: str | Space) -> tuple[Why, ...]:
        """What stands between a space and a larger group, with source lines of the model.

        The larger groups are computed: the frames are solved again without each of the reasons.

        Args:
            space: one of `spaces`, or the name of a space, a factor, a parameter (`name` or `name[dimension]`) or a
                module; such a name may mean several spaces.

        Raises:
            InputError: nothing is called that.
        """
        chosen = self.select(space) if isinstance(space, str) else (space,)
        return tuple(explain.why(one, self.frames, self.ties) for one in chosen)

    @cached_property
    def components(self) -> dict[str, int]:
        """Number of connected components as an exact product: {"8!": 2, "2^8": 1} is (8!)² · 2⁸."""
        total: dict[str, int] = {}
        for factor in self.factors:
            for base, power in factor.components.items():
                total[base] = total.get(base, 0) + power
        return total

    @property
    def dimension(self) -> int:
        """Sum of the factors' dimensions: of the group, an upper bound for its orbits."""
        return sum(f.dimension for f in self.factors if f.exact)

    def limit(self) -> GaugeGroup:
        """The larger group that the model has as every ε → 0."""
        return GaugeGroup(
            self.program,
            self._limit or self.frames,
            (*self.additive, *self._beyond),
            ties=self.ties,
            observed=self.observed,
            dropped=self.dropped,
        )

    def to_dict(self) -> dict[str, object]:
        """Everything that `inspect` shows, as plain values."""
        return {
            "observed": list(self.observed),
            "dropped": list(self.dropped),
            "dimension": self.dimension,
            "components": self.components,
            "factors": [f.to_dict() for f in self.factors],
            "rigid": [r.to_dict() for r in self.rigid],
        }

    def __repr__(self) -> str:
        discrete = " · ".join(f"({b})^{n}" if n > 1 else b for b, n in self.components.items()) or "1"
        return f"GaugeGroup({len(self.factors)} factors, dimension {self.dimension}, components {discrete})"

    def reads(self, name: str) -> bool:
        """Whether an output can depend on a parameter: not on one that is unused, or multiplies zeros alone."""
        return any(name in (k.name, *k.refs) for k in self.program.coordinates.values())

    # -- elements ----------------------------------------------------------------------------------------------
    def identity(self) -> Element:
        return Element(self, ())

    def random(self, generator: torch.Generator | None = None, scale: float = 1.0) -> Element:
        """An element with every factor moved.

        Args:
            generator: source of randomness.
            scale: spread of log singular values, log scales, and the size of shifts.
        """
        frames = self.frames.sample(generator, scale)

        def normal(shape: tuple[int, ...], width: int) -> Tensor:
            # of the size of a weight that reads `width` entries: larger ones only cost digits
            return scale / (16 * max(1, width)) ** 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)

        letters: list[tuple[int, Any]] = [(FRAMES, frames)]
        for i, stage in enumerate(self.additive, 1):
            if values := {key: normal(stage.shape(key), stage.width(key)) for key in stage.free}:
                letters.append((i, values))
        return Element(self, tuple(letters))

    def _compose(self, stage: int, g: Any, h: Any) -> Any:
        if stage == FRAMES:
            return self.frames.compose(g, h)
        return {k: g.get(k, 0) + h.get(k, 0) for k in {**h, **g}}

    def _invert(self, stage: int, g: Any) -> Any:
        return self.frames.inverse(g) if stage == FRAMES else {k: -v for k, v in g.items()}

    # -- action ------------------------------------------------------------------------------------------------
    def act(self, element: Element, params: Params) -> dict[str, Tensor]:
        """The transformed parameters.

        Args:
            element: of this group.
            params: a state dict (names as in `model.state_dict()`, ties included); left untouched.

        Returns:
            A new dict with the same names, dtypes, devices and ties. The arithmetic is float64 with one cast.
        """
        steps = [(stage, partial(self._step, stage, value)) for stage, value in element.letters]
        return self._travelled(steps, params, cast=True)

    def _travelled(self, steps: Iterable[tuple[int, Move]], params: Params, *, cast: bool = False) -> dict[str, Tensor]:
        """The state after some steps, each taken in the coordinates of its own stage's program."""
        given = params = {name: value.detach() for name, value in params.items()}
        at, coordinates = self.program, encode(self.program, self.ties, params)
        for stage, move in steps:
            wanted = self.program if stage == FRAMES else self.additive[stage - 1].program
            if wanted is not at:
                params = decode(at, self.ties, params, coordinates)
                at, coordinates = wanted, encode(wanted, self.ties, params)
            coordinates = move(coordinates)
        moved = decode(at, self.ties, params, coordinates)
        return cast_like(given, moved, self.ties) if cast else moved

    def _step(self, stage: int, value: Any, coordinates: dict[str, Tensor]) -> dict[str, Tensor]:
        return (
            self.frames.act(value, coordinates) if stage == FRAMES else self.additive[stage - 1].act(value, coordinates)
        )

    # -- Lie algebra -------------------------------------------------------------------------------------------
    @cached_property
    def generators(self) -> list[tuple[str, int, Any, tuple[int, ...]]]:
        """(factor name, stage, key, shape of the algebra coordinates) of every continuous factor."""
        out: list[tuple[str, int, Any, tuple[int, ...]]] = []
        for r in self.frames.vectors:
            shape = (*sizes(depends(r)), matrices.dimension(r.kind.value, r.size))
            out.append((f"{r.kind.value} {r.name}", FRAMES, r, shape))
        for r in self.frames.sheared:
            out.append((f"shear {r.name}", FRAMES, Shear(r), (*sizes(depends(r)), r.size)))
        for v in self.frames.log_vars:
            out.append((v.name, FRAMES, v, var_sizes(v)))
        for i, stage in enumerate(self.additive, 1):
            out += [(stage.name(key), i, key, stage.shape(key)) for key in stage.free]
        return [g for g in out if _numel(g[3])]

    def projected(self, i: int) -> bool:
        """Whether only a part of the coordinates of a generator family counts, which depends on other weights."""
        _, stage, key, shape = self.generators[i]
        return stage != FRAMES and self.additive[stage - 1].dimension(key) < _numel(shape)

    @property
    def tangent_count(self) -> int:
        return sum(_numel(shape) for *_, shape in self.generators)

    def _flow(self, stage: int, key: Any, algebra: Tensor, coordinates: dict[str, Tensor]) -> dict[str, Tensor]:
        """To first order, the action of one generator family at the given algebra coordinates."""
        if stage != FRAMES:
            return self._step(stage, {key: algebra}, coordinates)
        if isinstance(key, Shear):
            element = self.frames.lifted(FrameElement(), {key.axis: algebra})
        elif isinstance(key, Axis):
            eye = torch.eye(key.size, dtype=torch.float64)
            turn = eye + matrices.tangent(key.kind.value, key.size, algebra)
            element = self.frames.lifted(FrameElement(mats={key: turn}), {})
        else:
            element = FrameElement(logs={key: algebra})
        return self.frames.act(element, coordinates)

    def flow(self, algebra: Mapping[int, Tensor], params: Params) -> dict[str, Tensor]:
        """To first order in `algebra`, the parameters moved along several generators at once.

        Args:
            algebra: algebra coordinates by position in `generators`, in the shapes given there.
            params: a state dict.

        Returns:
            The parameters in float64 under canonical names, differentiable in `algebra`.
        """
        chosen = [(*self.generators[i][1:3], value) for i, value in algebra.items()]
        steps = [(stage, partial(self._flow, stage, key, value)) for stage, key, value in chosen]
        out = self._travelled(steps, params)
        return {n: out[n] for n in params if n not in self.ties and params[n].is_floating_point()}

    def _derivative(self, stage: int, key: Any, direction: Tensor, params: Params) -> dict[str, Tensor]:
        """∂/∂t of the decoded parameters along one algebra direction."""
        return torch.func.jvp(self._path(stage, key, params), (torch.zeros_like(direction),), (direction,))[1]

    def _path(self, stage: int, key: Any, params: Params) -> Callable[[Tensor], dict[str, Tensor]]:
        """The decoded parameters as a function of the algebra coordinates of one family."""
        names = [n for n in params if n not in self.ties and params[n].is_floating_point()]

        def path(algebra: Tensor) -> dict[str, Tensor]:
            out = self._travelled([(stage, partial(self._flow, stage, key, algebra))], params)
            return {n: out[n] for n in names}

        return path

    def _derivatives(self, stage: int, key: Any, shape: tuple[int, ...], params: Params) -> Iterator[dict[str, Tensor]]:
        """The derivatives along every unit direction of one family, many in one pass where memory allows."""
        n, size = _numel(shape), sum(p.numel() for p in params.values())
        path, zero = self._path(stage, key, params), torch.zeros(shape, dtype=torch.float64)
        for start in range(0, n, at_once := max(1, min(n, TOGETHER // max(1, size)))):
            count = min(at_once, n - start)
            units = torch.zeros(count, n, dtype=torch.float64)
            units[range(count), range(start, start + count)] = 1.0
            moved = torch.func.vmap(lambda d: torch.func.jvp(path, (zero,), (d,))[1])(units.reshape(count, *shape))
            yield from ({name: value[i] for name, value in moved.items()} for i in range(count))

    def tangent(self, params: Params, i: int) -> dict[str, Tensor]:
        """The i-th generator as a direction in parameter space (float64, canonical names)."""
        for _, stage, key, shape in self.generators:
            n = _numel(shape)
            if i < n:
                direction = torch.zeros(n, dtype=torch.float64)
                direction[i] = 1.0
                return self._derivative(stage, key, direction.reshape(shape), params)
            i -= n
        raise IndexError("no such generator")

    def tangents(self, params: Params) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(factor name, direction) for every generator, one at a time."""
        for name, stage, key, shape in self.generators:
            yield from ((name, d) for d in self._derivatives(stage, key, shape, params))

    def tangent_matrix(self, params: Params, names: list[str] | None = None) -> Tensor:
        """All generators as columns [parameters, generators], float64.

        Args:
            params: state dict.
            names: order of the parameters in the rows; default: all learnable ones, canonical, sorted as given.
        """
        names = names or [n for n in params if n in self.learnable]
        columns = [torch.cat([d[n].reshape(-1) for n in names]) for _, d in self.tangents(params)]
        rows = sum(params[n].numel() for n in names)
        return torch.stack(columns, 1) if columns else torch.zeros(rows, 0, dtype=torch.float64)

    @cached_property
    def learnable(self) -> set[str]:
        """Canonical names of the parameters."""
        programs = (self.program, *(stage.program for stage in self.additive))
        return {at.name for program in programs for at in program.coordinates.values()}

    @cached_property
    def computes(self) -> bool:
        """Whether its coordinates hold numbers that the model computes from parameters."""
        programs = (self.program, *(stage.program for stage in self.additive))
        return any(at.rests or at.turns for program in programs for at in program.coordinates.values())

    def orbit_dimension(self, params: Params) -> int:
        """Rank of the generators at these parameters (float64, exact singular values)."""
        matrix = self.tangent_matrix(params)
        if matrix.shape[1] == 0:
            return 0
        rows = matrix.norm(dim=1, keepdim=True)
        matrix = matrix / torch.where(rows > 0, rows, torch.ones_like(rows))
        matrix = matrix / matrix.norm(dim=0).clamp_min(1e-30)
        values = torch.linalg.svdvals(matrix)
        return int((values > 1e-9 * values[0]).sum())


def _numel(shape: tuple[int, ...]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out
