"""Wilson lines: identities to rounding, orders, tolerances, every way to pass w, named errors."""

from __future__ import annotations

import math

import pytest
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.ode.errors import FieldError, SolverError
from torchgauge.ode.fields import LinearField
from torchgauge.ode.paths import Sampled
from torchgauge.ode.products import ordered_products, prefix_products
from torchgauge.ode.runge_kutta import RK8
from torchgauge.ode.runge_kutta_kernel import propagate_plainly
from torchgauge.ode.wilson import METHODS, WilsonLines, wilson
from torchgauge.ode.wilson_grid import even, sample
from torchgauge.ode.wilson_source import Edges, EdgesError, Source

F64 = torch.float64


class Smooth:
    """Five Fourier modes and a mean, for times [n]."""

    def __init__(
        self, d: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = F64, shape: tuple[int, ...] = ()
    ):
        generator = torch.Generator().manual_seed(seed)
        real = torch.randn(11, *shape, d, d, generator=generator, dtype=F64) * scale / d**0.5
        if dtype.is_complex:
            real = torch.complex(real, torch.randn(real.shape, generator=generator, dtype=F64) * scale / d**0.5)
        self.table = real.to(dtype)

    def waves(self, t: Tensor) -> Tensor:
        phase = 2 * math.pi * t[:, None] * torch.arange(1, 6, dtype=t.dtype)
        return torch.cat([torch.ones_like(t[:, None]), phase.cos(), phase.sin()], 1)

    def __call__(self, t: Tensor) -> Tensor:
        return torch.tensordot(self.waves(t).to(self.table.dtype), self.table, 1)


def antisymmetric(w):
    return lambda t: w(t) - w(t).mH


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    gap = float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
    assert gap <= tolerance, gap


EDGES = torch.tensor([0.0, 0.2, 0.35, 0.7, 1.0], dtype=F64)


# identities


@pytest.mark.parametrize("d", [1, 2, 5, 24])
def test_lines_compose(d):
    w = Smooth(d)
    lines = wilson(w, EDGES)
    close(lines.total, wilson(w, [0.0, 1.0]).total)
    close(lines.prefix[2], wilson(w, [0.0, 0.35]).total)
    product = torch.eye(d, dtype=F64)
    for n, layer in enumerate(lines.layers):
        close(lines.prefix[n], product)
        product = layer @ product
    close(lines.total, product)


@pytest.mark.parametrize("method", METHODS)
def test_a_line_back_is_the_inverse(method):
    w, slices = Smooth(6), 400 if METHODS[method].order == 4 else 100
    there = wilson(w, EDGES, slices=slices, method=method)
    back = wilson(w, EDGES, slices=slices, method=method, reverse=True)
    one = torch.eye(6, dtype=F64)
    # one order more than the method has: steps there and back are not exactly adjoint
    accuracy = 1e-12 if METHODS[method].order > 4 or "magnus" in method else 1e-9
    close(back.total @ there.total, one, accuracy)
    for n in range(4):
        close(back.layers[3 - n] @ there.layers[n], one, accuracy)
    close(back.edges, EDGES.flip(0))
    close(back.total, wilson(w, EDGES.flip(0), slices=slices, method=method).total)


def test_reversal_of_time_is_another_field():
    w = Smooth(5)
    close(wilson(lambda t: -w(1 - t), [0.0, 1.0]).total, wilson(w, [1.0, 0.0]).total)


def test_the_determinant_is_the_exponential_of_the_trace():
    w = Smooth(7)
    line = wilson(w, EDGES).layers
    x, weight = (torch.from_numpy(v) for v in leggauss(40))
    for n, layer in enumerate(line):
        a, b = EDGES[n], EDGES[n + 1]
        trace = w(a + (b - a) * (x + 1) / 2).diagonal(dim1=1, dim2=2).sum(1)
        close(torch.linalg.det(layer), torch.exp((weight * trace).sum() * (b - a) / 2))


