"""Parquet in blocks: rows come out as they went in, whatever the pieces of the file and of the reading."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from castiron.data import Field, Schema, load, load_batches
from castiron.data.readers import parquet as reader
from castiron.diagnostics import DataError

SCHEMA = Schema(
    fields=(
        Field(name="x", bad="drop"),
        Field(name="n", role="target", dtype="int64", missing={"treatment": "constant", "value": -1}),
        Field(name="v", shape=(2,)),
    )
)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_BATCH", 2)


def table(rows: int) -> pa.Table:
    """A value of `x` in ten is no float32, `n` lacks one in three."""
    x = [1e300 if i % 10 == 3 else i / 2 for i in range(rows)]
    n = [None if i % 3 == 0 else i for i in range(rows)]
    v = [[float(i), 0.5] for i in range(rows)]
    kinds = pa.schema([("x", pa.float64()), ("n", pa.int64()), ("v", pa.list_(pa.float64()))])
    return pa.table({"x": x, "n": n, "v": v}, kinds)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 60), group=st.integers(1, 40), most=st.integers(1, 30))
def test_blocks_and_row_groups_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, rows: int, group: int, most: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.parquet"
    parquet.write_table(table(rows), path, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_BATCH", most)
        data = load(path, SCHEMA)
        pieces = list(load_batches(path, SCHEMA))
    kept = [i for i in range(rows) if i % 10 != 3]
    assert data.array("x").tolist() == [i / 2 for i in kept]
    assert data.array("n").tolist() == [-1 if i % 3 == 0 else i for i in kept]
    assert data.array("v").tolist() == [[i, 0.5] for i in kept]
    assert data.array("x").dtype == np.float32
    assert np.concatenate([p.array("x") for p in pieces]).tolist() == data.array("x").tolist()
    assert data.report.columns[0].lossy == rows - len(kept)
    assert [data.origin(at).line for at in range(len(kept))] == [i + 1 for i in kept]


def test_what_is_wrong_is_told_in_the_order_of_the_file(tmp_path: Path, small_blocks: None) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"b": [0.0, 1e300] * 10, "a": [1e300, 0.0] * 10}), path)
    with pytest.raises(DataError) as refused:
        load(path, Schema(fields=(Field(name="a"), Field(name="b"))))
    report: Any = refused.value
    told = [(c.line, c.field) for c in report.report.bad_cells]
    assert told == [(i + 1, "ab"[i % 2]) for i in range(20)]


def test_a_column_that_is_damaged_is_refused(
    tmp_path: Path, small_blocks: None, damage: Callable[[Path, int, int], None]
) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(table(1000), path, compression=None, write_page_checksum=True)
    damage(path, 0, 1)
    with pytest.raises(DataError, match=r"D134 Expected a Parquet file. Received a damaged one"):
        load(path, SCHEMA)


def test_a_packed_file_has_the_same_rows(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.parquet", tmp_path / "b.parquet.gz"
    parquet.write_table(table(50), plain)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = load(plain, SCHEMA), load(packed, SCHEMA)
    for name in SCHEMA.names:
        assert one.array(name).tolist() == other.array(name).tolist()
