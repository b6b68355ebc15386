"""One training of a recipe, from the prepared data to the outcome."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from castiron.data import Batches
from castiron.diagnostics import NumericIncident
from castiron.health.writer import EventWriter
from castiron.keras import checkpoints
from castiron.keras.auditing import audit_after_a_step, audit_before_training, audit_is_over
from castiron.keras.held import HeldSteps
from castiron.keras.loaders import TensorLoader
from castiron.keras.measuring import Measuring
from castiron.keras.module import RecipeModel
from castiron.keras.recorder import Recorder
from castiron.keras.responding import Restore, RollbackPoints
from castiron.keras.workers import seed_states
from castiron.policy import Plan
from castiron.training.backend import Job, Outcome, Status
from castiron.training.checkpoints import rotate
from castiron.training.followed import own_folder
from castiron.training.held import suspicion
from castiron.training.manifest import asset_digests
from castiron.training.preparation import Prepared
from castiron.training.ranks import together
from castiron.training.run_directory import CONFIG
from castiron.training.schedules import total_steps
from castiron.training.stopping import StopRequests


class TrainingRun:
    """Trains, keeps the best weights, and measures them on the test split, once."""

    def __init__(self, job: Job, prepared: Prepared) -> None:
        self._job, self._prepared = job, prepared
        config = job.config
        self._config = config.trainer
        self._policy = config.precision
        self._peers = job.peers
        self._module = RecipeModel(prepared.recipe, job.peers)
        schema = self._module.schema
        train = self._share(prepared.batches["train"])
        self._train = TensorLoader(train, self._policy, schema, self._config.limit_train)
        self._validation = self._loader("validation", self._config.limit_validation)
        self._steps = total_steps(self._config, len(self._train))
        self._module.prepare_training(self._steps)
        self._held = HeldSteps(
            self._module.core, self._module.plan, self._origin, job.run.incidents, self, job.peers
        )
        self._held.assets = job.run.assets
        self._held.config = (job.run.path / CONFIG).read_text(encoding="utf-8")
        self._best: list[Any] = [None, None, {}]
        self._waited = 0
        self._early_best: float | None = None
        self._since_validation = 0
        self._tried = 0
        self._overflows = 0
        self._written: dict[Path, int] = {}
        self._message = ""
        self._points: RollbackPoints | None = None
        if self._policy.guard.response == "rollback":
            self._points = RollbackPoints(self._policy.guard.rollback.steps, self._keep)

    def run(self) -> Outcome:
        job = self._job
        for note in self._prepared.recipe.notes:
            job.reporter.say(note)
        state: dict[str, Any] = {}
        if job.checkpoint is not None:
            state = checkpoints.read_state(job.checkpoint)
            for layer in state.get("responses", {}).get("promoted", ()):
                self._held.plan = self.promote(layer)
            job.reporter.findings(
                checkpoints.load(
                    job.checkpoint,
                    self._module,
                    training=True,
                    assets=self._assets(),
                    on_mismatch=job.on_mismatch,
                )
            )
        elif self._module.workers is not None:
            model = self._module.model
            self._module.workers.begin([v._value for v in model.variables], seed_states(model))
        with contextlib.ExitStack() as scratch:
            folder = own_folder(job.run, scratch)
            writer = scratch.enter_context(
                EventWriter(
                    folder,
                    on_problem=lambda f: job.reporter.findings([f]),
                    resumed_at=state["step"] if state else None,
                )
            )
            try:
                outcome = self._fit(writer, state, folder)
            except BaseException:
                writer.hparams_end(success=False)
                raise
            writer.hparams_end(success=outcome.status == "completed")
        return outcome

    # --- the loop ----------------------------------------------------------------------------------

    def _fit(self, writer: EventWriter, state: dict[str, Any], folder: Path) -> Outcome:
        job, module = self._job, self._module
        recorder = self._recorder = Recorder(job, writer, module, self._steps, len(self._train))
        recorder.open({split: data.report for split, data in self._prepared.datasets.items()})
        if state:
            self._resume(state)
        together(self._peers, lambda: audit_before_training(job, module, self._train))
        self._health = Measuring(job, module, writer, folder, resumed_at=state["step"] if state else None)
        recorder.begin(state.get("step", 0), state.get("batches_done", 0))
        status: Status = "completed"
        failure: NumericIncident | None = None
        started = time.perf_counter()
        try:
            with StopRequests() as stop:
                status = self._train_until(stop)
        except NumericIncident as error:
            status, failure = "failed", error
            recorder.held += 1
            self._write_last()
        finally:
            if self._points is not None:
                self._points.clear()
            self._health.close()
            audit_is_over(job, module)
            job.reporter.end()
            writer.flush()
        duration = time.perf_counter() - started
        metrics: dict[str, dict[str, float]] = {}
        if recorder.train_loss is not None:
            metrics["train"] = {"loss": recorder.train_loss}
        if self._best[2]:
            metrics["validation"] = self._best[2]
        best = self._path("best") if self._path("best").exists() else self._path("last")
        if status == "completed" and (test := self._loader("test", self._config.limit_test)) is not None:
            checkpoints.load(best, module, training=False)
            metrics["test"] = dict(module.evaluate(test))
            recorder.evaluated("test")
        return Outcome(
            status=status,
            steps=recorder.step,
            held_steps=recorder.held,
            incidents=len(self._held.incidents),
            metrics=metrics,
            duration_s=duration,
            items_per_s=recorder.items / duration if duration else 0.0,
            message=self._message,
            checkpoint=best if best.exists() else None,
            findings=failure.findings if failure else (),
            incident=failure.incident if failure else None,
            incident_folder=failure.path if failure else None,
        )

    def _train_until(self, stop: StopRequests) -> Status:
        recorder, config = self._recorder, self._config
        validated = True
        while not self._is_over():
            for batches in self._groups():
                self._step(batches)
                validated = False
                if self._validation_is_due():
                    self._validate()
                    validated = True
                if config.checkpoint_every and recorder.step % config.checkpoint_every == 0:
                    self._write_last()
                asked = stop.asked if self._module.workers is None else self._module.workers.asked(stop.asked)
                if asked:
                    recorder.log()
                    self._write_last()
                    return asked
                if self._is_over():
                    break
        recorder.log()
        if not validated and self._message == "" and self._validation is not None:
            self._validate()
        self._write_last()
        return "completed"

    def _groups(self) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of one step after another, to the end of the epoch."""
        group: list[dict[str, Any]] = []
        left = len(self._train) - self._train.done
        for batch in self._train:
            left -= 1
            group.append(batch)
            if len(group) == self._config.accumulate or left <= 0:
                yield group
                group = []

    def _step(self, batches: list[dict[str, Any]]) -> None:
        module, recorder = self._module, self._recorder
        if self._points is not None:
            self._points.keep(recorder.step)
        module.schedule.set(recorder.step)
        self._tried += 1
        self._since_validation += len(batches)
        every = self._policy.guard.every
        health = self._health.watch(recorder.step) if self._peers.rank == 0 else None
        found = module.step(batches, every == 1 or self._tried % every == 1, health)
        rows = sum(int(b["row"].shape[0]) for b in batches) * self._peers.world
        if bool(found["committed"]):
            recorder.committed(float(found["loss"]), rows, len(batches))
            audit_after_a_step(self._job, module, recorder.step)
            if health is not None:
                self._health.committed(health, found["health"], recorder.step, recorder.held)
            return
        self._health.held(recorder.step)
        recorder.batches_done += len(batches)
        verdicts = self._peers.gather(module.core.verdict(found["flagged"], len(batches)))
        # A rank whose own losses are finite may see in the gradients what another's have done to them.
        verdict = max(verdicts, key=suspicion)
        scale = module.scaler.check() if verdict.gradients_only else None
        if module.core.is_expected(verdict, found["calibrating"]):
            self._overflows += 1
            return
        epoch = math.ceil(recorder.batches_done / len(self._train))
        told = self._held.respond(module.forward, batches, verdicts, recorder.step, scale, epoch=epoch)
        recorder.held += 1
        self._job.reporter.findings([told])

    # --- what a response does ------------------------------------------------------------------------

    def go_back(self, at_least: int) -> int:
        """See `Actions`. Batches are not gone back to: the ones that follow are taken."""
        assert self._points is not None
        steps = self._points.go_back(self._recorder.step, at_least)
        self._recorder.went_back(steps)
        return steps

    def lower_learning_rate(self, factor: float) -> None:
        """See `Actions`."""
        self._module.schedule.scale *= factor

    def promote(self, layer: str) -> Plan:
        """See `Actions`."""
        plan = self._module.promote(layer)
        self._held.core = self._module.core
        return plan

    def _keep(self, step: int) -> tuple[Restore, Restore]:
        own = f"-{self._peers.rank}" if self._peers.rank else ""
        path = self._path(f"rollback-{step}{own}")
        checkpoints.write(path, self._module, {"step": step})

        def restore() -> None:
            checkpoints.put_back(path, self._module)

        return restore, lambda: path.unlink(missing_ok=True)

    def _is_over(self) -> bool:
        config = self._config
        steps, epochs = config.max_steps, config.max_epochs
        return bool(
            self._message
            or (steps is not None and self._recorder.step >= steps)
            or (epochs is not None and self._recorder.batches_done >= epochs * len(self._train))
        )

    # --- validation --------------------------------------------------------------------------------

    def _validation_is_due(self) -> bool:
        if self._validation is None:
            return False
        every = self._config.validate_every
        if isinstance(every, int):
            return self._recorder.step % every == 0
        share = max(int(len(self._train) * every), 1)
        done = self._recorder.batches_done % len(self._train)
        return self._since_validation >= share or done == 0

    def _validate(self) -> None:
        module, recorder, config = self._module, self._recorder, self._config
        assert self._validation is not None
        self._since_validation = 0
        recorder.log()
        averaged = contextlib.nullcontext() if module.average is None else module.average.swapped_in()
        with averaged:
            results = module.evaluate(self._validation)
        recorder.evaluated("validation")
        score = results.get(config.monitor)
        if score is not None and self._is_better(score, self._best[0], config.mode):
            self._best = [score, recorder.step, dict(results)]
            self._write(self._path("best"), self._config.keep_best)
        self._stop_early(results)
        if config.checkpoint_every is None:
            self._write_last()

    def _stop_early(self, results: dict[str, float]) -> None:
        rule = self._config.early_stopping
        if rule is None:
            return
        monitor, mode = rule.monitor or self._config.monitor, rule.mode or self._config.mode
        score = results.get(monitor)
        if score is not None and self._is_better(score, self._early_best, mode, rule.min_delta):
            self._early_best, self._waited = score, 0
            return
        self._waited += 1
        if self._waited >= rule.patience:
            best = "was never a number" if self._early_best is None else f"stayed at {self._early_best:.4g}"
            self._message = f"Stopped early: {monitor} {best} for {self._waited} validations."

    @staticmethod
    def _is_better(score: float, best: float | None, mode: str, least: float = 0.0) -> bool:
        if math.isnan(score):
            return False
        if best is None:
            return True
        return (best - score if mode == "min" else score - best) > least

    # --- checkpoints -------------------------------------------------------------------------------

    def _path(self, stem: str) -> Path:
        return self._job.run.checkpoints / f"{stem}.safetensors"

    def _write_last(self) -> None:
        self._write(self._path("last"), self._config.keep_last)

    def _assets(self) -> dict[str, str]:
        return asset_digests(self._job.run.assets)

    def _write(self, path: Path, keep: int) -> None:
        recorder = self._recorder
        # What is written twice in a step replaces itself; older ones stay as they are.
        again = self._written.get(path) == recorder.step
        self._written[path] = recorder.step
        state = {
            "step": recorder.step,
            "batches_done": recorder.batches_done,
            "held": recorder.held,
            "tried": self._tried,
            "since_validation": self._since_validation,
            "loader": self._train.state_dict(),
            "random": checkpoints.random_states(self._module, self._peers),
            "best": self._best,
            "early": [self._early_best, self._waited],
            "responses": self._held.responses.state_dict(),
            "rate": self._module.schedule.scale,
        }

        def write() -> None:
            replacing = None if again else lambda: rotate(path, keep)
            checkpoints.write(path, self._module, state, assets=self._assets(), replacing=replacing)

        together(self._peers, lambda: write() if self._peers.rank == 0 else None)

    def _resume(self, state: dict[str, Any]) -> None:
        self._train.load_state_dict(state["loader"])
        told = checkpoints.restore_random_states(self._module, self._peers, state["random"])
        if told:
            self._job.reporter.say(told)
        self._recorder.held = state["held"]
        self._tried, self._since_validation = state["tried"], state["since_validation"]
        self._best, (self._early_best, self._waited) = state["best"], state["early"]
        self._held.responses.load_state_dict(state["responses"])
        self._module.schedule.scale = state.get("rate", 1.0)

    # --- data --------------------------------------------------------------------------------------

    def _loader(self, split: str, limit: int | None) -> TensorLoader | None:
        batches = self._prepared.batches.get(split)
        if batches is None:
            return None
        return TensorLoader(self._share(batches), self._policy, self._module.schema, limit)

    def _share(self, batches: Batches) -> Batches:
        """This process's batches."""
        peers = self._peers
        return batches.shard(peers.rank, peers.world) if peers.world > 1 else batches

    def _origin(self, row: int) -> str:
        """Where a training row stands: file and line."""
        origin = self._prepared.datasets["train"].origin(row)
        return f"{origin.file}:{origin.line}"
