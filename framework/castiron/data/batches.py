"""Batches of declared format in a reproducible order, with exact resume."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from castiron.data.assembly import Assembler, Batch, Chunks, Columns
from castiron.data.order import Ordering
from castiron.data.pipeline import elements
from castiron.data.ragged import Int64, Ragged
from castiron.diagnostics import DataError, finding

_LARGE = 4 * 1024 * 1024  # bytes of a batch from which a thread that reads ahead pays
_AHEAD = 4  # batches it reads ahead
_SAMPLED = 4096  # rows that enter the digest of the data
_VERSION = 1


class Batches:
    """An iterable over batches; each iteration is one epoch.

        batches = Batches({"text": ids, "label": labels}, 64, shuffle=True, seed=1, bucket_by="text")
        for batch in batches:
            batch["text"]         # int64 [B, T], padded with 0
            batch["text_length"]  # int64 [B]
            batch["label"]        # [B], in the column's dtype
            batch["row"]          # int64 [B], for Dataset.origin

    Args:
        columns: Arrays [N, ...], Ragged [N] and Windows [N]. float64 is refused unless named in
            `allow_float64`; objects, text and ragged lists always.
        batch_size: Rows of a batch, on each rank.
        shuffle: Whether each epoch has an order of its own, made from (seed, epoch) alone.
        bucket_by: A ragged column; batches then hold rows of like length, the longest first within a batch.
            Without `shuffle` all rows go in order of falling length: `row` says which is which.
        pool: Batches that are shuffled together and then sorted by length; more give less padding and less
            random batches.
        drop_last: Whether rows that do not fill a batch are left out. Default: only when shuffled and shared
            by several ranks; so evaluation covers every row exactly once.
        prefetch: Batches that a thread assembles ahead. Default: 4 where a batch is larger than 4 MiB,
            else 0, since a thread costs a small batch more than its assembly.
        row_numbers: int64 [N]: the rows' numbers in their data set. Default: 0 to N - 1.

    Iterating begins with batch 0 of the epoch, or where `load_state_dict` said; its end advances the epoch.

    Raises:
        DataError: D150 to D152 about the columns; D154 where they cannot be shared.
    """

    def __init__(
        self,
        columns: Columns,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        bucket_by: str | None = None,
        pool: int = 50,
        drop_last: bool | None = None,
        allow_float64: Collection[str] = (),
        prefetch: int | None = None,
        row_numbers: Int64 | None = None,
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("pool", pool, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"Expected {name} of at least {least}. Received {value}.")
        self._assembler = Assembler(columns, allow_float64=allow_float64, row_numbers=row_numbers)
        self._lengths = _lengths(columns, bucket_by)
        self._bucket_by = bucket_by
        self._drop_last = drop_last
        self._ordering = Ordering(
            rows=self._assembler.rows,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_last=bool(drop_last),
            pool=pool,
        )
        large = self._assembler.bytes_per_row * batch_size >= _LARGE
        self._prefetch = (_AHEAD if large else 0) if prefetch is None else prefetch
        self._digest: str | None = None
        self._epoch = 0
        self._next = 0  # the batch after the one handed out last
        self._resume = 0  # where the next iteration begins
        self._current: object = None  # the iteration whose progress is the loader's

    def __len__(self) -> int:
        """Batches per epoch; on every rank as many."""
        return self._ordering.batches

    @property
    def rows(self) -> int:
        """Rows of the columns, those of other ranks included."""
        return self._assembler.rows

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration, or the one under way, goes through."""
        return self._epoch

    @property
    def digest(self) -> str:
        """A digest of names, formats, shapes, and values of rows spread over the data."""
        if self._digest is None:
            self._digest = _digest(self._assembler)
        return self._digest

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`; where it is the current one, a restored position in it stays."""
        if epoch < 0:
            raise ValueError(f"Expected an epoch of at least 0. Received {epoch}.")
        if epoch != self._epoch:
            self._epoch, self._next, self._resume, self._current = epoch, 0, 0, None

    def shard(self, rank: int, world: int) -> Batches:
        """The share of `rank` among `world`: no row goes to two ranks, and all have as many batches.

        Raises:
            DataError: D154 where there are too few rows for that.
        """
        if not 0 <= rank < world:
            raise ValueError(f"Expected 0 <= rank < world. Received rank {rank}, world {world}.")
        shard = copy.copy(self)
        drop = self._drop_last
        if drop is None:
            drop = self._ordering.shuffle and world > 1
        shard._ordering = replace(self._ordering, rank=rank, world=world, drop_last=drop)
        shard._epoch = shard._next = shard._resume = 0
        shard._current = None
        return shard

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._epoch, self._resume
        self._next, self._resume = first, 0
        self._current = iteration = object()
        return self._run(epoch, first, iteration)

    def _run(self, epoch: int, first: int, iteration: object) -> Iterator[Batch]:
        together = self._assembler.batches_at_once(self._ordering.batch_size)
        chunks = Chunks(
            self._assembler, self._ordering.epoch(epoch, self._lengths), first=first, size=together
        )
        ahead = -(-self._prefetch // together)
        batch_number = first
        for chunk in elements(chunks, threads=1 if ahead else 0, ahead=ahead):
            for batch in chunk:
                batch_number += 1
                if self._current is iteration:
                    self._next = batch_number
                yield batch
        if self._current is iteration:
            self._epoch, self._next, self._current = epoch + 1, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: epoch, next batch, what the order was made of. JSON-ready, alike on all ranks.

        After the last batch of an epoch it is the beginning of the next.
        """
        at_end = self._next >= len(self)
        return {
            "version": _VERSION,
            "epoch": self._epoch + at_end,
            "batch": 0 if at_end else self._next,
            "made_of": self._made_of(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin where `state_dict` was taken: the batches that were still to come.

        Raises:
            DataError: D153; the state is of another version, or was made with other data or settings, which
                are listed.
        """
        if state.get("version") != _VERSION:
            raise _other_state("a loader state of version 1", f"version {state.get('version')!r}")
        then, now = state["made_of"], self._made_of()
        settled = _SHARING if _same_batches(then, now) else ()
        if differing := [key for key in now if key not in settled and then.get(key) != now[key]]:
            raise _other_state(
                ", ".join(_setting(key, then.get(key)) for key in differing),
                ", ".join(_setting(key, now[key]) for key in differing),
            )
        self._epoch, self._next = int(state["epoch"]), int(state["batch"])
        self._resume, self._current = self._next, None

    def _made_of(self) -> dict[str, Any]:
        order = self._ordering
        return {
            "rows": order.rows,
            "batch_size": order.batch_size,
            "world": order.world,
            "shuffle": order.shuffle,
            "seed": order.seed,
            "bucket_by": self._bucket_by,
            "pool": order.pool,
            "drop_last": order.drop_last,
            "data": self.digest,
        }

    def __repr__(self) -> str:
        return f"Batches({self.rows:,} rows, {len(self):,} batches of {self._ordering.batch_size:,})"


_SHARING = ("batch_size", "world", "drop_last")


def _same_batches(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the batches of all ranks together hold the same rows, however many ranks share them."""

    def whole(made_of: Mapping[str, Any]) -> tuple[int, int]:
        size = int(made_of["batch_size"]) * int(made_of["world"])
        rows = int(made_of["rows"])
        return size, rows - rows % size if made_of["drop_last"] else rows

    try:
        return whole(then) == whole(now)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return False


def _lengths(columns: Columns, bucket_by: str | None) -> Int64 | None:
    if bucket_by is None:
        return None
    column = columns.get(bucket_by)
    if not isinstance(column, Ragged):
        ragged = [repr(name) for name, c in columns.items() if isinstance(c, Ragged)]
        raise ValueError(
            f"Expected bucket_by to name a ragged column ({', '.join(ragged) or 'there is none'}). "
            f"Received {bucket_by!r}."
        )
    return column.lengths


def _digest(assembler: Assembler) -> str:
    """A digest of names, formats, shapes, all lengths, and the values of up to 4,096 rows spread evenly.

    Not of every value: it is taken at each first checkpoint, and must stay cheap for images.
    """
    digest = hashlib.blake2b(digest_size=16)
    rows = np.unique(np.linspace(0, max(assembler.rows - 1, 0), _SAMPLED).astype(np.int64))[: assembler.rows]
    for name, column in assembler.columns.items():
        if isinstance(column, Ragged):
            digest.update(f"{name}:ragged:{column.offsets.size}".encode())
            digest.update(column.offsets.tobytes())
            digest.update(column.take(rows).values.tobytes())
        else:
            digest.update(f"{name}:{column.dtype.name}:{column.shape}".encode())
            digest.update(column.take(rows, axis=0).tobytes())
    return digest.hexdigest()


def _setting(key: str, value: object) -> str:
    return f"other rows ({value})" if key == "data" else f"{key}={value!r}"


def _other_state(expected: str, received: str) -> DataError:
    return DataError(
        finding(
            "D153",
            "The saved position does not belong to this data and these settings.",
            expected=f"as saved: {expected}",
            received=received,
        )
    )
