"""Rows and their lines, against a reference that walks byte by byte, and against pyarrow."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import csv

from castiron.data.readers.rows import RowScan


def reference(data: bytes, *, quoting: bool) -> tuple[list[tuple[int, int]], bool]:
    """(line from 0, cells) of each row that is not blank, and whether a quote is left open."""
    rows: list[tuple[int, int]] = []
    line, i, size = 0, 0, len(data)
    while i < size:
        first, begin, cells, quoted, at_start = line, i, 1, False, True
        while i < size:
            byte = data[i : i + 1]
            if byte == b'"' and quoting and at_start and not quoted:
                quoted, at_start = True, False
            elif byte == b'"' and quoted:
                if data[i + 1 : i + 2] == b'"':
                    i += 1
                else:
                    quoted = False
            elif byte in (b"\n", b"\r"):
                line += not (byte == b"\r" and data[i + 1 : i + 2] == b"\n")
                if not quoted:
                    break
            elif byte == b"," and not quoted:
                cells, at_start = cells + 1, True
                i += 1
                continue
            at_start = False
            i += 1
        if quoted:
            return rows, True
        if i > begin:
            rows.append((first, cells))
        if data[i : i + 2] == b"\r\n":
            line += 1
            i += 2
        else:
            i += 1
    return rows, False


texts = st.lists(
    st.sampled_from([b"a", b",", b'"', b"\n", b"\r\n", b"\r", b'""', b'"\n"', b"b c"]), max_size=30
)


@settings(max_examples=600, deadline=None)
@example(pieces=[b'"', b"a", b"\r", b"\n", b'"', b"\n", b"b"], quoting=True)
@given(pieces=texts, quoting=st.booleans())
def test_rows_lines_and_widths(pieces: list[bytes], quoting: bool) -> None:
    data = b"".join(pieces)
    expected, is_open = reference(data, quoting=quoting)
    scan = RowScan(data, quoting=quoting, last=True)
    assert (scan.unclosed is not None) == is_open
    if is_open:
        return
    assert scan.end == len(data)
    assert list(zip(scan.lines().tolist(), scan.widths().tolist(), strict=True)) == expected


@settings(max_examples=300, deadline=None)
@given(pieces=texts, cut=st.integers(0, 60), quoting=st.booleans())
def test_rows_are_the_same_wherever_a_block_ends(pieces: list[bytes], cut: int, quoting: bool) -> None:
    data = b"".join(pieces)
    expected, is_open = reference(data, quoting=quoting)
    if is_open:
        return
    cut = min(cut, len(data))
    head = RowScan(data[:cut], quoting=quoting, last=False)
    rest = RowScan(data[head.end :], quoting=quoting, last=True)
    rows = [(line, width) for line, width in zip(head.lines().tolist(), head.widths().tolist(), strict=True)]
    lines, widths = rest.lines() + head.n_lines, rest.widths()
    rows += list(zip(lines.tolist(), widths.tolist(), strict=True))
    assert rows == expected


@settings(max_examples=200, deadline=None)
@given(pieces=texts)
def test_pyarrow_finds_the_same_rows(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    rows, is_open = reference(data, quoting=True)
    if is_open or not rows:
        return
    width = rows[0][1]
    skipped = []

    def skip(row: csv.InvalidRow) -> str:
        skipped.append(row)
        return "skip"

    table = csv.read_csv(
        pa.BufferReader(data),
        read_options=csv.ReadOptions(column_names=[f"c{i}" for i in range(width)]),
        parse_options=csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        convert_options=csv.ConvertOptions(column_types={f"c{i}": pa.string() for i in range(width)}),
    )
    assert table.num_rows == sum(cells == width for _, cells in rows)
    assert len(skipped) == sum(cells != width for _, cells in rows)


@pytest.mark.parametrize(
    ("data", "line"), [(b'a,"open\nb,c\n', 0), (b'a,b\nx,"y""z\n\n', 4), (b'a,5" b\n"open', 7)]
)
def test_a_quote_left_open_is_found(data: bytes, line: int) -> None:
    scan = RowScan(data, quoting=True, last=True)
    assert scan.unclosed is not None
    assert data[scan.unclosed : scan.unclosed + 1] == b'"'


def test_the_text_of_a_row() -> None:
    scan = RowScan(b'a,b\r\n\r\n"x\ny",2\r\n', quoting=True, last=True)
    assert [scan.text(i) for i in range(2)] == [b"a,b", b'"x\ny",2']
    assert scan.breaks_in_cells
