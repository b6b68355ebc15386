"""A data set in memory: columns of declared format, each row with its origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from castiron.data.missing import FittedMissing
from castiron.data.origin import LineIndex, Origin, Origins
from castiron.data.report import DataReport
from castiron.data.schema import Schema


class Dataset:
    """Rows that keep their contract.

    `columns` maps field names to arrays [rows, *shape] in the field's dtype; text fields are
    `pyarrow.ChunkedArray` of large_string [rows]. `report` says how they came to be, `fitted` which
    values stand in for missing ones (save it with the run, hand it to `load` for the other splits).
    """

    def __init__(
        self,
        schema: Schema,
        columns: Mapping[str, np.ndarray | pa.ChunkedArray],
        *,
        origins: Origins | None = None,
        report: DataReport | None = None,
        fitted: FittedMissing | None = None,
    ) -> None:
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Expected columns of one length. Received {lengths}.")
        if unknown := sorted(set(columns) - set(schema.names)):
            raise ValueError(
                f"Expected columns of the schema ({', '.join(schema.names)}). Received {unknown}."
            )
        self.schema = schema
        self.columns = dict(columns)
        self.report = report or DataReport()
        self.fitted = fitted or FittedMissing()
        self._rows = next(iter(lengths.values()), 0)
        if origins is None:
            memory = LineIndex("<memory>")
            memory.add(self._rows, 1)
            origins = Origins([memory])
        if len(origins) != self._rows:
            raise ValueError(f"Expected {self._rows} origins. Received {len(origins)}.")
        self._origins = origins

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, name: str) -> np.ndarray | pa.ChunkedArray:
        try:
            return self.columns[name]
        except KeyError:
            raise KeyError(f"Expected a field ({', '.join(self.columns)}). Received {name!r}.") from None

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __repr__(self) -> str:
        fields = ", ".join(f"{f.name}: {f.form}" for f in self.schema.fields if f.name in self.columns)
        return f"Dataset({self._rows:,} rows, {fields})"

    def array(self, name: str) -> np.ndarray:
        """The values of a field that has a number format [rows, *shape]."""
        values = self[name]
        if not isinstance(values, np.ndarray):
            raise TypeError(f"Expected a field with a number format. Received text field {name!r}.")
        return values

    def texts(self, name: str) -> list[str]:
        """The values of a text field as Python strings."""
        values = self[name]
        if isinstance(values, np.ndarray):
            raise TypeError(f"Expected a text field. Received {name!r} of {values.dtype}.")
        texts: list[str] = values.to_pylist()
        return texts

    def row(self, index: int) -> dict[str, Any]:
        """One row: field name to a NumPy value, or to a str."""
        return {
            name: values[index] if isinstance(values, np.ndarray) else values[index].as_py()
            for name, values in self.columns.items()
        }

    def origin(self, index: int) -> Origin:
        """File and line of a row; a negative index counts from the end."""
        return self._origins[index]

    def take(self, indices: np.ndarray) -> Dataset:
        """These rows in this order; they keep their origins, and the report of the whole."""
        wanted = np.asarray(indices)
        wanted = np.flatnonzero(wanted) if wanted.dtype == bool else wanted.astype(np.int64)
        columns = {
            name: values[wanted] if isinstance(values, np.ndarray) else values.take(pa.array(wanted))
            for name, values in self.columns.items()
        }
        origins = self._origins.take(wanted)
        return Dataset(self.schema, columns, origins=origins, report=self.report, fitted=self.fitted)
