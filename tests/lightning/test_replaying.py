"""An incident's folder, run again: the same step bit for bit, remedies that mend it, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

import castiron.lightning
from castiron.diagnostics import CastironError, HardwareError, PlanError
from castiron.lightning.incidents import incident_of, store
from castiron.lightning.replaying import promoted, replay_recipe
from castiron.policy import PrecisionPolicy
from castiron.torch.incident_tensors import random_state, set_random_state
from castiron.torch.replay import ReplayStep, attribute
from castiron.training import load_config
from castiron.training.backend import Remedies, Replayed
from castiron.training.held import Verdict
from castiron.training.incident import Attribution
from castiron.training.incident_folder import IncidentFolder, listed_incidents
from castiron.training.launch import train

Held = Callable[..., Path]


def sure(model: Any, batch: Any) -> None:
    """The head is so sure of one row that 1 - sigmoid is 0."""
    batch["x"][4] = 1e4
    with torch.no_grad():
        model.body[0].weight.fill_(1.0)
        model.body[1].eval()
        model.body[3].eval()
        model.head.weight.fill_(30.0)


def again(path: Path, **remedies: Any) -> Replayed:
    folder = IncidentFolder.open(path)
    assert folder.config is not None
    loaded = load_config(folder.config)
    return replay_recipe(folder, loaded.config, loaded.recipe, Remedies(**remedies))


def test_a_recipes_step_fails_again_as_it_did(held_step: Held) -> None:
    path = held_step(spoil=sure)
    folder = IncidentFolder.open(path)
    before = torch.get_rng_state()
    found = again(path)
    assert torch.equal(torch.get_rng_state(), before), "generators are left alone"
    assert found.incident == folder.incident
    assert found.replay.reproduced
    recorded = found.incident.model_dump()
    assert found.replay.model_dump() == {name: recorded[name] for name in Attribution.model_fields}
    assert {(r.file, r.line, r.index) for r in found.replay.rows} >= {("data/train.csv", 24, 4)}
    assert found.notes == ()


def test_dropout_and_running_statistics_are_those_of_the_step(held_step: Held) -> None:
    def spoil(model: Any, batch: Any) -> None:
        batch["x"][1, 0] = float("nan")
        torch.rand(7)

    first, second = (again(held_step(spoil=spoil)).replay for _ in range(2))
    assert first == second
    assert (first.phase, first.event) == ("data", "data")
    assert [r.index for r in first.rows] == [1]


def test_the_folder_alone_is_enough(held_step: Held, tmp_path: Path) -> None:
    path = held_step(spoil=sure)
    elsewhere = shutil.copytree(path, tmp_path / "elsewhere" / "step")
    shutil.rmtree(path)
    assert again(elsewhere).replay.reproduced
    assert {p.name for p in elsewhere.iterdir()} == {
        "assets", "batch.safetensors", "buffers.safetensors", "config.yaml", "environment.json",
        "incident.json", "optimizer.safetensors", "parameters.safetensors", "plan.json", "rng.safetensors",
        "state.json",
    }  # fmt: skip


def test_remedies_are_tried_each_by_itself(held_step: Held) -> None:
    """Sigmoid of 12 is 1 in bfloat16, and less than 1 in float32."""

    def spoil(model: Any, batch: Any) -> None:
        model.eval()
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.fill_(12.0)

    path = held_step("bf16-mixed", spoil=spoil)
    found = again(
        path,
        policies=[PrecisionPolicy.preset("float32"), PrecisionPolicy.preset("bf16-mixed")],
        device="cpu",
        promote=["head", "body.0"],
    )
    assert found.replay.reproduced
    assert [(t.tried, t.goes_away) for t in found.remedies] == [
        ("policy float32", True),
        ("policy bf16-mixed", False),
        ("device cpu", False),
        ("promote head", True),
        ("promote body.0", False),
    ]
    remains = found.remedies[1].remains
    assert remains is not None
    assert remains.reproduced
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert record["remedies"][0] == {"tried": "policy float32", "goes_away": True, "remains": None}
    assert record["replay"]["code"] == record["incident"]["code"] == found.incident.code


def test_a_layer_that_is_not_there_is_refused(held_step: Held) -> None:
    with pytest.raises(PlanError, match=r"L201.*head"):
        again(held_step(spoil=sure), promote=["haed"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there_is_refused(held_step: Held) -> None:
    with pytest.raises(HardwareError, match="there is no device 'cuda'"):
        again(held_step(spoil=sure), device="cuda")


def test_promoting_widens_what_is_stored_where_it_must() -> None:
    mixed = promoted(PrecisionPolicy.preset("bf16-mixed"), "head").layers["head"]
    assert (mixed.param, mixed.compute, mixed.output) == (None, "float32", "float32")
    true = PrecisionPolicy.preset("bf16-true", layers={"head": {"buffers": "float64"}})
    rule = promoted(true, "head").layers["head"]
    assert (rule.param, rule.compute, rule.buffers) == ("float32", "float32", "float64")


def test_another_model_is_told_from_the_one_of_the_step(held_step: Held) -> None:
    path = held_step(spoil=sure)
    folder = IncidentFolder.open(path)
    assert folder.config is not None
    loaded = load_config(folder.config, ["model.hidden=5"])
    with pytest.raises(CastironError) as error:
        replay_recipe(folder, loaded.config, loaded.recipe, Remedies())
    assert str(error.value).startswith(
        "N515 The model is not the one that the step was taken with. Expected parameter 'body.0.weight' of "
        "shape [4, 3]. Received parameter 'body.0.weight' of shape [5, 3] at"
    )


def test_parameters_that_are_too_large_are_said_to_be_missing(held_step: Held) -> None:
    with pytest.raises(CastironError) as error:
        again(held_step(spoil=sure, parameters_limit=10))
    assert "N515 'parameters.safetensors' was not stored: the " in str(error.value)
    assert "bytes of parameters are more than 10." in str(error.value)


def test_parameters_may_lie_in_a_checkpoint(held_step: Held, tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"

    def spoil(model: Any, batch: Any) -> None:
        sure(model, batch)
        state = {f"model.{name}": value for name, value in model.state_dict().items()}
        torch.save({"state_dict": state, "global_step": 12}, checkpoint)

    path = held_step(spoil=spoil, parameters_limit=10, checkpoint=checkpoint)
    assert again(path).replay.reproduced
    with checkpoint.open("ab") as file:
        file.write(b"x")
    with pytest.raises(CastironError, match="N515 The checkpoint with the parameters is not the one"):
        again(path)
    checkpoint.unlink()
    with pytest.raises(CastironError, match=r"N515 The parameters are in a checkpoint.*last\.ckpt"):
        again(path)


def test_tensors_that_do_not_fit_their_index(held_step: Held) -> None:
    path = held_step(spoil=sure)
    state = json.loads((path / "state.json").read_text())
    state["facts"]["structures"]["batch.safetensors"] = {"tensor": "nothing", "device": "cpu"}
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CastironError, match=r"N513 .*the structure does not fit.*batch\.safetensors"):
        again(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scale", "large", "its 'scale' is no number"),
        ("accumulate", [], "its 'accumulate' is no number"),
        ("verdict", [1], "its 'verdict' is none"),
        ("verdict", {"seen": {"loss": 3}}, "its 'verdict' is none"),
        ("structures", [], "it says nothing of 'parameters.safetensors'"),
    ],
)
def test_facts_that_are_none(name: str, value: Any, message: str, held_step: Held) -> None:
    path = held_step(spoil=sure)
    state = json.loads((path / "state.json").read_text())
    state["facts"][name] = value
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CastironError, match=f"N513 .*{message}"):
        again(path)


def test_the_incident_of_a_real_training_is_replayed_from_its_folder(tmp_path: Path) -> None:
    """Far too high a learning rate, over two micro-batches a step."""
    overrides = [
        "data.batch_size=16", "model.embedding=4", "model.hidden=4", "model.text.max_vocabulary=50",
        "trainer.limit_train=12", "trainer.accumulate=2", "trainer.threads=1", "trainer.max_epochs=1",
        "trainer.clip_norm=null", "optimizer.lr=1e37", "precision=bf16-mixed",
    ]  # fmt: skip
    loaded = load_config("lstm-sentiment", overrides)
    run, outcome = train(loaded, runs=tmp_path / "runs", name="x")
    assert (outcome.status, outcome.incidents) == ("failed", 1)
    (path,) = listed_incidents(run.incidents)
    moved = Path(shutil.move(path, tmp_path / "moved"))
    shutil.rmtree(tmp_path / "runs")
    found = again(moved)
    recorded = found.incident.model_dump()
    assert found.replay.model_dump() == {name: recorded[name] for name in Attribution.model_fields}
    assert found.replay.micro_batch is not None


# --- modules that are no recipes --------------------------------------------------------------------------


class Foreign(pl.LightningModule):
    """A user's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.3), nn.Linear(3, 1))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        loss = (self.net(x) - y).square().mean() + (batch_idx - 7) * x.log().mean()
        self.log("train_loss", loss)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


