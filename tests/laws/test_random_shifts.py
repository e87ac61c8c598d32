"""Shifts are never wrong: random acyclic networks where one tensor has many readers and one parameter many uses."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchgauge as tg

D, T, V = 4, 3, 9
SHAPES = {
    "linear": (D, D),
    "bias": (D,),
    "place": (T, D),
    "column": (T, 1),
    "number": (1,),
    "table": (V, D),
    "gain": (D,),
    "log": (D,),
    "low": (4, D),
    "ask": (D,),
}
SHARED = ("linear", "bias", "place", "column", "number", "table", "log", "gain", "low", "ask")
PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "minus": lambda x, y: x - 2 * y,
    "norm": lambda x, y: F.layer_norm(x, (D,)),
    "rms": lambda x, y: F.rms_norm(x, (D,), eps=1e-3),
    "tanh": lambda x, y: torch.tanh(x),
    "relu": lambda x, y: torch.relu(x),
    "exp": lambda x, y: torch.exp(torch.tanh(x)),
    "softmax": lambda x, y: x.softmax(-1),
    "average": lambda x, y: (y @ y.mT).softmax(-1) @ x,
    "mean": lambda x, y: x + y.mean(1, keepdim=True),
    "scale": lambda x, y: 0.7 * x,
    "sum": lambda x, y: x + x.sum(-1, keepdim=True),
    "shuffle": lambda x, y: x.transpose(0, 1).reshape(T, T, 2, 2).flatten(2).transpose(0, 1),
    "tokens": lambda x, y: torch.cat((x[:, :1], y[:, 1:]), 1),
    "joined": lambda x, y: F.layer_norm(torch.cat((x, y), -1), (2 * D,))[..., 1 : D + 1],
    "filter": lambda x, y: x + F.avg_pool1d(y.mT, 3, 1, 1, count_include_pad=False).mT,
    "across": lambda x, y: ((x.mT - 0.3) * torch.arange(1.0, D + 1, dtype=x.dtype)[:, None]).mT,
    "halves": lambda x, y: torch.cat((x[..., :2], y[..., 2:]), -1),
}
WEIGHTS = {"linear": 6, "bias": 5, "add": 4, "table": 2, "norm": 2, "score": 2}


class Acyclic(nn.Module):
    """Each step reads earlier results; a third of the parameters is used again; a table may score words."""

    def __init__(self, seed: int, steps: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.pool, self.plan = nn.ParameterDict(), []
        self.read = nn.Linear(3, D)
        kinds = [*SHAPES, *PLAIN, "score"]
        count = 1
        for kind in draw.choices(kinds, [WEIGHTS.get(k, 1) for k in kinds], k=steps):
            a = count - 1 if draw.random() < 0.5 else draw.randrange(count)
            name = self._parameter(draw, "table" if kind == "score" else kind)
            self.plan.append((kind, a, draw.randrange(count), name, draw.random()))
            count += kind != "score"
        if draw.random() < 0.4:
            self._add_parallel(draw, count)
            count += 3
        self.ends = sorted({draw.randrange(count), draw.randrange(count), count - 1})
        self.heads = nn.ModuleList(nn.Linear(D, 2) for _ in self.ends)
        self.out = nn.Parameter(torch.zeros(V)) if draw.random() < 0.7 else None

    def _add_parallel(self, draw: random.Random, count: int) -> None:
        """Two linear maps of one tensor, each with its bias, and their sum."""
        a = draw.randrange(count)
        for _ in range(2):
            self.plan.append(("both", a, a, self._parameter(draw, "linear") + " " + self._parameter(draw, "bias"), 0.0))
        self.plan.append(("minus" if draw.random() < 0.5 else "add", count, count + 1, "", 0.0))

    def _parameter(self, draw: random.Random, stem: str) -> str:
        if stem not in SHAPES:
            return ""
        known = [n for n in self.pool if n.startswith(stem)]
        if known and stem in SHARED and draw.random() < 0.35:
            return draw.choice(known)
        self.pool[f"{stem}{len(self.pool)}"] = nn.Parameter(torch.zeros(SHAPES[stem]))
        return list(self.pool)[-1]

    def forward(self, z: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        xs, scores = [self.read(z)], []
        for kind, a, b, name, u in self.plan:
            x, p = xs[a], self.pool[name] if name and kind != "both" else None
            if kind == "both":
                w, v = (self.pool[part] for part in name.split())
                xs.append(x @ w.T + v)
            elif kind == "score":
                s = x @ p.T if self.out is None or u > 0.7 else x @ p.T + self.out
                scores.append(s.log_softmax(-1) if u > 0.8 else s)
            elif kind == "linear":
                xs.append(x @ (p.T if u < 0.5 else p))
            elif kind == "table":
                xs.append(x + p[ids])
            elif kind == "gain":
                xs.append(x * p)
            elif kind == "low":  # a narrow map and a wide one, two parts of one parameter
                xs.append((x @ p[:2].T) @ p[2:] + (x if u < 0.3 else 0))
            elif kind == "ask":  # one learned query, mapped as other vectors are where there is a map
                query = p @ next(
                    (w for n, w in self.pool.items() if n.startswith("linear")), torch.eye(D, dtype=x.dtype)
                )
                xs.append(x + (x @ query).softmax(-1)[..., None] * x if u < 0.5 else x + query)
            elif kind == "log":
                xs.append(x * torch.exp(p) if u < 0.4 else torch.exp((torch.tanh(x) + p) * (0.5 if u < 0.6 else 1.0)))
            elif p is not None:
                xs.append(x + p if u < 0.7 else x - 0.5 * p)
            else:
                xs.append(PLAIN[kind](x, xs[b]))
        ends = [head(xs[e]) for e, head in zip(self.ends, self.heads, strict=True)]
        return *(torch.tanh(y) if i % 2 else y for i, y in enumerate(ends)), *scores


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(T, T, 3, generator=g, dtype=torch.float64), torch.randint(V, (T, T), generator=g)


def generic(model: nn.Module, seed: int) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    model = model.double().requires_grad_(False)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * (0.5 if p.ndim > 1 else 1.0))
    return model


def assert_acts(model: nn.Module, make: Callable[[int], tuple[Tensor, ...]]) -> tg.GaugeGroup:
    """Elements leave the function, and act as a group."""
    group, state = tg.infer(model, make(0)), model.state_dict()
    g, h = (group.random(torch.Generator().manual_seed(seed), scale=0.5) for seed in (1, 2))
    moved = group.act(g, state)
    for seed in (10, 11):
        old, new = model(*make(seed)), torch.func.functional_call(model, moved, make(seed))
        for a, b in zip(old, new, strict=True):
            assert float((a - b).abs().max()) <= 1e-10 * float(1e-3 + a.abs().max())
    for one, two in ((group.act(g.inverse(), moved), state), (group.act(h, moved), group.act(h @ g, state))):
        assert max(float((one[n] - two[n]).abs().max() / (1 + two[n].abs().max())) for n in state) <= 1e-9
    return group


@pytest.mark.parametrize("seed", range(60))
def test_random_acyclic_networks(seed: int) -> None:
    assert_acts(generic(Acyclic(seed, 3 + seed % 12), seed), inputs)


class Step(nn.Module):
    """A function of a module with the given parts."""

    def __init__(self, fn: Callable[..., tuple[Tensor, ...]], **parts: nn.Module | tuple[int, ...]) -> None:
        super().__init__()
        self.fn = fn
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(torch.zeros(part)))

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        return self.fn(self, *args)


def crossing(m, z: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    """Two biases that would each be solved by means of the other."""
    u, v = m.a(z), m.b(z)
    left = torch.tanh(v + m.k(u))
    right = torch.tanh((m.c(z.sin()) + u) + m.l(v))
    return m.x(left), m.y(right)


def linear(a: int, b: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(a, b, bias=bias)


TRAPS = {
    "two biases that depend on one another": Step(
        crossing,
        a=linear(3, D),
        b=linear(3, D),
        c=linear(3, D),
        k=linear(D, D, False),
        l=linear(D, D, False),
        x=linear(D, 2),
        y=linear(D, 2),
    ),
    "a norm ignores a shift that another reader sees": Step(
        lambda m, z, ids: (m.x(m.a(z) + m.s), m.y(torch.tanh(F.layer_norm(m.a(z) + m.s, (D,))))),
        a=linear(3, D),
        s=(T, 1),
        x=linear(D, 2),
        y=linear(D, 2),
    ),
    "one number behind a norm": Step(
        lambda m, z, ids: (m.x(F.layer_norm(m.a(z), (D,)) + m.s),), a=linear(3, D), s=(1,), x=linear(D, 2)
    ),
    "a shift meets a weight whose change a softmax ignores": Step(
        lambda m, z, ids: (m.y((m.a(z) @ m.w.T + m.e[ids]).softmax(-1)), m.x(z.softmax(-1) @ m.k.T @ m.w)),
        a=linear(3, D),
        w=(D, D),
        e=(V, D),
        k=(D, 3),
        x=linear(D, 2),
        y=linear(D, 2),
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_traps(name: str) -> None:
    assert_acts(generic(TRAPS[name], 3), inputs)


def test_a_value_bias_is_stopped_where_it_can_be_absorbed() -> None:
    """Readers of a biased norm have no bias: each takes a shift off along its unreachable direction."""
    model = Step(
        lambda m, z, ids: (m.o(F.layer_norm(m.a(z) + m.v(F.layer_norm(m.a(z), (D,)) * m.g + m.b), (D,))),),
        a=linear(3, D),
        g=(D,),
        b=(D,),
        v=linear(D, D, False),
        o=linear(D, 2),
    )
    group = assert_acts(generic(model, 5), inputs)
    assert any(f.kind == "shift" and "b" in f.parameters for f in group.factors)


def test_a_table_that_is_its_own_decoder_moves_as_a_whole() -> None:
    model = Step(
        lambda m, z, ids: ((F.layer_norm(torch.tanh(m.w[ids] + m.s) @ m.k, (D,)) * m.g + m.c) @ m.w.T + m.b,),
        w=(V, D),
        c=(D,),
        s=(D,),
        k=(D, D),
        g=(D,),
        b=(V,),
    )
    group = assert_acts(generic(model, 5), inputs)
    (factor,) = [f for f in group.factors if f.kind == "shift" and "w" in f.parameters]
    assert factor.dimension == 1
    assert set(factor.parameters) == {"w", "s", "b"}


def test_depth_costs_in_proportion() -> None:
    """Residual linear maps: every shift reaches everything behind it, by twice as many paths with each layer."""
    layers = 60
    model = Step(
        lambda m, z, ids: (m.o(_residual(m.l, m.i(z))),),
        i=linear(3, D),
        l=nn.ModuleList(linear(D, D) for _ in range(layers)),
        o=linear(D, 2),
    )
    model = generic(model, 1)
    with torch.no_grad():
        for layer in model.l:
            layer.weight.mul_(0.05)
    group = assert_acts(model, inputs)
    assert sum(f.kind == "shift" for f in group.factors) == layers + 1


def _residual(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        x = x + layer(x)
    return x
