"""A recipe at work in Keras: the model under its plan, the compiled step, evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from castiron.diagnostics import Finding
from castiron.keras.audit.continuous import Observer
from castiron.keras.audit.records import Step
from castiron.keras.averaging import WeightAverage
from castiron.keras.capability import device_capability
from castiron.keras.health.watch import Watch
from castiron.keras.loaders import TensorLoader, signature
from castiron.keras.loss import to_loss_dtype
from castiron.keras.modules import describe
from castiron.keras.optimizers import Schedule, build_optimizer, coupled_decay
from castiron.keras.peers import ClusterPeers
from castiron.keras.precision import apply
from castiron.keras.replicas import update_locally
from castiron.keras.scaling import make_scaler
from castiron.keras.step import StepCore
from castiron.keras.updates import Updates
from castiron.keras.workers import Workers
from castiron.policy import Plan, resolve
from castiron.training.ranks import Alone, Peers
from castiron.training.recipe import Recipe
from castiron.training.responses import promoted

Batch = Mapping[str, Any]


class RecipeModel:
    """The model of a recipe with its plan applied. What trains it is made by `prepare_training`.

    Args:
        peers: the processes that train it together.
    """

    def __init__(self, recipe: Recipe, peers: Peers | None = None) -> None:
        self.recipe = recipe
        self._peers = peers or Alone()
        self.workers: Workers | None = None
        """What its steps exchange with other processes, where there are any."""
        if isinstance(self._peers, ClusterPeers):
            self.workers = Workers(self._peers)
        config = recipe.run
        self.policy = config.precision
        self.schema = recipe.schema()
        self.model = recipe.model()
        capability = device_capability(config.trainer.device)
        self.plan: Plan
        self.plan, notes = resolve(self.policy, describe(self.model), capability)
        self.precision = apply(self.model, self.plan)
        self.findings: list[Finding] = [*notes, *self.precision.findings]
        """What applying the plan has to say."""
        self.metrics = dict(recipe.metrics())
        self._evaluating: Any = None
        self._predicting: Any = None
        self.observer: Observer | None = None
        """The audit while training, where there is one."""
        self.results: dict[str, float] = {}
        """Metrics of the last evaluation, by name; `loss` among them."""

    @property
    def parameters(self) -> int:
        """Trainable elements."""
        return sum(int(np.prod(v.shape)) for v in self.model.trainable_variables)

    # --- training ----------------------------------------------------------------------------------

    def prepare_training(self, steps: int) -> None:
        """Make optimizer, scaler, average and the compiled step of a training of so many steps."""
        config = self.recipe.run
        self._planned = steps
        optimizer = self.recipe.optimizer(self.model)
        own = optimizer is None
        optimizer = build_optimizer(config.optimizer) if own else optimizer
        self.updates = Updates(optimizer, self.model.trainable_variables, self.policy, seed=config.seed)
        self.schedule = Schedule(optimizer, config.optimizer.lr, config.optimizer.schedule, steps)
        self.scaler = make_scaler(self.policy.scaling)
        self.average = None if config.trainer.ema is None else WeightAverage(self.model, config.trainer.ema)
        self.core = StepCore(
            self.model,
            self.updates,
            self.policy,
            self.scaler,
            clip_norm=config.trainer.clip_norm,
            decay=coupled_decay(config.optimizer) if own else None,
        )
        self.core.jit_compile = config.trainer.compile
        if self.workers is not None:
            self.workers.share(self.model)
            self.core.replicas = self.workers
            update_locally(optimizer)
        self._steps: dict[tuple[int, bool, Watch | None], Any] = {}

    def promote(self, layer: str) -> Plan:
        """Let a layer compute in float32 from here on; what was learned, and the optimizer's state, stay.

        Raises:
            PlanError: the plan does not allow it.
        """
        self.policy = promoted(self.policy, layer)
        capability = device_capability(self.recipe.run.trainer.device)
        self.plan, notes = resolve(self.policy, describe(self.model), capability)
        self.precision = apply(self.model, self.plan)
        self.findings += [*notes, *self.precision.findings]
        updates, scaler, average, rate = self.updates, self.scaler, self.average, self.schedule.scale
        self.prepare_training(self._planned)
        self.updates.take_over(updates.optimizer, updates)
        self.scaler.load_state_dict(scaler.state_dict())
        self.schedule.scale = rate
        if average is not None and self.average is not None:
            self.average.take_over(average)
        self._evaluating = self._predicting = None
        return self.plan

    def forward(self, batch: Batch) -> tuple[Any, Any]:
        """Loss and outputs of a batch, while training."""
        outputs = to_loss_dtype(self.model(*self.recipe.inputs(batch), training=True), self.policy.loss)
        return self.recipe.loss(outputs, batch), outputs

    def step(
        self, batches: Sequence[Batch], watched: bool = True, health: Watch | None = None
    ) -> dict[str, Any]:
        """One optimizer step on these micro-batches: loss, committed, flagged, calibrating, as tensors; and
        what was measured as `health`, where it is to be."""
        key = (len(batches), watched, health)
        if key not in self._steps:

            def run(given: list[Any]) -> dict[str, Any]:
                with contextlib.nullcontext() if health is None else health.tracing():
                    result = self.core.run(self.forward, given, self._committed, watched=watched)
                return {
                    "health": {} if health is None else health.outputs(),
                    "loss": result.loss,
                    "committed": result.committed,
                    "flagged": result.flagged,
                    "calibrating": result.calibrating,
                }

            together = run if self.workers is None else self.workers.run(run)
            self._steps[key] = tf.function(
                lambda given: self._observed("training", together, given),
                input_signature=[[signature(dict(b)) for b in batches]],
                jit_compile=self.core.jit_compile or None,
                autograph=False,
            )
        found: dict[str, Any] = self._steps[key](list(batches))
        return found

    def _observed(self, step: Step, function: Callable[[Any], Any], data: Any) -> Any:
        return function(data) if self.observer is None else self.observer.traced(step, function, data)

    def _committed(self, seen: Any) -> None:
        if self.average is not None:
            self.average.update()

    # --- evaluation --------------------------------------------------------------------------------

    def evaluate(self, loader: TensorLoader) -> dict[str, float]:
        """Loss and metrics of all batches of a loader, by name; of several processes, of the loaders of all,
        which all have to call it."""
        for metric in self.metrics.values():
            metric.reset_state()
        losses, rows = [], []
        for batch in loader:
            if self._evaluating is None:
                self._evaluating = tf.function(
                    lambda b: self._observed("evaluation", self._evaluate, b),
                    input_signature=[signature(batch)],
                    autograph=False,
                )
            losses.append(self._evaluating(batch))
            rows.append(int(batch["row"].shape[0]))
        wide = np.dtype(self.policy.accumulate)
        weights = np.asarray(rows, wide)
        values = np.asarray([loss.numpy() for loss in losses], wide)
        total, count = self._of_all((values * weights).sum(), weights.sum())
        self.results = {"loss": float(total / count)} if count else {}
        self.results |= {name: float(metric.result()) for name, metric in self.metrics.items()}
        return self.results

    def _of_all(self, total: Any, count: Any) -> tuple[Any, Any]:
        """Sum of losses and number of rows over all processes; the counts of metrics likewise."""
        if self._peers.world == 1:
            return total, count
        counted = [v for metric in self.metrics.values() for v in metric.variables]
        shares = self._peers.gather((total, count, [v.numpy() for v in counted]))
        for variable, *values in zip(counted, *(share[2] for share in shares), strict=True):
            variable.assign(np.sum(values, 0))
        return sum(share[0] for share in shares), sum(share[1] for share in shares)

    def _evaluate(self, batch: Batch) -> Any:
        outputs = self._outputs(batch)
        predictions, targets = self.recipe.predictions(outputs), self.recipe.targets(batch)
        for metric in self.metrics.values():
            metric.update_state(targets, predictions)
        return self.recipe.loss(outputs, batch)

    def _outputs(self, batch: Batch) -> Any:
        return to_loss_dtype(self.model(*self.recipe.inputs(batch), training=False), self.policy.loss)

    def predict(self, batch: dict[str, Any]) -> np.ndarray:
        """The outputs for a batch, as float32."""
        if self._predicting is None:
            self._predicting = tf.function(
                lambda b: self._observed("inference", self._outputs, b),
                input_signature=[signature(batch)],
                autograph=False,
            )
        return np.asarray(tf.cast(self._predicting(batch), tf.float32).numpy())
