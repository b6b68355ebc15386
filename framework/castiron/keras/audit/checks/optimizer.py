"""F313, F314, F342: what an optimizer keeps, and whether narrow parameters have a wide copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from castiron.diagnostics import Finding, Place, finding
from castiron.keras.audit.checks import known
from castiron.keras.dtypes import NARROW, is_float, tensorflow_name
from castiron.keras.modules import stored_dtype
from castiron.keras.updates import Updates
from castiron.policy import PrecisionPolicy


def check(optimizer: Any, parameters: Sequence[Any], policy: PrecisionPolicy) -> Iterator[Finding]:
    """Hold an optimizer against the policy's `state` and `updates`.

    Args:
        optimizer: of Keras, built or not (what is looked at then is one like it), or castiron's `Updates`.
        parameters: the model's trainable variables.
    """
    wrapped = isinstance(optimizer, Updates)
    own = optimizer.optimizer if isinstance(optimizer, Updates) else optimizer
    while isinstance(own, keras.optimizers.LossScaleOptimizer):
        own = own.inner_optimizer
    cls = type(own).__name__
    if not own.built:
        own = type(own).from_config(own.get_config())
        own.build(list(parameters))
    shapes = {tuple(v.shape) for v in parameters}
    slots = {stored_dtype(v) for v in own.variables if tuple(v.shape) in shapes}
    for dtype in sorted(slots & NARROW):
        stochastic = wrapped and policy.updates.rounding == "stochastic"
        yield from known.of_optimizer(own, dtype, stochastic=stochastic)
    expected = tensorflow_name(policy.state)
    odd: dict[str, list[str]] = {}
    for slot in own.variables:
        dtype = stored_dtype(slot)
        if slot is getattr(own, "_learning_rate", None) or tuple(slot.shape) not in shapes:
            continue
        if is_float(dtype) and dtype != expected:
            odd.setdefault(dtype, []).append(slot.path)
    for received, paths in odd.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield finding(
            "F313",
            f"{cls} keeps '{paths[0]}'{more} in {received}",
            place=Place(op=cls, phase="optimizer"),
            expected=policy.state,
            received=received,
            remedy="Let castiron.keras.enforce or transaction take the optimizer, or declare `state:`. "
            "(Keras's optimizers keep the format of the parameter.)",
        )
    bare = [v for v in parameters if stored_dtype(v) in NARROW]
    if bare and not wrapped and policy.updates.master is not None:
        yield finding(
            "F314",
            f"{cls} updates '{bare[0].path}'" + (f" and {len(bare) - 1} more" if len(bare) > 1 else "")
            + " directly",
            place=Place(op=cls, phase="optimizer"),
            expected=f"a {policy.updates.master} master copy of each",
            received=f"{len(bare)} narrow parameter{'s' if len(bare) > 1 else ''} without one",
            remedy="Let castiron.keras.enforce or transaction take the optimizer.",
        )  # fmt: skip
