"""The graph of a training step that is applied whole or not at all: what `transaction`, `enforce` and
recipes compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from castiron.diagnostics import ConfigError, Place, finding
from castiron.keras.dtypes import dtype_name, tensorflow_name
from castiron.keras.guard import KNOWN, UPDATED, all_finite, flags, sum_of_squares, verdict_of
from castiron.keras.loss import check_loss
from castiron.keras.modules import own_variables, stored_dtype, variables, walk
from castiron.keras.replicas import Alone
from castiron.keras.scaling import Scaler
from castiron.keras.snapshot import Snapshot, Writes, volatile_variables
from castiron.keras.updates import Updates
from castiron.policy import PrecisionPolicy
from castiron.policy.sections import DynamicScaling
from castiron.training.held import Verdict

Forward = Callable[[Any], tuple[Any, Any]]
"""Batch → scalar loss, and whatever `committed` is to have."""
Committed = Callable[[list[tuple[Any, Any, Any]]], None]
"""Called in the graph where a step is applied, with (batch, loss, what forward gave) of each micro-batch."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a compiled step gave, as tensors."""

    loss: Any
    """Mean of the losses of the micro-batches."""
    committed: Any
    """Whether the step was applied: boolean."""
    flagged: Any
    """For each watched tensor, whether it is not finite: boolean [n]."""
    calibrating: Any
    """Whether the loss scale could still fall before the step: boolean."""


