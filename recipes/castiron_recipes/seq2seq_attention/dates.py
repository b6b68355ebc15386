"""The data that the recipe brings along: dates as people write them, and the same in ISO 8601.

A day has one reading only: dots put the day first, slashes the month (or, after four digits, the year), and a
year of two digits is one of 1950 to 2049.
"""

from __future__ import annotations

import csv
import datetime
import io
from pathlib import Path

import numpy as np

from castiron.data.files import written_atomically

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FORMS = (
    "{d} {month} {y}", "{d} {mon} {y}", "{month} {d}, {y}", "{mon} {d}, {y}", "{month} {th}, {y}",
    "the {th} of {month} {y}", "{weekday}, {d} {month} {y}", "{day} {d} {mon} {y}",
    "{weekday}, {month} {th}, {y}", "{d} {mon} '{yy}", "{d}.{m}.{y}", "{dd}.{mm}.{yy}", "{m}/{d}/{y}",
    "{mm}/{dd}/{yy}", "{y}/{mm}/{dd}", "{y}{mm}{dd}",
)  # fmt: skip
"""How a date is written; `th` is 3rd, `mon` Mar, `day` Tue."""
ROWS = {"train": 8000, "validation": 1000, "test": 1000}

_FIRST = datetime.date(1950, 1, 1)
_DAYS = (datetime.date(2050, 1, 1) - _FIRST).days


def write(folder: Path, *, seed: int) -> dict[str, Path]:
    """Write the splits as CSV with columns source and target; → split, file. No day is in two splits."""
    random = np.random.default_rng(seed)
    days = random.choice(_DAYS, sum(ROWS.values()), replace=False)
    files, start = {}, 0
    for split, rows in ROWS.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["source", "target"])
        for day in days[start : start + rows]:
            date = _FIRST + datetime.timedelta(days=int(day))
            writer.writerow([written(date, random), date.isoformat()])
        start += rows
        files[split] = folder / f"{split}.csv"
        with written_atomically(files[split]) as file:
            file.write(text.getvalue().encode())
    return files


def written(date: datetime.date, random: np.random.Generator) -> str:
    """A date in one of the forms, in small letters, in capitals, or as it is."""
    text = FORMS[random.integers(len(FORMS))].format(
        d=date.day,
        dd=f"{date.day:02}",
        th=f"{date.day}{_ordinal(date.day)}",
        m=date.month,
        mm=f"{date.month:02}",
        month=MONTHS[date.month - 1],
        mon=MONTHS[date.month - 1][:3],
        y=date.year,
        yy=f"{date.year % 100:02}",
        weekday=WEEKDAYS[date.weekday()],
        day=WEEKDAYS[date.weekday()][:3],
    )
    return (text, text, text.lower(), text.upper())[random.integers(4)]


def _ordinal(day: int) -> str:
    return "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
