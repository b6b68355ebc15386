"""The table of number formats, held against NumPy, ml_dtypes and torch."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from castiron.formats import FORMATS, is_wider, number_format, widest

STORED = [f for f in FORMATS.values() if f.kind == "float"]
INTEGERS = [f for f in FORMATS.values() if f.is_integer]
by_name = pytest.mark.parametrize("f", STORED, ids=str)


@by_name
def test_agrees_with_ml_dtypes_and_numpy(f) -> None:
    info = ml_dtypes.finfo(f.numpy_dtype)
    assert f.bits == info.bits
    assert f.exponent_bits == info.nexp
    assert f.fraction_bits == info.nmant
    assert f.max == float(info.max)
    assert f.min == float(info.min)
    assert f.smallest_normal == float(info.smallest_normal)
    assert f.smallest_subnormal == float(info.smallest_subnormal)
    assert f.spacing == float(info.eps)
    if f.name in ("float64", "float32", "float16"):
        assert f.max == float(np.finfo(f.name).max)
        assert f.smallest_subnormal == float(np.finfo(f.name).smallest_subnormal)


@by_name
def test_agrees_with_torch(f) -> None:
    info = torch.finfo(getattr(torch, f.torch_name))
    assert (f.bits, f.max, f.min, f.spacing) == (info.bits, info.max, info.min, info.eps)
    assert f.smallest_normal == info.smallest_normal


@pytest.mark.parametrize("f", INTEGERS, ids=str)
def test_integers_agree_with_numpy_and_torch(f) -> None:
    info = np.iinfo(f.numpy_name)
    assert (f.bits, f.min, f.max) == (info.bits, info.min, info.max)
    assert (f.min, f.max) == (torch.iinfo(getattr(torch, f.torch_name)).min, info.max)
    assert f.max_exact_int == info.max
    assert f.smallest_normal is None
    assert f.smallest_subnormal is None


@by_name
def test_the_largest_exact_integer_is_exact_and_the_next_but_one_is_not(f) -> None:
    def kept(n: int) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.asarray(n, np.float64).astype(f.numpy_dtype)) == n

    n = f.max_exact_int
    assert all(kept(i) for i in range(max(0, n - 300), n + 1))
    if f.name != "float64":  # float64 itself cannot say what 2**53 + 1 is
        assert not kept(n + 1)


@by_name
def test_infinity(f) -> None:
    with np.errstate(over="ignore"):
        beyond = np.asarray(np.inf).astype(f.numpy_dtype).astype(np.float64)
    assert bool(np.isinf(beyond)) == f.has_infinity


def test_figures_that_people_know() -> None:
    assert FORMATS["float16"].max == 65504
    assert FORMATS["float16"].max_exact_int == 2048
    assert FORMATS["float32"].max_exact_int == 16_777_216
    assert FORMATS["bfloat16"].max_exact_int == 256
    assert FORMATS["float8_e4m3fn"].max == 448
    assert FORMATS["float8_e5m2"].max == 57344
    assert FORMATS["tf32"].spacing == 2**-10
    assert FORMATS["tf32"].max == (2 - 2**-10) * 2.0**127


def test_tf32_is_a_mode_of_float32() -> None:
    tf32 = FORMATS["tf32"]
    assert (tf32.kind, tf32.bits, tf32.numpy_dtype) == ("mode", 32, np.float32)
    assert tf32.is_float


@pytest.mark.parametrize("f", [*FORMATS.values()], ids=str)
def test_itemsize_and_names(f) -> None:
    assert f.itemsize == f.numpy_dtype.itemsize
    assert hasattr(torch, f.torch_name)
    assert str(f) == f.name
    assert number_format(f.name) is f
    assert number_format(f"torch.{f.torch_name}").torch_name == f.torch_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bf16", "bfloat16"), ("fp32", "float32"), ("half", "float16"), ("double", "float64"),
        ("float", "float32"), ("torch.bfloat16", "bfloat16"), ("tf.float16", "float16"),
        ("ml_dtypes.float8_e5m2", "float8_e5m2"), ("e4m3", "float8_e4m3fn"), (" float32 ", "float32"),
        ("long", "int64"), ("torch.long", "int64"),
    ],
)  # fmt: skip
def test_other_names(name: str, expected: str) -> None:
    assert number_format(name).name == expected


def test_an_unknown_name_lists_what_there_is_and_near_misses() -> None:
    with pytest.raises(ValueError, match="Expected a number format") as caught:
        number_format("flaot16")
    assert str(caught.value) == (
        "Expected a number format (float64, float32, tf32, bfloat16, float16, float8_e4m3fn, float8_e5m2, "
        "int64, int32, int16, int8, uint64, uint32, uint16, uint8, bool). Received 'flaot16'. "
        "Did you mean 'float16' or 'bfloat16' or 'float64'?"
    )
    with pytest.raises(ValueError, match=r"Received 'xyz'\.$"):
        number_format("xyz")


@pytest.mark.parametrize(("a", "b"), list(itertools.permutations([f.name for f in STORED], 2)))
def test_wider_means_that_every_value_is_kept(a: str, b: str) -> None:
    """Every value of `b` (all of them where they are 16 bits or fewer) survives a cast to `a` and back."""
    target, source = FORMATS[a], FORMATS[b]
    if source.bits <= 16:
        bits = np.arange(2**source.bits, dtype=f"uint{source.bits}")
        values = bits.view(source.numpy_dtype)
    else:
        edge = [source.max, source.smallest_normal, source.smallest_subnormal, 1 + source.spacing]
        values = np.array(edge).astype(source.numpy_dtype)
    with np.errstate(all="ignore"):
        back = values.astype(target.numpy_dtype).astype(source.numpy_dtype)
        wide = values.astype(np.float64)
        same = back == values
    kept = same | np.isnan(wide) | (np.isinf(wide) & (not target.has_infinity))
    assert bool(kept.all()) == is_wider(a, b)


def test_no_format_is_wider_than_itself_nor_are_two_names_two_formats() -> None:
    assert not is_wider("float32", "float32")
    assert not is_wider("fp32", "single")
    assert is_wider("float64", "half")
    assert is_wider("float32", "tf32")
    assert is_wider("tf32", "bfloat16")


@given(st.lists(st.sampled_from([f.name for f in STORED if f.bits >= 16]), min_size=1, max_size=5))
def test_widest_is_as_wide_as_every_other(names: list[str]) -> None:
    best = widest(*names)
    assert all(best == name or is_wider(best, name) for name in names)


def test_widest_of_two_that_are_not_ordered() -> None:
    assert widest("float16", "bfloat16") == "float32"
    assert widest("float16") == "float16"
    assert widest("bfloat16", "float64", "float16") == "float64"
