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
from torchgauge.certify.points import balanced
from torchgauge.certify.soundness import Soundness, move, push_generators
from torchgauge.certify.subject import Subject, visible_epsilon, without_dropout
from torchgauge.certify.twin import has_config, twin_of
from torchgauge.errors import InputError, TorchGaugeError
from torchgauge.gauge import GaugeGroup
from torchgauge.infer import infer

Twin = tuple[nn.Module, Sequence[Any], Mapping[str, Any]]

# up to so many parameters the Jacobian is factored exactly
EXACT = 6000
# generic points at which the nullity is measured, at most
POINTS = 6
# an exact generator moves the outputs by less than this, relative to a random direction of its size
STILL = 1e-7
# decades between the singular values on both sides of the cut, below which the count is not trusted
CLEAR = 2.0


def certify(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    group: GaugeGroup | None = None,
    samples: int | None = None,
    twin: Twin | None = None,
    seed: int = 0,
) -> Certificate:
    """Certifies that the gauge group of a model is right, and that nothing is missing (theory section 2).

    Soundness: random elements, every factor moved, leave the outputs as they are, in float64, on several inputs, at
    generic parameters and at the model's own. Completeness: the nullity of ∂outputs/∂parameters at generic parameters
    is the rank of the generators there. Above a few thousand parameters the nullity is measured on a twin, the same
    architecture with small widths, and the generators of the model itself are checked by forward-mode products.

    Args:
        model: the module, left as it is; on the meta device only its twin is certified.
        args: example positional arguments; further inputs are drawn in their shape.
        kwargs: example keyword arguments.
        group: the group to certify; inferred when None.
        samples: a fixed number of inputs for the nullity; as many as it takes when None.
        twin: (module, args, kwargs), the same code with small widths. For a Hugging Face model it is built from the
            configuration.
        seed: of parameters, inputs and elements.

    Returns:
        The certificate; a group that is wrong or not complete is no error.

    Raises:
        InputError: no finite outputs. CaptureError: a model that cannot be traced.
    """
    start = time.monotonic()
    if samples is not None and samples < 1:
        raise InputError(f"samples is {samples}", remedy="Give a positive number of inputs, or None.")
    group = group if group is not None else infer(model, tuple(args), dict(kwargs or {}))
    generator = torch.Generator().manual_seed(seed)
    with without_dropout(model) as dropped:
        subject = Subject(model, args, kwargs or {}, generator)
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
    moved = move(subject, group, generator)
    soft_names = set(_approximate(group))
    best: Completeness | None = None
    tried: list[int] = []
    start = time.monotonic()
    # a network with kinks has open sets of parameters where the kernel is larger (dead units): the group is complete
    # where it is the kernel at some point, for the kernel is smallest on an open set
    for _ in range(POINTS if subject.draws.kinks else 1):
        if subject.draws.kinks:
            subject.renew()
            subject.renew(balanced(subject, generator))
        tangents = list(group.tangents(subject.generic))
        exact = [t for name, t in tangents if name not in soft_names]
        approximate = [t for name, t in tangents if name in soft_names]
        with visible_epsilon(subject.model):
            measured = measure(subject, exact, approximate, samples=samples)
        hidden = measured.nullity - measured.orbit_dimension
        tried.append(hidden)
        if best is None or hidden < best.nullity - best.orbit_dimension:
            best = measured
        if hidden <= 0 or time.monotonic() - start > 30:
            break
    assert best is not None
    certificate = _assemble(subject, group, moved, best)
    if max(tried) > min(tried):
        counts = ", ".join(str(n) for n in tried)
        note = f"hidden directions at {len(tried)} generic points: {counts}; more where units are dead or always on"
        certificate = replace(certificate, notes=(*certificate.notes, note))
    return certificate


def _assemble(subject: Subject, group: GaugeGroup, moved: Soundness, measured: Completeness) -> Certificate:
    notes = [*moved.notes, *measured.notes]
    hidden = measured.nullity - measured.orbit_dimension
    if hidden < 0:
        notes.append("more generators than kernel directions: the group is too large")
    if 0 <= measured.gap < CLEAR:
        notes.append("the singular values part by too little: the count is not certain")
    return Certificate(
        defect=moved.defect,
        sound=moved.sound and measured.tangent_defect <= STILL,
        orbit_dimension=measured.orbit_dimension,
        nullity=measured.nullity,
        hidden=hidden,
        complete=hidden == 0 and measured.gap >= CLEAR,
        gap=measured.gap,
        dead_parameters=measured.dead,
        approximate=_approximate(group),
        approximate_dimension=measured.approximate_dimension or sum(f.dimension for f in group.factors if not f.exact),
        tolerance=moved.tolerance,
        large_defect=moved.large,
        own_defect=moved.own,
        tangent_defect=measured.tangent_defect,
        hidden_in=measured.hidden_in,
        observed=tuple(group.observed),
        parameters=subject.parameters,
        samples=measured.samples,
        rows=measured.rows,
        generators=int(group.tangent_count),
        notes=tuple(notes),
    )


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
    try:
        if twin is None and not has_config(subject.model):
            notes.append(
                f"{subject.parameters} parameters are too many for an exact nullity: give twin=(module, args, kwargs), "
                "the same code with small widths"
            )
        else:
            module, args, kwargs = twin if twin is not None else twin_of(subject.model)
            twin_group = infer(module, tuple(args), dict(kwargs))
            with without_dropout(module):
                twin_subject = Subject(module, args, kwargs, torch.Generator().manual_seed(seed))
                if twin_subject.parameters > EXACT:
                    raise InputError(
                        f"the twin has {twin_subject.parameters} parameters, {EXACT} are the most",
                        remedy="Give a twin of smaller widths.",
                    )
                other = _on_model(twin_subject, twin_group, twin_subject.generator, samples)
            notes += _unlike(group, twin_group)
    except TorchGaugeError as error:
        if twin is not None:
            raise
        notes.append(f"no twin: {error.what}")
    if subject.meta:
        notes.append("the model has no weights (meta device): soundness is the twin's")
        moved = _soundness_of(other)
        pushes = None
    else:
        moved = move(subject, group, generator, inputs=2, elements=1)
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
        complete=bool(other and other.complete),
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
        notes.append(f"the twin has no factor of kind {', '.join(missing)}: it speaks for the model only in part")
    if extra := sorted({kind for kind, _ in theirs - ours}):
        notes.append(f"the twin has factors of kind {', '.join(extra)} that the model has not")
    return notes


def _approximate(group: GaugeGroup) -> tuple[str, ...]:
    return tuple(factor.name for factor in group.factors if not factor.exact)
