"""Files whose columns have types, Parquet and NumPy's: what is read, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from castiron.data import Dataset, Field
from castiron.policy.sections import CastSection

Read = Callable[..., Dataset]
Refused = Callable[..., list[str]]
X = Field(name="x")
T = Field(name="t", role="text")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- Parquet -------------------------------------------------------------------------------------------


@pytest.fixture
def column(read: Read) -> Read:
    """A column in a Parquet file: its data set."""

    def made(values: Any, *fields: Field, **options: Any) -> Any:
        parquet.write_table(pa.table({(fields or (X,))[0].name: values}), "a.parquet")
        return read("a.parquet", None, *fields, **options)

    return made


@pytest.fixture
def bad_column(refused: Refused) -> Refused:
    """A column in a Parquet file: what is said of it."""

    def made(values: Any, *fields: Field, **options: Any) -> Any:
        parquet.write_table(pa.table({(fields or (X,))[0].name: values}), "a.parquet")
        return refused("a.parquet", None, *fields, **options)

    return made


def test_parquet_numbers(column: Read, bad_column: Refused) -> None:
    data = column(pa.array([1.0, 0.1]))
    assert data["x"].dtype == np.float32
    found = data.report.as_findings()
    assert [(f.code, f.severity) for f in found] == [("D111", "info")]
    assert found[0].sentence() == (
        "The files store field 'x' as float64; 1 of 2 values are rounded, by 1.5e-08 at most. "
        "Expected float32. Received float64."
    )
    quiet = CastSection(float64_source="ignore")
    assert column(pa.array([0.1]), casts=quiet).report.findings == []
    assert bad_column(pa.array([0.1]), casts=CastSection(float64_source="error"))[0].startswith("D111")
    assert column(pa.array([0.5], pa.float16())).report.findings == []
    assert column(pa.array([Decimal("1.25")]))["x"].tolist() == [1.25]
    assert column(pa.array(["1.5", "2"]).dictionary_encode())["x"].tolist() == [1.5, 2]
    assert column(pa.array([True, False]), Field(name="x", role="mask"))["x"].tolist() == [True, False]


def test_parquet_values_that_are_refused(bad_column: Refused) -> None:
    assert bad_column(pa.array([1.0, None])) == [
        "D102 Expected float32 for field 'x'. Received null at a.parquet, row 2."
    ]
    assert bad_column(pa.array([float("nan"), float("inf"), 1e39])) == [
        "D102 Expected float32 for field 'x'. Received NaN at a.parquet, row 1.",
        "D108 Expected float32 for field 'x'. Received inf (double) at a.parquet, row 2.",
        "D103 The largest float32 is 3.402823e+38. Expected float32 for field 'x'. "
        "Received 1e+39 (double) at a.parquet, row 3.",
    ]
    assert bad_column(pa.array([2**53 + 1]), Field(name="x", dtype="float64")) == [
        "D105 9007199254740993 becomes 9007199254740992 in float64. Expected float64 for field 'x'. "
        "Received 9007199254740993 (int64) at a.parquet, row 1."
    ]
    assert bad_column(pa.array([2.0**53]), Field(name="x", role="id")) == [
        "D144 Expected int64 for field 'x'. Received 9007199254740992.0 (double) at a.parquet, row 1."
    ]
    assert bad_column(pa.array([1.5]), Field(name="x", dtype="int64")) == [
        "D106 Expected int64 for field 'x'. Received 1.5 (double) at a.parquet, row 1."
    ]
    assert bad_column(pa.array(["1", "N/A"])) == [
        "D101 Expected float32 for field 'x'. Received 'N/A' (text) at a.parquet, row 2."
    ]
    assert bad_column(pa.array([[1.0, 2.0], [1.0]]), Field(name="x", shape=(2,))) == [
        "D116 Expected shape [2] for field 'x'. Received shape [1] at a.parquet, row 2."
    ]


def test_parquet_types_that_are_refused(refused: Refused, bad_column: Refused) -> None:
    from datetime import datetime

    assert bad_column(pa.array([datetime(2020, 1, 1)])) == [
        "D118 Expected float32 for field 'x'. Received column 'x' of type timestamp[us] at a.parquet."
    ]
    assert bad_column(pa.array([{"a": 1}])) == [
        "D118 Expected float32 for field 'x'. Received column 'x' of type struct<a: int64> at a.parquet."
    ]
    assert bad_column(pa.array([1, 2]), T) == [
        "D127 Expected text for field 't'. Received column 't' of type int64 at a.parquet."
    ]
    assert bad_column(pa.array([[1.0]])) == [
        "D116 Expected float32 for field 'x' in column 'x'. Received lists nested 1 deep at a.parquet."
    ]
    assert refused("b.parquet", b"PAR1 no")[0].startswith(
        "D134 Expected a Parquet file. Received a damaged one"
    )


def test_parquet_lists_with_gaps(column: Read) -> None:
    field = Field(name="x", shape=(2,), missing="nan")
    data = column(pa.array([[1.0, 2.0], None, [3.0, None]]), field)
    assert np.isnan(data["x"]).tolist() == [[False, False], [True, True], [False, True]]
    assert data["x"][2, 0] == 3
    assert str(data.origin(2)) == "a.parquet:3"


# --- NumPy ---------------------------------------------------------------------------------------------


@pytest.fixture
def archive(read: Read) -> Read:
    """Arrays in an npz file: their data set."""

    def made(*fields: Field, **arrays: np.ndarray) -> Any:
        np.savez("a.npz", **arrays)
        return read("a.npz", None, *fields)

    return made


@pytest.fixture
def bad_archive(refused: Refused) -> Refused:
    """Arrays in an npz file: what is said of them."""

    def made(*fields: Field, **arrays: np.ndarray) -> Any:
        np.savez("a.npz", **arrays)
        return refused("a.npz", None, *fields)

    return made


def test_numpy_archives(monkeypatch: pytest.MonkeyPatch, read: Read, archive: Read) -> None:
    monkeypatch.setattr("castiron.data.readers.npz._PIECE", 64)
    x = np.arange(60, dtype=np.float32).reshape(20, 3)
    label = np.arange(20) % 2
    schema = (Field(name="x", shape=(3,)), Field(name="y", role="target", dtype="int64"))
    data = archive(*schema, x=x, y=label)
    assert np.array_equal(data["x"], x)
    assert np.array_equal(data["y"], label)
    assert data.origin(19).line == 20
    fortran = archive(*schema, x=np.asfortranarray(x), y=label.astype(">i4"))
    assert np.array_equal(fortran["x"], x)
    assert np.array_equal(fortran["y"], label)
    np.savez_compressed("b.npz", x=x, y=label)
    assert np.array_equal(read("b.npz", None, *schema)["x"], x)


def test_numpy_arrays_that_are_refused(refused: Refused, bad_archive: Refused) -> None:
    assert bad_archive(x=np.array([1, "a"], dtype=object)) == [
        "D117 Expected float32 for field 'x'. "
        "Received array 'x' of Python objects, which is not unpickled at a.npz."
    ]
    assert bad_archive(x=np.array([1 + 2j])) == [
        "D118 Expected float32 for field 'x'. Received array 'x' of dtype complex128 at a.npz."
    ]
    assert bad_archive(Field(name="x", shape=(3,)), x=np.zeros((2, 4))) == [
        "D116 Expected float32 [3] for field 'x', so an array of shape [rows, 3]. "
        "Received array 'x' of shape [2, 4] at a.npz."
    ]
    assert bad_archive(X, Field(name="y"), x=np.zeros(2), y=np.zeros(3)) == [
        "D136 Expected arrays with one number of rows. Received 'x' 2, 'y' 3 at a.npz."
    ]
    assert bad_archive(x=np.array(["1", "N/A"])) == [
        "D101 Expected float32 for field 'x'. Received 'N/A' (text) at a.npz, row 2."
    ]
    assert bad_archive(Field(name="x", role="image"), x=np.array([255, 256])) == [
        "D107 Expected uint8 for field 'x'. Received 256 (int64) at a.npz, row 2."
    ]
    assert refused("b.npz", b"garbage")[0].startswith("D134 Expected a NumPy archive (.npz).")
    np.savez("c.npz", x=np.zeros(100, np.float32))
    whole = Path("c.npz").read_bytes()
    assert refused("c.npz", whole[:-40])[0].startswith("D134")
    flipped = bytearray(whole)
    flipped[300] ^= 1
    assert refused("c.npz", bytes(flipped))[0].startswith(
        "D134 Expected a NumPy archive (.npz). Received a damaged one (Bad CRC-32 for file 'x.npy') at c.npz."
    )
