"""Files that are meant to fill memory, to hang a reader, or to change under it."""

from __future__ import annotations

import gzip
import io
import os
import resource
import socket
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from castiron.data import Field, ReadOptions, Schema, load
from castiron.data import files as data_files
from castiron.data.readers import parquet_texts
from castiron.data.readers.files import DataFile
from castiron.diagnostics import DataError

X = Schema.of(Field(name="x", role="feature", dtype="float32"))
TEXT = Schema.of(Field(name="text", role="text"))


def refusal(path: Path, schema: Schema = X, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load([path], schema, options=ReadOptions(**options))
    assert len(caught.value.findings) == 1
    assert caught.value.exit_code == 2
    return str(caught.value.findings[0])


# --- rows without end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt", ".csv.gz"])
def test_a_row_that_is_too_long_is_refused(tmp_path: Path, suffix: str) -> None:
    head = {".jsonl": b'{"text": "a"}\n', ".txt": b"text\n"}.get(suffix, b"text\nword\n")
    long = b'{"text": "' + b"a" * 3000 + b'"}' if suffix == ".jsonl" else b"a" * 3000
    path = tmp_path / f"long{suffix}"
    content = head + long + b"\n"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert len(load([path], TEXT)) > 0  # it is the limit that refuses it
    line = 1 + head.count(b"\n")
    told = refusal(path, TEXT, largest_row=2000)
    assert told.startswith(
        f"D137 Expected rows of at most 2,000 bytes. Received a longer one at {path}:{line}. Look at the"
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
def test_a_file_without_line_breaks_is_not_read_to_its_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"endless{suffix}"
    with open(path, "wb") as file:
        file.truncate(1 << 30)  # a GiB of zeros that takes no disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(path, TEXT, largest_row=4 << 20).startswith(
        "D137 Expected rows of at most 4,194,304 bytes."
    )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 << 10, f"{grown >> 10} MiB for rows of 4"


def test_a_row_of_an_array_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.npz"
    np.savez(path, text=np.array(["a" * 1000]))
    told = refusal(path, TEXT, largest_row=2000)
    assert told.startswith(f"D137 Expected rows of at most 2,000 bytes. Received a longer one at {path}.")


# --- very many columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_very_many_columns(tmp_path: Path, suffix: str) -> None:
    n = 50_000
    path = tmp_path / f"wide{suffix}"
    if suffix == ".csv":
        row = ",".join("1" * n)
        path.write_text(",".join(f"c{i}" for i in range(n)) + f"\n{row}\n{row}\n")
    else:
        row = "{" + ", ".join(f'"c{i}": 1' for i in range(n)) + "}\n"
        path.write_text(row * 2)
    schema = Schema.of(Field(name="x", role="feature", column="c7"), Field(name="y", column=f"c{n - 1}"))
    began = time.process_time()
    found = load([path], schema)
    assert found.columns["y"].tolist() == [1.0, 1.0]
    assert len(found.report.extra_columns) == n - 2
    told = refusal(path)
    assert told.startswith("D120 Expected a column 'x' for field 'x'. Received columns 'c0', 'c1',")
    assert f"and {n - 12} more" in told
    assert len(told) < 600
    assert time.process_time() - began < 30


# --- files that expand --------------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte in place of a GiB that any file may expand to."""
    monkeypatch.setattr(data_files, "FREE", 1 << 20)


@pytest.mark.usefixtures("free")
def test_a_gzip_that_expands_beyond_measure_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"x\n" + b"0\n" * (4 << 20)))
    told = refusal(path)
    packed = path.stat().st_size
    assert told.startswith(f"D138 Expected at most 1 GiB, or 200 times the {packed:,} bytes stored.")
    assert told.endswith(
        f"bytes or more at {path}. Do not use the file, unless you know why it expands so far: then set "
        "data.read.largest_expansion higher."
    )
    assert len(load([path], X, options=ReadOptions(largest_expansion=1100))) == 4 << 20
    blank = tmp_path / "blank.csv.gz"  # no rows at all, and yet no end
    blank.write_bytes(gzip.compress(b"x\n1\n" + b"\n" * (8 << 20)))
    assert refusal(blank).startswith("D138")


@pytest.mark.usefixtures("free")
def test_an_archive_that_expands_beyond_measure_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros(1 << 21, np.float32))
    assert "bytes in 'x' or more" in (told := refusal(path))
    assert told.startswith("D138")
    assert len(load([path], X, options=ReadOptions(largest_expansion=1100))) == 1 << 21
    packed = tmp_path / "bomb.npz.gz"
    plain = io.BytesIO()
    np.savez(plain, x=np.zeros(1 << 21, np.float32))
    packed.write_bytes(gzip.compress(plain.getvalue()))
    assert refusal(packed).startswith("D138")


