"""What the contract says of single cells: wording and place of every message."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castiron.data import ContractError, DataReport, Dataset, Field, ReadOptions, Schema, check, load
from castiron.formats import number_format
from castiron.policy.sections import CastSection


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a file and load it: `loaded(text, field, …, name="a.csv")`."""
    monkeypatch.chdir(tmp_path)

    def run(content: str | bytes, *fields: Field, name: str = "a.csv", **options: Any) -> Dataset:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        declared = {k: options.pop(k) for k in ("strict", "bad_rows") if k in options}
        return load(name, Schema(fields=fields, **declared), **options)

    return run


def sentences(error: pytest.ExceptionInfo[ContractError]) -> list[str]:
    return [f"{f.code} {f.sentence()}" for f in error.value.findings]


def test_the_message_says_what_where_expected_received_and_remedy(loaded: Any) -> None:
    rows = "".join(f"{i},2\n" for i in range(811))
    with pytest.raises(ContractError) as error:
        loaded(f"n,x,rating\n{rows.replace(',2', ',2,3')}1,2,N/A\n", Field(name="rating"), name="reviews.csv")
    assert str(error.value) == (
        "D101 Expected float32 for field 'rating'. Received 'N/A' (text) at reviews.csv:813, column 3. "
        "Mend the cell, declare the spelling as missing (missing.spellings), or declare `bad: drop`."
    )


@pytest.mark.parametrize(
    ("cell", "dtype", "value"),
    [
        (" 1 ", "float32", 1.0),
        ("+1", "int64", 1),
        ("+1", "float64", 1.0),
        ("1e3", "int64", 1000),
        ("1.0", "int64", 1),
        ("5.", "int8", 5),
        (".5", "float16", 0.5),
        ("-0.0", "int64", 0),
        ('"7"', "int64", 7),
        ("\t7", "float32", 7.0),
        ("007", "int64", 7),
        ("9007199254740993", "int64", 9007199254740993),
        ("-9223372036854775808", "int64", -(2**63)),
        ("18446744073709551615", "uint64", 2**64 - 1),
        ("1.8446744073709551615e19", "uint64", 2**64 - 1),
        ("16777216", "float32", 16777216.0),
        ("16777217.0", "float32", 16777216.0),  # a measurement, rounded
        ("1e-300", "float64", 1e-300),
        ("0e-999", "float32", 0.0),
        ("0.000", "float32", 0.0),
        ("0.1", "float32", float(np.float32(0.1))),
        ("yes", "bool", True),
        ("F", "bool", False),
        ("1.0", "bool", True),
    ],
)
def test_a_cell_that_is_read(loaded: Any, cell: str, dtype: Any, value: Any) -> None:
    data = loaded(f"x,y\n{cell},1\n1,1\n", Field(name="x", dtype=dtype))
    assert data["x"].dtype == number_format(dtype).numpy_dtype
    assert data["x"][0].item() == value
    assert math.copysign(1, data["x"][0].item()) == math.copysign(1, value)


