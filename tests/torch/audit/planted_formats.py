"""Planted faults of formats that meet: promotion, and operands of kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from planted_kit import case, net, x
from torch import nn
from torch.nn import functional as F

# --- promotion, float64 --------------------------------------------------------------------------------


@case("F301")
def numpy_constant() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x) * torch.from_numpy(np.ones(4))  # fault

    return {"model": net(forward), "batch": x()}


@case("F301")
def tensor_of_numpy_scalars() -> dict[str, Any]:
    def forward(self, x):
        scale = torch.tensor([np.float64(2.0), np.float64(3.0), np.float64(1.0), np.float64(1.0)])
        return self.head(x) / scale  # fault

    return {"model": net(forward), "batch": x()}


@case("F301")
def float64_zeros() -> dict[str, Any]:
    def forward(self, x):
        offset = torch.zeros(4, dtype=torch.float64)
        return self.head(x) + offset  # fault

    return {"model": net(forward), "batch": x()}


@case("F301")
def concatenated_float64() -> dict[str, Any]:
    def forward(self, x):
        extra = torch.ones(16, 1, dtype=torch.float64)
        return torch.cat([self.head(x), extra], dim=1)  # fault

    return {"model": net(forward), "batch": x()}


@case("F301")
def stacked_float64() -> dict[str, Any]:
    def forward(self, x):
        y = self.head(x)
        return torch.stack([y, torch.ones(16, 4, dtype=torch.float64)])  # fault

    return {"model": net(forward), "batch": x()}


@case("F301")
def where_of_float64() -> dict[str, Any]:
    def forward(self, x):
        y = self.head(x)
        return torch.where(y > 0, y, torch.zeros(16, 4, dtype=torch.float64))  # fault

    return {"model": net(forward), "batch": x()}


@case("F301")
def positional_table() -> dict[str, Any]:
    table = torch.from_numpy(np.sin(np.arange(4.0)))

    def forward(self, x):
        return self.head(x) + table  # fault

    return {"model": net(forward), "batch": x()}


@case("F301")
def one_element() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x) + torch.tensor([0.5], dtype=torch.float64)  # fault

    return {"model": net(forward), "batch": x()}


@case("F301")
def integers_and_float64_scalar() -> dict[str, Any]:
    def forward(self, x):
        weights = torch.arange(4) * torch.tensor(np.float64(0.5))  # fault
        return self.head(x) * weights.float()

    return {"model": net(forward), "batch": x()}


@case("F301")
def two_scalars() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).mean() + torch.tensor(1.0, dtype=torch.float64)  # fault

    return {"model": net(forward), "batch": x()}


@case("F301", "bf16-mixed")
def float64_in_mixed() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x) * torch.ones(4, dtype=torch.float64)  # fault

    return {"model": net(forward), "batch": x()}


@case("F301", "bf16-mixed")
def parameter_kept_wide() -> dict[str, Any]:
    def forward(self, x):
        return torch.tanh(self.head(x) + self.bias)  # fault

    return {"model": net(forward, bias=nn.Parameter(torch.zeros(4))), "batch": x()}


@case("F301", "bf16-mixed")
def buffer_kept_wide() -> dict[str, Any]:
    def forward(self, x):
        return torch.tanh(self.head(x) * self.scale)  # fault

    return {"model": net(forward, scale=torch.ones(4)), "batch": x()}


@case("F301", "bf16-mixed")
def constant_kept_wide() -> dict[str, Any]:
    def forward(self, x):
        return torch.tanh(self.head(x) + torch.linspace(0, 1, 4))  # fault

    return {"model": net(forward), "batch": x()}


@case("F301", "bf16-true")
def constant_in_true_bfloat16() -> dict[str, Any]:
    def forward(self, x):
        return torch.tanh(self.head(x) + torch.linspace(0, 1, 4))  # fault

    return {"model": net(forward), "batch": x()}


@case("F301", "float64")
def float32_in_float64() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x) + torch.linspace(0, 1, 4)  # fault

    return {"model": net(forward), "batch": x()}


@case("F302")
def doubled() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).double().tanh()  # fault

    return {"model": net(forward), "batch": x()}


@case("F302")
def doubled_by_to() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).to(torch.float64).square().float()  # fault

    return {"model": net(forward), "batch": x()}


@case("F302")
def sum_in_float64() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).sum(1, dtype=torch.float64).sqrt()  # fault

    return {"model": net(forward), "batch": x()}


@case("F302")
def float64_batch() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x.tanh().float())  # fault

    return {"model": net(forward), "batch": x().double()}


@case("F302", "bf16-mixed")
def softmax_in_float64() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).softmax(-1, dtype=torch.float64).float()  # fault

    return {"model": net(forward), "batch": x()}


# --- compute, operands ---------------------------------------------------------------------------------


@case("F303", "bf16-mixed")
def own_autocast() -> dict[str, Any]:
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.float16):
            return self.head(x)  # fault

    return {"model": net(forward), "batch": x()}


@case("F303")
def matmul_in_bfloat16() -> dict[str, Any]:
    def forward(self, x):
        y = self.head(x)
        return (y.bfloat16() @ y.bfloat16().T).float()  # fault

    return {"model": net(forward), "batch": x()}


@case("F303")
def autocast_under_float32() -> dict[str, Any]:
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.head(x).float()  # fault

    return {"model": net(forward), "batch": x()}


@case("F305", "bf16-mixed")
def autocast_off() -> dict[str, Any]:
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.head(x.float())  # fault

    return {"model": net(forward), "batch": x()}


@case("F305", "bf16-mixed")
def autocast_off_in_attention() -> dict[str, Any]:
    def forward(self, x):
        q = self.head(x)[None].float()
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q, q, q)[0]  # fault

    return {"model": net(forward), "batch": x()}


@case("F306")
def linear_fed_float64() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x.double()).float()  # fault

    return {"model": net(forward), "batch": x()}


@case("F306")
def matmul_mixed() -> dict[str, Any]:
    def forward(self, x):
        return (self.head(x) @ torch.ones(4, 4, dtype=torch.float64)).float()  # fault

    return {"model": net(forward), "batch": x()}


@case("F306")
def half_linear() -> dict[str, Any]:
    def forward(self, x):
        return F.linear(x, self.head.weight.half())  # fault

    return {"model": net(forward), "batch": x()}


@case("F306", "bf16-mixed")
def autocast_and_float64() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x)  # fault

    return {"model": net(forward), "batch": x().double()}


@case("F306")
def lstm_fed_float64() -> dict[str, Any]:
    def forward(self, x):
        return self.lstm(x[:, None].double())[0]  # fault

    return {"model": net(forward, lstm=nn.LSTM(8, 8)), "batch": x()}


@case("F306")
def gru_fed_half() -> dict[str, Any]:
    def forward(self, x):
        return self.gru(x[:, None].half())[0]  # fault

    return {"model": net(forward, gru=nn.GRU(8, 8)), "batch": x()}


@case("F306")
def lstm_state_in_float64() -> dict[str, Any]:
    def forward(self, x):
        h = torch.zeros(1, 1, 8, dtype=torch.float64)
        return self.lstm(x[:, None], (h, h))[0]  # fault

    return {"model": net(forward, lstm=nn.LSTM(8, 8)), "batch": x()}


@case("F306")
def lstm_cell_in_float64() -> dict[str, Any]:
    def forward(self, x):
        return self.cell(x.double())[0]  # fault

    return {"model": net(forward, cell=nn.LSTMCell(8, 8)), "batch": x()}


@case("F306")
def convolution_fed_float64() -> dict[str, Any]:
    def forward(self, x):
        return self.conv(x[:, None].double())  # fault

    return {"model": net(forward, conv=nn.Conv1d(1, 4, 3)), "batch": x()}


@case("F306")
def layer_norm_fed_float64() -> dict[str, Any]:
    def forward(self, x):
        return self.norm(x.double())  # fault

    return {"model": net(forward, norm=nn.LayerNorm(8)), "batch": x()}


@case("F306")
def batch_norm_fed_float64() -> dict[str, Any]:
    def forward(self, x):
        return self.norm(x.double())  # fault

    return {"model": net(forward, norm=nn.BatchNorm1d(8)), "batch": x()}


@case("F306")
def attention_mixed() -> dict[str, Any]:
    def forward(self, x):
        q = self.head(x)[None]
        return F.scaled_dot_product_attention(q, q, q.double())  # fault

    return {"model": net(forward), "batch": x()}


@case("F306")
def huber_target() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x)

    def loss(outputs, batch):
        return F.huber_loss(outputs, torch.zeros(16, 4, dtype=torch.float64)).float()  # fault

    return {"model": net(forward), "batch": x(), "loss": loss}


@case("F306")
def bce_target() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x).sigmoid()

    def loss(outputs, batch):
        return F.binary_cross_entropy(outputs, torch.zeros(16, 4, dtype=torch.float64))  # fault

    return {"model": net(forward), "batch": x(), "loss": loss}


@case("F306")
def int32_classes() -> dict[str, Any]:
    def forward(self, x):
        return self.head(x)

    def loss(outputs, batch):
        return F.cross_entropy(outputs, torch.zeros(16, dtype=torch.int32))  # fault

    return {"model": net(forward), "batch": x(), "loss": loss}


@case("F307")
def float_ids() -> dict[str, Any]:
    def forward(self, x):
        return self.words(x[:, 0])  # fault

    return {"model": net(forward, words=nn.Embedding(10, 4)), "batch": x()}


@case("F307")
def numpy_meets_gradient() -> dict[str, Any]:
    def forward(self, x):
        return np.exp(self.head(x))  # fault

    return {"model": net(forward), "batch": x()}
