"""The certificate: right groups pass, wrong ones are caught, missing factors are counted and named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import torchgauge as tg
from torchgauge.certify.draws import Draws
from torchgauge.errors import InputError

from . import oracle
from .test_kinks import layers
from .test_oracle import TinyLlama
from .zoo import catalogue

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Factor:
    """The part of a factor that a certificate looks at."""

    name: str
    exact: bool = True
    kind: str = "by hand"


class Rescaling:
    """The group of a ReLU network 0 → 2 by hand: positive scales and permutations of the hidden units."""

    observed = ("outputs[0]",)

    def __init__(self, n: int, *, units: int | None = None, wrong: float = 0.0) -> None:
        self.n, self.units, self.wrong = n, n if units is None else units, wrong
        self.factors = (Factor("hidden"),)

    def random(self, generator: torch.Generator | None = None, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        logs = scale * torch.randn(self.n, generator=generator, dtype=torch.float64)
        return torch.randperm(self.n, generator=generator), logs.exp()

    def act(self, element: tuple[Tensor, Tensor], p: Params) -> Params:
        order, d = element
        out = dict(p)
        out["0.weight"] = (d[:, None] * p["0.weight"])[order]
        out["0.bias"] = (d * p["0.bias"])[order]
        out["2.weight"] = (p["2.weight"] / d * (1.0 + self.wrong))[:, order]
        return out

    @property
    def tangent_count(self) -> int:
        return self.units

    @property
    def generators(self) -> list[tuple[str, int, None, tuple[int, ...]]]:
        return [("hidden", 0, None, (self.units,))]

    def tangent(self, p: Params, i: int) -> Params:
        e = torch.zeros(self.n, dtype=torch.float64)
        e[i] = 1.0
        return {
            "0.weight": e[:, None] * p["0.weight"],
            "0.bias": e * p["0.bias"],
            "2.weight": -p["2.weight"] * e * (1.0 + self.wrong),
        }

    def reads(self, name: str) -> bool:
        return True

    def tangents(self, p: Params) -> list[tuple[str, Params]]:
        return [("hidden", self.tangent(p, i)) for i in range(self.units)]


def relu_net(n: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2))


@pytest.fixture(scope="module")
def whole() -> tg.Certificate:
    return tg.certify(relu_net(), (torch.randn(8, 3),), group=Rescaling(5))  # pyright: ignore


def test_right_group_is_sound_and_complete(whole: tg.Certificate) -> None:
    assert whole.sound
    assert whole.complete
    assert whole.holds
    assert whole.defect < 1e-12
    assert (whole.orbit_dimension, whole.nullity, whole.hidden, whole.dead_parameters) == (5, 5, 0, 0)
    assert whole.gap > 5
    assert whole.parameters == 32
    assert whole.rows >= 2 * 32


def test_a_single_tensor_is_the_only_argument(whole: tg.Certificate) -> None:
    net, x = relu_net(), torch.randn(8, 3)
    group = tg.infer(net, x)
    assert group.dimension == tg.infer(net, (x,)).dimension == whole.orbit_dimension
    assert tg.certify(net, x, group=group).rows == tg.certify(net, (x,), group=group).rows


def test_certificate_prints_and_converts(whole: tg.Certificate) -> None:
    assert "nullity 5 = orbit 5 + hidden 0" in str(whole)
    assert json.loads(json.dumps(whole.to_dict()))["hidden"] == 0


def test_missing_generator_is_hidden_and_named() -> None:
    found = tg.certify(relu_net(), (torch.randn(8, 3),), group=Rescaling(5, units=4))  # pyright: ignore
    assert found.sound
    assert not found.complete
    assert found.hidden == 1
    assert not found.undecided  # a network with kinks, and the same direction is missing at every point
    assert {name for name, _ in found.hidden_in} == {"0.weight", "0.bias", "2.weight"}


@pytest.mark.parametrize("wrong", [1e-3, 1e-8])
def test_wrong_group_is_not_sound(wrong: float) -> None:
    found = tg.certify(relu_net(), (torch.randn(8, 3),), group=Rescaling(5, wrong=wrong))  # pyright: ignore
    assert not found.sound
    assert found.defect > 0.01 * wrong


class Rounded(Rescaling):
    """The same, with roundings a million times as large, as behind equations that are nearly singular."""

    def act(self, element: tuple[Tensor, Tensor], p: Params) -> Params:
        out = super().act(element, p)
        rounding = p["0.weight"] / 3.0 * 3.0 - p["0.weight"]
        return out | {"0.weight": out["0.weight"] + 1e6 * rounding}


def test_rounding_of_the_action_is_no_defect() -> None:
    found = tg.certify(relu_net(), (torch.randn(8, 3),), group=Rounded(5))  # pyright: ignore
    assert found.sound and found.defect > 1e-11
    assert not tg.certify(relu_net(), (torch.randn(8, 3),), group=Rounded(5, wrong=1e-6)).sound  # pyright: ignore


def test_the_model_is_left_alone() -> None:
    net = relu_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    tg.certify(net, (torch.randn(8, 3),), group=Rescaling(5))  # pyright: ignore
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


class Rigid:
    """No symmetry claimed."""

    factors = ()
    observed = ("outputs[0]",)
    tangent_count = 0

    def random(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        return None

    def act(self, element: None, p: Params) -> Params:
        return dict(p)

    def reads(self, name: str) -> bool:
        return True

    def tangents(self, p: Params) -> list[tuple[str, Params]]:
        return []


def test_too_few_inputs_are_reported() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    few = tg.certify(net, (torch.randn(4, 6),), group=Rigid(), samples=5)  # pyright: ignore
    assert not few.complete
    assert few.undecided == "inputs were too few"
    assert any("5 gave 20 rows for 49 parameters; take 25" in note for note in few.notes)
    assert "complete   open" in str(few)
    many = tg.certify(net, (torch.randn(4, 6),), group=Rigid())  # pyright: ignore
    assert many.complete
    assert not any("too few" in note for note in many.notes)


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(50, 3, padding_idx=0), nn.Embedding(9, 3)
        self.out, self.idle = nn.Linear(3, 4), nn.Linear(2, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(ids) + self.place(torch.arange(ids.shape[1]))))


def test_entries_that_no_input_reads_are_counted_apart() -> None:
    ids = torch.randint(50, (2, 5))
    found = tg.certify(Tables(), (ids,), group=Rigid())  # pyright: ignore
    # four positions of width three and the idle layer; every vocabulary row is drawn, the padding row too
    assert found.dead_parameters == 4 * 3 + 6
    # the two tables trade a shift; nothing else
    assert found.nullity == 3
    assert {name for name, _ in found.hidden_in} == {"embed.weight", "place.weight"}


class CountedPositions(nn.Module):
    """Positions are counted without padding, which has one of its own; the classifier is the word table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 4, padding_idx=0), nn.Embedding(8, 4, padding_idx=0)
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 20)
        self.norms = nn.ModuleList(nn.LayerNorm(4, eps=0.1) for _ in range(2))
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        real = (ids != 0).long()
        x = self.norms[0](self.embed(ids) + self.place(real.cumsum(1) * real))
        return self.head(self.norms[1](torch.tanh(self.inner(x))))


