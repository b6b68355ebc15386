"""How far two tensors that should be equal lie apart: the same layer of the same model in two formats.

The definitions, in NumPy. Everything is taken in float64 of values that are given exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from castiron.formats import number_format
from castiron.health.rounding import lowest_exponent, round_to

Values = NDArray[Any]
Step = Literal["equal", "rounded", "parted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One tensor held against the same one in a wider format. Elements that are finite in both count."""

    format: str
    """What the tensor is stored in; its units are those of this format."""
    size: int
    """Elements compared."""
    relative_norm: float
    """`relative_norm`; NaN where nothing is finite."""
    cosine: float
    """`cosine`."""
    ulps_median: float
    """Median of `ulps` over the elements."""
    ulps_max: float
    """The largest of them. A sum that nearly cancels has few exact bits, so this is often large."""
    rounding: float
    """Relative norm of what rounding the wide tensor to `format` takes away: no tensor of the format that is
    right everywhere is nearer."""
    step: Step
    """equal: bit for bit. rounded: it is the wide tensor, rounded to its format, and nothing else.
    parted: arithmetic has made it another one."""
    not_finite: int = 0
    """Elements that are finite in the wide tensor, and not here."""

    @property
    def excess(self) -> float:
        """How many times as far away as rounding once; infinite where rounding takes nothing away."""
        if self.relative_norm == 0:
            return 0.0
        return self.relative_norm / self.rounding if self.rounding else math.inf

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, but for infinities."""
        return asdict(self)


def difference(narrow: Values, wide: Values, format: str) -> Difference:
    """Everything about a pair of tensors of one shape.

    Args:
        narrow: what is looked at, stored in `format`; float64, or what it holds exactly.
        wide: what it is held against.

    Raises:
        ValueError: the shapes differ.
    """
    if narrow.shape != wide.shape:
        raise ValueError(
            f"Expected two tensors of one shape. Received {list(narrow.shape)} and {list(wide.shape)}."
        )
    a, b = narrow.astype(np.float64).ravel(), wide.astype(np.float64).ravel()
    both = np.isfinite(a) & np.isfinite(b)
    lost = int(np.count_nonzero(np.isfinite(b) & ~np.isfinite(a)))
    expected = round_to(b, format)
    if np.array_equal(a, b, equal_nan=True):
        step: Step = "equal"
    else:
        step = "rounded" if np.array_equal(a, expected, equal_nan=True) else "parted"
    x, y = a[both], b[both]
    apart = ulps(x, y, format)
    kept = expected[both]
    near = np.isfinite(kept)
    return Difference(
        format=format,
        size=int(a.size),
        relative_norm=relative_norm(x, y) if x.size or not a.size else math.nan,
        cosine=cosine(x, y),
        ulps_median=float(np.median(apart)) if apart.size else 0.0,
        ulps_max=float(apart.max(initial=0.0)),
        rounding=relative_norm(kept[near], y[near]),
        step=step,
        not_finite=lost,
    )


def relative_norm(narrow: Values, wide: Values) -> float:
    """``‖narrow − wide‖₂ / ‖wide‖₂``, the normwise relative error (Higham 2002, "Accuracy and Stability of
    Numerical Algorithms", 2nd ed., 1.2 and 6.2). 0 where both are all zero, infinite where only `wide` is."""
    apart, size = _norm(narrow.astype(np.float64) - wide), _norm(wide)
    if size == 0:
        return 0.0 if apart == 0 else math.inf
    return apart / size


def cosine(narrow: Values, wide: Values) -> float:
    """``⟨narrow, wide⟩ / (‖narrow‖ ‖wide‖)``: 1 where they point the same way, whatever their lengths.
    1 where both are all zero, 0 where one is. Below a relative norm of 1e-8 it is 1: float64 holds no
    more."""
    a, b = _norm(narrow), _norm(wide)
    if a == 0 or b == 0:
        return 1.0 if a == b else 0.0
    return float(np.clip(np.dot(narrow.ravel() / a, wide.ravel() / b), -1.0, 1.0))


def ulps(narrow: Values, wide: Values, format: str) -> NDArray[np.float64]:
    """``|narrow − wide|`` in units in the last place, element by element.

    The unit is the spacing of `format` at the magnitude of the wide element, ``2**(max(e, e_min) − p)`` with
    ``2**e ≤ |wide| < 2**(e+1)``, p the fraction bits and e_min the exponent of the smallest normal number
    (Muller et al. 2018, "Handbook of Floating-Point Arithmetic", 2nd ed., 2.3.2: Goldberg's definition,
    extended to reals). Rounding to nearest is at most half a unit away.
    """
    of = number_format(format)
    b = wide.astype(np.float64)
    with np.errstate(all="ignore"):
        exponent = np.maximum(np.frexp(b)[1] - 1, lowest_exponent(of))
        exponent = np.where(b == 0, lowest_exponent(of), exponent)
        # two factors: the unit of float64's own subnormals has no finite inverse
        half = (exponent - of.fraction_bits) // 2
        apart = np.abs(narrow.astype(np.float64) - b)
        found: NDArray[np.float64] = np.ldexp(np.ldexp(apart, -half), -((exponent - of.fraction_bits) - half))
    return found


def unit_roundoff(format: str) -> float:
    """u: the largest relative error of rounding to nearest, half the spacing at 1 (2⁻²⁴ for float32)."""
    return number_format(format).spacing / 2


def gamma(n: int, u: float) -> float:
    """γₙ = n·u / (1 − n·u): ``|fl(xᵀy) − xᵀy| ≤ γₙ |x|ᵀ|y|`` for a sum of n products in any order (Higham
    2002, 3.1 and 3.5). Infinite from n·u = 1 on."""
    return n * u / (1 - n * u) if n * u < 1 else math.inf


def expected_growth(n: int, u: float) -> float:
    """√n·u: the size of the same error where rounding errors are independent and of mean zero (Higham and
    Mary 2019, "A New Approach to Probabilistic Rounding Error Analysis": ``λ √n u``, most probably)."""
    return math.sqrt(n) * u


def first_parting(layers: Mapping[str, Difference]) -> str | None:
    """The first of the layers, in their order, that is more than the wide one rounded; None where none is."""
    return next((layer for layer, d in layers.items() if d.step == "parted"), None)


def farthest(layers: Mapping[str, Difference]) -> str | None:
    """The layer that is farthest away: not finite first, then by relative norm; None where all are equal."""
    apart = {layer: d for layer, d in layers.items() if d.step != "equal"}
    if not apart:
        return None
    return max(apart, key=lambda layer: (apart[layer].not_finite > 0, _sortable(apart[layer].relative_norm)))


def _sortable(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _norm(values: Values) -> float:
    """‖values‖₂, without overflow of the squares."""
    x = values.astype(np.float64).ravel()
    largest = float(np.abs(x).max(initial=0.0))
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float(np.sqrt(np.sum((x / largest) ** 2)))
