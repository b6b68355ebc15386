"""Checkpoints of the TensorFlow wing that do not fit: each is refused by its own message, nothing changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from castiron.cli.main import run as command
from castiron.diagnostics import ConfigError, ManifestError
from castiron.keras import checkpoints
from castiron.keras.manifest import named
from castiron.keras.module import RecipeModel
from castiron.training import RunDirectory, load_config
from castiron.training.backend import Job, load_backend
from castiron.training.checkpoint_file import SEAL, STATE, UNSEALED, check_intact, is_sealed, seal_safetensors
from castiron.training.checkpoints import to_resume
from castiron.training.launch import resume, train
from castiron.training.manifest import KEY, asset_digests, read_manifest

TINY = (
    "backend=tensorflow",
    "data.batch_size=32",
    "model.embedding=8",
    "model.hidden=8",
    "model.text.max_vocabulary=200",
    "trainer.limit_train=3",
    "trainer.limit_validation=1",
    "trainer.limit_test=1",
    "trainer.max_epochs=2",
    "trainer.checkpoint_every=2",
    "trainer.ema=0.9",
    "trainer.device=cpu",
    "precision=bf16-true",
    "audit.level=off",
    "health.every=1000",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    before = os.environ.get("CASTIRON_CACHE")
    os.environ["CASTIRON_CACHE"] = str(shared_cache)
    try:
        run, outcome = train(
            load_config("lstm-sentiment", TINY), runs=tmp_path_factory.mktemp("runs"), name="run"
        )
    finally:
        os.environ.pop("CASTIRON_CACHE") if before is None else os.environ.update(CASTIRON_CACHE=before)
    assert (outcome.status, outcome.steps) == ("completed", 6)
    return run.path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunDirectory:
    path = tmp_path / "runs" / "lstm-sentiment" / "run"
    shutil.copytree(trained, path)
    for name in ("best.safetensors", "last-2.safetensors"):
        (path / "checkpoints" / name).unlink(missing_ok=True)
    return RunDirectory(path)


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays, dict[str, Any]], None]


def rewrite(path: Path, change: Change) -> None:
    """Write a checkpoint again, sealed, with its arrays and its manifest changed."""
    with safe_open(path, "np") as file:
        words = dict(file.metadata())
    arrays, told = load_file(path), json.loads(words[KEY])
    change(arrays, told)
    save_file(arrays, path, {**words, KEY: json.dumps(told), SEAL: UNSEALED})
    seal_safetensors(path)


# --- what is done to a checkpoint, by name ------------------------------------------------------------------


def put(kind: str, name: str, value: np.ndarray | None) -> Change:
    """Another tensor in the place of one, and told so; None: no tensor."""

    def change(arrays: Arrays, told: dict[str, Any]) -> None:
        arrays.pop(f"{kind}/{name}", None)
        told["tensors"][kind].pop(name, None)
        if value is not None:
            arrays[f"{kind}/{name}"] = value
            told["tensors"][kind][name] = {"dtype": value.dtype.name, "shape": list(value.shape)}

    return change


def tell(**new: Any) -> Change:
    return lambda arrays, told: told.update(new)


def told_in(section: str, **new: Any) -> Change:
    return lambda arrays, told: told[section].update(new)


def not_listed(arrays: Arrays, told: dict[str, Any]) -> None:
    arrays["parameters/head.bias"] = np.zeros(2, np.float32)


def gone(arrays: Arrays, told: dict[str, Any]) -> None:
    del arrays["masters/0"]


HALF = np.zeros((16, 2), np.float16)
CHANGED: dict[str, tuple[Any, ...]] = {
    "a weight in another format": (
        put("parameters", "head.kernel", np.zeros((16, 2), np.float32)),
        "C606 A parameter of the checkpoint is in another format.",
        "parameter  head.kernel  float32     bfloat16  (lossy)",
        "Expected bfloat16 for 'head.kernel'. Received float32",
    ),
    "a weight in float16": (put("parameters", "head.kernel", HALF), "C606", "float16     bfloat16  (lossy)"),
    "a moment of Adam in another format": (
        put("optimizer", "2", np.zeros((200, 8), np.float64)),
        "C606 An optimizer state of the checkpoint is in another format.",
        "optimizer state  2  float64     float32  (lossy)",
    ),
    "another shape": (
        put("parameters", "head.kernel", np.zeros((17, 2), np.float32)),
        "C607 A parameter of the checkpoint has another shape.",
        "Expected the shape [16, 2] for 'head.kernel'. Received [17, 2]",
    ),
    "a weight is missing": (
        put("parameters", "head.bias", None),
        "C608 The checkpoint lacks a parameter.",
        "Expected parameter 'head.bias'.",
    ),
    "a weight too many": (
        put("parameters", "extra", np.zeros(3, np.float32)),
        "C608 The checkpoint has, and the model has not, a parameter.",
        "Received parameter 'extra'",
    ),
    "a master copy is missing": (
        put("masters", "0", None),
        "C608 The checkpoint lacks a master copy.",
        "Expected master copy '0'.",
    ),
    "an average is missing": (put("average", "head.bias", None), "C608 The checkpoint lacks an average."),
    "a state of the step is missing": (put("state", "0", None), "C608 The checkpoint lacks a state of the"),
    "another policy": (
        told_in("declared", accumulate="float64"),
        "C605 The checkpoint was made under another policy.",
        "policy  accumulate  float64     float32",
        "--on-mismatch cast",
    ),
    "the scaler is missing": (
        tell(scaler=None),
        "C610 The checkpoint lacks the state of its loss scaler. Expected scaling none. Received none stored",
    ),
    "another scaler": (tell(scaler={"kind": "dynamic"}), "C610", "Received scaling dynamic"),
    "another optimizer": (
        tell(optimizers=[{"type": "SGD", "groups": [3]}]),
        "C611 The checkpoint is of another optimizer.",
        "Received SGD of 3 parameters",
    ),
    "another recipe": (
        tell(recipe="tabular"),
        "C609 The checkpoint is of another recipe. Expected a checkpoint of 'lstm-sentiment'.",
    ),
    "another backend": (tell(backend="torch"), "C609 The checkpoint is of another backend."),
    "another vocabulary": (
        told_in("assets", **{"text.json": "0" * 64}),
        "C612 What the recipe learned from its data is not what the checkpoint was trained with.",
        "file  text.json  0000000000000000",
    ),
    "a later version": (tell(format=99), "C604 The checkpoint was written by a later version"),
    "a manifest without a policy": (
        lambda arrays, told: told.pop("policy"),
        "C603 The checkpoint's manifest cannot be read: policy: Field required.",
    ),
    "a weight that the manifest does not list so": (
        not_listed,
        "C613 The checkpoint's tensors are not those that its manifest lists.",
        "parameter  head.bias  bfloat16[2]  float32[2]",
    ),
    "a master copy that is gone": (gone, "C613", "master copy  0  float32[200,8]  none"),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 0x10
    path.write_bytes(bytes(data))
    load_file(path)  # safetensors reads it without a word


def flip_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'\\"batches_done\\": 6', b'\\"batches_done\\": 5'))


def seal_gone(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"castiron-blake3:", b"xastiron-blake3:"))


def foreign(path: Path) -> None:
    save_file(load_file(path), path)


def without_manifest(path: Path) -> None:
    with safe_open(path, "np") as file:
        words = {STATE: file.metadata()[STATE], SEAL: UNSEALED}
    save_file(load_file(path), path, words)
    seal_safetensors(path)


BYTES: dict[str, tuple[Any, ...]] = {
    "cut off": (
        lambda p: p.write_bytes(p.read_bytes()[:-100]),
        "C601 The checkpoint cannot be used: it ends",
    ),
    "a flipped bit of a weight": (flip, "C601 The checkpoint cannot be used: its bytes are not those that"),
    "a changed state": (flip_header, "C601 The checkpoint cannot be used: its bytes are not those that were"),
    "empty": (lambda p: p.write_bytes(b""), "C601 The checkpoint cannot be used: it ends in the middle."),
    "the seal is gone": (seal_gone, "C601 The checkpoint cannot be used: its seal is gone."),
    "a file of somebody else's": (foreign, "C602 The checkpoint carries no precision manifest."),
    "no manifest": (without_manifest, "C602 The checkpoint carries no precision manifest."),
}


@pytest.fixture(scope="module")
def module(trained: Path) -> RecipeModel:
    """The run's model, ready to be trained."""
    loaded = load_config(trained / "config.yaml")
    recipe = loaded.recipe(loaded.config)
    recipe.load(trained / "assets")
    module = RecipeModel(recipe)
    module.prepare_training(4)
    return module


