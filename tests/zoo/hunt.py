"""Hunt for a network whose gauge group is wrong: `python -m tests.zoo.hunt [--seconds 60] [--first 0] [--depth 2]`.

Random trees, or with --leaves every operator alone; each failure shrunk to a smallest one and printed once. The
property tests are the same in short.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator

from tests.laws.test_random_graphs import TRAPS, assert_never_wrong, network
from tests.zoo.graphs import COMBINATORS, LEAVES, Kind, Tree

Options = tuple[Kind, bool, bool]


def failure(tree: Tree, options: Options) -> str | None:
    """What is wrong with the network of this tree, in one line."""
    try:
        assert_never_wrong(network(tree, *options))
    except AssertionError as error:
        return str(error).split("\n")[0][:90]
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:120]
    return None


def smaller(tree: Tree) -> Iterator[Tree]:
    for i, step in enumerate(tree):
        before, after = tree[:i], tree[i + 1 :]
        yield (*before, *after)
        if not isinstance(step, str):
            name, body = step
            yield (*before, *body, *after)
            for part in smaller(body):
                if part:
                    yield (*before, (name, part), *after)


def shrink(tree: Tree, options: Options, found: str) -> tuple[Tree, str]:
    for candidate in smaller(tree):
        again = failure(candidate, options) if candidate else None
        if again:
            return shrink(candidate, options, again)
    return tree, found


def random_tree(draw: random.Random, deepest: int, depth: int = 0) -> Tree:
    steps: list = []
    for _ in range(draw.randint(1, 5 if depth == 0 else 3)):
        if depth < deepest and draw.random() < 0.3:
            steps.append((draw.choice(COMBINATORS), random_tree(draw, deepest, depth + 1)))
        else:
            steps.append(draw.choice(sorted(LEAVES)))
    return tuple(steps)


def simple_trees() -> Iterator[tuple[Tree, Options]]:
    trees: list[Tree] = list(TRAPS.values())
    for leaf in sorted(LEAVES):
        trees += [(leaf,), ("relu", leaf), ("linear", leaf, "linear"), (("residual", (leaf,)), "layer_norm")]
    for tree in trees:
        for kind in ("sequence", "image"):
            yield tree, (kind, True, False)


def random_trees(first: int, deepest: int) -> Iterator[tuple[Tree, Options]]:
    seed = first
    while True:
        draw = random.Random(seed)
        kind: Kind = draw.choice(("sequence", "image"))
        yield random_tree(draw, deepest), (kind, draw.random() < 0.7, kind == "image" and draw.random() < 0.3)
        seed += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--depth", type=int, default=2, help="how deep branches nest")
    parser.add_argument("--leaves", action="store_true", help="every operator alone and every trap instead")
    options = parser.parse_args()
    seen: set[tuple[Tree, Kind]] = set()
    start, count = time.monotonic(), 0
    for tree, how in simple_trees() if options.leaves else random_trees(options.first, options.depth):
        if time.monotonic() - start > options.seconds:
            break
        count += 1
        found = failure(tree, how)
        if found is None:
            continue
        small, found = shrink(tree, how, found)
        if (small, how[0]) not in seen:
            seen.add((small, how[0]))
            kind, head, train = how
            print(f"{kind} {'' if head else 'no head '}{'training ' if train else ''}{small} -> {found}", flush=True)
    print(f"{count} networks, {len(seen)} smallest failures")


if __name__ == "__main__":
    main()
