"""The plan applied: formats of tensors, of forward passes, and what is refused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from castiron.diagnostics import PlanError
from castiron.policy import Plan, PrecisionPolicy, resolve
from castiron.torch.modules import describe
from castiron.torch.precision import Precision, apply, departures, model_device

Applied = Callable[..., Precision]
PlanOf = Callable[..., Plan]


class Classifier(nn.Module):
    """Every family of layers that has parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.lstm = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(32, 16, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.batch_norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        x = self.norm(x)
        x, _ = self.attention(x, x, x)
        return self.head(self.batch_norm(x.mean(1)))


IDS = torch.arange(20).reshape(4, 5)
TARGET = torch.tensor([0, 1, 2, 0])


def output_formats(model: nn.Module, run: Callable[[], Any]) -> dict[str, str]:
    """Path of each layer → format of its (first) output."""
    seen: dict[str, str] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            first = first.data if hasattr(first, "batch_sizes") else first
            seen[path] = str(first.dtype).removeprefix("torch.")

        return hook

    handles = [m.register_forward_hook(note(p)) for p, m in model.named_modules() if p]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


POLICIES: dict[str, PrecisionPolicy] = {
    name: PrecisionPolicy.preset(preset, **overrides)
    for name, preset, overrides in [
        ("float64", "float64", {}),
        ("float32", "float32", {}),
        ("bf16-mixed", "bf16-mixed", {}),
        ("fp16-mixed", "fp16-mixed", {}),
        ("bf16-true", "bf16-true", {}),
        ("fp16-true", "fp16-true", {}),
        ("wide outputs", "bf16-mixed", {"output": "float32"}),
        ("wide head", "bf16-mixed", {"layers": {"head": {"compute": "float32"}}}),
        ("narrow lstm", "float32", {"layers": {"lstm": {"compute": "bfloat16"}}}),
        ("narrowly stored lstm", "float32", {"layers": {"lstm": {"param": "bfloat16"}}}),
        ("widely stored head", "bf16-true", {"layers": {"head": {"param": "float32"}}}),
        (
            "another narrow gru",
            "bf16-mixed",
            {"layers": {"gru": {"compute": "float16"}}, "scaling": "dynamic"},
        ),
        (
            "no islands",
            "bf16-mixed",
            {"islands": dict.fromkeys(("softmax", "normalization", "reductions", "exponentials"), None)},
        ),
        ("narrow norm", "bf16-mixed", {"layers": {"norm": {"compute": "bfloat16"}}}),
    ]
}


@pytest.mark.parametrize("name", list(POLICIES))
def test_every_layer_hands_on_what_its_row_says(name: str) -> None:
    model = Classifier()
    plan, _ = resolve(POLICIES[name], describe(model))
    precision = apply(model, plan)

    def run() -> None:
        with precision.forward_context("cpu"):
            logits = model(IDS)
            loss = F.cross_entropy(logits.to(getattr(torch, plan.policy.loss)), TARGET)
        with precision.backward_context("cpu"):
            loss.backward()

    seen = output_formats(model, run)
    assert seen == {path: plan.row(path).output for path in seen}
    assert len(seen) == 8
    for parameter_name, parameter in model.named_parameters():
        assert str(parameter.dtype) == f"torch.{plan.parameters()[parameter_name]}"
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", list(POLICIES))
def test_results_are_those_of_float64_up_to_the_format(name: str) -> None:
    torch.manual_seed(3)
    model = Classifier()
    reference = copy.deepcopy(model).double()(IDS)
    precision = apply(model, resolve(POLICIES[name], describe(model))[0])
    with precision.forward_context("cpu"):
        error = (model(IDS).double() - reference).abs().max().item()
    assert error < {"float64": 1e-9, "float32": 1e-5}.get(name, 0.08)


def test_parameters_keep_their_identity_and_buffers_their_integers(applied: Applied) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.randn(3, 4)).pow(3).sum().backward()
    applied(model, "bf16-true")
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}
    assert isinstance(model[1], nn.BatchNorm1d)
    assert model[1].running_var is not None
    assert model[1].running_var.dtype is torch.float32
    assert model[1].num_batches_tracked is not None
    assert model[1].num_batches_tracked.dtype is torch.int64
    weight = model[0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model[0].weight, weight)


def test_tied_parameters_stay_tied(applied: Applied) -> None:
    model = nn.Module()
    model.embedding = nn.Embedding(10, 4)
    model.head = nn.Linear(4, 10, bias=False)
    model.head.weight = model.embedding.weight
    applied(model, "bf16-true")
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.dtype is torch.bfloat16


def test_meta_models_and_parametrized_ones_are_cast(applied: Applied) -> None:
    with torch.device("meta"):
        meta = nn.Linear(3, 3)
    applied(meta, "bf16-true")
    assert meta.weight.dtype is torch.bfloat16
    layer = parametrizations.weight_norm(nn.Linear(3, 3))
    applied(layer, "bf16-true")
    assert layer.parametrizations.weight.original0.dtype is torch.bfloat16


