"""Broken trainings by optimizers and steps, and more: a few lines that somebody might have written."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from case_kit import Batch, Training, broken, features
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# --- optimizers and steps ----------------------------------------------------------------------------------


@broken(
    "Adam on float16 parameters, where a gradient is 0",
    "eps is 0 in float16, and 0/0 is NaN; the fused optimizer computes in float32 and is fine.",
    policies=("fp16-true",),
    code="N508", phase="optimizer", event="optimizer", op="Adam", parameter="weight", says="eps=1e-08 is 0",
)  # fmt: skip
def adam_in_float16() -> Training:
    model = nn.Linear(4, 3, bias=False)

    def loss_of(batch: Batch) -> Tensor:
        return (model(batch["x"]) * batch["weight"]).float().sum()

    batch = {"x": features(), "weight": torch.tensor([0.0, 1.0, 1.0]).half()}
    return Training(
        model=model,
        batches=[batch],
        loss_of=loss_of,
        optimizers=[torch.optim.Adam(model.parameters(), foreach=False)],
        guard={"watch": ["loss", "gradients", "buffers", "parameters", "optimizer"]},
        precision={
            "loss": "float32",
            "state": "float16",
            "updates": {"master": None},
            "scaling": {"kind": "static", "scale": 1.0},
        },
    )


@broken(
    "A squared gradient beyond float32",
    "A gradient of 1e25 is finite; Adam squares it.",
    code="N508", phase="optimizer", event="optimizer", op="Adam", parameter="weight", says="exp_avg_sq",
)  # fmt: skip
def second_moment_overflows() -> Training:
    model = nn.Linear(4, 1, bias=False)
    return Training(
        model=model,
        batches=[{"x": torch.full((8, 4), 1e25)}],
        loss_of=lambda b: (model(b["x"]) * 1.0).sum(),
        optimizers=[torch.optim.Adam(model.parameters())],
        guard={"watch": ["loss", "gradients", "buffers", "parameters", "optimizer"]},
    )


@broken(
    "One micro-batch of four is bad",
    "The accumulated gradient is NaN; which batch it was is lost to those that look only there.",
    code="N507", phase="data", event="data", parameter="x", rows=[5], micro_batch=1,
)  # fmt: skip
def micro_batch() -> Training:
    model = nn.Linear(4, 1)
    bad = features()
    bad[5] = float("nan")
    step = ({"x": features()}, {"x": bad}, {"x": features()}, {"x": features()})
    return Training(model=model, batches=[step], loss_of=lambda b: model(b["x"]).square().mean())


@broken(
    "Only the discriminator's loss is bad",
    "The generator must not step alone, and neither optimizer may keep anything of it.",
    code="N504", phase="loss", event="domain", op="log", line="1 - p", rows=[0],
)  # fmt: skip
def only_the_discriminator() -> Training:
    model = nn.ModuleDict({"g": nn.Linear(2, 4), "d": nn.Linear(4, 1)})
    x = features()
    x[0] = 1e6
    with torch.no_grad():
        model["d"].weight.fill_(1.0)

    def g_loss(batch: Batch) -> Tensor:
        return model["d"](model["g"](batch["z"])).square().mean()

    def d_loss(batch: Batch) -> Tensor:
        p = model["d"](batch["x"]).sigmoid()
        return -(1 - p).log().mean()

    return Training(
        model=model,
        batches=[{"x": x, "z": torch.randn(8, 2)}],
        loss_of=[g_loss, d_loss],
        optimizers=[torch.optim.Adam(model["g"].parameters()), torch.optim.Adam(model["d"].parameters())],
    )


@broken(
    "A gradient is infinite and the norm clips it",
    "`clip_grad_norm_` makes that tensor NaN and all others 0: whoever looks afterwards finds the wrong one.",
    code="N504", phase="backward", event="domain", op="SqrtBackward0", module="", line=".sqrt()", rows=[2],
)  # fmt: skip
def infinite_gradient_before_clipping() -> Training:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 1, bias=False)

        def forward(self, x: Tensor, keep: Tensor) -> Tensor:
            return (self.second(self.first(x)) * keep).abs().sqrt()

    model = Rooted()
    keep = torch.ones(8, 1)
    keep[2] = 0

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0] * 1.0

    def loss_of(batch: Batch) -> Tensor:
        return Scaled.apply(model(batch["x"], batch["keep"])).sum()

    return Training(model=model, batches=[{"x": features(), "keep": keep}], loss_of=loss_of, clip_norm=1.0)


# --- more of each kind -------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """An LSTM whose states are pooled over the positions that are there."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)
        self.how = how

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        there = (torch.arange(x.shape[1]) < length[:, None])[..., None]
        states, _ = self.lstm(x)
        if self.how == "mean":
            return self.head((states * there).sum(1) / there.sum(1))
        return self.head(states.masked_fill(~there, float("-inf")).max(1).values)


def sequences(how: str) -> Training:
    model = Pooled(how)
    length = torch.tensor([7, 3, 5, 0, 6, 4])
    batch = {"x": torch.randn(6, 7, 4), "length": length, "y": torch.zeros(6, dtype=torch.long)}

    def loss_of(batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["x"], batch["length"]), batch["y"])

    return Training(model=model, batches=[batch], loss_of=loss_of)


