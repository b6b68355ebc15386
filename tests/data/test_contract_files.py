"""Files of text, and files at all: what is read, what is refused, and where each row came from."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3
from pyarrow import parquet

from castiron.data import ContractError, Dataset, Field, ReadOptions, Schema, load, load_batches
from castiron.data.readers import text_blocks as blocks

Read = Callable[..., Dataset]
Refused = Callable[..., list[str]]
X = Field(name="x")
T = Field(name="t", role="text")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- delimited -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "values", "lines"),
    [
        ("x\n1\n2", [1, 2], [2, 3]),
        ("x\r\n1\r\n2\r\n", [1, 2], [2, 3]),
        ("x\r1\r2", [1, 2], [2, 3]),
        ("\ufeffx\n1\n\n\n2\n\n", [1, 2], [2, 5]),
        ('x,t\n1,"a\nb"\n2,"c\n\n"\n3,z\n', [1, 2, 3], [2, 4, 7]),
        ('t,x\n5" pipe,1\n"a ""b""",2\n', [1, 2], [2, 3]),
        ('"x"\n"1"\n"2"', [1, 2], [2, 3]),
    ],
)
def test_rows_keep_their_lines(content: str, values: list[float], lines: list[int], read: Read) -> None:
    data = read("a.csv", content)
    assert data["x"].tolist() == values
    assert [data.origin(i).line for i in range(len(data))] == lines
    assert str(data.origin(-1)) == f"a.csv:{lines[-1]}"


def test_lines_are_right_across_blocks(monkeypatch: pytest.MonkeyPatch, read: Read, refused: Refused) -> None:
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 64)
    monkeypatch.setattr(blocks.text_blocks, "__kwdefaults__", {"whitespace": False, "block_size": 64})
    rows = [(i, f'"{i}' + "\n" * (i % 3) + f'{"z" * (i % 40)}"') for i in range(200)]
    content = "x,t\n" + "".join(f"{i},{t}\n" for i, t in rows)
    data = read("a.csv", content, X, T)
    assert data["x"].tolist() == list(range(200))
    whole = content.split("\n")
    for i in range(200):
        assert whole[data.origin(i).line - 1].startswith(f"{i},"), i
    assert [t.strip('"') for _, t in rows] == data.texts("t")
    bad = content + "oops,z\n"
    said = refused("a.csv", bad, X)
    assert said[0].endswith(f"Received 'oops' (text) at a.csv:{bad.count(chr(10))}, column 1.")


def test_tsv_has_no_quotes(read: Read) -> None:
    data = read("a.tsv", 'x\tt\n1\t"stray\n2\tb"c\n', X, T)
    assert data.texts("t") == ['"stray', 'b"c']
    quoted = read("a.tsv", 'x\tt\n1\t"a\tb"\n', X, T, options=ReadOptions(quoting=True))
    assert quoted.texts("t") == ["a\tb"]


def test_a_file_without_a_header(read: Read, refused: Refused) -> None:
    plain = ReadOptions(header=False)
    data = read(
        "a.csv",
        "1,a\n2,b\n",
        Field(name="x", column=0),
        Field(name="t", role="text", column=1),
        options=plain,
    )
    assert data["x"].tolist() == [1, 2]
    assert data.origin(0).line == 1
    assert refused("a.csv", "1,a\n", options=plain) == [
        "D120 Expected a column 'x' for field 'x'. Received 2 columns without names at a.csv."
    ]
    assert read("a.csv", "1,a\n", options=plain, columns={"x": 0})["x"].tolist() == [1]


def test_blanks_as_delimiter(read: Read) -> None:
    text = '18.0   8 ?\t"a  b"\n  15.5 8    130.\t"c"\n'
    options = ReadOptions(header=False, delimiter="whitespace", format="csv")
    fields = (
        Field(name="a", column=0),
        Field(name="c", column=2, missing={"treatment": "nan", "spellings": ["?"]}),
        Field(name="d", column=3, role="text"),
    )
    data = read("cars.data", text, *fields, options=options)
    assert data["a"].tolist() == [18, 15.5]
    assert np.isnan(data["c"][0])
    assert data.texts("d") == ["a  b", "c"]