def foreign_incident(module: pl.LightningModule, folder: Path, **more: Any) -> Path:
    batch = [torch.tensor([[1.0, 2.0], [0.0, 3.0], [1.0, 1.0]]), torch.ones(3, 1)]
    generators = random_state()

    def run(batch: Any, i: int) -> Tensor:
        loss: Tensor = Foreign.training_step(module, batch, 8)["loss"]  # type: ignore[arg-type]
        loss.backward()
        return loss.detach()

    step = ReplayStep(
        root=module, batches=[batch], run=run, restore=lambda: set_random_state(generators) and None,
        verdict=Verdict(True, {"loss": ("micro-batch 0",)}, (0,)),
    )  # fmt: skip
    found = attribute(step)
    incident = incident_of(found, step=8, epoch=0, policy="float32", verdict=step.verdict)
    return store(incident, step, folder, module=module, batch_indices=[8], **more)


pytestmark = pytest.mark.filterwarnings("ignore:.*self.log.*")


def test_any_module_is_replayed_from_python(tmp_path: Path) -> None:
    path = foreign_incident(Foreign(), tmp_path)
    fresh = Foreign()
    before = {n: p.clone() for n, p in fresh.named_parameters()}
    found = castiron.lightning.replay(path, fresh, policies=["float32", "float64"], promote=["net.2"])
    assert found.replay.reproduced
    assert found.replay.producer.op == "log"
    assert found.replay.producer.source is not None
    assert "x.log().mean()" in found.replay.producer.source.text
    assert [r.index for r in found.replay.rows] == [1]
    assert [(t.tried, t.goes_away) for t in found.remedies] == [
        ("policy float32", False), ("policy float64", False), ("promote net.2", False),
    ]  # fmt: skip
    assert all(torch.equal(p, before[n]) for n, p in fresh.named_parameters()), "copies are run"


