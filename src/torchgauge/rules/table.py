"""The table of elementwise operators: what each function lets through, with its proof in one line.

Every operator that torch tags `pointwise` stands here or has a rule of its own in pointwise.py; a test counts them.
"""

from __future__ import annotations

from torchgauge.spaces.constraints import Profile

HALF = (0.0, 0.5)

PROFILES: dict[str, Profile] = {
    # positively homogeneous: f(s x) = s^degree f(x) for s > 0
    "relu": Profile("relu", degree=1, slope=0.5),  # max(s x, 0) = s max(x, 0); = x/2 + |x|/2
    "abs": Profile("abs", degree=1, parity="even"),  # |s x| = s |x|, |−x| = |x|
    "square": Profile("square", degree=2, parity="even"),  # (s x)² = s² x²
    "sqrt": Profile("sqrt", degree=0.5),  # √(s x) = √s √x
    "rsqrt": Profile("rsqrt", degree=-0.5),  # 1/√(s x) = s^(−1/2) / √x
    "reciprocal": Profile("reciprocal", degree=-1, parity="odd"),  # 1/(s x) = s^(−1)/x; 1/(−x) = −1/x
    "sign": Profile("sign", degree=0, parity="odd"),  # the scale does not matter; sgn(−x) = −sgn x
    "sgn": Profile("sgn", degree=0, parity="odd"),  # as sign for real x
    # odd about a point: f(c + x) − v = −(f(c − x) − v)
    "tanh": Profile("tanh", parity="odd"),  # (e^x − e^−x)/(e^x + e^−x) changes sign with x
    "sinh": Profile("sinh", parity="odd"),  # (e^x − e^−x)/2
    "asinh": Profile("asinh", parity="odd"),  # inverse of an odd bijection
    "atanh": Profile("atanh", parity="odd"),  # inverse of an odd bijection
    "sin": Profile("sin", parity="odd"),  # odd power series
    "tan": Profile("tan", parity="odd"),  # sin/cos: odd/even
    "asin": Profile("asin", parity="odd"),  # inverse of an odd bijection
    "atan": Profile("atan", parity="odd"),  # inverse of an odd bijection
    "acos": Profile("acos", parity="odd", centre=(0.0, 1.5707963267948966)),  # π/2 − asin x
    "erf": Profile("erf", parity="odd"),  # integral from 0 of an even function
    "erfinv": Profile("erfinv", parity="odd"),  # inverse of an odd bijection
    "erfc": Profile("erfc", parity="odd", centre=(0.0, 1.0)),  # 1 − erf x
    "sigmoid": Profile("sigmoid", parity="odd", centre=HALF),  # 1/2 + tanh(x/2)/2
    "hardsigmoid": Profile("hardsigmoid", parity="odd", centre=HALF),  # clamp(x/6 + 1/2, 0, 1)
    "relu6": Profile("relu6", parity="odd", centre=(3.0, 3.0)),  # clamp(x, 0, 6), mirrored at 3
    "trunc": Profile("trunc", parity="odd"),  # sgn(x) ⌊|x|⌋
    "frac": Profile("frac", parity="odd"),  # x − trunc x
    "special_bessel_j1": Profile("special_bessel_j1", parity="odd"),  # odd power series
    "special_i1": Profile("special_i1", parity="odd"),  # odd power series
    "special_i1e": Profile("special_i1e", parity="odd"),  # e^−|x| times odd
    "special_modified_bessel_i1": Profile("special_modified_bessel_i1", parity="odd"),  # odd power series
    "special_ndtri": Profile("special_ndtri", parity="odd", centre=(0.5, 0.0)),  # quantile of a symmetric law
    "special_ndtr": Profile("special_ndtr", parity="odd", centre=HALF),  # 1/2 + erf(x/√2)/2
    # even
    "cos": Profile("cos", parity="even"),  # even power series
    "cosh": Profile("cosh", parity="even"),  # (e^x + e^−x)/2
    "sinc": Profile("sinc", parity="even"),  # sin(πx)/(πx): odd/odd
    "i0": Profile("i0", parity="even"),  # even power series
    "special_i0e": Profile("special_i0e", parity="even"),  # e^−|x| times even
    "special_bessel_j0": Profile("special_bessel_j0", parity="even"),  # even power series
    "special_modified_bessel_i0": Profile("special_modified_bessel_i0", parity="even"),  # even power series
    "special_spherical_bessel_j0": Profile("special_spherical_bessel_j0", parity="even"),  # sin(x)/x
    # even but for a slope
    "gelu": Profile("gelu", slope=0.5),  # x Φ(x) = x/2 + x (Φ(x) − 1/2), odd times odd; the tanh form likewise
    "silu": Profile("silu", slope=0.5),  # x/2 + x tanh(x/2)/2
    "hardswish": Profile("hardswish", slope=0.5),  # x/2 + x clamp(x/6, −1/2, 1/2)
    "log_sigmoid": Profile("log_sigmoid", slope=0.5),  # x/2 − log(2 cosh(x/2))
    # exponential: f(x + c) = e^(rate c) f(x)
    "exp": Profile("exp", exponential=True),
    "exp2": Profile("exp2", exponential=True, rate=0.6931471805599453),  # e^(x ln 2)
}
"""Functions of one tensor, without further arguments, with a symmetry."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PLAIN = _names(
    """
    acosh angle celu ceil digamma expm1 floor lgamma log log10 log1p log2 mish elu selu
    special_airy_ai special_bessel_y0 special_bessel_y1 special_entr special_erfcx special_log_ndtr
    special_modified_bessel_k0 special_modified_bessel_k1 special_scaled_modified_bessel_k0
    special_scaled_modified_bessel_k1 mvlgamma isfinite isinf isnan isneginf isposinf signbit logical_not
    """
)
"""Functions of one tensor that let permutations through and nothing else (or nothing that is used)."""

IDENTITY = _names(
    """
    positive conj_physical conj resolve_conj resolve_neg nan_to_num real
    """
)
"""The identity on finite real numbers."""

SEVERAL = _names(
    """
    atan2 arctan2 fmod remainder copysign heaviside hypot igamma igammac logaddexp logaddexp2 ldexp xlogy nextafter
    special_xlog1py special_zeta gcd lcm floor_divide float_power special_chebyshev_polynomial_t
    special_chebyshev_polynomial_u special_chebyshev_polynomial_v special_chebyshev_polynomial_w
    special_hermite_polynomial_h special_hermite_polynomial_he special_laguerre_polynomial_l
    special_legendre_polynomial_p special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
    special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w eq ne lt le gt ge less less_equal
    greater greater_equal not_equal logical_and logical_or logical_xor isclose bitwise_and bitwise_or bitwise_xor
    bitwise_not bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ __lshift__ __rshift__ __ilshift__
    __irshift__ __iand__ __ior__ __ixor__
    """
)
"""Functions of one or several tensors or numbers of which only equivariance under permutations is used."""

OPAQUE = _names(
    """
    equal frexp gelu_backward logit_backward native_dropout_backward sigmoid_backward silu_backward tanh_backward
    threshold_backward
    """
)
"""Elementwise operators left without a rule: one or two results of another kind, or backward passes."""
