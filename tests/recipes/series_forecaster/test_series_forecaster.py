"""The recipe `series-forecaster`: generated readings, windows of splits, models, and its training."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from castiron.data import load
from castiron.diagnostics import ConfigError
from castiron.training.config_file import load_config
from castiron.training.launch import load_run
from castiron_recipes.series_forecaster.metrics import MeasuredError
from castiron_recipes.series_forecaster.model import (
    DLinear,
    LSTMForecaster,
    NLinear,
    masked_mean,
    moving_average,
)
from castiron_recipes.series_forecaster.sensors import HOURS, SENSORS, write


def test_readings_have_gaps_and_silent_stretches_and_are_the_same_for_a_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "a", seed=3)
    assert path.read_bytes() == write(tmp_path / "b", seed=3).read_bytes()
    assert path.read_bytes() != write(tmp_path / "c", seed=4).read_bytes()
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == HOURS
    cells = [row[sensor] for row in rows for sensor in SENSORS]
    assert 0.015 < cells.count("") / len(cells) < 0.025
    assert cells.count("NA") > 20
    assert rows[25]["date"] == "2024-01-02 01:00"


def test_splits_are_stretches_of_rows_and_look_back(tmp_path: Path) -> None:
    words = [
        "model.past=4",
        "model.horizon=2",
        "model.rows={train: [0, 20], validation: [20, 26], test: [26, 30]}",
    ]
    loaded = load_config("series-forecaster", words)
    recipe = loaded.recipe(loaded.config)
    path = tmp_path / "s.csv"
    lines = [f"{t},{'' if t == 21 else 10 * t},7" for t in range(40)]
    path.write_text("load,flow,heat\n" + "\n".join(lines) + "\n")
    parts = {split: load(path, recipe.schema(), split=split) for split in ("train", "validation", "test")}
    recipe.learn(parts["train"])
    assert recipe.mean.tolist() == [9.5, 95, 7]  # of the training rows alone
    assert recipe.std[2] == 1  # of a column that stands still
    starts = {}
    for split, part in parts.items():
        columns = recipe.encode(part)
        starts[split] = columns["past"].starts
        assert (columns["future"].starts == starts[split] + 4).all()
        assert columns["past"].dtype == np.float32
    assert starts["train"].tolist() == list(range(15))
    assert starts["validation"].tolist() == [16, 17, 18, 19, 20]  # forecasts of hours 20 to 25
    assert starts["test"].tolist() == [22, 23, 24]
    columns = recipe.encode(parts["validation"])
    assert columns["known"].take([0])[0].tolist() == [[True] * 3, [True, False, True]]
    gap, before = columns["future"].take([0])[0][:, 1][::-1]
    assert gap == before  # the last known reading stands in


def test_a_stretch_too_short_for_a_window_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rows.train has 20 rows; expected past \+ horizon \(192\)"):
        load_config("series-forecaster", ["model.rows={train: [0, 20], test: [20, 400]}"])


def test_linear_models_carry_a_level_on() -> None:
    flat = torch.full((2, 30, 3), 5.0)
    for model in (NLinear(30, 4), DLinear(30, 4)):
        torch.testing.assert_close(model(flat), torch.full((2, 4, 3), 5.0))
    torch.manual_seed(0)
    model = NLinear(30, 4)
    x = torch.randn(2, 30, 3)
    torch.testing.assert_close(model(x + 9), model(x) + 9)


def test_columns_do_not_mix_in_linear_models() -> None:
    x = torch.randn(2, 30, 3)
    y = x.clone()
    y[:, :, 1] = 0
    for model in (NLinear(30, 4), DLinear(30, 4)):
        torch.testing.assert_close(model(x)[:, :, [0, 2]], model(y)[:, :, [0, 2]])


def test_the_moving_average_keeps_lengths_and_levels() -> None:
    x = torch.arange(10.0).expand(1, 2, 10)
    trend = moving_average(x, 3)
    assert trend.shape == x.shape
    torch.testing.assert_close(trend[0, 0, 1:-1], x[0, 0, 1:-1])
    assert LSTMForecaster(3, 5, hidden=4, layers=1, dropout=0)(torch.zeros(2, 6, 3)).shape == (2, 5, 3)


def test_what_was_not_measured_counts_nowhere() -> None:
    known = torch.tensor([[[True], [False]]])
    values = torch.tensor([[[2.0], [float("inf")]]])
    assert masked_mean(values, known).item() == 2
    assert masked_mean(values, ~known & known).item() == 0
    forecast = torch.tensor([[[1.0], [9.0]]])
    measured = torch.tensor([[[4.0], [0.0]]])
    for power, expected in ((1, 3), (2, 9)):
        metric = MeasuredError(power)
        metric.update(forecast, (measured, known))
        metric.update(forecast, (measured, known & ~known))
        assert metric.compute().item() == expected


SMALL = ("model.past=12", "model.horizon=3", "data.batch_size=16", "model.hidden=8")


@pytest.mark.parametrize("kind", ["dlinear", "lstm"])
def test_the_other_models_train(few_steps, kind: str) -> None:
    few_steps("series-forecaster", f"model.network={kind}", *SMALL)


def test_a_window_is_asked_about(few_steps) -> None:
    from castiron.training.backend import Job, load_backend

    run, _ = few_steps("series-forecaster", *SMALL)
    loaded = load_run(run)
    job = Job(config=loaded.config, recipe=loaded.recipe, run=run, checkpoint=run.checkpoint("best"))
    window = {"load": [20.0] * 12, "flow": [40.0] * 11 + [None], "heat": [60.0] * 12}
    (answer,) = load_backend("torch").predict(job, [window])
    assert {name: len(values) for name, values in answer.items()} == dict.fromkeys(SENSORS, 3)
    assert answer["load"][0] == pytest.approx(20, abs=3)


def test_another_network_leaves_the_rest_of_the_config_as_it_is() -> None:
    plain = load_config("series_forecaster/etth1_96").config.model
    other = load_config("series_forecaster/etth1_96", ["model.network=dlinear"]).config.model
    assert other == plain.model_copy(update={"network": "dlinear"})
