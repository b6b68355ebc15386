"""Images and labels in IDX files, as MNIST's are."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from castiron.data import Field, ReadOptions, Schema, load
from castiron.data.readers.idx import labels_of
from castiron.diagnostics import DataError

CODES = {"uint8": 8, "int16": 0x0B, "float32": 0x0D}


def idx(path: Path, values: np.ndarray) -> Path:
    head = struct.pack(f">BBBB{values.ndim}i", 0, 0, CODES[values.dtype.name], values.ndim, *values.shape)
    data = head + values.astype(values.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    images = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3)
    idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([3, 1, 0, 2, 9], np.uint8))
    return idx(tmp_path / "train-images-idx3-ubyte.gz", images)


def schema(shape=(2, 3), **label) -> Schema:
    return Schema.of(
        Field(name="image", role="image", shape=shape),
        Field(name="label", role="target", dtype="int64", **label),
    )


def test_images_with_the_labels_beside_them(pair: Path) -> None:
    data = load(pair, schema(), options=ReadOptions(digest=True))
    assert data.array("image").dtype == np.uint8
    assert data.array("image").shape == (5, 2, 3)
    assert data.array("image")[4].tolist() == [[24, 25, 26], [27, 28, 29]]
    assert data.array("label").tolist() == [3, 1, 0, 2, 9]
    assert data.array("label").dtype == np.int64
    assert [Path(f.file).name[:12] for f in data.report.files] == ["train-images", "train-labels"]
    assert all(f.blake3 and f.rows == 5 for f in data.report.files)
    assert data.origin(3).line == 4


def test_numbers_are_big_endian_in_every_format(tmp_path: Path) -> None:
    values = np.array([[1, -300], [500, 7]])
    for dtype in ("int16", "float32"):
        path = idx(tmp_path / f"{dtype}-images-idx2-ubyte", values.astype(dtype))
        read = load(path, Schema.of(Field(name="image", dtype="float32", shape=(2,))))
        assert (read.array("image") == values).all()


def test_images_without_labels(pair: Path) -> None:
    (pair.parent / "train-labels-idx1-ubyte.gz").unlink()
    assert labels_of(pair) is None
    alone = load(pair, Schema.of(Field(name="image", role="image", shape=(2, 3))))
    assert len(alone) == 5
    with pytest.raises(DataError, match="a column 'label' for field 'label'"):
        load(pair, schema())


def test_a_label_out_of_range_has_its_row(pair: Path) -> None:
    with pytest.raises(DataError, match=r"Received 9 .*row 5"):
        load(pair, schema(minimum=0, maximum=3))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:20], "ends early"),
        (lambda b: b + b"\0", "longer than its head says"),
        (lambda b: b"\1" + b[1:], "does not begin as one"),
        (lambda b: b"", "ends early"),
    ],
)
def test_a_damaged_file(damage, message: str, pair: Path) -> None:
    pair.write_bytes(gzip.compress(damage(gzip.decompress(pair.read_bytes()))))
    with pytest.raises(DataError, match=message):
        load(pair, schema())


def test_shapes_and_numbers_of_rows_must_agree(pair: Path) -> None:
    with pytest.raises(
        DataError, match=r"uint8 \[28, 28\] for field 'image'. Received values of shape \[2, 3\]"
    ):
        load(pair, schema(shape=(28, 28)))
    idx(pair.parent / "train-labels-idx1-ubyte.gz", np.array([1], np.uint8))
    with pytest.raises(DataError, match=r"as many labels as images\. Received 5 in "):
        load(pair, schema())
