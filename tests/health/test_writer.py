from __future__ import annotations

import errno
import math
import os
import struct
import subprocess
import sys
import textwrap
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from castiron.diagnostics import Finding, RunError
from castiron.health import EventWriter, layout, tags

Read = Callable[[Path], Any]


def png(width: int = 3, height: int = 2) -> bytes:
    """A grey picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + b"\x80" * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def clock() -> Callable[[], float]:
    ticks = iter(float(t) for t in range(1_000_000_000, 2_000_000_000))
    return lambda: next(ticks)


def test_scalars_come_back(tmp_path: Path, read: Read, clock: Callable[[], float]) -> None:
    with EventWriter(tmp_path, clock=clock) as events:
        events.scalar(tags.loss("train"), 0.5, 10)
        events.scalars({tags.loss("train"): np.float32(0.25), "Training/own": 3}, step=np.int64(2**40))
    found = read(tmp_path)
    assert [(e.step, e.value) for e in found.Scalars("Training/loss/train")] == [(10, 0.5), (2**40, 0.25)]
    assert [(e.step, e.value, e.wall_time) for e in found.Scalars("Training/own")] == [
        (2**40, 3, 1_000_000_002)
    ]


def test_numbers_that_are_none_and_too_large(tmp_path: Path, read: Read) -> None:
    values = [math.nan, math.inf, -math.inf, 1e300, -1e300, 3.4028234663852886e38, 1e-300]
    with EventWriter(tmp_path) as events:
        for step, value in enumerate(values):
            events.scalar("Training/x", value, step)
    found = [e.value for e in read(tmp_path).Scalars("Training/x")]
    np.testing.assert_array_equal(found, [math.nan, math.inf, -math.inf, math.inf, -math.inf, values[5], 0])


def test_text(tmp_path: Path, read: Read) -> None:
    with EventWriter(tmp_path) as events:
        events.text(tags.plan(), "| a |\n|---|\n| ü |", step=3)
    event = read(tmp_path).Tensors("Precision/plan")[0]
    assert event.step == 3
    assert event.tensor_proto.string_val[0].decode() == "| a |\n|---|\n| ü |"
    assert read(tmp_path).PluginTagToContent("text").keys() == {"Precision/plan"}


def test_image(tmp_path: Path, read: Read) -> None:
    with EventWriter(tmp_path) as events:
        events.image("Health/figure", png(7, 5), 4)
    event = read(tmp_path).Images("Health/figure")[0]
    assert (event.step, event.width, event.height) == (4, 7, 5)
    assert event.encoded_image_string == png(7, 5)


def test_bytes_that_are_no_picture(tmp_path: Path) -> None:
    with (
        EventWriter(tmp_path) as events,
        pytest.raises(ValueError, match="expected the bytes of a PNG file, received"),
    ):
        events.image("Health/figure", b"GIF89a..........................")


def test_histogram(tmp_path: Path, read: Read) -> None:
    with EventWriter(tmp_path) as events:
        events.histogram("Health/h", [0, 1, 2, 4, 8], [0, 3, 1, 0], 1)
        events.histogram("Health/h", np.array([-1.0, 0, 1]), np.array([2, 2]), 2, total=7, total_squares=9)
        events.histogram("Health/h", [0, 1], [0], 3)
    first, second, empty = (e.histogram_value for e in read(tmp_path).Histograms("Health/h"))
    assert (first.min, first.max, first.num) == (1, 4, 4)
    assert list(first.bucket_limit) == [2, 4]
    assert list(first.bucket) == [3, 1]
    assert (first.sum, first.sum_squares) == (3 * 1.5 + 3, 3 * 1.5**2 + 9)
    assert (second.sum, second.sum_squares) == (7, 9)
    assert empty.num == 0


@pytest.mark.parametrize(
    ("edges", "counts", "says"),
    [
        ([0, 1], [1, 2], "expected 3 edges for 2 buckets, received 2"),
        ([0, 2, 1], [1, 2], r"expected edges in ascending order, received \[0.0, 2.0, 1.0\]"),
        ([0, math.nan, 1], [1, 2], "expected edges in ascending order"),
    ],
)
def test_buckets_that_do_not_fit(tmp_path: Path, edges: list[float], counts: list[float], says: str) -> None:
    with EventWriter(tmp_path) as events, pytest.raises(ValueError, match=says):
        events.histogram("Health/h", edges, counts, 0)


def test_hyper_parameters_and_their_results(tmp_path: Path, read: Read, clock: Callable[[], float]) -> None:
    from tensorboard.plugins.hparams import api_pb2, metadata

    config = {
        "optimizer": {"lr": 1e-3, "name": "adamw"},
        "seed": 17,
        "compile": False,
        "data": {"train": None},
    }
    with EventWriter(tmp_path, clock=clock) as events:
        events.hparams({**config, "layers": {}, "sizes": [1, 2]}, [tags.metric("accuracy", "test")])
        events.scalar(tags.metric("accuracy", "test"), 0.875, 5)
        events.hparams_end(success=True)
    content = read(tmp_path).PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    values = {k: getattr(v, v.WhichOneof("kind")) for k, v in start.hparams.items()}
    assert values == {
        "optimizer.lr": 1e-3, "optimizer.name": "adamw", "seed": 17, "compile": False, "data.train": "null",
        "layers": "{}", "sizes": "[1, 2]",
    }  # fmt: skip
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert [(m.name.tag, m.display_name) for m in experiment.metric_infos] == [
        ("Training/accuracy/test", "accuracy/test")
    ]
    kinds = {info.name: info.type for info in experiment.hparam_infos}
    assert kinds["compile"] == api_pb2.DATA_TYPE_BOOL
    assert kinds["seed"] == api_pb2.DATA_TYPE_FLOAT64
    assert kinds["sizes"] == api_pb2.DATA_TYPE_STRING
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_SUCCESS
    assert end.end_time_secs > start.start_time_secs


def test_a_run_that_failed(tmp_path: Path, read: Read) -> None:
    from tensorboard.plugins.hparams import api_pb2, metadata

    with EventWriter(tmp_path) as events:
        events.hparams_end(success=False)
    content = read(tmp_path).PluginTagToContent("hparams")
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_FAILURE


def test_layout_comes_back(tmp_path: Path, read: Read) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    made = layout(["accuracy"], scaled=True)
    with EventWriter(tmp_path) as events:
        events.layout(made)
    event = read(tmp_path).Tensors(metadata.CONFIG_SUMMARY_TAG)[0]
    assert layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]) == made


def test_titles_and_descriptions_are_written_with_a_tags_first_record(tmp_path: Path, read: Read) -> None:
    with EventWriter(tmp_path) as events:
        for step in range(3):
            events.scalar(tags.loss("train"), 1, step)
            events.scalar("Health/x", 1, step)
            events.text(tags.plan(), f"plan {step}", step)
    found = read(tmp_path)
    assert [e.tensor_proto.string_val[0] for e in found.Tensors("Precision/plan")] == [
        b"plan 0", b"plan 1", b"plan 2"
    ]  # fmt: skip
    loss = found.SummaryMetadata("Training/loss/train")
    assert (loss.display_name, loss.summary_description) == ("loss/train", "loss, mean since the last log.")
    assert found.SummaryMetadata("Health/x").summary_description == ""
    assert events.path.read_bytes().count(b"mean since the last log") == 1


def test_every_record_is_in_the_file_at_once(tmp_path: Path, read: Read) -> None:
    events = EventWriter(tmp_path / "a" / "b")
    events.scalar("Training/x", 1, 1)
    assert len(read(tmp_path / "a" / "b").Scalars("Training/x")) == 1
    events.close()


def test_two_writers_of_one_folder_do_not_meet(tmp_path: Path, read: Read) -> None:
    with EventWriter(tmp_path, clock=lambda: 5.0) as one, EventWriter(tmp_path, clock=lambda: 5.0) as two:
        assert one.path != two.path
        one.scalar("Training/x", 1, 1)
        two.scalar("Training/x", 2, 2)
    assert len(read(tmp_path).Scalars("Training/x")) == 2


def test_a_resumed_run_takes_back_what_was_logged_after_its_checkpoint(
    tmp_path: Path, read: Read, clock: Callable[[], float]
) -> None:
    with EventWriter(tmp_path, clock=clock) as events:
        for step in range(10):
            events.scalar("Training/x", step, step)
    with EventWriter(tmp_path, clock=clock, resumed_at=6) as events:
        events.scalar("Training/x", 70, 7)
    found = [(e.step, e.value) for e in read(tmp_path).Scalars("Training/x")]
    assert found == [*((s, s) for s in range(7)), (7, 70)]


def test_closing_twice_and_writing_afterwards(tmp_path: Path) -> None:
    events = EventWriter(tmp_path)
    events.close()
    events.close()
    events.flush()
    with pytest.raises(ValueError, match=r"the event file .*tfevents.* is closed"):
        events.scalar("Training/x", 1, 1)


def test_an_exception_closes_the_file_and_keeps_what_was_written(tmp_path: Path, read: Read) -> None:
    def training() -> None:
        events.scalar("Training/x", 1, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), EventWriter(tmp_path) as events:
        training()
    assert len(read(tmp_path).Scalars("Training/x")) == 1
    with pytest.raises(ValueError, match="is closed"):
        events.scalar("Training/x", 1, 2)


def test_threads(tmp_path: Path, read: Read) -> None:
    def write(number: int) -> None:
        for step in range(200):
            events.scalars({f"Training/{number}": step, "Training/all": step}, step)

    with EventWriter(tmp_path) as events:
        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = read(tmp_path)
    for number in range(8):
        assert [e.value for e in found.Scalars(f"Training/{number}")] == list(range(200))
    assert len(found.Scalars("Training/all")) == 1600


# --- a disk that fails -----------------------------------------------------------------------------------


class FullDisk:
    """A raw file that takes `room` more bytes, then half of a write, then none."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: memoryview) -> int:
        taken = min(len(data), self.room)
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= taken
        return int(self.file.write(data[:taken]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_is_said_once_and_leaves_a_readable_file(tmp_path: Path, read: Read) -> None:
    problems: list[Finding] = []
    events = EventWriter(tmp_path, on_problem=problems.append)
    events.scalar("Training/x", 1, 1)
    whole = events.path.stat().st_size
    disk = FullDisk(events._file, room=20)
    events._file = disk  # type: ignore[assignment]
    for step in range(2, 6):
        events.scalar("Training/x", 1, step)
    assert events.dropped == 4
    assert events.path.stat().st_size == whole
    assert len(problems) == 1
    assert str(problems[0]) == (
        f"X819 TensorBoard events cannot be written: No space left on device. At {events.path}. "
        "Make room or grant access; training goes on, events are dropped until then."
    )
    assert problems[0].severity == "warning"
    events.text("Training/t", "lost", 5)
    disk.room = 10_000
    events.scalar("Training/x", 1, 6)
    events.text("Training/t", "kept", 6)
    events.close()
    assert read(tmp_path).PluginTagToContent("text").keys() == {"Training/t"}
    assert [e.step for e in read(tmp_path).Scalars("Training/x")] == [1, 6]
    assert len(problems) == 1


def test_by_default_it_is_a_warning(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as events:
        events._file = FullDisk(events._file, room=0)  # type: ignore[assignment]
        with pytest.warns(
            RuntimeWarning, match="X819 TensorBoard events cannot be written: No space"
        ) as seen:
            events.scalars({"Training/x": 1}, 1)
        events.scalar("Training/x", 1, 2)
    assert len(seen) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="X819 TensorBoard events cannot be written: Not a directory"):
        EventWriter(tmp_path / "file" / "run")


# --- what it must not do -----------------------------------------------------------------------------------


def test_neither_tensorflow_nor_torch_is_loaded_nor_is_their_way_barred(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    script = """
        import sys
        from castiron.health import EventWriter, census, layout, tags
        from castiron.policy import LayerInfo, TensorInfo
        with EventWriter(sys.argv[1]) as events:
            events.scalar(tags.loss("train"), 1.0, 1)
            events.text(tags.plan(), "text")
            events.histogram("Health/h", [0, 1], [1], 0)
            events.hparams({"a": 1}, [tags.loss("test")])
            events.layout(layout(["accuracy"]))
        for name in ("tensorflow", "keras", "torch", "lightning", "jax", "tensorboard.compat.notf"):
            assert name not in sys.modules, name
        import tensorboard.compat
        loaded = "loaded" in repr(tensorboard.compat.tf) and "not yet" not in repr(tensorboard.compat.tf)
        assert not loaded, "tensorboard.compat.tf was resolved on the user's behalf"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
