"""Proofs that translations of the inputs are no symmetry.

Far from the origin: if the first layer saturates, f(t n) converges as t → ∞ and its increments vanish; if features grow
without bound under a linear readout, the law of f(t n) is not tight. Neither can happen in an ensemble whose law is the
same everywhere. Near the origin: second and fourth moments at x = 0 and elsewhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from torchgauge.fields.laws import Law, Normal, TruncatedNormal, Uniform
from torchgauge.fields.symmetry.anatomy import Anatomy, Layer, above, plain_norm
from torchgauge.fields.symmetry.moments import cumulants, entries_independent
from torchgauge.fields.symmetry.operators import GROWING, SATURATING, continuous, finite_moments

aten = torch.ops.aten
PERIODIC = {aten.sin.default, aten.cos.default}


def refute_translations(anatomy: Anatomy) -> str | None:
    """A proof that translations of the inputs are no symmetry, or None if none was found."""
    return _far_out(anatomy) or (_near(anatomy) if finite_moments(anatomy) else None)


def _far_out(anatomy: Anatomy) -> str | None:
    """By what happens far from the origin: no moments are needed."""
    layer = anatomy.first
    if layer is None:
        normed = anatomy.input is not None and [plain_norm(n) for n in anatomy.input.users] == [True]
        return _flat(anatomy, "a layer norm of t n converges") if normed else None
    if not _continuous(anatomy.ensemble.laws[layer.weight]) or len(layer.result.users) > 1:
        return None
    after = next(iter(layer.result.users))
    name = getattr(after.target, "__name__", "").split(".")[0]
    if after.target in SATURATING:
        return _flat(anatomy, f"{name} saturates")
    last = anatomy.last
    if last is None or not _continuous(anatomy.ensemble.laws[last.weight]):
        return None
    if after.target in GROWING and last.source is after:
        return f"{name} grows without bound: the law of f(t n) is not tight as t → ∞, while that of f(0) is one law"
    if last.source is layer.result:
        return "f is affine in x: the law of f(t n) is not tight as t → ∞"
    return None


def _near(anatomy: Anatomy) -> str | None:
    """By second moments at the origin and elsewhere."""
    if _exponential(anatomy):
        return (
            "neurons are h = exp(z − s(x)), z normal with a variance v(x) that depends on x: E h² = e^{2(v − s)} and "
            "E h⁴ = e^{8v − 4s} are not both the same everywhere, hence E f² and E f⁴ are not"
        )
    layer, last = anatomy.first, anatomy.last
    if layer is None or last is None or not _continuous(anatomy.ensemble.laws[layer.weight]):
        return None
    if len(layer.result.users) != 1 or not _centred_readout(anatomy):
        return None
    after = next(iter(layer.result.users))
    if after.target in PERIODIC and last.source is after:
        return _periodic(anatomy, layer)
    if after.target is aten.remainder.Scalar and layer.bias is None and _number(after.args[1]) > 0:
        return _late_bias(anatomy, after, last)
    return None


def _flat(anatomy: Anatomy, why: str) -> str | None:
    """f(x + t n) converges as t → ∞, by continuity: its increments vanish, while f(x + n) − f(x) does not."""
    if not continuous(anatomy):
        return None
    moved = anatomy.points.clone()
    moved[..., 0] += 1.0
    gap = anatomy.ensemble.outputs(moved, 16, seed=3) - anatomy.ensemble.outputs(anatomy.points, 16, seed=3)
    if not bool((gap.abs() > 1e-6).any()):
        return None
    return f"{why}: f(t n) converges as t → ∞, so that its increments vanish, while f(x + n) − f(x) does not"


def _exponential(anatomy: Anatomy) -> bool:
    """A linear readout, independent and centred, of exp(W x + b − s(x)), W and b normal, s free of parameters."""
    last = anatomy.last
    if last is None or last.source.target is not aten.exp.default or not _centred_readout(anatomy):
        return False
    inner = last.source.args[0]
    if isinstance(inner, fx.Node) and inner.target is aten.sub.Tensor and not inner.kwargs:
        if any(anatomy.parameter(n) is not None for n in above(inner.args[1])):
            return False
        inner = inner.args[0]
    if not isinstance(inner, fx.Node) or inner.target is not aten.linear.default or inner.args[0] is not anatomy.input:
        return False
    names = [anatomy.parameter(n) for n in inner.args[1:]]
    laws = [anatomy.ensemble.laws.get(n or "") for n in names]
    return all(isinstance(law, Normal) for law in laws) and _continuous(laws[0])


def _periodic(anatomy: Anatomy, layer: Layer) -> str | None:
    """E cos²(w·x + b) = (1 + Re E e^{2i(w·x + b)})/2, with E e^{2ib} ≠ 0 at x = 0, tends to 1/2 far out."""
    if layer.result.target not in (aten.linear.default, aten.add.Tensor):
        return None
    size = 1.0
    if layer.bias is not None:
        law = anatomy.ensemble.laws[layer.bias]
        if isinstance(law, Normal) and not isinstance(law.std, Tensor) and law.mean == 0:
            size = math.exp(-2 * law.std**2)
        elif isinstance(law, Uniform) and law.low == -law.high:
            size = math.sin(2 * law.high) / (2 * law.high)
        else:
            return None
    if abs(size) < 1e-9:
        return None
    return (
        f"E f(x)² contains E cos(2(w·x + b)), which is {size:.3g} at x = 0 and tends to 0 far out: the phases of the "
        "biases are not uniform on the circle"
    )


def _late_bias(anatomy: Anatomy, after: fx.Node, last: Layer) -> str | None:
    """h = (W x mod p) + b: E h(x)² − E h(0)² = E r² + 2 E r E b > 0 for r = W x mod p ≥ 0 and E b ≥ 0."""
    node = last.source
    if node.target is not aten.add.Tensor or node.kwargs or after not in node.args[:2]:
        return None
    bias = anatomy.parameter(node.args[1] if node.args[0] is after else node.args[0])
    law = anatomy.ensemble.laws.get(bias or "")
    mean = None if law is None else law.moment(1)
    if mean is None or mean < 0:
        return None
    return (
        "features are (W x mod p) + b, the bias stands outside of the period: "
        "E f(x)² − E f(0)² = Σ_j E V_j² (E r² + 2 E r E b) > 0, r = W x mod p"
    )


def _centred_readout(anatomy: Anatomy) -> bool:
    """Independent readout weights of mean zero, not all fixed, so that E f² is a sum over neurons."""
    last = anatomy.last
    if last is None:
        return False
    law, shape = anatomy.ensemble.laws[last.weight], anatomy.ensemble.shapes[last.weight]
    found = cumulants(law, shape)
    if found is None or not entries_independent(law, shape):
        return False
    return bool((found[0] == 0).all()) and bool((found[1] > 0).all())


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _continuous(law: Law | None) -> bool:
    """Independent entries with densities."""
    if isinstance(law, Normal):
        return bool((torch.as_tensor(law.std) > 0).all())
    return isinstance(law, (Uniform, TruncatedNormal))
