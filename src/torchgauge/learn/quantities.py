"""Conserved quantities of gradient flow, from the gauge group of a model (docs/theory.md, section 9)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.gauge import GaugeGroup
from torchgauge.infer import inferred
from torchgauge.learn.closed import TINY, Closed, closed
from torchgauge.learn.evaluation import Parts, parts, state_of
from torchgauge.learn.generators import Generators, Params
from torchgauge.observable import Observable


@final
@dataclass(frozen=True, eq=False)
class ConservedQuantity:
    """Functions h(θ) that gradient flow leaves constant, whatever the loss: ∇h is a gauge direction.

    Attributes:
        name: where it acts, for a reader.
        factor: kind of the gauge factor that it comes from ("GL", "scale", "invisible", …); several joined by "+".
        parameters: the tensors that h depends on.
        kind: "quadratic" for ½⟨θ, Xθ⟩ with symmetric X, "linear" for ⟨u, θ⟩, "mixed" for their sum.
        formula: h in words.
        count: how many numbers h has.
    """

    name: str
    factor: str
    parameters: tuple[str, ...]
    kind: str
    formula: str
    generators: Generators
    space: Closed

    @property
    def count(self) -> int:
        return self.space.count

    def __repr__(self) -> str:
        return f"ConservedQuantity({self.name}, {self.factor}, {self.kind}, {self.count}: {self.formula})"

    def __call__(self, state: Params) -> Tensor:
        """h at a state dict (or any mapping that holds the quantity's parameters): [count], float64, on the CPU.

        Raises:
            InputError: a tensor is missing, has another shape, or is not finite; a running statistic is another one
                than that for which the quantity was found.
        """
        quadratic, linear = self.parts(state)
        return quadratic + linear

    def parts(self, state: Params) -> Parts:
        """½⟨θ, Xθ⟩ and ⟨u, θ⟩, whose sum is h; errors as for a call."""
        return parts([self], state)[0][0]

    def parts_of(self, direction: Params, state: Params) -> Parts:
        """½⟨g, Xg⟩ and ⟨u, g⟩ of a direction g in parameter space, such as a gradient.

        Args:
            direction: g by name, of all of the quantity's parameters.
            state: θ, any generic point.

        Raises:
            InputError: a parameter is missing in g.
        """
        slope = parts([self], state, direction)[0][1]
        if slope is None:
            names = ", ".join(self.parameters)
            raise InputError("the direction lacks some of the quantity's parameters", names, "Give all of them.")
        return slope

    def gradient(self, state: Params, weights: Tensor | None = None) -> dict[str, Tensor]:
        """∇ Σ_k weights_k h_k by parameter: a gauge direction, orthogonal to the gradient of every loss.

        Args:
            state: θ.
            weights: [count]; ones by default.
        """
        own = state_of([self], state)
        weights = torch.ones(self.count, dtype=torch.float64) if weights is None else weights.detach().cpu().double()
        moved = self.generators.velocity(self.space.embed(weights), own)
        return {name: moved[name].reshape(own[name].shape) for name in self.parameters}

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """Running statistics on which h depends."""
        program = self.generators.group.program
        used = [c for c in program.coordinates.values() if c.name in self.parameters]
        return tuple(sorted({r for c in used for r in c.refs if r and r not in self.generators.learnable}))


def conserved(
    subject: GaugeGroup | nn.Module,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    observable: Observable = "outputs",
    state: Params | None = None,
    trainable: Collection[str] | None = None,
    limit: int = 1000,
) -> tuple[ConservedQuantity, ...]:
    """The quantities that gradient flow dθ/dt = −∇L conserves for every loss L of a model's outputs.

    A gauge generator v(θ) is orthogonal to ∇L. If it is itself the gradient of some h, then dh/dt = −⟨v, ∇L⟩ = 0
    (Kunin et al., arXiv 2012.04728; Zhao et al., 2210.17216; Marcotte et al., 2307.00144). Found are all h whose
    gradients are combinations of the group's generators with constant coefficients.

    Args:
        subject: a gauge group, or a model whose group is inferred first.
        args, kwargs, observable: for `infer`, where a model is given.
        state: running statistics of batch norms in evaluation mode; the model's own by default.
        trainable: names of the parameters that training moves; of a model those that require gradients, of a group all.
            Factors that move others are left out.
        limit: most generators, among those that are no gradients by themselves, that are combined in one search. Its
            cost grows with the cube; a warning says what was left out.

    Returns:
        One `ConservedQuantity` per factor or combination of factors; `count` of them are numbers. They need not be
        independent where factors overlap: see `independent`.

    Raises:
        InputError: running statistics are needed and not given; errors of `infer`.
    """
    if isinstance(subject, nn.Module):
        state = dict(subject.state_dict()) if state is None else state
        if trainable is None:
            trainable = {name for name, p in subject.named_parameters(remove_duplicate=False) if p.requires_grad}
        # frames that move whole weights have potentials
        subject = inferred(subject, args, kwargs, observable, turned=False)
    return of_group(subject, state or {}, trainable, limit)


def of_group(
    group: GaugeGroup, state: Params, trainable: Collection[str] | None, limit: int
) -> tuple[ConservedQuantity, ...]:
    """As `conserved`, of a group."""
    from torchgauge.learn.formula import alike, described

    bare = Generators(group, {})
    needed = [name for name in bare.shapes if name not in bare.learnable]
    missing = [name for name in needed if name not in state or state[name].is_meta]
    if missing:
        what = "the conserved quantities of a batch norm in evaluation mode depend on its running statistics"
        raise InputError(what, missing[0], "Pass state=model.state_dict().")
    generators = Generators(group, {name: state[name] for name in needed})
    families = range(len(group.generators))
    if trainable is not None:
        trained = {group.ties.get(name, name) for name in trainable}
        families = [i for i in families if trained.issuperset(generators.moved[i])]
    # what other weights project, which stand still, is no gradient: mixed derivatives would differ
    families = [i for i in families if generators.moved[i] and not group.projected(i)]
    spaces = [
        (group, kind)
        for space in closed(generators, families, limit)
        for part, kind in by_kind(generators, space)
        for group in alike(generators, part)
    ]
    found = [ConservedQuantity(*described(generators, space, kind), generators, space) for space, kind in spaces]
    return tuple(without_repeats(found))


def without_repeats(quantities: Sequence[ConservedQuantity]) -> list[ConservedQuantity]:
    """Leaves out linear quantities in the span of an earlier one: a dead bias is a shift and an invisible direction."""
    kept: list[ConservedQuantity] = []
    for quantity in quantities:
        twins = [q for q in kept if q.kind == quantity.kind == "linear" and q.parameters == quantity.parameters]
        if not any(_spans(q, quantity) for q in twins):
            kept.append(quantity)
    return kept


def _spans(one: ConservedQuantity, other: ConservedQuantity) -> bool:
    """Whether a random combination of one linear quantity is a combination of another: conjugate gradients."""
    state, names = one.generators.blank, one.parameters
    weights = torch.randn(other.count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = other.gradient(state, weights)

    def pulled(direction: Params) -> Tensor:
        return one.space.read(one.generators.derivative(one.space.parts, state, direction)[0])

    def normal(c: Tensor) -> Tensor:
        return pulled(one.gradient(state, c))

    residual = pulled(wanted)
    c, step = torch.zeros_like(residual), residual
    for _ in range(40):
        if float(residual.norm()) <= TINY:
            break
        image = normal(step)
        length = residual.dot(residual) / step.dot(image).clamp_min(1e-300)
        c, before = c + length * step, residual.dot(residual)
        residual = residual - length * image
        step = residual + residual.dot(residual) / before * step
    reached = one.gradient(state, c)
    rest = sum(float((wanted[n] - reached[n]).square().sum()) for n in names) ** 0.5
    return rest <= 1e-6 * sum(float(wanted[n].square().sum()) for n in names) ** 0.5


def by_kind(generators: Generators, space: Closed) -> list[tuple[Closed, str]]:
    """A space of gradients with its kind; a searched one is cut into its kinds."""
    kinds = kinds_of(generators, space)
    if space.basis is None or len(set(kinds)) == 1:
        kind = kinds[0] if len(set(kinds)) == 1 else "mixed"
        return [(space, kind)] if kind else []
    cut = {k: torch.tensor([i for i, kind in enumerate(kinds) if kind == k]) for k in sorted(set(kinds)) if k}
    return [(Closed(space.parts, space.basis[rows]), kind) for kind, rows in cut.items()]


def kinds_of(generators: Generators, space: Closed, seed: int = 1) -> list[str]:
    """For every combination whether its potential is quadratic, linear or mixed; empty where it is none of these."""
    generator = torch.Generator().manual_seed(seed)
    state, x, _ = generators.draw(space.parts, generator)

    def at(scale: float) -> Tensor:
        point = {**state, **{n: scale * state[n] for n in x}}
        return space.read(generators.derivative(space.parts, point, x)[0])

    one, two, three = at(1.0), at(2.0), at(3.0)
    size = TINY * (one.abs() + two.abs() + three.abs()).clamp_min(1e-300)
    affine = (three - 2 * two + one).abs() <= size
    square, flat = (two - one).abs() > size, (2 * one - two).abs() > size
    names = {(True, False): "quadratic", (False, True): "linear", (True, True): "mixed", (False, False): "linear"}
    return [names[bool(s), bool(f)] if ok else "" for ok, s, f in zip(affine, square, flat, strict=True)]


def independent(quantities: Collection[ConservedQuantity], state: Params) -> int:
    """How many of the conserved numbers are independent at a state: the rank of their gradients.

    Args:
        quantities: of one model.
        state: θ; the rank is the same at almost all states.
    """
    rows = []
    for quantity in quantities:
        for unit in torch.eye(quantity.count, dtype=torch.float64):
            rows.append(quantity.gradient(state, unit))
    names = sorted({name for row in rows for name in row})
    sizes = {name: value.numel() for row in rows for name, value in row.items()}
    if not rows:
        return 0
    table = torch.stack([
        torch.cat([row[n].reshape(-1) if n in row else torch.zeros(sizes[n], dtype=torch.float64) for n in names])
        for row in rows
    ])  # fmt: skip
    table = table / table.norm(dim=1, keepdim=True).clamp_min(1e-300)
    values = torch.linalg.svdvals(table)
    return int((values > TINY * values[0]).sum())
