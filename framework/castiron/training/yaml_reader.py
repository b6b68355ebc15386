"""YAML 1.2 as plain values, with the position of every key and value; nothing in a file can run code.

ruamel.yaml composes the node tree; values are made from it here, so that every problem of a file is reported
at once with its place, and neither aliases nor nesting can exhaust the memory.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from castiron.data.files import odd_kind
from castiron.diagnostics import Finding, Place, finding

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the root of a document."""

MAX_BYTES = 256 * 1024
MAX_NODES = 5_000
MAX_DEPTH = 40

_CORE = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Document:
    """A mapping read from one source."""

    tree: dict[str, Any] = field(default_factory=dict)
    """Plain values: dict with text keys, list, str, int, float, bool, None."""
    keys: Mapping[KeyPath, Place] = field(default_factory=dict)
    """Where each key is written."""
    values: Mapping[KeyPath, Place] = field(default_factory=dict)
    """Where each value begins."""
    findings: tuple[Finding, ...] = ()


def read_file(path: Path, shown: str | None = None) -> Document:
    """The mapping in a YAML file; its problems are the document's findings, nothing is raised.

    Args:
        path: the file.
        shown: its name in messages; the path by default.
    """
    name = shown or str(path)
    try:
        if kind := odd_kind(path):
            return _refused("X823", f"Expected a YAML file. Received the {kind} '{name}'.", name)
        if path.stat().st_size > MAX_BYTES:
            size = f"{path.stat().st_size:,} bytes"
            return _refused(
                "X823", "The file is too large for a config.", name, f"at most {MAX_BYTES:,} bytes", size
            )
        raw = path.read_bytes()
    except OSError as e:
        return _refused("X823", f"The file cannot be read: {e.strerror or e}.", name)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        column = e.start - raw.rfind(b"\n", 0, e.start)
        place = Place(file=name, line=line, column=column)
        return Document(
            findings=(
                finding(
                    "X823", "", place=place, expected="text in UTF-8", received=f"byte 0x{raw[e.start]:02x}"
                ),
            )
        )
    return read_text(text, name)


def read_text(text: str, name: str) -> Document:
    """The mapping in this text. `name` is what messages call its source."""
    node, problems = _compose(text, name)
    if problems:
        return Document(findings=tuple(problems))
    if node is None:
        return _refused("X806", "The file is empty.", name, "a mapping of keys to values")
    reader = _Reader(name)
    value = reader.build(node, (), 0)
    if not reader.findings and not isinstance(value, dict):
        place = Place(file=name, line=node.start_mark.line + 1, column=node.start_mark.column + 1)
        reader.findings.append(
            finding("X806", "", place=place, expected="a mapping of keys to values", received=describe(value))
        )
    tree = value if isinstance(value, dict) else {}
    return Document(tree, reader.keys, reader.values, tuple(reader.findings))


def read_value(text: str, name: str) -> tuple[Any, tuple[Finding, ...]]:
    """One value, as after the `=` of an argument. Places say the argument only."""
    node, problems = _compose(text, name)
    if problems or node is None:
        return None, tuple(problems)
    reader = _Reader(name, positions=False)
    return reader.build(node, (), 0), tuple(reader.findings)


def describe(value: Any) -> str:
    """A value as messages show it: `'abc' (text)`, `-1`, `null`, `a list of 3`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"{shorten(repr(value))} (text)"
    if isinstance(value, Mapping):
        keys = ", ".join(str(k) for k in list(value)[:3]) + (", …" if len(value) > 3 else "")
        return f"a mapping ({shorten(keys)})" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan")
    return shorten(repr(value))


def shorten(text: str, width: int = 80) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


class _TooMuchError(Exception):
    """A limit was passed."""


# --- from text to nodes ----------------------------------------------------------------------------


def _compose(text: str, name: str) -> tuple[Any, list[Finding]]:
    """The root node (None for an empty document), or what is wrong with the text."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yaml = YAML(typ="safe", pure=True)
            _bound(yaml.parser)
            return yaml.compose(text), []
    except ReaderError as e:
        line = text.count("\n", 0, e.position) + 1
        column = e.position - text.rfind("\n", 0, e.position)
        place = Place(file=name, line=line, column=column)
        received = f"the control character {e.character!r}"
        return None, [finding("X806", "", place=place, expected="printable text", received=received)]
    except MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        place = Place(file=name, line=mark.line + 1, column=mark.column + 1) if mark else Place(file=name)
        return None, [_syntax(e, place, text, mark.line if mark else 0)]
    except _TooMuchError as e:
        expected, mark = e.args
        place = Place(file=name, line=mark.line + 1, column=mark.column + 1)
        what = "is nested too deeply" if "levels" in expected else "holds too many values"
        return None, [finding("X821", f"The file {what}.", place=place, expected=expected)]
    except (YAMLError, ValueError, AttributeError, TypeError, IndexError, KeyError, AssertionError) as e:
        # ruamel's scanner and parser raise these bare on some malformed directives, tags and escapes.
        message = f"The text is not YAML ({shorten(str(e).splitlines()[0] if str(e) else type(e).__name__)})."
        return None, [finding("X806", message, place=Place(file=name))]


