"""A manifest held against what is asked to load it: every difference is a finding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from castiron.diagnostics import Finding, ManifestError, Place, finding
from castiron.formats import FORMATS
from castiron.training.manifest import Manifest, OptimizerRecord, TensorRecord

OnMismatch = Literal["refuse", "cast"]
"""What is done with tensors of another format: nothing is loaded, or each is cast, and told."""

_ROWS = 20
"""Rows of a table that are shown; the rest is counted."""
_NAMES = {
    "parameters": "parameter",
    "buffers": "buffer",
    "optimizer": "optimizer state",
    "masters": "master copy",
    "average": "average",
    "state": "state of the step",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What is asked to load a checkpoint. None and empty: whatever the checkpoint has."""

    declared: Mapping[str, Any] | None = None
    """The policy's numbers (`manifest.numbers_of`)."""
    policy: str = ""
    """Its short form."""
    backend: str = "torch"
    recipe: str | None = None
    tensors: Mapping[str, Mapping[str, TensorRecord]] = field(default_factory=dict)
    """Kind → name → record: exactly these names are expected of a kind that is in it."""
    state: str | None = None
    """Format of the optimizer's moments."""
    optimizers: Sequence[OptimizerRecord] | None = None
    scaling: str | None = None
    """Kind of loss scaling: none, static or dynamic."""
    assets: Mapping[str, str] | None = None
    plan: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def differences(manifest: Manifest, expected: Expected, path: Path) -> list[Finding]:
    """Every difference, as findings: errors (C605 to C612), and warnings where nothing is lost (C618)."""
    found = [
        *_origin(manifest, expected, path),
        *_policy(manifest, expected, path),
        *_tensors(manifest, expected, path),
        *_optimizers(manifest, expected, path),
        *_scaler(manifest, expected, path),
        *_assets(manifest, expected, path),
    ]
    return found or list(_plan(manifest, expected, path))


def check(
    manifest: Manifest, expected: Expected, path: Path, on_mismatch: OnMismatch = "refuse"
) -> list[Finding]:
    """Refuse what differs. → what is left to tell: warnings; and, with `cast`, the formats to be cast.

    Raises:
        ManifestError: the findings; nothing was loaded.
    """
    found = differences(manifest, expected, path)
    castable = {"C605", "C606", "C610"} if on_mismatch == "cast" else set()
    if errors := [f for f in found if f.severity == "error" and f.code not in castable]:
        raise ManifestError(errors)
    return found


def same_content(manifest: Manifest, stored: Mapping[str, Mapping[str, TensorRecord]], path: Path) -> None:
    """Refuse a file whose tensors are not those that its manifest lists.

    Raises:
        ManifestError: a table of what differs (C613).
    """
    rows = []
    for kind in {**manifest.tensors, **stored}:
        told, there = manifest.tensors.get(kind, {}), stored.get(kind, {})
        for name in {**told, **there}:
            if told.get(name) != there.get(name):
                rows.append((kind, name, told.get(name), there.get(name)))
    if rows:
        raise ManifestError(
            finding(
                "C613",
                "The checkpoint's tensors are not those that its manifest lists."
                + table(rows, "manifest", "file"),
                place=Place(file=str(path)),
                expected="the file as it was written",
                received=f"{_count(len(rows), 'tensor')} that {'differs' if len(rows) == 1 else 'differ'}",
            )
        )


Row = tuple[str, str, Any, Any]
"""Kind, name, one side, the other side."""


def table(rows: Sequence[Row], left: str, right: str) -> str:
    """Rows as lines of a message, aligned: what, which, one side, the other."""
    shown = [
        (_NAMES.get(kind, kind), name or "(the model)", "none" if a is None else str(a),
         "none" if b is None else str(b))
        for kind, name, a, b in rows[:_ROWS]
    ]  # fmt: skip
    cells = [("", "", left, right), *shown]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    if len(rows) > _ROWS:
        lines.append(f"… and {len(rows) - _ROWS:,} more")
    return "\n    " + "\n    ".join(lines) + "\n"


# --- one difference each -------------------------------------------------------------------------------


