"""Trainings in which infinities or NaN arise and are meant to, or arise where nothing comes of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case_kit import Training, healthy
from torch import Tensor, nn

Batch = dict[str, Tensor]
ALL = ("float32", "bf16-mixed")


@healthy(*ALL)
def attention_with_a_row_masked_whole() -> Training:
    """`scaled_dot_product_attention` gives zeros there."""
    project = nn.Linear(4, 4)

    def loss_of(batch: Batch) -> Tensor:
        q = project(batch["x"])[:, None]
        mask = batch["mask"][:, None, None, :].expand(-1, 1, 5, -1)
        out = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
        return out.float().square().mean()

    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    return Training(model=project, batches=[{"x": torch.randn(3, 5, 4), "mask": mask}] * 2, loss_of=loss_of)


@healthy(*ALL)
def multihead_attention_without_weights() -> Training:
    model = nn.MultiheadAttention(4, 1, batch_first=True)

    def loss_of(batch: Batch) -> Tensor:
        x = batch["x"]
        out, _ = model(x, x, x, key_padding_mask=batch["mask"], need_weights=False)
        return out.float().square().mean()

    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 2:] = True
    return Training(model=model, batches=[{"x": torch.randn(3, 5, 4), "mask": mask}] * 2, loss_of=loss_of)


@healthy(*ALL)
def scores_masked_by_hand() -> Training:
    """`where(mask, scores, -inf)` before a softmax that has something left."""
    model = nn.Linear(4, 4)

    def loss_of(batch: Batch) -> Tensor:
        q = model(batch["x"]).float()
        scores = torch.where(batch["mask"][:, None], q @ q.mT, float("-inf"))
        return (scores.softmax(-1) @ q).square().mean()

    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[:, 3:] = False
    return Training(model=model, batches=[{"x": torch.randn(3, 5, 4), "mask": mask}] * 2, loss_of=loss_of)


@healthy(*ALL)
def log_probabilities_masked_later() -> Training:
    model = nn.Linear(4, 3)

    def loss_of(batch: Batch) -> Tensor:
        scores = model(batch["x"]).float().masked_fill(batch["never"], float("-inf"))
        logs = scores.log_softmax(-1)
        return -logs.masked_fill(batch["never"], 0.0).mean()

    never = torch.zeros(8, 3, dtype=torch.bool)
    never[:, 1] = True
    return Training(model=model, batches=[{"x": torch.randn(8, 4), "never": never}] * 2, loss_of=loss_of)


@healthy(*ALL)
def norms_at_zero() -> Training:
    """`norm`, `std` and `normalize` have gradients at 0 and at a constant."""
    model = nn.Linear(4, 4, bias=False)

    def loss_of(batch: Batch) -> Tensor:
        h = model(batch["x"]).float()
        return h.norm() + h.std() + F.normalize(h).sum() + F.cosine_similarity(h, h).sum()

    return Training(model=model, batches=[{"x": torch.zeros(8, 4)}] * 2, loss_of=loss_of)


@healthy(*ALL)
def padding_left_out_of_the_loss() -> Training:
    model = nn.LSTM(4, 4, batch_first=True)

    def loss_of(batch: Batch) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            batch["x"], batch["length"], batch_first=True, enforce_sorted=False
        )
        out, _ = nn.utils.rnn.pad_packed_sequence(model(packed)[0], batch_first=True)
        return out.float().square().mean()

    x = torch.randn(3, 6, 4)
    return Training(model=model, batches=[{"x": x, "length": torch.tensor([6, 2, 4])}] * 2, loss_of=loss_of)


@healthy()
def a_causal_mask_kept_as_a_buffer() -> Training:
    class Causal(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(4, 4)
            self.register_buffer("mask", torch.full((5, 5), float("-inf")).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            q = self.project(x)
            return (q @ q.mT + self.mask).softmax(-1) @ q

    model = Causal()
    return Training(
        model=model,
        batches=[{"x": torch.randn(3, 5, 4)}] * 2,
        loss_of=lambda b: model(b["x"]).square().mean(),
    )


@healthy()
def an_optimizer_without_gradients_and_a_frozen_layer() -> Training:
    model = nn.ModuleDict({"used": nn.Linear(4, 1), "unused": nn.Linear(4, 1), "frozen": nn.Linear(4, 4)})
    model["frozen"].requires_grad_(False)

    def loss_of(batch: Batch) -> Tensor:
        return model["used"](model["frozen"](batch["x"])).square().mean()

    return Training(
        model=model,
        batches=[{"x": torch.randn(8, 4)}] * 2,
        loss_of=loss_of,
        optimizers=[
            torch.optim.Adam(model["used"].parameters()),
            torch.optim.Adam(model["unused"].parameters()),
        ],
    )


@healthy()
def integers_among_the_buffers_and_the_batch() -> Training:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))

    def loss_of(batch: Batch) -> Tensor:
        return model(batch["x"]).square().mean()

    return Training(model=model, batches=[{"x": torch.randint(0, 10, (8, 3))}] * 2, loss_of=loss_of)


@healthy("fp16-mixed")
def gradients_overflow_while_the_loss_scale_calibrates() -> Training:
    model = nn.Linear(4, 1)

    def loss_of(batch: Batch) -> Tensor:
        return (model(batch["x"]).float() * 3000).mean()

    return Training(model=model, batches=[{"x": torch.randn(8, 4)}] * 30, loss_of=loss_of)


@healthy()
def an_infinity_that_where_takes_out_again() -> Training:
    """The divisor is made safe before the division, as one should."""
    model = nn.Linear(4, 3)

    def loss_of(batch: Batch) -> Tensor:
        h = model(batch["x"]).relu()
        safe = torch.where(h > 0, h, 1.0)
        return torch.where(h > 0, safe.log(), 0.0).sum()

    return Training(model=model, batches=[{"x": torch.randn(8, 4)}] * 2, loss_of=loss_of)


@healthy()
def nan_in_the_padding_of_a_packed_sequence() -> Training:
    """What is padded is never read; and -inf as the padding of a maximum is on purpose."""
    model = nn.LSTM(4, 4, batch_first=True)

    def loss_of(batch: Batch) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            batch["x"], batch["length"], batch_first=True, enforce_sorted=False
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(
            model(packed)[0], batch_first=True, padding_value=float("-inf")
        )
        return states.max(1).values.square().mean()

    x = torch.randn(3, 6, 4)
    x[1, 4] = float("nan")
    return Training(model=model, batches=[{"x": x, "length": torch.tensor([6, 2, 4])}] * 2, loss_of=loss_of)


@healthy(*ALL)
def a_transformer_with_a_sequence_that_is_all_padding() -> Training:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def loss_of(batch: Batch) -> Tensor:
        out = model(batch["x"], src_key_padding_mask=batch["padding"])
        return out[~batch["padding"]].float().square().mean()

    padding = torch.zeros(4, 6, dtype=torch.bool)
    padding[2] = True
    return Training(
        model=model, batches=[{"x": torch.randn(4, 6, 8), "padding": padding}] * 2, loss_of=loss_of
    )


@healthy()
def distances_and_angles_at_zero() -> Training:
    """`cdist`, `atan2` and `var` have gradients there."""
    model = nn.Linear(4, 4)

    def loss_of(batch: Batch) -> Tensor:
        h = model(batch["x"])
        angles = torch.atan2(h * 0, h.detach() * 0)
        return torch.cdist(h, h).sum() + angles.sum() + h.var()

    return Training(model=model, batches=[{"x": torch.zeros(8, 4)}] * 2, loss_of=loss_of)
