"""What an optimizer makes of gradients that are finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from castiron.keras.replay.blame import AGAINST_OPTIMIZER
from castiron.keras.replay.values import is_finite, statistics
from castiron.keras.snapshot import Snapshot
from castiron.keras.step import Forward, StepCore
from castiron.training.event_words import CODES
from castiron.training.incident import Attribution, Producer


def blame_update(core: StepCore, forward: Forward, batches: Sequence[Any]) -> Attribution | None:
    """What the optimizer's own step spoils; None where all stays finite. Everything is as before."""
    updates = core.updates
    values = [v._value for v in updates.parameters]
    kept = Snapshot([*values, *updates.variables(), *core.snapshot.variables])
    before = kept.take()
    try:
        _, gradients = core._compute(forward, batches)
        present = [g for g in gradients if g is not None]
        if not all(is_finite(g) for g in present):
            return None
        core._update(gradients, tf.add_n([tf.nn.l2_loss(tf.cast(g, tf.float32)) for g in present]))
        slots = [(v.path, v._value) for v in updates.optimizer.variables]
        for name, value in [*zip(core._names, values, strict=True), *slots]:
            if value.dtype.is_floating and not is_finite(value.read_value()):
                optimizer = type(updates.optimizer).__name__
                return Attribution(
                    code=CODES["optimizer"],
                    phase="optimizer",
                    event="optimizer",
                    message=f"{optimizer} made '{name}' not finite, of gradients that are",
                    producer=Producer(op=optimizer, module=name.rpartition(".")[0], parameter=name),
                    operands=tuple(
                        statistics(f"gradient of {n}", g)
                        for n, g in zip(core._names, gradients, strict=True)
                        if g is not None and n == name
                    ),
                    results=(statistics(name, value.read_value()),),
                    remedy=AGAINST_OPTIMIZER,
                )
        return None
    finally:
        kept.put_back(before)
