"""The verb: soundness and completeness of a gauge group, on the model or on its small twin."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from torchgauge.certify.certificate import Certificate
from torchgauge.certify.completeness import Completeness, measure
from torchgauge.certify.points import balanced, calm
from torchgauge.certify.rank import CLEAR
from torchgauge.certify.soundness import Soundness, move, push_generators
from torchgauge.certify.subject import State, Subject, Tell, no_epsilon, visible_epsilon, without_dropout
from torchgauge.certify.twin import has_config, twin_of
from torchgauge.errors import InputError, TorchGaugeError
from torchgauge.gauge import GaugeGroup
from torchgauge.infer import infer
from torchgauge.observable import Observable, observed

Twin = tuple[nn.Module, Any, Mapping[str, Any]]

# up to so many parameters the Jacobian is factored exactly
EXACT = 6000
# generic points at which the nullity of a network with kinks is measured, at most, and for how long
POINTS, SECONDS = 8, 90.0
# and of one without, where the first shows hidden directions
SMOOTH = 2
# so many points with the same smallest count of hidden directions show that it is the architecture's
AGREEING = 3
# an exact generator moves the outputs by less than this, relative to a random direction of its size
STILL = 1e-7


def certify(
    model: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    group: GaugeGroup | None = None,
    samples: int | None = None,
    twin: Twin | None = None,
    observable: Observable = "outputs",
    seed: int = 0,
    tell: Tell | None = None,
) -> Certificate:
    """Certifies that the gauge group of a model is right, and that nothing is missing (theory section 2).

    Soundness: random elements, every factor moved, leave the outputs as they are, in float64, on several inputs, at
    generic parameters and at the model's own. Completeness: the nullity of ∂outputs/∂parameters at generic parameters
    is the rank of the generators there. Above a few thousand parameters the nullity is measured on a twin, the same
    architecture with small widths, and the generators of the model itself are checked by forward-mode products.

    Args:
        model: the module, left as it is; on the meta device only its twin is certified.
        args: example positional arguments, or the only one; further inputs are drawn in their shape.
        kwargs: example keyword arguments.
        group: the group to certify, inferred for the same observable; inferred here when None.
        samples: a fixed number of inputs for the nullity; as many as it takes when None.
        twin: (module, args, kwargs), the same code with small widths. For a Hugging Face model it is built from the
            configuration.
        observable: what of the outputs counts, as in `infer`.
        seed: of parameters, inputs and elements.
        tell: is told in words what is being done, for whoever waits.

    Returns:
        The certificate; a group that is wrong or not complete is no error.

    Raises:
        InputError: no finite outputs. CaptureError: a model that cannot be traced.
    """
    start = time.monotonic()
    if samples is not None and samples < 1:
        raise InputError(f"samples is {samples}", remedy="Give a positive number of inputs, or None.")
    model = observed(model, observable)
    if twin is not None:
        twin = (observed(twin[0], observable), *twin[1:])
    group = group if group is not None else infer(model, args, kwargs)
    generator = torch.Generator().manual_seed(seed)
    with without_dropout(model) as dropped:
        subject = Subject(model, args, kwargs or {}, generator, tell)
        small = not subject.meta and twin is None and subject.parameters <= EXACT
        if small:
            certificate = _on_model(subject, group, generator, samples)
        else:
            certificate = _on_twin(subject, group, generator, samples, twin, seed)
    notes = certificate.notes
    if dropped:
        notes += ("dropout layers were in training mode: certified with dropout off",)
    return replace(certificate, notes=notes, seconds=time.monotonic() - start)


def _on_model(subject: Subject, group: GaugeGroup, generator: torch.Generator, samples: int | None) -> Certificate:
    subject.tell("moving the parameters by random elements")
    moved = move(subject, group, generator)
    best, points = _smallest_kernel(subject, group, generator, samples)
    hidden, tried = best.hidden, [measured.hidden for measured in points]
    notes = [*moved.notes, *best.notes]
    undecided = ""
    if hidden < 0:
        notes.append("more generators than kernel directions: the group is too large")
    elif best.gap < CLEAR:
        undecided = "the singular values part by too little"
    elif best.few:
        undecided = "inputs were too few"
    elif hidden > 0 and subject.draws.kinks and not _agree(best, points):
        undecided = (
            f"units were dead, always on, or never on together at each of {len(tried)} points; a twin of smaller "
            "width may decide"
        )
    if len(set(tried)) > 1:
        counts = ", ".join(str(n) for n in tried)
        dead, flat = "units that are dead, always on, or never on together", "functions that are flat to rounding there"
        cause = dead if subject.draws.kinks else flat
        notes.append(
            f"hidden directions at {len(tried)} generic points: {counts}; the smallest counts, more come from {cause}"
        )
    return Certificate(
        defect=moved.defect,
        sound=moved.sound and best.tangent_defect <= STILL,
        orbit_dimension=best.orbit_dimension,
        nullity=best.nullity,
        hidden=hidden,
        complete=hidden == 0 and not undecided,
        undecided=undecided,
        gap=best.gap,
        dead_parameters=best.dead,
        approximate=_approximate(group),
        approximate_dimension=best.approximate_dimension,
        tolerance=moved.tolerance,
        large_defect=moved.large,
        own_defect=moved.own,
        tangent_defect=best.tangent_defect,
        hidden_in=best.hidden_in,
        observed=tuple(group.observed),
        parameters=subject.parameters,
        samples=best.samples,
        rows=best.rows,
        generators=int(group.tangent_count),
        notes=tuple(notes),
    )


def _smallest_kernel(
    subject: Subject, group: GaugeGroup, generator: torch.Generator, samples: int | None
) -> tuple[Completeness, list[Completeness]]:
    """The measurement at the point with the fewest hidden directions, and those at all points.

    A network with kinks has open sets of parameters where the kernel is larger, and what is smooth may be flat to
    rounding where weights are large. The group is complete if it is the kernel at some point, since the kernel is
    smallest on an open set.
    """
    points: list[Completeness] = []
    unused = [name for name in subject.names if not group.reads(name)]
    start = time.monotonic()
    while True:
        odd = len(points) % 2 == 1
        if points or subject.draws.kinks:
            subject.renew()
        if odd:
            subject.renew(calm(subject))
        if subject.draws.kinks:
            subject.tell(f"balancing the units, point {len(points) + 1}")
            # experts that are never chosen hide; where choices are balanced, other units may come to their limits
            subject.renew(balanced(subject, generator, choices=odd))
        with visible_epsilon(subject.model) as raised:
            if raised and group.computes and not points:
                # what biases take up depends on ε
                group = infer(subject.model, subject.args, subject.kwargs)
            exact = [t for _, t in group.tangents(subject.generic)]
            soft = [t for _, t in group.limit().tangents(subject.generic)] if _approximate(group) else []
            points.append(measure(subject, exact, soft, unused=unused, samples=samples))
        if soft and points[-1].hidden > 0:
            points[-1] = _without_epsilon(subject, points[-1], soft, unused, samples)
        best = min(points, key=lambda measured: (measured.hidden, measured.gap < CLEAR))
        enough = _agree(best, points) if subject.draws.kinks else len(points) >= SMOOTH
        done = enough or best.hidden < 0 or (best.hidden == 0 and best.gap >= CLEAR)
        if done or len(points) >= POINTS or time.monotonic() - start > SECONDS:
            return best, points


def _without_epsilon(
    subject: Subject, found: Completeness, limit: Sequence[State], unused: Sequence[str], samples: int | None
) -> Completeness:
    """What is hidden at ε = 0 too. The kernel for small ε is close to a part of the kernel for none, so whatever is
    not hidden there is up to O(ε) a direction of the approximate factors.
    """
    try:
        with no_epsilon(subject.model) as changed:
            bare = measure(subject, limit, (), unused=unused, samples=samples) if changed else None
    except InputError:
        return found  # a norm of nothing
    if (
        bare is None
        or bare.tangent_defect > STILL
        or bare.gap < CLEAR
        or bare.few
        or not 0 <= bare.hidden < found.hidden
    ):
        return found
    taken = found.hidden - bare.hidden
    note = f"{taken} directions of the kernel become approximate factors as ε → 0 and were taken off the nullity"
    return replace(
        found,
        nullity=found.nullity - taken,
        few=False,
        hidden_in=bare.hidden_in,
        places=bare.places,
        notes=(*found.notes, note),
    )


def _agree(best: Completeness, points: list[Completeness]) -> bool:
    """Whether so many points have the same hidden directions that they are the architecture's."""
    return sum(best.agrees(other) for other in points) >= AGREEING