def test_a_float64_model_becomes_what_is_declared(applied: Applied) -> None:
    model = nn.Linear(3, 3).double()
    applied(model, "float32")
    assert model.weight.dtype is torch.float32


# --- what is refused ------------------------------------------------------------------------------------


def test_a_parameter_that_does_not_fit_is_refused_by_name(applied: Applied) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = 1e6
    before = model[0].weight.detach().clone()
    with pytest.raises(PlanError) as refused:
        applied(model, "fp16-true")
    assert str(refused.value.findings[0]) == (
        "L206 1 of 4 values of parameter '0.weight' do not fit into float16. "
        "Expected magnitudes up to 65504. Received 1e+06 (float32) at layer '0'. "
        "Keep this layer wider with a layer rule ('<path>': {param: float32}), "
        "use bfloat16 (the range of float32), or scale the values."
    )
    assert torch.equal(model[0].weight, before), "nothing is cast when something is refused"


def test_values_that_vanish_are_reported(applied: Applied) -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(1e-9)
    (found,) = applied(model, "fp16-true").findings
    assert (found.code, found.severity) == ("L207", "warning")
    assert "4 of 4 values of parameter 'weight' become zero in float16" in found.message
    assert found.received == "1e-09 (float32)"


def test_directly_updated_narrow_parameters_are_warned_of(applied: Applied) -> None:
    (found,) = applied(nn.Linear(2, 2), "bf16-true", updates={"master": None}).findings
    assert found.code == "L208"
    assert found.sentence() == (
        "2 parameters in bfloat16 are updated directly: an update smaller than 0.004 of the weight rounds to "
        "nothing. Expected a float32 master copy, or stochastic rounding. "
        "Received updates: {master: null, rounding: nearest} at the model itself."
    )
    for updates in ({"master": "float32"}, {"master": None, "rounding": "stochastic"}):
        assert applied(nn.Linear(2, 2), "bf16-true", updates=updates).findings == []


def test_a_plan_of_another_model_is_refused(plan_of: PlanOf) -> None:
    plan = plan_of(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(PlanError, match="L211 layer '1' is in the model and not in the plan"):
        apply(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), plan)


def test_a_shared_layer_cannot_run_in_two_ways(applied: Applied) -> None:
    shared = nn.ReLU()
    with pytest.raises(
        PlanError, match="L203 layer '2' is the same module as '0' and cannot run in two ways"
    ):
        applied(
            nn.Sequential(shared, nn.Linear(2, 2), shared),
            "bf16-mixed",
            layers={"0": {"compute": "float32"}},
        )


def test_departures_from_the_plan_are_listed(plan_of: PlanOf) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    plan = plan_of(model, "bf16-true")
    found = departures(model, plan)
    assert {f.code for f in found} == {"L205"}
    assert len(found) == 4
    assert found[0].sentence() == (
        "parameter '0.weight' is not as planned. Expected bfloat16 for parameter '0.weight'. "
        "Received float32 at layer '0'."
    )
    apply(model, plan)
    assert departures(model, plan) == []


class Stubborn(nn.Module):
    """A module that keeps a second, undeclared view of what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        for name, parameter in super().named_parameters(*args, **kwargs):
            yield name, nn.Parameter(parameter.detach().float())


def test_a_cast_that_was_undone_is_an_error(plan_of: PlanOf) -> None:
    model = Stubborn()
    with pytest.raises(PlanError, match="L205 parameter 'weight' is not as planned"):
        apply(model, plan_of(model, "bf16-true"))


def test_what_torch_cannot_do_is_refused_and_not_replaced(applied: Applied) -> None:
    cases: list[tuple[nn.Module, str, dict[str, Any], str]] = [
        (nn.Linear(2, 2), "bf16-mixed", {"islands": {"softmax": "float64"}}, "islands in float64 inside"),
        (nn.Linear(2, 2), "float8-mixed", {}, "compute float8_e4m3fn is not available"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            "tf32",
            {"layers": {"0": {"compute": "float32"}}},
            "tf32 is a switch of the whole process",
        ),
        (
            nn.Sequential(nn.MultiheadAttention(4, 2)),
            "bf16-mixed",
            {"layers": {"0.out_proj": {"compute": "float32"}}},
            "MultiheadAttention computes its output projection itself",
        ),
        (
            nn.BatchNorm1d(2),
            "bf16-true",
            {"islands": {"normalization": None}},
            "torch's BatchNorm1d does not take weights and statistics of these two formats",
        ),
    ]
    for model, preset, overrides, message in cases:
        with pytest.raises(PlanError) as refused:
            applied(model, preset, **overrides)
        (found,) = refused.value.findings
        assert found.code == "L210"
        assert message in found.message
        assert found.expected
        assert found.received
        assert found.remedy


def test_islands_in_float64_are_no_matter_where_all_is_float64(applied: Applied) -> None:
    applied(nn.Linear(2, 2), "float64", islands={"softmax": "float64"})


# --- contexts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_weights_cast_without_gradients_are_not_used_with_them(applied: Applied, mode: Any) -> None:
    """torch's trap: after a forward under no_grad within one autocast, the next has no gradients."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    precision = applied(model, "bf16-mixed")
    with precision.forward_context():
        with mode():
            model(torch.randn(2, 4))
        loss = model(torch.randn(2, 4))[0].float().sum()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_evaluation_and_training_alternate_in_one_process(applied: Applied) -> None:
    model = nn.Linear(4, 4)
    precision = applied(model, "bf16-mixed")
    for _ in range(2):
        with torch.no_grad(), precision.forward_context():
            model(torch.randn(2, 4))
        model.zero_grad()
        with precision.forward_context():
            loss = model(torch.randn(2, 4)).float().sum()
        loss.backward()
        assert model.weight.grad is not None


