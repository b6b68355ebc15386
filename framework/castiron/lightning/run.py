"""One training of a recipe, from the prepared data to the outcome."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from castiron.diagnostics import Finding, NumericIncident
from castiron.health import tags
from castiron.health.writer import EventWriter
from castiron.lightning.auditing import Audit
from castiron.lightning.averaging import AverageWeights
from castiron.lightning.checkpoint_io import SealedCheckpoints
from castiron.lightning.checkpoints import RunCheckpoints, load_foreign, load_weights, without_manifest
from castiron.lightning.compiling import CompileModel
from castiron.lightning.early_stopping import StopEarly
from castiron.lightning.guard import NumericGuard
from castiron.lightning.health import NumericHealth
from castiron.lightning.loaders import TorchLoader
from castiron.lightning.loop import use_step_loop
from castiron.lightning.manifest import expected_of, verified
from castiron.lightning.module import RecipeModule
from castiron.lightning.opening import Opening
from castiron.lightning.recorder import Recorder
from castiron.lightning.stopping import GracefulStop, TrainingStopped
from castiron.lightning.strategies import devices, environment
from castiron.lightning.trainer import Trainer
from castiron.policy import Plan, PrecisionPolicy
from castiron.torch.audit.errors import dtype_errors
from castiron.torch.manifest import optimizer_identity
from castiron.torch.optimizers import build_optimizer
from castiron.training.backend import Job, Outcome, Status
from castiron.training.followed import own_folder
from castiron.training.incident import Incident
from castiron.training.incident_text import as_markdown
from castiron.training.manifest import asset_digests, numbers_of
from castiron.training.preparation import Prepared
from castiron.training.run_directory import PLAN
from castiron.training.schedules import total_steps


class TrainingRun:
    """Trains, keeps the best weights, and measures them on the test split, once."""

    def __init__(self, job: Job, prepared: Prepared) -> None:
        self._job, self._prepared = job, prepared
        self._policy = job.config.precision
        self._state: dict[str, Any] | None = None
        self._train = self._loader("train", job.config.trainer.limit_train)
        steps = total_steps(job.config.trainer, len(self._train))
        self._module = RecipeModule(prepared.recipe, job.config.precision, steps)

    def _loader(self, split: str, limit: int | None) -> TorchLoader:
        """This process's batches of a split."""
        peers = self._job.peers
        batches = self._prepared.batches[split]
        return TorchLoader(batches.shard(peers.rank, peers.world) if peers.world > 1 else batches, limit)

    def run(self) -> Outcome:
        job = self._job
        for note in self._prepared.recipe.notes:
            job.reporter.say(note)
        self._read_state()  # before anything is written or loaded
        resumed_at = self._state["global_step"] if self._state else None
        with (
            contextlib.ExitStack() as scratch,
            EventWriter(
                own_folder(job.run, scratch),
                on_problem=lambda f: job.reporter.findings([f]),
                resumed_at=resumed_at,
            ) as writer,
        ):
            try:
                outcome = self._fit(writer)
            except BaseException:
                writer.hparams_end(success=False)
                raise
            writer.hparams_end(success=outcome.status == "completed")
        return outcome

    def _read_state(self) -> None:
        """Read what training goes on from, or starts with, and hold it against this run."""
        job, module = self._job, self._module
        config = job.config
        if job.weights is not None:
            told = load_foreign(module, job.weights, config.trainer.device, job.on_mismatch)
            job.reporter.findings(told)
        if job.checkpoint is None:
            return
        optimizer = module.recipe.optimizer(module.model) or build_optimizer(module.model, config.optimizer)
        expected = expected_of(
            module,
            self._policy,
            device=config.trainer.device,
            recipe=module.recipe.name,
            assets=asset_digests(job.run.assets),
            optimizers=[optimizer_identity(type(optimizer).__name__, optimizer.param_groups)],
        )
        state, manifest, told = verified(job.checkpoint, expected, job.on_mismatch)
        if manifest is None or not isinstance(state.get("global_step"), int):
            raise without_manifest(job.checkpoint)
        if manifest.declared == numbers_of(self._policy):
            # A layer that was widened as a response to an incident stays so.
            layers = PrecisionPolicy.parse(manifest.policy).layers
            self._policy = self._policy.replace(layers={k: v.model_dump() for k, v in layers.items()})
        self._state = state
        kept = state.get("castiron", {}).get("random", {}).get("ranks", [None])
        if len(kept) != job.peers.world:
            job.reporter.say(
                f"The checkpoint is of {len(kept)} processes, the run goes on with {job.peers.world}: the "
                "same batches in the same order; random numbers drawn in training (dropout) are other ones."
            )
        if told:
            job.reporter.findings(told)

    def _fit(self, writer: EventWriter) -> Outcome:
        job, config, module = self._job, self._job.config.trainer, self._module
        batches = self._prepared.batches
        checkpoints = RunCheckpoints(
            job.run.checkpoints,
            monitor=config.monitor,
            mode=config.mode,
            every=config.checkpoint_every,
            keep_last=config.keep_last,
            keep_best=config.keep_best,
            recipe=module.recipe.name,
        )
        recorder = Recorder(job.run, writer, job.reporter, every=config.log_every)
        stop = GracefulStop(checkpoints)
        reports = {split: data.report for split, data in self._prepared.datasets.items()}
        guard = NumericGuard(origin=self._origin, folder=job.run.path)
        guard.on_incident.append(lambda *told: self._tell(writer, *told))
        guard.on_promotion.append(self._promoted)
        recorder.held = lambda: guard.held
        health = NumericHealth(
            folder=job.run.path,
            writer=writer,
            on_findings=job.reporter.findings,
            held=lambda: guard.held,
        )
        callbacks: list[pl.Callback] = [
            Opening(job, reports, writer),
            Audit(job, self._train),
            guard,
            health,
            recorder,
        ]
        if config.ema is not None:
            callbacks.append(AverageWeights(config.ema))
        if config.compile:
            callbacks.append(CompileModel())
        early = None
        if config.early_stopping is not None:
            rule = config.early_stopping
            early = StopEarly(
                rule.monitor or config.monitor,
                rule.mode or config.mode,
                patience=rule.patience,
                min_delta=rule.min_delta,
            )
            callbacks.append(early)
        files = SealedCheckpoints(self._state)
        trainer = make_trainer(job, [*callbacks, checkpoints, stop], self._policy, plugins=[files])
        self._state = None
        validation = None
        if "validation" in batches:
            validation = self._loader("validation", config.limit_validation)
        status: Status = "completed"
        failure: NumericIncident | None = None
        started = time.perf_counter()
        try:
            with stop, dtype_errors(module.precision_root):
                trainer.fit(
                    module,
                    self._train,
                    validation,
                    ckpt_path=str(job.checkpoint) if job.checkpoint else None,
                    weights_only=True,
                )
        except TrainingStopped as stopped:
            status = stopped.reason
        except NumericIncident as error:
            checkpoints.write_last(trainer)  # nothing of the bad step is in it: training may go on from there
            status, failure = "failed", error
        duration, steps, items = time.perf_counter() - started, trainer.global_step, module.items
        metrics = {}
        if recorder.train_loss is not None:
            metrics["train"] = {"loss": recorder.train_loss}
        if checkpoints.best_metrics:
            metrics["validation"] = checkpoints.best_metrics
        if status == "completed" and "test" in batches:
            best = checkpoints.best
            weights = best if best.exists() else checkpoints.last
            load_weights(module, weights, device=config.device, on_mismatch=job.on_mismatch)
            trainer.test(module, self._loader("test", config.limit_test), verbose=False)
            metrics["test"] = dict(module.results)
        found = [path for path in (checkpoints.best, checkpoints.last) if path.exists()]
        return Outcome(
            status=status,
            steps=steps,
            held_steps=guard.held,
            incidents=len(guard.incidents),
            metrics=metrics,
            duration_s=duration,
            items_per_s=items / duration,
            message=failure.findings[0].sentence() if failure else early.message if early else "",
            checkpoint=found[0] if found else None,
            findings=failure.findings if failure else (),
            incident=failure.incident if failure else None,
            incident_folder=failure.path if failure else None,
        )

    def _tell(self, writer: EventWriter, incident: Incident, found: Finding, path: Path | None) -> None:
        """An incident, for TensorBoard; and for the terminal, where training goes on."""
        writer.text(tags.incident(), as_markdown(incident, path), incident.step)
        writer.flush()
        if incident.response != "raise":
            self._job.reporter.findings([found])

    def _promoted(self, plan: Plan) -> None:
        """A layer computes in float32 from here on: the plan on record is the one in force."""
        self._job.run.write_text(PLAN, plan.model_dump_json(indent=2) + "\n")
        self._job.reporter.say(f"The plan is changed, as the response to an incident says: {plan.policy}")

    def _origin(self, row: int) -> str:
        """Where a training row stands: file and line."""
        origin = self._prepared.datasets["train"].origin(row)
        return f"{origin.file}:{origin.line}"


def make_trainer(
    job: Job,
    callbacks: Sequence[pl.Callback],
    policy: PrecisionPolicy | None = None,
    plugins: Sequence[Any] = (),
) -> Trainer:
    """Lightning's Trainer as a config says. What Lightning would print, log and save itself is off: a run
    directory has one writer."""
    config = job.config.trainer
    trainer = Trainer(
        policy or job.config.precision,
        plugins=[*plugins, *(environment() if job.peers.world > 1 else ())],
        accelerator={"auto": "auto", "cpu": "cpu", "cuda": "cuda"}[config.device],
        **devices(job.config, policy or job.config.precision, job.peers.world),
        max_epochs=config.max_epochs if config.max_epochs is not None else -1,
        max_steps=config.max_steps if config.max_steps is not None else -1,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_norm,
        val_check_interval=config.validate_every,
        check_val_every_n_epoch=None if isinstance(config.validate_every, int) else 1,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=str(job.run.path),
    )
    use_step_loop(trainer)
    # GracefulStop has the signals; Lightning's own handler would end training without a checkpoint.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer
