"""Batches: formats, order, resume, shares of ranks; and grain, which reads them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from castiron.data.batches import Batches
from castiron.data.order import Ordering
from castiron.data.ragged import Ragged
from castiron.diagnostics import DataError


def columns(rows: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 30, rows)
    return {
        "text": Ragged.from_lengths(random.integers(2, 99, lengths.sum()), lengths),
        "label": random.integers(0, 2, rows),
        "x": random.random((rows, 3), np.float32),
    }


def rows_of(batches: Batches) -> list[int]:
    return [row for batch in batches for row in batch["row"].tolist()]


def same(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(first, second, strict=True)
    )


# --- what a batch is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "bucket_by": "text"}])
def test_a_batch_holds_the_rows_it_names(options: dict[str, Any]) -> None:
    data = columns(203)
    for batch in Batches(data, 16, **options):
        assert list(batch) == ["text", "text_length", "label", "x", "row"]
        rows = batch["row"]
        tokens, lengths = data["text"].pad(rows)
        assert np.array_equal(batch["text"], tokens)
        assert np.array_equal(batch["text_length"], lengths)
        assert np.array_equal(batch["label"], data["label"][rows])
        assert np.array_equal(batch["x"], data["x"][rows])
        assert {k: v.dtype.name for k, v in batch.items()} == {
            "text": "int64", "text_length": "int64", "label": "int64", "x": "float32", "row": "int64",
        }  # fmt: skip


def test_formats_stay_as_declared() -> None:
    data = {
        "half": np.zeros(4, np.float16),
        "brain": np.zeros(4, ml_dtypes.bfloat16),
        "eight": np.zeros((4, 2), ml_dtypes.float8_e4m3fn),
        "image": np.zeros((4, 2, 2), np.uint8),
        "mask": np.zeros(4, bool),
        "wide": np.zeros(4),
    }
    (batch,) = Batches(data, 4, allow_float64={"wide"})
    assert {name: batch[name].dtype for name in data} == {name: data[name].dtype for name in data}


def test_a_foreign_byte_order_becomes_the_machines() -> None:
    (batch,) = Batches({"x": np.array([1.5, -2.0], ">f4")}, 2)
    assert batch["x"].dtype == np.dtype("float32")
    assert batch["x"].dtype.isnative
    assert batch["x"].tolist() == [1.5, -2.0]


def test_changing_a_batch_changes_neither_the_data_nor_other_batches() -> None:
    data = {"x": np.arange(6, dtype=np.float32), "t": Ragged.from_rows([[1], [2], [3], [4], [5], [6]])}
    batches = Batches(data, 2)
    for batch in batches:
        for array in batch.values():
            array[:] = 0
    assert [batch["x"].tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]
    assert [batch["t"].tolist() for batch in batches] == [[[1], [2]], [[3], [4]], [[5], [6]]]
    assert rows_of(batches) == list(range(6))


def test_row_numbers_of_a_part_are_those_of_the_whole() -> None:
    batches = Batches({"x": np.zeros(3, np.float32)}, 2, row_numbers=np.array([7, 5, 9]))
    assert rows_of(batches) == [7, 5, 9]


# --- what is refused ---------------------------------------------------------------------------------


def refusal(data: dict[str, Any], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        Batches(data, 2, **options)
    return str(caught.value)


def test_float64_is_refused_unless_declared() -> None:
    message = refusal({"rating": np.zeros((2, 3))})
    assert message == (
        "D151 Column 'rating' is float64, and no field declares it. Expected the declared dtype, such as "
        "float32. Received float64 [2, 3] at field 'rating'. Cast the column to its field's dtype, or "
        "declare it: dtype: float64 in the schema."
    )
    (batch,) = Batches({"rating": np.zeros((2, 3))}, 2, allow_float64="rating")
    assert batch["rating"].dtype == np.float64


@pytest.mark.parametrize(
    ("column", "received"),
    [
        (np.array(["3.5", "N/A"]), "Received text, first '3.5' at field 'f'. Encode text with a TextEncoder"),
        (np.array([b"3.5"]), 'Received text, first "b\'3.5\'"'),
        (np.array([3.5, "N/A"], object), "Received object array with 'N/A' (text) in row 1 at field 'f'."),
        (np.array([3.5, None], object), "Received object array with null in row 1"),
        (np.array([3, 2.5], object), "Received object array of float, int at field 'f'. Make a NumPy array"),
        ([[1, 2], [3]], "Received list of 2 and 1 values in rows 0 and 1 at field 'f'. Make a Ragged"),
        ([1.0, 2.0], "Received list of float"),
        (np.array([[1, 2], [3]], object), "Received object array of 2 and 1 values in rows 0 and 1"),
        (np.array(["2024-01-01"], "datetime64[D]"), "Received datetime64[D]"),
        (np.array([1j]), "Received complex128"),
        (np.ma.masked_array([1.0], [True]), "Received a masked array"),
        (np.float32(1), "Received float32 at field"),
        (np.array(1, np.float32), "Received a single value without rows"),
        (pa.chunked_array([["good", "bad"]]), "Received string of Arrow at field 'f'. Encode text"),
        (pa.array([1, 2]), "Received int64 of Arrow"),
    ],
)  # fmt: skip
def test_what_has_no_number_format_is_refused(column: Any, received: str) -> None:
    message = refusal({"f": column})
    assert "D150 Column 'f' cannot be batched. Expected an array of a number format, or Ragged." in message
    assert received in message


def test_every_column_at_fault_is_named() -> None:
    with pytest.raises(DataError) as caught:
        Batches({"a": np.zeros(2), "b": np.array(["x", "y"]), "c": np.zeros(3, np.float32)}, 2)
    assert [f.code for f in caught.value.findings] == ["D151", "D150", "D152"]
    assert "Received 'a' has 2, 'b' has 2, 'c' has 3." in str(caught.value)


def test_names_of_the_loader_are_taken() -> None:
    ragged = Ragged.from_rows([[1], [2]])
    message = refusal({"t": ragged, "t_length": np.zeros(2, np.int64), "row": np.zeros(2, np.int64)})
    assert "The name 't_length' is taken: batches keep the lengths of 't' under it." in message
    assert "The name 'row' is taken: batches keep the row numbers under it." in message


def test_nothing_to_batch() -> None:
    assert "There is nothing to batch. Expected columns." in refusal({})
    assert "Expected rows. Received 0 rows in batches of 2." in refusal({"x": np.zeros(0, np.float32)})
    message = refusal({"x": np.zeros(1, np.float32)}, drop_last=True)
    assert "There is no batch to make. Expected at least 2 rows (drop_last). Received 1 rows" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "Expected batch_size of at least 1. Received 0."),
        ({"batch_size": 2, "seed": -1}, "Expected seed of at least 0. Received -1."),
        ({"batch_size": 2, "bucket_by": "x"}, r"name a ragged column \('text'\). Received 'x'."),
        ({"batch_size": 2, "bucket_by": "tex"}, r"name a ragged column \('text'\). Received 'tex'."),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(columns(4), **options)


# --- order -------------------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 90),
    batch_size=st.integers(1, 13),
    shuffle=st.booleans(),
    bucket=st.booleans(),
    drop_last=st.booleans(),
    world=st.integers(1, 4),
    pool=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
@example(rows=31, batch_size=2, shuffle=True, bucket=True, drop_last=False, world=3, pool=1, epoch=0)
@settings(deadline=None)
def test_every_order_is_a_partition(
    rows: int,
    batch_size: int,
    shuffle: bool,
    bucket: bool,
    drop_last: bool,
    world: int,
    pool: int,
    epoch: int,
) -> None:
    lengths = np.random.default_rng(rows).integers(0, 9, rows) if bucket else None
    try:
        ranks = [
            Ordering(
                rows=rows, batch_size=batch_size, shuffle=shuffle, seed=1, drop_last=drop_last, pool=pool,
                rank=rank, world=world,
            )
            for rank in range(world)
        ]  # fmt: skip
    except DataError:
        # Only where it cannot be: too few rows for a batch on each rank, or no way to even out batches of 1.
        assert rows < world or (drop_last and rows < batch_size * world) or (batch_size == 1 and rows % world)
        return
    orders = [ranking.epoch(epoch, lengths) for ranking in ranks]
    assert len({ranking.batches for ranking in ranks}) == 1
    seen: list[int] = []
    for ranking, order in zip(ranks, orders, strict=True):
        sizes = np.diff(order.cuts)
        assert order.rows.dtype == order.cuts.dtype == np.int64
        assert order.cuts[0] == 0
        assert order.cuts[-1] == len(order.rows)
        assert len(sizes) == ranking.batches
        assert (sizes >= 1).all()
        assert (sizes <= batch_size).all()
        if drop_last:
            assert (sizes == batch_size).all()
        if lengths is not None:
            for begin, end in zip(order.cuts, order.cuts[1:], strict=False):
                assert (np.diff(lengths[order.rows[begin:end]]) <= 0).all()
        seen.extend(order.rows.tolist())
    assert len(seen) == len(set(seen))
    assert len(seen) == (rows - rows % (batch_size * world) if drop_last else rows)


def test_shuffled_epochs_differ_and_repeat_for_a_seed() -> None:
    data = columns(500)
    first, second = Batches(data, 32, shuffle=True, seed=3), Batches(data, 32, shuffle=True, seed=3)
    epochs = [rows_of(first) for _ in range(3)]
    assert epochs == [rows_of(second) for _ in range(3)]
    assert len({tuple(e) for e in epochs}) == 3
    assert rows_of(Batches(data, 32, shuffle=True, seed=4)) != epochs[0]
    second.set_epoch(1)
    assert rows_of(second) == epochs[1]
    assert second.epoch == 2


ORDER_17_0 = [5, 10, 2, 9, 8, 11, 1, 0, 6, 4, 3, 7]
ORDER_17_1 = [2, 1, 0, 6, 7, 4, 10, 9, 8, 3, 5, 11]


def test_the_order_of_a_seed_is_this_one_for_ever() -> None:
    """A change here breaks resume of every saved run, and the figures published for a seed."""
    ordering = Ordering(rows=12, batch_size=4, shuffle=True, seed=17, drop_last=False, pool=2)
    assert ordering.epoch(0).rows.tolist() == ORDER_17_0
    assert ordering.epoch(1).rows.tolist() == ORDER_17_1


def test_without_shuffle_the_order_is_that_of_the_rows() -> None:
    batches = Batches(columns(50), 8)
    assert rows_of(batches) == rows_of(batches) == list(range(50))
    assert len(batches) == len(list(batches)) == 7


def test_evaluation_in_buckets_covers_every_row_in_a_fixed_order() -> None:
    data = columns(101)
    batches = Batches(data, 8, bucket_by="text")
    order = rows_of(batches)
    assert order == rows_of(batches)
    assert sorted(order) == list(range(101))
    assert (np.diff(data["text"].lengths[order]) <= 0).all()


def test_buckets_save_padding() -> None:
    data = columns(3000)
    plain, bucketed = (
        sum(batch["text"].size for batch in Batches(data, 32, shuffle=True, bucket_by=by))
        for by in (None, "text")
    )
    assert data["text"].values.size > 0.97 * bucketed
    assert bucketed < 0.6 * plain


def test_batches_of_a_bucketed_epoch_come_in_no_order_of_length() -> None:
    longest = [b["text"].shape[1] for b in Batches(columns(3000), 32, shuffle=True, bucket_by="text")]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


# --- resume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bucket_by": "text"}, {"drop_last": True}, {"prefetch": 3}])
@pytest.mark.parametrize("stop", [0, 1, 7, 15, 16])
def test_resume_hands_out_what_was_still_to_come(options: dict[str, Any], stop: int) -> None:
    data = columns(251)

    def loader() -> Batches:
        return Batches(data, 16, shuffle=True, seed=5, **options)

    whole = loader()
    epochs = [list(whole), list(whole), list(whole)]
    interrupted = loader()
    list(interrupted)  # epoch 0
    iterator = iter(interrupted)
    stop = min(stop, len(interrupted))
    for _ in range(stop):
        next(iterator)
    state = json.loads(json.dumps(interrupted.state_dict()))
    resumed = loader()
    resumed.load_state_dict(state)
    if stop < len(whole):
        assert (state["epoch"], state["batch"]) == (1, stop)
        assert same(list(resumed), epochs[1][stop:])
    else:
        assert (state["epoch"], state["batch"]) == (2, 0)
    # The epoch after the resumed one is whole, and is the third.
    assert same(list(resumed), epochs[2])


def test_a_trainer_that_sets_the_epoch_again_keeps_the_restored_position() -> None:
    data = columns(100)
    loader, other = (Batches(data, 10, shuffle=True) for _ in range(2))
    loader.set_epoch(4)
    iterator = iter(loader)
    next(iterator)
    other.load_state_dict(loader.state_dict())
    other.set_epoch(4)
    assert same(list(other), list(iterator))
    other.load_state_dict(Batches(data, 10, shuffle=True).state_dict())
    other.set_epoch(9)
    assert len(list(other)) == 10


def test_an_iteration_that_was_left_begins_anew() -> None:
    loader = Batches(columns(100), 10, shuffle=True)
    first = next(iter(loader))
    assert loader.state_dict()["batch"] == 1
    assert same([next(iter(loader))], [first])
    assert len(list(loader)) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 20}, "Expected as saved: batch_size=10. Received batch_size=20."),
        ({"seed": 2}, "Expected as saved: seed=1. Received seed=2."),
        ({"bucket_by": "text"}, "Expected as saved: bucket_by=None. Received bucket_by='text'."),
    ],
)
def test_a_state_of_other_settings_is_refused(change: dict[str, Any], message: str) -> None:
    data = columns(100)
    state = Batches(data, batch_size=10, shuffle=True, seed=1).state_dict()
    with pytest.raises(DataError) as caught:
        Batches(data, **{"batch_size": 10, "shuffle": True, "seed": 1, **change}).load_state_dict(state)
    assert "D153 The saved position does not belong to this data and these settings." in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["text", "label", "x"])
def test_a_state_of_other_data_is_refused(name: str) -> None:
    state = Batches(columns(100), 10).state_dict()
    with pytest.raises(DataError, match=r"D153 .* Received other rows \(\w+\)."):
        Batches({**columns(100), name: columns(100, seed=1)[name]}, 10).load_state_dict(state)
    with pytest.raises(DataError, match="Expected as saved: rows=100, other rows"):
        Batches(columns(99), 10).load_state_dict(state)


def test_a_state_of_another_version_is_refused() -> None:
    loader = Batches(columns(10), 5)
    with pytest.raises(
        DataError, match=r"Expected as saved: a loader state of version 1. Received version 2."
    ):
        loader.load_state_dict({**loader.state_dict(), "version": 2})


# --- ranks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket_by", [None, "text"])
def test_training_shards_drop_what_does_not_fill_every_rank(bucket_by: str | None) -> None:
    whole = Batches(columns(103), 8, shuffle=True, bucket_by=bucket_by)
    shards = [whole.shard(rank, 3) for rank in range(3)]
    assert [len(s) for s in shards] == [4, 4, 4]
    rows = [rows_of(s) for s in shards]
    assert [len(r) for r in rows] == [32, 32, 32]
    assert len({row for part in rows for row in part}) == 96
    assert len(whole) == 13  # unshared, nothing is dropped


def test_evaluation_shards_cover_every_row_once() -> None:
    whole = Batches(columns(49), 8)
    shards = [whole.shard(rank, 3) for rank in range(3)]
    assert {len(s) for s in shards} == {3}
    assert sorted(row for s in shards for row in rows_of(s)) == list(range(49))


def test_a_state_is_alike_on_all_ranks() -> None:
    whole = Batches(columns(96), 8, shuffle=True)
    first, second = whole.shard(0, 2), whole.shard(1, 2)
    rest = list(second)[2:]
    iterator = iter(first)
    next(iterator), next(iterator)
    again = whole.shard(1, 2)
    again.load_state_dict(first.state_dict())
    assert same(list(again), rest)
    with pytest.raises(DataError, match=r"Expected as saved: world=2, drop_last=True. Received world=1"):
        whole.load_state_dict(first.state_dict())


def test_too_few_rows_to_share() -> None:
    with pytest.raises(DataError) as caught:
        Batches(columns(2), 8).shard(0, 3)
    assert str(caught.value) == (
        "D154 The rows cannot be shared by 3 ranks. Expected equal numbers of batches on all ranks, no row "
        "twice. Received 2 rows in batches of 8. Use fewer ranks, a smaller batch_size, or drop_last."
    )
    with pytest.raises(ValueError, match=r"Expected 0 <= rank < world. Received rank 3, world 3."):
        Batches(columns(9), 2).shard(3, 3)


# --- grain -------------------------------------------------------------------------------------------

PROGRAM = """
import logging, sys
import numpy as np
from castiron.data.batches import Batches
assert "grain" not in sys.modules, "grain is loaded on first use only"
batches = Batches({"x": np.zeros((64, 3), np.float32)}, 4, shuffle=True, prefetch=PREFETCH)
iterator = iter(batches)
next(iterator)
assert "grain" in sys.modules
assert not {"torch", "jax", "tensorflow", "keras", "lightning"} & set(sys.modules), "a framework was loaded"
assert not logging.root.handlers, "grain left a handler behind"
print("left half-way")
"""


@pytest.mark.parametrize("prefetch", [0, 8])
def test_grain_loads_no_framework_says_nothing_and_ends(prefetch: int) -> None:
    program = PROGRAM.replace("PREFETCH", str(prefetch))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("left half-way\n", "", 0)


def test_threads_end_with_the_iteration() -> None:
    def reading() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]

    batches = Batches(columns(2000), 4, prefetch=64)
    iterator = iter(batches)
    next(iterator)
    assert reading()
    del iterator
    deadline = time.monotonic() + 10
    while reading() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reading()
    assert len(list(batches)) == 500


def test_prefetching_changes_no_batch() -> None:
    data = columns(300)
    assert same(list(Batches(data, 16, shuffle=True)), list(Batches(data, 16, shuffle=True, prefetch=5)))


def test_large_batches_are_assembled_ahead_and_small_ones_together() -> None:
    small, large = Batches(columns(64), 16), Batches({"image": np.zeros((16, 3, 160, 160), np.float32)}, 16)
    assert small._prefetch == 0
    assert small._assembler.batches_at_once(16) > 8
    assert large._prefetch == 4
    assert large._assembler.batches_at_once(16) == 1


def test_logging_is_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("absl").level
    list(Batches(columns(4), 2))
    assert logging.getLogger("absl").level == level
    assert not caplog.records


def test_a_small_batch_costs_little() -> None:
    """64 rows of 20 tokens; the bound is generous because other processes share the machine."""
    rows = 64 * 400
    random = np.random.default_rng(0)
    lengths = random.integers(5, 36, rows)
    data = {
        "text": Ragged.from_lengths(random.integers(2, 9999, lengths.sum()), lengths),
        "label": random.integers(0, 2, rows),
    }
    batches = Batches(data, 64, shuffle=True, bucket_by="text")
    list(batches)
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        for _ in batches:
            pass
        best = min(best, time.process_time() - begin)
    assert best / len(batches) < 300e-6
