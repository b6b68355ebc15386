"""The step of `fit` in the graph: Keras's forward and loss, the transaction, metrics where it is applied."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf
from keras.src.losses.loss import unscale_loss_for_distribution

from castiron.keras.arguments import cast_data
from castiron.keras.health.watch import Watch
from castiron.keras.loss import to_loss_dtype
from castiron.keras.step import StepCore
from castiron.policy import PrecisionPolicy


class FitStep:
    """What `fit` does with a batch under a policy.

    Args:
        model: compiled.
    """

    def __init__(self, model: Any, core: StepCore, policy: PrecisionPolicy) -> None:
        self._model, self._core, self._policy = model, core, policy

    def __call__(self, data: Any, watch: Watch | None) -> tuple[dict[str, Any], Any]:
        """One step, in the graph. → what the decision was, and the logs."""
        with contextlib.nullcontext() if watch is None else watch.tracing():
            result = self._core.run(self.forward, [cast_data(self._policy, data)], self._update_metrics)
        told = {"committed": result.committed, "flagged": result.flagged, "calibrating": result.calibrating}
        if watch is not None:
            told["health"] = watch.outputs()
        return told, self._model.get_metrics_result()

    def forward(self, data: Any) -> tuple[Any, Any]:
        """Loss and outputs of a batch, as `fit` has them."""
        model = self._model
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        outputs = model(x, training=True) if model._call_has_training_arg else model(x)
        outputs = to_loss_dtype(outputs, self._policy.loss)
        loss = model._compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True)
        return loss, outputs

    def _update_metrics(self, seen: list[tuple[Any, Any, Any]]) -> None:
        model = self._model
        ((data, loss, outputs),) = seen
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        first = next(t for t in keras.tree.flatten(x) if t is not None)
        loss = unscale_loss_for_distribution(loss)
        model._loss_tracker.update_state(loss, sample_weight=tf.shape(first)[0])
        model.compute_metrics(x, y, outputs, sample_weight=sample_weight)
