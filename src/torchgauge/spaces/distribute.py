"""Rewriting a program before it is solved: reshapes and slices of a linear map's output move onto its weight.

A packed projection (queries, keys and values in one matrix) becomes as many projections as it has readers, and the
parts of the matrix that they use become parameters of their own. Nothing is approximated: every rewriting is an
identity between tensors.
"""

from __future__ import annotations

from dataclasses import replace

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import _groups


def distribute(program: c.Program) -> c.Program:
    """An equal program in which views stand on parameters wherever they can."""
    program = _Distributor(program).run()
    while True:
        split = _split_parameters(program)
        if split is program:
            return program
        program = split


class _Distributor:
    def __init__(self, program: c.Program) -> None:
        self.program = program
        self.readers: dict[c.Tensor, list[c.Constraint]] = {}
        for k in program.constraints:
            for t in dict.fromkeys(k.inputs):
                self.readers.setdefault(t, []).append(k)
        self.makers = {k.out: k for k in program.constraints}
        self.outputs = set(program.outputs)
        self.order: list[c.Constraint] = []

    def run(self) -> c.Program:
        for k in self.program.constraints:
            self._emit(k)
        return replace(self.program, constraints=self._prune())

    def _prune(self) -> list[c.Constraint]:
        wanted = set(self.outputs)
        kept: list[c.Constraint] = []
        for k in reversed(self.order):
            if k.out in wanted:
                kept.append(k)
                wanted.update(k.inputs)
        return kept[::-1]

    def _emit(self, k: c.Constraint) -> None:
        if isinstance(k, (c.Slice, c.Reshape)) and k.x.role == "data":
            mark = len(self.order)
            done = self._pushed(k)
            if done is not None and done is not k.x:
                self._rename(done, k.out)
                return
            del self.order[mark:]
        self._add(k)

    def _add(self, k: c.Constraint) -> c.Tensor:
        self.order.append(k)
        self.makers[k.out] = k
        return k.out

    def _rename(self, made: c.Tensor, wanted: c.Tensor) -> None:
        """Let the last constraint define the tensor that the readers know."""
        last = self.order.pop()
        assert last.out is made
        self._add(replace(last, out=wanted))

    def _sole(self, t: c.Tensor) -> bool:
        """Read by views of one kind alone, so that nothing needs the unviewed tensor."""
        readers = self.readers.get(t, [])
        if t in self.outputs or not readers:
            return t not in self.outputs
        return len(readers) == 1 or all(isinstance(k, c.Slice) for k in readers)

    def _new(self, like: c.Tensor, shape: tuple[int, ...]) -> c.Tensor:
        return c.Tensor(shape, like.role if like.role != "param" else "data", like.name, like.source)

    def _pushed(self, k: c.Constraint) -> c.Tensor | None:
        if isinstance(k, c.Slice):
            return self._slice(k.x, k.dim, k.start, k.stop)
        assert isinstance(k, c.Reshape)
        splits = _splits(k.x.shape, k.out.shape)
        if not splits:
            return None
        out: c.Tensor | None = k.x
        for dim, sizes in sorted(splits.items(), reverse=True):
            out = self._unflatten(out, dim, sizes) if out is not None else None
        if out is None or out.shape == k.out.shape:
            return out
        return self._add(c.Reshape(self._new(k.out, k.out.shape), out))

    # -- slices ------------------------------------------------------------------------------------------------
    def _slice(self, t: c.Tensor, dim: int, start: int, stop: int) -> c.Tensor | None:
        if t.shape[dim] == 1:
            return t
        shape = tuple(stop - start if i == dim else n for i, n in enumerate(t.shape))
        if self._static(t):
            return self._add(c.Slice(self._new(t, shape), t, dim, start, stop))
        if t.role != "data":
            return None
        if not self._sole(t):
            return None
        k = self.makers[t]
        if isinstance(k, c.Contract):
            found = self._free_side(k, dim)
            if found is None:
                return None
            y, at = found
            part = self._slice(y, at, start, stop)
            return None if part is None else self._add(_with_weight(k, y, part, self._new(t, shape)))
        if isinstance(k, c.Add) or (isinstance(k, c.Mul) and self._static(k.y)):
            x, y = self._slice(k.x, dim, start, stop), self._slice(k.y, dim, start, stop)
            return None if x is None or y is None else self._add(replace(k, out=self._new(t, shape), x=x, y=y))
        if isinstance(k, c.Reshape):
            at = _same_dim(k.out.shape, k.x.shape, dim)
            x = None if at is None else self._slice(k.x, at, start, stop)
            return None if x is None else self._add(c.Reshape(self._new(t, shape), x))
        if isinstance(k, c.Pointwise):
            x = self._slice(k.x, dim, start, stop)
            return None if x is None else self._add(replace(k, out=self._new(t, shape), x=x))
        if isinstance(k, c.Permute):
            x = self._slice(k.x, k.dims[dim], start, stop)
            return None if x is None else self._add(replace(k, out=self._new(t, shape), x=x))
        return None

    # -- splits ------------------------------------------------------------------------------------------------
    def _unflatten(self, t: c.Tensor, dim: int, sizes: tuple[int, ...]) -> c.Tensor | None:
        if t.shape[dim] == 1:
            shape = (*t.shape[:dim], *(1 for _ in sizes), *t.shape[dim + 1 :])
            return self._add(c.Reshape(self._new(t, shape), t))
        shape = (*t.shape[:dim], *sizes, *t.shape[dim + 1 :])
        if self._static(t):
            return self._add(c.Reshape(self._new(t, shape), t))
        if t.role != "data":
            return None
        if not self._sole(t):
            return None
        k = self.makers[t]
        if isinstance(k, c.Contract):
            found = self._free_side(k, dim)
            if found is None:
                return None
            y, at = found
            part = self._unflatten(y, at, sizes)
            if part is None:
                return None
            return self._add(_relabelled(k, y, part, dim, at, len(sizes), self._new(t, shape)))
        if isinstance(k, c.Add) or (isinstance(k, c.Mul) and self._static(k.y)):
            x, y = self._unflatten(k.x, dim, sizes), self._unflatten(k.y, dim, sizes)
            return None if x is None or y is None else self._add(replace(k, out=self._new(t, shape), x=x, y=y))
        if isinstance(k, c.Reshape):
            at = _same_dim(k.out.shape, k.x.shape, dim)
            x = None if at is None else self._unflatten(k.x, at, sizes)
            return None if x is None else self._add(c.Reshape(self._new(t, shape), x))
        return None

    def _static(self, t: c.Tensor) -> bool:
        while t.role == "data":
            made = self.makers.get(t)
            if not isinstance(made, (c.Reshape, c.Permute, c.Slice)):
                return False
            t = made.x
        return t.role == "param"

    def _free_side(self, k: c.Contract, dim: int) -> tuple[c.Tensor, int] | None:
        """The weight and its dimension that make dimension `dim` of the output, if the output has it from there."""
        label = k.out_labels[dim]
        if label in k.window:
            return None
        for t, mine, other in ((k.y, k.y_labels, k.x_labels), (k.x, k.x_labels, k.y_labels)):
            if label in mine and label not in other and self._static(t):
                return t, mine.index(label)
        return None


