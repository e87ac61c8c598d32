"""The arithmetic of explicit Runge–Kutta slices: many slices as one batch, stages in one buffer, an exact reverse pass.

With k_i = h w(t + c_i h) Y_i, Y_i = 1 + Σ_j a_ij k_j and W = 1 + Σ_j b_j k_j, a slice costs one product per stage after
the first, whose k is h w itself. Combinations of stages are matrix–vector products on the buffer, and their cost is
memory traffic, so slices are taken in chunks whose buffer stays in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import get_ident

import torch
from torch import Tensor

from torchgauge.ode.slices import Kernel
from torchgauge.ode.wilson_base import Samples, column
from torchgauge.ode.wilson_chunks import Chunk, chunks, workspace

SMALL_BYTES = 1 << 16  # up to this, adding an identity costs less than writing on a diagonal
WIDE = 256  # matrices this wide are taken half by half, column by column


@dataclass(frozen=True, eq=False)
class Tableau:
    """An explicit method, laid out for the buffer.

    Attributes:
        nodes: the distinct c_i, increasing.
        node: which of them a stage reads.
        slot: where a stage is kept in the buffer.
        rows: for stage i its first slot, and the coefficients from there on; last, those of the result.
        columns: for stage i the stages l > i that read it as (first l, a_li from there on); the result counts as l = s.
    """

    nodes: tuple[float, ...]
    node: tuple[int, ...]
    slot: tuple[int, ...]
    rows: tuple[tuple[int, tuple[float, ...]], ...]
    columns: tuple[tuple[int, tuple[float, ...]], ...]

    @property
    def stages(self) -> int:
        return len(self.node)

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], weights: Sequence[float], store: Sequence[int]) -> Tableau:
        """From the triangle A, the weights b and the order of the buffer; c_i = Σ_j a_ij."""
        s = len(weights)
        times = [sum(row) for row in rows]
        nodes: list[float] = []
        for t in sorted(times):
            t = min(max(t, 0.0), 1.0)
            if not nodes or t - nodes[-1] > 1e-12:
                nodes.append(1.0 if 1 - t < 1e-12 else t)
        node = tuple(min(range(len(nodes)), key=lambda j: abs(nodes[j] - t)) for t in times)
        slot = tuple(store.index(i) for i in range(s))
        full = [[*row, *(0.0,) * (s - len(row))] for row in (*rows, weights)]
        stored = [[row[i] for i in store] for row in full]
        columns = [[full[l][i] for l in range(s + 1)] for i in range(s)]
        return cls(tuple(nodes), node, slot, tuple(map(_span, stored)), tuple(map(_span, columns)))


def _span(values: Sequence[float]) -> tuple[int, tuple[float, ...]]:
    """The first index that is not zero, and the values from there to the last one that is not."""
    used = [i for i, value in enumerate(values) if value != 0]
    return (0, ()) if not used else (used[0], tuple(values[used[0] : used[-1] + 1]))


def _nodes(samples: Samples, count: int) -> list[Tensor]:
    """w at every node, [slices · fields, d, d]."""
    fields = samples.values.shape[1]
    flat, n = samples.values.flatten(0, 1), samples.count * fields
    return [flat[k * fields : k * fields + n] for k in samples.offsets[:count]]


Spans = list[tuple[int, int, Tensor]]


@lru_cache(maxsize=64)
def _coefficients(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> tuple[Spans, Spans]:
    """The rows and columns of a tableau as (first, last, coefficients)."""

    def tensors(spans: Sequence[tuple[int, tuple[float, ...]]]) -> Spans:
        flat = torch.tensor([a for _, span in spans for a in span], dtype=dtype, device=device)
        parts = flat.split([len(span) for _, span in spans])
        return [(first, first + len(span), part) for (first, span), part in zip(spans, parts, strict=True)]

    return tensors(tableau.rows), tensors(tableau.columns)


class _Stages:
    """The buffers of a chunk of n slices, c columns wide, with every view of them made once.

    Args:
        tableau: the method.
        n, d, c: shape of a stage.
        store: memory for stages + 1 of them, at least.
        kept: [stages, n · d · d] where all Y_i are to be kept, else one Y serves for all in turn.
    """

    def __init__(self, tableau: Tableau, n: int, d: int, c: int, store: Tensor, kept: Tensor | None = None) -> None:
        self.shape, self.tableau = (n, d, c), tableau
        s, size, like = tableau.stages, n * d * c, store
        k = store[: s * size].view(s, size)
        matrices, columns = k.view(s, n, d, c).unbind(), k.T
        rows = _coefficients(tableau, like.dtype, like.device)[0]
        self.inputs = [(columns.narrow(1, first, last - first), a) for first, last, a in rows]
        self.stages = [matrices[slot] for slot in tableau.slot]
        if kept is None:
            self.flat = [store[s * size : (s + 1) * size]] * s
            self.states = [self.flat[0].view(n, d, c)] * s
        else:
            self.flat, self.states = [*kept], [*kept.view(s, n, d, c).unbind()]
        self.left = -1
        self.small = n * d * c * like.element_size() <= SMALL_BYTES
        self.one = like.new_zeros(n, d, c) if self.small else None
        self.ones = []

    def _set(self, left: int) -> None:
        """Puts the identity's columns from `left` on where they are added from."""
        c = self.shape[2]
        if self.one is not None:
            self.one.zero_()[:, left : left + c].diagonal(dim1=1, dim2=2).fill_(1)
        else:
            self.ones = [state[:, left : left + c].diagonal(dim1=1, dim2=2) for state in self.states]
        self.left = left

    def run(self, w: list[Tensor], chunk: Chunk, left: int = 0) -> Tensor:
        """Runs the stages for the columns left..left + c of the identity.

        Args:
            w: w at the nodes, each [n, d, d].
            chunk: the slices.
            left: first column.

        Returns:
            Those columns of the lines, [n, d, c], until the next run.
        """
        node, c, step, steps = self.tableau.node, self.shape[2], chunk.step, chunk.steps
        if left != self.left:
            self._set(left)
        first = w[node[0]] if c == self.shape[1] else w[node[0]][:, :, left : left + c]
        torch.mul(first, step if steps is None else steps, out=self.stages[0])
        one, last = None if self.one is None else self.one.view(-1), self.tableau.stages - 1
        for i in range(last + 1):
            buffer, a = self.inputs[i + 1]
            if one is not None:
                torch.addmv(one, buffer, a, out=self.flat[i])
            else:
                torch.mv(buffer, a, out=self.flat[i])
                self.ones[i].add_(1)
            if i == last:
                break
            if steps is not None:
                self.states[i].mul_(steps)
            out = self.stages[i + 1]
            torch.baddbmm(out, w[node[i + 1]], self.states[i], beta=0, alpha=step, out=out)
        return self.states[last]