@pytest.mark.parametrize(
    ("cell", "dtype", "said"),
    [
        (
            "N/A",
            "float32",
            "D101 Expected float32 for field 'x'. Received 'N/A' (text) at a.csv:3, column 1.",
        ),
        ("?", "int64", "D101 Expected int64 for field 'x'. Received '?' (text) at a.csv:3, column 1."),
        (" ?", "float32", "D101 Expected float32 for field 'x'. Received ' ?' (text) at a.csv:3, column 1."),
        (
            "1_000",
            "int64",
            "D101 Expected int64 for field 'x'. Received '1_000' (text) at a.csv:3, column 1.",
        ),
        ("1_000", "float32", "D101 Expected float32 for field 'x'. Received '1_000' (text)"),
        ("0x10", "int64", "D101 Expected int64 for field 'x'. Received '0x10' (text) at a.csv:3, column 1."),
        ("0X1p3", "float32", "D101 Expected float32 for field 'x'. Received '0X1p3' (text)"),
        ("１２", "int64", "D101 Expected int64 for field 'x'. Received '１２' (text) at a.csv:3, column 1."),
        ("1\x00", "float32", "D101 Expected float32 for field 'x'. Received '1\\x00' (text)"),
        ("12 kg", "float32", "D101 Expected float32 for field 'x'. Received '12 kg' (text)"),
        ("true", "float32", "D101 Expected float32 for field 'x'. Received 'true' (text)"),
        ("-", "int64", "D101 Expected int64 for field 'x'. Received '-' (text)"),
        ("", "float32", "D102 Expected float32 for field 'x'. Received an empty cell at a.csv:3, column 1."),
        (" ", "float32", "D102 Expected float32 for field 'x'. Received ' ', which means missing at a.csv:3"),
        ("nan", "float32", "D102 Expected float32 for field 'x'. Received 'nan', which means missing"),
        ("-NaN", "int64", "D102 Expected int64 for field 'x'. Received '-NaN', which means missing"),
        ("1e39", "float32", "D103 The largest float32 is 3.402823e+38. Expected float32 for field 'x'."),
        ("1e400", "float64", "D103 The largest float64 is 1.797693e+308. Expected float64"),
        ("70000", "float16", "D103 The largest float16 is 65504. Expected float16 for field 'x'."),
        ("1e-50", "float32", "D104 The smallest float32 above zero is 1.401298e-45. Expected float32"),
        ("-1e-400", "float64", "D104 The smallest float64 above zero is 4.940656e-324. Expected float64"),
        (f"0.{'0' * 400}1", "float64", "D104 The smallest float64 above zero is 4.940656e-324."),
        ("16777217", "float32", "D105 16777217 becomes 16777216 in float32. Expected float32 for field 'x'."),
        ("2049", "float16", "D105 2049 becomes 2048 in float16."),
        ("257", "bfloat16", "D105 257 becomes 256 in bfloat16."),
        ("9007199254740993", "float64", "D105 Integers beyond 9,007,199,254,740,992 are not all float64"),
        ("1.5", "int64", "D106 Expected int64 for field 'x'. Received '1.5' (text) at a.csv:3, column 1."),
        ("1.00000000000000000001", "int64", "D106 Expected int64"),
        ("1e-5", "int64", "D106 Expected int64"),
        (
            "200",
            "int8",
            "D107 Expected an integer from -128 to 127 (int8) for field 'x'. Received '200' (text)",
        ),
        ("-1", "uint64", "D107 Expected an integer from 0 to 18446744073709551615 (uint64) for field 'x'."),
        ("9223372036854775808", "int64", "D107 Expected an integer from -9223372036854775808 to"),
        ("1e999999999999", "int64", "D107 Expected an integer from"),
        (
            "inf",
            "float32",
            "D108 Expected float32 for field 'x'. Received 'inf' (text) at a.csv:3, column 1.",
        ),
        ("-Infinity", "int64", "D108 Expected int64 for field 'x'. Received '-Infinity' (text)"),
        (
            "2",
            "bool",
            "D115 Expected bool (true or false, yes or no, 1 or 0) for field 'x'. Received '2' (text)",
        ),
    ],
)
def test_a_cell_that_is_refused(loaded: Any, cell: str, dtype: Any, said: str) -> None:
    with pytest.raises(ContractError) as error:
        loaded(f"x,y\n1,1\n{cell},1\n0,1\n", Field(name="x", dtype=dtype))
    assert len(error.value.findings) == 1
    assert sentences(error)[0].startswith(said)
    assert error.value.findings[0].place.line == 3
    assert error.value.report.bad_cells_total == 1


def test_ids_never_go_through_a_float(loaded: Any) -> None:
    ids = [9007199254740993, 2**63 - 1, -(2**63) + 1]
    column = "\n".join(map(str, ids))
    field = Field(name="x", role="id")
    assert loaded(f"x\n{column}\n", field)["x"].tolist() == ids
    lines = "".join(f'{{"x": {i}}}\n' for i in ids)
    assert loaded(lines, field, name="a.jsonl")["x"].tolist() == ids
    texts = "".join(f'{{"x": "{i}"}}\n' for i in ids)
    assert loaded(texts, field, name="a.jsonl")["x"].tolist() == ids
    with pytest.raises(ValueError, match="is an id: expected an integer dtype"):
        Field(name="x", role="id", dtype="float32")


def test_text_is_never_guessed(loaded: Any) -> None:
    words = ["true", "10", "1987", "nothing", "NA", "null", "nan", "0x10", " a ", "1e5"]
    data = loaded("x\n" + "\n".join(words) + "\n", Field(name="x", role="text"))
    assert data.texts("x") == words
    with pytest.raises(ContractError, match=r"Received an empty cell at a\.csv:2, column 1"):
        loaded("x,y\n,1\n", Field(name="x", role="text"))