@pytest.mark.usefixtures("free")
def test_a_parquet_file_of_repeated_values_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"x": np.zeros(1 << 21)}), path)
    assert "bytes in 2,097,152 rows or more" in (told := refusal(path))
    assert told.startswith("D138")


def written_texts(path: Path, texts: Any, **options: Any) -> Path:
    pq.write_table(pa.table({"text": texts}), path, store_schema=False, **options)
    return path


@pytest.mark.usefixtures("free")
def test_texts_that_stand_once_in_a_parquet_file_and_are_repeated(tmp_path: Path) -> None:
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 5_000, pa.int32()), pa.array(["x" * 10_000]))
    path = written_texts(tmp_path / "bomb.parquet", one)
    assert path.stat().st_size < 10_000
    assert "bytes of text or more" in (told := refusal(path, TEXT))
    assert told.startswith("D138")
    packed = written_texts(tmp_path / "packed.parquet", ["x" * 3_000_000], compression="zstd")
    assert refusal(packed, TEXT).startswith("D138")  # its own words on its size are enough


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_long_text_in_parquet_is_refused(tmp_path: Path, dictionary: bool) -> None:
    texts = [*(f"word {n}" for n in range(1000)), "x" * 3000]
    path = written_texts(tmp_path / "long.parquet", texts, use_dictionary=dictionary)
    assert len(load([path], TEXT)) == 1001
    told = refusal(path, TEXT, largest_row=2000)
    assert told.startswith("D137 Expected rows of at most 2,000 bytes. Received a longer one at ")
    assert (f"{path}:1001" in told) is not dictionary  # a dictionary is looked at before any row


def test_long_texts_are_read_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{n} " + "x" * (n % 500) for n in range(1000)]
    path = written_texts(tmp_path / "texts.parquet", texts)
    monkeypatch.setattr(parquet_texts, "_MEMORY", 10_000)
    sizes: list[int] = []
    checked = parquet_texts.TextBounds.checked

    def counted(self: Any, batch: pa.RecordBatch, row: int) -> pa.RecordBatch:
        sizes.append(batch.num_rows)
        return checked(self, batch, row)

    monkeypatch.setattr(parquet_texts.TextBounds, "checked", counted)
    assert load([path], TEXT).columns["text"].to_pylist() == texts
    assert max(sizes) == 10_000 // 503


def test_an_archive_that_lies_about_its_size(tmp_path: Path) -> None:
    plain = io.BytesIO()
    np.save(plain, np.zeros(10, np.float32))
    path = tmp_path / "lies.npz"
    for shape in (b"(1000000000,), }", b"(10 ,  10 10 1 }"):
        lies = plain.getvalue().replace(b"(10,), }" + b" " * 8, shape)
        assert lies != plain.getvalue()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", lies)
        assert refusal(path).startswith("D134 Expected a NumPy archive (.npz). Received a damaged one")


# --- what is no file ----------------------------------------------------------------------------------------


def test_pipes_sockets_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe.csv", tmp_path / "folder.csv"
    os.mkfifo(pipe)
    folder.mkdir()
    assert refusal(pipe) == (
        f"D130 Expected a file. Received the pipe {pipe}. Write what comes out of it to a file: data is read "
        "more than once."
    )
    assert refusal(folder).startswith(f"D130 Expected a file. Received the folder {folder}.")
    assert "Received the device /dev/zero" in refusal(Path("/dev/zero"), format="csv")
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(tmp_path)
        listening.bind("socket.csv")
        assert "Received the socket socket.csv" in refusal(Path("socket.csv"))
    with pytest.raises(DataError, match="no match"):
        load([tmp_path / "p*.csv"], X)


# --- files that change --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_a_file_that_is_written_to_while_it_is_read(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"changing{suffix}"
    values = np.arange(300_000, dtype=np.float32)
    if suffix == ".csv":
        path.write_text("x\n" + "".join(f"{v}\n" for v in values))
    elif suffix == ".parquet":
        pq.write_table(pa.table({"x": values}), path)
    else:
        np.savez(path, x=values)
    opened = DataFile._opened

    @contextmanager
    def with_writer(file: DataFile) -> Iterator[IO[bytes]]:
        with opened(file) as found:
            with open(path, "ab") as more:
                more.write(b"1.5\n")
            yield found

    monkeypatch.setattr(DataFile, "_opened", with_writer)
    before = path.stat().st_size
    told = refusal(path)
    assert told == (
        f"D139 Expected a file that stays as it is ({before:,} bytes at first). Received one that was "
        f"written to meanwhile ({before + 4:,} bytes in the end) at {path}. Wait until the file is complete, "
        "then start again."
    )
