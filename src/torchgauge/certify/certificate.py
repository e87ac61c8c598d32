"""The certificate: what was checked, how far, and what is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Certificate:
    """The outcome of `certify`.

    Soundness speaks of the model itself. Completeness speaks of the model, or of its small twin where `twin` is set:
    then `orbit_dimension`, `nullity`, `hidden`, `complete`, `gap` and `dead_parameters` are the twin's.

    Attributes:
        defect: largest relative change of an output under a random group element of scale one, in float64, at generic
            parameters.
        sound: no element changed an output beyond rounding, and every exact generator lies in the kernel of the
            Jacobian.
        orbit_dimension: rank of the exact generators at the generic parameters that were used.
        nullity: dimension of the kernel of ∂outputs/∂parameters there; None when it was not measured.
        hidden: nullity − orbit_dimension; None when it was not measured.
        complete: hidden is zero, on a clear gap of the singular values.
        undecided: why the measurement says neither that the list is complete nor that it is not; empty if it does.
        gap: log10 of the ratio of the singular values on both sides of the cut.
        dead_parameters: parameter entries that no input reads (rows never looked up, unused modules), or that only
            ever multiply zeros; counted in neither dimension.
        approximate: names of factors that hold only as far as a normalisation's ε can be neglected.
        approximate_dimension: what they would add to the rank; not in `orbit_dimension`.
        tolerance: the largest defect that still counts as rounding at scale one.
        large_defect: largest relative change under elements of a larger scale.
        own_defect: the same as `defect` at the model's own parameters, where rounding is larger if they are small next
            to the shifts; None for a model without weights.
        tangent_defect: largest derivative of the outputs along an exact generator, relative to that along a random
            direction of the same size.
        hidden_in: parameters that the hidden directions touch, with the share of their weight.
        observed: names of the outputs that count.
        parameters: parameter entries of the model, tied ones once.
        samples: inputs drawn for the nullity.
        rows: rows of the Jacobian.
        generators: generators checked on the model by forward-mode products.
        seconds: time taken.
        twin: the certificate of the small twin, if one was used.
        notes: what the reader should know.
    """

    defect: float
    sound: bool
    orbit_dimension: int
    nullity: int | None
    hidden: int | None
    complete: bool
    gap: float
    dead_parameters: int
    approximate: tuple[str, ...] = ()
    approximate_dimension: int = 0
    tolerance: float = 1e-11
    large_defect: float = 0.0
    own_defect: float | None = None
    tangent_defect: float = 0.0
    hidden_in: tuple[tuple[str, float], ...] = ()
    observed: tuple[str, ...] = ()
    parameters: int = 0
    samples: int = 0
    rows: int = 0
    generators: int = 0
    seconds: float = 0.0
    twin: Certificate | None = None
    notes: tuple[str, ...] = ()
    undecided: str = ""

    @property
    def holds(self) -> bool:
        """Sound and complete."""
        return self.sound and self.complete

    def to_dict(self) -> dict[str, Any]:
        """A plain object for JSON; infinities become None."""
        out: dict[str, Any] = {}
        for key, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                value = None
            elif isinstance(value, Certificate):
                value = value.to_dict()
            elif key == "hidden_in":
                value = dict(self.hidden_in)
            elif isinstance(value, tuple):
                value = list(value)
            out[key] = value
        return out

    def __str__(self) -> str:
        where = "on its small twin" if self.twin is not None else "at generic parameters"
        own = "" if self.own_defect is None else f", {self.own_defect:.1e} at the model's own parameters"
        defects = f"{self.defect:.1e} in float64, {self.large_defect:.1e} under large moves{own}"
        lines = [f"sound      {_yes(self.sound)}  relative defect {defects}"]
        if self.nullity is None:
            lines.append(f"complete   open  {self.undecided}")
        else:
            answer = "open" if self.undecided else _yes(self.complete)
            lines.append(
                f"complete   {answer}  nullity {self.nullity} = orbit {self.orbit_dimension} + hidden "
                f"{self.hidden}, {where}; singular values part by 10^{self.gap:.1f}"
            )
            if self.undecided:
                lines.append(f"           not decided: {self.undecided}")
        if self.hidden_in:
            shares = [f"{name} ({share:.0%})" for name, share in self.hidden_in]
            lines.append("hidden in  " + ", ".join(shares[:4]) + (", …" if len(shares) > 4 else ""))
        if self.approximate:
            lines.append(
                f"ε-only     {self.approximate_dimension} more{' on the twin' if self.twin else ''}, approximate and "
                "not counted; `inspect` marks such factors with ≈"
            )
        if self.dead_parameters:
            lines.append(f"dead       {self.dead_parameters} parameter entries are read by no input; not counted")
        lines.append(f"observed   {', '.join(self.observed) or 'nothing'}")
        lines.append(
            f"measured   {self.parameters} parameters, {self.samples} inputs, {self.rows} rows, {self.seconds:.1f} s"
        )
        lines += [f"note       {note}" for note in self.notes]
        return "\n".join(lines)


def _yes(value: bool) -> str:
    return "yes " if value else "NO  "
