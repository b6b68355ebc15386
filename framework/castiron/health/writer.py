"""Writes TensorBoard event files without a framework, and never at the expense of the training.

Records are made of tensorboard's own protocol buffers (`castiron.health.records`) and framed as its
`RecordWriter` frames them (`castiron.health.framing`). Its `EventFileWriter` is not used: it opens the file
through `tensorboard.compat.tf`, which imports TensorFlow wherever that is installed (2 s and 270 MB), and
once a write has failed it raises at every later one.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from castiron.data.files import append_whole
from castiron.diagnostics import Finding, RunError
from castiron.health import records
from castiron.health.framing import framed
from castiron.health.tags import Tag
from castiron.health.writing import Closing, Unwritable, cannot_write

_file_numbers = itertools.count()
_WHAT = "TensorBoard events"
_REMEDY = "Make room or grant access; training goes on, events are dropped until then."


class EventWriter(Closing):
    """One event file of a run. Safe to use from several threads; use it as a context manager or `close()` it.

    Every call is one record, handed to the operating system at once, so that nothing is lost when the
    process is killed. A write that fails later on (a full disk) is reported once, and leaves the file
    readable: the torn record is cut off, events are dropped and counted, and writing goes on when there
    is room again.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        clock: Callable[[], float] = time.time,
        on_problem: Callable[[Finding], None] | None = None,
        resumed_at: int | None = None,
    ) -> None:
        """Make the folder and a new event file in it.

        Args:
            folder: the run directory; each becomes one run in TensorBoard.
            clock: gives the wall time of events, in seconds since 1970.
            on_problem: told when a write fails, once; by default a `RuntimeWarning`.
            resumed_at: last step that the training goes on from; what earlier files of the folder say of
                later steps happened to nobody, and TensorBoard drops it.

        Raises:
            RunError: X819, the file cannot be made.
        """
        self._clock = clock
        self._unwritable = Unwritable(on_problem)
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self.dropped = 0
        """Events that could not be written."""
        start = clock()
        unique = f"{socket.gethostname()}.{os.getpid()}.{next(_file_numbers)}"
        self.path = Path(folder) / f"events.out.tfevents.{int(start):010d}.{unique}"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb", buffering=0)
            append_whole(self._file, framed(records.file_header(start)))
            if resumed_at is not None:
                append_whole(self._file, framed(records.session_start_at(start, resumed_at + 1)))
        except OSError as e:
            raise RunError(cannot_write(_WHAT, self.path, e, _REMEDY)) from e

    # --- what is written --------------------------------------------------------------------------------

    def scalar(self, tag: Tag | str, value: float, step: int) -> None:
        """One number (kept as float32). NaN and infinity are written as they are."""
        self.scalars({tag: value}, step)

    def scalars(self, values: Mapping[Tag | str, float] | Mapping[Tag, float], step: int) -> None:
        """Several numbers of one step, as one record."""
        self._add(step, [records.scalar(self._head(tag), value) for tag, value in values.items()])

    def text(self, tag: Tag | str, markdown: str, step: int = 0) -> None:
        """Markdown, shown on the Text page."""
        self._add(step, [records.text(self._head(tag), markdown)])

    def image(self, tag: Tag | str, png: bytes, step: int = 0) -> None:
        """A picture, as the bytes of a PNG file.

        Raises:
            ValueError: the bytes are no PNG file.
        """
        self._add(step, [records.image(self._head(tag), png)])

    def histogram(
        self,
        tag: Tag | str,
        edges: Sequence[float],
        counts: Sequence[float],
        step: int,
        *,
        total: float | None = None,
        total_squares: float | None = None,
    ) -> None:
        """A histogram from its buckets: bucket i holds `counts[i]` values from `edges[i]` to `edges[i + 1]`.

        Args:
            edges: ascending, one more than counts.
            total: sum of the values; by default from the middles of the buckets.
            total_squares: sum of their squares; likewise.

        Raises:
            ValueError: the numbers of edges and counts do not fit, or edges do not ascend.
        """
        head = self._head(tag)
        self._add(step, [records.histogram(head, edges, counts, total=total, total_squares=total_squares)])

    def hparams(self, values: Mapping[str, Any], metrics: Sequence[Tag | str] = ()) -> None:
        """The run's hyper-parameters, and which scalars are its results.

        Nested mappings become dotted names. The HParams page shows the last value of each of these scalars
        beside the hyper-parameters.
        """
        now = self._clock()
        names = [str(m) for m in metrics]
        self._add(0, [records.experiment(values, names, now), records.session_start(values, now)])

    def hparams_end(self, *, success: bool) -> None:
        """The run has ended, well or not."""
        self._add(0, [records.session_end(success, self._clock())])

    def layout(self, layout: Any) -> None:
        """The layout of the Custom Scalars page (`castiron.health.layout`)."""
        self._add(0, [records.custom_scalars(layout)])

    # --- the file ---------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Have the operating system write to the disk what it was given."""
        with self._lock:
            if not self._file.closed:
                try:
                    os.fsync(self._file.fileno())
                except OSError as e:
                    self._report(e)

    def close(self) -> None:
        """Flush and close. Closing twice does no harm; what is added afterwards is an error."""
        self.flush()
        with self._lock:
            self._file.close()

    def _head(self, tag: Tag | str) -> records.Head:
        name = str(tag)
        head = records.Head(name, "" if isinstance(tag, str) else tag.description, name not in self._known)
        self._known.add(name)
        return head

    def _add(self, step: int, values: Sequence[Any]) -> None:
        record = records.event(self._clock(), int(step), values)
        with self._lock:
            if self._file.closed:
                raise ValueError(f"the event file {self.path} is closed")
            try:
                append_whole(self._file, framed(record))
            except OSError as e:
                self.dropped += 1
                self._known.clear()  # a tag's first record may be among those that are lost
                self._report(e)

    def _report(self, error: OSError) -> None:
        self._unwritable.report(_WHAT, self.path, error, _REMEDY)