def test_columns_are_named_with_alternatives() -> None:
    Path("train.csv").write_text("sentence,label\na,1\n")
    Path("dev.csv").write_text("label,content\n0,b\n")
    schema = Schema.of(Field(name="text", role="text"), Field(name="label", role="target"))
    data = load(["train.csv", "dev.csv"], schema, columns={"text": ["sentence", "content"]})
    assert data.texts("text") == ["a", "b"]
    assert data["label"].tolist() == [1, 0]
    assert [str(data.origin(i)) for i in range(2)] == ["train.csv:2", "dev.csv:2"]


def test_missing_doubled_and_extra_columns(read: Read, refused: Refused) -> None:
    assert refused("a.csv", "X,z\n1,2\n") == [
        "D120 Expected a column 'x' for field 'x'. Received columns 'X', 'z' at a.csv."
    ]
    with pytest.raises(ContractError) as error:
        read("a.csv", "X,z\n1,2\n")
    assert error.value.findings[0].remedy == "Did you mean 'X'? Name it with `data.columns: {x: COLUMN}`."
    assert refused("a.csv", "x,z,x\n1,2,3\n") == [
        "D121 Expected one column 'x' for field 'x'. Received 2 of them (columns 1, 3) at a.csv."
    ]
    assert read("a.csv", "x,z,x\n1,2,3\n", columns={"x": 2})["x"].tolist() == [3]
    assert refused("a.csv", "x,z\n1,2\n", strict=True) == [
        "D122 Expected the columns of the schema only (x). Received 'z' at a.csv."
    ]
    assert read("a.csv", "x,z\n1,2\n").report.extra_columns == ["z"]
    with pytest.raises(ContractError, match="fields of the schema"):
        read("a.csv", "x\n1\n", columns={"y": "x"})


def test_an_optional_field_may_be_absent(read: Read) -> None:
    optional = Field(name="y", required=False)
    data = read("a.csv", "x\n1\n", X, optional)
    assert "y" not in data
    assert list(data.columns) == ["x"]
    assert read("a.csv", "x,y\n1,2\n", X, optional)["y"].tolist() == [2]


def test_rows_of_another_width(read: Read, refused: Refused) -> None:
    text = "x,t\n1,2,3\n4\n5,6\n"
    assert refused("a.csv", text) == [
        "D123 Expected 2 cells. Received 3 cells at a.csv:2.",
        "D123 Expected 2 cells. Received 1 cell at a.csv:3.",
    ]
    data = read("a.csv", text, bad_rows="drop")
    assert data["x"].tolist() == [5]
    assert data.origin(0).line == 4
    assert (data.report.rows_read, data.report.dropped) == (3, 2)


def test_a_quote_that_is_never_closed(refused: Refused) -> None:
    assert refused("a.csv", 'x,t\n1,"a"\n2,"open\n3,b\n') == [
        "D126 Expected a closing quote for every opening one. "
        "Received a quote that is never closed, as byte 3 of the line at a.csv:3."
    ]


def test_a_bad_byte_in_a_row_of_another_width(refused: Refused) -> None:
    assert refused("a.csv", b"x,t\n1,2,\xff\n") == [
        "D133 Expected text in utf-8. Received byte 0xff as byte 5 of the line at a.csv:2."
    ]


def test_encodings(read: Read, refused: Refused) -> None:
    latin = "x,t\n1,caf\u00e9\n2,\u2026\n".encode("windows-1252")
    assert refused("a.csv", latin, X, T) == [
        "D133 Expected text in utf-8. Received byte 0xe9 as byte 6 of the line at a.csv:2."
    ]
    data = read("a.csv", latin, X, T, options=ReadOptions(encoding="windows-1252"))
    assert data.texts("t") == ["café", "…"]
    assert refused("a.csv", b"x,t\n1,a\n2,\x81\n", X, T, options=ReadOptions(encoding="windows-1252")) == [
        "D133 Expected text in windows-1252. Received byte 0x81 as byte 3 of the line at a.csv:3."
    ]
    wide = "x,t\n1,é\n".encode("utf-16")
    assert refused("a.csv", wide) == [
        "D133 Expected text in utf-8. Received a byte-order mark of utf-16 at a.csv:1."
    ]
    assert read("a.csv", wide, X, T, options=ReadOptions(encoding="utf-16")).texts("t") == ["é"]
    with pytest.raises(ValueError, match="Expected an encoding that Python knows"):
        ReadOptions(encoding="klingon")


