"""The machinery below the contract: reading ahead, growing columns, many small blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from castiron.data import Field, Schema, load
from castiron.data.origin import LineIndex, Origins
from castiron.data.readers import text_blocks as blocks
from castiron.data.readers.ahead import ahead, side_by_side
from castiron.data.store import ArrayStore, TextStore


def test_ahead_hands_on_everything_in_order() -> None:
    assert list(ahead(iter(range(50)))) == list(range(50))
    assert list(ahead(iter([]))) == []


def test_ahead_raises_in_its_place() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    items = iter(ahead(broken()))
    assert next(items) == 1
    with pytest.raises(KeyError, match="lost"):
        next(items)


def test_ahead_closes_what_nobody_wants() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    before = threading.active_count()
    items = ahead(endless())
    assert next(iter(items)) == 1
    items.close()  # type: ignore[attr-defined]
    assert closed.wait(5)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_work_side_by_side_comes_out_in_order() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.05 if number == 0 else 0)
        return number * number

    assert list(side_by_side(slow_first, range(20), 3)) == [n * n for n in range(20)]


def test_work_side_by_side_raises_in_its_place_and_runs_no_further() -> None:
    done = []

    def work(number: int) -> int:
        if number == 1:
            raise KeyError("lost")
        done.append(number)
        return number

    results = side_by_side(work, range(1000), 2)
    assert next(iter(results)) == 0
    with pytest.raises(KeyError, match="lost"):
        list(results)
    assert len(done) <= 5


def test_work_side_by_side_does_not_run_away_from_who_wants_it() -> None:
    done: list[int] = []
    results = side_by_side(lambda n: done.append(n) or n, range(1000), 2)
    next(iter(results))
    time.sleep(0.1)
    assert len(done) <= 4
    results.close()  # type: ignore[attr-defined]


def test_an_array_that_grows() -> None:
    store = ArrayStore(np.dtype(np.float32), (2,))
    pieces = [np.full((n, 2), n, dtype=np.float32) for n in (1, 100_000, 0, 70_000)]
    for piece in pieces:
        store.append(piece)
    whole = store.finish()
    assert np.array_equal(whole, np.concatenate(pieces))
    assert whole.base.size == whole.nbytes  # the rest of the room is handed back
    assert whole.flags.writeable
    assert store.finish().shape == (0, 2)


def test_text_that_grows() -> None:
    store = TextStore()
    for words in (["a"], ["b", "c"]):
        store.append(pa.array(words))
    assert store.finish().to_pylist() == ["a", "b", "c"]
    assert store.finish().type == pa.large_string()


def test_many_blocks_with_bad_cells_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    odd = ["N/A", " 7 ", "1e400", "", "0x1F", "+2", "16777217"]
    cells = [
        str(random.choice(odd)) if random.random() < 0.05 else f"{v:.6g}" for v in random.normal(size=3000)
    ]
    path = tmp_path / "a.csv"
    path.write_text("x,n\n" + "".join(f"{c},{i}\n" for i, c in enumerate(cells)))
    schema = Schema.of(Field(name="x", bad="drop", missing="drop"), Field(name="n", role="id"))
    whole = load(path, schema)
    monkeypatch.setattr(blocks.text_blocks, "__kwdefaults__", {"whitespace": False, "block_size": 300})
    pieces = load(path, schema)
    assert np.array_equal(whole["x"], pieces["x"])
    assert whole.report.columns == pieces.report.columns
    good = [i for i, c in enumerate(cells) if c not in ("N/A", "1e400", "", "0x1F", "16777217")]
    assert pieces["n"].tolist() == good
    assert pieces["x"].tolist() == [np.float32(float(cells[i])) for i in good]
    assert [pieces.origin(i).line for i in range(len(good))] == [i + 2 for i in good]


@pytest.mark.parametrize("order", [("t", "n", "x"), ("x", "n", "t"), ("n", "x", "t")])
def test_one_column_for_several_fields(tmp_path: Path, order: tuple[str, ...]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("c,d\n9007199254740993,1\n007,1\n")
    fields = {
        "t": Field(name="t", role="text", column="c"),
        "n": Field(name="n", role="id", column="c"),
        "x": Field(name="x", column="c", dtype="float64", maximum=1e17, bad="missing", missing="nan"),
    }
    data = load(path, Schema(fields=tuple(fields[n] for n in order)))
    assert data.texts("t") == ["9007199254740993", "007"]
    assert data["n"].tolist() == [9007199254740993, 7]
    assert np.isnan(data["x"][0])


def test_lines_are_stored_small() -> None:
    index = LineIndex("a")
    index.add(5, 2)
    index.add(3, np.array([10, 12, 13]))
    index.add(0, 99)
    assert [index.line(i) for i in range(8)] == [2, 3, 4, 5, 6, 10, 12, 13]
    with pytest.raises(IndexError, match="Expected a row from 0 to 7 of a"):
        index.line(8)
    other = LineIndex("b")
    other.add(2, 1)
    origins = Origins([index, other], np.array([0, 7, 9]))
    assert [str(origins[i]) for i in range(3)] == ["a:2", "a:13", "b:2"]
    assert [str(origins.take(np.array([2, 0]))[i]) for i in range(2)] == ["b:2", "a:2"]
