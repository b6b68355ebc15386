"""A step that was held, as data: what the guard saw of it, and what there is to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import castiron
from castiron.diagnostics import Finding, Place, RunError, finding
from castiron.training.environment import versions
from castiron.training.incident import Attribution, BadRow, Incident

Origin = Callable[[int], str]
"""Row number of a batch's `row` field → `file:line`."""
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guard saw of one step."""

    bad: bool
    seen: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What was watched (loss, gradients …) → names of what is not finite there; only where something is."""
    micro_batches: tuple[int, ...] = ()
    """Accumulated batches, from 0, whose loss is not finite."""

    @property
    def gradients_only(self) -> bool:
        """Whether losses and all else are finite: what an overflow under loss scaling looks like."""
        return self.bad and set(self.seen) == {"gradients"}


ELSEWHERE = "another rank"
"""What of a step was bad where all was finite on this rank, but not on another."""


def suspicion(own: Verdict) -> float:
    """How much speaks for it that a step went wrong on the rank of this verdict, beside those of others.

    Gradients are summed over all ranks: they are bad everywhere. A bad loss or buffer is a rank's own.
    """
    return 2.0 if set(own.seen) - {"gradients", ELSEWHERE} else 1.0 if "gradients" in own.seen else 0.0


def incident_of(
    attribution: Attribution,
    *,
    step: int,
    epoch: int,
    policy: str,
    verdict: Verdict,
    response: str = "",
    rank: int = 0,
    origin: Origin | None = None,
) -> Incident:
    """The record of a held step.

    Args:
        attribution: what replay found.
        step: optimizer steps committed before it.
        epoch: the one it happened in.
        policy: the policy's short string.
        verdict: what the guard saw.
        response: what is done about it.
        rank: of the process whose step it was.
        origin: names the file and line of rows.
    """
    told = {name: getattr(attribution, name) for name in Attribution.model_fields}
    told["rows"] = tuple(located(row, origin) for row in attribution.rows)
    return Incident(
        **told,
        step=step,
        epoch=epoch,
        rank=rank,
        policy=policy,
        seen={what: list(names) for what, names in verdict.seen.items()},
        response=response,
        castiron=castiron.__version__,
        versions=versions(),
    )


def located(row: BadRow, origin: Origin | None) -> BadRow:
    """A row with its file and line, where they can be known."""
    if origin is None or row.row is None or row.file is not None:
        return row
    file, _, line = origin(row.row).rpartition(":")
    if not file or not line.isdigit():
        return row.model_copy(update={"file": origin(row.row)})
    return row.model_copy(update={"file": file, "line": int(line)})


def describe_held(
    verdict: Verdict,
    step: int,
    watch: Sequence[str],
    *,
    rows: str = "",
    incident: Incident | Attribution | None = None,
) -> Finding:
    """What there is to say of a held step: what replay found to blame, else what the guard saw (N500).

    Args:
        step: optimizer steps committed before it.
        watch: the policy's `guard.watch`.
        rows: the rows of the batch, as `rows_of` gives them; an incident has those to blame.
        incident: what replay found.
    """
    seen = "; ".join(f"{what} ({listed(names)})" if names else what for what, names in verdict.seen.items())
    held = f"the step after {step:,} committed ones is not finite, and was not applied"
    evidence: dict[str, Any] = {
        "seen": {what: list(names) for what, names in verdict.seen.items()},
        "micro_batches": list(verdict.micro_batches),
        "step": step,
    }
    expected, received = f"finite {', '.join(watch)}", f"NaN or infinity in {seen}"
    if incident is None:
        place = Place(phase="forward" if "loss" in verdict.seen else "backward")
        return finding(
            "N500",
            held[0].upper() + held[1:] + (f"; its rows: {rows}" if rows else ""),
            place=place,
            expected=expected,
            received=received,
            **evidence,
        )
    producer, source = incident.producer, incident.producer.source
    if blamed := [_row(r) for r in incident.rows]:
        held += f"; because of {listed(blamed)}"
    return finding(
        incident.code,
        f"{incident.message.rstrip('.')}: {held}",
        place=Place(
            file=source.file if source else None,
            line=source.line if source else None,
            module=producer.module,
            op=producer.op,
            phase=incident.phase,
        ),
        expected=expected,
        received=received,
        remedy=incident.remedy or None,
        **evidence,
    )


def rows_of(batches: Sequence[Any], verdict: Verdict, origin: Origin | None = None) -> str:
    """The rows of the batches to blame, as far as batches carry them; empty where they do not."""
    # Manual optimization may take several losses of one batch.
    chosen = [b for i, b in enumerate(batches) if i in verdict.micro_batches] or batches
    rows = [row for batch in chosen for row in row_numbers(batch) or ()]
    return listed([origin(r) if origin else str(r) for r in rows[:_SHOWN]], len(rows))


def listed(names: Sequence[str], total: int | None = None) -> str:
    """The first names, and how many more there are."""
    total = len(names) if total is None else total
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {total - _SHOWN} more" if total > _SHOWN else shown


def row_numbers(batch: Any) -> list[int] | None:
    """The data set's row numbers of a batch; None where it does not carry them."""
    rows = batch.get("row") if isinstance(batch, Mapping) else None
    if rows is None:
        return None
    values = rows.numpy() if hasattr(rows, "numpy") else rows
    return [int(r) for r in values]


def _row(row: BadRow) -> str:
    if row.file is not None:
        return f"{row.file}:{row.line}" if row.line is not None else row.file
    return f"row {row.row}" if row.row is not None else f"row {row.index} of the batch"


def stored(store: Callable[[], Path]) -> tuple[Path | None, tuple[Finding, ...]]:
    """Store an incident: a full disk hides nothing of what went wrong, and ends nothing that can go on. → its
    folder, or what there is to say of why there is none."""
    try:
        return store(), ()
    except RunError as e:
        return None, e.findings


def told_unstored(found: Finding, problems: Sequence[Finding]) -> Finding:
    """What there is to say of a held step, with why its incident is not on disk."""
    if not problems:
        return found
    why = "; ".join(f"{p.message} ({p.place.file})" for p in problems)
    return replace(found, remedy=" ".join(filter(None, [found.remedy, f"The incident is not stored: {why}"])))
