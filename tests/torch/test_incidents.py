"""A held step stored and put into another model: every tensor, every generator, every mode."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from castiron.diagnostics import CastironError, RunError
from castiron.torch import incidents
from castiron.torch.incidents import store
from castiron.torch.replay import ReplayStep
from castiron.torch.stored_step import StoredStep, is_finite_step
from castiron.training.held import Verdict, incident_of
from castiron.training.incident import Attribution, BadRow
from castiron.training.incident_folder import IncidentFolder

VERDICT = Verdict(True, {"loss": ("micro-batch 1",), "gradients": ("0.weight",)}, (1,))
FOUND = Attribution(
    code="N504",
    phase="loss",
    event="domain",
    message="log meets 0",
    rows=(BadRow(index=1, row=7), BadRow(index=2)),
)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model[0].bias.requires_grad_(False)
    model[3].register_buffer("factor", torch.tensor(2.0), persistent=False)
    return model


def held(model: nn.Module, restore: Callable[[], None] = lambda: None, **more: Any) -> ReplayStep:
    def run(batch: Any, i: int) -> Tensor:
        loss: Tensor = (model(batch["x"]) * model[3].factor).square().mean()  # type: ignore[index]
        (loss * more.get("scale", 1.0)).backward()
        return loss.detach()

    batches = [{"x": torch.randn(4, 3), "row": torch.arange(6, 10) + 4 * i} for i in range(2)]
    return ReplayStep(root=model, batches=batches, run=run, restore=restore, verdict=VERDICT, **more)


def put(step: ReplayStep, folder: Path, **more: Any) -> IncidentFolder:
    incident = incident_of(FOUND, step=3, epoch=1, policy="float32", verdict=step.verdict)
    return IncidentFolder.open(store(incident, step, folder, kind="loop", **more))


def test_the_record() -> None:
    incident = incident_of(
        FOUND, step=3, epoch=1, policy="float32", verdict=VERDICT, response="hold", rank=2,
        origin="a:b/train.csv:{}".format,
    )  # fmt: skip
    assert (incident.code, incident.step, incident.epoch, incident.rank) == ("N504", 3, 1, 2)
    assert incident.rows == (BadRow(index=1, row=7, file="a:b/train.csv", line=7), BadRow(index=2))
    assert incident.seen == {"loss": ["micro-batch 1"], "gradients": ["0.weight"]}
    assert incident.castiron
    assert incident.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_place_that_is_no_line_is_kept_whole() -> None:
    incident = incident_of(
        FOUND, step=0, epoch=0, policy="", verdict=VERDICT, origin=lambda row: f"key {row}"
    )
    assert incident.rows[0] == BadRow(index=1, row=7, file="key 7")


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = net()
    model[1].eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    step = held(model, optimizers=[optimizer], scale=1024.0)
    step.run(step.batches[0], 0)
    optimizer.step()
    torch.manual_seed(99)
    folder = put(step, tmp_path, facts={"accumulate": 2, "most": float("inf")})
    expected = torch.rand(3)
    other = net(seed=5)
    made = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad])
    stored = StoredStep(folder)
    stored.put_parameters(other)
    assert stored.put_optimizers(other, [made])
    restore = stored.restore(other)
    assert torch.equal(torch.rand(3), expected)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.requires_grad == b.requires_grad, name
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))
    assert [m.training for m in other.modules()] == [m.training for m in model.modules()]
    assert str(made.state_dict()) == str(optimizer.state_dict())
    assert stored.verdict == VERDICT
    batches = stored.batches()
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(batches, step.batches, strict=True))
    assert folder.facts["scale"] == 1024.0
    assert (folder.facts["accumulate"], folder.facts["most"]) == (2, "inf")
    assert stored.notes == []
    other[1].running_mean.add_(1)
    restore()
    assert torch.equal(other[1].running_mean, model[1].running_mean)


def test_what_is_stored_is_the_state_of_before_the_step(tmp_path: Path) -> None:
    model = net()
    before = model[1].running_mean.clone()

    @torch.no_grad()
    def restore() -> None:
        model[1].running_mean.copy_(before)
        torch.manual_seed(4)

    step = held(model, restore)
    step.run(step.batches[0], 0)
    folder = put(step, tmp_path)
    other = net(1)
    StoredStep(folder).restore(other)
    assert torch.equal(other[1].running_mean, before)
    drawn = torch.rand(2)
    torch.manual_seed(4)
    assert torch.equal(torch.rand(2), drawn)


def test_parameters_take_the_format_that_the_model_has(tmp_path: Path) -> None:
    model = net().bfloat16()
    step = held(model)
    folder = put(step, tmp_path)
    wide = net(1)
    StoredStep(folder).put_parameters(wide)
    assert wide[0].weight.dtype is torch.float32
    assert torch.equal(wide[0].weight, model[0].weight.float())


def test_rows_are_named_where_the_folder_knows_them(tmp_path: Path) -> None:
    folder = put(held(net()), tmp_path, origin="train.csv:{}".format)
    found = StoredStep(folder).located(
        FOUND.model_copy(update={"rows": (BadRow(index=0, row=13), BadRow(index=1, row=99), BadRow(index=2))})
    )
    assert [(r.file, r.line) for r in found.rows] == [("train.csv", 13), (None, None), (None, None)]


def test_another_machine_is_noted(tmp_path: Path) -> None:
    step = held(net())
    incident = incident_of(FOUND, step=3, epoch=1, policy="float32", verdict=step.verdict)
    older = incident.model_copy(update={"versions": {"torch": "2.0.0"}})
    folder = IncidentFolder.open(store(older, step, tmp_path, kind="loop"))
    state = json.loads((folder.path / "state.json").read_text())
    state["facts"]["device"] = "cuda"
    (folder.path / "state.json").write_text(json.dumps(state))
    assert StoredStep(IncidentFolder.open(folder.path)).notes == [
        "The step ran on cuda, its replay runs on cpu: kernels and random numbers are others.",
        f"The step ran with torch 2.0.0, its replay runs with {torch.__version__}.",
    ]


def test_a_batch_that_is_no_data_cannot_be_replayed(tmp_path: Path) -> None:
    step = held(net())
    step.batches = [{"x": torch.ones(1), "graph": torch.Generator()}]
    with pytest.raises(CastironError) as error:
        StoredStep(put(step, tmp_path)).batches()
    assert "N515 The batch held something that could not be stored." in str(error.value)
    assert "Received torch._C.Generator at" in str(error.value)


class Spread(nn.Parameter):
    """Looks like a part of a tensor that several processes share."""

    def to_local(self) -> None: ...


def test_parameters_that_are_spread_over_processes_are_said_to_be_missing(tmp_path: Path) -> None:
    model = net()
    model[3].weight = Spread(model[3].weight.data)
    folder = put(held(model), tmp_path)
    with pytest.raises(CastironError) as error:
        StoredStep(folder).put_parameters(net())
    assert str(error.value).startswith(
        "N515 The parameter '3.weight' was not stored: it is a tensor spread over several processes."
    )


def test_an_optimizer_of_other_parameters_is_not_taken(tmp_path: Path) -> None:
    model = net()
    step = held(model, optimizers=[torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)])
    stored = StoredStep(put(step, tmp_path))
    other = net(1)
    assert not stored.put_optimizers(other, [torch.optim.SGD(other[3].parameters(), lr=0.1)])
    assert not stored.put_optimizers(other, [])
    assert stored.put_optimizers(other, [torch.optim.SGD(other[0].parameters(), lr=5.0)])


def test_a_large_optimizer_state_is_left_out_by_itself(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    size = sum(p.nbytes for p in model.parameters())
    optimizer.state[model[3].weight]["more"] = torch.zeros(10_000)
    folder = put(held(model, optimizers=[optimizer]), tmp_path, parameters_limit=size)
    assert folder.has("parameters.safetensors")
    assert not folder.has("optimizer.safetensors")
    assert "bytes are more than" in folder.left_out["optimizer.safetensors"]


def test_a_full_disk_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "incidents").write_text("a file")
    with pytest.raises(RunError, match="X819"):
        put(held(net()), tmp_path / "incidents")


# --- whether a remedy mends a step ------------------------------------------------------------------------


def test_a_step_is_finite_or_not() -> None:
    model = net()
    step = held(model)
    assert is_finite_step(step)
    step.batches[1]["x"][0] = float("nan")  # type: ignore[index]
    assert not is_finite_step(step)


def test_gradients_and_buffers_count() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    model.register_buffer("sum", torch.zeros(1))
    model.register_buffer("mask", torch.tensor([-float("inf")]))

    def with_loss(loss_of: Callable[[], Tensor]) -> ReplayStep:
        def run(batch: Any, i: int) -> Tensor:
            loss = loss_of()
            loss.backward()
            return loss.detach()

        return ReplayStep(root=model, batches=[None], run=run, restore=lambda: None, verdict=VERDICT)

    def spoiled() -> Tensor:
        model.sum.fill_(float("nan"))
        return model(torch.ones(1, 1)).sum()

    assert is_finite_step(with_loss(lambda: model(torch.ones(1, 1)).sum())), "a mask of -inf is no fault"
    assert not is_finite_step(with_loss(lambda: (model(torch.zeros(1, 1)) * 0).abs().sqrt().sum()))
    assert not is_finite_step(with_loss(spoiled))


@pytest.mark.parametrize(("rate", "finite"), [(0.1, True), (3e38, False)])
def test_the_update_counts_where_it_is_asked_for(rate: float, finite: bool) -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)

    def run(batch: Any, i: int) -> Tensor:
        loss = model(batch).sum()
        (loss * 8).backward()
        return loss.detach()

    step = ReplayStep(
        root=model, batches=[torch.full((1, 1), 100.0)], run=run, restore=lambda: None, verdict=VERDICT,
        optimizers=[optimizer], scale=8.0,
    )  # fmt: skip
    assert is_finite_step(step)
    seen: list[float] = []

    def clip() -> None:
        assert model.weight.grad is not None
        seen.append(model.weight.grad.item())

    assert is_finite_step(step, update=True, before_update=clip) is finite
    assert seen == [100.0], "gradients are unscaled before they are clipped"


def test_limits_are_told() -> None:
    assert incidents.PARAMETERS_LIMIT == 256 * 2**20
