"""The data contract as it is declared: fields with roles, formats, shapes, ranges and missing values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from castiron.formats import DTypeName, number_format

Role = Literal["feature", "target", "id", "mask", "weight", "text", "image"]
"""What a field is for. Roles decide casts: an id never becomes a float, text has no number format."""

Column = str | int
"""A column of a file: its name, or its position counted from 0 (files without a header)."""

Treatment = Literal["error", "nan", "constant", "mean", "median", "drop"]

_DEFAULT_DTYPES: dict[str, DTypeName] = {
    "feature": "float32",
    "target": "float32",
    "weight": "float32",
    "mask": "bool",
    "id": "int64",
    "image": "uint8",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Missing(_Part):
    """What to do with a missing value: an empty cell, a null, a NaN, or a declared spelling."""

    treatment: Treatment = "error"
    """error: refuse; nan: keep as NaN (float fields); constant: put `value`; mean, median: of the
    training data (float fields), saved with the run; drop: leave the row out, counted."""
    value: float | int | bool | str | None = None
    """What treatment `constant` puts; for a field with categories, the text of one of them."""
    spellings: tuple[str, ...] | None = None
    """Cell texts that mean missing, compared without surrounding blanks: ['', '?', 'N/A'].
    Null: those of the read options (the empty cell), and none but the empty cell for text."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"treatment": data}
        if isinstance(data, Mapping) and set(data) == {"constant"}:
            return {"treatment": "constant", "value": data["constant"]}
        return data

    @model_validator(mode="after")
    def _value_goes_with_constant(self) -> Missing:
        if (self.treatment == "constant") != (self.value is not None):
            raise ValueError(
                f"Expected `value` with treatment 'constant', and only with it. "
                f"Received treatment {self.treatment!r} with value {self.value!r}."
            )
        return self


def _columns(value: Any) -> Any:
    return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value