def test_gauge_covariance():
    """w ↦ (g w + ġ) g^{-1} takes W to g(1) W g(0)^{-1}, with a path g that is not the identity anywhere."""
    d = 5
    w, x = Smooth(d), Smooth(d, seed=1, scale=0.3)

    def g(t: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x(t[None])[0])

    def moved(t: Tensor) -> Tensor:
        value, rate = torch.func.jvp(g, (t,), (torch.ones_like(t),))
        return (value @ w(t[None])[0] + rate) @ torch.linalg.inv(value)

    lines, other = wilson(w, EDGES, tolerance=1e-14), wilson(moved, EDGES, tolerance=1e-14)
    ends = [g(t) for t in EDGES]
    for n in range(4):
        close(other.layers[n], ends[n + 1] @ lines.layers[n] @ torch.linalg.inv(ends[n]))


def test_affine_lines():
    d = 4
    w, b = Smooth(d), Smooth(d, seed=2)
    column = lambda t: b(t)[..., 0]  # noqa: E731
    lines = wilson(w, EDGES, column)
    assert lines.affine and lines.layers.shape == (4, d + 1, d + 1)
    weight, bias = lines.split(lines.total)
    close(weight, wilson(w, [0.0, 1.0]).total)
    # β = ∫ W_{1:t} b(t) dt, with the lines back from the end at Gauss nodes (28)
    x, q = (torch.from_numpy(v) for v in leggauss(70))
    nodes = (x + 1) / 2
    back = wilson(w, torch.cat([torch.ones(1, dtype=F64), nodes.flip(0)])).prefix[1:].flip(0)
    close(bias, (q[:, None] / 2 * torch.linalg.solve(back, column(nodes)[..., None])[..., 0]).sum(0))
    last = lines.total[-1]
    assert last[:-1].abs().max() == 0 and last[-1] == 1
    weight, bias = lines.split(lines.layers)
    close(weight[1] @ bias[0] + bias[1], lines.split(lines.prefix[2])[1])
    homogeneous, zero = wilson(w, EDGES).split(lines.layers[:, :d, :d])
    assert homogeneous.shape == (4, d, d) and zero.abs().max() == 0


def test_a_constant_field():
    a = torch.randn(6, 6, dtype=F64, generator=torch.Generator().manual_seed(3))
    close(wilson(a, [0.0, 1.5]).total, torch.linalg.matrix_exp(1.5 * a))
    close(wilson(lambda t: a, [0.5, 0.0]).total, torch.linalg.matrix_exp(-0.5 * a))


@pytest.mark.parametrize("method", [name for name, known in METHODS.items() if known.group_preserving])
@pytest.mark.parametrize("dtype", [F64, torch.complex128])
def test_group_preserving_methods_stay_orthogonal(method, dtype):
    w = antisymmetric(Smooth(6, scale=2.0, dtype=dtype))
    for slices in (1, 3, 10):  # however bad the step
        line = wilson(w, EDGES, slices=slices, method=method, group_preserving=True).total
        close(line @ line.mH, torch.eye(6, dtype=dtype), 1e-13)
    chosen = wilson(w, EDGES, tolerance=1e-8, group_preserving=True)
    assert chosen.method == "magnus6"
    close(chosen.total @ chosen.total.mH, torch.eye(6, dtype=dtype), 1e-13)
    close(chosen.total, wilson(w, EDGES).total, 1e-7)


# methods


@pytest.mark.parametrize("d", [3, 40])
def test_slices_of_unequal_length(d):
    """Steps that differ within one batch go another way through the kernel."""
    w = Smooth(d)
    edges = Edges.of(EDGES)
    mesh = even([1, 2, 3, 1])
    samples = sample(Source(w, None, edges), mesh, edges, RK8.nodes)
    steps = mesh.steps(edges)
    close(RK8.propagators(samples, steps), propagate_plainly(RK8.tableau, samples, steps), 1e-14)
    for method in ("rk8", "dyson4", "dyson6"):
        lines = wilson(w, EDGES, slices=[3, 2, 5, 4], method=method)
        assert lines.slices == (3, 2, 5, 4)
        for n, count in enumerate(lines.slices):
            close(lines.layers[n], wilson(w, EDGES[n : n + 2], slices=count, method=method).total, 1e-14)


