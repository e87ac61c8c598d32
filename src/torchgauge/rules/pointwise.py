"""Elementwise operators: a table from operator to what its function lets through, one line of proof each.

Three kinds: functions of one tensor with a `Profile`, arithmetic that is exact in `Add` and `Mul`, and functions of
several tensors of which only equivariance under shared permutations is used (`Lowering.generic`). Logical operators and
comparisons of data count as generic; what is not elementwise in its real arguments is left opaque.
"""

from __future__ import annotations

from fractions import Fraction
from math import log

import torch

from torchgauge.rules import axes
from torchgauge.rules.lower import GENERIC, Lowering
from torchgauge.rules.recognise import LOW
from torchgauge.rules.registry import operators, rule
from torchgauge.rules.table import IDENTITY, PLAIN, PROFILES, SEVERAL
from torchgauge.spaces.constraints import Profile, Tensor

aten = torch.ops.aten


def _unary(name: str, profile: Profile) -> None:
    def apply(ctx: Lowering, x: Tensor, *_: object, **__: object) -> Tensor:
        return ctx.b.pointwise(x, profile)

    rule(*operators(name))(apply)


def _several(name: str) -> None:
    def apply(ctx: Lowering, *xs: Tensor | float, **_: object) -> Tensor:
        return ctx.generic(*(x for x in xs if isinstance(x, (Tensor, int, float))))

    rule(*operators(name))(apply)


for _name, _profile in PROFILES.items():
    _unary(_name, _profile)
for _name in PLAIN:
    _unary(_name, Profile(_name))
for _name in SEVERAL:
    _several(_name)


@rule(*operators(*IDENTITY))
def identity(ctx: Lowering, x: Tensor, *_: object, **__: object) -> Tensor:
    return x


# -- arithmetic ------------------------------------------------------------------------------------------------
@rule(aten.add)
def add(ctx: Lowering, x: Tensor, y: Tensor | float, alpha: float = 1, **kwargs: float) -> Tensor:
    alpha = kwargs.get("alpha", alpha)
    return ctx.b.add(ctx.tensor(x), ctx.tensor(y), float(alpha))


@rule(aten.sub, aten.subtract)
def sub(ctx: Lowering, x: Tensor, y: Tensor | float, alpha: float = 1, **kwargs: float) -> Tensor:
    alpha = kwargs.get("alpha", alpha)
    return ctx.b.add(ctx.tensor(x), ctx.tensor(y), -float(alpha))


@rule(aten.rsub)
def rsub(ctx: Lowering, x: Tensor, y: Tensor | float, alpha: float = 1, **kwargs: float) -> Tensor:
    alpha = kwargs.get("alpha", alpha)
    return ctx.b.add(ctx.tensor(y), ctx.tensor(x), -float(alpha))


@rule(aten.mul, aten.multiply)
def mul(ctx: Lowering, x: Tensor | float, y: Tensor | float) -> Tensor:
    return ctx.b.mul(ctx.tensor(x), ctx.tensor(y))