def _categories(value: Any) -> Any:
    """A list of labels counts from class 0; keys that YAML read as numbers or booleans are text again."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {_label(k): v for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        labels = [_label(v) for v in value]
        if len(set(labels)) != len(labels):
            raise ValueError(f"Expected every category once. Received {labels}.")
        return {label: index for index, label in enumerate(labels)}
    return value


def _label(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


class Field(_Part):
    """One field of a row: where it comes from, and what it must be before a model may see it."""

    name: str
    """Name by which recipes and batches know the field."""
    role: Role = "feature"
    """feature, target, id, mask, weight, text or image."""
    dtype: DTypeName | None = None
    """Number format of the values. Null: by role (feature, target, weight: float32; a target with
    categories and an id: int64; mask: bool; image: uint8). Text has none."""
    shape: tuple[int, ...] = ()
    """Shape of one row's value; () is a single number."""
    column: Annotated[tuple[Column, ...] | None, BeforeValidator(_columns)] = None
    """Column the field is read from: a name, a position from 0, or alternatives of which each file must
    have one. Null: the column of the field's name. `data.columns` of a config overrides it."""
    required: bool = True
    """Whether a file without the column is refused; else the field is left out of the data set."""
    minimum: float | int | None = None
    """Smallest value allowed, inclusive."""
    maximum: float | int | None = None
    """Largest value allowed, inclusive."""
    finite: bool = True
    """Whether an infinite value in the source is refused."""
    categories: Annotated[dict[str, int] | None, BeforeValidator(_categories)] = None
    """Label text to class index; a list counts from 0. Any other text is refused."""
    missing: Missing = Missing()
    """What to do with missing values; a word such as `drop`, or a mapping."""
    bad: Literal["error", "drop", "missing"] = "error"
    """What to do with a cell that breaks the contract (text that is no number, a lossy cast, out of range,
    an unknown category): refuse; leave its row out, counted; or treat it as a missing value, counted."""
    tolerance: float | None = None
    """Largest relative error that rounding may cause; beyond it the cast counts as lossy. Null: any
    rounding to the nearest value of the format is allowed."""

    @model_validator(mode="before")
    @classmethod
    def _dtype_by_role(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("dtype") not in (None, "utf8"):
            return data
        role = data.get("role", "feature")
        dtype = _DEFAULT_DTYPES.get(role)
        if role == "target" and data.get("categories") is not None:
            dtype = "int64"
        return {**data, "dtype": dtype}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Field:
        if problem := self._contradiction():
            raise ValueError(problem)
        return self

    def _contradiction(self) -> str | None:
        if self.role == "text":
            if self.dtype is not None or self.shape or self.categories:
                return f"Field '{self.name}' is text: it has no dtype, shape or categories."
            if self.missing.treatment in ("nan", "mean", "median"):
                return f"Field '{self.name}' is text: missing may be error, drop or constant."
            if self.missing.value is not None and not isinstance(self.missing.value, str):
                return f"Field '{self.name}' is text: missing needs a text, not {self.missing.value!r}."
            return None
        assert self.dtype is not None
        form = number_format(self.dtype)
        if self.role == "id" and not form.is_integer:
            return f"Field '{self.name}' is an id: expected an integer dtype, received {self.dtype}."
        if self.missing.treatment in ("nan", "mean", "median") and not form.is_float:
            return (
                f"Field '{self.name}' is {self.dtype}: missing: {self.missing.treatment} needs a float "
                "dtype. Use drop, constant or error."
            )
        if any(size < 1 for size in self.shape):
            return f"Field '{self.name}': expected a shape of sizes from 1, received {self.shape}."
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            return f"Field '{self.name}': minimum {self.minimum} is above maximum {self.maximum}."
        if self.categories is not None:
            if not form.is_integer:
                return f"Field '{self.name}' has categories: expected an integer dtype, not {self.dtype}."
            if self.shape:
                return f"Field '{self.name}' has categories: expected shape (), received {self.shape}."
            if any(not form.min <= index <= form.max for index in self.categories.values()):
                return f"Field '{self.name}': class indices must fit {self.dtype}."
            if self.missing.value is not None and _label(self.missing.value) not in self.categories:
                return f"Field '{self.name}': the constant {self.missing.value!r} is none of its categories."
        elif isinstance(self.missing.value, str):
            return f"Field '{self.name}' is {self.dtype}: expected a number, received {self.missing.value!r}."
        return None

    @property
    def is_text(self) -> bool:
        return self.role == "text"

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns that may hold the field, first choice first."""
        return self.column if self.column is not None else (self.name,)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's value in memory; of text, the least it can be."""
        item = 1 if self.dtype is None else number_format(self.dtype).itemsize
        return math.prod(self.shape) * item

    @property
    def form(self) -> str:
        """The format in words, for messages: `float32`, `uint8 [28, 28]`, `text`."""
        name = "text" if self.dtype is None else self.dtype
        return f"{name} {list(self.shape)}" if self.shape else name


class Schema(_Part):
    """The fields of a data set, in order."""

    fields: tuple[Field, ...]
    """Fields; their names are unique."""
    strict: bool = False
    """Whether columns that no field reads are refused; else they are counted in the report."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with a row that has too many or too few cells."""
    key: tuple[str, ...] | None = None
    """Fields by which two rows are the same one: of a row that is held out, no copy is trained on. Null: the
    text fields; []: no two rows are."""

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, data: Any) -> Any:
        return {"fields": data} if isinstance(data, list | tuple) else data

    @model_validator(mode="after")
    def _names_are_unique(self) -> Schema:
        names = [f.name for f in self.fields]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(
                f"Expected every field once. Received {', '.join(map(repr, twice))} more than once."
            )
        if not names:
            raise ValueError("Expected at least one field.")
        if unknown := sorted(set(self.key or ()) - set(names)):
            raise ValueError(f"Expected fields of the schema as its key. Received {unknown}.")
        return self

    @classmethod
    def of(cls, *fields: Field, **options: Any) -> Schema:
        """`Schema.of(Field(...), Field(...), strict=True)`."""
        return cls(fields=fields, **options)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.fields)

    def __getitem__(self, name: str) -> Field:
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(f"Expected a field ({', '.join(self.names)}). Received {name!r}.")

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __len__(self) -> int:
        return len(self.fields)

    def by_role(self, *roles: Role) -> tuple[Field, ...]:
        """The fields of these roles, in order."""
        return tuple(f for f in self.fields if f.role in roles)

    def without(self, *names: str) -> Schema:
        """The schema less these fields: to predict on files that have no target."""
        return self.model_copy(update={"fields": tuple(f for f in self.fields if f.name not in names)})

    def each(self) -> Iterator[Field]:
        return iter(self.fields)
