"""Arguments such as `optimizer.lr=3e-4`: a dotted key, and a value read as YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from castiron.diagnostics import Finding, Place, finding
from castiron.training.yaml_reader import Document, KeyPath, dotted, read_value, shorten


def read_overrides(arguments: Sequence[str]) -> list[Document]:
    """One document per argument, to be merged in order: a later one wins."""
    return [_read(argument) for argument in arguments]


def split_key(text: str) -> list[str] | None:
    """The parts of a dotted key; parts in double quotes may hold dots. None where it is no key."""
    parts: list[str] = []
    rest = text
    while True:
        if rest.startswith('"'):
            end = rest.find('"', 1)
            if end < 0:
                return None
            part, rest = rest[1:end], rest[end + 1 :]
        else:
            end = rest.find(".")
            part, rest = (rest, "") if end < 0 else (rest[:end], rest[end:])
            if not part or any(c.isspace() for c in part):
                return None
        parts.append(part)
        if not rest:
            return parts
        if not rest.startswith(".") or len(rest) == 1:
            return None
        rest = rest[1:]


def _read(argument: str) -> Document:
    source = f"argument '{shorten(argument)}'"
    split = _equals(argument)
    key, text = (argument[:split], argument[split + 1 :]) if split >= 0 else (argument, None)
    parts = split_key(key)
    if text is None or parts is None or argument.startswith("-"):
        remedy = None
        if argument.startswith("-"):
            remedy = f"Overrides are written without dashes: {argument.lstrip('-')}."
        return _refused(finding("X813", "", expected="dotted.key=value", received=source, remedy=remedy))
    place = Place(file=source, key=dotted(tuple(parts)))
    if not text.strip():
        return _refused(
            finding(
                "X813",
                "",
                place=place,
                expected="a value after '='",
                received="nothing",
                remedy="Write null where you mean that there is none.",
            )
        )
    value, findings = read_value(text, source)
    if findings:
        quoted = f"'{key}=\"{text}\"'"
        remedy = f"Quote text that YAML would take for something else: {quoted}."
        problems = [
            finding("X813", f.message, place=place, expected=f.expected, received=f.received, remedy=remedy)
            if f.code == "X806"
            else f
            for f in findings
        ]
        return Document(findings=tuple(problems))
    places: dict[KeyPath, Place] = {
        tuple(parts[:n]): Place(file=source, key=dotted(tuple(parts[:n]))) for n in range(1, len(parts) + 1)
    }
    tree: Any = value
    for part in reversed(parts):
        tree = {part: tree}
    return Document(tree, places, places)


def _equals(argument: str) -> int:
    """Position of the first `=` outside of double quotes."""
    quoted = False
    for i, char in enumerate(argument):
        if char == '"':
            quoted = not quoted
        elif char == "=" and not quoted:
            return i
    return -1


def _refused(problem: Finding) -> Document:
    return Document(findings=(problem,))
