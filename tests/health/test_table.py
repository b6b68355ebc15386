"""`health.parquet`: what comes back, and files of earlier versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from castiron.health import table
from castiron.health.snapshot import Snapshot
from castiron.health.statistics import measure


def snapshot(step: int, noise: float | None = None) -> Snapshot:
    made = measure(np.linspace(-1, 1, 9, dtype=np.float32), "float32")
    groups = {("activation gradients", "head"): made, ("activations", "head"): made}
    return Snapshot(step, groups=groups, noise={} if noise is None else {"head": noise})  # type: ignore[arg-type]


def test_the_noise_of_accumulation_comes_back(tmp_path: Path) -> None:
    written = table.HealthTable(tmp_path)
    written.add(snapshot(1, noise=2.5e-8))
    written.add(snapshot(101))
    written.flush()
    first, second = table.read(tmp_path)
    assert (first.noise, second.noise) == ({"head": 2.5e-8}, {})
    column = pq.read_table(written.path)["accumulation_noise"].to_pylist()
    assert column == [2.5e-8, None, None, None]


def test_a_file_of_an_earlier_version_is_read_and_carried_on(tmp_path: Path) -> None:
    written = table.HealthTable(tmp_path)
    written.add(snapshot(1))
    written.flush()
    pq.write_table(pq.read_table(written.path).drop_columns(["accumulation_noise"]), written.path)
    assert [s.step for s in table.read(tmp_path)] == [1]
    resumed = table.HealthTable(tmp_path, resumed_at=50)
    resumed.add(snapshot(51, noise=1e-8))
    resumed.flush()
    assert [(s.step, dict(s.noise)) for s in table.read(tmp_path)] == [(1, {}), (51, {"head": 1e-8})]
