"""Shared by the tests of data files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import parquet


@pytest.fixture
def damage() -> Callable[[Path, int, int], None]:
    """`damage(path, group, column)`: bytes in the midst of a column of a Parquet file are others."""

    def change(path: Path, group: int, column: int) -> None:
        place = parquet.read_metadata(path).row_group(group).column(column)
        content = bytearray(path.read_bytes())
        at = place.data_page_offset + place.total_compressed_size // 2
        content[at : at + 16] = b"\xff" * 16
        path.write_bytes(content)

    return change
