"""`castiron health` and `castiron suggest`: ranges without training, a policy that is proved before it is
proposed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from castiron.health.snapshot import Snapshot
from castiron.health.statistics import WHAT_IF
from castiron.policy import DeviceCapability, Support
from castiron.policy.modules import LayerInfo
from castiron.training import load_config
from castiron.training import suggesting as room
from castiron.training.backend import Job, load_backend
from castiron.training.calibration import Measured, Trial, what_if_rows, wide_layers
from castiron.training.suggesting import suggest

RECIPES = Path(__file__).parent / "small_recipes.py"
MLP, TRANSFORMER = f"{RECIPES}:Rows", f"{RECIPES}:Sequences"
SMALL = ("data.batch_size=32", "trainer.threads=1")
LSTM = ("model.embedding=8", "model.hidden=8", "model.text.max_vocabulary=200", "trainer.limit_train=8")


# --- on this machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "more"), [("lstm-sentiment", LSTM), (MLP, ()), (TRANSFORMER, ())], ids=["lstm", "mlp", "tf"]
)
def test_what_is_suggested_here_is_not_slower_and_as_good(source: str, more: tuple[str, ...]) -> None:
    found = suggest(source, [*SMALL, *more], batches=2, steps=8, seeds=2)
    by_name = {c.preset: c for c in found.candidates}
    assert set(by_name) == {"float8-mixed", "bf16-mixed", "fp16-mixed", "tf32"}
    assert found.findings == ()
    if found.proof is None:
        assert found.precision() == "float32"
        assert all(c.refused for c in found.candidates) or found.notes
    else:
        assert found.proof.holds
        assert found.gain >= 1
    config = load_config(source, [*SMALL, *more, f"precision={json.dumps(found.precision())}"]).config
    assert config.precision.compute == found.policy.compute


CHARACTERS = ("model.width=16", "model.context=16", "model.layers=1", "trainer.limit_train=24")


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ("lstm-sentiment", (*LSTM[:3], "data.train=rows.csv", "data.columns={text: text, label: label}")),
        ("tabular", ("model.hidden=[16]", "trainer.limit_train=24")),
        ("char-lm", CHARACTERS),
    ],
    ids=["lstm", "mlp", "transformer"],
)
def test_the_recipes_under_bfloat16_end_within_the_noise_between_seeds(
    source: str, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Trained for real, by the wing that is there; made up is that this device computes bfloat16 itself, in
    0.6 of the time."""
    monkeypatch.setattr(room, "load_backend", lambda name: AsIfNative(load_backend(name)))
    monkeypatch.chdir(tmp_path)
    words = ("good", "bad")
    rows = [f"{i},a {words[i % 2]} film number {i % 97},{i % 2},{1 + 4 * (i % 2)}" for i in range(800)]
    (tmp_path / "rows.csv").write_text("\n".join(["id,text,label,rating", *rows]) + "\n")
    found = suggest(source, [*SMALL, *more], batches=2, steps=16, seeds=3)
    assert found.precision() == "bf16-mixed"
    assert found.proof is not None
    assert found.proof.holds
    assert found.proof.noise > 0
    assert found.proof.float32 != found.proof.proposed, "bfloat16 has run"
    assert found.gain == pytest.approx(1 / 0.6)
    refused = {c.preset: c.refused for c in found.candidates}
    assert "cannot run" in refused["tf32"]
    assert "by emulation" in refused["float8-mixed"]


class AsIfNative:
    """A wing on a device that is said to compute bfloat16 itself."""

    def __init__(self, wing: Any) -> None:
        self._wing, self.measure = wing, wing.measure

    def capability(self, device: str = "auto") -> DeviceCapability:
        native = Support(status="native", cost=0.6)
        slow = Support(status="emulated", cost=3.0, reason="no instructions for it")
        row = {"float32": native, "bfloat16": native, "float16": slow, "float8_e4m3fn": slow}
        families = ("matmul", "lstm", "attention", "softmax", "normalization", "embedding", "elementwise")
        return DeviceCapability(device="cpu", name="A test device", support=dict.fromkeys(families, row))

    def trial(self, job: Job) -> Trial:
        made = self._wing.trial(job)
        ms = {"float32": 10.0, "bfloat16": 6.0}[job.config.precision.compute]
        return Trial(losses=made.losses, step_ms=ms)


