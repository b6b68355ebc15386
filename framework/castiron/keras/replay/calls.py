"""What replay keeps of each operation that ran: its place, what it got and gave, where bad operands came
from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from castiron.keras.replay.values import State
from castiron.training.incident import Event, Phase, TensorStatistics
from castiron.training.source_lines import Line

MOVES = frozenset(
    {
        "BroadcastTo", "Concat", "ConcatV2", "ExpandDims", "Fill", "Gather", "GatherNd", "GatherV2",
        "Identity", "IdentityN", "MirrorPad", "OnesLike", "Pack", "Pad", "PadV2", "Reshape",
        "ResourceGather", "Reverse", "ReverseSequence", "ReverseV2", "Roll", "ScatterNd", "Select",
        "SelectV2", "Slice", "Split", "SplitV", "Squeeze", "StopGradient", "StridedSlice",
        "TensorListFromTensor", "TensorListGetItem", "TensorListSetItem", "TensorListStack",
        "TensorScatterUpdate", "Tile", "Transpose", "Unpack", "ZerosLike", "EnsureShape", "Snapshot",
        "PreventGradient", "Copy", "Where", "BatchToSpaceND", "SpaceToBatchND",
    }
)  # fmt: skip
"""Operations that move values and make none."""
GATHERS = frozenset({"Gather", "GatherNd", "GatherV2", "ResourceGather", "ResourceGatherNd"})
"""Operations that look rows up in a table."""
ASSIGNS = frozenset(
    {
        "AssignAddVariableOp", "AssignSubVariableOp", "AssignVariableOp", "ResourceScatterAdd",
        "ResourceScatterNdAdd", "ResourceScatterNdSub", "ResourceScatterNdUpdate", "ResourceScatterSub",
        "ResourceScatterUpdate",
    }
)  # fmt: skip
"""Operations that write into a variable: its handle comes first, the value last."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value that was there before the first operation comes from."""

    kind: Literal["batch", "parameter", "buffer", "state", "unknown"]
    name: str


@dataclass(slots=True, eq=False)
class Evidence:
    """What an operation got and gave."""

    event: Event
    operands: tuple[TensorStatistics, ...]
    results: tuple[TensorStatistics, ...]
    rows: list[int] | None
    """Rows of the batch whose results are bad; None where results have no dimension of rows."""


@dataclass(slots=True, eq=False)
class Call:
    """An operation that ran, or the gradient of one."""

    index: int
    op: str
    phase: Phase
    module: str | None
    lines: tuple[Line, ...]
    time_index: int | None = None
    """Time step of a recurrent layer, or turn of a loop, from 0; None where nothing came round."""
    optimizer: str | None = None
    """The optimizer that ran it, with its name where there are several."""
    parents: list[Call | Origin] = field(default_factory=list)
    """What its bad operands came from."""
    evidence: Evidence | None = None
    """Where it made something bad of good operands."""


@dataclass(slots=True, eq=False)
class Value:
    """How good a tensor is, and what made it so."""

    state: State
    source: Call | Origin | None
