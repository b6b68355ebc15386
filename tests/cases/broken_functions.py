"""Broken trainings by loss functions, slopes and attention: a few lines that somebody might have written."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from case_kit import Batch, Training, broken, features
from torch import Tensor, nn

# --- loss functions ----------------------------------------------------------------------------------------


@broken(
    "Cross-entropy by hand, a probability of 0 whose target is 0",
    "`log(0)` is -inf, and 0 times -inf is NaN. PyTorch's anomaly mode blames `LogBackward0`.",
    policies=("float32", "bf16-mixed"),
    code="N504", phase="loss", event="domain", op="log", line="p.log()", rows=[5], says="log_softmax",
)  # fmt: skip
def cross_entropy_by_hand() -> Training:
    model = nn.Linear(4, 3)
    keep = torch.ones(8, 3)
    keep[5, 1] = 0

    def loss_of(batch: Batch) -> Tensor:
        p = model(batch["x"]).float().softmax(-1) * batch["keep"]
        return -(batch["y"] * p.log()).sum(-1).mean()

    return Training(
        model=model, batches=[{"x": features(), "keep": keep, "y": keep.clone()}], loss_of=loss_of
    )


@broken(
    "The same with a target of 1",
    "The loss is inf, not NaN: anomaly mode says nothing at all.",
    code="N504", phase="loss", event="domain", op="log", line="p.log()", rows=[2],
)  # fmt: skip
def cross_entropy_by_hand_infinite() -> Training:
    model = nn.Linear(4, 3)
    keep = torch.ones(8, 3)
    keep[2, 0] = 0

    def loss_of(batch: Batch) -> Tensor:
        p = model(batch["x"]).softmax(-1) * batch["keep"]
        return -p.log().sum(-1).mean()

    return Training(model=model, batches=[{"x": features(), "keep": keep}], loss_of=loss_of)


@broken(
    "KL divergence with a probability of 0 on the model's side",
    "The ratio of the two distributions is a division by 0.",
    code="N504", phase="loss", event="domain", op="div", line="t / p", rows=[3],
)  # fmt: skip
def divergence_by_hand() -> Training:
    model = nn.Linear(4, 3)
    keep = torch.ones(8, 3)
    keep[3, 2] = 0

    def loss_of(batch: Batch) -> Tensor:
        p = model(batch["x"]).softmax(-1) * batch["keep"]
        t = batch["t"]
        return (t * (t / p).log()).sum(-1).mean()

    batch = {"x": features(), "keep": keep, "t": torch.full((8, 3), 1 / 3)}
    return Training(model=model, batches=[batch], loss_of=loss_of)


@broken(
    "Every label is ignored",
    "The mean over no target is 0/0. The loss is NaN and every gradient is exactly 0: the weights are safe.",
    policies=("float32", "bf16-mixed"),
    code="N511", phase="loss", event="zero-over-zero", op="nll_loss", line="cross_entropy",
    says="every target is ignored",
)  # fmt: skip
def all_labels_ignored() -> Training:
    model = nn.Linear(4, 3)
    batch = {"x": features(), "y": torch.full((8,), -100)}
    return Training(
        model=model, batches=[batch], loss_of=lambda b: F.cross_entropy(model(b["x"]).float(), b["y"])
    )


@broken(
    "A masked mean with an empty mask",
    "Nothing is selected, and the mean of nothing is 0/0.",
    code="N511", phase="loss", event="zero-over-zero", op="mean", line=".mean()",
)  # fmt: skip
def empty_mask() -> Training:
    model = nn.Linear(4, 1)

    def loss_of(batch: Batch) -> Tensor:
        error = (model(batch["x"])[:, 0] - batch["y"]).square()
        return error[batch["mask"]].mean()

    batch = {"x": features(), "y": torch.zeros(8), "mask": torch.zeros(8, dtype=torch.bool)}
    return Training(model=model, batches=[batch], loss_of=loss_of)


@broken(
    "A squared error beyond float32",
    "The square of 1e20 is 1e40.",
    code="N501", phase="loss", event="overflow", op=("mse_loss", "pow"), line="mse_loss", rows=[6],
)  # fmt: skip
def squared_error_overflows() -> Training:
    model = nn.Linear(4, 1)
    y = torch.zeros(8, 1)
    y[6] = 1e20
    return Training(
        model=model, batches=[{"x": features(), "y": y}], loss_of=lambda b: F.mse_loss(model(b["x"]), b["y"])
    )


@broken(
    "Poisson likelihood on large counts",
    "`poisson_nll_loss` takes the exponential of the model's output.",
    code="N501", phase="loss", event="overflow", op=("poisson_nll_loss", "exp"), line="poisson_nll_loss",
    rows=[1],
)  # fmt: skip
def poisson_overflows() -> Training:
    model = nn.Linear(4, 1)
    x = features()
    x[1] = 1000.0
    with torch.no_grad():
        model.weight.fill_(1.0)
    return Training(
        model=model,
        batches=[{"x": x, "y": torch.ones(8, 1)}],
        loss_of=lambda b: F.poisson_nll_loss(model(b["x"]), b["y"]),
    )


# --- backward alone ----------------------------------------------------------------------------------------


@broken(
    "sqrt of 0, times 0",
    "Everything is finite going forward. Going back, 0 over twice the root of 0 is 0/0.",
    code="N502", phase="backward", event="zero-over-zero", op="SqrtBackward0", line=".sqrt()",
)  # fmt: skip
def root_of_zero_times_zero() -> Training:
    model = nn.Linear(4, 3)

    def loss_of(batch: Batch) -> Tensor:
        root = (model(batch["x"]) * 0).sqrt()
        return (root * 0).sum()

    return Training(model=model, batches=[{"x": features()}], loss_of=loss_of)


@broken(
    "sqrt of 0",
    "The slope of sqrt is infinite at 0. Anomaly mode looks for NaN and finds none.",
    code="N504", phase="backward", event="domain", op="SqrtBackward0", line=".sqrt()", rows=[4],
)  # fmt: skip
def root_of_zero() -> Training:
    model = nn.Linear(4, 1, bias=False)
    x = features()
    x[4] = 0

    def loss_of(batch: Batch) -> Tensor:
        return model(batch["x"]).abs().sqrt().sum()

    return Training(model=model, batches=[{"x": x}], loss_of=loss_of)


@broken(
    "where(x > 0, sqrt(x), 0)",
    "`where` hides the root going forward and hands it a gradient of 0 going back: 0/0.",
    policies=("float32", "bf16-mixed"),
    code="N502", phase="backward", event="zero-over-zero", op="SqrtBackward0", line="h.sqrt()", rows=[7],
)  # fmt: skip
def where_trap() -> Training:
    model = nn.Linear(4, 1, bias=False)
    x = features()
    x[7] = 0

    def loss_of(batch: Batch) -> Tensor:
        h = model(batch["x"]).float().square()
        return torch.where(h > 0, h.sqrt(), 0.0).sum()

    return Training(model=model, batches=[{"x": x}], loss_of=loss_of)


@broken(
    "where(x > 0, log(x), 0)",
    "`where` hides the -inf going forward. Going back, its gradient of 0 over 0 is NaN.",
    code="N504", phase="loss", event="domain", op="log", line="h.log()", rows=[0],
)  # fmt: skip
def where_trap_log() -> Training:
    model = nn.Linear(4, 1, bias=False)
    x = features()
    x[0] = 0

    def loss_of(batch: Batch) -> Tensor:
        h = model(batch["x"]).square()
        return torch.where(h > 0, h.log(), 0.0).sum()

    return Training(model=model, batches=[{"x": x}], loss_of=loss_of)


@broken(
    "A norm by hand at 0",
    "`x.pow(2).sum().sqrt()` has no slope at 0; `x.norm()` has one.",
    code="N504", phase="backward", event="domain", op="SqrtBackward0", line=".pow(2).sum().sqrt()",
    says="vector_norm",
)  # fmt: skip
def norm_by_hand() -> Training:
    model = nn.Linear(4, 3, bias=False)

    def loss_of(batch: Batch) -> Tensor:
        return model(batch["x"]).pow(2).sum().sqrt()

    return Training(model=model, batches=[{"x": torch.zeros(8, 4)}], loss_of=loss_of)


@broken(
    "A power below 1 at 0",
    "The slope of x ** 0.5 at 0 is infinite; times a gradient of 0 that is NaN.",
    code="N503", phase="backward", event="zero-times-inf", op="PowBackward0", line="** 0.5",
)  # fmt: skip
def fractional_power() -> Training:
    model = nn.Linear(4, 3, bias=False)

    def loss_of(batch: Batch) -> Tensor:
        return ((model(batch["x"]).abs() ** 0.5) * 0).sum()

    return Training(model=model, batches=[{"x": torch.zeros(8, 4)}], loss_of=loss_of)


class HugeGradient(torch.autograd.Function):
    """A custom function whose backward divides by what may be 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradients[0] / scale, None


