"""The recipe `seq2seq-attention`: generated dates, attention that leaves padding out, and its training."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from castiron.data import load
from castiron.training.backend import Job, load_backend
from castiron.training.config_file import load_config
from castiron.training.launch import load_run
from castiron_recipes.seq2seq_attention.dates import FORMS, ROWS, write, written
from castiron_recipes.seq2seq_attention.metrics import ExactMatch
from castiron_recipes.seq2seq_attention.model import END, PAD, Attention, AttentionSeq2Seq


def recipe_of(*words: str):
    loaded = load_config("seq2seq-attention", list(words))
    return loaded.recipe(loaded.config)


def test_no_day_is_in_two_splits_and_a_seed_has_its_bytes(tmp_path: Path) -> None:
    files = write(tmp_path / "a", seed=3)
    again = write(tmp_path / "b", seed=3)
    days = {}
    for split, path in files.items():
        assert path.read_bytes() == again[split].read_bytes()
        data = load(path, recipe_of().schema())
        days[split] = set(data.texts("target"))
        assert len(data) == len(days[split]) == ROWS[split]
        assert {datetime.date.fromisoformat(day).year // 50 for day in days[split]} == {39, 40}
    assert not days["test"] & (days["train"] | days["validation"])
    assert not days["train"] & days["validation"]


def test_a_written_date_has_one_reading() -> None:
    """Days whose numbers could be swapped: every text that stands for one stands for it alone."""
    random = np.random.default_rng(0)
    found: dict[str, set[datetime.date]] = {}
    for month in range(1, 13):
        for day in range(1, 13):
            for year in (1999, 2001, 2012):
                date = datetime.date(year, month, day)
                for _ in range(40):
                    found.setdefault(written(date, random), set()).add(date)
    assert all(len(dates) == 1 for dates in found.values())
    texts = {written(datetime.date(2015, 3, 3), random) for _ in range(600)}
    assert {"3 MAR '15", "tuesday, march 3rd, 2015", "3.3.2015", "03.03.15", "2015/03/03"} <= texts
    assert len(texts) > len(FORMS)


def test_texts_become_numbers_and_numbers_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("source,target\nab,ba\nb,\nbbc,cbb\n")  # a row without a target is left out
    recipe = recipe_of()
    data = load(path, recipe.schema())
    recipe.learn(data)
    assert recipe.characters == {"source": ["a", "b", "c"], "target": ["a", "b", "c"]}
    assert recipe.longest == 4
    columns = recipe.encode(data)
    assert columns["source"].values.tolist() == [3, 4, END, 4, 4, 5, END]
    assert recipe.decoded([5, 4, 1]) == "cb\ufffd"
    asked = recipe.encode(recipe.questions(["cxa", ""]))
    assert set(asked) == {"source"}
    assert asked["source"].values.tolist() == [5, 1, 3, END, END]


def model() -> AttentionSeq2Seq:
    torch.manual_seed(0)
    return AttentionSeq2Seq(9, 7, embedding=8, hidden=8, dropout=0.0, longest=6)


def test_attention_gives_padding_no_weight() -> None:
    torch.manual_seed(0)
    layer = Attention(6, 4)
    queries, read = torch.randn(2, 3, 4), torch.randn(2, 5, 6)
    beyond = torch.arange(5) >= torch.tensor([[5], [2]])
    found = layer(queries, read, beyond)
    assert found.shape == (2, 3, 6)
    torch.testing.assert_close(found[1:], layer(queries[1:], read[1:, :2], beyond[1:, :2]))
    read[1, 2:] = 1e4
    torch.testing.assert_close(layer(queries, read, beyond), found)
    # By hand: softmax(q · Wk) over the two places that count.
    weights = torch.softmax(queries[1] @ layer.key(read[1, :2]).T, 1)
    torch.testing.assert_close(found[1], weights @ read[1, :2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_row_that_is_all_padding_is_a_number_in_every_format(dtype: torch.dtype) -> None:
    layer = Attention(6, 4).to(dtype)
    found = layer(torch.ones(1, 2, 4, dtype=dtype), torch.ones(1, 3, 6, dtype=dtype), torch.ones(1, 3) > 0)
    assert found.dtype is dtype
    assert found.isfinite().all()


def test_what_comes_beyond_a_row_changes_nothing() -> None:
    net = model()
    source = torch.tensor([[3, 4, 5, END], [6, END, PAD, PAD]])
    length = torch.tensor([4, 2])
    target = torch.tensor([[3, 4, END], [5, END, PAD]])
    both = net(source, length, target)
    alone = net(source[1:, :2], length[1:], target[1:, :2])
    assert both.shape == (2, 3, 7)
    torch.testing.assert_close(both[1:, :2], alone)


def test_steps_that_are_told_say_what_steps_of_its_own_would() -> None:
    """Told its own symbols, the model says the same again: rows are whole by the one where by the other."""
    net = model().eval()
    source = torch.randint(3, 9, (16, 5))
    length = torch.full((16,), 5)
    own = net(source, length)
    assert own.shape == (16, 6, 7)
    torch.testing.assert_close(net(source, length, own.argmax(2)), own)


def test_a_step_is_not_told_its_own_symbol() -> None:
    net = model()
    source, length = torch.tensor([[3, 4, END]]), torch.tensor([3])
    a = net(source, length, torch.tensor([[3, 4, 5]]))
    b = net(source, length, torch.tensor([[3, 4, 6]]))
    torch.testing.assert_close(a, b)
    c = net(source, length, torch.tensor([[3, 5, 5]]))
    torch.testing.assert_close(a[:, :2], c[:, :2])
    assert not torch.allclose(a[:, 2], c[:, 2])


def test_a_row_is_whole_or_not() -> None:
    metric = ExactMatch(PAD)
    metric.update(torch.tensor([[3, 4, 2, 9], [3, 4, 2, 0]]), torch.tensor([[3, 4, 2, 0], [3, 5, 2, 0]]))
    metric.update(torch.tensor([[1, 1]]), torch.tensor([[1, 1]]))
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_it_learns_and_answers(few_steps) -> None:
    """Four steps do not learn dates; they lower the loss, and predict takes texts of any length."""
    run, _ = few_steps("seq2seq-attention")
    losses = [row["train/loss"] for row in run.metrics() if "train/loss" in row]
    assert losses[-1] < losses[0]
    loaded = load_run(run)
    job = Job(config=loaded.config, recipe=loaded.recipe, run=run, checkpoint=run.checkpoint("best"))
    answers = load_backend("torch").predict(job, ["3 March 2015", "a text of other characters: é", ""])
    assert [set(a) for a in answers] == [{"target", "probability"}] * 3
    assert all(0 < a["probability"] <= 1 for a in answers)
