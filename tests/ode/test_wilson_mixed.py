"""Products in half the precision of w: their rounding, what the automatic choice makes of it, gradients, inputs."""

from __future__ import annotations

import pytest
import torch

from tests.ode.test_wilson import EDGES, F64, Smooth, close
from tests.ode.test_wilson_gradients import table_of, with_table
from torchgauge.errors import InputError
from torchgauge.ode import factored_kernel, slices, wilson_chunks
from torchgauge.ode.factored import DYSON4, DYSON6
from torchgauge.ode.wilson import wilson
from torchgauge.ode.wilson_base import Samples

HALF = 2.0**-24


def rms(lines, exact) -> float:
    """The largest rms error of a transported unit vector."""
    error = (lines - exact).flatten(-2).norm(dim=-1) / exact.flatten(-2).norm(dim=-1)
    return float(error.max())


@pytest.mark.parametrize("method", ["dyson4", "dyson6"])
@pytest.mark.parametrize("scale", [0.03, 0.3, 3.0])
def test_rounding_is_of_the_order_of_the_square_of_w(method, scale):
    """Where lines in float32 have an error of its rounding, mixed ones have that of their products."""
    w, edges = Smooth(40, scale=scale), torch.linspace(0, 1, 33, dtype=F64)
    full = wilson(w, edges, slices=1, method=method)
    mixed = wilson(w, edges, slices=1, method=method, mixed=True)
    assert mixed.mixed and not full.mixed and mixed.layers.dtype == F64
    size = 5 * scale / 32  # of w h
    error = rms(mixed.layers, full.layers)
    assert HALF * size**2 / 100 < error < HALF * size**2 * 4


@pytest.mark.parametrize("d", [8, 40])
@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
@pytest.mark.parametrize("layers", [1, 3, 32])
def test_tolerances_are_met_whatever_the_size_of_w(d, scale, layers):
    w, edges = Smooth(d, scale=scale), torch.linspace(0, 1, layers + 1, dtype=F64)
    exact = wilson(w, edges, tolerance=1e-12, mixed=False).layers
    for tolerance in (1e-3, 1e-5, 1e-7, 2e-9, 1e-10):
        lines = wilson(w, edges, tolerance=tolerance)
        assert rms(lines.layers, exact) < tolerance and lines.error < tolerance
        assert not lines.mixed or (d > 16 and tolerance >= 1e-9)
        assert not wilson(w, edges, tolerance=tolerance, mixed=False).mixed
    if d > 16 and scale == 1:
        assert wilson(w, edges, tolerance=1e-5).mixed


def test_large_w_is_refined():
    """Lines that grow by many orders of magnitude, and those that turn fast."""
    for w in (Smooth(24, scale=10.0), lambda t: 10 * (Smooth(24)(t) - Smooth(24)(t).mT)):
        lines = wilson(w, [0.0, 1.0], tolerance=1e-6)
        assert rms(lines.total, wilson(w, [0.0, 1.0], tolerance=1e-9).total) < 1e-6


@pytest.mark.parametrize("d", [4, 32])
@pytest.mark.parametrize("tolerance", [1e-5, 1e-7])
def test_bursts_take_slices_of_their_own(d, tolerance):
    """Equal slices do not suit them, and the search goes the other way."""
    smooth = Smooth(d)

    def w(t):
        turning = smooth(t) - smooth(t).mT
        return turning * (1 + 30 * torch.exp(-((t - 0.37) ** 2) / 4e-4))[:, None, None]

    exact = wilson(w, [0.0, 1.0], slices=1500).total
    lines = wilson(w, [0.0, 1.0], tolerance=tolerance)
    assert rms(lines.total, exact) < tolerance


@pytest.mark.parametrize("d", [4, 32])
def test_jumps_at_edges(d):
    a, b = Smooth(d), Smooth(d, seed=1)
    w = lambda t: torch.where((t < 0.4)[:, None, None], a(t), b(t))  # noqa: E731
    lines = wilson(w, [0.0, 0.4, 1.0], tolerance=1e-6)
    exact = wilson(b, [0.4, 1.0]).total @ wilson(a, [0.0, 0.4]).total
    assert rms(lines.total, exact) < 2e-6
    assert lines.method == "dyson6" and lines.slices[0] < lines.slices[1]


def test_a_w_of_one_time_is_asked_for_fewer():
    calls, w = [], Smooth(20)

    def one(t):
        calls.append(t)
        return w(t.reshape(1))[0]

    assert wilson(w, [0.0, 1.0], tolerance=1e-6).mixed
    assert wilson(one, [0.0, 1.0], tolerance=1e-6).method == "rk8" and len(calls) < 140


# the kernel


