"""How files are read: what a suffix does not say, or says wrongly."""

from __future__ import annotations

import codecs
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, field_validator

from castiron.data.files import EXPANSION

Format = Literal["csv", "tsv", "jsonl", "parquet", "npz", "idx", "text"]


class ReadOptions(BaseModel):
    """How the files of a split are read."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Format | None = None
    """File format. Null: by suffix (.csv .tsv .jsonl .ndjson .parquet .npz .txt, each also with .gz), or by
    MNIST's names (…images-idx3-ubyte, labels beside them). text: every line is a row of column `text`."""
    header: bool = True
    """Whether the first row of a CSV or TSV file holds column names; else fields name positions from 0."""
    delimiter: str | None = None
    """What separates cells: one character, or `whitespace` for runs of blanks. Null: by format."""
    quoting: bool | None = None
    """Whether double quotes enclose cells. Null: in CSV yes, in TSV no (a quote there is a character)."""
    encoding: str = "utf-8"
    """Encoding of text files: utf-8, windows-1252, utf-16, …"""
    missing_values: tuple[str, ...] | None = None
    """Cell texts that mean missing in every field but text, unless the field says its own. Null: the empty
    cell in CSV and TSV; in the other formats only null."""
    largest_row: PositiveInt = 128 << 20
    """Bytes of a row of a text file; a longer one is refused, as a row is read whole."""
    largest_expansion: PositiveInt = EXPANSION
    """How many times its size a compressed file may expand to, once that is more than 1 GiB."""
    digest: bool | None = None
    """Whether the BLAKE3 digest of every file goes into the data report. Null: where a run reads it, as its
    report is kept; not where data is only checked, or loaded in code."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            codecs.lookup(name)
            return name
        except LookupError:
            raise ValueError(
                f"Expected an encoding that Python knows, such as utf-8. Received {name!r}."
            ) from None

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, text: str | None) -> str | None:
        if (
            text is None
            or text == "whitespace"
            or (len(text) == 1 and text.isascii() and text not in '"\r\n')
        ):
            return text
        raise ValueError(f"Expected one ASCII character or 'whitespace' as delimiter. Received {text!r}.")
