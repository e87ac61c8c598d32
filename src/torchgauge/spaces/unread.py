"""Positions that no output sees: where a mask takes them out further on, it need not do so before.

Padding is often set to zero again and again in a stream whose padded positions nobody reads: attention gives them no
weight, and the last mask takes out what they hold. A product with a mask in front of that is the identity at every
position that counts. (Theory, section 4.)
"""

from __future__ import annotations

from dataclasses import replace

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import grouping

Unseen = tuple[object, tuple[int, ...]]
"""What holds (a condition) where positions count, and the dimensions of a tensor along which these positions are."""
NONE: frozenset[Unseen] = frozenset()


def unmasked(program: c.Program) -> c.Program:
    """A program with the same outputs, without the masks that they do not see; the same object if there are none."""
    if not any(isinstance(k, c.Mul) and k.y.mask for k in program.constraints):
        return program
    unseen = _Unread(program).unseen
    order: list[c.Constraint] = []
    for k in program.constraints:
        mask = k.y.mask if isinstance(k, c.Mul) and k.x.shape == k.out.shape and k.power == 1 else None
        gone = mask is not None and not mask.low and (mask.condition, mask.dims) in unseen[k.out]
        order.append(c.Reshape(k.out, k.x) if gone and isinstance(k, c.Mul) else k)
    return replace(program, constraints=order)


class _Unread:
    """`unseen[t]`: along which dimensions, and where which condition fails, what a tensor holds moves no output."""

    def __init__(self, program: c.Program) -> None:
        self.makers = {k.out: k for k in program.constraints}
        self.readers: dict[c.Tensor, list[c.Constraint]] = {}
        for k in program.constraints:
            for t in dict.fromkeys(k.inputs):
                self.readers.setdefault(t, []).append(k)
        self.unseen: dict[c.Tensor, frozenset[Unseen]] = dict.fromkeys(program.outputs, NONE)
        for k in reversed(program.constraints):
            if k.out not in self.unseen:
                self.unseen[k.out] = self._meet(k.out)

    def _meet(self, t: c.Tensor) -> frozenset[Unseen]:
        found = [self._back(k, t) for k in self.readers.get(t, [])]
        return frozenset.intersection(*found) if found else NONE

    def _back(self, k: c.Constraint, t: c.Tensor) -> frozenset[Unseen]:
        """What one reader makes of it."""
        if sum(x is t for x in k.inputs) > 1:
            return NONE
        moved = ((condition, self._moved(k, t, dims)) for condition, dims in self.unseen[k.out])
        found = frozenset((condition, dims) for condition, dims in moved if dims is not None)
        mask = k.y.mask if isinstance(k, (c.Mul, c.Add)) and t is k.x and t.shape == k.out.shape else None
        if mask is not None and isinstance(k, c.Mul) and k.power == 1 and not mask.low:
            found |= {(mask.condition, mask.dims)}
        if mask is not None and isinstance(k, c.Add) and mask.low and self._scored(k, mask):
            found |= {(mask.condition, mask.dims)}
        if isinstance(k, c.Contract) and t is k.y and (averaged := self._averaged(k)) is not None:
            found |= {averaged}
        return found

    def _moved(self, k: c.Constraint, t: c.Tensor, dims: tuple[int, ...]) -> tuple[int, ...] | None:
        """Dimensions of the result as dimensions of an operand, where each index of it reaches that index alone."""
        match k:
            case c.Permute():
                return tuple(k.dims[d] for d in dims)
            case c.Reshape():
                groups = [_wide(g, k) for g in grouping(k.x.shape, k.out.shape)]
                places = {right[0]: left[0] for left, right in groups if len(left) == len(right) == 1}
                return tuple(places[d] for d in dims) if all(d in places for d in dims) else None
            case c.Slice() | c.Concat():
                return dims if k.dim not in dims else None
            case c.Softmax():
                return dims if k.dim not in dims else None
            case c.Rotate():
                return dims if k.out.ndim - 1 not in dims else None
            case c.Normalize(others=()) | c.Reduce() | c.Spatial():
                return dims if not set(dims) & set(k.dims) else None
            case c.Add() | c.Mul() | c.Expand() | c.Pointwise():
                return dims if t.ndim == k.out.ndim and all(t.shape[d] == k.out.shape[d] for d in dims) else None
            case c.Contract():
                labels, wanted = k.x_labels if t is k.x else k.y_labels, [k.out_labels[d] for d in dims]
                inside = all(a in labels and a not in k.window for a in wanted)
                return tuple(labels.index(a) for a in wanted) if inside else None
        return None

    def _scored(self, k: c.Add, mask: c.Mask) -> bool:
        """Whether a sum with −∞ is scores of softmaxes, of which no row counts where all of it is −∞."""
        readers = self.readers.get(k.out, [])
        return bool(readers) and all(
            isinstance(r, c.Softmax) and r.dim in mask.dims and self._rows(r, mask, self.unseen[r.out]) for r in readers
        )

    def _rows(self, k: c.Softmax, mask: c.Mask, unseen: frozenset[Unseen]) -> bool:
        """Whether rows are unseen along another dimension where the mask fails: all of a row fails where rows do."""
        at = mask.dims.index(k.dim)
        return any(
            condition == mask.condition and dims != mask.dims and _but(dims, at) == _but(mask.dims, at)
            for condition, dims in unseen
            if len(dims) == len(mask.dims)
        )

    def _averaged(self, k: c.Contract) -> Unseen | None:
        """Values where the weights of an average vanish: (condition, dimensions of the values)."""
        made = self.makers.get(k.x)
        scores = self.makers.get(made.x) if isinstance(made, c.Softmax) and not made.log else None
        mask = scores.y.mask if isinstance(scores, c.Add) and scores.x.shape == scores.out.shape else None
        if not isinstance(made, c.Softmax) or mask is None or not mask.low or made.dim not in mask.dims:
            return None
        labels = [k.x_labels[d] for d in mask.dims]
        if k.x_labels[made.dim] in k.out_labels or not set(labels) <= set(k.y_labels) or k.window:
            return None
        # where a whole row has no weight anywhere, it averages what does not count, and must not count itself
        rows = frozenset(
            (condition, tuple(k.x_labels.index(k.out_labels[d]) for d in dims))
            for condition, dims in self.unseen[k.out]
            if all(k.out_labels[d] in k.x_labels for d in dims)
        )
        return (mask.condition, tuple(map(k.y_labels.index, labels))) if self._rows(made, mask, rows) else None


def _wide(group: tuple[list[int], list[int]], k: c.Reshape) -> tuple[list[int], list[int]]:
    left, right = group
    return [d for d in left if k.x.shape[d] > 1], [d for d in right if k.out.shape[d] > 1]


def _but(dims: tuple[int, ...], at: int) -> tuple[int, ...]:
    return dims[:at] + dims[at + 1 :]