@pytest.mark.parametrize("method", [DYSON4, DYSON6], ids=lambda method: method.name)
@pytest.mark.parametrize("steps", [[0.1] * 6, [0.1, 0.2, 0.05, 0.05, 0.1, 0.3]])
@pytest.mark.parametrize("apart", [True, False])
def test_lines_and_the_reverse_pass(monkeypatch, method, steps, apart):
    generator, d = torch.Generator().manual_seed(0), 12
    n, q, steps = len(steps), len(method.nodes), torch.tensor(steps, dtype=F64)
    offsets = tuple(range(0, n * q, n)) if apart else tuple(range(q))  # nodes may share samples
    count = n * q if apart else n + q - 1
    values = torch.randn(count, 2, d, d, dtype=F64, generator=generator).div_(d**0.5).requires_grad_()
    samples, readout = Samples(values, offsets, n), torch.randn(n, 2, d, d, dtype=F64, generator=generator)
    plain = factored_kernel.propagate_plainly(method.table, samples, steps)
    expected = torch.autograd.grad((plain * readout).sum(), values)[0]
    for bytes_kept, cache in ((1 << 28, 1 << 20), (0, 1 << 20), (1 << 28, 30_000), (0, 30_000)):  # one chunk, or some
        monkeypatch.setattr(slices, "KEEP_BYTES", bytes_kept)
        monkeypatch.setattr(wilson_chunks, "CACHE_BYTES", cache)
        lines = method.mixed.propagators(samples, steps)
        close(lines.detach(), plain.detach(), 3e-7 * float(steps.max()) ** 2)
        close(torch.autograd.grad((lines * readout).sum(), values)[0], expected, 3e-7 * float(steps.max()))


def test_gradients_and_second_derivatives():
    w, table = table_of(24)

    def gradient(**options):
        value = wilson(with_table(w, table), EDGES, **options).total
        return torch.autograd.grad(value.square().sum(), table)[0]

    exact = gradient(slices=12)
    for options in ({"slices": 12, "method": "dyson6", "mixed": True}, {"tolerance": 1e-6}):
        assert wilson(w, EDGES, **options).mixed
        assert float((gradient(**options) - exact).abs().max()) < 1e-6 * float(exact.abs().max())
    w, table = table_of(2)

    def line(table, mixed=True):
        return wilson(with_table(w, table), [0.0, 1.0], slices=3, method="dyson6", mixed=mixed).total

    seconds = []
    for mixed in (True, False):
        (slope,) = torch.autograd.grad(line(table, mixed).square().sum(), table, create_graph=True)
        seconds.append(torch.autograd.grad(slope.square().sum(), table)[0])
    close(*seconds, 1e-6)  # differentiates the plain operations
    jacobian = torch.func.jacfwd(line)(table.detach())
    close(torch.func.jacrev(line)(table.detach()), jacobian, 1e-13)


def test_gradients_of_edges_go_through_plain_operations():
    edges = torch.tensor([0.1, 0.4, 0.9], dtype=F64, requires_grad=True)
    slopes = [
        torch.autograd.grad(wilson(Smooth(3), edges, slices=8, method="dyson6", mixed=mixed).total.sum(), edges)[0]
        for mixed in (True, False)
    ]
    close(*slopes, 1e-14)


# inputs


def test_affine_lines_batches_and_reverse():
    w, b = Smooth(20, shape=(2,)), Smooth(20, seed=2, shape=(2,))
    column = lambda t: b(t)[..., 0]  # noqa: E731
    options = {"slices": [4, 3, 7, 6], "method": "dyson6"}
    for reverse in (False, True):
        full = wilson(w, EDGES, column, reverse=reverse, **options)
        mixed = wilson(w, EDGES, column, reverse=reverse, mixed=True, **options)
        assert mixed.layers.shape == (4, 2, 21, 21)
        close(mixed.layers, full.layers, 5e-8)
        assert (mixed.total[..., -1, :-1] == 0).all() and (mixed.total[..., -1, -1] == 1).all()
        lines = wilson(w, EDGES, column, tolerance=1e-6, reverse=reverse)
        assert lines.mixed
        close(lines.layers, wilson(w, EDGES, column, reverse=reverse).layers, 3e-6)


def test_dtypes():
    single = wilson(Smooth(20, dtype=torch.float32), EDGES, slices=4, method="dyson6", mixed=True)
    assert single.layers.dtype == torch.float32 and not single.mixed  # there is no half of float32
    close(single.layers, wilson(Smooth(20, dtype=torch.float32), EDGES, slices=4, method="dyson6").layers, 0.0)
    both = Smooth(20, dtype=torch.complex128)
    mixed = wilson(both, EDGES, slices=8, mixed=True)
    assert mixed.mixed and mixed.method == "dyson6" and mixed.layers.dtype == torch.complex128
    close(mixed.layers, wilson(both, EDGES, slices=8, method="dyson6").layers, 1e-8)


def test_options_that_contradict_each_other():
    w = Smooth(3)
    with pytest.raises(InputError, match="given slices"):
        wilson(w, EDGES, mixed=True)
    for options in ({"method": "rk8"}, {"method": "magnus6"}):
        with pytest.raises(InputError, match="half the precision"):
            wilson(w, EDGES, slices=3, mixed=True, **options)
    with pytest.raises(InputError, match="group"):
        wilson(w, EDGES, slices=3, mixed=True, group_preserving=True)
