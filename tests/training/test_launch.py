"""A run from beginning to end, with a backend that computes nothing."""

from __future__ import annotations

import errno

import pytest

from castiron.diagnostics import ConfigError, DataError, PlanError, RunError, finding
from castiron.training.backend import Outcome
from castiron.training.config_file import load_config
from castiron.training.launch import load_run, preview, resume, train
from castiron.training.run_directory import RunDirectory, written


@pytest.fixture
def tiny(user_recipe, fake_backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: load_config("my_recipe.py:Tiny", overrides)


def test_what_a_run_leaves_behind(tiny, tmp_path, read_json):
    run, outcome = train(tiny("precision=bf16-mixed", "model.hidden=3"), runs=tmp_path / "runs", name="first")
    assert outcome.status == "completed"
    assert run.path == tmp_path / "runs" / "tiny" / "first"
    assert {p.name for p in run.path.iterdir()} >= {
        "config.yaml",
        "environment.json",
        "summary.json",
        "metrics.jsonl",
        "checkpoints",
    }
    summary = read_json(run.path / "summary.json")
    assert summary["status"] == "completed"
    assert summary["metrics"]["test"]["accuracy"] == 0.875
    assert read_json(run.path / "environment.json")["versions"]["castiron"]
    assert (run.path / "config.yaml").read_text().startswith("# The resolved config of the run tiny/first")


def test_the_saved_config_is_the_run_s(tiny, tmp_path, fake_backend):
    loaded = tiny("precision=bf16-mixed", "model.hidden=3", "guard.every=5", "data.columns.text=t")
    run, _ = train(loaded, runs=tmp_path)
    assert load_run(run).config == loaded.config
    assert fake_backend.jobs[0].config == loaded.config
    assert fake_backend.jobs[0].checkpoint is None


def test_a_user_s_mistake_leaves_no_run_behind(tiny, tmp_path, fake_backend):
    def refuse(job):
        raise DataError(finding("D130", "", expected="a file", received="nothing"))

    fake_backend.behave = staticmethod(refuse)
    with pytest.raises(DataError):
        train(tiny(), runs=tmp_path / "runs", name="first")
    assert list((tmp_path / "runs" / "tiny").iterdir()) == []


def test_errors_about_the_config_get_their_place(tiny, tmp_path):
    with pytest.raises(PlanError) as error:
        train(tiny("precision.layers.hed={compute: float64, param: float64}"), runs=tmp_path)
    place = error.value.findings[0].place
    assert place.file == "argument 'precision.layers.hed={compute: float64, param: float64}'"
    assert "L201 The layer rule 'hed' matches nothing in the model." in str(error.value)
    assert "Did you mean 'head'?" in str(error.value)


def test_a_failure_after_the_first_step_is_kept(tiny, tmp_path, fake_backend):
    def fail(job):
        job.run.log_metrics({"step": 7})
        raise DataError(finding("D130", "", expected="a file", received="nothing"))

    fake_backend.behave = staticmethod(fail)
    with pytest.raises(DataError):
        train(tiny(), runs=tmp_path, name="first")
    summary = RunDirectory.open("tiny/first", tmp_path).summary()
    assert (summary["status"], summary["steps"]) == ("failed", 7)
    assert summary["findings"][0]["code"] == "D130"


def test_a_bug_is_recorded_and_passed_on(tiny, tmp_path, fake_backend):
    def crash(job):
        raise ZeroDivisionError("a bug")

    fake_backend.behave = staticmethod(crash)
    with pytest.raises(ZeroDivisionError):
        train(tiny(), runs=tmp_path, name="first")
    summary = RunDirectory.open("tiny/first", tmp_path).summary()
    assert summary["status"] == "failed"
    assert summary["message"] == "ZeroDivisionError: a bug"


def test_an_interrupt_is_an_outcome(tiny, tmp_path, fake_backend):
    def interrupt(job):
        job.run.log_metrics({"step": 3})
        raise KeyboardInterrupt

    fake_backend.behave = staticmethod(interrupt)
    run, outcome = train(tiny(), runs=tmp_path)
    assert (outcome.status, outcome.steps, outcome.exit_code) == ("interrupted", 3, 130)
    assert run.summary()["status"] == "interrupted"


# --- resume ----------------------------------------------------------------------------------------


def test_a_run_goes_on_from_its_last_checkpoint(tiny, tmp_path, fake_backend):
    run, _ = train(tiny("model.hidden=3"), runs=tmp_path)
    resume(run, ["trainer.max_epochs=9"])
    job = fake_backend.jobs[1]
    assert job.checkpoint == run.checkpoints / "last.ckpt"
    assert job.config.trainer.max_epochs == 9
    assert job.config.model.hidden == 3
    assert load_run(run).config.trainer.max_epochs == 9


def test_a_resumed_run_cannot_become_another(tiny, tmp_path):
    run, _ = train(tiny(), runs=tmp_path, name="first")
    with pytest.raises(ConfigError) as error:
        resume(run, ["optimizer.lr=0.5", "trainer.max_epochs=9"])
    (found,) = error.value.findings
    assert str(found) == (
        "X815 A resumed run cannot change this setting. Expected 0.001, as in the run tiny/first. "
        "Received 0.5 at argument 'optimizer.lr=0.5', key 'optimizer.lr'. Start a new run, or leave the "
        "setting out: castiron train --resume tiny/first takes everything from the run."
    )


def test_a_file_that_the_run_is_not_of(tiny, tmp_path):
    run, _ = train(tiny(), runs=tmp_path / "runs", name="first")
    (tmp_path / "a.yaml").write_text("recipe: my_recipe.py:Tiny\nmodel: {hidden: 9}\n")
    with pytest.raises(
        ConfigError, match=r"Expected 8, as in the run tiny/first\. Received 9 at a\.yaml:2:17"
    ):
        resume(run, source="a.yaml")
    (tmp_path / "a.yaml").write_text("recipe: my_recipe.py:Tiny\n")
    resume(run, source="a.yaml")
    resume(run, source="my_recipe.py:Tiny")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(tiny, tmp_path, fake_backend):
    def killed(job):
        job.run.log_metrics({"step": 1, "train/loss": 9.0})
        return Outcome(status="stopped", steps=0)

    fake_backend.behave = staticmethod(killed)
    run, _ = train(tiny(), runs=tmp_path)
    fake_backend.behave = staticmethod(lambda job: None)
    _, outcome = resume(run)
    assert outcome.status == "completed"
    assert fake_backend.jobs[1].checkpoint is None
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4]
    assert run.metrics()[0]["train/loss"] == 1.0