def _origin(manifest: Manifest, expected: Expected, path: Path) -> Iterator[Finding]:
    place = Place(file=str(path))
    if manifest.backend != expected.backend:
        yield finding(
            "C609",
            "The checkpoint is of another backend.",
            place=place,
            expected=f"a checkpoint of {expected.backend}",
            received=f"one of {manifest.backend}",
        )
    if expected.recipe and manifest.recipe and manifest.recipe != expected.recipe:
        yield finding(
            "C609",
            "The checkpoint is of another recipe.",
            place=place,
            expected=f"a checkpoint of '{expected.recipe}'",
            received=f"one of '{manifest.recipe}'",
        )


def _policy(manifest: Manifest, expected: Expected, path: Path) -> Iterator[Finding]:
    if expected.declared is None or dict(expected.declared) == manifest.declared:
        return
    rows: list[Row] = [
        ("policy", ".".join(key), _word(old), _word(new))
        for key, old, new in _changes(manifest.declared, expected.declared)
    ]
    yield finding(
        "C605",
        "The checkpoint was made under another policy." + table(rows, "checkpoint", "here"),
        place=Place(file=str(path)),
        expected=f"the policy {expected.policy}",
        received=manifest.policy,
    )


def _changes(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(key), new.get(key), (*path, str(key)))
    elif old != new:
        yield path, old, new


def _tensors(manifest: Manifest, expected: Expected, path: Path) -> Iterator[Finding]:
    place = Place(file=str(path))
    formats: list[Row] = []
    shapes: list[Row] = []
    missing: list[Row] = []
    unexpected: list[Row] = []
    for kind, named in expected.tensors.items():
        there = manifest.tensors.get(kind, {})
        for name, want in named.items():
            have = there.get(name)
            if have is None:
                missing.append((kind, name, None, want))
                continue
            if have.dtype != want.dtype:
                formats.append((kind, name, have.dtype, f"{want.dtype}  {cast_of(have.dtype, want.dtype)}"))
            if have.shape != want.shape:
                shapes.append((kind, name, list(have.shape), list(want.shape)))
        unexpected += [(kind, name, have, None) for name, have in there.items() if name not in named]
    if expected.state is not None:
        for name, have in manifest.tensors.get("optimizer", {}).items():
            is_moment = have.shape and have.dtype in FORMATS and FORMATS[have.dtype].kind == "float"
            if is_moment and name.rpartition(".")[2] != "step" and have.dtype != expected.state:
                wanted = f"{expected.state}  {cast_of(have.dtype, expected.state)}"
                formats.append(("optimizer", name, have.dtype, wanted))
    if formats:
        first = formats[0]
        yield finding(
            "C606",
            f"{_what(formats)} of the checkpoint {'is' if len(formats) == 1 else 'are'} in another format."
            + table(formats, "checkpoint", "here"),
            place=place,
            expected=f"{str(first[3]).split()[0]} for '{first[1]}'",
            received=str(first[2]),
        )
    if shapes:
        first = shapes[0]
        yield finding(
            "C607",
            f"{_what(shapes)} of the checkpoint {'has' if len(shapes) == 1 else 'have'} another shape."
            + table(shapes, "checkpoint", "here"),
            place=place,
            expected=f"the shape {first[3]} for '{first[1]}'",
            received=f"{first[2]}",
        )
    for rows, message, word in (
        (missing, "lacks", "expected"),
        (unexpected, "has, and the model has not,", "received"),
    ):
        if rows:
            yield finding(
                "C608",
                f"The checkpoint {message} {_what(rows, lower=True)}." + table(rows, "checkpoint", "here"),
                place=place,
                **{word: f"{_NAMES.get(rows[0][0], rows[0][0])} '{rows[0][1]}'"},  # type: ignore[arg-type]
            )


def cast_of(have: str, want: str) -> str:
    """What a cast between two formats does to values: nothing (exact), or some of them are lost (lossy)."""
    if have not in FORMATS or want not in FORMATS:
        return "(no cast)"
    a, b = FORMATS[have], FORMATS[want]
    if {a.kind, b.kind} != {"float"}:
        exact = a.kind != "float" and b.kind != "float" and b.min <= a.min and b.max >= a.max
    else:
        exact = a.exponent_bits <= b.exponent_bits and a.fraction_bits <= b.fraction_bits
    return "(exact)" if exact else "(lossy)"


