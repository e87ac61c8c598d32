"""Catalogue 1.6: recurrent layers, state-space models and gated linear recurrences, a few steps long."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.blocks import normal
from tests.zoo.case import Case


class Read(nn.Module):
    """A recurrent layer of torch, its whole output read by a linear map."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0])


class LastState(nn.Module):
    """A recurrent layer of torch of which the last hidden state is read."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self.out = nn.Linear(layer.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = self.layer(x)[1]
        return self.out((state[0] if isinstance(state, tuple) else state)[-1])


class Started(nn.Module):
    """A recurrent layer of torch whose first state is a parameter, or an input."""

    def __init__(self, layer: nn.RNNBase, learned: bool) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(layer.hidden_size, 2)
        self.first = nn.Parameter(torch.zeros(1, 1, layer.hidden_size)) if learned else None

    def forward(self, x: Tensor, first: Tensor | None = None) -> Tensor:
        h = self.first.expand(-1, x.shape[0], -1) if self.first is not None else first
        return self.out(self.layer(x, h)[0])


class Chained(nn.Module):
    """A linear map with a bias in front of a recurrent layer: its bias trades with those of the gates."""

    def __init__(self, d: int, layer: nn.RNNBase) -> None:
        super().__init__()
        self.before, self.layer = nn.Linear(d, layer.input_size), layer
        self.out = nn.Linear(layer.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.before(x))[0])


class WrittenRNN(nn.Module):
    """h ← tanh(W x + b + U h + c) with two Linear layers: the biases b and c trade."""

    def __init__(self, d: int, n: int) -> None:
        super().__init__()
        self.enter, self.recur, self.out = nn.Linear(d, n), nn.Linear(n, n), nn.Linear(n, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.recur.in_features)
        for t in range(x.shape[1]):
            h = torch.tanh(self.enter(x[:, t]) + self.recur(h))
        return self.out(h)


class Cells(nn.Module):
    """A cell of torch in a loop over the steps of x [batch, steps, features]."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell
        self.out = nn.Linear(cell.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        state: Tensor | tuple[Tensor, Tensor] | None = None
        hidden = []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            hidden.append(state[0] if isinstance(state, tuple) else state)
        return self.out(torch.stack(hidden, 1))


class WrittenLSTM(nn.Module):
    """An LSTM cell with one Linear on [x, h], as older code has it."""

    def __init__(self, d: int, n: int) -> None:
        super().__init__()
        self.gates = nn.Linear(d + n, 4 * n)
        self.out = nn.Linear(n, 2)
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.n)
        for t in range(x.shape[1]):
            i, f, g, o = self.gates(torch.cat((x[:, t], h), -1)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


class DenseStates(nn.Module):
    """h ← A h + B x, y = C h (+ D x): any change of basis of the state."""

    def __init__(self, d: int, n: int, out: int, skip: bool = False) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(n, n))
        self.b = nn.Linear(d, n, bias=False)
        self.c = nn.Linear(n, out, bias=False)
        self.d = nn.Linear(d, out, bias=False) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.a.shape[0])
        y = []
        for t in range(x.shape[1]):
            h = h @ self.a.T + self.b(x[:, t])
            y.append(self.c(h) if self.d is None else self.c(h) + self.d(x[:, t]))
        return torch.stack(y, 1)


class DiagonalStates(nn.Module):
    """h ← exp(−exp(a)) ⊙ h + B x, y = C h."""

    def __init__(self, d: int, n: int, out: int) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.zeros(n))
        self.b = nn.Linear(d, n, bias=False)
        self.c = nn.Linear(n, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.exp(-torch.exp(self.log_rate))
        h = x.new_zeros(x.shape[0], keep.shape[0])
        y = []
        for t in range(x.shape[1]):
            h = keep * h + self.b(x[:, t])
            y.append(self.c(h))
        return torch.stack(y, 1)


class KernelStates(nn.Module):
    """The same as a long convolution with the kernel K_t = C diag(a)^t B, without a loop."""

    def __init__(self, d: int, n: int, out: int) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.zeros(n))
        self.b = nn.Parameter(torch.zeros(n, d))
        self.c = nn.Parameter(torch.zeros(out, n))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], dtype=x.dtype)
        powers = torch.exp(-torch.exp(self.log_rate)[:, None] * steps)
        kernel = torch.einsum("on,nt,nd->odt", self.c, powers, self.b)
        padded = F.pad(x.transpose(1, 2), (x.shape[1] - 1, 0))
        return F.conv1d(padded, kernel.flip(-1))


class MinimalGated(nn.Module):
    """h ← (1 − z) h + z · candidate with z = σ(W x) and a linear candidate: a gated linear recurrence."""

    def __init__(self, d: int, n: int) -> None:
        super().__init__()
        self.gate, self.candidate, self.out = nn.Linear(d, n), nn.Linear(d, n), nn.Linear(n, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.gate.out_features)
        y = []
        for t in range(x.shape[1]):
            z = torch.sigmoid(self.gate(x[:, t]))
            h = (1 - z) * h + z * self.candidate(x[:, t])
            y.append(self.out(h))
        return torch.stack(y, 1)