def _with_weight(k: c.Contract, old: c.Tensor, new: c.Tensor, out: c.Tensor) -> c.Contract:
    return replace(k, out=out, y=new) if old is k.y else replace(k, out=out, x=new)


def _relabelled(k: c.Contract, old: c.Tensor, new: c.Tensor, dim: int, at: int, n: int, out: c.Tensor) -> c.Contract:
    label = k.out_labels[dim]
    fresh = tuple(f"{label}.{i}" for i in range(n))
    out_labels = (*k.out_labels[:dim], *fresh, *k.out_labels[dim + 1 :])
    mine = k.y_labels if old is k.y else k.x_labels
    labels = (*mine[:at], *fresh, *mine[at + 1 :])
    if old is k.y:
        return replace(k, out=out, y=new, y_labels=labels, out_labels=out_labels)
    return replace(k, out=out, x=new, x_labels=labels, out_labels=out_labels)


def _splits(shape: tuple[int, ...], other: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Dimensions of `shape` that a reshape divides into several, each on its own."""
    out = {}
    for left, right in _groups(shape, other):
        big = [i for i in left if shape[i] > 1]
        sizes = tuple(other[i] for i in right if other[i] > 1)
        if len(big) == 1 and len(sizes) > 1:
            out[big[0]] = sizes
    return out


def _same_dim(shape: tuple[int, ...], other: tuple[int, ...], dim: int) -> int | None:
    """The dimension of a reshaped tensor that is dimension `dim` of the result, if it is one whole dimension."""
    for left, right in _groups(shape, other):
        if dim in left:
            a = [i for i in left if shape[i] > 1]
            b = [i for i in right if other[i] > 1]
            return b[0] if a == [dim] and len(b) == 1 else None
    return None


def _split_parameters(program: c.Program) -> c.Program:
    """Parameters that are only read through disjoint slices become one parameter per slice."""
    readers: dict[c.Tensor, list[c.Constraint]] = {}
    for k in program.constraints:
        for t in dict.fromkeys(k.inputs):
            readers.setdefault(t, []).append(k)
    params, coordinates = dict(program.params), dict(program.coordinates)
    replaced: dict[c.Constraint, None] = {}
    renamed: dict[c.Tensor, c.Tensor] = {}
    for name, tensor in program.params.items():
        if coordinates[name].kind != "plain":
            continue
        found = _disjoint_slices(tensor, readers)
        if found is None:
            continue
        shape, path, slices = found
        origin = coordinates[name]
        del params[name], coordinates[name]
        replaced.update(dict.fromkeys(path))
        for k in slices:
            replaced[k] = None
            part = f"{name}[{k.start}:{k.stop}]"
            if part not in params:
                view = (shape, k.dim, k.start, k.stop)
                params[part] = c.Tensor(k.out.shape, "param", part, tensor.source)
                coordinates[part] = replace(origin, views=(*origin.views, view))
            renamed[k.out] = params[part]
    if not renamed:
        return program
    constraints = [_renamed(k, renamed) for k in program.constraints if k not in replaced]
    return replace(program, constraints=constraints, params=params, coordinates=coordinates)


def _disjoint_slices(
    tensor: c.Tensor, readers: dict[c.Tensor, list[c.Constraint]]
) -> tuple[tuple[int, ...], list[c.Constraint], list[c.Slice]] | None:
    path: list[c.Constraint] = []
    while True:
        uses = readers.get(tensor, [])
        slices = [k for k in uses if isinstance(k, c.Slice)]
        if len(slices) > 1 and len(slices) == len(uses):
            ranges = sorted({(k.start, k.stop) for k in slices})
            if len({k.dim for k in slices}) > 1 or any(a[1] > b[0] for a, b in zip(ranges, ranges[1:], strict=False)):
                return None
            return tensor.shape, path, slices
        shapes = {k.out.shape for k in uses}
        if uses and all(isinstance(k, c.Reshape) for k in uses) and len(shapes) == 1:
            # several equal reshapes of a parameter are one
            merged = [r for k in uses for r in readers.get(k.out, [])]
            path.extend(uses)
            tensor = uses[0].out
            readers = {**readers, tensor: merged}
            if not all(isinstance(k, (c.Slice, c.Reshape)) for k in merged) or not merged:
                return None
            continue
        return None


def _renamed(k: c.Constraint, names: dict[c.Tensor, c.Tensor]) -> c.Constraint:
    changes = {}
    for field_name, value in vars(k).items():
        if isinstance(value, c.Tensor) and value in names:
            changes[field_name] = names[value]
        elif isinstance(value, tuple) and any(isinstance(v, c.Tensor) and v in names for v in value):
            changes[field_name] = tuple(names.get(v, v) for v in value)
    return replace(k, **changes) if changes else k
