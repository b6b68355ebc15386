"""Windows of a series, alone and in batches."""

from __future__ import annotations

import numpy as np
import pytest

from castiron.data import Batches, Windows
from castiron.data.windows import last_known
from castiron.diagnostics import DataError

SERIES = np.arange(20, dtype=np.float32).reshape(10, 2)


def test_windows_are_stretches_of_the_series() -> None:
    windows = Windows(SERIES, np.array([0, 3, 7]), 3)
    assert windows.shape == (3, 3, 2)
    assert (len(windows), windows.ndim, windows.nbytes) == (3, 3, 3 * 3 * 2 * 4)
    assert (windows.take([2, 0]) == np.stack([SERIES[7:10], SERIES[:3]])).all()
    assert repr(windows) == "Windows(3 windows of 3 rows, float32)"
    with pytest.raises(ValueError, match=r"Expected axis 0. Received 1."):
        windows.take([0], axis=1)


@pytest.mark.parametrize("starts", [[-1], [8], [0, 9]])
def test_windows_end_with_the_series(starts) -> None:
    with pytest.raises(ValueError, match="Expected windows of 3 rows within a series of 10"):
        Windows(SERIES, np.array(starts), 3)
    with pytest.raises(ValueError, match="at least 1 row"):
        Windows(SERIES, np.array([0]), 0)
    with pytest.raises(TypeError, match="one-dimensional int64"):
        Windows(SERIES, np.array([0.0]), 3)


def test_batches_of_windows_resume_and_shuffle_like_others() -> None:
    starts = np.arange(2, 8)
    columns = {"past": Windows(SERIES, starts, 2), "next": Windows(SERIES, starts + 2, 1)}
    batches = Batches(columns, 4, shuffle=True, seed=1, row_numbers=starts)
    seen = list(batches)
    assert sorted(np.concatenate([b["row"] for b in seen])) == starts.tolist()
    for batch in seen:
        assert batch["past"].shape[1:] == (2, 2)
        assert (batch["past"] == SERIES[batch["row"][:, None] + [0, 1]]).all()
        assert (batch["next"][:, 0] == SERIES[batch["row"] + 2]).all()
    other = Batches(columns, 4, shuffle=True, seed=1, row_numbers=starts)
    next(iter(other))
    again = Batches(columns, 4, shuffle=True, seed=1, row_numbers=starts)
    again.load_state_dict(other.state_dict())
    assert [b["row"].tolist() for b in again] == [seen[1]["row"].tolist()]


def test_formats_of_windows_are_checked_like_others() -> None:
    with pytest.raises(DataError, match="float64, and no field declares it"):
        Batches({"x": Windows(SERIES.astype(np.float64), np.array([0]), 2)}, 1)
    swapped = Windows(SERIES.astype(">f4"), np.array([0]), 2)
    (batch,) = Batches({"x": swapped}, 1)
    assert batch["x"].dtype.isnative
    assert (batch["x"][0] == SERIES[:2]).all()


def test_gaps_take_the_last_known_number() -> None:
    nan = np.nan
    series = np.array([[nan, 1], [2, nan], [nan, nan], [5, 3]])
    assert last_known(series).tolist() == [[2, 1], [2, 1], [2, 1], [5, 3]]