def test_the_row_of_a_token_that_is_never_drawn() -> None:
    found = tg.certify(CountedPositions(), torch.randint(1, 20, (4, 6)))
    assert found.sound
    assert found.complete, found
    assert any(note.startswith("1 directions move rows of tokens that no input reads") for note in found.notes)


def test_the_row_of_a_placeholder_that_is_replaced() -> None:
    class Pictures(nn.Module):
        """A placeholder stands where a picture is put, and is read as a row of the decoder alone."""

        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(image_token_id=7, to_dict=dict)
            self.words, self.norm, self.mix = nn.Embedding(20, 4), nn.LayerNorm(4, bias=False), nn.Linear(4, 4)

        def forward(self, ids: Tensor, picture: Tensor) -> Tensor:
            x = self.words(ids).masked_scatter((ids == 7).unsqueeze(-1), picture)
            return self.norm(x + self.mix(x.sin().cumsum(1))) @ self.words.weight.T

    ids = torch.randint(8, 20, (4, 6))
    ids[:, 2] = 7
    found = tg.certify(Pictures(), (ids, torch.randn(4, 4)))
    assert found.complete, found
    assert any(note.startswith("1 directions move rows of tokens that no input reads") for note in found.notes)


def test_weights_that_read_zeros_move_nothing() -> None:
    class Missing(nn.Module):
        """What should attend gives zeros, through views, as MRA does without its kernels."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.o, self.norm = nn.Linear(3, 4), nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            seen = torch.zeros_like(x).view(-1, 2, 2)[:, :, :].transpose(1, 2).contiguous().view(-1, 4)
            return torch.tanh(self.norm(x + self.o(seen)))

    found = tg.certify(Missing(), (torch.randn(6, 3),))
    assert found.sound and found.complete
    assert found.dead_parameters == 16


def test_column_that_moves_nothing_is_not_dead() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.a(x) + self.b - self.b, -1)

    found = tg.certify(Idle(), (torch.randn(4, 3),), group=Rigid())  # pyright: ignore
    # b is read and cancels: a kernel direction each, not a dead entry; softmax hides a shift of four weights
    assert found.dead_parameters == 0
    assert found.nullity == 4 + 4


def test_not_finite_is_an_error() -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) / 0.0

    with pytest.raises(InputError, match="not finite"):
        tg.certify(Bad(), (torch.randn(2, 2),), group=Rigid())  # pyright: ignore


def test_a_large_model_wants_a_twin_and_takes_one() -> None:
    def net(n: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2))

    big, group = net(1500), Rescaling(1500)
    alone = tg.certify(big, (torch.randn(8, 3),), group=group)  # pyright: ignore
    assert alone.sound
    assert not alone.complete
    assert alone.nullity is None
    assert "twin=" in alone.undecided
    assert alone.tangent_defect < 1e-10


def test_wrong_generator_of_a_large_model_is_caught() -> None:
    big = nn.Sequential(nn.Linear(3, 1500), nn.ReLU(), nn.Linear(1500, 2))
    found = tg.certify(big, (torch.randn(8, 3),), group=Rescaling(1500, wrong=1e-4))  # pyright: ignore
    assert not found.sound
    assert found.tangent_defect > 1e-6


# -- with the inferred group -------------------------------------------------------------------------------------
def test_agrees_with_the_oracle_on_a_tiny_llama() -> None:
    net, ids = TinyLlama(), torch.randint(24, (2, 6))
    found = tg.certify(net, (ids,))
    assert found.holds
    assert found.defect < 1e-12
    judged = oracle.nullity(net, lambda g: torch.randint(24, (2, 6), generator=g))
    assert (found.nullity, found.dead_parameters) == (judged.nullity, judged.dead) == (78, 0)


def test_a_group_that_is_too_small_is_told_from_sleeping_units() -> None:
    """The hidden directions of three points are compared: those of an architecture are always at the same places."""
    group = Rescaling(5, units=0)
    found = tg.certify(relu_net(), (torch.randn(8, 3),), group=group)  # pyright: ignore
    assert (found.hidden, found.complete, found.undecided) == (5, False, "")


def test_what_counts_of_the_outputs() -> None:
    net, x = layers(4, 6, 3, act=nn.Tanh), torch.randn(8, 4)
    found = tg.certify(net, (x,), observable="probabilities")
    assert found.holds, found
    assert (found.orbit_dimension, found.observed) == (7, ("probabilities",))


def test_whoever_waits_is_told() -> None:
    told: list[str] = []
    tg.certify(layers(4, 8, 2), (torch.randn(16, 4),), tell=told.append)
    assert any("random elements" in text for text in told)
    assert any("rows" in text for text in told)


class Padded(nn.Module):
    """A table with a padding row, and norms with an ε that no number shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.place = nn.Embedding(20, 8, padding_idx=0), nn.Parameter(torch.randn(6, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 6, 0.0, "gelu", 1e-12, batch_first=True, norm_first=True)
        self.norm, self.out = nn.LayerNorm(8, eps=1e-12), nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.norm(self.layer(self.table(ids) + self.place)))


