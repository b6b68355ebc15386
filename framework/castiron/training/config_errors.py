"""Pydantic's errors in castiron's words: code, place, expected, received, what was probably meant."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from castiron.diagnostics import Finding, Place, finding
from castiron.policy.presets import ALIASES, PRESETS, preset_name
from castiron.training.suggestions import did_you_mean, near, near_key
from castiron.training.yaml_reader import KeyPath, describe, dotted

Locate = Callable[[KeyPath, bool], Place]
"""The place of a path of the config: of its key (True) or of its value (False)."""

_TYPES = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of ordinary size",
    "float_type": "a number", "float_parsing": "a number", "decimal_type": "a number",
    "string_type": "text", "string_sub_type": "text", "path_type": "a path", "string_unicode": "text",
    "bool_type": "true or false", "bool_parsing": "true or false",
    "dict_type": "a mapping", "mapping_type": "a mapping", "model_type": "a mapping",
    "model_attributes_type": "a mapping", "dataclass_type": "a mapping", "typed_dict_type": "a mapping",
    "list_type": "a list", "tuple_type": "a list", "set_type": "a list", "iterable_type": "a list",
    "none_required": "null",
}  # fmt: skip
_RANGES = {
    "greater_than": ("gt", ">"), "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"), "less_than_equal": ("le", "<="),
    "multiple_of": ("multiple_of", "a multiple of"),
}  # fmt: skip
_VALUE_ERROR = re.compile(
    r"(?is)^expected (?P<expected>.+?)[.,;] received (?P<received>.+?)\.?(?P<hint> Did you mean .+\?)?$"
)


def findings_of(
    error: ValidationError,
    model: type[BaseModel],
    tree: Mapping[str, Any],
    locate: Locate,
    prefix: KeyPath = (),
) -> list[Finding]:
    """One finding per mistake.

    Args:
        error: what validating `tree` as `model` raised.
        model: the model it was validated as.
        tree: the plain values that were given.
        locate: finds the place of a path (with `prefix`).
        prefix: where `tree` stands within the whole config.
    """
    records = [_Record(e, model, tree) for e in error.errors(include_url=False)]
    return [
        _finding(group, model, locate, prefix)
        for group in _grouped(records)
    ]  # fmt: skip


class _Record:
    """One of pydantic's errors, with the path in the config that it is about."""

    def __init__(self, error: Mapping[str, Any], model: type[BaseModel], tree: Mapping[str, Any]) -> None:
        self.type: str = error["type"]
        self.message: str = error["msg"]
        self.input: Any = error.get("input")
        self.context: Mapping[str, Any] = error.get("ctx", {})
        self.path, self.union = _path_in(error["loc"], model, tree)


def _path_in(loc: Sequence[str | int], model: type[BaseModel], tree: Any) -> tuple[KeyPath, KeyPath | None]:
    """The keys among the parts of a location, without the names of union members that pydantic puts between;
    and the path of the outermost union passed (None: none)."""
    path: list[str | int] = []
    union: KeyPath | None = None
    node, annotation = tree, model
    for i, part in enumerate(loc):
        in_list = isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)
        in_mapping = isinstance(node, Mapping) and part in node
        declared = any(part in keys_of(m) for m in _models(annotation))
        if in_list or in_mapping:
            node = node[part]
        elif declared or isinstance(part, int):
            node = None
        elif i == 0 and model is annotation:
            pass  # a key that a validator put in
        else:
            union = tuple(path) if union is None else union
            continue
        path.append(part)
        annotation = _inner(annotation, part)
    return tuple(path), union


def _grouped(records: list[_Record]) -> Iterator[list[_Record]]:
    """Errors of the same value together; of a union's members, those that got farthest."""
    groups: dict[KeyPath, list[_Record]] = {}
    for r in records:
        groups.setdefault(r.path if r.union is None else r.union, []).append(r)
    for group in groups.values():
        farthest = max(len(r.path) for r in group)
        deepest = [r for r in group if len(r.path) == farthest]
        by_path: dict[KeyPath, list[_Record]] = {}
        for r in deepest:
            by_path.setdefault(r.path, []).append(r)
        yield from by_path.values()


