"""What is measured between tensors and over time: updates that are lost, how large they are, Adam's second
moment, growth over time steps, dead units, and what the order of a sum does to it. The NumPy reference; a
wing computes the same on its device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castiron.health.rounding import round_to

Values = NDArray[Any]

PARTS = 8
"""Micro-batches that a step's gradient is taken to be summed from."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one step did to one parameter, measured on a sample of its elements."""

    wanted: int
    """Elements that were to change: their exact update is not zero."""
    lost: int
    """Elements among them that stayed what they were: w + u rounds back to w."""
    ratio: float
    """‖u‖ / ‖w‖ of the exact update, L2 norms; NaN where the weights are all zero."""

    @property
    def lost_share(self) -> float:
        return self.lost / self.wanted if self.wanted else 0.0


def update(before: Values, change: Values, dtype: str) -> Update:
    """The reference: adding a change to weights stored in a format, rounded to nearest.

    An update is lost where it is less than half the spacing at the weight: in bfloat16 (8 significant bits)
    about where |u| < 2**-9 |w| (as in Zamirai et al. 2021, "Revisiting BFloat16 Training").
    """
    w, u = (v.reshape(-1).astype(np.float64) for v in (before, change))
    wanted = u != 0
    lost = wanted & (round_to(w + u, dtype) == w)
    return Update(int(wanted.sum()), int(lost.sum()), ratio(u, w))


def ratio(change: Values, weights: Values) -> float:
    """‖u‖ / ‖w‖; NaN where the weights are all zero."""
    norm = float(np.linalg.norm(weights.astype(np.float64).reshape(-1)))
    return float(np.linalg.norm(change.astype(np.float64).reshape(-1))) / norm if norm else math.nan


@dataclass(frozen=True, slots=True)
class SecondMoment:
    """Adam's mean of squared gradients beside its mean of gradients, on a sample of a parameter's
    elements."""

    moving: int
    """Elements whose first moment is not zero: they have had gradients."""
    underflow: int
    """Those among them whose second moment is zero: g² fell below the smallest number of the state's
    format, and eps alone stands in the divisor."""
    overflow: int
    """Elements whose second moment is infinite: their update is zero from now on."""
    size: int

    @property
    def underflow_share(self) -> float:
        return self.underflow / self.moving if self.moving else 0.0

    @property
    def overflow_share(self) -> float:
        return self.overflow / self.size if self.size else 0.0


def second_moment(first: Values, second: Values) -> SecondMoment:
    """The reference, of Adam's two moments (Kingma & Ba 2015, algorithm 1)."""
    m, v = (values.reshape(-1).astype(np.float64) for values in (first, second))
    moving = np.isfinite(m) & (m != 0)
    return SecondMoment(
        int(moving.sum()), int((moving & (v == 0)).sum()), int(np.isposinf(v).sum()), int(m.size)
    )


def growth(levels: Sequence[float]) -> float | None:
    """Factor per time step by which a recurrent state grows: 2 to the slope of a straight line through log2
    of its root mean square over time (least squares). Below 1 it decays.

    Args:
        levels: root mean square of the state at each time step; steps that are zero or not finite are
            left out.

    Returns:
        None with fewer than four steps to look at.
    """
    points = [(t, math.log2(v)) for t, v in enumerate(levels) if v > 0 and math.isfinite(v)]
    if len(points) < 4:
        return None
    t, y = np.array(points).T
    t = t - t.mean()
    return float(2.0 ** (np.sum(t * y) / np.sum(t * t)))


def dead_units(values: Values, axis: int = -1) -> int:
    """Units (positions along an axis: features, channels) that are zero for every row and place of the
    batch."""
    moved = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    return int((moved == 0).all(axis=0).sum()) if moved.size else 0


def parts_of(gradient: Values, axis: int = -1) -> NDArray[np.float64]:
    """The gradient that a bias added to what a layer hands on would have, by micro-batch: [PARTS, units].

    That gradient is the sum of the layer's output gradient over every row and place; here it is taken over
    `PARTS` slices of them, in the order in which they stand (of `numpy.array_split`), each in float64.

    Args:
        gradient: of the loss with respect to what a layer hands on.
        axis: of its units (features, channels).
    """
    rows = np.moveaxis(gradient, axis, -1).reshape(-1, gradient.shape[axis]).astype(np.float64)
    return np.stack([part.sum(0) for part in np.array_split(rows, PARTS)])


def accumulation_noise(parts: Values, dtype: str) -> float | None:
    """What the order of accumulation does to a gradient: ‖a - b‖ / ‖s‖, L2 norms. a is the sum of the parts
    one after the other in a format, b the same from the last to the first, s the sum in float64.

    Either sum of n parts is wrong by at most γ Σ|x|, γ = (n - 1) u / (1 - (n - 1) u), u the format's unit
    roundoff (Higham 2002, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 4.2): where
    parts cancel, Σ|x| is many times |Σ x|, and so is the noise.

    Args:
        parts: [n, units], rounded to the format first.

    Returns:
        None where the sum is zero, or not finite in the format.
    """
    terms = round_to(parts, dtype)

    def total(order: Values) -> Values:
        found: Values = order[0]
        for term in order[1:]:
            found = round_to(found + term, dtype)
        return found

    return noise_between(total(terms), total(terms[::-1]), terms.sum(0))


def noise_between(a: Values, b: Values, exact: Values) -> float | None:
    """‖a - b‖ / ‖exact‖; None where that is no number."""
    with np.errstate(invalid="ignore", over="ignore"):
        size = float(np.linalg.norm(exact))
        found = float(np.linalg.norm(a - b)) / size if size else math.nan
    return found if math.isfinite(found) else None
