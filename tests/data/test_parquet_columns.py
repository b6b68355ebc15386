"""Parquet whose columns are read side by side: the same comes out as in batches."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from castiron.data import Dataset, Field, ReadOptions, Schema, check, load, load_batches
from castiron.data.readers import parquet as reader
from castiron.data.readers import parts
from castiron.diagnostics import DataError

SCHEMA = Schema(
    fields=(
        Field(name="x", bad="drop"),
        Field(name="n", role="target", dtype="int64", missing={"treatment": "constant", "value": -1}),
        Field(name="f", missing="mean"),
        Field(name="b", dtype="bool"),
        Field(name="grade", dtype="int64", categories={"1": 0, "2": 1}, column="g"),
    )
)
DIGESTED = ReadOptions(digest=True)
CELLS = st.tuples(
    st.floats(width=64, allow_nan=False) | st.sampled_from([0.5, 1e300, 1e-300, 0.0]),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=1e6, min_value=-1e6),
    st.booleans(),
    st.sampled_from([1, 2]),
)


def write(path: Path, rows: list[tuple[Any, ...]], group: int, **options: Any) -> None:
    kinds = [("x", pa.float64()), ("n", pa.int64()), ("f", pa.float32()), ("b", pa.bool_()), ("g", pa.int8())]
    columns = [pa.array([row[i] for row in rows], kind) for i, (_, kind) in enumerate(kinds)]
    table = pa.table(columns, schema=pa.schema(kinds))
    parquet.write_table(table, path, row_group_size=group, **options)


def told(data: Dataset) -> tuple[Any, ...]:
    """All that is known of a data set, digest and report among it."""
    arrays = {name: data.array(name).tobytes() for name in SCHEMA.names}
    report = data.report.model_dump()
    for column in report["columns"]:
        del column["largest_relative_error"]  # one that is within 1 % of it will do
    report["findings"].sort(key=str)  # they come as blocks meet them
    return arrays, report, [data.origin(at).line for at in range(len(data))]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(CELLS, min_size=1, max_size=40), group=st.integers(1, 25))
def test_side_by_side_is_the_same_as_in_batches(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]], group: int
) -> None:
    rows = [(0.5, 1, 0.5, True, 1), *rows]
    path = tmp_path_factory.mktemp("any") / "a.parquet"
    write(path, rows, group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_BATCH", 7)
        patch.setattr(reader, "_GROUP", 0)
        batches = load(path, SCHEMA, options=DIGESTED)
        patch.setattr(reader, "_BATCH", 1)
        patch.setattr(reader, "_GROUP", 100)
        columns = load(path, SCHEMA, options=DIGESTED)
        pieces = list(load_batches(path, SCHEMA, fitted=columns.fitted))
        assert check(path, SCHEMA).rows == len(rows) - columns.report.dropped
    assert told(batches) == told(columns)
    assert np.concatenate([p.array("x") for p in pieces]).tobytes() == columns.array("x").tobytes()
    assert columns.report.files[0].blake3 == blake3(path.read_bytes()).hexdigest()


@pytest.fixture
def by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_BATCH", 1)


ROWS = [(i / 2, i, i / 4, i % 3 == 0, 1 + i % 2) for i in range(2000)]


def test_what_is_wrong_is_told_in_the_order_of_the_file(tmp_path: Path, by_columns: None) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"b": [0.0, 1e300] * 10, "a": [1e300, 0.0] * 10}), path, row_group_size=8)
    with pytest.raises(DataError) as refused:
        load(path, Schema(fields=(Field(name="a"), Field(name="b"))))
    report: Any = refused.value
    assert [(c.line, c.field) for c in report.report.bad_cells] == [(i + 1, "ab"[i % 2]) for i in range(20)]


@pytest.mark.parametrize("damaged", range(5))
def test_a_column_that_is_damaged_is_refused(
    tmp_path: Path, by_columns: None, damaged: int, damage: Callable[[Path, int, int], None]
) -> None:
    path = tmp_path / "a.parquet"
    write(path, ROWS, 500, compression=None, write_page_checksum=True)
    damage(path, 1, damaged)
    with pytest.raises(DataError, match=r"D134 Expected a Parquet file. Received a damaged one"):
        load(path, SCHEMA)


def test_a_packed_file_has_the_same_rows(tmp_path: Path, by_columns: None) -> None:
    plain, packed = tmp_path / "a.parquet", tmp_path / "b.parquet.gz"
    write(plain, ROWS, 600)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = load(plain, SCHEMA), load(packed, SCHEMA, options=DIGESTED)
    for name in SCHEMA.names:
        assert one.array(name).tobytes() == other.array(name).tobytes()
    assert other.report.files[0].blake3 == blake3(packed.read_bytes()).hexdigest()


def test_a_disk_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    write(path, ROWS, 500)

    def fails(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(parts, "read_into", fails)
    with pytest.raises(DataError, match=r"D134 Expected a file that can be read\. .*Input/output error"):
        load(path, SCHEMA, options=DIGESTED)