@broken(
    "The mean over an empty sequence",
    "No position is there: the sum of nothing over a count of 0.",
    code="N502", phase="forward", event="zero-over-zero", op="div", module="", line="there.sum(1)", rows=[3],
)  # fmt: skip
def mean_of_an_empty_sequence() -> Training:
    return sequences("mean")


@broken(
    "The maximum over an empty sequence",
    "Every position is masked with -inf, which is what comes out; the next layer multiplies it by weights of "
    "either sign.",
    code="N503", phase="forward", event="zero-times-inf", op="linear", module="head", rows=[3],
)  # fmt: skip
def maximum_of_an_empty_sequence() -> Training:
    return sequences("max")


@broken(
    "A gradient penalty where the gradient is 0",
    "The penalty takes the norm of a gradient by hand; where every ReLU is dead that gradient is 0, and the "
    "second backward meets the slope of sqrt at 0.",
    code="N504", phase="backward", event="domain", op="SqrtBackward0", line=".sqrt()",
)  # fmt: skip
def gradient_penalty() -> Training:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        model[0].bias.fill_(-9.0)

    def loss_of(batch: Batch) -> Tensor:
        x = batch["x"].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope.pow(2).sum(1).sqrt() - 1).square().mean()

    return Training(model=model, batches=[{"x": features()}], loss_of=loss_of)


@broken(
    "A root inside of a checkpointed block",
    "Forward runs twice, backward once; the line is the one in the block.",
    code="N504", phase="backward", event="domain", op="SqrtBackward0", line="abs().sqrt()", rows=[5],
)  # fmt: skip
def checkpointed_block() -> Training:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    keep = torch.ones(8, 1)
    keep[5] = 0

    def loss_of(batch: Batch) -> Tensor:
        def block(x: Tensor) -> Tensor:
            return (model["body"](x) * batch["keep"]).abs().sqrt()

        return model["head"](checkpoint(block, batch["x"], use_reentrant=False)).square().mean()

    return Training(model=model, batches=[{"x": features(), "keep": keep}], loss_of=loss_of)


@broken(
    "A division in place",
    "The divisor is 0 in one row, and what was divided is overwritten.",
    code="N504", phase="forward", event="domain", op="div_", module="", line="h.div_", rows=[2],
)  # fmt: skip
def division_in_place() -> Training:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            h = self.linear(x).clone()
            h.div_(scale)
            return h

    model = Scaled()
    scale = torch.ones(8, 1)
    scale[2] = 0
    return Training(
        model=model,
        batches=[{"x": features(), "scale": scale}],
        loss_of=lambda b: model(b["x"], b["scale"]).square().mean(),
    )


@broken(
    "Weight normalisation of a row of zeros",
    "The direction of a weight of length 0 is 0/0.",
    code="N504", phase="forward", event="domain", op="_weight_norm", module="parametrizations.weight.0",
)  # fmt: skip
def weight_norm_of_zeros() -> Training:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    with torch.no_grad():
        model.parametrizations.weight.original1[1] = 0
    return Training(model=model, batches=[{"x": features()}], loss_of=lambda b: model(b["x"]).square().mean())


@broken(
    "A NaN that is written in the code",
    "A default for missing values, and nobody filled it in.",
    code="N506", phase="forward", event="inherited", op="full", line="torch.full",
)  # fmt: skip
def a_nan_in_the_code() -> Training:
    model = nn.Linear(4, 1)

    def loss_of(batch: Batch) -> Tensor:
        weights = torch.full((8,), float("nan"))
        return (model(batch["x"])[:, 0].square() * weights).mean()

    return Training(model=model, batches=[{"x": features()}], loss_of=loss_of)


@broken(
    "An image of another scale, in front of a BatchNorm",
    "The loss is finite: only the running variance overflows, and stays infinite for every later batch.",
    code="N501", phase="forward", event="overflow", op="batch_norm", module="1", rows=[2],
)  # fmt: skip
def image_of_another_scale() -> Training:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    images = torch.randn(5, 3, 8, 8)
    images[2] *= 1e30
    batch = {"x": images, "y": torch.zeros(5, dtype=torch.long)}
    return Training(model=model, batches=[batch], loss_of=lambda b: F.cross_entropy(model(b["x"]), b["y"]))


# --- what does not come back -------------------------------------------------------------------------------


@broken(
    "A fault that does not come back",
    "Run again, the step is finite: the model's arithmetic is not to blame.",
    code="N509", phase="forward", event="not-reproduced", says="the device",
)  # fmt: skip
def does_not_come_back() -> Training:
    model = nn.Linear(4, 1)
    seen = []

    def loss_of(batch: Batch) -> Tensor:
        seen.append(batch)
        fault = float("nan") if len(seen) == 2 else 1.0
        return model(batch["x"]).square().mean() * fault

    return Training(model=model, batches=[{"x": features()}, {"x": features()}], loss_of=loss_of)