def test_all_bad_cells_are_collected_and_the_first_twenty_shown(loaded: Any) -> None:
    with pytest.raises(ContractError) as error:
        loaded("x,y\n" + "bad,1\n" * 30 + "1,z\n", Field(name="x"), Field(name="y"))
    findings, report = error.value.findings, error.value.report
    assert len(findings) == 22
    assert [f.place.line for f in findings[:20]] == list(range(2, 22))
    assert str(findings[20]).startswith(
        "D101 Field 'x' has more cells like this. Expected float32 for field 'x'. "
        "Received 'bad' (text), first at a.csv:22, column 1. (10 times)"
    )
    assert findings[21].place.field == "y"
    assert report.bad_cells_total == 31
    assert [(c.line, c.column, c.code) for c in report.bad_cells[29:]] == [(31, 1, "D101"), (32, 2, "D101")]
    assert DataReport.model_validate_json(report.model_dump_json()) == report


def test_a_categorys_near_miss_is_named(loaded: Any) -> None:
    label = Field(name="income", role="target", categories=["<=50K", ">50K"])
    with pytest.raises(ContractError) as error:
        loaded("income\n <=50K\n <=50K.\n", label)
    assert sentences(error) == [
        "D114 Expected a category of field 'income' ('<=50K', '>50K'). "
        "Received ' <=50K.' (text), close to '<=50K' at a.csv:3, column 1."
    ]
    several = Field(name="income", role="target", categories={"<=50K": 0, "<=50K.": 0, ">50K": 1})
    assert loaded("income\n <=50K\n <=50K.\n>50K\n", several)["income"].tolist() == [0, 0, 1]


def test_categories_that_are_numbers(loaded: Any) -> None:
    label = Field(name="x", role="target", categories={2: 0, 4: 1})
    assert loaded("x\n2\n4\n 2\n", label)["x"].tolist() == [0, 1, 0]
    assert loaded('{"x": 2}\n{"x": 4}\n', label, name="a.jsonl")["x"].tolist() == [0, 1]
    assert loaded('{"x": "2"}\n{"x": 4}\n', label, name="a.jsonl")["x"].tolist() == [0, 1]


def test_range(loaded: Any) -> None:
    field = Field(name="x", minimum=0, maximum=4)
    assert loaded("x\n0\n4\n2.5\n", field)["x"].tolist() == [0, 4, 2.5]
    with pytest.raises(ContractError) as error:
        loaded("x\n-999\n4.0000001\n", field)
    assert sentences(error) == [
        "D113 Expected a value from 0 to 4 for field 'x'. Received '-999' (text) at a.csv:2, column 1.",
        "D113 Expected a value from 0 to 4 for field 'x'. Received '4.0000001' (text) at a.csv:3, column 1.",
    ]


def test_tolerance(loaded: Any) -> None:
    with pytest.raises(ContractError) as error:
        loaded("x\n0.5\n0.1\n", Field(name="x", dtype="bfloat16", tolerance=1e-4))
    assert sentences(error) == [
        "D109 0.1 becomes 0.10009765625, a relative error of 0.000977. Expected bfloat16 for field 'x'. "
        "Received '0.1' (text) at a.csv:3, column 1."
    ]


def test_bad_cells_that_are_dropped_or_replaced(loaded: Any) -> None:
    text = "x,n\n1,a\nN/A,b\n3,c\n100,d\n1e400,e\n"
    kept = loaded(text, Field(name="x", bad="drop", maximum=50), Field(name="n", role="text"))
    assert kept["x"].tolist() == [1, 3]
    assert kept.texts("n") == ["a", "c"]
    assert [str(kept.origin(i)) for i in range(2)] == ["a.csv:2", "a.csv:4"]
    assert (kept.report.rows_read, kept.report.rows, kept.report.dropped) == (5, 2, 3)
    assert {f.severity for f in kept.report.as_findings()} == {"info"}
    filled = loaded(text, Field(name="x", bad="missing", missing="mean", maximum=50))
    assert filled["x"].tolist() == [1, 2, 3, 2, 2]
    said = filled.report.as_findings()[0].sentence()
    assert said.startswith("A cell of field 'x' becomes the mean of the training data, 2, as declared.")