def test_the_batch_index_is_that_of_the_step(tmp_path: Path) -> None:
    """With batch_idx 7 the logarithm is multiplied by 0, which is NaN and not -inf."""
    found = castiron.lightning.replay(foreign_incident(Foreign(), tmp_path), Foreign())
    assert found.replay.message == found.incident.message


def test_the_loss_may_be_told(tmp_path: Path) -> None:
    path = foreign_incident(Foreign(), tmp_path)
    module = Foreign()
    module.automatic_optimization = False
    with pytest.raises(CastironError, match=r"N515 The module steps its optimizers.*loss_of=lambda"):
        castiron.lightning.replay(path, module)
    found = castiron.lightning.replay(path, module, loss_of=lambda m, batch, i: m.net(batch[0]).mean())
    assert not found.replay.reproduced


def test_another_class_of_module_is_refused(tmp_path: Path) -> None:
    path = foreign_incident(Foreign(), tmp_path)
    module = Foreign()
    module.net[2] = nn.Identity()
    with pytest.raises(CastironError, match=r"'net\.2\.weight' of shape \[1, 3\]\. Received no"):
        castiron.lightning.replay(path, module)


class Broken(Foreign):
    """Its optimizer divides zero by zero."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # type: ignore[override]
        return self.net(batch[0]).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    lr = 3e38


def test_an_optimizers_fault_is_tried_with_its_step(tmp_path: Path) -> None:
    module = Broken()
    (optimizer,) = [module.configure_optimizers()]
    batch = [torch.full((2, 2), 1e3), torch.ones(2, 1)]

    def run(batch: Any, i: int) -> Tensor:
        loss = module.training_step(batch, 0)
        loss.backward()
        return loss.detach()

    generators = random_state()
    step = ReplayStep(
        root=module, batches=[batch], run=run, restore=lambda: set_random_state(generators) and None,
        verdict=Verdict(True, {"parameters": ("net.0.weight",)}), optimizers=[optimizer],
    )  # fmt: skip
    found = attribute(step)
    assert found.phase == "optimizer"
    incident = incident_of(found, step=0, epoch=0, policy="float32", verdict=step.verdict)
    path = store(incident, step, tmp_path, module=module)
    replayed = castiron.lightning.replay(path, Broken(), device="cpu")
    assert (replayed.replay.phase, replayed.replay.code) == ("optimizer", found.code)
    assert [t.goes_away for t in replayed.remedies] == [False]
    assert replayed.notes == ()
    module = nn.Sequential()
    module.net = Broken().net  # a bare loop's model has no configure_optimizers
    found_again = castiron.lightning.replay(
        path,
        module,
        loss_of=lambda m, batch, i: m.net(batch[0]).mean(),
        optimizers_of=lambda m: [torch.optim.SGD(m.parameters(), lr=1.0)],
        device="cpu",
    )
    assert found_again.replay.phase == "optimizer", "the learning rate is that of the step"
    found_again = castiron.lightning.replay(path, module, loss_of=lambda m, batch, i: m.net(batch[0]).mean())
    assert found_again.notes == (
        "The optimizers could not be made ('Sequential' object has no attribute 'configure_optimizers'): say "
        "how, as optimizers_of=….",
    )


def test_a_module_that_is_no_lightning_module_needs_its_loss(tmp_path: Path) -> None:
    path = foreign_incident(Foreign(), tmp_path)
    module = nn.Sequential()
    module.net = Foreign().net
    with pytest.raises(CastironError, match=r"N515 The module is no LightningModule.*loss_of=lambda"):
        castiron.lightning.replay(path, module)
    found = castiron.lightning.replay(
        path, module, loss_of=lambda m, batch, i: m.net(batch[0]).mean() + batch[0].log().mean()
    )
    assert found.replay.reproduced


class Attached(Foreign):
    """Asks its trainer."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # type: ignore[override]
        return self.net(batch[0]).mean() * self.trainer.current_epoch


def test_a_module_that_asks_for_its_trainer_is_told_what_to_do(tmp_path: Path) -> None:
    path = foreign_incident(Foreign(), tmp_path)
    with pytest.raises(CastironError, match=r"N515 .*asks for its trainer.*loss_of=lambda"):
        castiron.lightning.replay(path, Attached())


def test_it_prints_as_a_block(tmp_path: Path) -> None:
    found = castiron.lightning.replay(foreign_incident(Foreign(), tmp_path), Foreign(), device="cpu")
    lines = str(found).splitlines()
    assert lines[0] == f"{found.incident.code} {found.incident.message}"
    assert lines[-2] == "replayed  the same fault again"
    assert lines[-1] == "✗ device cpu  the fault stays"
