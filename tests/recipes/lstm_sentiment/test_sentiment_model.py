"""The sentiment model reads each row up to its own length, whatever stands beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from castiron_recipes.lstm_sentiment.model import (
    PAD,
    UNKNOWN,
    FeatureDropout,
    SentimentLSTM,
    VariableLengthLSTM,
    WordDropout,
    pool,
)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_equals_torch_on_packed_sequences_forward_and_backward(layers: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    ours = VariableLengthLSTM(5, 7, layers=layers, bidirectional=bidirectional)
    theirs = nn.LSTM(5, 7, layers, batch_first=True, bidirectional=bidirectional)
    for i in range(layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(theirs, f"{name}_l{i}").data.copy_(getattr(ours.ahead[i], f"{name}_l0").data)
            if bidirectional:
                getattr(theirs, f"{name}_l{i}_reverse").data.copy_(getattr(ours.back[i], f"{name}_l0").data)
    x = torch.randn(4, 9, 5)
    length = torch.tensor([9, 1, 5, 3])
    inside = (torch.arange(9) < length[:, None])[:, :, None]
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    packed = pack_padded_sequence(b, length, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True, total_length=9)
    found = ours(a, length) * inside
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    (found**2).sum().backward()
    (expected**2).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["max", "mean", "max+mean"])
def test_logits_of_a_row_depend_neither_on_padding_nor_on_other_rows(pooling: str) -> None:
    torch.manual_seed(1)
    model = SentimentLSTM(30, 2, embedding=6, hidden=4, pooling=pooling).eval()  # type: ignore[arg-type]
    row = torch.tensor([[5, 9, 12]])
    alone = model(row, torch.tensor([3]))
    beside = torch.full((3, 8), PAD)
    beside[1, :3] = row
    beside[0] = torch.randint(2, 30, (8,))
    beside[2, :1] = 7
    together = model(beside, torch.tensor([8, 3, 1]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-6)


def test_pooling_counts_only_real_tokens() -> None:
    x = torch.tensor([[[1.0], [3.0], [100.0]], [[-5.0], [-7.0], [-6.0]]])
    length = torch.tensor([2, 3])
    assert pool(x, length, "max").tolist() == [[3.0], [-5.0]]
    assert pool(x, length, "mean").tolist() == [[2.0], [-6.0]]
    assert pool(x, length, "max+mean").shape == (2, 2)


def test_word_dropout_hides_words_and_never_padding() -> None:
    torch.manual_seed(2)
    ids = torch.tensor([[5, 6, PAD, PAD]]).repeat(400, 1)
    layer = WordDropout(0.25)
    hidden = layer(ids)
    assert (hidden[:, 2:] == PAD).all()
    assert 0.2 < (hidden[:, :2] == UNKNOWN).float().mean() < 0.3
    assert layer.eval()(ids) is ids


def test_feature_dropout_uses_one_mask_for_all_tokens_of_a_row() -> None:
    torch.manual_seed(3)
    y = FeatureDropout(0.5)(torch.ones(2, 6, 40))
    assert (y == y[:, :1]).all()
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert (y[0, 0] != y[1, 0]).any()


def test_pretrained_vectors_replace_only_the_words_they_have() -> None:
    vectors = torch.zeros(6, 3)
    vectors[4] = torch.tensor([1.0, 2.0, 3.0])
    model = SentimentLSTM(6, 2, embedding=3, hidden=2, vectors=vectors)
    assert model.embedding.weight[4].tolist() == [1.0, 2.0, 3.0]
    assert model.embedding.weight[3].abs().sum() > 0
    assert model.embedding.weight[PAD].tolist() == [0.0, 0.0, 0.0]
