"""Gradients of Wilson lines: exact for the numbers that are computed, of any order, at a small multiple of the cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tests.ode.test_wilson import EDGES, F64, Net, Smooth, close
from torchgauge.errors import InputError
from torchgauge.ode import factored_kernel, runge_kutta_kernel, slices
from torchgauge.ode.factored import DYSON4, DYSON6
from torchgauge.ode.magnus_exponential import exponential
from torchgauge.ode.products import ordered_products
from torchgauge.ode.runge_kutta import RK8
from torchgauge.ode.wilson import METHODS, wilson
from torchgauge.ode.wilson_base import Samples


def table_of(d: int, **options) -> tuple[Smooth, Tensor]:
    w = Smooth(d, scale=0.5, **options)
    return w, w.table.clone().requires_grad_()


def with_table(w: Smooth, table: Tensor):
    return lambda t: torch.tensordot(w.waves(t).to(table.dtype), table, 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [F64, torch.complex128])
def test_gradcheck(method, dtype):
    w, table = table_of(2, dtype=dtype)
    line = lambda table: wilson(with_table(w, table), [0.0, 0.3, 1.0], slices=[2, 3], method=method)  # noqa: E731
    assert gradcheck(lambda table: line(table).total, table)
    assert gradcheck(lambda table: line(table).prefix, table)


def test_gradcheck_of_adaptive_affine_batches():
    w, table = table_of(2, shape=(2,))
    b = torch.randn(11, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def bias(b: Tensor):
        return lambda t: torch.tensordot(w.waves(t), b, 1)

    lines = lambda table, b: wilson(with_table(w, table), EDGES, bias(b), tolerance=1e-7).layers  # noqa: E731
    assert gradcheck(lines, (table, b))


def test_second_derivatives():
    w, table = table_of(2)
    for method in ("rk8", "dyson6", "magnus6"):
        line = lambda table: wilson(with_table(w, table), [0.0, 1.0], slices=3, method=method).total  # noqa: B023, E731
        assert gradgradcheck(line, table)


def test_gradients_of_the_edges():
    """d/dt of W_{t:s} is w(t) W, so a total line moves with its ends alone."""
    w = Smooth(3)
    edges = torch.tensor([0.1, 0.4, 0.9], dtype=F64, requires_grad=True)
    assert gradcheck(lambda e: wilson(w, e, slices=4).layers, edges)
    total = wilson(w, edges, slices=60).total
    readout = torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    (grad,) = torch.autograd.grad((total * readout).sum(), edges)
    ends = w(edges.detach()[[0, 2]])
    expected = torch.stack([-(total @ ends[0] * readout).sum(), 0 * total.sum(), (ends[1] @ total * readout).sum()])
    close(grad, expected.detach(), 1e-11)


@pytest.mark.parametrize("d", [3, 70])
@pytest.mark.parametrize("steps", [[0.1] * 6, [0.1, 0.2, 0.05, 0.05, 0.1, 0.3]])
def test_the_written_reverse_pass_equals_automatic_differentiation(monkeypatch, d, steps):
    generator = torch.Generator().manual_seed(0)
    n, steps = len(steps), torch.tensor(steps, dtype=F64)
    offsets = (0, n + 1, 2 * n + 1, 3 * n + 1, 1)
    values = torch.randn(4 * n + 1, 1, d, d, dtype=F64, generator=generator).div_(d**0.5).requires_grad_()
    readout = torch.randn(n, 1, d, d, dtype=F64, generator=generator)
    plain = runge_kutta_kernel.propagate_plainly(RK8.tableau, Samples(values, offsets, n), steps)
    (expected,) = torch.autograd.grad((plain * readout).sum(), values)
    for kept in (1 << 28, 0):  # stages kept, or computed again
        monkeypatch.setattr(slices, "KEEP_BYTES", kept)
        lines = RK8.propagators(Samples(values, offsets, n), steps)
        close(lines.detach(), plain.detach(), 1e-13)
        close(torch.autograd.grad((lines * readout).sum(), values)[0], expected, 1e-12)


@pytest.mark.parametrize("method", [DYSON4, DYSON6], ids=lambda method: method.name)
@pytest.mark.parametrize("d", [3, 70])
@pytest.mark.parametrize("steps", [[0.1] * 6, [0.1, 0.2, 0.05, 0.05, 0.1, 0.3]])
@pytest.mark.parametrize("apart", [True, False])
def test_the_reverse_pass_of_factored_series(monkeypatch, method, d, steps, apart):
    generator = torch.Generator().manual_seed(0)
    n, q, steps = len(steps), len(method.nodes), torch.tensor(steps, dtype=F64)
    offsets = tuple(range(0, n * q, n)) if apart else tuple(range(q))  # nodes may share samples
    count = n * q if apart else n + q - 1
    values = torch.randn(count, 1, d, d, dtype=F64, generator=generator).div_(d**0.5).requires_grad_()
    samples, readout = Samples(values, offsets, n), torch.randn(n, 1, d, d, dtype=F64, generator=generator)
    plain = factored_kernel.propagate_plainly(method.table, samples, steps)
    expected = torch.autograd.grad((plain * readout).sum(), values)[0]
    for bytes_kept in (1 << 28, 0):
        monkeypatch.setattr(slices, "KEEP_BYTES", bytes_kept)
        lines = method.propagators(samples, steps)
        close(lines.detach(), plain.detach(), 1e-14)
        close(torch.autograd.grad((lines * readout).sum(), values)[0], expected, 1e-13)


@pytest.mark.parametrize("counts", [[5], [2, 2, 2], [3, 1, 1]])
@pytest.mark.parametrize("fields", [1, 2])
def test_gradients_of_ordered_products(counts, fields):
    shape = (sum(counts), fields, 2, 2)
    factors = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert gradcheck(lambda f: ordered_products(f, counts), factors)
    assert gradgradcheck(lambda f: ordered_products(f, counts), factors)


def test_modules_get_gradients():
    torch.manual_seed(0)
    net = Net(3).double()
    for options in ({}, {"group_preserving": True}, {"method": "free4", "tolerance": 1e-6}):
        net.zero_grad()
        wilson(net, EDGES, **options).total.square().sum().backward()
        grads = [p.grad.clone() for p in net.parameters()]
        eps, weight = 1e-6, net.layer.weight
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                weight[4, 0] += sign * eps
                values.append(wilson(net, EDGES, slices=40).total.square().sum())
                weight[4, 0] -= sign * eps
        assert abs(float(grads[0][4, 0] - (values[0] - values[1]) / (2 * eps))) < 1e-5


def test_no_gradient_is_kept_where_none_is_wanted():
    w, table = table_of(2)
    with torch.no_grad():
        assert not wilson(with_table(w, table), EDGES).total.requires_grad
    assert not wilson(w, EDGES).total.requires_grad
    assert wilson(with_table(w, table), EDGES).total.requires_grad


def test_transformations_of_torch_func():
    w, table = table_of(2)
    table = table.detach()
    line = lambda table: wilson(with_table(w, table), [0.0, 0.5, 1.0], slices=3).total  # noqa: E731
    tables = torch.stack([table, 0.5 * table])
    close(torch.func.vmap(line)(tables)[1], line(tables[1]), 1e-14)
    jacobian = torch.func.jacfwd(line)(table)
    close(torch.func.jacrev(line)(table), jacobian, 1e-13)
    direction = torch.ones_like(table)
    with torch.autograd.forward_ad.dual_level():
        moved = line(torch.autograd.forward_ad.make_dual(table, direction))
        close(torch.autograd.forward_ad.unpack_dual(moved).tangent, jacobian.sum((-3, -2, -1)), 1e-12)
    with pytest.raises(InputError, match="slices="):
        torch.func.vmap(lambda table: wilson(with_table(w, table), [0.0, 1.0]).total)(tables)


def test_the_reverse_pass_costs_three_products_for_one(monkeypatch):
    """Ten products a slice forward; twenty in reverse while the stages are kept."""
    w, table = table_of(8)
    done = {"forward": 0}
    original = torch.baddbmm

    def counted(*args, **options):
        done["forward"] += 1
        return original(*args, **options)

    monkeypatch.setattr(torch, "baddbmm", counted)
    in_place, reverse = Tensor.baddbmm_, []
    monkeypatch.setattr(Tensor, "baddbmm_", lambda *args, **options: (reverse.append(1), in_place(*args, **options))[1])
    total = wilson(with_table(w, table), [0.0, 1.0], slices=10).total
    assert done["forward"] == 10 and not reverse
    total.sum().backward()
    assert done["forward"] == 20 and len(reverse) == 10


def test_the_exponential():
    x = torch.randn(5, 6, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    for scale in (0.0, 1e-6, 1e-3, 0.03, 0.3, 1.0, 8.0):
        close(exponential(scale * x), torch.linalg.matrix_exp(scale * x), 1e-13)
        single = exponential((scale * x).float())
        assert single.dtype == torch.float32
        close(single.double(), torch.linalg.matrix_exp(scale * x), 1e-4)
    assert gradcheck(exponential, x[:2, :3, :3].clone().requires_grad_())
    assert not exponential(torch.full((2, 2), float("nan"))).isfinite().any()