@pytest.mark.parametrize("net", [Padded().eval(), layers(6, 10, 10, 4, act=nn.ReLU6)])
def test_exported_program_is_certified_as_its_model(net: nn.Module) -> None:
    """Its operators come without their Python names, its tables have a padding row, its ε cannot be moved."""
    x = torch.randint(20, (4, 6)) if isinstance(net, Padded) else torch.randn(16, 6)
    module = torch.export.export(net, (x,)).module(check_guards=False)
    found, whole = tg.certify(module, (x,)), tg.certify(net, (x,))  # pyright: ignore[reportArgumentType]
    assert found.holds, found
    assert (found.nullity, found.orbit_dimension) == (whole.nullity, whole.orbit_dimension)
    assert (found.approximate_dimension, found.undecided) == (whole.approximate_dimension, whole.undecided)


def test_what_training_would_not_reach_counts_all_the_same() -> None:
    """A certificate is about the function: stopped gradients are no symmetry."""

    class Stopped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.a(x)
            return self.b(torch.tanh(h)).detach()

    net, x = Stopped(), torch.randn(6, 3)
    for module in (net, torch.export.export(net, (x,)).module(check_guards=False)):
        found = tg.certify(module, (x,))  # pyright: ignore[reportArgumentType]
        assert found.holds, found
        assert found.nullity == 0


