"""`--resume RUN precision={preset: …}` is refused, as it would change nothing without saying so."""

from __future__ import annotations

from pathlib import Path

import pytest

from castiron.diagnostics import ConfigError, ManifestError
from castiron.training import RunDirectory, load_config
from castiron.training.launch import resume


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(tmp_path, "lstm-sentiment", "run")
    run.write_config(load_config("lstm-sentiment", ["precision=float32"]).config)
    (run.checkpoints / "last.ckpt").write_bytes(b"")
    return run


@pytest.mark.parametrize(
    "given",
    [
        "precision={preset: bf16-mixed}",
        "precision.preset=bf16-mixed",
        "precision={preset: bf16-mixed, loss: float32}",
    ],
)
def test_a_preset_in_a_mapping_is_refused(run: RunDirectory, given: str) -> None:
    before = (run.path / "config.yaml").read_bytes()
    with pytest.raises(ConfigError) as caught:
        resume(run, [given])
    told = str(caught.value)
    assert told.startswith(
        "X815 A preset within a mapping changes no format of a run, whose config spells each of them out. "
        "Expected precision=bf16-mixed. Received precision={preset: bf16-mixed, …} at "
    )
    assert "castiron train --resume lstm-sentiment/run precision=bf16-mixed --on-mismatch cast" in told
    assert caught.value.exit_code == 2
    assert (run.path / "config.yaml").read_bytes() == before


def test_the_same_preset_and_a_name_are_taken(run: RunDirectory) -> None:
    for given in ("precision={preset: float32}", "precision=bf16-mixed"):
        with pytest.raises(ManifestError, match="C601"):  # which is what comes next
            resume(run, [given])
