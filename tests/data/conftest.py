"""Shared by the tests of data files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from castiron.data import ContractError, Dataset, Field, Schema, load


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


@pytest.fixture
def read() -> Callable[..., Dataset]:
    """`read(name, content, *fields, **options)`: a file of this content, made unless it is None, and loaded.
    Without fields: `x`, float32."""

    def made(name: str, content: str | bytes | None, *fields: Field, **options: Any) -> Dataset:
        if content is not None:
            Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        declared = {k: options.pop(k) for k in ("strict", "bad_rows") if k in options}
        return load(name, Schema(fields=fields or (Field(name="x"),), **declared), **options)

    return made


@pytest.fixture
def refused(read: Callable[..., Dataset]) -> Callable[..., list[str]]:
    """The same of a file that is refused: what is said."""

    def made(name: str, content: str | bytes | None, *fields: Field, **options: Any) -> list[str]:
        with pytest.raises(ContractError) as error:
            read(name, content, *fields, **options)
        return [f"{f.code} {f.sentence()}" for f in error.value.findings]

    return made