def _finding(group: list[_Record], model: type[BaseModel], locate: Locate, prefix: KeyPath) -> Finding:
    first = group[0]
    path = (*prefix, *first.path)
    if len(group) > 1:
        types = list(dict.fromkeys(_expected(r) for r in group))
        nullable = _nullable(model, first.path) and "null" not in types
        expected = _either([*types, "null"] if nullable else types)
        code = "X803" if any(r.type in _RANGES for r in group) else "X802"
        return finding(
            code,
            "",
            place=locate(path, False),
            expected=expected,
            received=describe(first.input),
            remedy=_remedy(first, code),
        )
    match first.type:
        case "extra_forbidden":
            return _unknown_key(first, model, locate, prefix)
        case "missing" if isinstance(first.path[-1], int):
            given = describe(first.input)
            return finding(
                "X803",
                "",
                place=locate(path[:-1], False),
                expected=f"{first.path[-1] + 1} entries",
                received=given,
            )
        case "missing":
            message = f"The key '{dotted(path)}' is not stated."
            return finding("X804", message, place=locate(path[:-1], False))
        case "literal_error" | "enum" | "union_tag_invalid":
            return _unknown_choice(first, locate, path)
        case "union_tag_not_found":
            message = f"The key '{dotted((*path, _discriminator(first)))}' is not stated."
            return finding("X804", message, place=locate(path, False))
        case "declared_twice":
            section, within = first.context["section"], first.context["within"]
            place = locate(("precision", within), True)
            other = locate((section,), True)
            where = f" (at {other.file}:{other.line})" if other.line else ""
            message = f"The section '{section}' is stated at the top level{where} and within 'precision'."
            return finding("X816", message, place=place)
        case "value_error" | "assertion_error":
            return _value_error(first, locate, path)
        case "invalid_key":
            return finding(
                "X806", "", place=locate(path, True), expected="a word as a key", received=describe(path[-1])
            )
    if first.type in _TYPES:
        expected = _expected(first) + (" or null" if _nullable(model, first.path) else "")
        if path == ("precision",):
            expected = "a preset, a short string (p=float32,c=bfloat16) or a mapping"
        return finding(
            "X802",
            "",
            place=locate(path, False),
            expected=expected,
            received=describe(first.input),
            remedy=_remedy(first, "X802"),
        )
    return finding(
        "X803", "", place=locate(path, False), expected=_expected(first), received=describe(first.input)
    )


def _unknown_key(record: _Record, model: type[BaseModel], locate: Locate, prefix: KeyPath) -> Finding:
    path = (*prefix, *record.path)
    siblings = [k for m in models_at(model, record.path[:-1]) for k in keys_of(m)]
    everywhere = [dotted((*prefix, *p)) for p in all_keys(model)]
    if prefix:  # within the recipe's part, a key may belong to any other part
        from castiron.training.config import RunConfig

        everywhere += [dotted(p) for p in all_keys(RunConfig)]
    remedy = did_you_mean(near_key(dotted(path), siblings, everywhere))
    if not remedy:
        known = ", ".join(siblings)
        where = f"'{dotted(path[:-1])}'" if path[:-1] else "A config"
        remedy = f"{where} takes: {known}." if known else f"{where} takes no keys."
    place = locate(path, True)
    return finding("X801", "There is no such key.", place=place, received=f"'{path[-1]}'", remedy=remedy)


def _unknown_choice(record: _Record, locate: Locate, path: KeyPath) -> Finding:
    expected = str(record.context.get("expected") or record.context.get("expected_tags") or "")
    value = record.input
    if record.type == "union_tag_invalid":
        value = record.context.get("tag")
        path = (*path, _discriminator(record))
    words = re.findall(r"'([^']*)'", expected)
    remedy = did_you_mean(near(value, words)) if isinstance(value, str) else ""
    received = f"'{value}'" if isinstance(value, str) else describe(value)
    place = locate(path, False)
    return finding(
        "X805",
        "",
        place=place,
        expected=_either([f"'{w}'" for w in words]) or expected,
        received=received,
        remedy=remedy or None,
    )