def values(module: RecipeModel) -> dict[str, bytes]:
    found = named(module, training=True)
    return {f"{k}/{n}": v.numpy().tobytes() for k, own in found.items() for n, v in own.items()}


@pytest.mark.parametrize("name", [*CHANGED, *BYTES])
def test_what_does_not_fit_is_refused_and_nothing_is_changed(
    run: RunDirectory, module: RecipeModel, name: str
) -> None:
    last = run.checkpoints / "last.safetensors"
    if name in CHANGED:
        change, *words = CHANGED[name]
        rewrite(last, change)
    else:
        change, *words = BYTES[name]
        before = last.read_bytes()
        change(last)
        assert last.read_bytes() != before
    files, held = bytes_below(run.path), values(module)
    with pytest.raises(ManifestError) as caught:
        checkpoints.load(last, module, training=True, assets=asset_digests(run.assets))
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2
    assert values(module) == held
    assert bytes_below(run.path) == files


def test_what_fits_is_loaded_bit_for_bit(run: RunDirectory, module: RecipeModel) -> None:
    last = run.checkpoints / "last.safetensors"
    rewrite(last, put("average", "head.bias", np.full(2, 7.0, np.float32)))
    assert checkpoints.load(last, module, training=True, assets=asset_digests(run.assets)) == []
    stored = {name: value.tobytes() for name, value in load_file(last).items()}
    assert values(module) == stored


