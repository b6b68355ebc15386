"""The short string form of a policy: `p=float32,c=bfloat16,o=float32,scaling.kind=dynamic`.

Roles come first, under one letter each; what else differs from the default follows as `dotted.key=value`,
where a key that is no plain word is quoted and values are JSON (plain words need no quotes). Whatever a
policy declares is in its string, so that it parses back to an equal policy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

LETTERS = {
    "p": "param",
    "c": "compute",
    "o": "output",
    "a": "accumulate",
    "s": "state",
    "l": "loss",
    "b": "buffers",
}


def format_short_form(declared: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The string of what is declared: `param`, `compute`, `output`, and what is not the default."""
    parts = [
        f"{letter}={declared[role]}"
        for letter, role in LETTERS.items()
        if letter in "pco" or declared[role] != defaults[role]
    ]
    for section, value in declared.items():
        if section not in LETTERS.values():
            parts += [f"{k}={_write(v)}" for k, v in _differences(section, value, defaults[section])]
    return ",".join(parts)


def parse_short_form(text: str) -> dict[str, Any]:
    """A preset's name or a short string, as a mapping for `PrecisionPolicy`.

    Raises:
        ValueError: neither of the two; the message names the part that is wrong.
    """
    if "=" not in text:
        return {"preset": text}
    tree: dict[str, Any] = {}
    for part in _split(text, ","):
        key, *rest = _split(part, "=", most=1)
        path = [_unquote(p) for p in _split(key, ".")]
        if not rest or not all(path):
            raise ValueError(f"expected key=value, received {part!r} in the policy {text!r}")
        path[0] = LETTERS.get(path[0], path[0])
        node: Any = tree
        for name in path[:-1]:
            node = node.setdefault(name, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or path[-1] in node:
            raise ValueError(f"key '{'.'.join(path)}' is set twice in the policy {text!r}")
        node[path[-1]] = _read(rest[0])
    return tree


def _split(text: str, separator: str, most: int = -1) -> list[str]:
    """Split at separators that stand outside of double quotes, brackets and braces; `most` times at most."""
    parts: list[str] = []
    depth, quoted, escaped, start = 0, False, False, 0
    for i, char in enumerate(text):
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            quoted = True
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == separator and depth == 0 and len(parts) != most:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def _differences(path: str, value: Any, default: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys whose values are not the default's."""
    if isinstance(value, dict):
        for name, inner in value.items():
            key = name if name.isidentifier() else json.dumps(name, ensure_ascii=False)
            missing = not isinstance(default, dict) or name not in default
            yield from _differences(f"{path}.{key}", inner, object() if missing else default[name])
    elif value != default:
        yield path, value


def _unquote(key: str) -> str:
    if not key.startswith('"'):
        return key
    try:
        return str(json.loads(key))
    except json.JSONDecodeError as e:
        raise ValueError(f"the key {key} is not properly quoted") from e


def _write(value: Any) -> str:
    plain = isinstance(value, str) and value.replace("-", "_").isidentifier()
    if plain and value not in ("null", "true", "false", "NaN", "Infinity"):
        return str(value)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _read(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