@rule(aten.div, aten.divide, aten.true_divide)
def div(ctx: Lowering, x: Tensor, y: Tensor | float, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is not None:
        return ctx.generic(x, y)
    y = ctx.tensor(y)
    if y.fill is not None and y.fill != 0:
        return ctx.b.mul(x, ctx.b.const(y.shape, y.name, 1 / y.fill))
    return ctx.b.mul(ctx.tensor(x), y, -1)


@rule(aten.neg, aten.negative)
def neg(ctx: Lowering, x: Tensor) -> Tensor:
    return ctx.scale(x, -1.0)


@rule(aten.deg2rad)
def deg2rad(ctx: Lowering, x: Tensor) -> Tensor:
    return ctx.scale(x, torch.pi / 180)


@rule(aten.rad2deg)
def rad2deg(ctx: Lowering, x: Tensor) -> Tensor:
    return ctx.scale(x, 180 / torch.pi)


@rule(aten.addcmul)
def addcmul(ctx: Lowering, x: Tensor, y: Tensor, z: Tensor, *, value: float = 1) -> Tensor:
    return ctx.b.add(ctx.tensor(x), ctx.b.mul(ctx.tensor(y), ctx.tensor(z)), float(value))


@rule(aten.addcdiv)
def addcdiv(ctx: Lowering, x: Tensor, y: Tensor, z: Tensor, *, value: float = 1) -> Tensor:
    return ctx.b.add(ctx.tensor(x), ctx.b.mul(ctx.tensor(y), ctx.tensor(z), -1), float(value))


@rule(aten.lerp)
def lerp(ctx: Lowering, x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
    """x (1 − w) + y w for a number w; x + w (y − x) for a tensor."""
    if not isinstance(weight, Tensor):
        return ctx.b.add(ctx.scale(x, 1 - float(weight)), y, float(weight))
    step = ctx.b.add(ctx.tensor(y), ctx.tensor(x), -1.0)
    return ctx.b.add(ctx.tensor(x), ctx.b.mul(ctx.tensor(weight), step))


ROUNDED = 40
"""e to minus this much is lost in rounding."""
FAR = 1e30
"""A bound so far away is taken not to be met."""


@rule(aten.maximum, aten.max.other, aten.max.out, aten.fmax)
def maximum(ctx: Lowering, x: Tensor, y: Tensor) -> Tensor:
    return extremum(ctx, ctx.tensor(x), ctx.tensor(y), 1.0)


@rule(aten.minimum, aten.min.other, aten.min.out, aten.fmin)
def minimum(ctx: Lowering, x: Tensor, y: Tensor) -> Tensor:
    return extremum(ctx, ctx.tensor(x), ctx.tensor(y), -1.0)


def extremum(ctx: Lowering, x: Tensor, y: Tensor, sign: float) -> Tensor:
    """max(x, y) = (x + y + |x − y|)/2, min with the other sign; max with the number zero is the positive part.

    A bound that no number reaches, such as the lowest one of a dtype, bounds nothing.
    """
    if x.role == "const" and y.role != "const":
        x, y = y, x
    if y.fill is not None and y.fill * sign <= -FAR:
        return x
    if y.fill == 0.0:
        return ctx.b.pointwise(x, PROFILES["relu"] if sign > 0 else Profile("negative_part", degree=1, slope=0.5))
    if y.fill is not None or (y.role == "const" and y.shape == (1,) * y.ndim):
        return ctx.b.pointwise(x, Profile("clamp"))
    distance = ctx.b.pointwise(ctx.b.add(x, y, -1.0), PROFILES["abs"])
    return ctx.scale(ctx.b.add(ctx.b.add(x, y), distance, sign), 0.5)


# -- functions whose profile depends on their arguments ---------------------------------------------------------
@rule(aten.pow.Tensor_Scalar, aten.pow_.Scalar)
def power(ctx: Lowering, x: Tensor, exponent: float) -> Tensor:
    return x if exponent == 1 else ctx.b.pointwise(x, power_profile(float(exponent)))


@rule(aten.pow.Tensor_Tensor, aten.pow_.Tensor)
def power_tensor(ctx: Lowering, x: Tensor, exponent: Tensor) -> Tensor:
    if exponent.fill is not None and exponent.role == "const":
        return power(ctx, x, exponent.fill)
    return ctx.generic(x, exponent)


@rule(aten.pow.Scalar)
def power_scalar(ctx: Lowering, base: float | Tensor, x: Tensor | float) -> Tensor:
    """a^x = e^(x ln a) for a > 0. In place the overload of this name is x^a."""
    if isinstance(base, Tensor):
        return power(ctx, base, x) if isinstance(x, (int, float)) else power_tensor(ctx, base, x)
    assert isinstance(x, Tensor)
    profile = Profile("pow_scalar", exponential=True, rate=log(base)) if base > 0 and base != 1 else GENERIC
    return ctx.b.pointwise(x, profile)


def power_profile(p: float) -> Profile:
    """(s x)^p = s^p x^p; an integer power has the parity of the integer; other powers live on x > 0."""
    if p == 0 or abs(float(Fraction(p).limit_denominator(1000)) - p) > 1e-15 * abs(p):
        return GENERIC  # charges have rational powers only
    parity = None if p != int(p) else "odd" if int(p) % 2 else "even"
    return Profile(f"x^{p:g}", degree=p, parity=parity)


@rule(aten.polygamma)
def polygamma(ctx: Lowering, order: int | Tensor, x: Tensor | int) -> Tensor:
    """Nothing is known of it; the order comes first, and in place second."""
    return ctx.b.pointwise(x if isinstance(x, Tensor) else order, GENERIC)  # pyright: ignore[reportArgumentType]


@rule(aten.leaky_relu)
def leaky_relu(ctx: Lowering, x: Tensor, slope: float = 0.01) -> Tensor:
    """x for x > 0, a x below: each branch is linear and s > 0 keeps the branch."""
    return ctx.b.pointwise(x, Profile("leaky_relu", degree=1, slope=(1 + float(slope)) / 2))


@rule(aten.rrelu)
def rrelu(
    ctx: Lowering, x: Tensor, lower: float = 0.125, upper: float = 1 / 3, training: bool = False, *_: object
) -> Tensor:
    return (
        leaky_relu(ctx, x, (lower + upper) / 2)
        if not training
        else ctx.opaque("random slopes (rrelu in training mode)")
    )


@rule(aten.prelu)
def prelu(ctx: Lowering, x: Tensor, weight: Tensor) -> Tensor:
    """x + (a − 1)·min(x, 0): exact for slopes of any role; min(x, 0) is positively homogeneous."""
    b = ctx.b
    if weight.shape != (1,) * weight.ndim and x.ndim > 1:
        weight = b.reshape(weight, (-1,) if x.ndim < 2 else (x.shape[1],) + (1,) * (x.ndim - 2))
    if weight.role == "const":
        return (
            b.pointwise(x, Profile("leaky_relu", degree=1, slope=(1 + weight.fill) / 2))
            if weight.fill is not None
            else b.add(positive(ctx, x), b.mul(negative(ctx, x), weight))
        )
    return b.add(positive(ctx, x), b.mul(negative(ctx, x), weight))


def positive(ctx: Lowering, x: Tensor) -> Tensor:
    return ctx.b.pointwise(x, PROFILES["relu"])


def negative(ctx: Lowering, x: Tensor) -> Tensor:
    """min(x, 0) = −max(−x, 0)."""
    return ctx.b.pointwise(x, Profile("negative_part", degree=1, slope=0.5))


@rule(aten.threshold)
def threshold(ctx: Lowering, x: Tensor, at: float, value: float) -> Tensor:
    """x above the threshold, `value` below: homogeneous when both are zero."""
    return ctx.b.pointwise(x, PROFILES["relu"] if at == value == 0 else Profile("threshold"))


@rule(aten.hardtanh)
def hardtanh(ctx: Lowering, x: Tensor, low: float = -1, high: float = 1) -> Tensor:
    return _clamped(ctx, x, float(low), float(high))


@rule(aten.clamp.default, aten.clip.default)
def clamp(ctx: Lowering, x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    return _clamped(ctx, x, None if low is None else float(low), None if high is None else float(high))


@rule(aten.clamp.Tensor, aten.clip.Tensor, aten.clamp_min.Tensor)
def clamp_tensor(ctx: Lowering, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else extremum(ctx, x, ctx.tensor(low), 1.0)
    return x if high is None else extremum(ctx, x, ctx.tensor(high), -1.0)


@rule(aten.clamp_min.default)
def clamp_min(ctx: Lowering, x: Tensor, low: float) -> Tensor:
    return _clamped(ctx, x, float(low), None)


@rule(aten.clamp_max.default)
def clamp_max(ctx: Lowering, x: Tensor, high: float) -> Tensor:
    return _clamped(ctx, x, None, float(high))


@rule(aten.clamp_max.Tensor)
def clamp_max_tensor(ctx: Lowering, x: Tensor, high: Tensor) -> Tensor:
    return extremum(ctx, x, ctx.tensor(high), -1.0)


def _clamped(ctx: Lowering, x: Tensor, low: float | None, high: float | None) -> Tensor:
    low, high = None if low is None or low <= -FAR else low, None if high is None or high >= FAR else high
    return x if low is None and high is None else ctx.b.pointwise(x, clamp_profile(low, high))


def clamp_profile(low: float | None, high: float | None) -> Profile:
    """One limit at zero: homogeneous. Two finite limits: odd about their middle m (x ↦ 2m − x)."""
    if low is not None and high is not None:
        if low < high:
            middle = (low + high) / 2
            return Profile("clamp", parity="odd", centre=(middle, middle))
        return GENERIC
    return Profile("clamp", degree=1) if 0.0 in (low, high) else Profile("clamp")


@rule(aten.softplus)
def softplus(ctx: Lowering, x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + e^x) = x/2 + log(2 cosh(x/2)), up to e^−threshold where it becomes x."""
    return ctx.b.pointwise(x, Profile("softplus", slope=0.5 if threshold >= ROUNDED else 0.0))


@rule(aten.hardshrink)
def hardshrink(ctx: Lowering, x: Tensor, limit: float = 0.5) -> Tensor:
    return ctx.b.pointwise(x, Profile("hardshrink", parity="odd"))  # x where |x| > limit: |x| is even


@rule(aten.softshrink)
def softshrink(ctx: Lowering, x: Tensor, limit: float = 0.5) -> Tensor:
    return ctx.b.pointwise(x, Profile("softshrink", parity="odd"))  # sgn(x) max(|x| − limit, 0)


@rule(aten.round)
def round_(ctx: Lowering, x: Tensor, *_: object, **__: object) -> Tensor:
    return ctx.b.pointwise(x, Profile("round", parity="odd"))  # half to even is symmetric about 0


@rule(aten.logit, aten.special_logit)
def logit(ctx: Lowering, x: Tensor, eps: float | None = None) -> Tensor:
    return ctx.b.pointwise(x, Profile("logit", parity="odd", centre=(0.5, 0.0)))  # inverse of the sigmoid


@rule(aten.glu)
def glu(ctx: Lowering, x: Tensor, dim: int = -1) -> Tensor:
    half = x.shape[dim] // 2
    left, right = axes.narrow(ctx.b, x, dim, 0, half), axes.narrow(ctx.b, x, dim, half, 2 * half)
    return ctx.b.mul(left, ctx.b.pointwise(right, PROFILES["sigmoid"]))


# -- choices by a mask --------------------------------------------------------------------------------------------
@rule(aten.masked_fill)
def masked_fill(ctx: Lowering, x: Tensor, mask: Tensor, value: Tensor | float) -> Tensor:
    return choose(ctx, mask, ctx.tensor(value), x)


@rule(aten.where)
def where(ctx: Lowering, mask: Tensor, x: Tensor | float, y: Tensor | float) -> Tensor:
    return choose(ctx, mask, ctx.tensor(x), ctx.tensor(y))


def choose(ctx: Lowering, mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the mask holds, y elsewhere.

    With a constant mask this is mask·x + (1 − mask)·y. A constant that is −∞, or so low that the softmax behind gives
    it no weight, is an addition of a constant to the scores.
    """
    b = ctx.b
    if mask.role != "const":
        return ctx.generic(mask, x, y)
    whole, mask = mask, ctx.shrink(mask)
    if mask.fill is not None and (always := x if mask.fill else y).shape == ctx.shape:
        return always
    for kept, other in ((x, y), (y, x)):
        if other.fill is not None and other.role == "const" and kept.role != "const":
            if other.fill == float("-inf") or (other.fill <= LOW and ctx.recogniser.feeds_softmax(ctx.node)):
                low = b.const(mask.shape, "mask")
                low.mask = ctx.mask(whole, low, kept is x, low=True)
                return b.add(kept, low)
            numbers = ctx.exact(whole)
            if numbers is not None and ctx.recogniser.weightless(ctx.node, numbers.bool() != (kept is x)):
                return kept  # another mask takes it out
            masked = b.mul(kept, b.const(mask.shape, "mask"))
            return masked if other.fill == 0 else b.add(masked, b.const(mask.shape, "mask"))
    return b.add(b.mul(x, b.const(mask.shape, "mask")), b.mul(y, b.const(mask.shape, "mask")))