class ScannedGated(nn.Module):
    """The same recurrence in closed form: decays by a cumulative sum of logarithms, then one masked product."""

    def __init__(self, d: int, n: int, cumprod: bool = False) -> None:
        super().__init__()
        self.gate, self.candidate, self.out = nn.Linear(d, n), nn.Linear(d, n), nn.Linear(n, 2)
        self.cumprod = cumprod

    def forward(self, x: Tensor) -> Tensor:
        z = torch.sigmoid(self.gate(x))
        decay = torch.cumprod(1 - z, 1) if self.cumprod else torch.exp(torch.cumsum(torch.log(1 - z), 1))
        return self.out(decay * torch.cumsum(z * self.candidate(x) / decay, 1))


class RealGated(nn.Module):
    """The recurrent unit of Griffin: h ← a h + √(1 − a²) (i ⊙ u), a = exp(−8 softplus(λ) σ(W x))."""

    def __init__(self, d: int, n: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.zeros(n))
        self.recur, self.enter, self.u = nn.Linear(d, n), nn.Linear(d, n), nn.Linear(d, n)
        self.out = nn.Linear(n, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.rate.shape[0])
        y = []
        for t in range(x.shape[1]):
            now = x[:, t]
            a = torch.exp(-F.softplus(self.rate) * torch.sigmoid(self.recur(now)))
            h = a * h + torch.sqrt(1 - a * a) * torch.sigmoid(self.enter(now)) * self.u(now)
            y.append(self.out(h))
        return torch.stack(y, 1)


class Retention(nn.Module):
    """Linear attention as a recurrence of matrices: S ← γ_h S + k vᵀ, y = qᵀ S, per head; the decay is learned."""

    def __init__(self, d: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.q, self.k, self.v = (nn.Linear(d, heads * size, bias=False) for _ in range(3))
        self.decay = nn.Parameter(torch.zeros(heads))
        self.out = nn.Linear(heads * size, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, steps, _ = x.shape
        q, k, v = (m(x).view(n, steps, self.heads, self.size) for m in (self.q, self.k, self.v))
        decay = torch.sigmoid(self.decay)[:, None, None]
        s = x.new_zeros(n, self.heads, self.size, self.size)
        y = []
        for t in range(steps):
            s = decay * s + k[:, t, :, :, None] * v[:, t, :, None, :]
            y.append(torch.einsum("nhk,nhkv->nhv", q[:, t], s))
        return self.out(torch.stack(y, 1).reshape(n, steps, -1))


class TimeMix(nn.Module):
    """RWKV's average: numerator and denominator with weights exp(k), decay exp(−exp(w)) and a bonus for the present."""

    def __init__(self, d: int, n: int) -> None:
        super().__init__()
        self.k, self.v, self.r = (nn.Linear(d, n, bias=False) for _ in range(3))
        self.out = nn.Linear(n, d, bias=False)
        self.decay, self.bonus = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        k, v, r = self.k(x), self.v(x), torch.sigmoid(self.r(x))
        keep = torch.exp(-torch.exp(self.decay))
        top = bottom = torch.zeros_like(k[:, 0])
        y = []
        for t in range(x.shape[1]):
            now = torch.exp(self.bonus + k[:, t])
            y.append(r[:, t] * (top + now * v[:, t]) / (bottom + now))
            weight = torch.exp(k[:, t])
            top, bottom = keep * top + weight * v[:, t], keep * bottom + weight
        return self.out(torch.stack(y, 1))


class Mamba(nn.Module):
    """The block of Mamba without norm: gated branch, depthwise convolution, selective diagonal states."""

    def __init__(self, d: int, inner: int, states: int, rank: int) -> None:
        super().__init__()
        self.inner, self.states, self.rank = inner, states, rank
        self.in_proj = nn.Linear(d, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, 2, groups=inner, padding=1)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.a_log = nn.Parameter(torch.zeros(inner, states))
        self.skip = nn.Parameter(torch.zeros(inner))
        self.out_proj = nn.Linear(inner, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[1]
        u, gate = self.in_proj(x).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., :steps].transpose(1, 2))
        dt, b, c = self.x_proj(u).split((self.rank, self.states, self.states), -1)
        dt = F.softplus(self.dt_proj(dt))
        a = -torch.exp(self.a_log)
        h = u.new_zeros(u.shape[0], self.inner, self.states)
        y = []
        for t in range(steps):
            h = torch.exp(dt[:, t, :, None] * a) * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None, :]
            y.append((h * c[:, t, None, :]).sum(-1))
        out = torch.stack(y, 1) + u * self.skip
        return self.out_proj(out * F.silu(gate))


