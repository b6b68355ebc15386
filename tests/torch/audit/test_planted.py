"""Small models with one planted departure each: found, at its line, with the right code."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from castiron.torch.audit import audit

CASES: list[tuple[str, str, Callable[[], dict[str, Any]]]] = []

torch.set_num_threads(1)


def case(code: str, policy: Any = "float32") -> Callable[[Any], Any]:
    """A case: a function that gives the arguments of `audit`; `# fault` marks the line."""

    def keep(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        CASES.append((code, policy, make))
        return make

    return keep


def net(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """A module of these parts (modules, parameters, buffers as tensors) and this forward; `head` is there."""
    model = nn.Module()
    model.head = nn.Linear(8, 4)
    for name, part in parts.items():
        if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
            model.register_buffer(name, part)
        else:
            setattr(model, name, part)
    model.forward = types.MethodType(forward, model)
    return model


def x() -> torch.Tensor:
    return torch.randn(16, 8)


def mse(outputs: Any, batch: Any) -> Any:
    return outputs.float().square().mean()


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


def test_there_are_sixty():
    assert len(CASES) >= 60


@pytest.mark.parametrize(("code", "policy", "make"), CASES, ids=[c[2].__name__ for c in CASES])
def test_planted_fault(code, policy, make):
    arguments = make()
    arguments.setdefault("loss", mse)
    report = audit(policy=policy, **arguments)
    lines, first = inspect.getsourcelines(make)
    marked = [first + i for i, line in enumerate(lines) if line.rstrip().endswith("# fault")]
    found = [f for f in report.findings if f.code == code]
    assert found, f"{code} was not found; {[str(f) for f in report.findings]}"
    if marked:
        assert marked[0] in [f.place.line for f in found]
        assert found[0].place.file == __file__
    for f in report.findings:
        assert f.message
        assert f.remedy
        if f.severity != "info":
            assert f.received or f.expected


def test_no_kernel(monkeypatch):
    from castiron.torch.audit import kernels

    monkeypatch.setattr(kernels, "no_lstm", lambda dtype, device: "could not create a primitive descriptor")
    model = nn.Sequential(nn.LSTM(8, 8))
    report = audit(model, torch.randn(4, 2, 8), "fp16-mixed")
    assert [f.code for f in report.findings if f.severity == "error"] == ["F324"]
    assert report.errors[0].place.module == "0"
    assert report.errors[0].message == (
        "lstm has no kernel for float16 here: could not create a primitive descriptor"
    )