def _bound(parser: Any) -> None:
    """Stop the parser at the limits: its time grows with the square of the depth, and it recurses."""
    next_event = parser.get_event
    depth = nodes = 0

    def bounded() -> Any:
        nonlocal depth, nodes
        event = next_event()
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        nodes += 1
        if depth > MAX_DEPTH + 2:  # the stream and the document are levels too
            raise _TooMuchError(f"at most {MAX_DEPTH} levels", event.start_mark)
        if nodes > 2 * MAX_NODES:
            raise _TooMuchError(f"at most {MAX_NODES:,} values", event.start_mark)
        return event

    parser.get_event = bounded


def _syntax(error: Any, place: Place, text: str, line: int) -> Finding:
    problem = " ".join(str(error.problem or error.context or "cannot be read").split())
    lines = text.splitlines()
    source = lines[line] if line < len(lines) else ""
    if "\\t" in problem or re.match(r" *\t", source):
        return finding("X806", "A tab indents this line; YAML indents with spaces.", place=place)
    if "undefined alias" in problem:
        remedy = "Quote text that begins with '*'."
        return finding("X806", f"The text is not YAML: {problem}.", place=place, remedy=remedy)
    if "cannot start any token" in problem:
        remedy = "Quote text that begins with a special character."
        return finding("X806", f"The text is not YAML: {problem}.", place=place, remedy=remedy)
    if "expected a single document" in str(error.context) or "but found another document" in problem:
        return finding("X806", "The file holds more than one document.", place=place)
    return finding("X806", f"The text is not YAML: {shorten(problem, 160)}.", place=place)


def _refused(
    code: str, message: str, name: str, expected: str | None = None, received: str | None = None
) -> Document:
    place = Place() if f"'{name}'" in message else Place(file=name)
    return Document(findings=(finding(code, message, place=place, expected=expected, received=received),))


# --- from nodes to values --------------------------------------------------------------------------


