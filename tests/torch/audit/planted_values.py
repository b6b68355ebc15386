"""Planted faults by which numbers change: casts, islands, integers, losses, state, cancellation."""

from __future__ import annotations

from typing import Any

import torch
from planted_kit import case, net, x
from torch import nn
from torch.nn import functional as F

# --- casts ---------------------------------------------------------------------------------------------


@case("F304")
def halved() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).half().tanh()  # fault

    return {"model": net(forward), "batch": x()}


@case("F304")
def to_bfloat16() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x.to(torch.bfloat16).relu().float())  # fault

    return {"model": net(forward), "batch": x()}


@case("F304", "bf16-mixed")
def floated() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).float().tanh() * 2  # fault

    return {"model": net(forward), "batch": x()}


@case("F304", "bf16-mixed")
def other_sixteen_bits() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).half().relu()  # fault

    return {"model": net(forward), "batch": x()}


@case("F309")
def to_and_fro() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x.bfloat16().float())  # fault

    return {"model": net(forward), "batch": x()}


@case("F309", "bf16-mixed")
def wide_and_back() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).float().transpose(0, 1).bfloat16().relu()  # fault

    return {"model": net(forward), "batch": x()}


@case("F325")
def weight_cast_in_a_loop() -> dict[str, Any]:
    def forward(self, x):
        y = 0
        for _ in range(3):
            y = y + F.linear(x.bfloat16(), self.head.weight.bfloat16()).float()  # fault
        return y

    return {"model": net(forward), "batch": x()}


# --- islands -------------------------------------------------------------------------------------------


@case("F308", "bf16-mixed")
def softmax_said_narrow() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).softmax(-1, dtype=torch.bfloat16)  # fault

    return {"model": net(forward), "batch": x()}


@case("F308", "bf16-mixed")
def exp_in_place() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).exp_()  # fault

    return {"model": net(forward), "batch": x()}


@case("F308", "bf16-mixed")
def long_sum_said_narrow() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).sum(dtype=torch.bfloat16) * torch.ones(16, dtype=torch.bfloat16)  # fault

    return {"model": net(forward), "batch": x()}


@case("F308", "bf16-mixed")
def norm_without_autocast() -> dict[str, Any]:
    def forward(self, x):
        y = self.head(x)
        with torch.autocast("cpu", enabled=False):
            return y / torch.linalg.vector_norm(y, dim=1, keepdim=True)  # fault

    return {"model": net(forward), "batch": x()}


@case("F308", "bf16-mixed")
def variance_without_autocast() -> dict[str, Any]:
    def forward(self, x):
        y = self.head(x)
        with torch.autocast("cpu", enabled=False):
            return y.var(dim=1)  # fault

    return {"model": net(forward), "batch": x()}


@case("F308", "bf16-mixed")
def cumulative_sum_said_narrow() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).cumsum(0, dtype=torch.bfloat16)  # fault

    return {"model": net(forward), "batch": x()}


@case("F308", "bf16-mixed")
def loss_without_autocast() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x)

    def loss(outputs, batch):
        with torch.autocast("cpu", enabled=False):
            return F.mse_loss(outputs, torch.zeros_like(outputs)).float()  # fault

    return {"model": net(forward), "batch": x(), "loss": loss}


@case("F316")
def running_sum() -> dict[str, Any]:
    def forward(self, x):
        total = torch.zeros((), dtype=torch.bfloat16)
        for row in self.head(x):
            total = total + row.mean().bfloat16()  # fault
        return total.float()

    return {"model": net(forward), "batch": x(), "loss": lambda outputs, batch: outputs}


@case("F319", "bf16-mixed")
def bce_under_autocast() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).sigmoid()

    def loss(outputs, batch):
        return F.binary_cross_entropy(outputs.float(), torch.zeros(16, 4))  # fault

    return {"model": net(forward), "batch": x(), "loss": loss}


FP16 = {"preset": "fp16-mixed"}


@case("F320", FP16)
def mask_of_float16() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x) * 1e5  # fault

    return {"model": net(forward), "batch": x()}


@case("F321", FP16)
def epsilon_of_float16() -> dict[str, Any]:
    def forward(self, x):
        y = self.head(x).relu()
        return y / (y + 1e-9)  # fault

    return {"model": net(forward), "batch": x()}


# --- integers ------------------------------------------------------------------------------------------


@case("F315")
def positions_in_bfloat16() -> dict[str, Any]:
    def forward(self, x):
        positions = torch.arange(1000, dtype=torch.bfloat16)  # fault
        return self.head(x) + positions.float().mean()

    return {"model": net(forward), "batch": x()}


@case("F315")
def ids_in_half() -> dict[str, Any]:
    def forward(self, x, ids):
        return self.head(x) * ids.half().float()[:, None]  # fault

    return {"model": net(forward), "batch": (x(), torch.full((16,), 2909))}


@case("F315")
def ids_in_float32() -> dict[str, Any]:
    def forward(self, x, ids):
        return self.head(x) * ids.float()[:, None]  # fault

    return {"model": net(forward), "batch": (x(), torch.full((16,), 16_777_217))}


