"""Readers: each turns one file into blocks of cells, with the line of every row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from castiron.data.options import ReadOptions
from castiron.data.readers.delimited import DelimitedSource, spellings_of
from castiron.data.readers.files import DataFile, format_for
from castiron.data.readers.idx import IdxSource
from castiron.data.readers.jsonl import JsonLinesSource
from castiron.data.readers.lines import LinesSource
from castiron.data.readers.npz import NpzSource
from castiron.data.readers.parquet import ParquetSource
from castiron.data.readers.source import Block, Source
from castiron.data.schema import Column, Schema

__all__ = ["Block", "Source", "open_source", "spellings_of"]


def open_source(
    path: Path, schema: Schema, options: ReadOptions, mapping: Mapping[str, tuple[Column, ...]]
) -> Source:
    """The reader for a file, by the options' format or the file's suffix.

    Raises:
        DataError: no format is known.
    """
    kind = format_for(path, options)
    file = DataFile(path, options)
    if kind == "jsonl":
        return JsonLinesSource(file, schema, options, mapping)
    if kind == "parquet":
        return ParquetSource(file, schema, options, mapping)
    if kind == "npz":
        return NpzSource(file, schema, options, mapping)
    if kind == "idx":
        return IdxSource(file, schema, options, mapping)
    if kind == "text":
        return LinesSource(file, schema, options, mapping)
    return DelimitedSource(file, schema, options, mapping, tabs=kind == "tsv")
