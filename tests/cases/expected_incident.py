"""What an incident must say; the same table for every wing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from castiron.training.incident import Incident


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an incident must say; None: anything."""

    code: str
    phase: str
    event: str
    op: str | tuple[str, ...] | None = None
    module: str | None = None
    parameter: str | None = None
    line: str | None = None
    """Part of the source line."""
    rows: Sequence[int] | None = None
    time_index: int | None = None
    micro_batch: int | None = None
    says: str | None = None
    """Part of the message or the remedy."""


def assert_says(incident: Incident | None, expected: Expected, file: str) -> None:
    """Assert that a step was held, and that its incident says what is expected of it.

    Args:
        file: where the training stands.
    """
    assert incident is not None, "no step was held"
    said = f"{incident.model_dump_json(indent=1)}"
    for what in ("code", "phase", "event"):
        assert getattr(incident, what) == getattr(expected, what), said
    producer = incident.producer
    if expected.op is not None:
        assert producer.op in ([expected.op] if isinstance(expected.op, str) else expected.op), said
    for what in ("module", "parameter", "time_index"):
        if getattr(expected, what) is not None:
            assert getattr(producer, what) == getattr(expected, what), said
    if expected.line is not None:
        assert producer.source is not None, said
        assert expected.line in producer.source.text, said
        assert producer.source.file == file
    if expected.rows is not None:
        assert [r.index for r in incident.rows] == list(expected.rows), said
    if expected.micro_batch is not None:
        assert incident.micro_batch == expected.micro_batch, said
    if expected.says is not None:
        assert expected.says in f"{incident.message} {incident.remedy}", said
    assert incident.remedy
