"""An incident: a held step, and what replaying it found. Plain data, the same in both wings.

`Attribution` is what replay learns about one bad step; `Incident` adds when and where it happened, and is
what `incident.json` holds.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Phase = Literal["data", "forward", "loss", "backward", "optimizer"]
Event = Literal[
    "overflow",
    "zero-over-zero",
    "zero-times-inf",
    "domain",
    "underflow",
    "inherited",
    "data",
    "scaling",
    "optimizer",
    "not-reproduced",
]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Record):
    """A line of the user's code."""

    file: str
    line: int
    text: str = ""
    """The line itself, stripped; empty where the file could not be read."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Producer(_Record):
    """The operation that first gave a bad result though its operands were good, or what else is to blame."""

    op: str | None = None
    """Name of the operation (`log`, `mm`), of its backward (`SqrtBackward0`), or of an optimizer (`Adam`)."""
    module: str | None = None
    """Path of the innermost module that ran it; empty for the model itself, None outside of it."""
    parameter: str | None = None
    """The parameter or buffer to blame, or the field of the batch."""
    source: Source | None = None
    """The user's line; for a backward operation that of its forward operation."""
    time_index: int | None = None
    """Time step from 0 where a recurrent layer ran it."""


class TensorStatistics(_Record):
    """What one operand or result held."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    min: float | None = None
    """Least finite value; None where there is none."""
    max: float | None = None
    """Largest finite value; None where there is none."""
    nan: int = 0
    posinf: int = 0
    neginf: int = 0
    zero: int = 0
    subnormal: int = 0


class BadRow(_Record):
    """A row of the batch without which the step is good."""

    index: int
    """Position in the batch (in the micro-batch, where there are several)."""
    row: int | None = None
    """Row number in the data set; None where batches do not carry them."""
    file: str | None = None
    line: int | None = None


class Link(_Record):
    """One station on the way from the producer to where the guard saw it."""

    what: str
    """An operation, a module boundary, the loss, a gradient."""
    module: str | None = None
    phase: Phase
    source: Source | None = None


class Attribution(_Record):
    """What replaying a bad step found."""

    code: str
    """Of the catalogue: N5xx, or D1xx, S4xx."""
    phase: Phase
    event: Event
    message: str
    """One sentence: what happened, without the place."""
    producer: Producer = Producer()
    operands: tuple[TensorStatistics, ...] = ()
    results: tuple[TensorStatistics, ...] = ()
    rows: tuple[BadRow, ...] = ()
    chain: tuple[Link, ...] = ()
    remedy: str = ""
    reproduced: bool = True
    """Whether the replay met it again."""
    micro_batch: int | None = None
    """Which of the accumulated micro-batches, from 0; None where there is only one."""


class Incident(_Record):
    """The whole of `incident.json`."""

    code: str
    step: int
    """Optimizer steps committed before it."""
    epoch: int
    micro_batch: int | None = None
    rank: int = 0
    phase: Phase
    event: Event
    message: str
    producer: Producer = Producer()
    operands: tuple[TensorStatistics, ...] = ()
    results: tuple[TensorStatistics, ...] = ()
    rows: tuple[BadRow, ...] = ()
    chain: tuple[Link, ...] = ()
    remedy: str = ""
    reproduced: bool = True
    policy: str
    """The policy's short string."""
    seen: dict[str, Any] = {}
    """What the guard's verdict said: which of loss, gradients, buffers … were bad, and which tensors."""
    response: str = ""
    """What was done: raise, hold, rollback, lower-lr, promote."""
    castiron: str = ""
    versions: dict[str, str] = {}
