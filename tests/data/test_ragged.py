"""Ragged against the plain Python lists that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castiron.data.ragged import Ragged

INT64 = st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(st.lists(INT64, max_size=7), max_size=12)


@st.composite
def rows_and_indices(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    rows = draw(ROWS.filter(bool))
    return rows, draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=20))


def as_lists(ragged: Ragged) -> list[list[int]]:
    return [row.tolist() for row in ragged]


@given(ROWS)
def test_it_holds_the_rows_it_was_made_of(rows: list[list[int]]) -> None:
    ragged = Ragged.from_rows(rows)
    assert as_lists(ragged) == rows
    assert len(ragged) == len(rows)
    assert ragged.lengths.tolist() == [len(r) for r in rows]
    assert ragged.values.dtype == ragged.offsets.dtype == ragged.lengths.dtype == np.int64


@given(rows_and_indices())
def test_take_selects_rows_in_the_order_asked_for(case: tuple[list[list[int]], list[int]]) -> None:
    rows, indices = case
    assert as_lists(Ragged.from_rows(rows).take(np.array(indices, np.int64))) == [rows[i] for i in indices]


@given(rows_and_indices(), st.none() | st.integers(0, 9), st.sampled_from([0, -1, 7]))
def test_pad_fills_up_on_the_right(
    case: tuple[list[list[int]], list[int]], length: int | None, value: int
) -> None:
    rows, indices = case
    padded, lengths = Ragged.from_rows(rows).pad(indices, length, value)
    chosen = [rows[i] if length is None else rows[i][:length] for i in indices]
    width = max(map(len, chosen), default=0) if length is None else length
    assert padded.shape == (len(indices), width)
    assert padded.dtype == lengths.dtype == np.int64
    assert padded.tolist() == [row + [value] * (width - len(row)) for row in chosen]
    assert lengths.tolist() == [len(row) for row in chosen]


@given(st.lists(ROWS, max_size=4))
def test_concatenate_keeps_every_row(parts: list[list[list[int]]]) -> None:
    joined = Ragged.concatenate([Ragged.from_rows(part) for part in parts])
    assert as_lists(joined) == [row for part in parts for row in part]


@given(ROWS, st.integers(0, 6), st.integers(0, 6))
def test_truncate_keeps_head_and_tail(rows: list[list[int]], head: int, tail: int) -> None:
    cut = Ragged.from_rows(rows).truncate(head + tail, tail=tail)
    assert as_lists(cut) == [r if len(r) <= head + tail else r[:head] + r[len(r) - tail :] for r in rows]


def test_a_mask_selects_rows() -> None:
    ragged = Ragged.from_rows([[1], [2, 3], []])
    assert as_lists(ragged.take([True, False, True])) == [[1], []]


def test_pad_of_everything_and_equality() -> None:
    ragged = Ragged.from_rows([[1], [2, 3]])
    assert ragged.pad()[0].tolist() == [[1, 0], [2, 3]]
    assert ragged == Ragged.from_rows([[1], [2, 3]])
    assert ragged != Ragged.from_rows([[1, 2], [3]])
    assert repr(ragged) == "Ragged(2 rows, 3 values, longest 2)"


def test_pad_does_not_change_what_it_pads() -> None:
    ragged = Ragged.from_rows([[5], [6, 7]])
    ragged.pad(value=9)[0][:] = 0
    assert ragged.values.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        (
            np.zeros(2, np.int32),
            np.array([0, 2]),
            "values as a one-dimensional int64 array. Received int32",
        ),
        ([1, 2], np.array([0, 2]), "Received list"),
        (np.zeros((1, 2), np.int64), np.array([0, 2]), r"Received int64 of shape \(1, 2\)"),
    ],
)
def test_other_arrays_are_refused(values: object, offsets: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Ragged(values, offsets)  # type: ignore[arg-type]


@pytest.mark.parametrize("offsets", [[], [1, 2], [0, 1], [0, 2, 1, 2]])
def test_offsets_must_describe_the_values(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="Expected offsets that begin with 0, never fall"):
        Ragged(np.zeros(2, np.int64), np.array(offsets, np.int64))


@pytest.mark.parametrize("index", [3, -4])
def test_rows_out_of_range_are_refused(index: int) -> None:
    ragged = Ragged.from_rows([[1], [2], [3]])
    for select in (ragged.take, ragged.pad):
        with pytest.raises(IndexError, match=f"index {index} is out of bounds for axis 0 with size 3"):
            select([0, index])


@pytest.mark.parametrize("indices", [[0.5], [[0]], [True, False]])
def test_indices_are_integers_or_a_mask(indices: list[object]) -> None:
    with pytest.raises(IndexError, match=r"Expected integers \[M\], or bool \[1\]. Received "):
        Ragged.from_rows([[1]]).take(indices)
