"""In-place writes, assigned parts and regions of an exported graph become plain functional operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.test_capture import Net, check, targets


def test_writes_through_views_become_functional() -> None:
    class Writes(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.zeros(x.shape[0], 4)
            y[:, 1:] = super().forward(x)[:, 1:]
            z = y.view(-1)
            z.mul_(2.0)
            y += 1.0
            return y + F.relu_(self.second(self.first(x)))

    captured = check(Writes(), torch.randn(3, 4))
    assert "aten.linear.default" in targets(captured)


def _parts(x: Tensor, y: Tensor) -> Tensor:
    out = x.new_empty(3, 6)
    out[:, :2], out[:, 2:] = y[:, :2], x[:, :4]
    return out


def _rows_and_entries(x: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros(3, 4)
    out[1], out[2, 1:3], out[..., 3] = y[0], 1.0, x[:, 0]
    return out


def _old_part(x: Tensor, y: Tensor) -> Tensor:
    out = y * 2.0
    old = out[:, :2] + 1.0
    out[:, :2] = out[:, 2:]
    return torch.cat([out, old], 1)


def _part_read_later(x: Tensor, y: Tensor) -> Tensor:
    out = y * 2.0
    part = out[:, 1:3]
    out[:, :2] = x[:, :2]
    return torch.cat([out, part], 1)


def _part_of_a_part(x: Tensor, y: Tensor) -> Tensor:
    out = y * 2.0
    out[1:][:, 1:][0] = x[0, 1:]
    out.relu_()
    out[0] = out[1]
    return out


@pytest.mark.parametrize("write", [_parts, _rows_and_entries, _old_part, _part_read_later, _part_of_a_part])
def test_parts_that_are_assigned(write: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Writes(Net):
        def forward(self, x: Tensor) -> Tensor:
            return write(x, super().forward(x))

    captured = check(Writes(), torch.randn(3, 4))
    calls = [node for node in captured.graph_module.graph.nodes if node.op == "call_function"]
    assert not any(node.target._schema.is_mutable for node in calls)


def test_read_before_an_in_place_write_sees_the_old_value() -> None:
    class Old(Net):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            old = hidden * 3.0
            hidden.relu_()
            return self.second(hidden) + self.second(old)

    captured = check(Old(), torch.randn(3, 4))
    assert "aten.relu.default" in targets(captured)


def test_regions_are_inlined() -> None:
    class Regions(Net):
        @torch.no_grad()
        def angles(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return x.cos()

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                y = super().forward(x)
            return y * self.angles(x)

    captured = check(Regions(), torch.randn(3, 4))
    assert targets(captured)[-1] == "aten.mul.Tensor"
    cosine = next(n for n in captured.graph_module.graph.nodes if "cos" in str(n.target))
    assert "test_trace.py" in captured.source(cosine)
