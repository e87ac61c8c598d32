"""Symmetry by duality, the other half: proofs that a transformation of the outputs is no symmetry.

That no parameter absorbs a transformation proves nothing by itself. Each function here returns a proof, as text, that
some moment of the outputs is not invariant, or None. All of them are about a network with an affine readout f_i = Σ_j
W_ij h_j + b_i, W and b independent of the features h and of each other, all with all moments. What they need of h is
that some average of squares does not vanish; one network at which it does not vanish proves it, as laws and features
are continuous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.fields.laws import Complex, Kind, Law, Normal
from torchgauge.fields.symmetry.anatomy import Anatomy, Layer
from torchgauge.fields.symmetry.moments import cumulants, entries_independent, marginal_moment
from torchgauge.fields.symmetry.transformations import Transformation

NONZERO = 1e-6
"""Features below this share of the largest one count as zero."""


@dataclass(frozen=True, eq=False)
class Readout:
    """Moments of an affine readout, and which features are alive.

    Attributes:
        mean: of W [D, N].
        variance: likewise.
        fourth: fourth cumulants of W [D, N].
        b_mean: of b [D].
        b_variance: likewise.
        b_fourth: likewise.
        b_third: third central moments of b [D], None if not known.
        w_third: those of W all vanish.
        alive: features h_j that do not vanish [N].
        total: Σ_j h_j does not vanish.
    """

    mean: Tensor
    variance: Tensor
    fourth: Tensor
    b_mean: Tensor
    b_variance: Tensor
    b_fourth: Tensor
    b_third: Tensor | None
    w_third: bool
    alive: Tensor
    total: bool

    @property
    def shared(self) -> Tensor | None:
        """u [D], where every W_ij has the mean u_i."""
        u = self.mean[:, 0]
        return u if bool((self.mean == u[:, None]).all()) else None


def refute_outputs(anatomy: Anatomy, change: Transformation) -> str | None:
    """A proof that a transformation of the outputs is no symmetry, or None if none was found."""
    layer = anatomy.last
    if layer is None or not _light(anatomy):
        return None
    laws = anatomy.ensemble.laws
    weight, bias = laws[layer.weight], None if layer.bias is None else laws[layer.bias]
    dtypes = anatomy.ensemble.dtypes
    if layer.bias is not None and dtypes[layer.bias].is_complex != dtypes[layer.weight].is_complex:
        return None
    if isinstance(weight, Complex):
        return _refute_complex(anatomy, layer, weight, bias, change)
    if dtypes[layer.weight].is_complex or change.kind is Kind.SPECIAL_UNITARY:
        return None
    if not entries_independent(weight, anatomy.ensemble.shapes[layer.weight]):
        return None
    readout = _moments(anatomy, layer, weight, bias)
    return None if readout is None else PROOFS[change.kind](readout)


def _rotations(r: Readout) -> str | None:
    d = len(r.b_mean)
    flat = bool((r.mean == 0).all())
    if flat and bool((r.b_mean != 0).any()):
        return f"E f = E b = {_show(r.b_mean)}, but an invariant mean vanishes"
    unequal = _unequal(r) if not bool((r.b_mean != 0).any()) else None
    if flat and unequal:
        return unequal + ", but an invariant E f_i f_k is proportional to δ_ik"
    if flat:
        return _kurtosis(r)
    u = r.shared
    if u is None or not r.total or bool((r.b_mean != 0).any()):
        return None
    live = [i for i in range(d) if u[i] != 0]
    if len(live) > 1:
        i, k = live[:2]
        return (
            f"E f_{i + 1} f_{k + 1} = ({u[i]:g})·({u[k]:g}) E(Σ_j h_j)² ≠ 0, as the weights have a mean, but an "
            "invariant E f_i f_k is proportional to δ_ik"
        )
    i = live[0]
    rows, biases = bool((r.variance[i] >= r.variance).all()), bool((r.b_variance[i] >= r.b_variance).all())
    if rows and biases and d > 1:
        return (
            f"E f_{i + 1}² exceeds the other E f_k² by at least ({u[i]:g})² E(Σ_j h_j)² > 0, as row {i + 1} of the "
            "weights has a mean, but an invariant E f_i f_k is proportional to δ_ik"
        )
    return None


def _permutations(r: Readout) -> str | None:
    flat = bool((r.mean == 0).all())
    if flat and bool((r.b_mean != r.b_mean[0]).any()):
        return f"E f = E b = {_show(r.b_mean)} is not the same for all outputs"
    if bool((r.b_mean != 0).any()):
        return None
    if flat:
        return _unequal(r)
    u = r.shared
    same = bool((r.variance == r.variance[:1]).all()) and bool((r.b_variance == r.b_variance[0]).all())
    if u is not None and r.total and same and len(set(u.abs().tolist())) > 1:
        return f"E f_i² − E f_k² = (u_i² − u_k²) E(Σ_j h_j)² ≠ 0 for some i, k, u = {_show(u)} the means of the rows"
    return None


def _signs(r: Readout) -> str | None:
    if bool((r.mean == 0).all()):
        if bool((r.b_mean != 0).any()):
            return f"E f = E b = {_show(r.b_mean)} changes sign with an output"
        if r.w_third and r.b_third is not None and bool((r.b_third != 0).any()):
            return f"E f_i³ = E b_i³ = {_show(r.b_third)} changes sign with an output"
        return None
    u = r.shared
    if u is None or not r.total or bool((r.b_mean != 0).any()) or int((u != 0).sum()) < 2:
        return None
    i, k = [i for i in range(len(u)) if u[i] != 0][:2]
    return f"E f_{i + 1} f_{k + 1} = ({u[i]:g})·({u[k]:g}) E(Σ_j h_j)² ≠ 0 changes sign with one of the two outputs"


PROOFS = {
    Kind.SPECIAL_ORTHOGONAL: _rotations,
    Kind.PERMUTATIONS: _permutations,
    Kind.SIGNS: _signs,
}


def _unequal(r: Readout) -> str | None:
    """Outputs of different variance: E f_i² − E f_k² = Σ_j (v_ij − v_kj) E h_j² + v_bi − v_bk, terms of one sign."""
    for i in range(len(r.b_mean)):
        for k in range(len(r.b_mean)):
            rows, biases = r.variance[i] - r.variance[k], r.b_variance[i] - r.b_variance[k]
            no_less = bool((rows >= 0).all()) and bool(biases >= 0)
            if no_less and (bool((rows[r.alive] > 0).any()) or bool(biases > 0)):
                return f"E f_{i + 1}² > E f_{k + 1}², as the variances of the readout's weights or biases say"
    return None


def _kurtosis(r: Readout) -> str | None:
    """E f_i⁴ − 3 E f_i² f_k² = Σ_j κ4(W_ij) E h_j⁴ + κ4(b_i) (means zero, rows alike), zero if invariant."""
    alike = bool((r.variance == r.variance[:1]).all()) and bool((r.b_variance == r.b_variance[0]).all())
    if not alike or bool((r.b_mean != 0).any()) or len(r.b_mean) < 2:
        return None
    for i in range(len(r.b_mean)):
        terms = torch.cat([r.fourth[i], r.b_fourth[i : i + 1]])
        one_sign = bool((terms >= 0).all()) or bool((terms <= 0).all())
        if one_sign and bool((torch.cat([r.fourth[i][r.alive], r.b_fourth[i : i + 1]]) != 0).any()):
            named = [(f"κ4(W) = {r.fourth[i].max():.3g}", r.fourth[i]), (f"κ4(b) = {r.b_fourth[i]:.3g}", r.b_fourth[i])]
            found = " and ".join(text for text, value in named if bool((value != 0).any()))
            return (
                f"E f_i⁴ − 3 E f_i² f_k² = Σ_j κ4(W_ij) E h_j⁴ + κ4(b_i) ≠ 0 ({found}), but it vanishes for an "
                "invariant ensemble"
            )
    return None


def _refute_complex(
    anatomy: Anatomy, layer: Layer, weight: Complex, bias: Law | None, change: Transformation
) -> str | None:
    """Real and imaginary parts A, B of f_1, independent given real features: turn them by a phase, e^{iα} f_1.

    E(cos α A − sin α B)⁴ is the same for all α only if E A⁴ = E B⁴ = 3 E A² B². For parts of equal variance and mean
    zero E A⁴ − 3 E A² B² = Σ_j κ4(Re W_1j) E h_j⁴ + κ4(Re b_1), so that independent parts must have the fourth cumulant
    of normal numbers (Maxwell's theorem in one line). SU(D), D ≥ 2, holds such a phase: diag(e^{iα}, e^{−iα}, 1, …).
    """
    if change.kind is not Kind.SPECIAL_UNITARY:
        return None
    ensemble = anatomy.ensemble
    shape = ensemble.shapes[layer.weight]
    if not weight.independent(shape, layer.columns):
        return None
    first = [_row(part, shape, layer) for part in (weight.real, weight.imaginary)]
    extra = _parts_of_bias(bias, ensemble.shapes[layer.bias]) if bias is not None and layer.bias else _ZEROS
    if None in first or None in extra:
        return None
    (am, av, a4), (bm, bv, _) = first  # pyright: ignore[reportGeneralTypeIssues]
    (cm, cv, c4), (dm, dv, _) = extra  # pyright: ignore[reportGeneralTypeIssues]
    features = _features(anatomy, layer)
    if features is None or any(bool((m != 0).any()) for m in (am, bm, cm, dm)):
        return None
    if not torch.allclose(av, bv, 1e-13, 0) or not torch.allclose(cv, dv, 1e-13, 0):
        return None
    terms, seen = torch.cat([a4, c4]), torch.cat([a4[features[0]], c4])
    if bool((seen != 0).any()) and (bool((terms >= 0).all()) or bool((terms <= 0).all())):
        return (
            "with A, B the parts of f_1, E A⁴ − 3 E A² B² = Σ_j κ4(Re W_1j) E h_j⁴ + κ4(Re b_1) ≠ 0 "
            f"(κ4 = {terms.abs().max():.3g}): the phase diag(e^iα, e^−iα, 1, …) changes E A⁴"
        )
    return None


_ZERO = torch.zeros(1, dtype=torch.float64)
_ZEROS: list[tuple[Tensor, Tensor, Tensor] | None] = [(_ZERO, _ZERO, _ZERO)] * 2


def _parts_of_bias(law: Law, shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor, Tensor] | None]:
    """Mean, variance, fourth cumulant of the real and of the imaginary part of the first entry."""
    if isinstance(law, Normal) and not isinstance(law.std, Tensor) and law.mean == 0:
        half = torch.full((1,), law.std**2 / 2, dtype=torch.float64)
        return [(_ZERO, half, _ZERO)] * 2
    if not isinstance(law, Complex):
        return [None, None]
    found = [cumulants(part, shape) for part in (law.real, law.imaginary)]
    return [None if c is None else (c[0][:1], c[1][:1], c[2][:1]) for c in found]


def _row(law: Law, shape: tuple[int, ...], layer: Layer) -> tuple[Tensor, Tensor, Tensor] | None:
    """Mean, variance, fourth cumulant of the weights of the first output, which are independent of each other."""
    found = cumulants(law, shape)
    return None if found is None else tuple(c.movedim(layer.rows, 0)[0] for c in found)  # pyright: ignore[reportReturnType]


def _moments(anatomy: Anatomy, layer: Layer, weight: Law, bias: Law | None) -> Readout | None:
    """The readout's moments, in the order [D, N]."""
    shapes = anatomy.ensemble.shapes
    w = cumulants(weight, shapes[layer.weight])
    zero = torch.zeros(shapes[layer.weight][layer.rows], dtype=torch.float64)
    b: tuple[Tensor, Tensor, Tensor] | None = (zero, zero, zero)
    third: Tensor | None = zero
    if bias is not None and layer.bias is not None:
        shape = shapes[layer.bias]
        independent = entries_independent(bias, shape) and tuple(shape) == tuple(zero.shape)
        b = cumulants(bias, shape) if independent else None
        m3 = marginal_moment(bias, shape, 3)
        third = None if b is None or m3 is None else m3 - 3 * b[1] * b[0] - b[0] ** 3
    features = _features(anatomy, layer)
    if w is None or b is None or features is None:
        return None
    mean, variance, fourth = (part.movedim(layer.rows, 0) for part in w)
    m3 = marginal_moment(weight, shapes[layer.weight], 3)
    symmetric = m3 is not None and bool((m3 == 0).all())
    return Readout(mean, variance, fourth, *b, third, symmetric, *features)


def _features(anatomy: Anatomy, layer: Layer) -> tuple[Tensor, bool] | None:
    """Which features are not zero, and whether their sum is not: from one network; None for complex features."""
    params = {k: v[0] for k, v in anatomy.ensemble.sample(1, seed=1).items()}
    h = anatomy.values(params, anatomy.points, layer.source)[0]
    if h.is_complex() and bool((h.imag != 0).any()):
        return None
    h = (h.real if h.is_complex() else h).double().flatten(0, -2)
    scale = h.abs().max()
    if not math.isfinite(float(scale)) or float(scale) == 0:
        return None
    return (h.abs() > NONZERO * scale).any(0), bool((h.sum(-1).abs() > NONZERO * scale).any())


def _light(anatomy: Anatomy) -> bool:
    """All laws have all moments."""
    laws = [*anatomy.ensemble.laws.values(), *anatomy.ensemble.joint.values()]
    return all(law.moment_order() == math.inf for law in laws)


def _show(values: Tensor) -> str:
    shown = ", ".join(f"{v:.3g}" for v in values[:4].tolist())
    return f"({shown}{', …' if len(values) > 4 else ''})"
