"""Which transformations leave an ensemble invariant, decided from its declared laws and its traced graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.laws import Invariance, Kind, Law, Normal
from torchgauge.fields.symmetry.absorption import Absorption, Move, Probe, probe
from torchgauge.fields.symmetry.anatomy import Anatomy, anatomy, real_module
from torchgauge.fields.symmetry.moments import isotropic
from torchgauge.fields.symmetry.operators import finite_moments
from torchgauge.fields.symmetry.proofs_inputs import refute_inputs
from torchgauge.fields.symmetry.proofs_outputs import refute_outputs
from torchgauge.fields.symmetry.proofs_support import refute_by_support
from torchgauge.fields.symmetry.proofs_translations import refute_translations
from torchgauge.fields.symmetry.transformations import Transformation, transformations
from torchgauge.fields.symmetry.translation import absorb_translation


@dataclass(frozen=True)
class Verdict:
    """What is known about one transformation of one ensemble.

    Attributes:
        transformation: which.
        holds: True with a derivation, False with a proof that some moment is not invariant, None if neither was found.
        absorbed: the parameters whose transformation undoes it.
        derivation: why, in words and formulas.
    """

    transformation: Transformation
    holds: bool | None
    absorbed: tuple[str, ...]
    derivation: str

    def __str__(self) -> str:
        word = {True: "holds", False: "broken", None: "undecided"}[self.holds]
        return f"{self.transformation}: {word}. {self.derivation}"


@dataclass(frozen=True)
class Symmetries:
    """The verdicts on one ensemble, by name of the transformation."""

    ensemble: str
    verdicts: tuple[Verdict, ...]

    def __getitem__(self, name: str | Transformation) -> Verdict:
        for verdict in self.verdicts:
            if str(name) == verdict.transformation.name:
                return verdict
        raise KeyError(str(name))

    def __str__(self) -> str:
        return "\n".join([self.ensemble, *(f"  {v}" for v in self.verdicts)])

    def to_dict(self) -> dict[str, object]:
        return {
            v.transformation.name: {"holds": v.holds, "absorbed": list(v.absorbed), "derivation": v.derivation}
            for v in self.verdicts
        }


def symmetries(ensemble: Ensemble, points: Tensor, which: Iterable[str | Transformation] | None = None) -> Symmetries:
    """Decide which transformations leave the law of the random function f_θ invariant, at every width.

    A transformation holds when parameters absorb it whose declared laws are invariant; it is broken when a moment of
    the outputs is proved not to be invariant; else it is undecided, and `test_symmetry` can be asked. SU(D) is asked of
    complex outputs alone.

    Args:
        ensemble: the architecture and its laws.
        points: example inputs [n, d]; their values do not matter, but for proofs that features do not vanish.
        which: names, all by default.

    Raises:
        CaptureError: the module cannot be traced.
        InputError: a name that is not known, or outputs that are no single tensor [n, D].
    """
    points = ensemble.as_points(points)
    traced = anatomy(ensemble, points)
    shape = tuple(traced.output.meta["val"].shape)
    if len(traced.captured.outputs) != 1 or len(shape) < 2:
        raise InputError(
            f"the module returns {len(traced.captured.outputs)} tensors, the first of shape {list(shape)}",
            ensemble.name,
            "Let forward return one tensor [points, outputs].",
        )
    complex_outputs = traced.output.meta["val"].is_complex()
    sides = {"outputs": shape[-1], "inputs": points.shape[-1]}
    judge = _Judge(traced, sides)
    asked = transformations(which)
    if which is None and not complex_outputs:
        asked = tuple(t for t in asked if t.kind is not Kind.SPECIAL_UNITARY)
    return Symmetries(ensemble.name, tuple(judge.verdict(t) for t in asked))


class _Judge:
    """Both halves of the decision, on one traced network."""

    def __init__(self, traced: Anatomy, sides: dict[str, int]) -> None:
        self.traced, self.ensemble, self.sides = traced, traced.ensemble, sides
        self._probe: Probe | None = None

    def verdict(self, change: Transformation) -> Verdict:
        if change.trivial(self.sides[change.side]):
            return Verdict(change, True, (), f"one of the {change.side} alone: nothing to transform.")
        absorption = self._absorption(change)
        failing = [] if absorption.obstacle else [m for m in absorption.moves if not self._invariant(m, absorption)]
        if not absorption.obstacle and not failing:
            return Verdict(change, True, _names(absorption.moves), self._derivation(change, absorption))
        reason = absorption.obstacle or _blame(self.ensemble, failing)
        proof = self._refutation(change)
        if proof is not None:
            return Verdict(change, False, (), f"Not absorbed: {reason}. Proof: {proof}.")
        return Verdict(change, None, (), f"Not absorbed: {reason}. That alone proves nothing: test it.")

    def _invariant(self, move: Move, absorption: Absorption) -> bool:
        if invariant(self.ensemble, move, absorption):
            return True
        law = self.ensemble.laws.get(move.parameter)
        if not self.traced.mean_unseen(move.parameter) or not isinstance(law, Normal):
            return False
        shape, dtype = self.ensemble.shapes[move.parameter], self.ensemble.dtypes[move.parameter]
        return not move.part and Normal(law.std).invariant(move.kind, move.axis, shape, dtype)

    def _absorption(self, change: Transformation) -> Absorption:
        if change.kind is Kind.TRANSLATIONS:
            return absorb_translation(self.traced)
        if any(d.is_complex for d in self.ensemble.dtypes.values()) or self.traced.output.meta["val"].is_complex():
            return self._by_layer(change)
        if change.kind is Kind.SPECIAL_UNITARY:
            return Absorption(obstacle="the outputs are real")
        if self._probe is None:
            module = real_module(self.ensemble, self.traced.points)
            self._probe = probe(module, self.traced.points, self.sides["outputs"])
        return self._probe.absorb(change)

    def _by_layer(self, change: Transformation) -> Absorption:
        """Complex networks: the readout absorbs what acts on the outputs, the first layer what acts on the inputs."""
        outer = change.side == "outputs"
        layer = self.traced.last if outer else self.traced.first
        if layer is None:
            return Absorption(obstacle=f"no affine layer of its own stands at the {change.side}")
        names = [
            (layer.weight, layer.rows if outer else layer.columns),
            *([(layer.bias, 0)] if outer and layer.bias else []),
        ]
        complex_change = change.kind is Kind.SPECIAL_UNITARY
        if complex_change and any(not self.ensemble.dtypes[name].is_complex for name, _ in names):
            return Absorption(obstacle="real weights absorb no phase")
        return Absorption(tuple(Move(name, axis, change.kind) for name, axis in names))

    def _refutation(self, change: Transformation) -> str | None:
        found = refute_by_support(self.traced, change)
        if found is not None:
            return found
        if change.kind is Kind.TRANSLATIONS:
            return refute_translations(self.traced)
        if change.side == "inputs":
            return refute_inputs(self.traced, change)
        return refute_outputs(self.traced, change) if finite_moments(self.traced) else None

    def _derivation(self, change: Transformation, absorption: Absorption) -> str:
        if not absorption.moves:
            return f"The network does not see it: f = {_moved(change)} for every θ."
        law = self.ensemble.laws
        parts = []
        for move in absorption.moves:
            if not invariant(self.ensemble, move, absorption):
                parts.append(
                    f"{move.parameter} − mean, not seen behind a layer norm, ↦ {change.symbol} along axis {move.axis}"
                )
                continue
            shown = law.get(move.parameter) or next(v for k, v in self.ensemble.joint.items() if move.parameter in k)
            if move.kind is Kind.TRANSLATIONS:
                parts.append(f"{move.parameter} ↦ {move.parameter} − W c, uniform on a circle ({_short(shown)})")
            else:
                parts.append(
                    f"{move.parameter} ↦ {change.symbol} along axis {move.axis}, {move.kind} ({_short(shown)})"
                )
        left = (
            "the moved parameters have the law of the old ones"
            if len(parts) > 1
            else "the moved parameter has its old law"
        )
        return f"{_moved(change)} = f_θ' with " + "; ".join(parts) + f": {left}."


def invariant(ensemble: Ensemble, move: Move, absorption: Absorption) -> bool:
    """Whether the law of a parameter is invariant under a move, all moves of one absorption being made together."""
    shape, dtype = ensemble.shapes[move.parameter], ensemble.dtypes[move.parameter]
    law = ensemble.laws.get(move.parameter)
    if law is not None:
        if move.part:
            return isotropic(law) and move.kind is not Kind.TRANSLATIONS
        return law.invariant(move.kind, move.axis, shape, dtype)
    key = next(k for k in ensemble.joint if move.parameter in k)
    return not move.part and _jointly(ensemble, key, move, absorption)


def _jointly(ensemble: Ensemble, key: tuple[str, ...], move: Move, absorption: Absorption) -> bool:
    """A parameter that is drawn with others, as columns of one matrix [rows, columns]."""
    if move.kind is Kind.TRANSLATIONS or len(ensemble.shapes[move.parameter]) > 2:
        return False
    law, rows = ensemble.joint[key], ensemble.shapes[key[0]][0]
    widths = [prod(ensemble.shapes[name][1:]) for name in key]
    shape, dtype = (rows, sum(widths)), ensemble.dtypes[key[0]]
    if move.axis == 0:
        moved = {m.parameter for m in absorption.moves if m.axis == 0 and m.kind is move.kind and not m.part}
        return set(key) <= moved and law.invariant(move.kind, 0, shape, dtype)
    start = sum(widths[: key.index(move.parameter)])
    stop = start + ensemble.shapes[move.parameter][1]
    found: frozenset[Invariance] = law.invariances(shape, dtype)
    return any(o.kind is move.kind and o.axis == 1 and o.start <= start and stop <= o.stop for o in found)


def _blame(ensemble: Ensemble, failing: list[Move]) -> str:
    said = []
    for move in failing:
        law = ensemble.laws.get(move.parameter) or next(v for k, v in ensemble.joint.items() if move.parameter in k)
        where = "shifts modulo a period" if move.kind is Kind.TRANSLATIONS else f"{move.kind} on axis {move.axis}"
        said.append(f"{move.parameter} ~ {_short(law)} is not invariant under {where}")
    return "; ".join(said)


def _names(moves: Iterable[Move]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(m.parameter for m in moves))


def _moved(change: Transformation) -> str:
    if change.side == "outputs":
        return f"{change.symbol} f_θ(x)"
    return "f_θ(x + c)" if change.kind is Kind.TRANSLATIONS else f"f_θ({change.symbol} x)"


def _short(law: object) -> str:
    """A law in one line: tensors by their shape."""
    fields = getattr(law, "__dataclass_fields__", {})
    parts = []
    for name in fields:
        value = getattr(law, name)
        if isinstance(value, torch.Tensor):
            value = "tensor"
        elif isinstance(value, float):
            value = f"{value:.4g}"
        elif callable(value) or isinstance(value, Law):
            value = getattr(value, "__name__", None) or _short(value)
        parts.append(f"{name}={value}")
    return f"{type(law).__name__}({', '.join(parts)})" if fields else repr(law)
