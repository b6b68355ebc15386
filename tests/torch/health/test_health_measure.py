"""Measured on the device: what the NumPy reference says, on a CPU's way and on every other device's."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from castiron.health.rounding import round_to as rounded_by_reference
from castiron.health.statistics import WHAT_IF, Statistics, measure
from castiron.torch.dtypes import dtype_name
from castiron.torch.health.cpu import measure_on_cpu
from castiron.torch.health.device import measure_on_device, read
from castiron.torch.health.measure import Batch, merged
from castiron.torch.health.noise import noise_of, sampled, with_noise

Way = Callable[[torch.Tensor], Statistics]


def on_cpu(tensor: torch.Tensor) -> Statistics:
    return measure_on_cpu([tensor], dtype_name(tensor.dtype))


def on_device(tensor: torch.Tensor) -> Statistics:
    pending = measure_on_device(tensor, dtype_name(tensor.dtype), WHAT_IF)
    made = read(pending, pending.vector.numpy())
    return with_noise(made, noise_of([sampled([tensor])], [pending.scales])[0])


ways = pytest.mark.parametrize("way", [on_cpu, on_device])


def same(found: Statistics, expected: Statistics) -> None:
    for name in ("dtype", "size", "zeros", "nans", "largest", "smallest", "subnormals", "live"):
        assert getattr(found, name) == getattr(expected, name), name
    np.testing.assert_array_equal(found.exponents, expected.exponents)
    assert found.squares == pytest.approx(expected.squares, rel=1e-5)
    # float64 is rounded by way of float32 here, which the noise of few elements shows
    near = 1.0 if expected.dtype == "float64" else 1e-3
    for made in expected.what_if.values():
        other = found.what_if[made.format]
        for name in ("overflow", "underflow", "subnormal", "scale", "scaled_underflow", "scaled_subnormal"):
            assert getattr(other, name) == getattr(made, name), (made.format, name)
        for name in ("snr_db", "scaled_snr_db"):
            a, b = getattr(other, name), getattr(made, name)
            assert a == b or (math.isnan(a) and math.isnan(b)) or (a > 150 < b) or abs(a - b) < near, name


any_float32 = hnp.arrays(np.uint32, st.integers(1, 60)).map(lambda bits: bits.view(np.float32))
any_float64 = hnp.arrays(np.uint64, st.integers(1, 60)).map(lambda bits: bits.view(np.float64))
ordinary = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e5, 1e5, width=32))


@ways
@settings(max_examples=60, deadline=None)
@given(values=any_float32 | ordinary)
def test_any_float32(way: Way, values: np.ndarray) -> None:
    same(way(torch.from_numpy(values.copy())), measure(values))


@ways
@settings(max_examples=60, deadline=None)
@given(values=any_float64)
def test_any_float64(way: Way, values: np.ndarray) -> None:
    largest = np.abs(values[np.isfinite(values)]).max(initial=0)
    if 0 < largest < 1e-280:
        values = values + 1  # marks below float64's normal numbers are the CPU's alone
    same(way(torch.from_numpy(values.copy())), measure(values))


@ways
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_value_of_a_narrow_format(way: Way, dtype: torch.dtype) -> None:
    bits = torch.arange(2 ** (8 * dtype.itemsize))
    tensor = bits.to(torch.int16 if dtype.itemsize == 2 else torch.uint8).view(dtype)
    theirs = {
        torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16,
        torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn, torch.float8_e5m2: ml_dtypes.float8_e5m2,
    }[dtype]  # fmt: skip
    values = bits.numpy().astype(f"u{dtype.itemsize}").view(theirs)
    same(way(tensor), measure(values))


@ways
def test_large_not_contiguous_and_shaped(way: Way) -> None:
    torch.manual_seed(3)
    base = torch.randn(301, 400) * torch.logspace(-12, 9, 400)
    for tensor in (base, base.T, base[::3, 5::7], base.view(-1)[::2], base.reshape(7, 43, 400)[:, :, 0]):
        same(way(tensor), measure(tensor.numpy()))


@ways
def test_zeros_and_nan_payloads(way: Way) -> None:
    bits = np.array([0x7F800001, 0xFFC12345, 0x7FFFFFFF, 0x80000000, 0, 1, 0x80000001, 0x7F800000], np.uint32)
    found = way(torch.from_numpy(bits.view(np.float32).copy()))
    assert (found.nans, found.infinities, found.zeros, found.live) == (3, 1, 2, 2)
    same(way(torch.zeros(5)), measure(np.zeros(5, np.float32)))
    same(way(torch.full((3,), math.nan)), measure(np.full(3, np.nan, np.float32)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2])
def test_torch_rounds_as_the_reference_does(dtype: torch.dtype) -> None:
    """What the noise is measured with. float8_e4m3fn: torch makes the largest number of what overflows."""
    bits = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    expected = rounded_by_reference(values, dtype_name(dtype))
    made = torch.from_numpy(values.copy()).to(dtype).double().numpy()
    np.testing.assert_array_equal(made, expected)


def test_float8_e4m3fn_is_rounded_as_the_reference_does_where_it_does_not_overflow() -> None:
    values = np.random.default_rng(1).standard_normal(200_000).astype(np.float32) * 40
    values = values[np.abs(values) <= 464]
    made = torch.from_numpy(values).to(torch.float8_e4m3fn).double().numpy()
    np.testing.assert_array_equal(made, rounded_by_reference(values, "float8_e4m3fn"))


def test_a_group_of_tensors_is_measured_as_one() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(10, 3), torch.zeros(4), torch.randn(7) * 1e-20]
    batch = Batch(WHAT_IF)
    batch.add("together", parts)
    batch.add("by and by", parts[:1])
    batch.add("by and by", parts[1:])
    batch.add("nothing", [torch.zeros(0), torch.ones(3, dtype=torch.int64)])
    found = batch.take()
    whole = measure(torch.cat([p.reshape(-1) for p in parts]).numpy())
    same(found["together"], whole)
    np.testing.assert_array_equal(found["by and by"].exponents, whole.exponents)
    assert found["by and by"].what_if["float16"].underflow == pytest.approx(
        whole.what_if["float16"].underflow
    )
    assert found.keys() == {"together", "by and by"}
    assert batch.take() == {}


def test_a_sparse_gradient_is_what_it_stores() -> None:
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 2, 2]]), torch.tensor([1.0, 2.0, 3.0]), (5,), check_invariants=True
    )
    batch = Batch()
    batch.add("gradient", [sparse])
    found = batch.take()["gradient"]
    assert (found.size, found.largest) == (2, 5.0)


def test_parts_of_unequal_formats_are_not_mixed() -> None:
    a, b = on_cpu(torch.ones(3)), on_cpu(torch.ones(2, dtype=torch.float16))
    assert merged(a, b) is a


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        tensor = (torch.randn(100_000) * torch.logspace(-9, 4, 100_000)).to(dtype)
        batch = Batch(WHAT_IF)
        batch.add("x", [tensor.cuda()])
        same(batch.take()["x"], on_cpu(tensor))
