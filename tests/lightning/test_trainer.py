"""castiron's Trainer and precision plugin take any LightningModule unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from castiron.diagnostics import ConfigError, DataError, HardwareError, ManifestError, PlanError
from castiron.lightning import PrecisionPlugin, Trainer
from castiron.torch.switches import snapshot
from castiron.training.manifest import read_manifest


class Regression(pl.LightningModule):
    """As anybody writes it: nothing of castiron in it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.seen: set[torch.dtype] = set()

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        out = self.net(x)
        self.seen |= {x.dtype}
        loss = nn.functional.mse_loss(out.squeeze(1), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.net(x).squeeze(1), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def loader(dtype: torch.dtype = torch.float32) -> DataLoader:
    torch.manual_seed(0)
    x = torch.randn(64, 4, dtype=dtype)
    return DataLoader(TensorDataset(x, x.sum(1)), batch_size=16)


def quiet(**more: Any) -> dict[str, Any]:
    shown = {"enable_progress_bar": False, "enable_model_summary": False}
    return {**shown, "max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, **more}


PRESETS = ["float64", "float32", "bf16-mixed", "fp16-mixed", "bf16-true", "fp16-true"]

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*LeafSpec.*")


@pytest.mark.parametrize("policy", PRESETS)
def test_a_plain_module_trains_on_numpy_doubles_under_every_preset_of_this_cpu(
    policy: str, tmp_path: Path
) -> None:
    module = Regression()
    trainer = Trainer(policy=policy, **quiet(default_root_dir=tmp_path))
    trainer.fit(module, loader(torch.float64), loader(torch.float64))
    plan = trainer.precision_plugin.plan
    assert {str(p.dtype).removeprefix("torch.") for p in module.parameters()} == set(
        plan.parameters().values()
    )
    assert torch.isfinite(trainer.callback_metrics["train_loss"])
    if policy != "float64":
        assert torch.float64 not in module.seen


def test_a_run_from_code_has_the_files_of_every_run(tmp_path: Path) -> None:
    Trainer(policy="bf16-mixed", **quiet(default_root_dir=tmp_path)).fit(Regression(), loader(), loader())
    (run,) = (tmp_path / "runs" / "regression").iterdir()
    assert {"plan.json", "environment.json", "summary.json", "metrics.jsonl"} <= {
        p.name for p in run.iterdir()
    }
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("completed", 4)
    assert summary["policy"] == "p=float32,c=bfloat16,o=bfloat16"
    assert set(summary["metrics"]) == {"train", "validation"}
    assert list((run / "checkpoints").glob("*.ckpt"))


def test_the_policy_is_the_only_place_for_precision(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Received precision='16-mixed' at key 'precision'"):
        Trainer(policy="float32", precision="16-mixed")
    with pytest.raises(ConfigError, match="no precision plugin beside policy"):
        Trainer(policy="float32", plugins=[PrecisionPlugin("float32")])


def test_the_plugin_serves_a_plain_lightning_trainer() -> None:
    module = Regression()
    plugin = PrecisionPlugin({"preset": "bf16-mixed", "layers": {"net.3": {"compute": "float32"}}})
    pl.Trainer(plugins=[plugin], logger=False, enable_checkpointing=False, **quiet()).fit(module, loader())
    assert plugin.plan is not None
    assert plugin.plan.row("net.3").compute == "float32"
    assert plugin.plan.row("net.0").compute == "bfloat16"


def test_sections_of_the_policy_can_be_said_beside_it() -> None:
    trainer = Trainer(policy="float32", guard={"response": "hold"}, logger=False)
    assert trainer.policy.guard.response == "hold"


def test_a_rule_that_matches_nothing_stops_before_the_first_step(tmp_path: Path) -> None:
    policy = {"preset": "bf16-mixed", "layers": {"net.9": {"compute": "float32"}}}
    module = Regression()
    with pytest.raises(PlanError, match=r"[Tt]he layer rule 'net\.9' matches nothing"):
        Trainer(policy=policy, **quiet(default_root_dir=tmp_path)).fit(module, loader())
    assert not module.seen


def test_a_policy_that_the_device_cannot_run_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match=r"cannot run matmul layers in tf32.*use precision: float32"):
        Trainer(policy="tf32", **quiet(default_root_dir=tmp_path)).fit(Regression(), loader())


def test_an_object_array_in_a_batch_is_refused_before_the_model(tmp_path: Path) -> None:
    rows = [{"x": np.array(["1.5", "N/A"], dtype=object), "y": np.zeros(2)}]
    batches = DataLoader(rows, batch_size=None)  # type: ignore[arg-type]
    module = Regression()
    with pytest.raises(DataError, match=r"batch\['x'\]"):
        Trainer(policy="float32", **quiet(default_root_dir=tmp_path)).fit(module, batches)
    assert not module.seen


class DoubleLoss(Regression):
    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x).squeeze(1), y.double())


def test_a_loss_that_is_not_as_declared_is_found_at_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"F310.*Expected float32\. Received float64"):
        Trainer(policy="float32", **quiet(default_root_dir=tmp_path)).fit(DoubleLoss(), loader())
    relaxed = {"preset": "float32", "enforce": {"level": "warn"}}
    trainer = Trainer(policy=relaxed, **quiet(default_root_dir=tmp_path))
    trainer.fit(DoubleLoss(), loader())
    assert [f.code for f in trainer.precision_plugin.findings] == ["F310"]


def test_switches_of_the_process_are_put_back(tmp_path: Path) -> None:
    before = snapshot()
    Trainer(policy="float32", **quiet(default_root_dir=tmp_path)).fit(Regression(), loader())
    assert snapshot() == before


