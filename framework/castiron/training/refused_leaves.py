"""Leaves of a batch that no model takes: the findings, the same for every framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from castiron.diagnostics import Finding, Place, finding


def no_numbers(array: np.ndarray[Any, Any], path: str, *, encoded: str = "bytes") -> Finding:
    """Name the first element that is no number; a ragged list is an array of objects too (D117, D101, D118).

    Args:
        encoded: what an array of bytes is called.
    """
    where, value = path, ""
    if array.dtype.kind == "O":
        for index in np.ndindex(array.shape):
            item: Any = array[index]
            if not isinstance(item, (int, float, np.number)):
                where = _at(path, index)
                value = f": {item!r}"[:60]
                break
        what, code = f"an array of Python objects{value}", "D117"
        remedy = "Make it an array of one number format: np.asarray(x, dtype=np.float32); pad ragged rows."
    else:
        kind = {"U": "text", "S": encoded, "M": "dates", "m": "durations", "V": "records"}[array.dtype.kind]
        sample = f": {array.flat[0]!r}"[:60] if array.size else ""
        what, code = f"an array of {kind}{sample}", "D101" if array.dtype.kind in "US" else "D118"
        remedy = "Encode it as numbers before it enters the batch."
    return finding(
        code,
        "a leaf of the batch holds no numbers",
        place=Place(field=where),
        expected="a tensor, or an array of floats, integers or booleans",
        received=what,
        remedy=remedy,
    )


def too_large(
    wanted: str, largest: float, path: str, first: Sequence[int], value: float, given: str, count: int
) -> Finding:
    """Values that become infinite in a narrower format (D103).

    Args:
        wanted: the narrower format, `largest` the end of its range.
        first: index of the first such value in the leaf at `path`, which is `value` in the format `given`.
        count: how many there are.
    """
    return finding(
        "D103",
        f"a value does not fit into {wanted}",
        place=Place(field=_at(path, first)),
        expected=f"magnitudes up to {largest:g}",
        received=f"{value:g} ({given})",
        remedy="Scale the field, or use a policy with the range for it (bfloat16 has that of float32).",
        count=count,
    )


def _at(path: str, index: Sequence[int]) -> str:
    return path + "".join(f"[{i}]" for i in index)
