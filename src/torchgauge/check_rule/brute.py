"""Brute force: the nullity of a network, and the permutations and signs that go through an operator."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.check_rule.calls import run, sample
from torchgauge.check_rule.net import Around

FLAT, CLEAR = 1e-9, 1e-7
"""Relative singular values below the first count as zero; one between the two leaves the rank open."""
LARGEST = 4
"""Units of which all permutations are tried."""
Move = tuple[Tensor, Tensor]
"""The order that entries are put in, then their signs."""
FITS = 1e-8
ENTRIES = 6


def jacobian(net: Around, generator: torch.Generator) -> Tensor:
    """∂outputs/∂parameters at many inputs, [rows, parameters]; rows are scaled to the size of the outputs."""
    parameters = list(net.parameters())
    count = sum(p.numel() for p in parameters)
    rows: list[Tensor] = []
    while len(rows) < count + count // 2 + 16:
        flat = torch.cat([y.reshape(-1) for y in net(*net.inputs(generator))])
        if not bool(flat.isfinite().all()):
            raise ArithmeticError("not finite")
        # few entries of each output, so that many inputs are seen
        for y in flat[torch.randperm(len(flat), generator=generator)[:ENTRIES]]:
            grads = torch.autograd.grad(y, parameters, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
            rows.append(torch.cat([part.reshape(-1) for part in parts]) / max(1.0, abs(float(y.detach()))))
    return torch.stack(rows)


def nullity(matrix: Tensor) -> int | None:
    """The dimension of the kernel; None where no gap tells."""
    sizes = matrix.norm(dim=0)
    live = matrix[:, sizes > 1e-12 * sizes.max().clamp_min(1e-300)]
    if not live.shape[1]:
        return matrix.shape[1]
    values = torch.linalg.svdvals(live / live.norm(dim=0))
    values = values / values[0]
    if bool(((values > FLAT) & (values < CLEAR)).any()):
        return None
    return matrix.shape[1] - int((values >= CLEAR).sum())


def moves(n: int) -> tuple[list[Move], list[Move], list[Move]]:
    """All permutations of n, the change of one sign for each of n, and the change of all signs."""
    plain, order = torch.ones(n, dtype=torch.float64), torch.arange(n)
    permutations = [(torch.tensor(p), plain) for p in itertools.permutations(range(n))]
    one = [(order, torch.where(order == i, -1.0, 1.0).double()) for i in range(n)]
    return permutations, one, [(order, -plain)]


@dataclass(frozen=True)
class Through:
    """What goes through an operator: how many permutations, and whether signs, one by one or all at once."""

    permutations: int
    signs: bool
    sign: bool

    def __str__(self) -> str:
        signs = " with any signs" if self.signs else " with one sign" if self.sign else ""
        return f"{self.permutations} permutation{'s' * (self.permutations != 1)}{signs}"

    def exceeds(self, other: Through) -> bool:
        """Whether something is here that is not there."""
        more = self.permutations > other.permutations or (self.signs and not other.signs)
        return more or (self.sign and not other.sign)


def going_through(net: Around, generator: torch.Generator) -> Through | None:
    """Which moves g of the data have an affine h with operator(g x) = h operator(x).

    None where there are too many units, or parameters of the operator that would have to move too.
    """
    call, shapes = net.call, [d.shape for d in net.call.data]
    sizes = {shape[net._dim(shape)] for shape in shapes}
    if call.weights or len(sizes) > 1 or max(sizes) > LARGEST:
        return None
    batches: list[list[Tensor]] = []
    before: list[list[Tensor]] = []
    plain: list[Tensor] = []
    while not plain or any(rows.shape[0] < 3 * rows.shape[1] + 6 for rows in plain):
        batches.append([sample(shape, call.domain, generator) for shape in shapes])
        before.append(run(call, batches[-1]))
        plain = [_rows(net, [results[i] for results in before]) for i in range(len(before[0]))]
    bases = [_basis(rows) for rows in plain]

    def passes(move: Move) -> bool:
        after = [run(call, [_moved(net, x, *move) for x in data]) for data in batches]
        turned = [_rows(net, [results[i] for results in after]) for i in range(len(after[0]))]
        return all(_affine(a, b) for a, b in zip(bases, turned, strict=True))

    permutations, one, every = moves(max(sizes))
    signs = all(passes(move) for move in one)
    return Through(sum(passes(move) for move in permutations), signs, signs or passes(every[0]))


def _moved(net: Around, x: Tensor, order: Tensor, signs: Tensor) -> Tensor:
    at = net._dim(tuple(x.shape))
    return x.index_select(at, order) * signs.reshape([-1 if i == at else 1 for i in range(x.ndim)])


def _rows(net: Around, results: list[Tensor]) -> Tensor:
    """Results as rows along the dimension that is read, with a one behind."""
    shaped = [
        (r.movedim(net._out(r), -1) if r.ndim else r[None]).reshape(-1, r.shape[net._out(r)] if r.ndim else 1)
        for r in results
    ]
    rows = torch.cat(shaped)
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)


def _basis(rows: Tensor) -> Tensor:
    """An orthonormal basis of what is linear in the columns."""
    left, s, _ = torch.linalg.svd(rows, full_matrices=False)
    return left[:, s > 1e-10 * s[0]]


def _affine(basis: Tensor, after: Tensor) -> bool:
    """Whether rows are an affine function of those that the basis belongs to."""
    if not bool(after.isfinite().all()):
        return False
    rest = after - basis @ (basis.mT @ after)
    return float(rest.abs().max()) <= FITS * max(1.0, float(after.abs().max()))
