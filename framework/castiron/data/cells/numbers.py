"""Numbers of a file to numbers of a field."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np

from castiron.data.casts import CastResult, Loss, cast, loss_of
from castiron.data.cells.judged import CODE_OF_LOSS, Faults, Judged, bounds, shown
from castiron.data.readers.source import Numbers
from castiron.data.schema import Field
from castiron.formats import number_format

_EXACT = 2.0**53


def judge_numbers(
    cells: Numbers, part: Field, seen: float = 0.0, room: np.ndarray | None = None
) -> Judged | None:
    """Cast the numbers of a block; None where they came from text and its spelling must be looked at.

    From text, a float64 is what pyarrow made of it: correctly rounded, and so as good as the text, unless it
    is not finite ('1e400', 'nan', 'inf'), is so large that integers lie between neighbours, is a whole number
    that the target cannot hold ('16777217'; is it written as an integer?), or is zero ('1e-400').

    Args:
        seen: the largest relative error of the blocks before.
        room: where the cast may be written to.
    """
    assert part.dtype is not None
    values, missing = cells.values, cells.missing
    is_float = values.dtype.kind not in "iub"
    result: CastResult | None = None
    within: tuple[float | int, float | int] | None = None
    if cells.as_text is None:
        result = cast(values, part.dtype, tolerance=part.tolerance, seen=seen, out=room)
        within = result.ends
    if within is None:
        low, high = bounds(values, None)
        within = None if low is None or high is None else (low, high)
    if within is not None and not all(map(np.isfinite, within)):
        within = None
        if cells.as_text is not None:
            return None
        nan = np.isnan(values)
        if nan.any():
            missing = nan if missing is None else missing | nan
    doubtful = cells.as_text is not None and is_float and within is not None
    if doubtful and within is not None:
        if max(-within[0], within[1]) >= _EXACT:
            return None
        if cells.may_underflow and _has_zeros(values, missing) and cells.may_underflow():
            return None
    if result is None:
        result = cast(values, part.dtype, tolerance=part.tolerance, seen=seen, out=room)
    if doubtful and within is not None and _maybe_integers(values, result, part, within):
        return None
    return judge_cast(values, missing, result, part, words=partial(_words, cells), within=within)


def _words(cells: Numbers, position: int) -> str:
    if cells.as_text is not None:
        return f"{shown(cells.as_text().cells[position].as_py())} (text)"
    return f"{cells.values.flat[position].item()!r} ({cells.source})"


def _has_zeros(values: np.ndarray, missing: np.ndarray | None) -> bool:
    """Whether a value is zero; where one is missing there is a zero as well, but not of the file."""
    fillers = 0 if missing is None else int(np.count_nonzero(missing))
    return int(np.count_nonzero(values)) + fillers < values.size


def _maybe_integers(values: np.ndarray, result: CastResult, part: Field, within: tuple[float, float]) -> bool:
    """Whether a changed value is whole, and so may have been written as an integer."""
    if result.changed is None or part.dtype is None:
        return False
    form = number_format(part.dtype)
    if form.is_integer or form.kind == "bool":
        return False
    if max(-within[0], within[1]) <= form.max_exact_int:
        return False
    changed = values[result.changed]
    return bool((np.rint(changed) == changed).any())


def judge_cast(
    values: np.ndarray,
    missing: np.ndarray | None,
    result: CastResult,
    part: Field,
    *,
    words: Callable[[int], str],
    integers: np.ndarray | None = None,
    within: tuple[float, float] | None = None,
) -> Judged:
    """Turn a cast into what is found: lossy and rounded cells, infinities, values out of the field's range.

    Args:
        values: before the cast, flat or [rows, *shape].
        missing: mask of the shape of values: cells that are judged no further.
        words: what stands at a flat position.
        integers: mask of floats that were written as integers.
        within: the finite smallest and largest of the values, where they are known.
    """
    assert part.dtype is not None
    judged = Judged(result.values, missing)
    lossy = result.lossy
    if missing is not None and lossy is not None:
        lossy = lossy & ~missing
    if missing is not None and missing.any() and result.changed is not None:
        # A NaN that no integer can hold, or a filler, is no cast of a value.
        result = cast(np.where(missing, values.dtype.type(0), values), part.dtype, tolerance=part.tolerance,
                      integers=integers)  # fmt: skip
        judged.values, lossy = result.values, result.lossy
    judged.took(result)
    skip = missing
    if lossy is not None:
        judged.faults += _losses(values, lossy, part, words, integers)
        skip = lossy if skip is None else skip | lossy
    if values.dtype.kind not in "iub" and part.finite and within is None:
        infinite = np.isinf(values)
        if lossy is not None:
            infinite &= ~lossy
        if infinite.any():
            judged.faults.append(Faults("D108", "bad", np.flatnonzero(infinite), words))
            skip = infinite if skip is None else skip | infinite
    if skip is None and within is not None:
        # Rounding keeps the order, so the ends of the values become the ends of the cast.
        if result.values is values:
            ends = np.array(within, dtype=values.dtype)
        else:
            ends = cast(np.array(within), part.dtype).values
        judged.lowest, judged.highest = ends.tolist()
    else:
        judged.lowest, judged.highest = bounds(result.values, skip)
    judged.faults += _out_of_range(values, skip, judged, part, words)
    if part.role == "id" and values.dtype.kind not in "iub":
        unsafe = np.abs(values) >= _EXACT
        if unsafe.any():
            judged.faults.append(Faults("D144", "lossy", np.flatnonzero(unsafe), words))
    if result.n_rounded:
        judged.faults.append(_rounded(values, result, words))
    return judged


def _losses(
    values: np.ndarray,
    lossy: np.ndarray,
    part: Field,
    words: Callable[[int], str],
    integers: np.ndarray | None,
) -> list[Faults]:
    assert part.dtype is not None
    to = part.dtype
    groups: defaultdict[Loss, list[int]] = defaultdict(list)
    whole = None if integers is None else integers.ravel()
    for position in np.flatnonzero(lossy).tolist():
        value = values.flat[position].item()
        groups[loss_of(value, to, integer=whole is not None and bool(whole[position]))].append(position)

    def becomes(why: Loss) -> Callable[[int], str]:
        def message(position: int) -> str:
            value = values.flat[position]
            if why == "overflow":
                return f"The largest {to} is {number_format(to).max:.7g}."
            if why == "underflow":
                return f"The smallest {to} above zero is {number_format(to).smallest_subnormal:.7g}."
            after = cast(np.array([value]), to).values[0]
            if why == "integer":
                return f"{int(value)} becomes {int(after)} in {to}."
            if why == "tolerance":
                error = abs(float(after) - float(value)) / abs(float(value))
                return f"{float(value)!r} becomes {float(after)!r}, a relative error of {error:.3g}."
            return ""

        return message

    return [
        Faults(CODE_OF_LOSS[why], "lossy", np.array(at, dtype=np.int64), words, becomes(why))
        for why, at in groups.items()
    ]


def _rounded(values: np.ndarray, result: CastResult, words: Callable[[int], str]) -> Faults:
    def message(position: int) -> str:
        after = result.values.flat[position]
        return f"{float(values.flat[position])!r} is rounded to {float(after)!r}."

    # The positions are found only if someone asks: rounding is mostly allowed.
    return Faults("D110", "rounded", _Lazy(result), words, message)  # type: ignore[arg-type]


class _Lazy:
    """Positions of rounded elements, computed at first use."""

    def __init__(self, result: CastResult) -> None:
        self._result = result

    def __len__(self) -> int:
        return self._result.n_rounded

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.flatnonzero(self._result.rounded)


def _out_of_range(
    values: np.ndarray, skip: np.ndarray | None, judged: Judged, part: Field, words: Callable[[int], str]
) -> list[Faults]:
    if judged.lowest is None or judged.highest is None:
        return []
    low, high = part.minimum, part.maximum
    # The cast may have rounded across a bound, so the bounds are compared with the values before it.
    near = (low is not None and judged.lowest <= low) or (high is not None and judged.highest >= high)
    if not near:
        return []
    outside = np.zeros(values.shape, dtype=bool)
    if low is not None:
        outside |= values < low
    if high is not None:
        outside |= values > high
    if skip is not None:
        outside &= ~skip
    if not outside.any():
        return []
    judged.lowest, judged.highest = bounds(values, outside if skip is None else outside | skip)
    expected = f"a value {_range(low, high)} for field '{part.name}'"
    return [Faults("D113", "bad", np.flatnonzero(outside), words, expected=expected)]


def _range(low: float | int | None, high: float | int | None) -> str:
    if low is None:
        return f"of at most {high}"
    return f"of at least {low}" if high is None else f"from {low} to {high}"
