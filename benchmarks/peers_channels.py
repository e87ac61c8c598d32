"""Peers that find permutations of channels: Torch-Pruning's dependency graph, and rebasin."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from peers_methods import Done, Inputs, Refused, untie
from peers_worker import change, first, observe
from torch import Tensor, nn

# what projections onto heads are called
_HEADS = re.compile(r"(^|[._])(q|k|v|qkv|query|key|value|query_key_value|q_lin|k_lin|v_lin)(_proj)?$")
_FUSED = re.compile(r"qkv|query_key_value")


# -- Torch-Pruning ---------------------------------------------------------------------------------------------
def torch_pruning(model: Any, inputs: Inputs) -> Done:
    """Every group of the dependency graph but those of the outputs, read as a permutation of channels.

    A group lists, for every layer in it, which of its channels belong to which channel of the root; whoever may remove
    a channel everywhere at once may also exchange two of them everywhere. Projections onto heads are told, as its
    examples do (`num_heads`); there the entries of all heads are exchanged alike (its `prune_head_dims`) or the heads
    (its `prune_num_heads`), and it is enough if one of the two keeps the function. As when it prunes, every layer gets
    a parameter of its own, so that a tied one is untied.
    """
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(
        model, example_inputs=dict(inputs), output_transform=first, verbose=False
    )
    last = [m for m, node in graph.module2node.items() if isinstance(m, nn.Module) and not node.outputs]
    dims = _head_dims(model)
    groups = []
    for group in graph.get_all_groups(ignored_layers=last):
        width = len(group[0].idxs)
        if width > 1 and not any("Output" in type(dep.target.module).__name__ for dep, _ in group):
            groups.append((graph._module2name.get(group[0].dep.target.module, ""), width, group))
    if not groups:
        raise Refused("no group of channels")

    def judge(before: Tensor, kept: float) -> dict[str, Any]:
        double = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        model.double()
        found = []
        for number, (root, width, group) in enumerate(groups):
            tried = []
            for reading, order in [*_orders(group, width, dims, number), *_coupled(graph, group, width, number)]:
                row: dict[str, Any] = {"root": root, "width": width, "reading": reading}
                try:
                    with _moved(model, group, order) as touched:
                        row |= {"touched": touched, "change": change(before, observe(model, double))}
                except Exception as error:  # a group that does not fit its tensors
                    row["error"] = f"{type(error).__name__}: {error}"[:200]
                tried.append(row)
            found.append(min(tried, key=lambda r: r.get("change", 1e9)))
        right = [row for row in found if row.get("change", 1e9) <= kept]
        wrong = [row for row in found if row.get("change", 0.0) > kept]
        outcome = "wrong" if wrong else "refused" if len(right) < len(found) else "kept"
        told = {"symmetries": len(right), "groups": len(found), "found": found}
        return {"outcome": outcome, "change": max((r.get("change", 0.0) for r in found), default=0.0)} | told

    return Done(model, {}, judge)


def _head_dims(model: nn.Module) -> dict[int, tuple[int, bool]]:
    """id of a projection onto heads → entries of one head, and whether it makes queries, keys and values at once."""
    found: dict[int, tuple[int, bool]] = {}
    config: Any = getattr(model, "config", None)
    modules = dict(model.named_modules())
    for name, module in modules.items():
        told = (modules[name.rpartition(".")[0]], config) if name else ()
        keys = ("num_attention_heads", "n_heads", "num_heads")
        heads = next((h for o in told for key in keys if isinstance(h := getattr(o, key, None), int)), None)
        if isinstance(module, nn.Linear) and _HEADS.search(name) and isinstance(heads, int):
            size, fused = getattr(config, "head_dim", None), bool(_FUSED.search(name))
            plain = max(1, module.out_features // ((3 if fused else 1) * heads))
            fits = isinstance(size, int) and module.out_features % size == 0
            found[id(module)] = (size if fits else plain, fused)
    return found


def _orders(group: Any, width: int, dims: dict[int, tuple[int, bool]], seed: int) -> list[tuple[str, Tensor]]:
    """Permutations of the root's channels: of all, or, where the group is of heads, of entries and of whole heads."""
    generator = torch.Generator().manual_seed(seed)
    told = {dims[id(d.target.module)] for d, _ in group if id(d.target.module) in dims and "out" in d.handler.__name__}
    size, fused = min(told, default=(0, False))
    if not size or width % size:
        return [("channels", _derangement(width, generator))]
    channels = torch.arange(width)
    found = [("entries of heads", (channels[::size, None] + _derangement(size, generator)).reshape(-1))]
    if not fused or width % (3 * size):
        found.append(("heads", channels.reshape(-1, size)[_derangement(width // size, generator)].reshape(-1)))
    else:  # queries, keys and values stand one after the other, or head by head
        heads = _derangement(width // (3 * size), generator)
        found.append(("heads in each third", channels.reshape(3, -1, size)[:, heads].reshape(-1)))
        found.append(("heads of three parts", channels.reshape(-1, 3 * size)[heads].reshape(-1)))
    return [(reading, order) for reading, order in found if not torch.equal(order, channels)]


def _coupled(graph: Any, group: Any, width: int, seed: int) -> list[tuple[str, Tensor]]:
    """A permutation of sets of channels of the root that must go together, where a layer lists only some channels."""
    if all(len(set(item.root_idxs)) == width for item in group):
        return []
    root = group[0].dep
    sets = {tuple(sorted(graph.get_pruning_group(root.target.module, root.handler, [i])[0].idxs)) for i in range(width)}
    if len({len(s) for s in sets}) > 1 or sum(map(len, sets)) != width or len(sets) < 2:
        return []
    blocks = torch.tensor(sorted(sets))
    order = torch.empty(width, dtype=torch.int64)
    order[blocks.reshape(-1)] = blocks[_derangement(len(blocks), torch.Generator().manual_seed(seed))].reshape(-1)
    return [("coupled channels", order)]


def _derangement(n: int, generator: torch.Generator) -> Tensor:
    """A random permutation that is not the identity, where there is one."""
    while n > 1:
        order = torch.randperm(n, generator=generator)
        if not torch.equal(order, torch.arange(n)):
            return order
    return torch.zeros(n, dtype=torch.int64)


@contextlib.contextmanager
def _moved(model: nn.Module, group: Any, order: Tensor) -> Iterator[list[list[Any]]]:
    """The model with the channels of a group permuted; gives [name, axis, where each entry is from] of what moved."""
    owners = {id(p): (m, key) for m in model.modules() for key, p in m.named_parameters(recurse=False)}
    names = {id(m): name for name, m in model.named_modules()}
    source: dict[tuple[int, str, int], tuple[nn.Module, Tensor]] = {}
    for item in group:
        places: dict[int, list[int]] = {}
        for at, root in zip(item.idxs, item.root_idxs, strict=True):
            places.setdefault(int(root), []).append(int(at))
        for module, key, axis in _tensors(item.dep, owners):
            tensor = getattr(module, key)
            place = (id(module), key, axis)
            where = source.get(place, (module, torch.arange(tensor.shape[axis])))[1]
            for root, ats in places.items():
                where[ats] = torch.tensor(places[int(order[root])])
            source[place] = (module, where)
    before = {(m, key): getattr(m, key) for (_, key, _), (m, _) in source.items()}
    try:
        for (_, key, axis), (module, where) in source.items():
            moved = getattr(module, key).detach().index_select(axis, where)
            setattr(module, key, nn.Parameter(moved) if isinstance(before[module, key], nn.Parameter) else moved)
        yield [
            [f"{names[id(m)]}.{key}".lstrip("."), axis, where.tolist()] for (_, key, axis), (m, where) in source.items()
        ]
    finally:
        for (module, key), tensor in before.items():
            setattr(module, key, tensor)


def _tensors(dependency: Any, owners: dict[int, tuple[nn.Module, str]]) -> list[tuple[nn.Module, str, int]]:
    """The tensors of a layer that carry the channels of a dependency, and the axis on which they do."""
    module, name = dependency.target.module, dependency.handler.__name__
    if isinstance(module, nn.Parameter):
        dim = dependency.target.pruning_dim
        return [(*owners[id(module)], dim % module.ndim)] if dim is not None else []
    if not isinstance(module, nn.Module) or getattr(module, "weight", None) is None:
        return []
    inward = "in_channels" in name
    if isinstance(module, nn.Embedding):
        return [(module, "weight", 1)]
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        depthwise = getattr(module, "groups", 1) > 1 and module.groups == module.out_channels
        bias = [(module, "bias", 0)] if module.bias is not None and (not inward or depthwise) else []
        swapped = getattr(module, "transposed", False)
        return [(module, "weight", 0 if depthwise else int(inward ^ swapped)), *bias]
    carried = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [(module, key, 0) for key, t in carried if t is not None and t.ndim == 1]


# -- rebasin ---------------------------------------------------------------------------------------------------
class _Positional(nn.Module):
    """A model that takes its inputs by position and returns one tensor, as rebasin expects."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> Tensor:
        out = first(self.model(**dict(zip(self.names, values, strict=True))))
        assert out is not None
        return out


def rebasin_untied(model: Any, inputs: Inputs) -> Done:
    """As `rebasin`, with a parameter of its own for every layer."""
    untie(model)
    return rebasin(model, inputs)


def rebasin(model: Any, inputs: Inputs) -> Done:
    """The model permuted towards another one with other weights: its own function must stay.

    Three rounds, for time: what is asked is whether the permutations are right, not whether they are the best. It
    leaves running statistics to be computed again, so that they are trivial here.
    """
    from rebasin import PermutationCoordinateDescent

    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.reset_running_stats()
    wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    plain = observe(copy.deepcopy(model).double(), wide)
    values = tuple(inputs.values())
    b = _Positional(model, list(inputs))
    a = copy.deepcopy(b)
    generator = torch.Generator().manual_seed(7)
    before = {n: p.detach().clone() for n, p in b.named_parameters()}
    with torch.no_grad():
        for p in a.parameters():
            p.copy_(p.reshape(-1)[torch.randperm(p.numel(), generator=generator)].reshape(p.shape))
    descent = PermutationCoordinateDescent(a, b, values[0] if len(values) == 1 else list(values))
    descent.rebasin(max_iterations=3)
    moved = [
        p
        for p, _ in descent.pinit.model_graph.permutation_to_info
        if p is not None and not torch.equal(p.perm_indices.cpu(), torch.arange(len(p.perm_indices)))
    ]
    if not moved or all(torch.equal(before[n], p) for n, p in b.named_parameters()):
        raise Refused("no permutation to apply")

    def judge(_: Tensor, kept: float) -> dict[str, Any]:
        off = change(plain, observe(model.double(), wide))
        return {"outcome": "kept" if off <= kept else "wrong", "change": off, "symmetries": len(moved)}

    return Done(model, {}, judge)