def test_a_huge_cell_is_read(read: Read) -> None:
    text = "a" * (3 << 20)
    data = read("a.csv", f"x,t\n1,{text}\n2,b\n", X, T)
    assert [len(t) for t in data.texts("t")] == [len(text), 1]


# --- files ---------------------------------------------------------------------------------------------


def test_files_that_are_not_there(here: Path, read: Read, refused: Refused) -> None:
    (here / "reviews.csv").write_text("x\n1\n")
    (here / "folder").mkdir()
    assert refused("review.csv", None) == ["D130 Expected a file. Received review.csv, which does not exist."]
    with pytest.raises(ContractError, match=r"Did you mean reviews\.csv\?"):
        read("review.csv", None)
    assert refused("folder", None) == ["D130 Expected a file. Received the folder folder."]
    assert refused("*.tsv", None) == ["D130 Expected a file. Received no match for '*.tsv'."]
    assert refused("no/a.csv", None) == [
        "D130 Expected a file. Received no/a.csv, whose folder no does not exist."
    ]
    assert refused("a.foo", "x\n1\n")[0].startswith(
        "D135 Expected a suffix that names the format (.csv, .tsv"
    )
    assert read("a.foo", "x;y\n1;2\n", options=ReadOptions(delimiter=";"))["x"].tolist() == [1]


