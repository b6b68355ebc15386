"""The data that the recipe brings along: hourly readings of three sensors, as CSV with gaps and dropouts.

Each sensor has a daily and a weekly rhythm, a slow drift, and noise of known deviation. Single readings are
missing, and now and then a sensor is silent for hours.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from castiron.data.files import written_atomically

HOURS = 4000
SENSORS = ("load", "flow", "heat")
NOISE = 0.1
"""Standard deviation of the noise, beside a daily rhythm of amplitude 1."""

_DROPOUT = ((0, len(SENSORS)), (0, HOURS), (3, 19))
"""From where to where the sensor, the first hour and the length of a silent stretch are drawn."""
_START = np.datetime64("2024-01-01T00", "h")


def write(folder: Path, *, seed: int, gaps: float = 0.02, dropouts: int = 12) -> Path:
    """Write `sensors.csv` with columns date, load, flow, heat; → its path.

    Args:
        gaps: share of single readings that are missing (an empty cell).
        dropouts: stretches, 3 to 18 hours long, in which one sensor reads NA.
    """
    random = np.random.default_rng(seed)
    hour = np.arange(HOURS)
    values = np.empty((HOURS, len(SENSORS)))
    for i in range(len(SENSORS)):
        day = np.sin(2 * np.pi * (hour / 24 + random.random()))
        week = 0.5 * np.sin(2 * np.pi * (hour / 168 + random.random()))
        drift = np.sin(2 * np.pi * hour / HOURS * random.uniform(0.5, 1.5))
        noise = random.normal(0, NOISE, HOURS)
        values[:, i] = 20 * (i + 1) + 5 * (day + week + drift + noise)
    cells = [[f"{value:.3f}" for value in row] for row in values]
    for t, i in np.argwhere(random.random(values.shape) < gaps):
        cells[t][i] = ""
    for _ in range(dropouts):
        sensor, start, length = (int(random.integers(*of)) for of in _DROPOUT)
        for t in range(start, min(start + length, HOURS)):
            cells[t][sensor] = "NA"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["date", *SENSORS])
    dates = np.datetime_as_string(_START + hour, unit="m")
    writer.writerows([str(date).replace("T", " "), *row] for date, row in zip(dates, cells, strict=True))
    path = folder / "sensors.csv"
    with written_atomically(path) as file:
        file.write(text.getvalue().encode())
    return path
