"""Example inputs from a line of text: `float32[8,16,3]`, `int64[8,32]<100`, `mask=bool[8,32]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from castiron.diagnostics import ConfigError, Place, finding
from castiron.keras.dtypes import tensorflow_dtype

_SPEC = re.compile(r"(?:(?P<name>\w+)=)?(?P<dtype>[\w.]+)\[(?P<shape>[\d,\s]*)\](?:<(?P<below>\d+))?")


def example(specs: Sequence[str]) -> Any:
    """A batch of tensors of these formats and shapes: one, a tuple, or a mapping where all have names.

    Floats are drawn from a normal distribution, integers are below the number after `<` (2 by default).

    Raises:
        ConfigError: a spec cannot be read (X820).
    """
    named = [
        _tensor(part) for spec in specs for part in re.split(r"[;\s]+(?![^\[]*\])", spec.strip()) if part
    ]
    if not named:
        raise _refused("")
    if all(name for name, _ in named):
        return dict(named)
    tensors = tuple(tensor for _, tensor in named)
    return tensors[0] if len(tensors) == 1 else tensors


def _tensor(spec: str) -> tuple[str, Any]:
    met = _SPEC.fullmatch(spec)
    if met is None:
        raise _refused(spec)
    try:
        dtype = tensorflow_dtype(met["dtype"])
    except ValueError:
        raise _refused(spec) from None
    shape = [int(n) for n in met["shape"].split(",") if n.strip()]
    random = np.random.default_rng(0)
    if dtype.is_floating:
        made = tf.cast(random.normal(size=shape), dtype)
    else:
        made = tf.cast(random.integers(int(met["below"] or 2), size=shape), dtype)
    return met["name"] or "", made


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
