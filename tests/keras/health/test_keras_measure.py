"""What is measured in a graph, held against the NumPy reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from castiron.health.statistics import WHAT_IF, Statistics, measure
from castiron.keras.health.measure import measured, peak, read

RNG = np.random.default_rng(0)
TINY = np.float32(1e-45)


def cases() -> dict[str, np.ndarray]:
    wide = RNG.normal(size=5000) * 2.0 ** RNG.integers(-140, 120, size=5000)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, TINY, -TINY, 1e-40, 65504, 65519.99, 65520, 6e-8])
    return {
        "normal": RNG.normal(size=(40, 30)),
        "gradients": RNG.normal(size=3000) * 1e-8,
        "every magnitude": wide,
        "special": np.concatenate([special, RNG.normal(size=50)]),
        "one": np.array([3.0]),
        "zeros": np.zeros(10),
        "subnormal": np.array([TINY, 3 * TINY, 1e-41, 0]),
        "not finite": np.array([np.nan, np.inf]),
        "near the end of float16": RNG.uniform(60000, 70000, size=100),
        "upper part of a binade": np.array([1.9999, 1.0, 2.0**-30]),
    }


def in_graph(values: np.ndarray, formats: tuple[str, ...], jit: bool = False) -> Statistics | None:
    group = tf.function(lambda x: measured([x], formats), jit_compile=jit or None)(tf.constant(values))
    return read({k: v.numpy() for k, v in group.items()}, values.dtype.name, formats)


def same(ours: Any, reference: Statistics) -> None:
    assert ours is not None
    assert np.array_equal(ours.exponents, reference.exponents)
    for name in ("dtype", "size", "zeros", "nans", "largest", "smallest", "subnormals", "infinities"):
        assert getattr(ours, name) == getattr(reference, name), name
    assert ours.squares == pytest.approx(reference.squares, rel=1e-12, abs=1e-75)
    _near(ours, reference)


def _near(ours: Statistics, reference: Statistics) -> None:
    for name, w in reference.what_if.items():
        for field in w.__dataclass_fields__:
            a, b = getattr(ours.what_if[name], field), getattr(w, field)
            assert a == b or (a != a and b != b) or a == pytest.approx(b), (name, field, a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("name", cases())
def test_equal_to_the_reference(name: str, dtype: str) -> None:
    kind = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        values = cases()[name].astype(kind)
    same(in_graph(values, WHAT_IF), measure(values))


def test_also_under_xla() -> None:
    values = cases()["normal"].astype("float32")
    same(in_graph(values, WHAT_IF, jit=True), measure(values))


def test_a_group_of_several_tensors_is_one() -> None:
    parts = [RNG.normal(size=(7, 11)).astype("float32"), RNG.normal(size=900).astype("float32")]
    group = {k: v.numpy() for k, v in measured([tf.constant(p) for p in parts], WHAT_IF).items()}
    whole = np.concatenate([p.ravel() for p in parts])
    same(read(group, "float32", WHAT_IF), measure(whole))


def test_peaks() -> None:
    assert peak(tf.constant([1.0, -3.0])).numpy() == 3
    assert peak(tf.constant([1.0, np.nan])).numpy() == np.inf


def test_nothing_of_nothing() -> None:
    assert in_graph(np.zeros(0, "float32"), ()) is None