def test_a_run_whose_checkpoint_does_not_fit_stays_as_it_is(run: RunDirectory) -> None:
    rewrite(run.checkpoints / "last.safetensors", told_in("assets", **{"text.json": "0" * 64}))
    before = bytes_below(run.path)
    with pytest.raises(ManifestError, match="C612"):
        resume(run, ["trainer.max_epochs=3"])
    assert bytes_below(run.path) == before


def test_the_manifest_says_what_is_there_and_the_file_is_sealed(run: RunDirectory, capsys: Any) -> None:
    last = run.checkpoints / "last.safetensors"
    manifest = read_manifest(last)
    assert manifest is not None
    assert (manifest.backend, manifest.recipe, manifest.step) == ("tensorflow", "lstm-sentiment", 6)
    assert {k: len(v) for k, v in manifest.tensors.items()}["masters"] == len(manifest.tensors["parameters"])
    assert str(manifest.tensors["parameters"]["head.kernel"]) == "bfloat16[16,2]"
    assert str(manifest.tensors["masters"]["0"]) == "float32[200,8]"
    assert manifest.optimizers[0].type.endswith("AdamW")
    assert set(manifest.assets) >= {"text.json"}
    check_intact(last)
    assert is_sealed(last)
    assert command(["inspect", str(last)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "kind safetensors of castiron" in said
    assert "seal intact" in said


def test_a_torn_checkpoint_is_passed_over_and_the_run_ends_the_same(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "lstm-sentiment" / "run"
    shutil.copytree(trained, path)
    run = RunDirectory(path)
    last, older = (run.checkpoints / f"{name}.safetensors" for name in ("last", "last-2"))
    whole, second = read_manifest(last), read_manifest(older)
    assert whole is not None
    assert second is not None
    assert (whole.step, second.step) == (6, 4)
    last.write_bytes(last.read_bytes()[:-500])
    (run.checkpoints / "best.safetensors").unlink()
    told: list[Any] = []
    assert to_resume(run, told.append) == older
    (found,) = told
    assert str(found).startswith(
        "C615 A damaged checkpoint is passed over: it ends in the middle, or has grown."
    )
    assert "'last.safetensors'; 'last-2.safetensors' is used, of step 4" in str(found)
    _, outcome = resume(run)
    assert (outcome.status, outcome.steps) == ("completed", 6)
    again = read_manifest(last)
    assert again is not None
    assert again.weights == whole.weights
    assert not list(run.checkpoints.glob(".*"))


def test_formats_are_cast_where_that_is_asked_for(run: RunDirectory) -> None:
    last = run.checkpoints / "last.safetensors"
    kernel = load_file(last)["parameters/head.kernel"]
    said: list[Any] = []

    class Told:
        def __getattr__(self, name: str) -> Any:
            return lambda *given: said.extend(given[0]) if name == "findings" else None

    with pytest.raises(ManifestError, match="C605"):
        resume(run, ["precision=float32"])
    _, outcome = resume(run, ["precision=float32"], on_mismatch="cast", reporter=Told())
    assert outcome.steps == 6
    (cast,) = [f for f in said if f.code == "C619"]
    assert "tensors of the checkpoint were cast, exactly." in cast.message
    found = load_file(last)["parameters/head.kernel"]
    assert found.dtype == np.float32
    assert np.array_equal(found.view(np.uint32) >> 16, kernel)  # bfloat16 is the upper half of float32
    rewrite(last, put("parameters", "head.kernel", np.full((16, 2), 3e38, np.float64)))
    rewrite(last, put("parameters", "head.bias", np.full(2, 1e39, np.float64)))
    with pytest.raises(
        ManifestError, match=r"C614 .*\n.*\n.*parameter  head.bias  float64     float32  2 of 2"
    ):
        resume(run, [], on_mismatch="cast")


def test_a_file_of_weights_is_refused_rather_than_passed_over(run: RunDirectory, tmp_path: Path) -> None:
    loaded = load_config(run.path / "config.yaml")
    weights = tmp_path / "w.safetensors"
    job = Job(
        config=loaded.config,
        recipe=loaded.recipe,
        run=run,
        checkpoint=run.checkpoint("last"),
        weights=weights,
    )
    for ask in (lambda b: b.fit(job), lambda b: b.predict(job, ["good"]), lambda b: b.evaluate(job)):
        with pytest.raises(ConfigError, match=r"X815 Recipes take no file of weights in TensorFlow\."):
            ask(load_backend("tensorflow"))
