"""`castiron train`, `evaluate` and `predict`, with a backend that computes nothing."""

from __future__ import annotations

import io
import json
import sys

import pytest

from castiron.training.backend import Outcome


@pytest.fixture
def tiny(user_recipe, fake_backend, tmp_path):
    return "my_recipe.py:Tiny"


def test_a_run_is_told_in_plain_lines(castiron, tiny, tmp_path):
    said = castiron("train", tiny, "precision=bf16-mixed", "--name", "first", "model.hidden=3")
    assert said.code == 0
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0] == "Training tiny (torch) under bf16-mixed, seed 17"
    assert lines[1].startswith("Plan: bf16-mixed on cpu: 2 layers (2 in bfloat16); 16 parameters")
    assert "step 4/4  epoch 1/1  loss 0.2500  validation accuracy 0.8750  held 1" in lines
    assert "split    loss  accuracy" in lines[-6]
    assert lines[-5:] == [
        "train  0.2500",
        "test   0.5000    0.8750",
        "4 steps in 1.5 s, 1,234 items/s",
        "Run: runs/tiny/first",
        "Next: castiron evaluate tiny/first · castiron board",
    ]
    assert (tmp_path / "runs" / "tiny" / "first" / "summary.json").exists()


def test_quiet_says_where_the_run_is(castiron, tiny):
    said = castiron("train", tiny, "--quiet", "--name", "first")
    assert (said.code, said.out, said.err) == (0, "runs/tiny/first\n", "")


def test_verbose_shows_the_whole_plan(castiron, tiny):
    said = castiron("train", tiny, "-v", "precision=bf16-mixed")
    assert "layer    type    param    compute   output    parameters  why" in said.out
    assert "head     Linear  float32  bfloat16  bfloat16          16  preset bf16-mixed" in said.out


def test_a_dry_run_shows_everything_and_leaves_nothing(castiron, tiny, tmp_path, fake_backend):
    said = castiron("train", tiny, "precision=bf16-mixed", "--dry-run", "--name", "first")
    assert said.code == 0
    titles = [line for line in said.out.splitlines() if line in ("Config", "Plan", "Steps", "Files")]
    assert titles == ["Config", "Plan", "Steps", "Files"]
    assert "  preset: bf16-mixed" in said.out
    assert "train: 20 rows" in said.out
    assert "9 steps; at most 3 epochs of 3" in said.out
    assert "runs/tiny/first/checkpoints/" in said.out
    assert said.out.splitlines()[-1] == "Nothing was trained, and nothing is left on disk."
    assert not (tmp_path / "runs").exists()
    assert fake_backend.jobs == []


def test_the_shown_config_is_yaml_that_reads_back(castiron, tiny):
    from castiron.training.yaml_reader import read_text

    out = castiron("train", tiny, "seed=3", "--dry-run").out
    shown = out.partition("Config\n")[2].partition("\n\n")[0]
    assert read_text(shown, "shown").tree["seed"] == 3


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        ("stopped", 75, "Stopped after 4 steps: the time was up."),
        ("interrupted", 130, "Interrupted after 4 steps: the time was up."),
    ],
)
def test_a_run_that_ended_early_says_how_to_go_on(castiron, tiny, fake_backend, status, code, told):
    fake_backend.behave = staticmethod(
        lambda job: Outcome(status=status, steps=4, message="the time was up.")
    )
    said = castiron("train", tiny, "--name", "first")
    assert said.code == code
    assert said.err.splitlines() == [told, "Go on with it by: castiron train --resume tiny/first"]


def test_elsewhere_the_whole_path_is_named(castiron, tiny, fake_backend, tmp_path):
    fake_backend.behave = staticmethod(lambda job: Outcome(status="stopped", steps=4))
    said = castiron("train", tiny, "--name", "first", "--runs", "other")
    assert said.err.splitlines()[1] == "Go on with it by: castiron train --resume other/tiny/first"


def test_a_run_that_failed(castiron, tiny, fake_backend):
    from castiron.diagnostics import finding

    problem = finding("X815", "Planted.")
    fake_backend.behave = staticmethod(
        lambda job: Outcome(status="failed", steps=4, message="It was held.", findings=(problem,))
    )
    said = castiron("train", tiny, "--name", "first")
    assert said.code == 1
    assert said.err.splitlines() == [
        "error X815  Planted.",
        "  → Change one of the values.",
        "Training failed after 4 steps. It was held.",
        "What is left of it: runs/tiny/first",
    ]


def test_ctrl_c_is_130(castiron, tiny, fake_backend):
    def interrupt(job):
        raise KeyboardInterrupt

    fake_backend.behave = staticmethod(interrupt)
    said = castiron("train", tiny, "--name", "first")
    assert said.code == 130
    assert said.err.splitlines()[0] == "Interrupted after 0 steps."


def test_ctrl_c_before_training(castiron, tiny, monkeypatch):
    from castiron.training import config_file

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(config_file, "read_overrides", interrupt)
    said = castiron("train", tiny)
    assert (said.code, said.err) == (130, "Interrupted.\n")


