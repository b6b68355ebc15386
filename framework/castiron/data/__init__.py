"""The data contract: files become columns of declared format, and every cast is exact or counted."""

from castiron.data.missing import FittedMissing, FittedValue
from castiron.data.origin import Origin
from castiron.data.report import ColumnReport, DataReport, FileReport
from castiron.data.schema import Field, Missing, Role, Schema
from castiron.data.table import Dataset

__all__ = [
    "ColumnReport",
    "DataReport",
    "Dataset",
    "Field",
    "FileReport",
    "FittedMissing",
    "FittedValue",
    "Missing",
    "Origin",
    "Role",
    "Schema",
]
