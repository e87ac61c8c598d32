"""Tokens that are no words: placeholders of pictures, whose rows are written over, and padding."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

import torchgauge as tg
from torchgauge.certify.draws import Draws, reserved

WORDS, PICTURE, WIDTH = 20, 19, 5


class Captioner(nn.Module):
    """A picture's features put among the embeddings of words, then read position by position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(image_token_id=PICTURE, hidden_size=WIDTH, to_dict=dict)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.project = nn.Linear(3, WIDTH)
        self.read = nn.Linear(WIDTH, 7, bias=False)
        self.head = nn.Linear(7, 9)

    def forward(self, input_ids: Tensor, features: Tensor) -> Tensor:
        x = self.words(input_ids)
        mask = (input_ids == PICTURE).unsqueeze(-1).expand_as(x)
        x = x.masked_scatter(mask, self.project(features))
        return self.head(self.read(x).tanh())


def _inputs() -> dict[str, Tensor]:
    ids = torch.tensor([[1, PICTURE, PICTURE, 2, 3, 4], [5, 6, PICTURE, PICTURE, 7, 8]])
    return {"input_ids": ids, "features": torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))}


def test_rows_that_are_written_over_keep_their_frame() -> None:
    model = Captioner().eval()
    group = tg.infer(model, (), _inputs())
    assert group.program.opaque == []
    certificate = tg.certify(model, (), _inputs(), group=group)
    # GL of the embeddings, traded between both writers and the reader
    assert certificate.sound and certificate.complete
    assert certificate.orbit_dimension == WIDTH**2
    # the row of the placeholder is never read
    assert certificate.dead_parameters == WIDTH


def test_a_mask_that_cuts_rows_is_refused() -> None:
    class Holes(Captioner):
        def forward(self, input_ids: Tensor, features: Tensor) -> Tensor:
            x = self.words(input_ids)
            mask = (input_ids == PICTURE).unsqueeze(-1) & (torch.arange(WIDTH) < 3)
            return self.head(self.read(x.masked_scatter(mask, self.project(features))).tanh())

    group = tg.infer(Holes().eval(), (), _inputs())
    assert [reason for reason, _ in group.program.opaque] == ["no rule for aten.masked_scatter.default"]


def test_placeholders_stay_where_they_are() -> None:
    model = Captioner().eval()
    assert reserved(model) == {PICTURE}
    inputs = _inputs()
    draws = Draws((), inputs, lambda args, kwargs: model(*args, **kwargs), torch.Generator(), reserved(model))
    where = inputs["input_ids"] == PICTURE
    seen: set[int] = set()
    for _ in range(12):
        ids = draws.next()[1]["input_ids"]
        assert torch.equal(ids == PICTURE, where)
        seen |= set(ids.flatten().tolist())
    assert seen == set(range(WORDS))


def test_padding_with_a_position_of_its_own_is_not_drawn() -> None:
    one = nn.Sequential(nn.Embedding(9, 4, padding_idx=1), nn.Linear(4, 4))
    assert reserved(one) == set()
    two = nn.ModuleDict({"words": nn.Embedding(9, 4, padding_idx=1), "places": nn.Embedding(9, 4, padding_idx=1)})
    assert reserved(two) == {1}
    # a table that is smaller than twice what is reserved, or does not reach it, is drawn whole
    draws = Draws((torch.tensor([0, 1, 1]),), {}, lambda args, _: nn.Embedding(2, 3)(args[0]), torch.Generator(), {1})
    assert {i for _ in range(6) for i in draws.next()[0][0].tolist()} == {0, 1}


def test_identifiers_are_found_behind_copies() -> None:
    class Prompted(nn.Module):
        """Positions first, and a prompt in front, as in XLNet and CpmAnt."""

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WORDS, WIDTH)

        def forward(self, ids: Tensor) -> Tensor:
            ids = ids.transpose(0, 1).contiguous().to(torch.int32)
            return self.words(torch.cat([torch.zeros(1, ids.shape[1], dtype=ids.dtype), ids]))

    model = Prompted()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    draws = Draws((ids,), {}, lambda args, _: model(*args), torch.Generator())
    assert {i for _ in range(4) for i in draws.next()[0][0].flatten().tolist()} == set(range(WORDS))
