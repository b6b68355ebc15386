"""F306, F307, F327: why a step could not be traced, in words that help."""

from __future__ import annotations

import re
from typing import Any

from castiron.diagnostics import Finding, finding
from castiron.keras.audit.lines import lines_of
from castiron.training.source_lines import place

_FORMAT = r"(?:b?float\d+|double|half|int\d+|uint\d+|bool|string)"
_REFUSED = (
    re.compile(
        rf"Input '(?P<argument>\w+)' of '(?P<op>\w+)' Op has type (?P<b>{_FORMAT}) that does not match type "
        rf"(?P<a>{_FORMAT})"
    ),
    re.compile(rf"requested dtype (?P<a>{_FORMAT}) for Tensor with dtype (?P<b>{_FORMAT})"),
    re.compile(
        rf"cannot compute (?P<op>\w+) as input #\d+.* was expected to be an? (?P<a>{_FORMAT}) tensor but is "
        rf"an? (?P<b>{_FORMAT})"
    ),
)
_DTYPE = (
    re.compile(rf"[Vv]alue for attr '\w+' of (?P<b>{_FORMAT}) is not in the list of allowed values"),
    re.compile(rf"parameter '?\w+'? has DataType (?P<b>{_FORMAT}) not in list of allowed values"),
    re.compile(rf"Cast (?P<b>{_FORMAT}) to {_FORMAT} is not supported"),
    re.compile(r"dtype|data type|DataType"),
)
_OURS = {"double": "float64", "half": "float16"}


def explain(error: Exception, layers: dict[str, Any]) -> Finding:
    """A finding for an error that ended a trace, at the user's line."""
    lines = lines_of(error)
    text = " ".join(str(error).split())
    for pattern in _REFUSED:
        if (met := pattern.search(text)) is not None:
            a, b = _name(met["a"]), _name(met["b"])
            op = met.groupdict().get("op")
            off = [p for p, layer in layers.items() if p and not layer.autocast and not _is_keras(layer)]
            because = f" ('{off[0]}' has autocast=False)" if off and {a, b} & {"float16", "bfloat16"} else ""
            return finding(
                "F306",
                f"{op or 'an operation'} cannot take these operands{because}: TensorFlow raises",
                place=place(lines, None, op, "forward"),
                expected="operands of one format",
                received=f"{a} and {b}",
            )
    first = text[:300]
    for pattern in _DTYPE:
        if (met := pattern.search(text)) is not None:
            return finding(
                "F307",
                f"{type(error).__name__}: {first}",
                place=place(lines, None, None, "forward"),
                expected="operands in the planned format",
                received=_name(met.groupdict().get("b") or "") or None,
            )
    return finding(
        "F327", f"{type(error).__name__}: {first}", place=place(lines, None, None, "forward"),
        expected="a model that runs on this batch", received="an error",
    )  # fmt: skip


def _name(name: str) -> str:
    return _OURS.get(name, name)


def _is_keras(layer: Any) -> bool:
    return type(layer).__module__.startswith("keras.")
