"""Arrow's reader loses a piece of a column now and then; the file is no worse for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import csv

from castiron.data import Field, Schema, load


def test_what_arrows_threads_lose_is_read_again_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("x\n1.5\n2.5\n")
    read, threads = csv.read_csv, []

    def loses(source: Any, *, read_options: csv.ReadOptions, **more: Any) -> pa.Table:
        threads.append(read_options.use_threads)
        if read_options.use_threads:
            raise pa.ArrowException("Unknown error: a chunk failed converting for an unknown reason")
        return read(source, read_options=read_options, **more)

    monkeypatch.setattr(csv, "read_csv", loses)
    data = load(path, Schema(fields=(Field(name="x"),)))
    assert data.array("x").tolist() == [1.5, 2.5]
    assert threads == [True, False]