@lru_cache(maxsize=16)
def _small_stages(tableau: Tableau, n: int, d: int, dtype: torch.dtype, _thread: int, _inference: bool) -> _Stages:
    """Buffers for few small matrices: to make their views takes longer than to use them, so they are kept."""
    return _Stages(tableau, n, d, d, torch.empty((tableau.stages + 1) * n * d * d, dtype=dtype, device="cpu"))


def _forward(tableau: Tableau, samples: Samples, steps: Tensor, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """The slices, and where wanted the Y_i of every chunk."""
    values = samples.values
    _, fields, d, _ = values.shape
    result = values.new_empty(samples.count, fields, d, d)
    flat, nodes, kept = result.flatten(0, 1), _nodes(samples, len(tableau.nodes)), []
    small = result.numel() * result.element_size() <= SMALL_BYTES and values.device.type == "cpu"
    if small and not keep and type(values) is Tensor:
        (chunk,) = chunks(samples, steps, 0)
        key = (tableau, len(flat), d, values.dtype, get_ident(), torch.is_inference_mode_enabled())
        flat.copy_(_small_stages(*key).run(nodes, chunk))
        return result, kept
    width = d if keep or values.device.type != "cpu" or d < WIDE else WIDE // 2
    buffers: dict[tuple[int, int], _Stages] = {}
    parts = [*chunks(samples, steps, tableau.stages + 6)]
    most = max(chunk.batch.stop - chunk.batch.start for chunk in parts)
    store = workspace((tableau.stages + 1) * most * d * width, values)  # the same for all, and so in the cache
    for chunk in parts:
        w, out = chunk.of(nodes), flat[chunk.batch]
        n = len(out)
        if keep:
            kept.append(values.new_empty(tableau.stages, n * d * d))
            out.copy_(_Stages(tableau, n, d, d, store, kept[-1]).run(w, chunk))
            continue
        for left in range(0, d, width):
            c = min(width, d - left)
            stages = buffers.get((n, c)) or buffers.setdefault((n, c), _Stages(tableau, n, d, c, store))
            out[:, :, left : left + c] = stages.run(w, chunk, left)
    return result, kept


def _backward(tableau: Tableau, samples: Samples, steps: Tensor, kept: list[Tensor], grad: Tensor) -> Tensor:
    """The gradient of the samples: with K_i that of k_i and Z_i that of Y_i,

    K_i = b_i G + Σ_{l>i} a_li Z_l,   Z_i = h w_i^† K_i,   gradient of w_i: h K_i Y_i^†.
    """
    values, s = samples.values, tableau.stages
    d = values.shape[-1]
    result = torch.zeros_like(values)
    nodes = _nodes(samples, len(tableau.nodes))
    sums = _nodes(Samples(result, samples.offsets, samples.count), len(nodes))
    columns = _coefficients(tableau, values.dtype, values.device)[1]
    grad = grad.flatten(0, 1)
    for index, chunk in enumerate(chunks(samples, steps, s + 6)):
        w, total, g = chunk.of(nodes), chunk.of(sums), grad[chunk.batch]
        n = len(g)
        if kept:
            y = kept[index]
        else:
            y = values.new_empty(s, n * d * d)
            _Stages(tableau, n, d, d, values.new_empty(s * n * d * d), y).run(w, chunk)
        z = values.new_empty(s + 1, n * d * d)  # Z_1 .. Z_{s-1} and G, the gradient of the result, as Z_s
        z[s].view(n, d, d).copy_(g)
        flat = values.new_empty(n * d * d)
        k = flat.view(n, d, d)
        for i in range(s - 1, -1, -1):
            first, last, a = columns[i]
            torch.mv(z[first:last].T, a, out=flat)
            if i == 0:
                total[tableau.node[0]].add_(k if chunk.steps is None else k * chunk.steps, alpha=chunk.step)
                break
            # the kept Y_i carry the step already where steps differ
            total[tableau.node[i]].baddbmm_(k, y[i - 1].view(n, d, d).mH, alpha=chunk.step)
            out = z[i].view(n, d, d)
            torch.baddbmm(out, w[tableau.node[i]].mH, k, beta=0, alpha=chunk.step, out=out)
            if chunk.steps is not None:
                out.mul_(chunk.steps)
    return result


def propagate_plainly(tableau: Tableau, samples: Samples, steps: Tensor) -> Tensor:
    """The same in plain operations, differentiable any number of times and by every transformation."""
    _, _, d, _ = samples.values.shape
    h = column(steps, samples.values)
    w = [samples.node(j) * h for j in range(len(tableau.nodes))]
    one = torch.eye(d, dtype=h.dtype, device=h.device)
    k: dict[int, Tensor] = {tableau.slot[0]: w[tableau.node[0]]}
    for i in range(1, tableau.stages):
        k[tableau.slot[i]] = w[tableau.node[i]] @ (one + _sum(k, tableau.rows[i]))
    return one + _sum(k, tableau.rows[-1])


def transport(tableau: Tableau, samples: Samples, steps: Tensor, vectors: Tensor) -> Tensor:
    """The lines of the slices applied to vectors [N, fields, d, r]; a product costs d² r here."""
    n, r = vectors.shape[:2].numel(), vectors.shape[-1]
    start = vectors.mT.reshape(-1)  # as rows: of few vectors, products with rows are faster
    chunk = next(chunks(samples, steps, 0))
    w = [node.mT for node in _nodes(samples, len(tableau.nodes))]
    k, y = start.new_empty(tableau.stages, len(start)), torch.empty_like(start)
    rows = _coefficients(tableau, start.dtype, start.device)[0]
    for i in range(tableau.stages):
        if i:
            first, last, a = rows[i]
            torch.addmv(start, k[first:last].T, a, out=y)
        state = (y if i else start).view(n, r, -1)
        if chunk.steps is not None:
            state = state * chunk.steps
        out = k[tableau.slot[i]].view(n, r, -1)
        torch.baddbmm(out, state, w[tableau.node[i]], beta=0, alpha=chunk.step, out=out)
    first, last, a = rows[-1]
    return torch.addmv(start, k[first:last].T, a).view(*vectors.shape[:2], r, -1).mT


def _sum(k: dict[int, Tensor], row: tuple[int, tuple[float, ...]]) -> Tensor:
    first, coefficients = row
    terms = [a * k[first + j] for j, a in enumerate(coefficients) if a != 0]
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


KERNEL = Kernel(_forward, _backward, propagate_plainly, lambda tableau: tableau.stages)
