"""What there is to say of a loss scale (S401 to S404), the same for every framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from castiron.diagnostics import ConfigError, Finding, Place, finding
from castiron.policy.sections import DynamicScaling

_PLACE = Place(key="precision.scaling")


def look_at(
    scaling: DynamicScaling, counts: dict[str, int], new: int, scale: Callable[[], float]
) -> Finding | None:
    """S401 where the scale stands at its floor for `patience` overflows, S403 (information) where gradients
    overflowed, else None.

    Args:
        counts: `overflows` of the run, and `at_floor`: how many in a row met a scale that could fall no
            further.
        new: overflows since the last look.
        scale: gives the scale; asked only where there is something to say.
    """
    at_floor = counts["at_floor"]
    if at_floor >= scaling.patience:
        return finding(
            "S401",
            f"the loss scale stands at its floor of {scaling.min:g}, and gradients overflowed there "
            f"{at_floor} times in a row",
            place=_PLACE,
            expected=f"fewer than {scaling.patience} overflows in a row at the floor",
            received=f"{at_floor}; no step was taken since",
            scale=scale(),
            overflows=counts["overflows"],
        )
    if new <= 0:
        return None
    times = "once" if new == 1 else f"{new} times"
    now = scale()
    return finding(
        "S403",
        f"gradients overflowed {times}, and the loss scale backed off to {now:g}",
        place=_PLACE,
        scale=now,
        overflows=new,
    )


def check_invertible(name: str, value: float) -> None:
    """Refuse a scale that float32 cannot hold or invert.

    Raises:
        ConfigError: it cannot (S402).
    """
    limits = np.finfo(np.float32)
    if float(limits.tiny) <= value <= float(limits.max) and 1 / value <= float(limits.max):
        return
    raise ConfigError(
        finding(
            "S402",
            f"the loss scale ({name}) cannot be held or inverted in float32",
            place=_PLACE,
            expected=f"a scale between {limits.tiny:g} and {limits.max:g}",
            received=f"{value:g}",
        )
    )


def check_kind(kind: str, state: dict[str, Any]) -> None:
    """Refuse the saved state of another kind of scaling.

    Raises:
        ConfigError: it is of another kind (S404).
    """
    saved = state.get("kind")
    if saved != kind:
        raise ConfigError(
            finding(
                "S404",
                "the saved state of the loss scaler is of another kind than the policy declares",
                place=_PLACE,
                expected=f"scaling {kind}",
                received=f"scaling {saved}",
            )
        )
