"""Number formats: the one table of what each can hold, and of its names.

A format is described without importing NumPy, torch or TensorFlow: the figures are computed from the
number of exponent and fraction bits (IEEE 754-2019; float8 after "FP8 Formats for Deep Learning",
Micikevicius et al. 2022), and tests hold them against `numpy.finfo`, `ml_dtypes.finfo` and `torch.finfo`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

FloatName = Literal["float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
"""Formats that a tensor of real numbers can be stored in."""

ComputeName = Literal["float64", "float32", "tf32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
"""Formats that an operation can multiply in: those of `FloatName`, and tf32, which nothing is stored in."""

IntName = Literal["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"]
DTypeName = Literal[
    "float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
]  # fmt: skip
"""Formats that a field of data can have."""


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """What a number format can hold, and what it is called.

    `max`, `smallest_normal`, `smallest_subnormal` and `spacing` are exact as Python floats.
    For integers `min` and `max` are ints, `spacing` is 1, and there are no subnormals (None).
    """

    name: str
    kind: Literal["float", "int", "uint", "bool", "mode"]
    bits: int
    """Bits that a stored element takes; for tf32, those of the float32 it is stored in."""
    exponent_bits: int
    fraction_bits: int
    """Bits of the significand that are stored (without the implicit leading one)."""
    min: float
    max: float
    """Largest finite value."""
    smallest_normal: float | None
    smallest_subnormal: float | None
    spacing: float
    """Distance from 1.0 to the next larger number ("machine epsilon"); 1 for integers."""
    max_exact_int: int
    """Largest n such that every integer from 0 to n is represented exactly."""
    numpy_name: str
    torch_name: str | None
    tensorflow_name: str | None
    has_infinity: bool = False

    @property
    def is_float(self) -> bool:
        return self.kind in ("float", "mode")

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def itemsize(self) -> int:
        """Bytes that a stored element takes."""
        return (self.bits + 7) // 8

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype (from ml_dtypes for bfloat16 and float8). Imports NumPy."""
        import numpy as np

        if self.numpy_name.startswith("ml_dtypes."):
            import ml_dtypes

            scalar: type[Any] = getattr(ml_dtypes, self.numpy_name.removeprefix("ml_dtypes."))
            return np.dtype(scalar)
        return np.dtype(self.numpy_name)

    def __str__(self) -> str:
        return self.name


def _float(
    name: str,
    exponent_bits: int,
    fraction_bits: int,
    *,
    bits: int | None = None,
    kind: Literal["float", "mode"] = "float",
    finite_only: bool = False,
    numpy_name: str | None = None,
    torch_name: str | None = None,
    tensorflow_name: str | None = None,
) -> NumberFormat:
    bias = 2 ** (exponent_bits - 1) - 1
    spacing = 2.0**-fraction_bits
    if finite_only:
        # "fn": no infinities; the top exponent holds numbers too, and only its last code is NaN.
        largest = 2.0 ** (bias + 1) * (2.0 - 2.0 * spacing)
    else:
        largest = 2.0**bias * (2.0 - spacing)
    return NumberFormat(
        name=name,
        kind=kind,
        bits=bits or 1 + exponent_bits + fraction_bits,
        exponent_bits=exponent_bits,
        fraction_bits=fraction_bits,
        min=-largest,
        max=largest,
        smallest_normal=2.0 ** (1 - bias),
        smallest_subnormal=2.0 ** (1 - bias - fraction_bits),
        spacing=spacing,
        max_exact_int=min(2 ** (fraction_bits + 1), int(largest)),
        numpy_name=numpy_name or name,
        torch_name=torch_name or name,
        tensorflow_name=tensorflow_name or name,
        has_infinity=not finite_only,
    )


def _int(bits: int, *, signed: bool) -> NumberFormat:
    name = f"{'' if signed else 'u'}int{bits}"
    largest = 2 ** (bits - signed) - 1
    return NumberFormat(
        name=name,
        kind="int" if signed else "uint",
        bits=bits,
        exponent_bits=0,
        fraction_bits=bits - signed,
        min=-largest - 1 if signed else 0,
        max=largest,
        smallest_normal=None,
        smallest_subnormal=None,
        spacing=1,
        max_exact_int=largest,
        numpy_name=name,
        torch_name=name,
        tensorflow_name=name,
    )


FORMATS: dict[str, NumberFormat] = {
    f.name: f
    for f in (
        _float("float64", 11, 52),
        _float("float32", 8, 23),
        # NVIDIA's tf32: float32 storage, operands of a matrix product rounded to 10 fraction bits.
        _float("tf32", 8, 10, bits=32, kind="mode", numpy_name="float32", torch_name="float32",
               tensorflow_name="float32"),
        _float("bfloat16", 8, 7, numpy_name="ml_dtypes.bfloat16"),
        _float("float16", 5, 10),
        _float("float8_e4m3fn", 4, 3, finite_only=True, numpy_name="ml_dtypes.float8_e4m3fn"),
        _float("float8_e5m2", 5, 2, numpy_name="ml_dtypes.float8_e5m2"),
        *(_int(bits, signed=signed) for signed in (True, False) for bits in (64, 32, 16, 8)),
        NumberFormat("bool", "bool", 8, 0, 1, 0, 1, None, None, 1, 1, "bool", "bool", "bool"),
    )
}  # fmt: skip
"""Every format castiron knows, widest first within each kind."""

ALIASES = {
    "double": "float64", "fp64": "float64", "f64": "float64",
    "float": "float32", "single": "float32", "fp32": "float32", "f32": "float32",
    "tensorfloat32": "tf32",
    "bf16": "bfloat16",
    "half": "float16", "fp16": "float16", "f16": "float16",
    "e4m3": "float8_e4m3fn", "float8_e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2",
    "long": "int64", "int": "int32", "short": "int16", "byte": "uint8", "boolean": "bool",
}  # fmt: skip
"""Short and framework names that are accepted as well."""


def number_format(name: str) -> NumberFormat:
    """The format of this name; also short names (bf16, fp32) and framework names (torch.float32).

    Raises:
        ValueError: no such format; the message lists near misses.
    """
    key = name.strip().removeprefix("torch.").removeprefix("tf.").removeprefix("ml_dtypes.")
    key = ALIASES.get(key, key)
    if found := FORMATS.get(key):
        return found
    near = difflib.get_close_matches(key, [*FORMATS, *ALIASES], n=3)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    raise ValueError(f"Expected a number format ({', '.join(FORMATS)}). Received {name!r}.{hint}")


def is_wider(a: str, b: str) -> bool:
    """Whether float format `a` holds every value of `b`, and more (float16 and bfloat16: neither)."""
    x, y = number_format(a), number_format(b)
    return x.name != y.name and x.exponent_bits >= y.exponent_bits and x.fraction_bits >= y.fraction_bits


def widest(*names: str) -> str:
    """A format among `names` that is at least as wide as every other; float32 where they are not ordered."""
    best = names[0]
    for name in names[1:]:
        if is_wider(name, best):
            best = name
        elif name != best and not is_wider(best, name):
            best = "float32"
    return best
