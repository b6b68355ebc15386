"""Near misses."""

from __future__ import annotations

import pytest

from castiron.training.suggestions import did_you_mean, near, near_key


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("bf16_mixed", ["bf16-mixed"]),
        ("BF16-Mixed", ["bf16-mixed"]),
        ("bf16-mixd", ["bf16-mixed"]),
        ("float31", ["float32"]),
        ("nothing like it", []),
    ],
)
def test_near(word, found):
    assert near(word, ["float64", "float32", "bf16-mixed", "fp16-mixed"]) == found


def test_no_words_no_suggestion():
    assert near("a", []) == []
    assert did_you_mean([]) == ""
    assert did_you_mean(["a", "b"]) == "Did you mean 'a' or 'b'?"


def test_a_key_is_looked_for_among_siblings_then_by_its_other_names_then_everywhere():
    everywhere = ["seed", "optimizer", "optimizer.lr", "optimizer.eps", "trainer.max_epochs"]
    assert near_key("optimizer.lrr", ["lr", "eps"], everywhere) == ["optimizer.lr"]
    assert near_key("optimizer.learning_rate", ["lr", "eps"], everywhere) == ["optimizer.lr"]
    assert near_key("lr", ["seed"], everywhere) == ["optimizer.lr"]
    assert near_key("epochs", ["seed"], everywhere) == ["trainer.max_epochs"]
    assert near_key("max_epoch", ["seed"], everywhere) == ["trainer.max_epochs"]
    assert near_key("qqqq", ["seed"], everywhere) == []