@broken(
    "A custom autograd function gives an infinite gradient, and Adam would keep it for good",
    "One infinite gradient makes the weight NaN and both moments infinite for ever.",
    policies=("float32", "bf16-mixed"),
    code="N504", phase="backward", event="domain", op="HugeGradientBackward", line="HugeGradient.apply",
    rows=[3],
)  # fmt: skip
def custom_backward() -> Training:
    model = nn.Linear(4, 3)
    scale = torch.ones(8, 1)
    scale[3] = 0

    def loss_of(batch: Batch) -> Tensor:
        return HugeGradient.apply(model(batch["x"]).float(), batch["scale"]).sum()

    good = {"x": features(), "scale": torch.ones(8, 1)}
    return Training(
        model=model,
        batches=[good, {"x": features(), "scale": scale}],
        loss_of=loss_of,
        optimizers=[torch.optim.Adam(model.parameters())],
    )


# --- attention and softmax ---------------------------------------------------------------------------------


@broken(
    "A row of attention masked whole, whose output is not in the loss",
    "Its softmax is 0/0. The loss is finite; the weights it shares with other rows get NaN. "
    "Anomaly mode blames a matrix product.",
    policies=("float32", "bf16-mixed"),
    code="N502", phase="forward", event="zero-over-zero", op="softmax", module="", line="model(", rows=[1],
    says="masked whole",
)  # fmt: skip
def masked_attention_row() -> Training:
    model = nn.MultiheadAttention(4, 1, batch_first=True)

    def loss_of(batch: Batch) -> Tensor:
        x, padding = batch["x"], batch["padding"]
        out, _ = model(x, x, x, key_padding_mask=padding, need_weights=True)
        return out[~padding].sum()

    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1] = True
    return Training(model=model, batches=[{"x": torch.randn(3, 5, 4), "padding": padding}], loss_of=loss_of)