def test_a_refused_resume_keeps_the_run(tiny, tmp_path, fake_backend):
    run, _ = train(tiny(), runs=tmp_path)

    def refuse(job):
        raise DataError(finding("D130", "", expected="a file", received="nothing"))

    fake_backend.behave = staticmethod(refuse)
    with pytest.raises(DataError):
        resume(run)
    assert run.checkpoint("last").exists()


def test_a_run_that_is_being_written_is_left_alone(tiny, tmp_path, fake_backend):
    run, _ = train(tiny(), runs=tmp_path)
    before = run.summary()
    with run.claimed(), pytest.raises(RunError, match="Another process"):
        resume(RunDirectory(run.path))
    assert run.summary() == before


def test_a_preview_trains_nothing(tiny, tmp_path, fake_backend):
    found = preview(tiny(), RunDirectory(tmp_path))
    assert found.steps == 9
    assert set(found.data) == {"train", "validation", "test"}
    assert fake_backend.jobs == []


@pytest.mark.parametrize("full", ["config.yaml", "environment.json", "metrics.jsonl", "summary.json"])
def test_a_full_disk_is_told_wherever_it_is_met(tiny, tmp_path, fake_backend, monkeypatch, full):
    """Each file of a run in turn, and all that would be written after it."""
    write, log, met = RunDirectory.write_text, RunDirectory.log_metrics, []

    def refuse(run, name):
        if met or name == full:
            met.append(name)
            with written(run.path / name):
                raise OSError(errno.ENOSPC, "No space left on device")

    def write_text(run, name, text):
        refuse(run, name)
        return write(run, name, text)

    def log_metrics(run, row):
        refuse(run, "metrics.jsonl")
        log(run, row)

    monkeypatch.setattr(RunDirectory, "write_text", write_text)
    monkeypatch.setattr(RunDirectory, "log_metrics", log_metrics)
    with pytest.raises(RunError) as caught:
        train(tiny(), runs=tmp_path / "runs", name="first")
    assert str(caught.value).startswith("X819 The file cannot be written: the disk is full. At ")
    assert f"/{full}" in str(caught.value)  # what failed first
    assert caught.value.exit_code == 2
    folder = tmp_path / "runs" / "tiny" / "first"
    if full != "summary.json":
        assert not folder.exists()  # nothing was trained: the name is free again
        return
    assert not list(folder.glob(".*.part"))
    assert load_run(RunDirectory(folder)).config.recipe
    assert RunDirectory(folder).summary() == {"status": "running"}