class _Reader:
    """Makes plain values of nodes; keeps places and collects findings."""

    def __init__(self, name: str, *, positions: bool = True) -> None:
        self.name = name
        self.positions = positions
        self.keys: dict[KeyPath, Place] = {}
        self.values: dict[KeyPath, Place] = {}
        self.findings: list[Finding] = []
        self.nodes = 0

    def build(self, node: Any, path: KeyPath, depth: int) -> Any:
        try:
            return self._value(node, path, depth)
        except _TooMuchError:
            return None

    def _value(self, node: Any, path: KeyPath, depth: int) -> Any:
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        self.nodes += 1
        if depth > MAX_DEPTH:
            self._say("X821", "The file is nested too deeply.", node, path[:1], f"at most {MAX_DEPTH} levels")
            raise _TooMuchError
        if self.nodes > MAX_NODES:
            most = f"at most {MAX_NODES:,} values"
            self._say("X821", "The file's aliases multiply to too many values.", node, path[:1], most)
            raise _TooMuchError
        self.values[path] = self._place(node, path)
        tag = _tag(node)
        if isinstance(node, ScalarNode):
            return self._scalar(node, tag, path)
        if isinstance(node, SequenceNode) and tag == "seq":
            return [self._value(child, (*path, i), depth + 1) for i, child in enumerate(node.value)]
        if isinstance(node, MappingNode) and tag == "map":
            return self._mapping(node, path, depth)
        return self._bad_tag(node, path)

    def _mapping(self, node: Any, path: KeyPath, depth: int) -> dict[str, Any]:
        from ruamel.yaml.nodes import ScalarNode

        built: dict[str, Any] = {}
        merged: list[Any] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._say("X806", "", key_node, path, "a word as a key", "a mapping or list")
                continue
            key = str(key_node.value)
            if _tag(key_node) == "merge" or (key == "<<" and key_node.style is None):
                merged.append(value_node)
                continue
            here = (*path, key)
            if key in built:
                first = self.keys[here]
                where = f"line {first.line}" if first.line else "above"
                message = f"The key '{key}' is stated twice (first at {where})."
                self._say("X807", message, key_node, here)
                continue
            self.keys[here] = self._place(key_node, here)
            built[key] = self._value(value_node, here, depth + 1)
        for value_node in merged:
            for source in self._sources(value_node, path):
                # Keys of the mapping itself, and those merged earlier, win.
                fresh = _Reader(self.name, positions=self.positions)
                fresh.nodes = self.nodes
                found = fresh.build(source, path, depth + 1)
                self.nodes = fresh.nodes
                self.findings += fresh.findings
                if any(f.code == "X821" for f in fresh.findings):
                    raise _TooMuchError
                for key, value in found.items():
                    if key not in built:
                        built[key] = value
                        start = (*path, key)
                        self.keys[start] = fresh.keys[start]
                        self.values |= {p: q for p, q in fresh.values.items() if p[: len(start)] == start}
                        self.keys |= {p: q for p, q in fresh.keys.items() if p[: len(start)] == start}
        return built

    def _sources(self, node: Any, path: KeyPath) -> list[Any]:
        from ruamel.yaml.nodes import MappingNode, SequenceNode

        nodes = node.value if isinstance(node, SequenceNode) else [node]
        good = [n for n in nodes if isinstance(n, MappingNode) and _tag(n) == "map"]
        if len(good) < len(nodes):
            self._say("X806", "", node, path, "a mapping, or a list of mappings, after '<<'")
        return good

    def _scalar(self, node: Any, tag: str, path: KeyPath) -> Any:
        text = str(node.value)
        plain = text.replace("_", "")
        try:
            match tag:
                case "str" | "timestamp":
                    return text
                case "null":
                    return None
                case "bool" if text.lower() in ("true", "false"):
                    return text.lower() == "true"
                case "int":
                    return int(plain, 0) if re.match(r"[-+]?0[xob]", plain) else int(plain)
                case "float":
                    special = re.fullmatch(r"([-+]?)\.(inf|nan)", plain.lower())
                    return float("".join(special.groups()) if special else plain)
        except ValueError:
            pass
        if tag in ("bool", "int", "float"):
            word = {"bool": "true or false", "int": "a whole number", "float": "a number"}[tag]
            self._say("X802", "", node, path, word, f"{shorten(repr(text))} (text)")
            return None
        return self._bad_tag(node, path)

    def _bad_tag(self, node: Any, path: KeyPath) -> None:
        tag = str(node.ctag if hasattr(node, "ctag") else node.tag)
        shown = tag.replace(_CORE, "!!")
        self._say("X821", "", node, path, "plain values", f"the tag '{shorten(shown)}'")

    def _place(self, node: Any, path: KeyPath) -> Place:
        if not self.positions:
            return Place(file=self.name)
        mark = node.start_mark
        return Place(file=self.name, line=mark.line + 1, column=mark.column + 1, key=dotted(path) or None)

    def _say(
        self,
        code: str,
        message: str,
        node: Any,
        path: KeyPath,
        expected: str | None = None,
        received: str | None = None,
    ) -> None:
        place = self._place(node, path)
        self.findings.append(finding(code, message, place=place, expected=expected, received=received))


def dotted(path: KeyPath) -> str:
    """`('data', 'train', 0)` → `data.train.0`; parts that hold dots or blanks are quoted."""
    return ".".join(f'"{p}"' if re.search(r'[.\s"=]', str(p)) or p == "" else str(p) for p in path)


def _tag(node: Any) -> str:
    """`str`, `int`, `map`, … for core tags; the whole tag for others."""
    return str(node.tag).removeprefix(_CORE)