def _on_twin(
    subject: Subject,
    group: GaugeGroup,
    generator: torch.Generator,
    samples: int | None,
    twin: Twin | None,
    seed: int,
) -> Certificate:
    notes: list[str] = []
    other: Certificate | None = None
    undecided = ""
    try:
        if twin is None and not has_config(subject.model):
            undecided = (
                f"{subject.parameters:,} parameters, and the nullity is measured up to {EXACT:,}: give a twin, "
                "the same code with small widths (twin=, --twin)"
            )
        else:
            module, args, kwargs = twin if twin is not None else twin_of(subject.model)
            twin_group = infer(module, args, kwargs)
            with without_dropout(module):
                draw = torch.Generator().manual_seed(seed)
                twin_subject = Subject(module, args, kwargs, draw, lambda text: subject.tell(f"twin: {text}"))
                if twin_subject.parameters > EXACT:
                    raise InputError(
                        f"the twin has {twin_subject.parameters} parameters, {EXACT} are the most",
                        remedy="Give a twin of smaller widths.",
                    )
                other = _on_model(twin_subject, twin_group, draw, samples)
            unlike = _unlike(group, twin_group)
            notes += unlike
            undecided = other.undecided or ("the twin has other kinds of factors" if unlike else "")
    except TorchGaugeError as error:
        if twin is not None:
            raise
        undecided = f"no twin: {error.what}"
    if subject.meta:
        notes.append("the model has no weights (meta device): soundness is the twin's")
        moved = _soundness_of(other)
        pushes = None
    else:
        subject.tell("moving the parameters by random elements")
        moved = move(subject, group, generator, inputs=2, elements=1)
        subject.tell("checking the generators on the model")
        pushes = push_generators(subject, group, generator)
        if pushes.checked < pushes.total:
            notes.append(f"{pushes.checked} of {pushes.total} generators checked on the model")
        if pushes.defect > STILL:
            notes.append(f"a generator of {pushes.worst or 'the model'} moves the outputs")
    still = pushes is None or pushes.defect <= STILL
    return Certificate(
        defect=moved.defect,
        sound=moved.sound and still and (other is None or other.sound),
        orbit_dimension=other.orbit_dimension if other else -1,
        nullity=other.nullity if other else None,
        hidden=other.hidden if other else None,
        complete=bool(other and other.complete and not undecided),
        undecided=undecided,
        gap=other.gap if other else float("nan"),
        dead_parameters=other.dead_parameters if other else 0,
        approximate=_approximate(group),
        approximate_dimension=other.approximate_dimension if other else 0,
        tolerance=moved.tolerance,
        large_defect=moved.large,
        own_defect=moved.own,
        tangent_defect=pushes.defect if pushes else (other.tangent_defect if other else 0.0),
        hidden_in=other.hidden_in if other else (),
        observed=tuple(group.observed),
        parameters=subject.parameters,
        samples=other.samples if other else 0,
        rows=other.rows if other else 0,
        generators=pushes.checked if pushes else 0,
        twin=other,
        notes=(*moved.notes, *notes, *(f"twin: {n}" for n in (other.notes if other else ()))),
    )


def _soundness_of(other: Certificate | None) -> Soundness:
    if other is None:
        return Soundness(float("nan"), float("nan"), 0.0, False, notes=("nothing could be checked",))
    return Soundness(other.defect, other.large_defect, other.tolerance, other.sound)


def _unlike(group: GaugeGroup, twin: GaugeGroup) -> list[str]:
    """Kinds of factors that only one of the two has: then the twin does not speak for the model."""
    ours, theirs = ({(f.kind, f.exact) for f in g.factors} for g in (group, twin))
    notes = []
    if missing := sorted({kind for kind, _ in ours - theirs}):
        notes.append(f"the twin has no factor of kind {', '.join(missing)}, as the model has")
    if extra := sorted({kind for kind, _ in theirs - ours}):
        notes.append(f"the twin has factors of kind {', '.join(extra)} that the model has not")
    return notes


def _approximate(group: GaugeGroup) -> tuple[str, ...]:
    return tuple(factor.name for factor in group.factors if not factor.exact)