def _optimizers(manifest: Manifest, expected: Expected, path: Path) -> Iterator[Finding]:
    if expected.optimizers is None:
        return
    here, there = list(expected.optimizers), list(manifest.optimizers)
    if here == there:
        return
    rows: list[Row] = []
    for i in range(max(len(here), len(there))):
        a = there[i] if i < len(there) else None
        b = here[i] if i < len(here) else None
        if a != b:
            rows.append(("optimizer", str(i), _described(a), _described(b)))
    yield finding(
        "C611",
        "The checkpoint is of another optimizer." + table(rows, "checkpoint", "here"),
        place=Place(file=str(path)),
        expected=str(rows[0][3]),
        received=str(rows[0][2]),
    )


def _described(record: OptimizerRecord | None) -> str:
    if record is None:
        return "no optimizer"
    groups = "+".join(str(n) for n in record.groups)
    return f"{record.type} of {groups} parameters"


def _scaler(manifest: Manifest, expected: Expected, path: Path) -> Iterator[Finding]:
    if expected.scaling is None:
        return
    state = manifest.scaler
    kind = None if state is None else state.get("kind")
    if kind == expected.scaling:
        return
    lacks = "lacks the state of its loss scaler" if kind is None else "is of another kind of loss scaling"
    yield finding(
        "C610",
        f"The checkpoint {lacks}.",
        place=Place(file=str(path)),
        expected=f"scaling {expected.scaling}",
        received="none stored" if kind is None else f"scaling {kind}",
    )


def _assets(manifest: Manifest, expected: Expected, path: Path) -> Iterator[Finding]:
    if expected.assets is None:
        return
    rows: list[Row] = []
    for name in {**manifest.assets, **expected.assets}:
        a, b = manifest.assets.get(name), expected.assets.get(name)
        if a != b:
            rows.append(("file", name, a and a[:16], b and b[:16]))
    if rows:
        yield finding(
            "C612",
            "What the recipe learned from its data is not what the checkpoint was trained with."
            + table(rows, "checkpoint", "here"),
            place=Place(file=str(path)),
            expected=f"'{rows[0][1]}' as the checkpoint knows it",
            received="another content" if rows[0][3] else "no such file",
        )


def _plan(manifest: Manifest, expected: Expected, path: Path) -> Iterator[Finding]:
    """With one policy, a device or a version decides otherwise: a warning, as nothing stored is touched."""
    if not expected.plan or not manifest.plan:
        return
    rows: list[Row] = [
        ("layer", f"{layer or '(the model)'}, {role}", old, new)
        for layer in {**manifest.plan, **expected.plan}
        for (role,), old, new in _changes(manifest.plan.get(layer, {}), expected.plan.get(layer, {}))
    ]
    if rows:
        yield finding(
            "C618",
            "Layers run in other formats than those the checkpoint was made in."
            + table(rows, "checkpoint", "here"),
            place=Place(file=str(path)),
        )


def _what(rows: Sequence[Row], *, lower: bool = False) -> str:
    """`A parameter`, `3 parameters`, `2 parameters and 1 buffer`."""
    counts: dict[str, int] = {}
    for kind, *_ in rows:
        counts[kind] = counts.get(kind, 0) + 1
    if len(rows) == 1:
        name = _NAMES[rows[0][0]]
        article = "an" if name[0] in "aeiou" else "a"
        return f"{article if lower else article.capitalize()} {name}"
    return " and ".join(_count(n, _NAMES[kind]) for kind, n in counts.items())


def _count(n: int, noun: str) -> str:
    if n == 1:
        return f"1 {noun}"
    odd = {"master copy": "master copies", "state of the step": "states of the step"}
    return f"{n:,} {odd.get(noun, f'{noun}s')}"


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


# --- casts ----------------------------------------------------------------------------------------------


def overflow(rows: Sequence[Row], path: Path) -> ManifestError:
    """The error that names tensors which cannot be cast (C614)."""
    message = "The checkpoint holds values that overflow in the format asked for."
    return ManifestError(
        finding("C614", message + table(rows, "checkpoint", "here"), place=Place(file=str(path)))
    )


def cast_told(rows: Sequence[Row], path: Path) -> Finding:
    """What was cast (C619)."""
    exact = all(str(row[3]).split("  ")[-1].startswith("exact") for row in rows)
    return finding(
        "C619",
        f"{len(rows):,} tensors of the checkpoint were cast{', exactly' if exact else ''}."
        + table(rows, "checkpoint", "here"),
        place=Place(file=str(path)),
        severity="info" if exact else "warning",
        remedy="" if exact else None,
    )
