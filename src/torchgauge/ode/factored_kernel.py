"""The arithmetic of factored Dyson series: all forms by one product with the samples, an exact reverse pass.

With L_i and R_i the two factors, P_i = L_i R_i and W = 1 + M + Σ_i P_i, M the form of ∫ w. Forms are linear
combinations of the samples of a slice, and all of one chunk of slices are one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from threading import get_ident

import torch
from torch import Tensor

from torchgauge.ode.slices import Kernel
from torchgauge.ode.wilson_base import Samples, column
from torchgauge.ode.wilson_chunks import Chunk, chunks, workspace

SMALL_BYTES = 1 << 16  # up to this, buffers are kept between calls

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class Table:
    """A factored series.

    Attributes:
        forms: in terms of w at the nodes, L_1, R_1, L_2, R_2, ... without their products, then M; [2 s + 1, nodes].
        left, right: rows of s lower triangles, the products in L_i and in R_i; an empty row for none.
    """

    forms: Rows
    left: Rows
    right: Rows

    @property
    def products(self) -> int:
        return len(self.forms) // 2


Sums = list[tuple[int, int, Tensor]]


@lru_cache(maxsize=64)
def _coefficients(table: Table, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Sums]:
    """The forms as a tensor; and which of them every product waits for, with the products so far in them.

    With the last product M becomes M + P_1 + ... + P_{s-1}.
    """
    sums, s = [], table.products
    for i, (left, right) in enumerate(zip(table.left, table.right, strict=True)):
        rows = [*([left] if any(left) else []), *([right] if any(left) or any(right) else [])]
        rows += [(1.0,) * i] * (i == s - 1)
        stop = 2 * i + 2 + (i == s - 1)
        full = [tuple(row) or (0.0,) * i for row in rows]
        sums.append((stop - len(rows), stop, torch.tensor(full, dtype=dtype, device=device).view(len(rows), i)))
    return torch.tensor(table.forms, dtype=dtype, device=device), sums


def stacked(samples: Samples) -> Tensor:
    """The samples as one row for each node, [nodes, slices · fields · d · d]."""
    values, n = samples.values, samples.count
    if samples.offsets == tuple(range(0, n * len(samples.offsets), n)):
        return values.view(len(samples.offsets), -1)
    return torch.stack([values[k : k + n] for k in samples.offsets]).flatten(1)


class Factors:
    """The buffers of a chunk of n slices, with every view of them made once.

    Args:
        table: the series.
        n, d: shape of a batch of matrices.
        store: memory for 3 s of them, at least.
    """

    def __init__(self, table: Table, n: int, d: int, store: Tensor) -> None:
        s, size = table.products, n * d * d
        self.forms_of, sums = _coefficients(table, store.dtype, store.device)
        self.forms = store[: (2 * s + 1) * size].view(2 * s + 1, size)
        flat = store[(2 * s + 1) * size : 3 * s * size].view(s - 1, size)
        self.factors = self.forms.view(2 * s + 1, n, d, d).unbind()
        self.products = flat.view(s - 1, n, d, d).unbind()
        self.sums = [(self.forms[first:stop], rows, flat[:i]) for i, (first, stop, rows) in enumerate(sums)]

    def run(self, w: Tensor, chunk: Chunk, out: Tensor, one: bool = True) -> None:
        """Writes the lines of a chunk.

        Args:
            w: the samples of the chunk, [nodes, n · d · d].
            chunk: the slices.
            out: [n, d, d].
            one: whether the identity is added.
        """
        scaled = self.forms_of if chunk.step == 1 else self.forms_of * chunk.step
        torch.mm(scaled, w, out=self.forms)
        if chunk.steps is not None:
            self.forms.view(len(self.forms), *out.shape).mul_(chunk.steps.to(out.dtype))
        for i, (forms, rows, products) in enumerate(self.sums):
            if len(rows) and i:
                torch.addmm(forms, rows, products, out=forms)
            left, right = self.factors[2 * i], self.factors[2 * i + 1]
            if i < len(self.products):
                torch.bmm(left, right, out=self.products[i])
            else:
                torch.baddbmm(self.factors[-1], left, right, out=out)
        if one:
            out.diagonal(dim1=1, dim2=2).add_(1)


@lru_cache(maxsize=16)
def small_factors(table: Table, n: int, d: int, dtype: torch.dtype, _thread: int, _inference: bool) -> Factors:
    """Buffers for few small matrices: to make their views takes longer than to use them, so they are kept."""
    return Factors(table, n, d, torch.empty(3 * table.products * n * d * d, dtype=dtype, device="cpu"))


def _forward(table: Table, samples: Samples, steps: Tensor, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """The slices, and where wanted the factors of every chunk, [2 s, n, d, d]."""
    values, s = samples.values, table.products
    _, fields, d, _ = values.shape
    result = values.new_empty(samples.count, fields, d, d)
    flat, w, kept = result.flatten(0, 1), stacked(samples), []
    if values.device.type == "cpu" and not keep and type(values) is Tensor:
        if result.numel() * result.element_size() <= SMALL_BYTES:
            (chunk,) = chunks(samples, steps, 0)
            key = (table, len(flat), d, values.dtype, get_ident(), torch.is_inference_mode_enabled())
            small_factors(*key).run(w, chunk, flat)
            return result, kept
    parts = [*chunks(samples, steps, 3 * s + 1 + len(w))]
    most = max(chunk.batch.stop - chunk.batch.start for chunk in parts)
    store = workspace(3 * s * most * d * d, values)  # the same for all, so that it stays in the cache
    buffers: dict[int, Factors] = {}
    for chunk in parts:
        first, last = chunk.batch.start, chunk.batch.stop
        n = last - first
        own = buffers.get(n) or buffers.setdefault(n, Factors(table, n, d, store))
        own.run(w[:, first * d * d : last * d * d], chunk, flat[chunk.batch])
        if keep:
            kept.append(own.forms[:-1].view(2 * s, n, d, d).clone())
    return result, kept


def backward(
    table: Table, samples: Samples, steps: Tensor, kept: list[Tensor], grad: Tensor, arrays: int = 0
) -> Tensor:
    """The gradient of the samples: with G that of W, and Q_i, A_i, B_i those of P_i, L_i and R_i,

    Q_i = G + Σ_{k>i} (λ_ki A_k + ρ_ki B_k),   A_i = Q_i R_i^†,   B_i = L_i^† Q_i.

    What is kept belongs to the chunks of the forward pass, which `arrays` matrices for each slice make.
    """
    values, s = samples.values, table.products
    d = values.shape[-1]
    forms_of = _coefficients(table, values.dtype, values.device)[0]
    grad, w = grad.flatten(0, 1), stacked(samples)
    result = torch.empty_like(w)
    for index, chunk in enumerate(chunks(samples, steps, arrays or 3 * s + 1 + len(w))):
        first, last = chunk.batch.start, chunk.batch.stop
        n, part, g = last - first, slice(first * d * d, last * d * d), grad[chunk.batch]
        if kept:
            factors = kept[index]
        else:
            own = Factors(table, n, d, values.new_empty(3 * s * n * d * d))
            own.run(w[:, part], chunk, torch.empty_like(g, memory_format=torch.contiguous_format))
            factors = own.forms[:-1].view(2 * s, n, d, d)
        slopes = values.new_empty(2 * s + 1, n, d, d)
        slopes[-1] = g
        for i in range(s - 1, -1, -1):
            q = g.contiguous()
            for k in range(i + 1, s):
                for j, lower in enumerate((table.left, table.right)):
                    if i < len(lower[k]) and lower[k][i] != 0:
                        q = torch.add(q, slopes[2 * k + j], alpha=lower[k][i])
            torch.bmm(q, factors[2 * i + 1].mH, out=slopes[2 * i])
            torch.bmm(factors[2 * i].mH, q, out=slopes[2 * i + 1])
        if chunk.steps is not None:
            slopes.mul_(chunk.steps)
        torch.mm((forms_of * chunk.step).T, slopes.flatten(1), out=result[:, part])
    if samples.offsets == tuple(range(0, len(values), samples.count)):
        return result.view_as(values)
    total = torch.zeros_like(values)
    for j, k in enumerate(samples.offsets):
        total[k : k + samples.count] += result[j].view(samples.count, *values.shape[1:])
    return total


def propagate_plainly(table: Table, samples: Samples, steps: Tensor) -> Tensor:
    """The same in plain operations, differentiable any number of times and by every transformation."""
    h = column(steps, samples.values)
    w = [samples.node(j) * h for j in range(len(samples.offsets))]
    total = torch.eye(h.shape[-1] if not w else w[0].shape[-1], dtype=h.dtype, device=h.device)
    forms = [_sum(row, w) for row in table.forms]
    products: list[Tensor] = []
    for i in range(table.products):
        left, right = (
            form + _sum(lower[i], products) if any(lower[i]) else form
            for form, lower in zip(forms[2 * i : 2 * i + 2], (table.left, table.right), strict=True)
        )
        products.append(left @ right)
        total = total + products[-1]
    return total + forms[-1]


def _sum(row: tuple[float, ...], terms: list[Tensor]) -> Tensor:
    """Σ_j row_j term_j."""
    result = row[0] * terms[0]
    for a, term in zip(row[1:], terms[1:], strict=False):
        if a != 0:
            result = result + a * term
    return result


def transport(table: Table, samples: Samples, steps: Tensor, vectors: Tensor) -> Tensor | None:
    """The lines of the slices applied to vectors [N, fields, d, r]; None where products stand in left factors."""
    if any(any(row) for row in table.left):
        return None
    fields, d = vectors.shape[1:3]
    forms = (_coefficients(table, vectors.dtype, vectors.device)[0] @ stacked(samples)).view(-1, *samples.node(0).shape)
    forms = (forms * column(steps, vectors)).view(-1, samples.count, fields, d, d)
    total, products = vectors + forms[-1] @ vectors, []
    for i in range(table.products):
        moved = forms[2 * i + 1] @ vectors
        if any(table.right[i]):
            moved = moved + _sum(table.right[i], products)
        products.append(forms[2 * i] @ moved)
        total = total + products[-1]
    return total


KERNEL = Kernel(_forward, backward, propagate_plainly, lambda table: 2 * table.products)
