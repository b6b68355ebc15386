"""Plain text, line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from castiron.data import Field, ReadOptions, Schema, load
from castiron.data.readers import lines
from castiron.diagnostics import DataError

TEXT = Schema.of(Field(name="text", role="text", missing={"constant": ""}))


@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
def test_every_line_is_a_row_empty_ones_too(piece: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lines, "_PIECE", piece)
    path = tmp_path / "a.txt"
    path.write_bytes('one, "two"\r\n\n\u2028 é\n\tend'.encode())
    data = load(path, TEXT)
    assert data.texts("text") == ['one, "two"', "", "\u2028 é", "\tend"]
    assert [data.origin(i).line for i in range(4)] == [1, 2, 3, 4]
    path.write_bytes(b"a\nb\n")
    assert load(path, TEXT).texts("text") == ["a", "b"]


def test_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ä\nö", encoding="utf-16")
    assert load(path, TEXT, options=ReadOptions(encoding="utf-16")).texts("text") == ["ä", "ö"]


@pytest.mark.parametrize("piece", [2, 1 << 20])
def test_a_byte_of_another_encoding_has_its_line(piece: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lines, "_PIECE", piece)
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\nb\nc\xe9d\n")
    with pytest.raises(DataError, match=r"Expected text in utf-8. Received byte 0xE9 at .*a.txt:3"):
        load(path, TEXT)


def test_there_is_no_other_column(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(DataError, match="a column 'label' for field 'label'"):
        load(tmp_path / "a.txt", Schema.of(Field(name="label", role="target")))
