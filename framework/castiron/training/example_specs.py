"""Example inputs from a line of text: `float32[8,16,3]`, `int64[8,32]<100`, `mask=bool[8,32]`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from castiron.diagnostics import ConfigError, Place, finding

_SPEC = re.compile(r"(?:(?P<name>\w+)=)?(?P<dtype>[\w.]+)\[(?P<shape>[\d,\s]*)\](?:<(?P<below>\d+))?")

Make = Callable[[str, list[int], int], Any]
"""Makes a tensor of a format and shape, of integers below a number; ValueError for a format it has not."""


def read_specs(specs: Sequence[str], make: Make) -> Any:
    """A batch of tensors of these formats and shapes: one, a tuple, or a mapping where all have names.

    Integers are below the number after `<` (2 by default).

    Raises:
        ConfigError: a spec cannot be read (X820).
    """
    named = [
        _read(part, make) for spec in specs for part in re.split(r"[;\s]+(?![^\[]*\])", spec.strip()) if part
    ]
    if not named:
        raise _refused("")
    if all(name for name, _ in named):
        return dict(named)
    tensors = tuple(tensor for _, tensor in named)
    return tensors[0] if len(tensors) == 1 else tensors


def _read(spec: str, make: Make) -> tuple[str, Any]:
    met = _SPEC.fullmatch(spec)
    if met is None:
        raise _refused(spec)
    shape = [int(n) for n in met["shape"].split(",") if n.strip()]
    try:
        return met["name"] or "", make(met["dtype"], shape, int(met["below"] or 2))
    except ValueError:
        raise _refused(spec) from None


def _refused(spec: str) -> ConfigError:
    return ConfigError(
        finding(
            "X820",
            "An input cannot be read.",
            place=Place(key="--input"),
            expected="dtype[shape], as float32[8,16,3], int64[8,32]<100 or mask=bool[8,32]",
            received=repr(spec),
            remedy="Several inputs: --input once for each.",
        )
    )
