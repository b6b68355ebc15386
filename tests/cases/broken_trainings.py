"""Broken trainings. Each is a few lines that somebody might have written."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from case_kit import Training, broken
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Batch = dict[str, Tensor]


def features(rows: int = 8, width: int = 4) -> Tensor:
    return torch.randn(rows, width)


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


# --- layers ------------------------------------------------------------------------------------------------


@broken(
    "Standardising by hand, with a constant column",
    "The deviation of a constant is 0, and 0/0 is NaN.",
    code="N502", phase="forward", event="zero-over-zero", op="div", module="",
    line="(x - x.mean(0)) / x.std(0)",
)  # fmt: skip
def constant_column() -> Training:
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = (x - x.mean(0)) / x.std(0)
            return self.linear(x)

    model = Standardised()
    x = features()
    x[:, 2] = 7.0
    return Training(model=model, batches=[{"x": x}], loss_of=lambda b: model(b["x"]).square().mean())


@broken(
    "A matrix product beyond float16",
    "Queries times keys pass 65,504.",
    policies=("fp16-true",),
    code="N501", phase="forward", event="overflow", op=("linear", "mm", "addmm"), module="1", line="model(",
    rows=[5], says="compute: float32",
)  # fmt: skip
def product_overflows() -> Training:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4) * 100)
        model[1].weight.fill_(10.0)
    x = features().clamp(-2, 2)
    x[5] = 100.0

    def loss_of(batch: Batch) -> Tensor:
        return model(batch["x"]).float().mean() * 1e-4

    return Training(model=model, batches=[{"x": x}], loss_of=loss_of, precision={"loss": "float32"})


@broken(
    "An infinite activation reaches BatchNorm",
    "Where a step is skipped, its running mean and variance stay infinite and NaN; castiron puts them back.",
    code="N501", phase="forward", event="overflow", op="exp", module="", line=".exp()", rows=[3],
)  # fmt: skip
def batch_norm_poisoned() -> Training:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.norm = nn.BatchNorm1d(4)
            self.head = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x).exp()
            return self.head(self.norm(h))

    model = Net()
    x = features()
    x[3] = 1e4
    return Training(
        model=model, batches=[{"x": features()}, {"x": x}], loss_of=lambda b: model(b["x"]).square().mean()
    )


class Growing(nn.Module):
    """A recurrent cell whose state grows."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(4, 4, nonlinearity="relu")
        self.head = nn.Linear(4, 1)
        with torch.no_grad():
            self.cell.weight_hh.fill_(1e9)
            self.cell.weight_ih.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


@broken(
    "A recurrent state that grows without bound",
    "Each step multiplies it by 4e9; the fifth passes float32's end.",
    code="N501", phase="forward", event="overflow", op="rnn_relu_cell", module="cell",
    line="self.cell(x[:, t], h)",
    time_index=4,
)  # fmt: skip
def recurrent_growth() -> Training:
    model = Growing()
    return Training(
        model=model,
        batches=[{"x": torch.rand(6, 9, 4) + 0.5}],
        loss_of=lambda b: model(b["x"]).square().mean(),
    )


@broken(
    "The same in torch's own RNN",
    "The layer is one call; its output says at which time step it went wrong.",
    code="N501", phase="forward", event="overflow", op="rnn_relu", module="0", time_index=4,
)  # fmt: skip
def recurrent_layer_growth() -> Training:
    model = nn.ModuleList([nn.RNN(4, 4, nonlinearity="relu", batch_first=True), nn.Linear(4, 1)])
    with torch.no_grad():
        model[0].weight_hh_l0.fill_(1e9)
        model[0].weight_ih_l0.fill_(1.0)

    def loss_of(batch: Batch) -> Tensor:
        return model[1](model[0](batch["x"])[0][:, -1]).square().mean()

    return Training(model=model, batches=[{"x": torch.rand(6, 9, 4) + 0.5}], loss_of=loss_of)


@broken(
    "A variance layer that learns its way below zero",
    "log of a negative number is NaN.",
    code="N504", phase="forward", event="domain", op="log", module="scale", line=".log()",
)  # fmt: skip
def negative_variance() -> Training:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.variance = nn.Parameter(torch.tensor([1.0, -0.5, 1.0, 1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x - self.variance.log()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.scale = Scale()

        def forward(self, x: Tensor) -> Tensor:
            return self.scale(self.linear(x))

    model = Net()
    return Training(model=model, batches=[{"x": features()}], loss_of=lambda b: model(b["x"]).square().mean())


@broken(
    "An angle from a cosine that rounding pushed past 1",
    "acos(1.0000001) is NaN.",
    code="N504", phase="forward", event="domain", op="acos", line=".acos()", rows=[2], says="(-1, 1)",
)  # fmt: skip
def angle_past_one() -> Training:
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4) * 1.00001)
    x = torch.full((8, 4), 0.1)
    x[2] = torch.tensor([1.0, 0.0, 0.0, 0.0])

    class Angle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = model

        def forward(self, x: Tensor) -> Tensor:
            return self.project(x)[:, 0].acos()

    angle = Angle()
    return Training(model=angle, batches=[{"x": x}], loss_of=lambda b: angle(b["x"]).sum())


# --- what was there before ---------------------------------------------------------------------------------


@broken(
    "One row of the batch is NaN, behind a BatchNorm",
    "BatchNorm makes all rows NaN; the row of the data is to blame, not the model.",
    policies=("float32", "bf16-mixed"),
    code="N507", phase="data", event="data", parameter="x", rows=[6],
)  # fmt: skip
def bad_row() -> Training:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    x = features()
    x[6, 2] = float("nan")
    batch = {"x": x, "y": torch.zeros(8, dtype=torch.long), "row": torch.arange(8)}
    return Training(
        model=model, batches=[batch], loss_of=lambda b: F.cross_entropy(model(b["x"]).float(), b["y"])
    )


@broken(
    "Two rows of a sequence are infinite, in an LSTM",
    "The gates saturate, and infinity less infinity is NaN.",
    code="N507", phase="data", event="data", parameter="x", rows=[1, 4],
)  # fmt: skip
def bad_sequences() -> Training:
    model = nn.LSTM(4, 4, batch_first=True)
    x = torch.randn(6, 5, 4)
    x[1, 3, 0] = float("inf")
    x[4, 0, 2] = float("nan")
    return Training(model=model, batches=[{"x": x}], loss_of=lambda b: model(b["x"])[0].square().mean())


@broken(
    "A row of an embedding is not finite",
    "Only batches that look it up are bad, which makes it look like bad data.",
    policies=("float32", "bf16-mixed"),
    code="N506", phase="forward", event="inherited", op="embedding", module="0", parameter="0.weight",
    rows=[3],
    says="row 7 of 10",
)  # fmt: skip
def embedding_row() -> Training:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 1))
    with torch.no_grad():
        model[0].weight[7, 1] = float("inf")
    good = torch.randint(0, 7, (5, 3))
    bad = good.clone()
    bad[3, 2] = 7
    return Training(
        model=model,
        batches=[{"x": good}, {"x": bad}],
        loss_of=lambda b: model(b["x"]).float().square().mean(),
    )


@broken(
    "A mask's fill value in the data is taken for a number",
    "A feature of -inf (the logarithm of 0, taken while the data was made) is no mask.",
    code="N507", phase="data", event="data", parameter="x", rows=[0],
)  # fmt: skip
def minus_infinity_in_the_data() -> Training:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    x = features()
    x[0, 0] = float("-inf")
    return Training(model=model, batches=[{"x": x}], loss_of=lambda b: model(b["x"]).square().mean())


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