# --- outputs, losses -----------------------------------------------------------------------------------


@case("F310")
def float64_target() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x)

    def loss(outputs, batch):
        return F.mse_loss(outputs, torch.zeros(16, 4, dtype=torch.float64))  # fault

    return {"model": net(forward), "batch": x(), "loss": loss}


@case("F310", "bf16-mixed")
def loss_in_bfloat16() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x)

    def loss(outputs, batch):
        return outputs.relu().max()  # fault

    return {"model": net(forward), "batch": x(), "loss": loss}


@case("F311")
def narrow_output() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).bfloat16()  # fault

    return {"model": net(forward), "batch": x()}


@case("F317")
def loss_grows() -> dict[str, Any]:
    def forward(self, x):
        return self.out(x)

    def loss(outputs, batch):
        return F.mse_loss(outputs, batch[:, 0])  # fault

    return {"model": net(forward, out=nn.Linear(8, 1)), "batch": x(), "loss": loss}


@case("F317")
def loss_by_hand_grows() -> dict[str, Any]:
    def forward(self, x):
        return self.out(x)

    def loss(outputs, batch):
        return ((outputs - batch[:, 0]) ** 2).mean()  # fault

    return {"model": net(forward, out=nn.Linear(8, 1)), "batch": x(), "loss": loss}


@case("F318")
def samples_merged() -> dict[str, Any]:
    def forward(self, x):
        return self.big(x.reshape(-1, 32))  # fault

    return {"model": net(forward, big=nn.Linear(32, 5)), "batch": x()}


# --- what is stored ------------------------------------------------------------------------------------


@case("F312")
def bias_halved() -> dict[str, Any]:
    def forward(self, x):
        self.head.bias.data = self.head.bias.data.half()
        return x @ self.head.weight.T

    return {"model": net(forward), "batch": x()}


@case("F312")
def buffer_made_late() -> dict[str, Any]:
    def forward(self, x):
        y = self.head(x)
        self.register_buffer("mean", y.detach().mean(0))
        return y

    return {"model": net(forward), "batch": x()}


@case("F313", "bf16-true")
def state_follows_the_parameter() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x)

    model = net(forward).bfloat16()
    return {"model": model, "batch": x(), "optimizer": torch.optim.AdamW(model.parameters())}


@case("F314", "bf16-true")
def no_master_weights() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x)

    model = net(forward).bfloat16()
    return {"model": model, "batch": x(), "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


@case("F313")
def float64_state() -> dict[str, Any]:
    class Keeps64(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["average"] = p.detach().double()

    def forward(self, x):
        return self.head(x)

    model = net(forward)
    return {"model": model, "batch": x(), "optimizer": Keeps64(model.parameters(), lr=0.1)}


# --- cancellation --------------------------------------------------------------------------------------


@case("F360")
def variance_of_features() -> dict[str, Any]:
    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = x.pow(2).mean(-1, keepdim=True) - mean**2  # fault
        return self.head((x - mean) / (variance + 1e-5).sqrt())

    return {"model": net(forward), "batch": x()}


@case("F360")
def variance_from_sums() -> dict[str, Any]:
    def forward(self, x):
        h = self.head(x)
        n = h.shape[0]
        return (h * h).sum(0) / n - (h.sum(0) / n).square()  # fault

    return {"model": net(forward), "batch": x()}


@case("F360", "bf16-mixed")
def variance_in_the_loss() -> dict[str, Any]:
    def loss(outputs, batch):
        h = outputs.float()
        return (h.square().mean() - h.mean().square()).abs()  # fault

    return {"model": net(lambda self, x: self.head(x)), "batch": x(), "loss": loss}


@case("F316")
def sum_over_steps() -> dict[str, Any]:
    def forward(self, x):
        h = self.head(x)
        self.total += h.detach().mean().bfloat16()  # fault
        return h

    model = net(forward)
    model.total = torch.zeros((), dtype=torch.bfloat16)
    return {"model": model, "batch": x()}


@case("F341")
def mean_over_the_batch_of_a_row() -> dict[str, Any]:
    def forward(self, x):
        h = self.head(x)
        return h.sum(1) / len(h)  # fault

    return {"model": net(forward), "batch": x()}


@case("F342", "bf16-mixed")
def counted_in_sixteen_bits() -> dict[str, Any]:
    def forward(self, x):
        h = self.head(x)
        ids = torch.zeros(1000, dtype=torch.int64)
        counts = h.new_zeros(2).index_add(0, ids, h.new_ones(1000))  # fault
        return h + counts.float().sum().to(h.dtype)

    return {"model": net(forward), "batch": x()}


@case("F306")
def float64_into_an_index() -> dict[str, Any]:
    def forward(self, x):
        first = torch.zeros(1, dtype=torch.int64)
        return self.head(x).index_add(0, first, torch.ones(1, 4, dtype=torch.float64))  # fault

    return {"model": net(forward), "batch": x()}
