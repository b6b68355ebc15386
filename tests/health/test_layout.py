from __future__ import annotations

import re
from typing import Any

from castiron.health import layout, tags


def charts(made: Any) -> dict[str, dict[str, str]]:
    """Category → chart → its pattern."""
    return {c.title: {chart.title: chart.multiline.tag[0] for chart in c.chart} for c in made.category}


def test_charts_in_reading_order() -> None:
    made = charts(layout(["accuracy", "f1"], scaled=True))
    assert list(made) == ["Training", "Precision", "Incidents"]
    assert list(made["Training"]) == ["loss", "accuracy", "f1", "learning rate", "items per second"]
    assert list(made["Precision"]) == ["loss scale"]
    assert list(made["Incidents"]) == ["held steps"]


def test_only_what_the_run_writes() -> None:
    assert list(charts(layout(held=False))) == ["Training"]


def test_patterns_match_their_tags_and_no_others() -> None:
    made = charts(layout(["accuracy"], scaled=True))
    written = [
        *(tags.metric(name, split) for name in ("loss", "accuracy", "loss2") for split in ("train", "test")),
        tags.learning_rate(),
        tags.learning_rate("head"),
        tags.throughput(),
        tags.loss_scale(),
        tags.held_steps(),
    ]
    matched = {
        chart: [str(tag) for tag in written if re.search(pattern, str(tag))]
        for group in made.values()
        for chart, pattern in group.items()
    }
    assert matched == {
        "loss": ["Training/loss/train", "Training/loss/test"],
        "accuracy": ["Training/accuracy/train", "Training/accuracy/test"],
        "learning rate": ["Training/learning rate", "Training/learning rate/head"],
        "items per second": ["Training/items per second"],
        "loss scale": ["Precision/loss scale"],
        "held steps": ["Incidents/held steps"],
    }


def test_names_of_metrics_are_taken_literally() -> None:
    pattern = charts(layout(["mse (x+1)"]))["Training"]["mse (x+1)"]
    assert re.search(pattern, "Training/mse (x+1)/test")