class Attention(nn.Module):
    """Attention by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.key = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT
        scores = scores.masked_fill(mask[:, None, :], float("-inf"))
        weights = scores.softmax(-1)
        return self.out(weights @ x)


@broken(
    "The same by hand: masked_fill, softmax, matrix product",
    "-inf is put there on purpose and blamed for nothing; the softmax over nothing else is.",
    policies=("float32", "bf16-mixed"),
    code="N502", phase="forward", event="zero-over-zero", op="softmax", module="attention",
    line="scores.softmax(-1)", rows=[2],
)  # fmt: skip
def masked_attention_by_hand() -> Training:
    model = nn.ModuleDict({"embed": nn.Linear(4, 4), "attention": Attention()})

    def loss_of(batch: Batch) -> Tensor:
        out = model["attention"](model["embed"](batch["x"]), batch["mask"])
        return out[~batch["mask"]].square().sum()

    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[2] = True
    return Training(model=model, batches=[{"x": torch.randn(4, 5, 4), "mask": mask}], loss_of=loss_of)


@broken(
    "Two masks of the most negative number are added, in 16 bits",
    "Each is finite; their sum is -inf, and the softmax of a row of it is NaN.",
    policies=("bf16-true",),
    code="N501", phase="forward", event="overflow", op="add", module="", line="mask = padding", rows=[1],
)  # fmt: skip
def masks_overflow() -> Training:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(4, 4)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            h = self.project(x)
            padding = padding.to(h.dtype) * torch.finfo(h.dtype).min
            mask = padding[:, None, :] + padding[:, :, None]
            return (h @ h.mT + mask).softmax(-1) @ h

    model = Masked()
    padding = torch.zeros(3, 5)
    padding[1] = 1

    def loss_of(batch: Batch) -> Tensor:
        return model(batch["x"], batch["padding"]).float().sum()

    return Training(
        model=model,
        batches=[{"x": torch.randn(3, 5, 4), "padding": padding}],
        loss_of=loss_of,
        precision={"loss": "float32", "islands": {"softmax": None}},
    )


@broken(
    "A softmax by hand",
    "exp(300) overflows float32, and inf/inf is NaN. Anomaly mode blames the division.",
    policies=("float32", "bf16-mixed"),
    code="N501", phase="forward", event="overflow", op="exp", module="", line="h.exp()", rows=[4],
)  # fmt: skip
def softmax_by_hand() -> Training:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            e = h.exp()
            return e / e.sum(-1, keepdim=True)

    model = Head()
    x = features()
    x[4] = 3000.0

    with torch.no_grad():
        model.linear.weight.fill_(0.1)
    return Training(
        model=model,
        batches=[{"x": features()}, {"x": x}],
        loss_of=lambda b: model(b["x"]).float()[:, 0].sum(),
    )