class ScalarDecay(nn.Module):
    """The recurrence of Mamba-2: one decay per head, states shared by the heads."""

    def __init__(self, d: int, heads: int, size: int, states: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.u = nn.Linear(d, heads * size, bias=False)
        self.b, self.c = nn.Linear(d, states, bias=False), nn.Linear(d, states, bias=False)
        self.dt = nn.Linear(d, heads)
        self.a_log, self.skip = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.zeros(heads))
        self.out = nn.Linear(heads * size, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, steps, _ = x.shape
        u = self.u(x).view(n, steps, self.heads, self.size)
        b, c, dt = self.b(x), self.c(x), F.softplus(self.dt(x))
        keep = torch.exp(-dt * torch.exp(self.a_log))
        h = x.new_zeros(n, self.heads, self.size, b.shape[-1])
        y = []
        for t in range(steps):
            enter = torch.einsum("nhp,ns->nhps", dt[:, t, :, None] * u[:, t], b[:, t])
            h = keep[:, t, :, None, None] * h + enter
            y.append(torch.einsum("nhps,ns->nhp", h, c[:, t]) + self.skip[:, None] * u[:, t])
        return self.out(torch.stack(y, 1).reshape(n, steps, -1))


def layer(name: str, make: Callable[[], nn.Module], orbit: int, nullity: int | None = None, **more: object) -> Case:
    """A recurrent network on x [64, 4, 3]."""
    return Case(f"rec_{name}", make, normal(64, 4, 3), orbit, nullity, row="1.6", **more)  # type: ignore[arg-type]


def read(kind: Callable[..., nn.RNNBase], n: int = 3, **options: object) -> Callable[[], nn.Module]:
    return lambda: Read(kind(3, n, batch_first=True, **options))


CASES: tuple[Case, ...] = (
    layer("rnn_tanh", read(nn.RNN, 4), 4),
    layer("rnn_relu", read(nn.RNN, 4, nonlinearity="relu"), 8),
    layer("rnn_no_bias", read(nn.RNN, 4, bias=False), 0),
    layer("rnn_relu_no_bias", read(nn.RNN, 4, nonlinearity="relu", bias=False), 4),
    layer("rnn_stacked", read(nn.RNN, num_layers=2), 6),
    layer("rnn_bidirectional", read(nn.RNN, bidirectional=True), 6),
    layer("rnn_last", lambda: LastState(nn.RNN(3, 4, batch_first=True)), 4),
    layer("rnn_first_learned", lambda: Started(nn.RNN(3, 4, batch_first=True, nonlinearity="relu"), True), 8, seed=1),
    Case(
        "rec_rnn_first_given",
        lambda: Started(nn.RNN(3, 4, batch_first=True), False),
        lambda g: (*normal(64, 4, 3)(g), torch.randn(1, 64, 4, generator=g, dtype=torch.float64)),
        4,
        row="1.6",
    ),
    layer("rnn_written", lambda: WrittenRNN(3, 4), 4),
    layer("rnn_cell", lambda: Cells(nn.RNNCell(3, 4)), 4),
    layer("lstm", read(nn.LSTM), 12),
    layer("lstm_no_bias", read(nn.LSTM, bias=False), 0),
    layer("lstm_stacked", read(nn.LSTM, num_layers=2), 24),
    layer("lstm_bidirectional", read(nn.LSTM, bidirectional=True), 24),
    layer("lstm_projected", read(nn.LSTM, 4, proj_size=2), 16 + 4),
    layer("lstm_last", lambda: LastState(nn.LSTM(3, 3, batch_first=True)), 12),
    layer("lstm_chained", lambda: Chained(3, nn.LSTM(2, 3, batch_first=True)), 12 + 4 + 2),
    layer("lstm_cell", lambda: Cells(nn.LSTMCell(3, 3)), 12),
    layer("lstm_written", lambda: WrittenLSTM(3, 3), 0),
    layer("gru", read(nn.GRU), 6),
    layer("gru_no_bias", read(nn.GRU, bias=False), 0),
    layer("gru_stacked", read(nn.GRU, num_layers=2), 12),
    layer("gru_bidirectional", read(nn.GRU, bidirectional=True), 12),
    layer("gru_cell", lambda: Cells(nn.GRUCell(3, 3)), 6),
    layer("ssm_dense", lambda: DenseStates(3, 4, 2), 16),
    Case("rec_ssm_dense_skip", lambda: DenseStates(3, 4, 2, skip=True), normal(64, 10, 3), 16, row="1.6"),
    layer("ssm_diagonal", lambda: DiagonalStates(3, 4, 2), 4),
    layer("ssm_kernel", lambda: KernelStates(3, 4, 2), 4),
    layer("gated_linear", lambda: MinimalGated(3, 4), 4),
    layer("gated_scan", lambda: ScannedGated(3, 4), 4),
    layer("gated_cumprod", lambda: ScannedGated(3, 4, cumprod=True), 4),
    layer("rg_lru", lambda: RealGated(3, 4), 4),
    layer("retention", lambda: Retention(3, 2, 2), 18),
    layer("rwkv", lambda: TimeMix(3, 4), 4),
    layer("mamba", lambda: Mamba(3, 4, 4, 2), 13),
    layer("mamba2", lambda: ScalarDecay(3, 2, 2, 2), 13),
)
