"""What `predict` is asked, held against the recipe's contract like any other data."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from castiron.data import Dataset, Field, FittedMissing, Missing, Schema
from castiron.data.contract import load
from castiron.diagnostics import ConfigError, Place, finding

FILE = "inputs.jsonl"
"""What messages call the inputs; their number is the line."""


def dataset_of(
    schema: Schema, inputs: Sequence[str | Mapping[str, Any]], fitted: FittedMissing | None = None
) -> Dataset:
    """Inputs as rows, one each and in order. A text is the schema's one text field; a mapping names fields.

    Targets and weights are not asked for. Nothing is dropped: an empty text is a text, and any other missing
    value that training would have dropped is refused.

    Raises:
        ConfigError: a text is given, and the schema has not exactly one text field.
        DataError: an input breaks the contract.
    """
    asked = Schema(
        fields=tuple(_asked(f) for f in schema.fields if f.role not in ("target", "weight")),
        strict=False,
    )
    texts = [f.name for f in asked.fields if f.is_text]
    records = []
    for number, given in enumerate(inputs, 1):
        if isinstance(given, str):
            if len(texts) != 1:
                raise ConfigError(
                    finding(
                        "X820",
                        "A text alone does not say which field it is.",
                        place=Place(file=FILE, line=number),
                        expected=f"a mapping of fields ({', '.join(asked.names)})",
                        received=repr(given[:60]),
                    )
                )
            given = {texts[0]: given}
        for name, value in given.items():
            if isinstance(value, str):
                _check_unicode(number, name, value)
        records.append(dict(given))
    with tempfile.TemporaryDirectory(prefix="castiron-") as folder:
        path = Path(folder) / FILE
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return load(path, asked, fitted=fitted, split="predict")


def _check_unicode(number: int, name: str, text: str) -> None:
    """Refuse what Python makes of arguments that are not UTF-8, and half a pair of `\\ud83c\\udfac`.

    Raises:
        ConfigError: the input is no text (X823).
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        code = ord(text[e.start])
        byte = 0xDC80 <= code <= 0xDCFF  # PEP 383: a byte that could not be decoded
        raise ConfigError(
            finding(
                "X823",
                "",
                place=Place(file=FILE, line=number, field=name),
                expected="text in UTF-8",
                received=f"byte 0x{code - 0xDC00:02x}" if byte else f"half a surrogate pair (\\u{code:04x})",
                remedy="Give text in UTF-8; other encodings by --file, once converted.",
            )
        ) from None


def _asked(field: Field) -> Field:
    if field.is_text:
        return field.model_copy(update={"missing": Missing(treatment="constant", value=""), "bad": "error"})
    missing = field.missing
    if missing.treatment == "drop":
        missing = Missing(spellings=missing.spellings)
    return field.model_copy(update={"missing": missing, "bad": "error"})