def test_nothing_is_left_behind_by_a_context_that_raised(applied: Applied) -> None:
    precision = applied(nn.Linear(2, 2), "bf16-mixed")
    with pytest.raises(KeyError), precision.forward_context():
        raise KeyError
    assert not torch.is_autocast_enabled("cpu")
    assert torch.nn.functional.softmax(torch.ones(2).bfloat16(), 0).dtype is torch.bfloat16


def test_wide_policies_enter_nothing(applied: Applied) -> None:
    for preset in ("float32", "float64"):
        model = nn.Linear(2, 2)
        precision = applied(model, preset)
        with precision.forward_context(), precision.backward_context():
            assert not torch.is_autocast_enabled("cpu")
        assert not model._forward_hooks
        assert not model._forward_pre_hooks


def test_outside_of_the_context_a_mixed_model_is_the_plain_one(applied: Applied) -> None:
    torch.manual_seed(5)
    model = Classifier()
    expected = model.eval()(IDS)
    applied(model, "bf16-mixed")
    assert torch.equal(model(IDS), expected)


def test_a_plan_without_a_device_asks_for_one() -> None:
    model = nn.Linear(2, 2)
    plan, _ = resolve(PrecisionPolicy.preset("bf16-mixed"), describe(model))
    with pytest.raises(ValueError, match=r"Expected forward_context\(device_type\)"):
        apply(model, plan).forward_context()
    assert model_device(model) == "cpu"


# --- copies, pickles, compilation -----------------------------------------------------------------------

WIDE_HEAD = {"layers": {"head": {"compute": "float32"}}}


def test_a_copy_is_independent_and_runs_the_same_formats(applied: Applied) -> None:
    model = Classifier().eval()
    precision = applied(model, "bf16-mixed", **WIDE_HEAD)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with precision.forward_context():
        assert model(IDS).abs().max() == 0
        logits = twin(IDS)
    assert logits.abs().max() > 0
    assert logits.dtype is torch.float32
    precision.release(twin)
    assert "forward" not in twin.head.__dict__
    assert "forward" in model.head.__dict__
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in twin.modules())


def test_a_pickled_model_runs_the_same(applied: Applied) -> None:
    model = Classifier().eval()
    precision = applied(model, "bf16-mixed", **WIDE_HEAD)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    with precision.forward_context():
        assert torch.equal(model(IDS), loaded(IDS))


def test_applying_twice_is_applying_once(applied: Applied, plan_of: PlanOf) -> None:
    model = Classifier()
    plan = plan_of(model, "bf16-mixed", **WIDE_HEAD)
    apply(model, plan)
    first = {p: (len(m._forward_hooks), len(m._forward_pre_hooks)) for p, m in model.named_modules()}
    apply(model, plan)
    assert first == {p: (len(m._forward_hooks), len(m._forward_pre_hooks)) for p, m in model.named_modules()}


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("bf16-mixed", WIDE_HEAD),
        ("float32", {"layers": {"first": {"compute": "bfloat16"}}}),
        ("bf16-true", {}),
    ],
)
def test_a_compiled_model_runs_the_formats_of_the_eager_one(
    applied: Applied, preset: str, overrides: dict[str, Any]
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.norm(self.first(x))
            x, weights = self.attention(x, x, x)
            return self.head(x.mean(1)), weights

    torch._dynamo.reset()
    model, x = Net(), torch.randn(2, 5, 8)
    precision = applied(model, preset, **overrides)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with precision.forward_context():
        eager = model(x)
        traced = compiled(x)
    assert [t.dtype for t in traced] == [t.dtype for t in eager]
    torch.testing.assert_close(traced, eager)
    traced[0].float().sum().backward()
    assert model.first.weight.grad is not None
