"""Factored Dyson series for dW/dt = w(t) W: few products for each slice, each of two linear forms in w.

A slice is W = 1 + ∫ w + Σ_i P_i with the products

    P_i = (λ_i(w) + Σ_{j<i} λ_ij P_j) (ρ_i(w) + Σ_{j<i} ρ_ij P_j),

where λ_i(w) and ρ_i(w) are linear in w. A product costs d³ and a form d², so that both factors may be any combination
of w at the nodes, where a Runge–Kutta stage has w at one of them. The coefficients solve the order conditions: with
the moments B_k = (2k + 1)/2 h ∫ w P_k dτ of weight k + 1 as letters (P_k the Legendre polynomials), every word up to
weight p has the coefficient of the Dyson series, an integral over the ordered simplex. What freedom is left makes the
coefficients of the next words close to theirs, for fields that vary on the scale of a slice.

`dyson4` needs three products for order 4, as Kutta's method does, at a thirtieth of its error; `dyson6` six for order
6, at an accuracy for which `rk8` takes ten.
"""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from torchgauge.ode.factored_kernel import KERNEL, Table, propagate_plainly, transport
from torchgauge.ode.mixed_kernel import HALF, MIXED
from torchgauge.ode.wilson_base import Method, Samples, transformed

Rows = tuple[tuple[float, ...], ...]


@final
class FactoredDyson(Method):
    """A factored Dyson series.

    Args:
        name: of the method.
        order: its order.
        left, right: λ_i and ρ_i in the moments B_0, B_1, ...
        left_products, right_products: rows λ_ij and ρ_ij, j < i; empty for none.

    Attributes:
        products: matrix products of a slice.
    """

    def __init__(self, name: str, order: int, left: Rows, right: Rows, left_products: Rows, right_products: Rows):
        self.name, self.order, self.products = name, order, len(left)
        count = len(left[0])
        nodes, areas = np.polynomial.legendre.leggauss(count)  # moments by Gauss quadrature
        moments = np.polynomial.legendre.legvander(nodes, count - 1).T * areas * (np.arange(count)[:, None] + 0.5)
        self.nodes = tuple(((nodes + 1) / 2).tolist())
        forms = np.stack([*np.stack([left, right], 1).reshape(-1, count), np.eye(count)[0]]) @ moments
        self.table = Table(tuple(map(tuple, forms.tolist())), left_products, right_products)
        self.kernel = KERNEL

    @cached_property
    def mixed(self) -> FactoredDyson:
        """The same series with its products in half the precision of w, and all else in that of w."""
        if self.kernel is MIXED:
            return self
        method = copy(self)
        method.kernel = MIXED
        return method

    def propagators(self, samples: Samples, steps: Tensor) -> Tensor:
        if steps.requires_grad or transformed():
            return propagate_plainly(self.table, samples, steps)
        kernel = self.kernel if samples.values.dtype in HALF else KERNEL
        return kernel.propagate(self.table, samples, steps)

    @torch.no_grad()
    def transport(self, samples: Samples, steps: Tensor, vectors: Tensor) -> Tensor | None:
        return transport(self.table, samples, steps, vectors)


def _fourth() -> FactoredDyson:
    """Three moments, and products in right factors alone, so that vectors can be transported."""
    return FactoredDyson(
        "dyson4",
        4,
        (
            (-0.4542662685207089, 0.09115205664796777, 0.14566772364708103),
            (-0.45191266986349843, -0.262565940545221, -0.06127556986141752),
            (0.29902691534561854, 0.29902691534561876, 0.1286864991638238),
        ),
        (
            (-0.45426626852070884, 0.2899340747435721, -0.1380789215949971),
            (-0.4519126698634985, 0.04505654384109899, 0.22275014304615567),
            (0.29902691534561876, -0.04881759013891706, 0.1268749180597713),
        ),
        (
            (),
            (),
            (),
        ),
        (
            (),
            (-2.1327500811313125,),
            (-1.2155691659158934, 0.7005885155202092),
        ),
    )


def _sixth() -> FactoredDyson:
    """Four moments; the right factors are the left ones read backwards, B_k ↦ (−1)^k B_k, as the series is."""
    return FactoredDyson(
        "dyson6",
        6,
        (
            (-0.2780668286607844, -0.21754616206132102, -0.1183487665398555, -0.03390231726582753),
            (-0.39851500443503235, -0.10838497774637852, 0.15335108020552507, 0.1556669836918912),
            (0.5696348345577801, 0.35082087809609847, 0.36259518723311773, 0.4844550647241877),
            (-0.8005325395707035, -0.49528285277993284, -0.41708124009712094, -0.47180387904379456),
            (0.4655579625234141, 0.25681874675293376, 0.11371127546825507, 0.016202655465203945),
            (0.3385347341074341, 0.39064901792649, 0.25479770105643845, 0.11169433957262288),
        ),
        (
            (0.2780668286607844, -0.21754616206132102, 0.11834876653985547, -0.03390231726582752),
            (-0.3985150044350323, 0.10838497774637851, 0.15335108020552504, -0.15566698369189116),
            (-0.5696348345577801, 0.3508208780960984, -0.3625951872331176, 0.48445506472418765),
            (-0.8005325395707036, 0.49528285277993295, -0.417081240097121, 0.4718038790437946),
            (0.4655579625234141, -0.25681874675293376, 0.11371127546825507, -0.016202655465203945),
            (-0.3385347341074342, 0.39064901792649, -0.25479770105643845, 0.11169433957262288),
        ),
        (
            (),
            (0.019940023553313535,),
            (0.4655131371629287, 1.159853027678584),
            (-0.5672085262702423, -1.218032451418242, 0.03677260116251855),
            (0.4867163676910833, 0.06696574186234357, 0.32639130213283946, 0.26369017181757515),
            (
                -1.0165689368661404,
                -0.0014308177907359219,
                -0.36487289326831407,
                -0.2937362823831224,
                -0.3261920596773125,
            ),
        ),
        (
            (),
            (0.019940023553313535,),
            (-0.4655131371629287, -1.1598530276785837),
            (-0.5672085262702424, -1.2180324514182421, 0.03677260116251855),
            (0.48671636769108323, 0.06696574186234357, 0.32639130213283946, 0.26369017181757515),
            (1.0165689368661404, 0.0014308177907359219, 0.364872893268314, 0.2937362823831224, 0.3261920596773125),
        ),
    )


DYSON4, DYSON6 = _fourth(), _sixth()