def test_a_run_goes_on(castiron, tiny, fake_backend):
    castiron("train", tiny, "--name", "first")
    said = castiron("train", "--resume", "tiny/first", "trainer.max_epochs=5")
    assert said.code == 0
    assert said.out.startswith("Resuming runs/tiny/first\n")
    assert fake_backend.jobs[-1].checkpoint.name == "last.ckpt"
    assert fake_backend.jobs[-1].config.trainer.max_epochs == 5
    assert castiron("train", tiny, "--resume", "tiny", "trainer.max_epochs=6").code == 0
    refused = castiron("train", "--resume", "tiny/first", "model.hidden=5")
    assert refused.code == 2
    assert (
        "A resumed run cannot change this setting. Expected 8, as in the run tiny/first. Received 5"
        in refused.err
    )


def test_a_name_is_not_taken_twice(castiron, tiny):
    castiron("train", tiny, "--name", "first")
    said = castiron("train", tiny, "--name", "first")
    assert said.code == 2
    assert "error X817  There is a run of this name already. At runs/tiny/first." in said.err


def test_the_saved_config_runs_again(castiron, tiny, fake_backend):
    castiron("train", tiny, "--name", "first", "precision=bf16-mixed", "model.hidden=3")
    said = castiron("train", "runs/tiny/first/config.yaml", "--name", "second")
    assert said.code == 0
    first, second = fake_backend.jobs
    assert first.config == second.config


# --- evaluate --------------------------------------------------------------------------------------


def test_evaluate(castiron, tiny, fake_backend):
    castiron("train", tiny, "--name", "first")
    said = castiron("evaluate", "tiny/first")
    assert said.out.splitlines() == ["split    loss  accuracy", "test   0.5000    0.8750"]
    job = fake_backend.jobs[-1]
    assert job.checkpoint.name == "best.ckpt"
    said = castiron(
        "evaluate", "tiny", "--split", "validation", "--split", "test", "--checkpoint", "last", "--json"
    )
    assert json.loads(said.out) == {
        "validation": {"loss": 0.5, "accuracy": 0.875},
        "test": {"loss": 0.5, "accuracy": 0.875},
    }
    assert fake_backend.jobs[-1].checkpoint.name == "last.ckpt"


def test_evaluate_on_other_data(castiron, tiny, fake_backend, tmp_path):
    castiron("train", tiny, "--name", "first")
    assert castiron("evaluate", "tiny/first", "data.train=a.csv", "data.test=t.csv").code == 0
    assert fake_backend.jobs[-1].config.data.test == str(tmp_path / "t.csv")


# --- predict ---------------------------------------------------------------------------------------


def test_predict(castiron, tiny):
    castiron("train", tiny, "--name", "first")
    said = castiron("predict", "tiny/first", "a good film", "a bad one")
    assert said.out.splitlines() == [
        "label positive  probability 0.9321  a good film",
        "label positive  probability 0.9321  a bad one",
    ]
    said = castiron("predict", "tiny/first", "très bon", "--json")
    assert json.loads(said.out) == {"input": "très bon", "label": "positive", "probability": 0.9321}


def test_predict_from_a_file(castiron, tiny, tmp_path):
    castiron("train", tiny, "--name", "first")
    (tmp_path / "a.txt").write_text("one\n\ntwo\r\nthree\x85still three")
    said = castiron("predict", "tiny/first", "--file", "a.txt", "--json")
    assert [json.loads(line)["input"] for line in said.out.split("\n")[:-1]] == [
        "one",
        "two",
        "three\x85still three",
    ]
    (tmp_path / "a.jsonl").write_text('"one"\n{"text": "two"}\n')
    said = castiron("predict", "tiny/first", "--file", "a.jsonl", "--json")
    assert [json.loads(line)["input"] for line in said.out.splitlines()] == ["one", {"text": "two"}]
    (tmp_path / "empty.txt").write_text("\n")
    assert castiron("predict", "tiny/first", "--file", "empty.txt").out == ""


def test_predict_from_a_pipe(castiron, tiny, monkeypatch):
    castiron("train", tiny, "--name", "first")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    assert len(castiron("predict", "tiny/first", "--file", "-").out.splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\ncaf\xe9\n", "error X823  Expected text in UTF-8. Received byte 0xe9 at a.txt:2."),
        ("a.jsonl", b'"fine"\n{"text"\n', "error X823  The line is not JSON: Expecting ':' delimiter"),
        ("a.jsonl", b"3\n", "error X823  Expected a text or a mapping. Received int at a.jsonl:1."),
        ("missing.txt", None, "error X808  There is no such file. At missing.txt."),
    ],
)
def test_inputs_that_cannot_be_read(castiron, tiny, tmp_path, name, content, message):
    castiron("train", tiny, "--name", "first")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = castiron("predict", "tiny/first", "--file", name)
    assert said.code == 2
    assert said.err.startswith(message)


def test_texts_and_a_file_exclude_each_other(castiron, tiny):
    said = castiron("predict", "tiny/first", "text", "--file", "a.txt")
    assert said.code == 2
    assert "TEXT and --file exclude each other." in said.err
