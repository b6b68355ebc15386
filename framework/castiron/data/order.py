"""In which order rows are seen: shuffling, length buckets, and shares of several ranks. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from castiron.data.ragged import Int64
from castiron.diagnostics import DataError, finding


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochOrder:
    """One rank's rows of one epoch. Batch b is `rows[cuts[b]:cuts[b + 1]]`."""

    rows: Int64
    """int64 [rows of this rank]: indices into the columns."""
    cuts: Int64
    """int64 [batches + 1]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """How the rows of an epoch become batches; the same on every machine and under every NumPy version.

    Rows are cut into global batches of `batch_size * world` rows, of which rank r takes each world-th from
    its r-th: no row goes to two ranks, and all ranks have as many batches. What is left over at the end is
    dropped with `drop_last`; else every row is seen once, and the last batch (of several ranks, where need
    be, the last two) is smaller.
    """

    rows: int
    batch_size: int
    shuffle: bool
    seed: int
    drop_last: bool
    pool: int
    """Global batches that are shuffled together and then sorted by length; unused without lengths."""
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        sizes = self._sizes()
        if not sizes.size or sizes.min() < self.world:
            raise self._too_few()

    @property
    def batches(self) -> int:
        """Batches per rank and epoch."""
        return len(self._sizes())

    def epoch(self, epoch: int, lengths: Int64 | None = None) -> EpochOrder:
        """The order of this epoch; with `lengths` (int64 [rows]), rows of like length share a batch.

        With lengths, the rows within a batch are in order of falling length. Shuffled: rows are permuted, cut
        into pools of `pool` global batches, sorted by length within a pool, and the batches permuted.
        Not shuffled: in order of the rows, or of falling length over all of them; each epoch alike.
        """
        sizes = self._sizes()
        used = int(sizes.sum())
        random = _Permutations(self.seed, epoch) if self.shuffle else None
        # What drop_last drops is chosen before sorting, else it would always be the shortest.
        rows = random.of(self.rows)[:used] if random else np.arange(used)
        if lengths is not None:
            # By batches, not by rows: the last two may be smaller, and none may lie in two pools.
            pools = np.arange(len(sizes)) // (self.pool if random else len(sizes))
            longest = int(lengths.max(initial=0))
            key = np.repeat(pools, sizes) * (longest + 1) + (longest - lengths[rows])
            rows = rows[np.argsort(key, kind="stable")]
        cuts = np.concatenate(([0], np.cumsum(sizes)))
        if random and lengths is not None:
            by = random.of(len(sizes))
            starts, sizes = cuts[:-1][by], sizes[by]
            cuts = np.concatenate(([0], np.cumsum(sizes)))
            rows = rows[np.arange(used) + np.repeat(starts - cuts[:-1], sizes)]
        if self.world > 1:
            place = np.arange(used) - np.repeat(cuts[:-1], sizes)
            rows = rows[place % self.world == self.rank]
            cuts = np.concatenate(([0], np.cumsum((sizes - self.rank - 1) // self.world + 1)))
        return EpochOrder(rows=rows, cuts=cuts)

    def _sizes(self) -> Int64:
        """Rows of each global batch."""
        size = self.batch_size * self.world
        whole, rest = divmod(self.rows, size)
        sizes = np.full(whole, size, np.int64)
        if not rest or self.drop_last:
            return sizes
        if rest < self.world and whole:
            # Too few for a batch on every rank: share the last two, so that each rank has both.
            sizes[-1] -= self.world
            rest += self.world
        return np.append(sizes, rest)

    def _too_few(self) -> DataError:
        what = f"{self.rows:,} rows in batches of {self.batch_size:,}"
        if self.world == 1:
            return DataError(
                finding(
                    "D152",
                    "There is no batch to make.",
                    expected=f"at least {self.batch_size:,} rows (drop_last)" if self.rows else "rows",
                    received=what,
                )
            )
        return DataError(
            finding(
                "D154",
                f"The rows cannot be shared by {self.world} ranks.",
                expected="equal numbers of batches on all ranks, no row twice",
                received=what,
            )
        )


class _Permutations:
    """Permutations keyed by (seed, epoch), made of PCG64's raw output, which no NumPy version changes."""

    def __init__(self, seed: int, epoch: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))

    def of(self, count: int) -> Int64:
        return np.argsort(self._bits.random_raw(count))