class TwoOptimizers(pl.LightningModule):
    """Manual optimization of two parts, as a GAN has them; gradients of the first overflow at one step."""

    def __init__(self, bad_step: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Linear(4, 1), nn.Linear(4, 1)
        self.bad_step = bad_step
        self.scales: list[float] = []

    def training_step(self, batch: Any, index: int) -> None:
        x, y = batch
        for optimizer, net, factor in zip(self.optimizers(), (self.a, self.b), (1.0, 1.0), strict=True):
            bad = index == self.bad_step and net is self.a
            loss = nn.functional.mse_loss(net(x).squeeze(1), y) * (1e30 if bad else factor)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.scales.append(self.trainer.precision_plugin.loss_scale())

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.1, fused=True) for net in (self.a, self.b)]


def test_the_scale_changes_once_a_step_however_many_optimizers_there_are(tmp_path: Path) -> None:
    scaling = {"kind": "dynamic", "initial": 1024.0}
    module = TwoOptimizers(bad_step=1)
    Trainer(policy={"preset": "fp16-mixed", "scaling": scaling}, **quiet(default_root_dir=tmp_path)).fit(
        module, loader()
    )
    # the overflow of step 1 takes effect once, before step 2
    assert module.scales == [1024.0, 1024.0, 512.0, 512.0]
    assert all(p.isfinite().all() for p in module.parameters())


def test_the_scale_is_in_the_checkpoint_and_comes_back(tmp_path: Path) -> None:
    policy = {"preset": "fp16-mixed", "scaling": {"kind": "dynamic", "initial": 8.0, "interval": 3}}
    first = Trainer(policy=policy, **quiet(default_root_dir=tmp_path))
    first.fit(Regression(), loader())
    grown = first.precision_plugin.loss_scale()
    assert grown == 16.0
    first.save_checkpoint(tmp_path / "x.ckpt")
    second = Trainer(policy=policy, **quiet(default_root_dir=tmp_path, max_epochs=1))
    second.fit(Regression(), loader(), ckpt_path=str(tmp_path / "x.ckpt"))
    assert second.precision_plugin.loss_scale() == grown


def test_training_in_torch_never_loads_tensorflow(tmp_path: Path) -> None:
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_trainer import Regression, Trainer, loader, quiet
Trainer(policy="float32", **quiet(default_root_dir={str(tmp_path)!r})).fit(Regression(), loader(), loader())
loaded = {{"tensorflow", "keras", "jax"}} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_the_policy_becomes_fsdps_own_mixed_precision() -> None:
    from castiron.lightning import FSDPPrecisionPlugin
    from castiron.lightning.fsdp import is_fsdp

    mixed = FSDPPrecisionPlugin("bf16-mixed").mixed_precision_config
    assert (mixed.param_dtype, mixed.reduce_dtype, mixed.buffer_dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert is_fsdp("fsdp")
    assert not is_fsdp("ddp")
    with pytest.raises(ConfigError, match="each shard would decide for itself"):
        FSDPPrecisionPlugin("fp16-mixed")


def test_what_a_device_can_run_is_asked_without_lightning() -> None:
    code = (
        "import sys; from castiron.training.backend import load_backend; "
        "load_backend('torch').capability('cpu'); "
        "assert 'lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_checkpoints_of_any_module_carry_a_manifest_and_are_held_against_the_policy(tmp_path: Path) -> None:
    trainer = Trainer(policy="float32", **quiet(default_root_dir=str(tmp_path)))
    trainer.fit(Regression(), loader())
    path = tmp_path / "x.ckpt"
    trainer.save_checkpoint(path)
    manifest = read_manifest(path)
    assert manifest is not None
    assert manifest.model == "Regression"
    assert str(manifest.tensors["parameters"]["net.0.weight"]) == "float32[8,4]"
    assert str(manifest.tensors["buffers"]["net.1.running_mean"]) == "float32[8]"
    assert str(manifest.tensors["optimizer"]["0.0.exp_avg"]) == "float32[8,4]"
    narrow = Regression()
    before = {n: v.clone() for n, v in narrow.state_dict().items()}
    again = quiet(default_root_dir=str(tmp_path), max_epochs=2)
    with pytest.raises(ManifestError, match="C605 The checkpoint was made under another policy"):
        Trainer(policy="bf16-true", **again).fit(narrow, loader(), ckpt_path=str(path))
    assert all(torch.equal(before[n], v) for n, v in narrow.state_dict().items())
    Trainer(policy="bf16-true", on_mismatch="cast", **again).fit(narrow, loader(), ckpt_path=str(path))
    assert narrow.net[0].weight.dtype is torch.bfloat16  # type: ignore[union-attr]
    same = Regression()
    Trainer(policy="float32", **again).fit(same, loader(), ckpt_path=str(path))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ManifestError, match=r"C601 .* its bytes are not those that were written"):
        Trainer(policy="float32", **again).fit(Regression(), loader(), ckpt_path=str(path))


def test_a_checkpoint_of_plain_lightning_is_read_as_data(tmp_path: Path) -> None:
    plain = pl.Trainer(**quiet(default_root_dir=str(tmp_path), logger=False, enable_checkpointing=False))
    plain.fit(Regression(), loader())
    path = tmp_path / "plain.ckpt"
    plain.save_checkpoint(path)
    again = quiet(default_root_dir=str(tmp_path), max_epochs=2)
    Trainer(policy="float32", **again).fit(Regression(), loader(), ckpt_path=str(path))
    state = torch.load(path, weights_only=True)
    torch.save({**state, "hook": Evil()}, path)
    with pytest.raises(ManifestError, match=r"C617 .* Received posix\.system"):
        Trainer(policy="float32", **again).fit(Regression(), loader(), ckpt_path=str(path))


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)
