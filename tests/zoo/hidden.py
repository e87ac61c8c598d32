"""Where the kernel is larger than the orbit: `python -m tests.zoo.hidden bert post_ln`.

Prints, per parameter, the share of the kernel directions that no generator spans.
"""

from __future__ import annotations

import sys

import torch

from tests.zoo import catalogue
from tests.zoo.checks import solve
from tests.zoo.jacobian import row_sketch, trainable


def kernel(name: str) -> torch.Tensor:
    """An orthonormal basis of the kernel of the Jacobian, as columns, from column-scaled singular vectors."""
    solved = solve(name)
    count = sum(p.numel() for p in trainable(solved.module).values())
    rows = row_sketch(solved.case, solved.module, solved.case.batches, count + 40)
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    return right[values < 1e-11 * values[0]].T


def hidden(name: str) -> None:
    solved = solve(name)
    names = [n for n, _ in solved.module.named_parameters()]
    sizes = [solved.state[n].numel() for n in names]
    null = kernel(name)
    tangents = [torch.cat([t[n].reshape(-1) for n in names]) for _, t in solved.group.tangents(solved.state)]
    spanned = torch.linalg.svd(null.T @ torch.stack(tangents, 1), full_matrices=True)
    rank = int((1e-9 * spanned.S[0] < spanned.S).sum())
    rest = null @ spanned.U[:, rank:]
    print(f"{name}: kernel {null.shape[1]}, generators span {rank} of it, {rest.shape[1]} hidden")
    shares = sorted(
        ((float(part.norm() ** 2), n) for n, part in zip(names, rest.split(sizes), strict=True)), reverse=True
    )
    for share, n in shares[:12]:
        if share > 1e-6:
            print(f"    {share:8.4f}  {n}")


if __name__ == "__main__":
    for each in sys.argv[1:] or list(catalogue.CASES):
        hidden(each)
