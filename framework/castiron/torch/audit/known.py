"""F342: operations and optimizers that are known to be bad in a format, with what shows it.

Each entry was seen on the installed version, and a test shows it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from castiron.diagnostics import Finding, Place, finding
from castiron.formats import number_format
from castiron.torch.audit.context import Context
from castiron.torch.audit.records import Op
from castiron.torch.dtypes import NARROW, dtype_name


@dataclass(frozen=True, slots=True)
class BadOperation:
    """An operation that gives wrong numbers in 16 bits."""

    ops: frozenset[str]
    judged: int
    """The operand whose format decides."""
    is_bad: Callable[[Op, torch.dtype], bool]
    what: str
    reference: str


def _many(op: Op, dtype: torch.dtype) -> bool:
    """More terms for a place than the format counts, on the average."""
    terms = max((math.prod(v.shape) for v in op.operands if not v.is_float), default=0)
    places = max(op.operands[0].shape[0], 1) if op.operands[0].shape else 1
    return terms > places * number_format(dtype_name(dtype)).max_exact_int


def _large(op: Op, dtype: torch.dtype) -> bool:
    """Images with more pixels on a side than the format tells apart."""
    return max(op.operands[0].shape[2:], default=0) > number_format(dtype_name(dtype)).max_exact_int


OPERATIONS: tuple[BadOperation, ...] = (
    BadOperation(
        frozenset(("index_add", "index_put_accumulate", "unsafe_masked_index_put_accumulate")), 0, _many,
        "adds up in its own 16-bit format: ones stop counting at 256 (bfloat16) or 2,048 (float16)",
        "https://github.com/pytorch/pytorch/issues/139242",
    ),
    BadOperation(
        frozenset(("grid_sampler_2d", "grid_sampler_3d")), 1, _large,
        "takes coordinates of 16 bits: in an image of 1,000 pixels they are off by up to one (bfloat16)",
        "https://docs.pytorch.org/docs/stable/amp.html, operations that autocast to float32",
    ),
)  # fmt: skip


def check(context: Context) -> Iterator[Finding]:
    """Operations of a trace that are in the table."""
    for op in context.trace.of("forward", "loss"):
        for bad in OPERATIONS:
            if op.base not in bad.ops or len(op.operands) <= bad.judged:
                continue
            dtype = op.operands[bad.judged].dtype
            if dtype not in NARROW or not bad.is_bad(op, dtype):
                continue
            yield finding(
                "F342",
                f"{op.title} {bad.what}",
                place=context.place(op),
                expected="float32",
                received=dtype_name(dtype),
                reference=bad.reference,
            )


_ADAMS = frozenset(("Adam", "AdamW", "NAdam", "RAdam"))


def of_optimizer(
    optimizer: Optimizer, formats: Mapping[str, torch.dtype], group: Mapping[str, Any], *, stochastic: bool
) -> tuple[str, str, str] | None:
    """What is known to be bad of an optimizer that keeps its state so: what, expected, received.

    Args:
        formats: what it keeps of a parameter → in which format.
        group: the settings of the parameter.
        stochastic: whether what it keeps is rounded stochastically.
    """
    if type(optimizer).__name__ not in _ADAMS:
        return None
    second = formats.get("exp_avg_sq")
    if second is torch.float16 and group.get("eps", 0.0) <= 2**-25 and not group.get("fused"):
        # https://github.com/pytorch/pytorch/issues/147437
        return (
            f"eps={group['eps']:g} is zero in float16: where gradients are zero or small the step is 0/0",
            "eps of at least 6e-08, or a float32 state",
            f"{group['eps']:g}",
        )
    betas = group.get("betas")
    if second is torch.bfloat16 and betas is not None and 1 - betas[1] < 2**-9 and not stochastic:
        # half the spacing of bfloat16; https://github.com/areal-project/AReaL/issues/1292
        return (
            f"with beta2={betas[1]:g} the second moment in bfloat16 never falls: {1 - betas[1]:g} of it is "
            "less than half a spacing",
            "beta2 up to 0.99, or a float32 state",
            f"{betas[1]:g}",
        )
    return None


def judge_optimizer(
    optimizer: Optimizer, formats: Mapping[str, torch.dtype], group: Mapping[str, Any], *, stochastic: bool
) -> Iterator[Finding]:
    """The finding about an optimizer, where there is one."""
    found = of_optimizer(optimizer, formats, group, stochastic=stochastic)
    if found is not None:
        cls = type(optimizer).__name__
        place = Place(op=cls, phase="optimizer")
        yield finding(
            "F342", f"{cls}: {found[0]}", place=place, expected=found[1], received=found[2],
            remedy="Keep the state in float32 (state: float32), or change the setting.",
        )  # fmt: skip
