"""Ordinary models, under every policy that a CPU runs: nothing above info is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from castiron.torch.audit import audit

torch.set_num_threads(1)

MODELS: dict[str, Callable[[], dict[str, Any]]] = {}


def clean(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    MODELS[make.__name__] = make
    return make


def classes(outputs: Any, batch: Any) -> Any:
    return F.cross_entropy(outputs.float(), torch.zeros(len(outputs), dtype=torch.int64))


def squares(outputs: Any, batch: Any) -> Any:
    return F.mse_loss(outputs.float(), torch.zeros_like(outputs, dtype=torch.float32))


@clean
def mlp():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))
    return {"model": model, "batch": torch.randn(16, 8), "loss": classes}


@clean
def mlp_with_layer_norm():
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))
    return {"model": model, "batch": torch.randn(16, 8), "loss": classes}


@clean
def mlp_residual():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.inner = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8))

        def forward(self, x):
            return x + self.inner(self.norm(x))

    return {
        "model": nn.Sequential(Block(), Block(), nn.Linear(8, 4)),
        "batch": torch.randn(16, 8),
        "loss": classes,
    }


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = nn.LazyLinear(4)

    def forward(self, x):
        states, _ = self.layer(x)
        return self.head(states[:, -1])


def _recurrent(layer, width):
    model = Recurrent(layer)
    model.head = nn.Linear(width, 4)
    return {"model": model, "batch": torch.randn(4, 6, 8), "loss": classes}


@clean
def lstm():
    return _recurrent(nn.LSTM(8, 16, batch_first=True), 16)


@clean
def lstm_deep_both_ways():
    return _recurrent(nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True, dropout=0.1), 32)


@clean
def lstm_with_projection():
    return _recurrent(nn.LSTM(8, 16, batch_first=True, proj_size=4), 4)


@clean
def gru():
    return _recurrent(nn.GRU(8, 16, batch_first=True), 16)


@clean
def gru_both_ways():
    return _recurrent(nn.GRU(8, 16, batch_first=True, bidirectional=True), 32)


@clean
def rnn():
    return _recurrent(nn.RNN(8, 16, batch_first=True), 16)


@clean
def lstm_cell_loop():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTMCell(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            h = x.new_zeros(len(x), 16)
            c = x.new_zeros(len(x), 16)
            for t in range(x.shape[1]):
                h, c = self.cell(x[:, t], (h, c))
            return self.head(h)

    return {"model": Loop(), "batch": torch.randn(4, 5, 8), "loss": classes}


@clean
def gru_cell_loop():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRUCell(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            h = None
            for t in range(x.shape[1]):
                h = self.cell(x[:, t], h)
            return self.head(h)

    return {"model": Loop(), "batch": torch.randn(4, 5, 8), "loss": classes}


@clean
def packed_lstm():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 16, batch_first=True)
            self.head = nn.Linear(16, 4)

        def forward(self, ids, lengths):
            packed = pack_padded_sequence(self.words(ids), lengths, batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
            return self.head(states.amax(1))

    batch = torch.randint(20, (4, 6)), torch.tensor([6, 3, 5, 2])
    return {"model": Packed(), "batch": batch, "loss": classes}


@clean
def masked_pooling():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.lstm = nn.Embedding(20, 8, padding_idx=0), nn.LSTM(8, 16, batch_first=True)
            self.head = nn.Linear(16, 4)

        def forward(self, ids, lengths):
            states, _ = self.lstm(self.words(ids))
            mask = torch.arange(ids.shape[1]) < lengths[:, None]
            states = states.masked_fill(~mask[:, :, None], torch.finfo(states.dtype).min)
            return self.head(states.amax(1))

    batch = torch.randint(20, (4, 6)), torch.tensor([6, 3, 5, 2])
    return {"model": Pooled(), "batch": batch, "loss": classes}


@clean
def convolutions_with_batch_norm():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return {"model": model, "batch": torch.randn(4, 3, 8, 8), "loss": classes}


@clean
def residual_convolutions():
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
            self.norm_a, self.norm_b = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

        def forward(self, x):
            y = F.relu(self.norm_a(self.a(x)))
            return F.relu(x + self.norm_b(self.b(y)))

    stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    model = nn.Sequential(stem, Block(8), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return {"model": model, "batch": torch.randn(4, 3, 16, 16), "loss": classes}


@clean
def convolutions_1d():
    model = nn.Sequential(
        nn.Conv1d(8, 16, 3), nn.BatchNorm1d(16), nn.ELU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(32, 4)
    )
    return {"model": model, "batch": torch.randn(4, 8, 6), "loss": classes}


@clean
def convolutions_3d():
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    return {"model": model, "batch": torch.randn(4, 1, 4, 4, 4), "loss": classes}


@clean
def group_norm():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(288, 4))
    return {"model": model, "batch": torch.randn(4, 3, 8, 8), "loss": classes}


@clean
def autoencoder():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 1, 3, 2, 1, output_padding=1), nn.Sigmoid()
    )
    return {"model": model, "batch": torch.rand(4, 1, 8, 8), "loss": squares}


@clean
def upsampling():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 1, 1)
    )
    return {"model": model, "batch": torch.rand(4, 1, 8, 8), "loss": squares}


@clean
def transformer_encoder():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(20, 16), nn.Embedding(10, 16)
            layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(16, 4)

        def forward(self, ids):
            x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
            x = self.layers(x, src_key_padding_mask=ids == 0)
            return self.head(x.mean(1))

    return {"model": Encoder(), "batch": torch.randint(1, 20, (4, 6)), "loss": classes}


@clean
def transformer_before_norm():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True, activation="gelu")
    model = nn.Sequential(
        nn.Linear(8, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 4)
    )
    return {"model": model, "batch": torch.randn(4, 6, 8), "loss": squares}


@clean
def transformer_both():
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(20, 16)
            self.core = nn.Transformer(16, 4, 1, 1, 32, batch_first=True)
            self.head = nn.Linear(16, 20)

        def forward(self, source, target):
            mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
            y = self.core(self.words(source), self.words(target), tgt_mask=mask, tgt_is_causal=True)
            return self.head(y)

    batch = torch.randint(20, (4, 6)), torch.randint(20, (4, 5))
    return {"model": Translator(), "batch": batch, "loss": squares}


class Attention(nn.Module):
    """Attention by hand, with a mask."""

    def __init__(self, causal=False):
        super().__init__()
        self.qkv, self.out, self.causal = nn.Linear(8, 24), nn.Linear(8, 4), causal

    def forward(self, x, mask=None):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(8)
        if self.causal:
            scores = scores + torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return self.out(scores.softmax(-1) @ v)


@clean
def attention_by_hand():
    mask = torch.ones(4, 6, dtype=torch.bool)
    return {"model": Attention(), "batch": (torch.randn(4, 6, 8), mask), "loss": squares}


@clean
def attention_with_added_mask():
    return {"model": Attention(causal=True), "batch": torch.randn(4, 6, 8), "loss": squares}


@clean
def attention_of_torch():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.core, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

        def forward(self, x, padding):
            y, _ = self.core(x, x, x, key_padding_mask=padding)
            return self.out(y)

    padding = torch.zeros(4, 6, dtype=torch.bool)
    return {"model": Attend(), "batch": (torch.randn(4, 6, 8), padding), "loss": squares}


@clean
def scaled_attention():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 4)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            return self.out(
                F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            )

    return {"model": Attend(), "batch": torch.randn(4, 6, 8), "loss": squares}


@clean
def embedding_bag():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(20, 8, mode="mean"), nn.Linear(8, 4)

        def forward(self, ids):
            return self.head(self.bag(ids))

    return {"model": Bag(), "batch": torch.randint(20, (4, 6)), "loss": classes}


@clean
def embedding_bag_with_offsets():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(20, 8, mode="sum"), nn.Linear(8, 4)

        def forward(self, ids, offsets):
            return self.head(self.bag(ids, offsets))

    return {"model": Bag(), "batch": (torch.randint(20, (12,)), torch.arange(0, 12, 3)), "loss": classes}


@clean
def bilinear():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.head = nn.Bilinear(8, 8, 16), nn.Linear(16, 4)

        def forward(self, a, b):
            return self.head(self.pair(a, b).relu())

    return {"model": Pair(), "batch": (torch.randn(4, 8), torch.randn(4, 8)), "loss": classes}


@clean
def einsum():
    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(8, 6)), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(torch.einsum("btf,fg->btg", x, self.weight).relu())

    return {"model": Mix(), "batch": torch.randn(4, 5, 8), "loss": squares}


@clean
def tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.core = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids):
            return self.head(self.core(self.words(ids))[0])

    def loss(outputs, batch):
        return F.cross_entropy(outputs.float().flatten(0, 1), batch.flatten())

    return {"model": Tied(), "batch": torch.randint(20, (4, 6)), "loss": loss}


@clean
def binary_with_logits():
    def loss(outputs, batch):
        return F.binary_cross_entropy_with_logits(outputs.float().squeeze(-1), torch.ones(16))

    return {
        "model": nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)),
        "batch": torch.randn(16, 8),
        "loss": loss,
    }


@clean
def contrastive():
    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

        def forward(self, x):
            return F.normalize(self.body(x), dim=-1)

    def loss(outputs, batch):
        return F.cross_entropy((outputs @ outputs.T).float() / 0.1, torch.arange(len(outputs)))

    return {"model": Embed(), "batch": torch.randn(16, 8), "loss": loss}


@clean
def variational():
    class Vae(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(8, 8), nn.Linear(4, 8)

        def forward(self, x):
            mean, log_var = self.encode(x).chunk(2, -1)
            z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
            return self.decode(z), mean, log_var

    def loss(outputs, batch):
        y, mean, log_var = (o.float() for o in outputs)
        return F.mse_loss(y, batch.float()) - 0.5 * (1 + log_var - mean.pow(2) - log_var.exp()).mean()

    return {"model": Vae(), "batch": torch.randn(16, 8), "loss": loss}


@clean
def rms_norm_and_gating():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.gate, self.down = (
                nn.RMSNorm(8),
                nn.Linear(8, 16),
                nn.Linear(8, 16),
                nn.Linear(16, 8),
            )

        def forward(self, x):
            y = self.norm(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    return {
        "model": nn.Sequential(Gated(), Gated(), nn.Linear(8, 4)),
        "batch": torch.randn(4, 6, 8),
        "loss": squares,
    }


@clean
def prelu_and_weight_norm():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 16))
    return {
        "model": nn.Sequential(layer, nn.PReLU(), nn.Linear(16, 4)),
        "batch": torch.randn(16, 8),
        "loss": classes,
    }


@clean
def checkpointed():
    from torch.utils.checkpoint import checkpoint

    class Saved(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    return {"model": Saved(), "batch": torch.randn(16, 8), "loss": classes}


POLICIES = ("float32", "bf16-mixed", "bf16-true", "float64", "fp16-mixed")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_found(name, policy):
    made = MODELS[name]()
    if policy == "float64":
        loss, made["loss"] = made["loss"], None
        del loss
    report = audit(policy=policy, **made)
    assert [str(f) for f in report.findings if f.severity != "info"] == []
    assert report.operations > 0


def test_there_are_thirty():
    assert len(MODELS) >= 30
