"""The data contract: files become columns of declared format, and every cast is exact or counted."""

from castiron.data.assembly import Batch
from castiron.data.batches import Batches
from castiron.data.casts import CastResult, cast
from castiron.data.contract import check, load, load_batches
from castiron.data.missing import FittedMissing, FittedValue
from castiron.data.options import ReadOptions
from castiron.data.origin import Origin
from castiron.data.ragged import Ragged
from castiron.data.report import BadCell, ColumnReport, DataReport, FileReport
from castiron.data.schema import Field, Missing, Role, Schema
from castiron.data.table import Dataset
from castiron.data.text import Coverage, TextEncoder
from castiron.data.tokenization import TextConfig
from castiron.data.vectors import Vectors, load_vectors
from castiron.data.verdict import ContractError
from castiron.data.windows import Windows

__all__ = [
    "BadCell",
    "Batch",
    "Batches",
    "CastResult",
    "ColumnReport",
    "ContractError",
    "Coverage",
    "DataReport",
    "Dataset",
    "Field",
    "FileReport",
    "FittedMissing",
    "FittedValue",
    "Missing",
    "Origin",
    "Ragged",
    "ReadOptions",
    "Role",
    "Schema",
    "TextConfig",
    "TextEncoder",
    "Vectors",
    "Windows",
    "cast",
    "check",
    "load",
    "load_batches",
    "load_vectors",
]