def test_health_of_a_config_and_of_a_run(castiron: Any, tmp_path: Path) -> None:
    said = castiron("health", TRANSFORMER, *SMALL, "--batches", "2", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert told["findings"] == []
    kinds = {row["kind"] for row in told["steps"]}
    assert kinds == {"activations", "activation gradients", "parameters", "gradients"}
    assert {row["step"] for row in told["steps"]} == {1, 2}
    assert all(row["bfloat16/overflow"] == 0 for row in told["steps"] if row["kind"] == "activations")
    said = castiron("health", MLP, *SMALL)
    assert said.code == 0, said.err
    assert "Ranges on 8 batches; nothing was trained" in said.out
    assert "float16 would hold what was measured of every layer" in said.out
    assert list(tmp_path.iterdir()) == []
    assert castiron("train", MLP, *SMALL, "trainer.max_epochs=1", "--name", "a", "--quiet").code == 0
    for target in ("small-mlp/a", "runs/small-mlp/a", "runs/small-mlp/a/checkpoints/last.ckpt"):
        said = castiron("health", target, "--batches", "1")
        assert said.code == 0, said.err
        assert "Ranges on 1 batches" in said.out


# --- on a device that computes more ------------------------------------------------------------------------


class Wing:
    """A backend whose device computes bfloat16 and float16 itself, and whose trainings are made up."""

    name = "torch"
    measured: Measured
    ms = {"float32": 10.0, "bfloat16": 6.0, "float16": 5.0}
    losses: dict[str, float] = {}

    def capability(self, device: str = "auto") -> DeviceCapability:
        native = Support(status="native", cost=0.5)
        slow = Support(status="emulated", cost=3.0, reason="no instructions for it")
        row = {"float32": native, "bfloat16": native, "float16": native, "float8_e4m3fn": slow}
        return DeviceCapability(device="cpu", name="A test device", support={"matmul": row})

    def measure(self, job: Job, batches: int) -> Measured:
        return self.measured

    def trial(self, job: Job) -> Trial:
        compute = job.config.precision.compute
        loss = self.losses.get(compute, 0.5) + 0.01 * (job.config.seed % 3)
        return Trial(losses=(1.0, loss, loss, loss, loss), step_ms=self.ms[compute])


def snapshot(**layers: Any) -> Snapshot:
    import numpy as np

    from castiron.health.statistics import measure

    groups = {("activations", n): measure(np.asarray(v, np.float32), "float32") for n, v in layers.items()}
    return Snapshot(1, groups=groups, full=True)  # type: ignore[arg-type]


@pytest.fixture
def wing(monkeypatch: pytest.MonkeyPatch) -> Wing:
    made = Wing()
    layers = tuple(LayerInfo(path=p, type="Linear", family="matmul") for p in ("a", "b"))
    made.measured = Measured(snapshots=(snapshot(a=[1.0, 2.0], b=[1.0, 3.0]),), layers=layers)
    monkeypatch.setattr(room, "load_backend", lambda name: made)
    return made


def test_the_fastest_that_holds_and_is_as_good(wing: Wing) -> None:
    found = suggest(MLP, seeds=3)
    assert found.precision() == "fp16-mixed"
    assert found.gain == 2
    assert found.proof is not None
    assert found.proof.noise == pytest.approx(0.02)
    assert found.proof.difference == pytest.approx(0)
    reasons = {c.preset: c.refused for c in found.candidates}
    assert reasons["tf32"].startswith("A test device cannot run matmul layers in tf32")
    assert reasons["float8-mixed"].startswith(
        "A test device runs matmul layers in float8_e4m3fn by emulation"
    )


def test_layers_that_a_format_does_not_hold_are_kept_wide(wing: Wing) -> None:
    wing.measured = Measured(snapshots=(snapshot(a=[1.0, 2e5], b=[1.0]),), layers=wing.measured.layers)
    assert wide_layers(wing.measured.snapshots, "float16") == ["a"]
    assert wide_layers(wing.measured.snapshots, "bfloat16") == []
    assert what_if_rows(wing.measured.snapshots, WHAT_IF[:2]) == [
        ("a", "50 % overflow", "holds"),
        ("b", "holds", "holds"),
    ]
    found = suggest(MLP, seeds=2)
    assert found.precision() == {"preset": "fp16-mixed", "layers": {"a": {"compute": "float32"}}}
    wing.measured = Measured(snapshots=(snapshot(a=[1.0, 2e5], b=[2e5]),), layers=wing.measured.layers)
    found = suggest(MLP, seeds=2)
    assert found.precision() == "bf16-mixed"
    assert next(c for c in found.candidates if c.preset == "fp16-mixed").refused == (
        "float16 holds the values of no layer"
    )


def test_what_ends_worse_than_the_noise_is_not_proposed(wing: Wing) -> None:
    wing.losses = {"float16": 0.6}
    found = suggest(MLP, seeds=3)
    assert found.precision() == "bf16-mixed"
    assert found.notes[0].startswith("fp16-mixed was not taken: its loss is +0.1 from float32's")
    wing.losses = {"float16": 0.6, "bfloat16": float("nan")}
    assert suggest(MLP, seeds=3).precision() == "float32"


def test_what_is_not_faster_is_not_proposed(wing: Wing) -> None:
    wing.ms = {"float32": 10.0, "bfloat16": 9.9, "float16": 12.0}
    found = suggest(MLP)
    assert (found.precision(), found.proof) == ("float32", None)
    assert "not faster here: 9.9 ms a step, float32 10.0 ms" in [c.refused for c in found.candidates]


def test_the_command_writes_a_config(wing: Wing, castiron: Any, tmp_path: Path) -> None:
    said = castiron("suggest", MLP, "-o", "fast.yaml")
    assert said.code == 0, said.err
    assert "precision: fp16-mixed" in said.out
    assert re.search(r"^float32 +10.0$", said.out, re.MULTILINE)  # beside the candidates
    assert "In the proof it is 2.00 times as fast as float32: 5.0 ms a step, 10.0 ms." in said.out
    config = load_config(tmp_path / "fast.yaml").config
    assert config.precision.compute == "float16"
    said = castiron("suggest", MLP, "--json")
    assert json.loads(said.out)["precision"] == "fp16-mixed"
