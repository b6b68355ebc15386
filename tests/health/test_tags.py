from __future__ import annotations

import inspect

import pytest

from castiron.health import GROUPS, Tag, tags

CALLS = {
    "loss": ("train",),
    "metric": ("accuracy", "validation"),
    "data_report": ("test",),
    "logged": ("own_value",),
    "stored_bytes": ("parameters", "bfloat16"),
    "computing_layers": ("bfloat16",),
    "headroom": ("activations",),
    "subnormal": ("gradients",),
    "what_if": ("overflow", "float16", "activations"),
    "lost_updates": ("head",),
    "update_ratio": ("head",),
    "gradient_rms": ("head",),
    "growth": ("lstm",),
    "dead_units": ("relu",),
    "accumulation_noise": ("head",),
    "difference": ("activations", "head"),
    "exponents": ("parameters",),
    "figure": ("exponents by layer", "What it shows."),
}
ALL = {
    name: function(*CALLS.get(name, ()))
    for name, function in inspect.getmembers(tags, inspect.isfunction)
    if not name.startswith("_") and function.__module__ == tags.__name__ and name != "dataclass"
}


@pytest.mark.parametrize("name", ALL)
def test_every_tag_stands_in_a_group_and_says_what_it_is(name: str) -> None:
    tag = ALL[name]
    group, _, title = tag.name.partition("/")
    assert group in GROUPS
    assert title
    assert tag.description.endswith(".")


def test_no_two_functions_name_one_tag() -> None:
    assert len({tag.name for tag in ALL.values()}) == len(ALL)


def test_names() -> None:
    assert str(tags.loss("train")) == "Training/loss/train"
    assert str(tags.metric("f1", "test")) == "Training/f1/test"
    assert str(tags.learning_rate()) == "Training/learning rate"
    assert str(tags.learning_rate("head")) == "Training/learning rate/head"
    assert str(tags.stored_bytes("parameters", "float16")) == "Precision/parameters bytes/float16"
    assert tags.metric("loss", "validation") == tags.loss("validation")
    assert tags.loss("validation").description == "loss, over the whole validation split."


def test_a_tag_is_its_name() -> None:
    assert str(Tag("Health/x")) == "Health/x"
