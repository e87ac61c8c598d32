"""Time-ordered products of many matrices, the later one on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchgauge.ode.wilson_base import transformed


def ordered_products(factors: Tensor, counts: Sequence[int]) -> Tensor:
    """The products of consecutive runs of factors, each run as a tree of logarithmic depth.

    Args:
        factors: [N, fields, d, d], in the order of time.
        counts: lengths of the runs, which sum to N.

    Returns:
        [runs, fields, d, d].
    """
    sizes = sorted(set(counts))
    if sizes == [1]:
        return factors
    if len(sizes) == 1:
        return _product(factors.unflatten(0, (len(counts), sizes[0])))
    starts, total = [], 0
    for count in counts:
        starts.append(total)
        total += count
    results, order = [], []
    for size in sizes:  # runs of one length at a time
        runs = [i for i, count in enumerate(counts) if count == size]
        index = torch.tensor([starts[i] + k for i in runs for k in range(size)], device=factors.device)
        results.append(_product(factors.index_select(0, index).unflatten(0, (len(runs), size))))
        order += runs
    back = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=factors.device)
    return torch.cat(results).index_select(0, back)


def prefix_products(factors: Tensor) -> Tensor:
    """1, F_1, F_2 F_1, ...: every product from the start.

    Args:
        factors: [N, fields, d, d], in the order of time.

    Returns:
        [N + 1, fields, d, d]. Small matrices, and all on an accelerator, take logarithmic depth at up to
        twice the products.
    """
    one = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device).expand(1, *factors.shape[1:])
    if factors.device.type == "cpu" and factors.shape[-1] > 32:
        lines = [one[0]]
        for factor in factors:
            lines.append(torch.matmul(factor, lines[-1]))
        return torch.stack(lines)
    return torch.cat([one, _scan(factors)])


def _scan(factors: Tensor) -> Tensor:
    """All prefixes by Brent and Kung's recursion: prefixes of pairs first, then the ones in between."""
    n = len(factors)
    if n == 1:
        return factors
    odd = _scan(factors[1::2] @ factors[0 : n - 1 : 2])  # prefixes of lengths 2, 4, ...
    even = factors[2::2] @ odd[: len(factors[2::2])]
    result = torch.stack([odd[: len(even)], even], 1).flatten(0, 1)
    return torch.cat([factors[:1], result, odd[len(even) :]])


def _product(factors: Tensor) -> Tensor:
    """[runs, n, fields, d, d] → [runs, fields, d, d]."""
    if factors.shape[1] == 1:
        return factors[:, 0]
    shape = factors.shape
    if shape[0] == shape[2] == 1:  # a single run, the common case
        factors, axis = factors.view(shape[1], *shape[3:]), 0
    else:
        axis = 1
    if torch.is_grad_enabled() and factors.requires_grad and not transformed():
        root: Any = _Product.apply(factors, axis)
    elif axis == 0 and not transformed():
        root = _root(factors.detach())
    else:
        root = _levels(factors, axis)[-1]
    return root.reshape(shape[0], *shape[2:])


def _root(level: Tensor) -> Tensor:
    """The top of the tree over matrices [n, d, d], without a gradient; one left over waits for the next level."""
    while (n := level.shape[0]) > 1:
        above = level.new_empty((n + 1) // 2, *level.shape[1:])
        torch.bmm(level[1::2], level[0 : n - 1 : 2], out=above[: n // 2])
        if n % 2:
            above[-1] = level[-1]
        level = above
    return level


def _levels(factors: Tensor, axis: int) -> list[Tensor]:
    """The levels of the tree along axis 0 or 1: neighbours are multiplied, and one left over joins the last pair."""
    levels = [factors]
    while levels[-1].shape[axis] > 1:
        earlier, later, rest = _pairs(levels[-1], axis)
        above = _times(later, earlier)
        if rest.shape[axis]:
            last = above.narrow(axis, above.shape[axis] - 1, 1)
            joined = _times(rest, last)
            if above.requires_grad:
                above = torch.cat([above.narrow(axis, 0, above.shape[axis] - 1), joined], axis)
            else:
                last.copy_(joined)  # spares a copy of the level
        levels.append(above)
    return levels


def _pairs(level: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first and the second of every pair, and the one left over if there is one."""
    even = level.shape[axis] // 2 * 2
    if axis == 0:
        return level[0:even:2], level[1:even:2], level[even:]
    return level[:, 0:even:2], level[:, 1:even:2], level[:, even:]


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Products of matrices [..., d, d], which spares small ones the machinery of broadcasting."""
    return torch.bmm(a, b) if a.ndim == 3 else torch.bmm(a.flatten(0, -3), b.flatten(0, -3)).view(a.shape)


class _Product(torch.autograd.Function):
    """The tree, with a reverse pass that writes every gradient once."""

    @staticmethod
    def forward(ctx: Any, factors: Tensor, axis: int) -> Tensor:
        *ctx.inner, root = _levels(factors, axis)[1:]
        ctx.save_for_backward(factors)
        ctx.axis = axis
        return root

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (factors,) = ctx.saved_tensors
        (grad,) = grads
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            root = _levels(factors, ctx.axis)[-1]
            return torch.autograd.grad(root, factors, grad, create_graph=True)[0], None
        for level in reversed([factors, *ctx.inner]):
            grad = _below(level, grad, ctx.axis)
        return grad, None


def _below(level: Tensor, grad: Tensor, axis: int) -> Tensor:
    """The gradient of a level from that of the level above."""
    earlier, later, rest = _pairs(level, axis)
    below = torch.empty_like(level)
    to_earlier, to_later, to_rest = _pairs(below, axis)
    if rest.shape[axis]:  # above: rest · (later · earlier) in the last place
        end = grad.shape[axis] - 1
        last = grad.narrow(axis, end, 1)
        to_rest.copy_(_times(last, _times(later.narrow(axis, end, 1), earlier.narrow(axis, end, 1)).mH))
        grad = torch.cat([grad.narrow(axis, 0, end), _times(rest.mH, last)], axis)
    to_later.copy_(_times(grad, earlier.mH))
    to_earlier.copy_(_times(later.mH, grad))
    return below
