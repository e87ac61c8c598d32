"""Orders of the methods for Wilson lines: conditions on their coefficients, and convergence."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from numpy.polynomial import Legendre

from tests.ode.test_wilson import F64, Smooth, close
from torchgauge.ode.factored import DYSON4, DYSON6
from torchgauge.ode.runge_kutta import RK4, RK6, RK8
from torchgauge.ode.wilson import METHODS, wilson


@pytest.mark.parametrize("method", [RK4, RK6, RK8], ids=lambda method: method.name)
def test_order_conditions(method):
    """b C^{a_1} A C^{a_2} ... C^{a_n} 1 = ∏ of the same integrals, for every word up to the order, and not above."""
    tableau = method.tableau
    s = tableau.stages
    a, b = torch.zeros(s, s, dtype=F64), torch.zeros(s, dtype=F64)
    for i, (first, row) in enumerate(tableau.rows):
        for j, value in enumerate(row):
            stage = tableau.slot.index(first + j)
            if i < s:
                a[i, stage] = value
            else:
                b[stage] = value
    c = torch.tensor([tableau.nodes[j] for j in tableau.node], dtype=F64)
    close(a.sum(1), c, 1e-14)
    words, worst = [(torch.ones(s, dtype=F64), 1.0, 0, 0)], {}
    while words:
        longer = []
        for vector, value, power, grade in words:
            for k in range(method.order + 1 - grade):
                gap = abs(float(b @ (c**k * vector)) - value / (power + k + 1))
                at = grade + k + 1
                worst[at] = max(worst.get(at, 0.0), gap)
                longer.append((a @ (c**k * vector), value / (power + k + 1), power + k + 1, at))
        words = [word for word in longer if word[3] <= method.order]
    assert max(worst[g] for g in range(1, method.order + 1)) < 1e-14
    assert worst[method.order + 1] > 1e-6


@pytest.mark.parametrize("method", [DYSON4, DYSON6], ids=lambda method: method.name)
def test_words_of_factored_series(method):
    """Every word in the moments of w up to the order has the coefficient of the Dyson series, and a longer one has not.

    A polynomial in non-commuting letters is a dict from words to numbers; letter k has the weight k + 1.
    """
    table, most = method.table, method.order + 1
    nodes = 2 * torch.tensor(method.nodes, dtype=F64) - 1
    letters = range(min(len(nodes), most))
    legendre = [torch.from_numpy(Legendre.basis(k)(nodes.numpy())) for k in letters]  # P_k at the nodes
    forms = [{(k,): float(torch.tensor(row, dtype=F64) @ legendre[k]) for k in letters} for row in table.forms]

    def plus(a, b, factor=1.0):
        return {word: a.get(word, 0.0) + factor * b.get(word, 0.0) for word in {*a, *b}}

    def times(a, b):
        result = {}
        for (u, x), (v, y) in itertools.product(a.items(), b.items()):
            if sum(u + v) + len(u + v) <= most:
                result[u + v] = result.get(u + v, 0.0) + x * y
        return result

    products, series = [], forms[-1]
    for i in range(table.products):
        left, right = forms[2 * i], forms[2 * i + 1]
        for j, product in enumerate(products):
            left = plus(left, product, table.left[i][j] if table.left[i] else 0.0)
            right = plus(right, product, table.right[i][j] if table.right[i] else 0.0)
        products.append(times(left, right))
        series = plus(series, products[-1])

    def dyson(word):
        """∫ over 1 > τ_1 > τ_2 > ... > −1 of ∏ P_k(τ) dτ/2."""
        inner = Legendre([1.0])
        for k in reversed(word):
            inner = (Legendre.basis(k) * inner).integ(lbnd=-1) / 2
        return inner(1.0)

    words = [w for n in range(1, most + 1) for w in itertools.product(letters, repeat=n) if sum(w) + n <= most]
    gaps = {word: abs(series.get(word, 0.0) - dyson(word)) for word in words}
    assert max(gap for word, gap in gaps.items() if sum(word) + len(word) <= method.order) < 1e-14
    assert max(gaps.values()) > 1e-6


def test_a_factored_series_has_a_fraction_of_the_error_for_as_many_products():
    w, edges = Smooth(24), torch.linspace(0, 1, 33, dtype=F64)
    exact = wilson(w, edges).layers

    def error(method):
        return float((wilson(w, edges, slices=1, method=method).layers - exact).abs().max())

    assert DYSON4.products == RK4.products and error("dyson4") < error("rk4") / 20
    assert DYSON6.products == RK6.products and error("dyson6") < error("rk6") / 10


@pytest.mark.parametrize("method", METHODS)
def test_methods_converge_with_their_order(method):
    w = Smooth(5)
    exact = wilson(w, [0.0, 1.0], slices=200).total
    coarse, fine = 24, 36
    errors = [float((wilson(w, [0.0, 1.0], slices=n, method=method).total - exact).norm()) for n in (coarse, fine)]
    order = math.log(errors[0] / errors[1]) / math.log(fine / coarse)
    assert abs(order - METHODS[method].order) < 0.7
    assert errors[1] < 1e-3
