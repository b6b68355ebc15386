"""The custom-scalars page: charts of what belongs together, in the order a person reads them.

Charts are made only for what the run writes, and moves: TensorBoard shows an empty frame for what is not
there, and what never changes (the census) is read better as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tensorboard.plugins.custom_scalar import layout_pb2

from castiron.health import tags


def layout(
    metrics: Iterable[str] = (), *, scaled: bool = False, held: bool = True, health: bool = False
) -> Any:
    """The layout of a training run, a `tensorboard.plugins.custom_scalar.layout_pb2.Layout`.

    Args:
        metrics: names of the metrics besides the loss, one chart each over all splits.
        scaled: whether the policy scales the loss.
        held: whether the run counts held steps.
        health: whether the run measures numerical health.
    """
    training = [_family(name, "Training", name) for name in ("loss", *metrics)]
    training += [_chart("learning rate", _below(str(tags.learning_rate()))), _chart_of(tags.throughput())]
    categories = [("Training", training)]
    if scaled:
        categories.append(("Precision", [_chart_of(tags.loss_scale())]))
    if health:
        names = ("headroom", "subnormal", "update to weight", "lost updates", "gradient rms")
        charts = [_family(name, "Health", name) for name in names]
        charts += [
            _family(f"what if {fate}", "Health", f"what if {fate}") for fate in ("overflow", "underflow")
        ]
        categories.append(("Health", charts))
    if held:
        categories.append(("Incidents", [_chart_of(tags.held_steps())]))
    return layout_pb2.Layout(
        category=[layout_pb2.Category(title=title, chart=charts) for title, charts in categories]
    )


def _family(title: str, group: tags.Group, name: str) -> Any:
    """One chart of every tag `group/name/…`."""
    return _chart(title, f"^{re.escape(f'{group}/{name}')}/")


def _chart_of(tag: tags.Tag) -> Any:
    return _chart(tag.name.partition("/")[2], f"^{re.escape(tag.name)}$")


def _below(name: str) -> str:
    """A pattern for a tag and everything below it."""
    return f"^{re.escape(name)}(/|$)"


def _chart(title: str, pattern: str) -> Any:
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[pattern]))
