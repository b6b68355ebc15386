"""Broken trainings by layers and by what was there before: a few lines that somebody might have written."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case_kit import Batch, Training, broken, features
from torch import Tensor, nn

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