def _value_error(record: _Record, locate: Locate, path: KeyPath) -> Finding:
    """A validator's own message: `expected …, received …` is taken apart, other sentences stay whole."""
    text = str(record.context.get("error") or record.message.removeprefix("Value error, ")).strip()
    place = locate(path, False)
    name = record.input.get("preset") if isinstance(record.input, Mapping) else record.input
    is_preset = path and path[0] == "precision" and "expected a preset" in text
    if is_preset and isinstance(name, str) and preset_name(name) is None:
        if isinstance(record.input, Mapping):
            place = locate((*path, "preset"), False)
        remedy = did_you_mean(near(name, PRESETS, 2) or near(name, ALIASES, 2))
        return finding(
            "X805",
            "",
            place=place,
            expected=f"a preset ({', '.join(PRESETS)})",
            received=f"'{name}'",
            remedy=remedy or "`castiron policy list` explains them.",
        )
    if found := _VALUE_ERROR.match(text):
        remedy = (found["hint"] or "").strip()
        return finding(
            "X805" if remedy else "X803",
            "",
            place=place,
            expected=found["expected"],
            received=found["received"],
            remedy=remedy or None,
        )
    is_key = set("._=") & set(text.split(maxsplit=1)[0]) if text else set()
    return finding("X815", text if is_key else text[:1].upper() + text[1:], place=place)


def _expected(record: _Record) -> str:
    if record.type in _RANGES:
        key, sign = _RANGES[record.type]
        limit = record.context[key]
        noun = "a whole number" if isinstance(limit, int) and isinstance(record.input, int) else "a number"
        return f"{noun} {sign} {limit:g}" if sign[0] != "a" else f"{sign} {limit:g}"
    match record.type:
        case "finite_number":
            return "a finite number"
        case "too_short" | "string_too_short":
            least = record.context.get("min_length")
            return f"at least {_counted(least, record)}"
        case "too_long" | "string_too_long":
            most = record.context.get("max_length")
            return f"at most {_counted(most, record)}"
        case "string_pattern_mismatch":
            return f"text that matches {record.context['pattern']}"
        case "literal_error":
            return str(record.context["expected"])
        case "missing":
            return "one more entry"
    text = record.message
    for lead in ("Input should be ", "Value should be ", "Value error, "):
        text = text.removeprefix(lead)
    return _TYPES.get(record.type, text)


def _counted(n: Any, record: _Record) -> str:
    one, many = ("character", "characters") if record.type.startswith("string") else ("entry", "entries")
    return f"{n} {one if n == 1 else many}"


def _remedy(record: _Record, code: str) -> str | None:
    value = record.input
    if (
        record.type.startswith("bool")
        and isinstance(value, str)
        and value.lower() in ("yes", "no", "on", "off")
    ):
        return f"YAML 1.2 writes {'true' if value.lower() in ('yes', 'on') else 'false'}."
    if record.type.startswith(("int", "float")) and isinstance(value, str):
        text = value.replace(",", "").replace(" ", "")
        if re.fullmatch(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", text):
            return f"Write {text}, without quotes and separators."
    return None


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}" if words else ""


def _discriminator(record: _Record) -> str:
    return str(record.context.get("discriminator", "kind")).strip("'")


# --- what a model declares -------------------------------------------------------------------------


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys a mapping of this model takes (aliases where there are)."""
    return [f.alias or name for name, f in model.model_fields.items()]


def all_keys(model: type[BaseModel], depth: int = 5) -> Iterator[KeyPath]:
    """Every key below this model, sections before what they hold."""
    for name, field in model.model_fields.items():
        key = field.alias or name
        yield (key,)
        if depth:
            for inner in _models(field.annotation):
                yield from ((key, *rest) for rest in all_keys(inner, depth - 1))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models among the alternatives of an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [m for a in get_args(annotation) for m in _models(a)]
    return []


def _inner(annotation: Any, part: str | int) -> Any:
    """The annotation of what stands under this key or position; None where it is not known."""
    for model in _models(annotation):
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                return field.annotation
    origin = get_origin(annotation)
    if origin is Annotated:
        return _inner(get_args(annotation)[0], part)
    if origin in (Union, types.UnionType):
        found = (_inner(a, part) for a in get_args(annotation))
        return next((f for f in found if f is not None), None)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return get_args(annotation)[1]
    if origin in (list, tuple) and get_args(annotation):
        return get_args(annotation)[0]
    return None


def models_at(model: type[BaseModel], path: KeyPath) -> list[type[BaseModel]]:
    """The models that a mapping at this path is one of; none where its keys are free."""
    annotation: Any = model
    for part in path:
        annotation = _inner(annotation, part)
    return _models(annotation)


def _nullable(model: type[BaseModel], path: KeyPath) -> bool:
    annotation: Any = model
    for part in path:
        annotation = _inner(annotation, part)
    if get_origin(annotation) is Literal:
        return None in get_args(annotation)
    return type(None) in get_args(annotation)
