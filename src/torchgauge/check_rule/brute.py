"""Brute force: the kernel of a network's Jacobian, and the permutations and signs that go through an operator."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from torchgauge.check_rule.calls import run, sample
from torchgauge.check_rule.net import Around

FLAT, CLEAR = 1e-9, 1e-7
"""Relative singular values below the first count as zero; one between the two leaves the rank open."""
LARGEST = 4
"""Units of which all permutations are tried."""
STEP, CROSSINGS = 1e-2, 1000
"""A step along a kernel, and the inputs at which it is looked at."""
Move = tuple[Tensor, Tensor]
"""The order that entries are put in, then their signs."""
FITS = 1e-8
ENTRIES = 6


def jacobian(net: Around, generator: torch.Generator, spread: float = 1.0) -> Tensor:
    """∂outputs/∂parameters at many inputs, [rows, parameters]; rows are scaled to the size of the outputs."""
    parameters = list(net.parameters())
    count = sum(p.numel() for p in parameters)
    rows: list[Tensor] = []
    while len(rows) < count + count // 2 + 16:
        flat = torch.cat([y.reshape(-1) for y in net(*net.inputs(generator, spread))])
        if not bool(flat.isfinite().all()):
            raise ArithmeticError("not finite")
        # few entries of each output, so that many inputs are seen
        for y in flat[torch.randperm(len(flat), generator=generator)[:ENTRIES]]:
            grads = torch.autograd.grad(y, parameters, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
            rows.append(torch.cat([part.reshape(-1) for part in parts]) / max(1.0, abs(float(y.detach()))))
    return torch.stack(rows)


@dataclass(frozen=True)
class Kernel:
    """The kernel of a Jacobian.

    Attributes:
        dimension: without the dead parameters.
        dead: how many parameters no output depends on.
        basis: of it, [parameters, dimension]; None where nothing is live.
    """

    dimension: int
    dead: int
    basis: Tensor | None


def kernel(matrix: Tensor) -> Kernel | None:
    """The kernel of a Jacobian; None where no gap in the singular values tells its dimension."""
    sizes = matrix.norm(dim=0)
    live = sizes > 1e-12 * sizes.max().clamp_min(1e-300)
    dead = int((~live).sum())
    if not bool(live.any()):
        return Kernel(0, dead, None)
    _, values, right = torch.linalg.svd(matrix[:, live] / sizes[live])
    values = values / values[0]
    if bool(((values > FLAT) & (values < CLEAR)).any()):
        return None
    rank = int((values >= CLEAR).sum())
    basis = torch.zeros(len(sizes), len(right) - rank, dtype=matrix.dtype)
    basis[live] = right[rank:].mT / sizes[live][:, None]
    return Kernel(basis.shape[1], dead, basis)


@torch.no_grad()
def jumps(net: Around, basis: Tensor, generator: torch.Generator, spread: float) -> bool:
    """Whether a small step along a kernel changes some output by much, as it does where the operator is not continuous.

    Derivatives do not see that.
    """
    direction = basis @ torch.randn(basis.shape[1], generator=generator, dtype=basis.dtype)
    direction = STEP * direction / direction.abs().max().clamp_min(1e-300)
    names = [name for name, _ in net.named_parameters()]
    sizes = [p.numel() for p in net.parameters()]
    state = {n: p + d.view_as(p) for n, p, d in zip(names, net.parameters(), direction.split(sizes), strict=True)}
    for _ in range(CROSSINGS):
        xs = net.inputs(generator, spread)
        for a, b in zip(net(*xs), functional_call(net, state, xs), strict=True):
            if bool(((a - b).abs() > 20 * STEP * a.abs().clamp_min(1.0)).any()):
                return True
    return False


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

    None where there are too many units, parameters of the operator that would have to move too, or results that are
    not finite everywhere.
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
    if not all(bool(rows.isfinite().all()) for rows in plain):
        return None
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