def test_wide_matrices_are_taken_by_columns():
    d = 300
    w = Smooth(d, scale=0.5)
    edges = Edges.of([0.0, 0.05])
    mesh = even([2])
    samples = sample(Source(w, None, edges), mesh, edges, RK8.nodes)
    close(
        RK8.propagators(samples, mesh.steps(edges)), propagate_plainly(RK8.tableau, samples, mesh.steps(edges)), 1e-14
    )


def test_ordered_products():
    factors = torch.randn(11, 2, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    for counts in ([11], [1] * 11, [3, 1, 4, 3], [2, 2, 7]):
        products, start = ordered_products(factors, counts), 0
        for n, count in enumerate(counts):
            expected = factors[start]
            for k in range(1, count):
                expected = factors[start + k] @ expected
            close(products[n], expected, 1e-13)
            start += count
    for n in range(1, 12):
        prefixes = prefix_products(factors[:n])
        close(prefixes[-1], ordered_products(factors[:n], [n])[0], 1e-13)
        close(prefixes[1:] @ torch.eye(3, dtype=F64), factors[:n] @ prefixes[:-1], 1e-13)
    big = torch.randn(5, 1, 40, 40, dtype=F64, generator=torch.Generator().manual_seed(1))
    close(prefix_products(big)[-1], ordered_products(big, [5])[0], 1e-13)


# tolerances


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("d", [4, 32])
def test_the_tolerance_is_met(method, d):
    w = Smooth(d)
    exact = wilson(w, [0.0, 1.0], slices=200).total
    for tolerance in (1e-4, 1e-7):
        lines = wilson(w, [0.0, 1.0], tolerance=tolerance, method=method)
        error = float((lines.total - exact).norm()) / d**0.5
        assert error <= tolerance and lines.error <= tolerance
        assert error <= 3 * lines.error  # the estimate is honest


def test_the_mesh_follows_the_field():
    """A burst takes its slices where it is."""

    def w(t: Tensor) -> Tensor:
        burst = 30 * torch.exp(-((t - 0.8) ** 2) / 2e-4)[:, None, None]
        return burst * torch.tensor([[0.0, 1.0], [-1.0, 0.5]], dtype=F64) + torch.eye(2, dtype=F64)

    lines = wilson(w, torch.linspace(0, 1, 11, dtype=F64), tolerance=1e-9)
    assert max(lines.slices[:6]) < 0.5 * max(lines.slices)
    exact = wilson(w, torch.linspace(0, 1, 11, dtype=F64), slices=200)
    errors = (lines.layers - exact.layers).flatten(1).norm(dim=1) / exact.layers.flatten(1).norm(dim=1)
    assert errors.max() < 1e-9 and lines.error < 1e-9


def test_many_short_layers_take_a_cheaper_method():
    lines = wilson(Smooth(20, scale=0.1), torch.linspace(0, 1, 65, dtype=F64), tolerance=1e-5)
    assert lines.method == "dyson4" and set(lines.slices) == {1}
    exact = wilson(Smooth(20, scale=0.1), lines.edges)
    assert float((lines.layers - exact.layers).flatten(1).norm(dim=1).max()) / 20**0.5 < 1e-5


@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_single_slices_of_layers_are_judged_by_a_better_method(scale):
    """One slice of a layer is taken where that meets the tolerance, and not where it does not."""
    w, edges = Smooth(20, scale=scale), torch.linspace(0, 1, 33, dtype=F64)
    exact, methods = wilson(w, edges, tolerance=1e-13).layers, set()
    for tolerance in (1e-4, 1e-6, 1e-8, 1e-10):
        lines = wilson(w, edges, tolerance=tolerance)
        error = (lines.layers - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        assert float(error.max()) < tolerance and lines.error < tolerance
        methods.add(lines.method)
    assert methods == {0.1: {"dyson4", "dyson6"}, 1.0: {"dyson4", "dyson6", "rk8"}, 6.0: {"dyson6", "rk8"}}[scale]


def test_what_is_kept_between_calls_cannot_be_changed_from_outside():
    def spoiled(t):
        t = t.mul_(2)  # in place
        return t[:, None, None].cos() * torch.ones(1, 2, 2, dtype=F64)

    first = wilson(spoiled, [0.0, 1.0], slices=3).total
    close(wilson(spoiled, [0.0, 1.0], slices=3).total, first, 1e-15)


def test_w_is_called_once_where_that_is_enough():
    calls = []

    def counted(t):
        calls.append(len(t))
        return Smooth(3)(t)

    wilson(counted, [0.0, 1.0], slices=4)
    assert calls == [17]


def test_jumps_are_allowed_at_edges():
    a, b = torch.randn(2, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(4))
    w = lambda t: torch.where((t < 0.4)[:, None, None], a, b)  # noqa: E731
    exact = torch.linalg.matrix_exp(0.6 * b) @ torch.linalg.matrix_exp(0.4 * a)
    lines = wilson(w, [0.0, 0.4, 1.0])
    close(lines.total, exact)
    assert max(lines.slices) < 100
    with pytest.raises(SolverError, match="edge where w jumps"):
        wilson(w, [0.0, 1.0], tolerance=1e-12, max_slices=300)
    close(wilson(w, [0.0, 0.4, 1.0], reverse=True).total, torch.linalg.inv(exact))


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_sampled_fields_are_integrated_knot_by_knot(kind):
    times = torch.linspace(0, 1, 8, dtype=F64)
    path = Sampled(times, Smooth(3)(times), kind)
    lines = wilson(path, [0.0, 0.5, 1.0], tolerance=1e-12)
    fine = wilson(path, times, slices=40)
    close(lines.total, fine.total, 1e-11)
    assert max(lines.slices) < 200
    close(wilson(LinearField(path), [0.0, 0.5, 1.0], tolerance=1e-12).total, lines.total, 1e-13)


# inputs


class Net(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.d, self.layer = d, nn.Linear(1, d * d)

    def forward(self, t: Tensor) -> Tensor:
        return self.layer(t[..., None]).tanh().unflatten(-1, (self.d, self.d))


@pytest.mark.parametrize("d", [2, 3, 7])
def test_all_ways_to_pass_w(d):
    w = Smooth(d)
    expected = wilson(w, EDGES)
    one = lambda t: w(t.reshape(1))[0]  # noqa: E731
    close(wilson(one, EDGES).total, expected.total, 1e-14)

    def python(t: Tensor) -> Tensor:
        phases = [2 * math.pi * k * float(t) for k in range(1, 6)]
        waves = torch.tensor([1.0, *map(math.cos, phases), *map(math.sin, phases)], dtype=F64)
        return torch.tensordot(waves, w.table, 1)

    close(wilson(python, EDGES, slices=5).total, wilson(w, EDGES, slices=5).total, 1e-13)
    last = lambda t: torch.stack([w(s.reshape(1))[0] for s in t.reshape(-1)], -1)  # noqa: E731
    with pytest.raises(FieldError):
        wilson(last, EDGES)  # time as the last axis is no convention
    field = LinearField(w=one, b=lambda t: one(t)[0], span=(0.0, 1.0))
    close(wilson(field, EDGES).total, wilson(w, EDGES, lambda t: w(t)[:, 0]).total, 1e-13)
    lines = wilson(LinearField(w=one), EDGES.tolist())
    assert not lines.affine
    close(lines.total, expected.total, 1e-13)


def test_dtype_and_device_follow_w():
    torch.manual_seed(0)
    net = Net(4)
    lines = wilson(net, EDGES)  # a module takes times in its own dtype
    assert isinstance(lines, WilsonLines) and lines.layers.dtype == torch.float32
    exact = wilson(net.double(), EDGES).total
    assert float((lines.total - exact).detach().abs().max()) < 1e-5
    single = Smooth(5, dtype=torch.float32)
    assert wilson(single, EDGES.float(), method="magnus6").total.dtype == torch.float32
    both = Smooth(5, dtype=torch.complex128)
    assert wilson(both, EDGES).total.dtype == torch.complex128
    close(wilson(both, EDGES).total, wilson(both, EDGES, method="magnus6").total, 1e-9)
    assert wilson(single, [0, 1], slices=2).total.dtype == torch.float32
    assert wilson(Smooth(3), [0, 1], slices=2).total.dtype == F64


def test_batches_of_fields():
    w, b = Smooth(3, shape=(2, 4)), Smooth(3, seed=1, shape=(2, 4))
    lines = wilson(w, EDGES, lambda t: b(t)[..., 0])
    assert lines.layers.shape == (4, 2, 4, 4, 4) and lines.prefix.shape == (5, 2, 4, 4, 4)
    single = wilson(lambda t: w(t)[:, 1, 2], EDGES, lambda t: b(t)[:, 1, 2, :, 0])
    close(lines.layers[:, 1, 2], single.layers)
    close(lines.prefix[:, 1, 2], single.prefix)
    close(lines.total[1, 2], single.total)
    assert lines.split(lines.layers)[1].shape == (4, 2, 4, 3)


# errors


def test_wrong_shapes_are_named():
    with pytest.raises(FieldError, match=r"square matrix \[d, d\] at every time, and has shape \[3, 2, 3\]"):
        wilson(lambda t: torch.zeros(len(t), 2, 3, dtype=F64), EDGES)
    with pytest.raises(FieldError, match=r"b\(t\) must be a vector \[2\].* has shape \[3\]"):
        wilson(Smooth(2), EDGES, lambda t: torch.zeros(len(t), 3, dtype=F64))
    with pytest.raises(FieldError, match="a b of its own"):
        wilson(LinearField(torch.eye(2)), EDGES, torch.zeros(2))
    with pytest.raises(FieldError, match="Sampled"):
        wilson([1, 2], EDGES)  # pyright: ignore[reportArgumentType]


def test_numbers_that_are_not_finite_are_named_with_their_time():
    def w(t: Tensor) -> Tensor:
        return (0.5 - t).sqrt()[:, None, None] * torch.eye(2, dtype=F64)

    for options in ({}, {"slices": 7}, {"method": "magnus4", "slices": 3}):
        with pytest.raises(FieldError, match=r"not finite at t = 0\.[5-9]"):
            wilson(w, EDGES, **options)
    with pytest.raises(SolverError, match="overflows"):
        wilson(1e6 * torch.eye(2, dtype=F64), EDGES, slices=40)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([0.0], "L ≥ 1"),
        ([[0.0, 1.0]], "L ≥ 1"),
        ([0.0, 0.5, 0.5, 1.0], "0.5 follows 0.5"),
        ([1.0, 0.5, 0.7], "0.7 follows 0.5"),
        ([0.0, float("nan"), 1.0], "must be finite"),
    ],
)
def test_bad_edges(edges, message):
    with pytest.raises(EdgesError, match=message) as caught:
        wilson(Smooth(2), edges)
    assert caught.value.remedy


def test_bad_options():
    w = Smooth(2)
    with pytest.raises(InputError, match="no method is called 'euler'"):
        wilson(w, EDGES, method="euler")
    with pytest.raises(InputError, match="does not keep lines in the group"):
        wilson(w, EDGES, method="rk8", group_preserving=True)
    with pytest.raises(InputError, match="cannot both be met"):
        wilson(w, EDGES, tolerance=1e-3, slices=4)
    with pytest.raises(InputError, match="each of the 4 layers"):
        wilson(w, EDGES, slices=[1, 2])
    with pytest.raises(InputError, match="must be positive"):
        wilson(w, EDGES, tolerance=0.0)