class StepCore:
    """The graph of a transaction: forward, loss, backward, one decision, then commit or hold.

    Built into any function that TensorFlow compiles, or run eagerly; it starts no session of its own.

    Args:
        model: whose trainable variables are trained; the plan is applied to it.
        updates: the optimizer at work on them.
        clip_norm: largest global norm of the gradients.
        decay: what is added to gradients (weight decay), after clipping.
        jobs: variables beside the model's and the optimizer's that a held step must leave alone.
    """

    def __init__(
        self,
        model: Any,
        updates: Updates,
        policy: PrecisionPolicy,
        scaler: Scaler,
        *,
        clip_norm: float | None = None,
        decay: Callable[[Any, Any], Any] | None = None,
        jobs: Sequence[Any] = (),
    ) -> None:
        check_watch(policy)
        self.jit_compile = False
        """Whether the function that this is built into is compiled by XLA; replay then does as XLA does."""
        self.replicas = Alone()
        """Who decides together."""
        self.model, self.updates, self.policy, self.scaler = model, updates, policy, scaler
        self.clip_norm, self._decay = clip_norm, decay
        self.observer: Callable[[list[Any]], None] | None = None
        """Called in the graph with the unscaled mean gradients of a step, before the decision."""
        self.snapshot = Snapshot([*volatile_variables(model), *jobs])
        self._writes = Writes(updates.parameters)
        self.others: list[Any] = []
        """keras.Variables of optimizers that the model's own `train_step` has beside its first."""
        names = {id(v): n for n, v in variables(model).items()}
        self._names = [names.get(id(v), v.path) for v in updates.parameters]
        self._buffers = _watched_buffers(model)
        self.names: list[tuple[str, str]] = []
        """(what, name) of each flag of the function that was traced last."""
        self._names_by_count: dict[int, list[tuple[str, str]]] = {}

    def run(
        self,
        forward: Forward,
        batches: Sequence[Any],
        committed: Committed | None = None,
        *,
        watched: bool = True,
    ) -> StepResult:
        """One step, in the graph.

        Args:
            batches: the micro-batches, one or more; gradients are their mean.
            watched: False applies the step whatever it gives (`guard.every`).
        """
        snapshot = self.snapshot
        before = snapshot.take()
        # What nobody asks for afterwards costs nothing.
        read = {id(v._value): tf.identity(v._value) for v in self.updates.parameters}
        calibrating = self.scaler.may_fall()
        with self._writes.noted():
            seen, gradients = self._compute(forward, batches)
        known = {id(v) for v in snapshot.variables}
        if more := [v for v in self._writes.written if id(v) not in known]:
            self.snapshot = snapshot = Snapshot([*snapshot.variables, *more])
            before += [read[id(v)] for v in more]
        gradients = self.replicas.gradients(gradients)
        self._observe(gradients)
        losses = [loss for _, loss, _ in seen]
        loss = losses[0] if len(losses) == 1 else tf.add_n(losses) / len(losses)
        present = [g for g in gradients if g is not None]
        squares = sum_of_squares(present)
        watch: dict[str, dict[str, Any]] = {}
        if "loss" in self.policy.guard.watch:
            watch["loss"] = {f"micro-batch {i}": x for i, x in enumerate(losses)}
        good = all_finite(list(watch["loss"].values())) if "loss" in watch else tf.constant(True)
        if "buffers" in self.policy.guard.watch and self._buffers:
            watch["buffers"] = {n: tf.convert_to_tensor(v._value) for n, v in self._buffers.items()}
            good = tf.logical_and(good, all_finite(list(watch["buffers"].values())))
        if "gradients" in self.policy.guard.watch or self.scaler.active:
            watch["gradients"] = {n: g for n, g in zip(self._names, gradients, strict=True) if g is not None}
            gradients_good = all_finite(present, squares)
        else:
            gradients_good = tf.constant(True)
        good, loss = self.replicas.agree(good, loss)
        if self.scaler.active:
            # A loss that is not finite says nothing about the scale.
            tf.cond(good, lambda: self._rescale(gradients_good), lambda: tf.constant(0))
        good = tf.logical_and(good, gradients_good)
        updated = UPDATED & set(self.policy.guard.watch)
        self.names = [(what, name) for what, tensors in watch.items() for name in tensors]
        late_names = self._updated_names(updated)
        early = len(self.names)
        clean = tf.zeros([early + len(late_names)], tf.bool)
        self.names += late_names

        def commit() -> tuple[Any, Any]:
            kept = self._before_update() if updated else None
            self._update(gradients, squares)
            if kept is None:
                if committed is not None:
                    committed(seen)
                return tf.constant(True), clean
            after = self._updated_tensors(updated)
            fine = all_finite(list(after.values()))

            def keep() -> tuple[Any, Any]:
                if committed is not None:
                    committed(seen)
                return tf.constant(True), clean

            def undo() -> tuple[Any, Any]:
                late = flags({"updated": after})
                kept[0].put_back(kept[1])
                snapshot.put_back(before)
                return tf.constant(False), tf.concat([clean[:early], late], 0)

            found: tuple[Any, Any] = tf.cond(fine, keep, undo)
            return found

        def hold() -> tuple[Any, Any]:
            flagged = tf.concat([flags(watch), tf.zeros([len(late_names)], tf.bool)], 0)
            snapshot.put_back(before)
            return tf.constant(False), flagged

        if not watched and not self.scaler.active:
            applied, flagged = commit()
        else:
            applied, flagged = tf.cond(good, commit, hold)
        self.replicas.settle()
        self._names_by_count[len(batches)] = self.names
        return StepResult(loss, applied, flagged, calibrating)

    def look(self, forward: Forward, batches: Sequence[Any]) -> None:
        """Forward and backward alone, in the graph, for the observer: nothing is decided or applied."""
        _, gradients = self._compute(forward, batches)
        self._observe(gradients)

    def _observe(self, gradients: list[Any]) -> None:
        if self.observer is None:
            return
        for gradient, parameter in zip(gradients, self.updates.parameters, strict=True):
            if isinstance(gradient, tf.Tensor):
                # Of a batch whose axes may have any length, a product's gradient does not know its own.
                gradient.set_shape(parameter.shape)
        self.observer(gradients)

    def verdict(self, flagged: Any, micro_batches: int = 1) -> Verdict:
        """The verdict of a step that was not applied, on the host."""
        return verdict_of(self._names_by_count[micro_batches], flagged)

    def is_expected(self, verdict: Verdict, calibrating: Any) -> bool:
        """Whether it is what calibrating a loss scale looks like: gradients overflowed, all else is finite,
        and the scale could still fall."""
        scaling = getattr(self.scaler, "scaling", None)
        return verdict.gradients_only and isinstance(scaling, DynamicScaling) and bool(calibrating)

    # --- parts -------------------------------------------------------------------------------------

    def _compute(
        self, forward: Forward, batches: Sequence[Any]
    ) -> tuple[list[tuple[Any, Any, Any]], list[Any]]:
        """(batch, loss, outputs) of each micro-batch, and the unscaled mean gradients, dense."""
        seen: list[tuple[Any, Any, Any]] = []
        total: list[Any] | None = None
        wide = tensorflow_name(self.policy.accumulate)
        for batch in batches:
            # One after the other: together they would need the memory of all.
            with tf.control_dependencies([g for g in total or () if g is not None]):
                loss, outputs, gradients = self._gradients(forward, batch)
            seen.append((batch, loss, outputs))
            narrow = [
                None if g is None else tf.cast(g, wide) if g.dtype.size < tf.as_dtype(wide).size else g
                for g in gradients
            ]
            if total is None:
                total = narrow
            else:
                total = [_add(a, b) for a, b in zip(total, narrow, strict=True)]
        assert total is not None
        if len(batches) > 1:
            total = [None if g is None else g / len(batches) for g in total]
        return seen, self.scaler.unscale(total)

    def _gradients(self, forward: Forward, batch: Any) -> tuple[Any, Any, list[Any]]:
        parameters = self.updates.parameters
        with tf.GradientTape() as tape:
            loss, outputs = forward(batch)
            if loss.shape.rank != 0:
                raise ValueError(f"Expected a scalar loss. Received one of shape {tuple(loss.shape)}.")
            check_loss(loss, self.policy)
            scaled = self.scaler.scale(loss)
        gradients = tape.gradient(scaled, [v._value for v in parameters])
        return loss, outputs, [None if g is None else tf.convert_to_tensor(g) for g in gradients]

    def _rescale(self, gradients_good: Any) -> Any:
        self.scaler.update(tf.logical_not(gradients_good))
        return tf.constant(0)

    def _update(self, gradients: Sequence[Any], squares: Any) -> None:
        if self.clip_norm is not None:
            norm = tf.sqrt(2.0 * squares)
            # As torch.nn.utils.clip_grad_norm_ has it. A norm that overflows is taken again, scaled down.
            norm = tf.cond(tf.math.is_finite(norm), lambda: norm, lambda: _large_norm(gradients, norm.dtype))
            factor = tf.minimum(self.clip_norm / (norm + 1e-6), 1.0)
            gradients = [None if g is None else g * tf.cast(factor, g.dtype) for g in gradients]
        if self._decay is not None:
            pairs = zip(gradients, self.updates.parameters, strict=True)
            gradients = [None if g is None else self._decay(g, v._value) for g, v in pairs]
        self.updates.apply(gradients)

    def _before_update(self) -> tuple[Snapshot, list[Any]]:
        kept = Snapshot([*(v._value for v in self.updates.parameters), *self.updates.variables()])
        return kept, kept.take()

    def _updated_tensors(self, updated: frozenset[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "parameters" in updated:
            pairs = zip(self._names, self.updates.parameters, strict=True)
            found |= {n: tf.convert_to_tensor(v._value) for n, v in pairs}
        if "optimizer" in updated:
            found |= {
                v.path: tf.convert_to_tensor(v._value)
                for v in self.updates.optimizer.variables
                if tf.as_dtype(stored_dtype(v)).is_floating and v.shape.rank
            }
        return found

    def _updated_names(self, updated: frozenset[str]) -> list[tuple[str, str]]:
        names: list[tuple[str, str]] = []
        if "parameters" in updated:
            names += [("parameters", n) for n in self._names]
        if "optimizer" in updated:
            names += [
                ("optimizer", v.path)
                for v in self.updates.optimizer.variables
                if tf.as_dtype(stored_dtype(v)).is_floating and v.shape.rank
            ]
        return names


def check_watch(policy: PrecisionPolicy) -> None:
    """Refuse to be asked to watch what this wing does not, rather than not watch it (X815)."""
    if odd := [w for w in policy.guard.watch if w not in KNOWN]:
        raise ConfigError(
            finding(
                "X815",
                "The TensorFlow wing does not watch that.",
                place=Place(key="guard.watch"),
                expected=", ".join(KNOWN),
                received=", ".join(odd),
                remedy="Leave it out: a bad activation that matters reaches the loss or a gradient.",
            )
        )


def _watched_buffers(model: Any) -> dict[str, Any]:
    """Floating-point buffers. One that is not finite from the start is so on purpose: a mask of -inf."""
    own = {id(v) for _, layer in walk(model) for v in own_variables(layer)[1]}
    return {
        n: v
        for n, v in variables(model).items()
        if id(v) in own
        and tf.as_dtype(dtype_name(v._value.dtype)).is_floating
        and bool(np.isfinite(np.asarray(v._value.numpy(), "float64")).all())
    }


def _large_norm(gradients: Sequence[Any], dtype: Any) -> Any:
    present = [tf.cast(g, dtype) for g in gradients if g is not None]
    largest = tf.reduce_max(
        tf.stack([tf.reduce_max(tf.abs(g)) for g in present if g.shape.num_elements() != 0])
    )
    return largest * tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(g / largest)) for g in present]))


def _add(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b
