"""The generators of a gauge group as vector fields on parameter space, evaluated family by family.

A family is one entry of `group.generators`: all generators of one factor. Only the tensors that it moves are ever
copied; the others are stand-ins without memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.gauge import GaugeGroup
from torchgauge.numerics import Promote

Params = Mapping[str, Tensor]
Algebra = dict[int, Tensor]
FILL = 0.75


@dataclass(frozen=True, eq=False)
class Generators:
    """The generator families of a group.

    Attributes:
        group: the group.
        buffers: running statistics of batch norms in evaluation mode, on which some generators depend.
    """

    group: GaugeGroup
    buffers: Params

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor that the group's coordinates speak of, by canonical name; sizes are right, not all axes."""
        program = self.group.program
        found: dict[str, tuple[int, ...]] = {}
        for own in (program, *(stage.program for stage in self.group.additive)):
            for key, at in own.coordinates.items():
                shape = tuple(at.views[0][0]) if at.views else own.params[key].shape
                found[at.name] = tuple(shape)
                found |= {name: (prod(shape),) for name in at.refs if name and name not in found}
        for key, at in program.buffer_coordinates.items():
            found[at.name] = tuple(at.views[0][0]) if at.views else program.buffers[key].shape
        return found

    @cached_property
    def learnable(self) -> set[str]:
        return self.group.learnable

    @cached_property
    def turning(self) -> frozenset[str]:
        """Parameters that compute what a weight takes up: all generators may depend on them."""
        programs = (self.group.program, *(stage.program for stage in self.group.additive))
        found = {at.name: at.cone for own in programs for at in own.coordinates.values() if at.turns}
        names = frozenset().union(*found.values())
        while more := frozenset().union(*(found.get(name, frozenset()) for name in names)) - names:
            names |= more
        return names & self.shapes.keys()

    @cached_property
    def blank(self) -> dict[str, Tensor]:
        """A state without memory: one number, spread over every parameter; the true buffers.

        Where weights take up what parameters compute, the rows of that must not be alike.
        """
        one = torch.full((), FILL, dtype=torch.float64)
        blank = {name: one.expand(shape) for name, shape in self.shapes.items()}
        draw = torch.Generator().manual_seed(0)
        for name in sorted(self.turning):
            blank[name] = torch.randn(self.shapes[name], generator=draw, dtype=torch.float64)
        return blank | {n: b.detach().double().cpu() for n, b in self.buffers.items() if n in self.shapes}

    def zeros(self, families: Iterable[int]) -> Algebra:
        return {i: torch.zeros(self.group.generators[i][3], dtype=torch.float64) for i in families}

    def state(self, families: Iterable[int], params: Params) -> dict[str, Tensor]:
        """`params` on the CPU in float64, restricted to what the families move; the rest blank.

        Raises:
            InputError: a tensor is missing or has another shape.
        """
        out = dict(self.blank)
        for name in sorted({name for i in families for name in self.moved[i]} | self.turning):
            alias = next((a for a, of in self.group.ties.items() if of == name and a in params), name)
            value = params.get(name, params.get(alias))
            if value is None or value.numel() != prod(self.shapes[name]):
                got = "no tensor of this name" if value is None else f"shape {[*value.shape]}"
                what = f"the conserved quantities are of a model with {prod(self.shapes[name])} numbers here, not {got}"
                raise InputError(what, name, "Pass model.state_dict() of the model that they were found for.")
            out[name] = value.detach().to("cpu", torch.float64)
        return out

    @cached_property
    def moved(self) -> list[tuple[str, ...]]:
        """For every family the learnable tensors that it moves."""
        return [self._moved(i) for i in range(len(self.group.generators))]

    def _moved(self, family: int) -> tuple[str, ...]:
        algebra = self.zeros([family])
        algebra[family].requires_grad_()
        moved = self.group.flow(algebra, self.blank)
        return tuple(name for name in sorted(self.learnable) if moved[name].requires_grad)

    @cached_property
    def read(self) -> list[tuple[str, ...]]:
        """For every family the learnable tensors on which its action depends; those that it moves are among them."""
        return [self._read(i) for i in range(len(self.group.generators))]

    def _read(self, family: int) -> tuple[str, ...]:
        sources = {n: torch.tensor(FILL, dtype=torch.float64, requires_grad=True) for n in sorted(self.learnable)}
        state = self.blank | {
            name: source.expand(self.shapes[name]) if name not in self.turning else self.blank[name] * source
            for name, source in sources.items()
        }
        algebra = {i: zero + 0.1 for i, zero in self.zeros([family]).items()}
        with Promote(), torch.enable_grad():
            moved = self.group.flow(algebra, state)
            total = sum((moved[n].sum() for n in self.moved[family]), torch.zeros((), dtype=torch.float64))
        if not total.requires_grad:
            return self.moved[family]
        found = torch.autograd.grad(total, list(sources.values()), allow_unused=True)
        used = {name for name, g in zip(sources, found, strict=True) if g is not None}
        return tuple(sorted(used | set(self.moved[family])))

    def derivative(self, families: Iterable[int], at: Params, *against: Params) -> list[Algebra]:
        """⟨x, v_a(y)⟩ for every generator v_a of some families, and for one or several x.

        Args:
            families: positions in `group.generators`.
            at: y, a complete state.
            against: each x, by name; what is missing counts as zero.

        Returns:
            For each x, by family, numbers in the shape of its algebra coordinates.
        """
        algebra = {i: zero.requires_grad_() for i, zero in self.zeros(families).items()}
        with torch.enable_grad():
            moved = self.group.flow(algebra, at)
        names = [name for name, value in moved.items() if value.requires_grad]
        return [self._pulled_back(algebra, [(moved[n], x[n]) for n in names if n in x]) for x in against]

    def _pulled_back(self, algebra: Algebra, pairs: list[tuple[Tensor, Tensor]]) -> Algebra:
        if not pairs:
            return self.zeros(algebra)
        values, weights = [v for v, _ in pairs], [w.reshape(v.shape) for v, w in pairs]
        found = torch.autograd.grad(
            values, list(algebra.values()), weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return dict(zip(algebra, found, strict=True))

    def velocity(self, algebra: Algebra, at: Params) -> dict[str, Tensor]:
        """The vector Σ_a c_a v_a(y): what some algebra coordinates c do to the tensors that they move."""
        zeros = self.zeros(algebra)
        moved = {name for i in algebra for name in self.moved[i]}

        def path(c: Algebra) -> dict[str, Tensor]:
            out = self.group.flow(c, at)
            return {name: out[name] for name in sorted(moved)}

        return torch.func.jvp(path, (zeros,), (algebra,))[1]

    def curl(self, families: Iterable[int], at: Params, x: Params, y: Params) -> tuple[Algebra, Algebra]:
        """⟨x, Dv_a(θ) y⟩ and ⟨y, Dv_a(θ) x⟩ for every generator: they agree for all x and y where v_a is a gradient.

        Args:
            families: positions in `group.generators`.
            at: θ, a complete state.
            x, y: directions, by name of learnable tensor.
        """
        zeros = self.zeros(families)

        def along(left: Params, right: Params) -> Algebra:
            def number(c: Algebra) -> Tensor:
                def dot(point: dict[str, Tensor]) -> Tensor:
                    moved = self.group.flow(c, {**at, **point})
                    return sum(((left[n] * moved[n]).sum() for n in left), torch.zeros((), dtype=torch.float64))

                here = {n: at[n] for n in right}
                return torch.func.jvp(dot, (here,), (dict(right),))[1]

            with Promote():  # inside, `detach` lets derivatives through
                return torch.func.grad(number)(zeros)

        return along(x, y), along(y, x)

    def draw(self, families: Iterable[int], generator: torch.Generator) -> list[dict[str, Tensor]]:
        """A generic state (no entry near zero, true buffers), and two directions on all that the families read."""
        names = sorted({name for i in families for name in self.read[i]})
        normal = [
            {n: torch.randn(self.shapes[n], generator=generator, dtype=torch.float64) for n in names} for _ in range(3)
        ]
        state = {n: value + 0.5 * torch.where(value < 0, -1.0, 1.0) for n, value in normal[0].items()}
        return [self.blank | state, *normal[1:]]