def test_what_the_policy_says_of_casts(loaded: Any) -> None:
    x = Field(name="x")
    with pytest.raises(ContractError) as error:
        loaded("x\n0.10\n", x, casts=CastSection(rounding="error"))
    assert sentences(error) == [
        "D110 0.1 is rounded to 0.10000000149011612. Expected float32 for field 'x'. "
        "Received '0.10' (text) at a.csv:2, column 1."
    ]
    kept = loaded("x,y\n16777217,1\n,2\n", x, casts=CastSection(lossy="report", missing="report"))
    assert kept["x"][0] == 16777216
    assert np.isnan(kept["x"][1])
    assert [(f.code, f.severity) for f in kept.report.as_findings()] == [
        ("D105", "warning"),
        ("D102", "warning"),
    ]
    with pytest.raises(ContractError, match="D101"):
        loaded("x\nN/A\n", x, casts=CastSection(lossy="report", missing="report"))


def test_infinity_where_it_is_allowed(loaded: Any) -> None:
    data = loaded("x\ninf\n-inf\n1\n", Field(name="x", dtype="float16", finite=False))
    assert data["x"].tolist() == [math.inf, -math.inf, 1.0]


def test_the_counts_of_the_report(loaded: Any) -> None:
    text = "x,y\n" + "0.5,1\n0.1,2\n1e-6,3\n,4\n2049,5\nno,6\n"
    schema = Schema.of(Field(name="x", dtype="float16"))
    with pytest.raises(ContractError) as error:
        loaded(text, *schema.fields)
    column = error.value.report.columns[0]
    counts = (column.exact, column.rounded, column.subnormal, column.lossy, column.missing, column.bad)
    assert counts == (1, 2, 1, 1, 1, 1)
    assert column.values == column.rows == 6
    assert column.source_dtype == "text"
    assert column.target_dtype == "float16"
    assert (column.minimum, column.maximum) == pytest.approx((1e-6, 0.5), rel=0.05)
    assert check("a.csv", schema) == error.value.report


def oracle(text: str, dtype: str) -> str:
    """exact, rounded, lossy, bad or missing: by Python's own arithmetic, cell by cell."""
    form, cell = number_format(dtype), text.strip(" \t")
    if cell == "" or (cell.lower().lstrip("+-") == "nan" and len(cell) <= 4):
        return "missing"
    body = cell.lstrip("+-") if cell[:1] in "+-" and cell[1:2] not in "+-" else cell
    if body.lower() in ("inf", "infinity"):
        return "bad" if form.is_float else "lossy"
    try:
        exact = Fraction(Decimal(cell))
    except (ArithmeticError, ValueError):
        return "bad"
    if not cell.isascii() or "_" in cell:
        return "bad"
    if form.is_integer:
        return "exact" if exact.denominator == 1 and form.min <= exact <= form.max else "lossy"
    wide = float(cell)
    with np.errstate(all="ignore"):
        narrow = float(np.float64(wide).astype(form.numpy_dtype))
    whole = body.isdigit()
    if math.isinf(narrow) or (narrow == 0 and exact != 0):
        return "lossy"
    if whole and Fraction(narrow) != exact:
        return "lossy"
    return "exact" if narrow == wide else "rounded"


digits = st.text("0123456789", min_size=1, max_size=21)
numbers = st.builds(
    lambda sign, whole, point, part, exponent: f"{sign}{whole}{point}{part if point else ''}{exponent}",
    st.sampled_from(["", "-", "+"]),
    digits,
    st.sampled_from(["", "."]),
    st.one_of(st.just(""), digits),
    st.one_of(st.just(""), st.integers(-330, 330).map(lambda e: f"e{e}")),
)
odd = st.sampled_from(
    ["", " ", "nan", "NaN", "inf", "-Infinity", "N/A", "1_0", "0x1F", "1e", ".", "+", "--1", "1 2", " 5 ",
     "１",
     "16777216", "16777217", "9007199254740993", "2049", "1.0", "-0.0", "1e-46", "65520", "1e400"]
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "uint64", "int8"])
@settings(max_examples=60, deadline=None)
@given(cells=st.lists(st.one_of(numbers, odd), min_size=1, max_size=12))
def test_every_cell_is_judged_as_the_oracle_does(
    dtype: Any, cells: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cells") / "a.csv"
    path.write_text("x,y\n" + "".join(f"{c},1\n" for c in cells), encoding="utf-8")
    report = check(path, Schema.of(Field(name="x", dtype=dtype)), options=ReadOptions(digest=False))
    expected = [oracle(c, dtype) for c in cells]
    column = report.columns[0]
    counts = {k: getattr(column, k) for k in ("exact", "rounded", "lossy", "bad", "missing")}
    assert counts == {k: expected.count(k) for k in counts}
    refused = [i + 2 for i, e in enumerate(expected) if e in ("lossy", "bad", "missing")]
    assert sorted(c.line or 0 for c in report.bad_cells) == refused