def test_epsilon_too_small_to_see_is_not_taken_for_a_symmetry() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6, eps=1e-13), nn.Linear(6, 4))
    found = tg.certify(net, (torch.randn(12, 5),))
    assert found.holds
    assert found.orbit_dimension == 32
    assert net[1].eps == 1e-13


def test_hidden_directions_that_become_approximate_factors() -> None:
    case = catalogue.CASES["rows_before_a_norm_eps"]
    found = tg.certify(case.module(), case.example())
    assert found.sound
    assert found.complete, found
    assert any(note.startswith("14 directions of the kernel become approximate") for note in found.notes)
    assert found.approximate_dimension == 20


def test_twin_given_by_the_caller() -> None:
    def net(n: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2))

    found = tg.certify(net(1500), (torch.randn(8, 3),), twin=(net(6), (torch.randn(8, 3),), {}))
    assert found.holds
    assert found.twin is not None
    assert (found.orbit_dimension, found.nullity, found.twin.parameters) == (6, 6, 38)
    assert found.parameters == 9002
    assert "twin" in str(found)


def test_twin_of_another_kind_decides_nothing() -> None:
    def net(n: int, act: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, n), act, nn.Linear(n, 2))

    twin = (net(6, nn.Tanh()), (torch.randn(8, 3),), {})
    found = tg.certify(net(1500, nn.ReLU()), (torch.randn(8, 3),), twin=twin)
    assert found.twin is not None and found.twin.complete
    assert not found.complete
    assert "other kinds" in found.undecided


def test_model_without_weights_is_certified_on_its_twin() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(num_hidden_layers=2, tie_word_embeddings=True)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()
    found = tg.certify(model, (torch.zeros(1, 4, dtype=torch.int64),))
    assert found.holds
    assert found.twin is not None
    assert any("meta" in note for note in found.notes)


# -- draws -----------------------------------------------------------------------------------------------------
def test_draws_cover_the_vocabulary_and_keep_masks() -> None:
    table = torch.randn(30, 4)

    def run(args: tuple, kwargs: dict) -> Tensor:
        return nn.functional.embedding(args[0], table) * kwargs["mask"][..., None] + kwargs["x"]

    ids, mask = torch.randint(30, (2, 5)), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    example = {"mask": mask, "x": torch.zeros(2, 5, 4)}
    draws = Draws((ids,), example, run, torch.Generator().manual_seed(0))
    seen: set[int] = set()
    scales = []
    for _ in range(4):
        (drawn,), kwargs = draws.next()
        assert drawn.shape == ids.shape
        assert torch.equal(kwargs["mask"], mask)
        scales.append(float(kwargs["x"].std()))
        seen |= set(drawn.flatten().tolist())
    assert seen == set(range(30))
    assert max(scales) > 2 * min(scales) > 0
