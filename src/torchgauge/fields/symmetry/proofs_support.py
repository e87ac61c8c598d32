"""Proofs by where the outputs can lie, and by what the network does not see; no affine readout is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from torchgauge.fields.laws import Kind
from torchgauge.fields.symmetry.anatomy import Anatomy, plain_norm
from torchgauge.fields.symmetry.transformations import Transformation

aten = torch.ops.aten
POSITIVE = {
    aten.relu.default, aten.sigmoid.default, aten.softmax.int, aten.exp.default, aten.softplus.default,
    aten.abs.default, aten.square.default,
}  # fmt: skip
"""Values that are never negative."""
BOUNDED: dict[object, float] = {
    aten.tanh.default: 1.0,
    aten.erf.default: 1.0,
    aten.sin.default: 1.0,
    aten.cos.default: 1.0,
}
"""|φ| ≤ bound."""
TRIES = 64


def refute_by_support(anatomy: Anatomy, change: Transformation) -> str | None:
    """A proof that a transformation is no symmetry, or None if none was found.

    What has to happen with positive probability is seen to happen in one network: laws and maps are continuous.
    """
    if change.side == "inputs":
        return _ignored_direction(anatomy, change)
    last = anatomy.output
    if last.meta["val"].is_complex():
        return None
    name = getattr(last.target, "__name__", "").split(".")[0]
    turned = change.kind in (Kind.SPECIAL_ORTHOGONAL, Kind.SIGNS)
    if last.target in POSITIVE and turned:
        if bool((_outputs(anatomy) > 0).any()):
            return f"outputs of {name} are never negative and not always zero, but a change of signs makes them so"
        return None
    if last.target in BOUNDED and change.kind is Kind.SPECIAL_ORTHOGONAL:
        bound = BOUNDED[last.target]
        length = _outputs(anatomy).norm(dim=-1).max()
        if float(length) > bound * (1 + 1e-9):
            return (
                f"outputs of {name} lie in the cube |f_i| ≤ {bound:g}, and lengths of {float(length):.3g} occur, "
                "which a rotation turns out of the cube"
            )
        return None
    if plain_norm(last) and turned:
        if bool((_outputs(anatomy).abs() > 1e-6).any()):
            return "outputs of a layer norm add up to zero and do not all vanish: turned outputs do not add up to zero"
    return None


def _outputs(anatomy: Anatomy) -> Tensor:
    """Outputs of some networks [networks, points, D]."""
    out = anatomy.ensemble.outputs(anatomy.points, TRIES, seed=3)
    return out.real if out.is_complex() else out


def _ignored_direction(anatomy: Anatomy, change: Transformation) -> str | None:
    """f(x + c 1) = f(x) always; turned by a symmetry, f(x + c R1) = f(x) almost surely, for every R."""
    start = anatomy.input
    if start is None or len(start.users) != 1 or change.kind not in (Kind.SPECIAL_ORTHOGONAL, Kind.SIGNS):
        return None
    if not plain_norm(next(iter(start.users))):
        return None
    moved = anatomy.points.clone()
    moved[..., 0] += 1.0  # 1 − S1 = 2 e_1 for a flip S of the first input
    before = anatomy.ensemble.outputs(anatomy.points, TRIES, seed=3)
    after = anatomy.ensemble.outputs(moved, TRIES, seed=3)
    if bool(((after - before).abs() > 1e-6 * before.abs().max()).any()):
        return (
            "a layer norm hides the direction 1 of the inputs, f(x + c 1) = f(x) in every network; an invariant "
            "ensemble would not see turned directions either, and hence no x_1 at all, but it does"
        )
    return None
