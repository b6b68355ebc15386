"""Which layers a rule's key means."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castiron.policy import LayerInfo
from castiron.policy.matching import compile_glob, matches, near_misses


def layer(path: str, cls: str = "Linear", *bases: str) -> LayerInfo:
    return LayerInfo(path=path, type=cls, bases=bases)


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("head", "head", True),
        ("head", "head.0", False),
        ("head", "ahead", False),
        ("head", "decoder.head", False),
        ("encoder.*", "encoder.0", True),
        ("encoder.*", "encoder.0.norm", False),
        ("encoder.*", "encoder", False),
        ("encoder.**", "encoder.0.norm", True),
        ("encoder.**", "encoder", True),
        ("encoder.**", "encoders", False),
        ("**.norm", "norm", True),
        ("**.norm", "a.b.norm", True),
        ("**.norm", "a.b.prenorm", False),
        ("**.*norm", "a.b.prenorm", True),
        ("a.**.z", "a.z", True),
        ("a.**.z", "a.b.c.z", True),
        ("**", "a.b.c", True),
        ("blocks.[01]", "blocks.1", True),
        ("blocks.[01]", "blocks.2", False),
        ("blocks.[!01]", "blocks.2", True),
        ("blocks.[0-3].*", "blocks.3.attention", True),
        ("layer?", "layer1", True),
        ("layer?", "layer10", False),
        ("a.b", "axb", False),
        ("a+b", "a+b", True),
        ("x[", "x[", True),
        ("x[]", "x[]", True),
        ("x[z-a]", "x[z-a]", True),
    ],
)
def test_globs(glob: str, path: str, expected: bool) -> None:
    assert matches(glob, layer(path)) is expected


def test_a_glob_never_means_the_model_itself() -> None:
    assert not matches("**", layer(""))
    assert not matches("*", layer(""))
    assert matches("type:Model", layer("", "Model"))


def test_types() -> None:
    norm = layer("a", "MyNorm", "LayerNorm")
    assert matches("type:MyNorm", norm)
    assert matches("type:LayerNorm", norm)
    assert not matches("type:Layer", norm)
    assert not matches("MyNorm", norm)


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_is_a_glob(glob: str, path: str) -> None:
    assert isinstance(compile_glob(glob), re.Pattern)
    assert matches(glob, layer(path)) in (True, False)


@given(st.lists(st.from_regex(r"[a-z_0-9]{1,5}", fullmatch=True), min_size=1, max_size=4))
def test_a_plain_path_means_itself(parts: list[str]) -> None:
    path = ".".join(parts)
    assert matches(path, layer(path))
    assert matches(f"**.{parts[-1]}", layer(path))
    assert matches(f"{parts[0]}.**", layer(path))
    assert not matches(path, layer(f"{path}.more"))


LAYERS = [layer("encoder.norm", "LayerNorm"), layer("encoder.lstm", "LSTM"), layer("head", "Linear")]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("haed", ["head"]),
        ("norm", ["encoder.norm"]),
        ("LSTM", ["type:LSTM"]),
        ("type:head", ["head"]),
        ("type:LayerNrom", ["type:LayerNorm"]),
        ("Linaer", ["type:Linear"]),
        ("encoder.lstn", ["encoder.lstm", "encoder.norm"]),
        ("zzz", []),
        ("type:Zzz", []),
    ],
)
def test_near_misses(rule: str, expected: list[str]) -> None:
    assert near_misses(rule, LAYERS) == expected