def test_a_file_that_may_not_be_read(here: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    (here / "a.csv").write_text("x\n1\n")

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    assert refused("a.csv", None) == [
        "D130 Expected a file that can be read. Received a.csv (Permission denied)."
    ]


def test_empty_files(refused: Refused) -> None:
    for name in ("a.csv", "a.jsonl", "a.parquet", "a.npz"):
        assert refused(name, "") == [f"D131 Expected rows. Received an empty file at {name}."]
    assert refused("a.csv", "\n\r\n") == ["D131 Expected rows. Received an empty file at a.csv."]
    assert refused("a.csv", "x\n") == ["D132 Expected at least one row. Received a header only at a.csv."]
    parquet.write_table(pa.table({"x": pa.array([], pa.float32())}), "a.parquet")
    assert refused("a.parquet", None) == ["D132 Expected at least one row. Received no rows at a.parquet."]
    assert refused("a.csv", "x\nN/A\n", Field(name="x", bad="drop")) == [
        "D143 Expected at least one row that keeps the contract. Received none of 1."
    ]


def test_gzip_and_globs(refused: Refused) -> None:
    for i in range(3):
        Path(f"part-{i}.csv.gz").write_bytes(gzip.compress(f"x\n{i}\n{i + 10}\n".encode()))
    data = load("part-*.csv.gz", Schema.of(X))
    assert data["x"].tolist() == [0, 10, 1, 11, 2, 12]
    assert [str(data.origin(i)) for i in (0, 3)] == ["part-0.csv.gz:2", "part-1.csv.gz:3"]
    assert [f.rows for f in data.report.files] == [2, 2, 2]
    whole = gzip.compress(b"x\n" + b"123\n" * 5000)
    assert refused("a.csv.gz", whole[:-12])[0].startswith(
        "D134 Expected a complete gzip file. Received a damaged"
    )
    assert refused("a.csv.gz", b"x\n1\n")[0].startswith("D134 Expected a complete gzip file.")


def test_errors_of_several_files_are_all_told() -> None:
    Path("a.csv").write_text("x\nN/A\n")
    Path("b.csv").write_text("y\n1\n")
    Path("c.csv").write_text("")
    with pytest.raises(ContractError) as error:
        load(["a.csv", "b.csv", "c.csv"], Schema.of(X))
    assert sorted(f.code for f in error.value.findings) == ["D101", "D120", "D131"]


def test_digests(read: Read) -> None:
    wanted = ReadOptions(digest=True)
    file = read("a.csv", "x\n1\n", options=wanted).report.files[0]
    assert file.blake3 == blake3(b"x\n1\n").hexdigest()
    assert file.bytes == 4
    packed = gzip.compress(b"x\n1\n")
    assert read("a.csv.gz", packed, options=wanted).report.files[0].blake3 == blake3(packed).hexdigest()
    np.savez("a.npz", x=np.zeros(3))
    digest = read("a.npz", None, options=wanted).report.files[0].blake3
    assert digest == blake3(Path("a.npz").read_bytes()).hexdigest()
    assert read("a.csv", "x\n1\n").report.files[0].blake3 == ""


# --- JSON Lines ----------------------------------------------------------------------------------------


def test_a_key_that_is_absent_is_no_null(read: Read, refused: Refused) -> None:
    text = '{"x": 1}\n{"y": 2}\n{"x": null}\n'
    assert refused("a.jsonl", text) == [
        "D124 Expected float32 for field 'x'. Received a row without the key 'x' at a.jsonl:2.",
        "D102 Expected float32 for field 'x'. Received null at a.jsonl:3.",
    ]
    data = read("a.jsonl", text, Field(name="x", missing="drop"))
    assert data["x"].tolist() == [1]
    assert [(f.code, f.severity, f.count) for f in data.report.as_findings()] == [
        ("D124", "warning", 1),
        ("D102", "info", 1),
    ]
    assert refused("a.jsonl", '{"z": 1}\n{"z": 2}\n') == [
        "D120 Expected a column 'x' for field 'x'. Received columns 'z' at a.jsonl."
    ]


def test_json_lines_that_are_no_objects(read: Read, refused: Refused) -> None:
    text = '{"x":1}\n{"x":\n[1]\n\n{"x":1,"x":2}\n{"x":1} {"x":2}\n'
    assert refused("a.jsonl", text) == [
        "D125 Expected one JSON object on the line. Received '{\"x\":' (Expecting value) at a.jsonl:2:1.",
        "D125 Expected one JSON object on the line. Received '[1]' at a.jsonl:3.",
        "D125 Expected one JSON object on the line. Received key 'x' twice at a.jsonl:5.",
        "D125 Expected one JSON object on the line. "
        'Received \'{"x":1} {"x":2}\' (Extra data) at a.jsonl:6:9.',
    ]
    data = read("a.jsonl", text, bad_rows="drop")
    assert data["x"].tolist() == [1]
    assert refused("a.jsonl", '[{"x":1},\n{"x":2}]\n')[0].startswith("D125")


@pytest.mark.parametrize("text", ["null\n", 'null\n{"x": 1}\n', '{"x": 1}\nnull\n', " null", "nullx"])
def test_a_line_of_null_is_no_row(text: str, refused: Refused) -> None:
    assert refused("a.jsonl", text)[0].startswith("D125 Expected one JSON object on the line. Received '")


def test_json_values_of_other_types(read: Read, refused: Refused) -> None:
    text = '{"x": 1}\n{"x": "N/A"}\n{"x": true}\n{"x": [1]}\n{"x": {"a": 1}}\n{"x": "2"}\n'
    assert refused("a.jsonl", text) == [
        "D101 Expected float32 for field 'x'. Received 'N/A' (text) at a.jsonl:2.",
        "D101 Expected float32 for field 'x'. Received true (boolean) at a.jsonl:3.",
        "D116 Expected float32 for field 'x'. Received shape [1] at a.jsonl:4.",
        "D116 Expected float32 for field 'x'. Received a JSON object at a.jsonl:5.",
    ]
    data = read("a.jsonl", '{"x": "0.5"}\n{"x": 1}\n')
    assert data["x"].tolist() == [0.5, 1]
    assert data.report.as_findings()[0].code == "D119"
    assert refused("a.jsonl", '{"t": "a"}\n{"t": 10}\n{"t": "\\ud800"}\n', T) == [
        "D127 Expected text for field 't'. Received 10 (number) at a.jsonl:2.",
        "D127 Expected Unicode text for field 't'. Received '\\ud800', half a surrogate pair at a.jsonl:3.",
    ]


def test_json_numbers_are_read_as_they_are_written(read: Read, refused: Refused) -> None:
    assert refused("a.jsonl", '{"x":16777217}\n{"x":1e400}\n{"x":1e-400}\n{"x":NaN}\n{"x":-Infinity}\n') == [
        "D105 16777217 becomes 16777216 in float32. Expected float32 for field 'x'. "
        "Received '16777217' (text) at a.jsonl:1.",
        "D103 The largest float32 is 3.402823e+38. Expected float32 for field 'x'. "
        "Received '1e400' (text) at a.jsonl:2.",
        "D104 The smallest float32 above zero is 1.401298e-45. Expected float32 for field 'x'. "
        "Received '1e-400' (text) at a.jsonl:3.",
        "D102 Expected float32 for field 'x'. Received 'NaN', which means missing at a.jsonl:4.",
        "D108 Expected float32 for field 'x'. Received '-Infinity' (text) at a.jsonl:5.",
    ]
    assert read("a.jsonl", '{"x":1.0}\n{"x":2}\n', Field(name="x", dtype="int64"))["x"].tolist() == [1, 2]


def test_ragged_lists_are_named(read: Read, refused: Refused) -> None:
    vector = Field(name="x", shape=(3,))
    data = read("a.jsonl", '{"x": [1, 2, 3]}\n{"x": [4, 5, 6.5]}\n', vector)
    assert data["x"].tolist() == [[1, 2, 3], [4, 5, 6.5]]
    text = '{"x": [1, 2, 3]}\n{"x": [4, 5]}\n{"x": 7}\n{"x": null}\n{"x": [1, "a", null]}\n'
    assert refused("a.jsonl", text, vector) == [
        "D116 Expected shape [3] for field 'x'. Received shape [2] at a.jsonl:2.",
        "D116 Expected shape [3] for field 'x'. Received 7 (number) at a.jsonl:3.",
        "D102 Expected float32 [3] for field 'x'. Received null at a.jsonl:4.",
        "D101 Expected float32 [3] for field 'x'. Received 'a' (text) at a.jsonl:5.",
        "D102 Expected float32 [3] for field 'x'. Received null at a.jsonl:5.",
    ]
    square = Field(name="x", shape=(2, 2), dtype="int64")
    assert refused("a.jsonl", '{"x": [[1, 2], [3, 4]]}\n{"x": [[1, 2], [3]]}\n', square) == [
        "D116 Expected shape [2, 2] for field 'x'. Received 2 lists of 1 and 2 at a.jsonl:2."
    ]


def test_strict_json(refused: Refused) -> None:
    assert refused("a.jsonl", '{"x": 1}\n{"x": 2, "k": 3}\n', strict=True) == [
        "D122 Expected the keys of the schema only (x). Received 'k' at a.jsonl:2."
    ]


# --- streams -------------------------------------------------------------------------------------------


def test_batches_are_the_whole_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks.text_blocks, "__kwdefaults__", {"whitespace": False, "block_size": 200})
    Path("a.csv").write_text("x,t\n" + "".join(f"{i if i % 7 else ''},row {i}\n" for i in range(100)))
    schema = Schema.of(Field(name="x", missing="drop"), T)
    whole = load("a.csv", schema)
    pieces = list(load_batches("a.csv", schema))
    assert len(pieces) > 2
    assert np.concatenate([p["x"] for p in pieces]).tolist() == whole["x"].tolist()
    assert [t for p in pieces for t in p.texts("t")] == whole.texts("t")
    origins = [str(p.origin(i)) for p in pieces for i in range(len(p))]
    assert origins == [str(whole.origin(i)) for i in range(len(whole))]
    with pytest.raises(ContractError, match="D101"):
        list(load_batches("a.csv", Schema.of(Field(name="t"))))
    with pytest.raises(ContractError, match="D141"):
        list(load_batches("a.csv", Schema.of(Field(name="x", missing="mean"))))
