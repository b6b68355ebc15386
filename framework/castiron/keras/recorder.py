"""Writes what a training does: TensorBoard events, `metrics.jsonl`, and the live report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from castiron.data import DataReport
from castiron.diagnostics import Finding
from castiron.health import tags
from castiron.health.census import census
from castiron.health.layout import layout
from castiron.health.writer import EventWriter
from castiron.keras.module import RecipeModel
from castiron.keras.modules import describe
from castiron.training.backend import Job, Progress
from castiron.training.run_directory import CONFIG, PLAN


class Recorder:
    """Logs every so many steps and after each validation.

    Args:
        steps: of the whole training.
        batches: of an epoch.
    """

    def __init__(self, job: Job, writer: EventWriter, module: RecipeModel, steps: int, batches: int) -> None:
        self._job, self._writer, self._module = job, writer, module
        self._steps, self._batches = steps, batches
        self._every = job.config.trainer.log_every
        self._logged = self._items_logged = 0
        self._since = 0.0
        self._told: set[str] = set()
        self._losses: list[tuple[float, int]] = []
        self.items = 0
        """Rows trained on so far, in this process."""
        self.step = 0
        """Committed optimizer steps."""
        self.held = 0
        """Steps held so far, expected overflows not among them."""
        self.batches_done = 0
        """Batches of all epochs."""
        self.items_per_s = 0.0
        self.train_loss: float | None = None

    # --- before the first step -----------------------------------------------------------------------

    def open(self, reports: Mapping[str, DataReport]) -> None:
        """`plan.json` and the text pages of TensorBoard."""
        job, writer, module = self._job, self._writer, self._module
        plan, policy = module.plan, module.policy
        job.run.write_text(PLAN, plan.model_dump_json(indent=2) + "\n")
        job.reporter.plan(plan)
        if module.findings:
            job.reporter.findings(module.findings)
        stored = census(describe(module.model), plan)
        writer.text(tags.policy(), f"**{policy.label}**\n\n`{policy}`\n\nhash `{policy.hash()}`")
        writer.text(tags.plan(), f"{plan.brief()}\n\n{plan.as_markdown()}")
        writer.text(tags.census(), stored.as_markdown())
        writer.scalars(stored.scalars(), 0)
        if module.findings:
            writer.text(tags.findings(), _listed(module.findings))
        for split in ("train", "validation", "test"):
            if split in reports:
                writer.text(tags.data_report(split), reports[split].as_markdown())
        config = (job.run.path / CONFIG).read_text(encoding="utf-8")
        writer.text(tags.config(), f"```yaml\n{config}\n```")
        names = ("loss", *module.metrics)
        results = [tags.metric(name, s) for s in ("validation", "test") for name in names]
        chosen = {k: v for k, v in job.config.resolved().items() if k in ("model", "optimizer", "trainer")}
        chosen |= {"seed": job.config.seed, "precision": policy.label}
        chosen["batch_size"] = job.config.data.batch_size
        writer.hparams(chosen, results)
        writer.layout(layout(tuple(module.metrics), scaled=policy.scaling.kind != "none", held=False))

    def begin(self, step: int, batches_done: int) -> None:
        """Training starts, or goes on, after so many steps."""
        self._since = time.perf_counter()
        self.step = self._logged = step
        self.batches_done = batches_done
        if step:
            self._job.run.trim_metrics(step)  # what was logged after the checkpoint comes again
        self._job.reporter.begin(self._progress())

    # --- training ----------------------------------------------------------------------------------

    def committed(self, loss: float, rows: int, batches: int) -> None:
        """A step was applied."""
        self.step += 1
        self.items += rows
        self.batches_done += batches
        self._losses.append((loss, rows))
        # At multiples, so that a resumed run logs the steps that the whole one would.
        if self.step % self._every == 0 or self.step == 1:
            self.log()

    def went_back(self, steps: int) -> None:
        """So many steps were taken back; they are taken again, and logged again."""
        self.step -= steps
        self._logged = min(self._logged, self.step)

    def log(self) -> None:
        """A row of what happened since the last one; none where nothing did."""
        if self.step == self._logged:
            return
        now = time.perf_counter()
        if now > self._since:
            self.items_per_s = (self.items - self._items_logged) / (now - self._since)
        if self._losses:
            self.train_loss = sum(x * n for x, n in self._losses) / sum(n for _, n in self._losses)
            self._losses.clear()
        self._logged, self._items_logged, self._since = self.step, self.items, now
        rate, epoch = self._module.schedule.rate(self.step - 1), self._epoch()
        values: dict[tags.Tag, float] = {tags.throughput(): self.items_per_s, tags.epoch(): epoch}
        values[tags.learning_rate()] = rate
        row: dict[str, Any] = {"step": self.step, "epoch": round(epoch, 4), "train/loss": self.train_loss}
        row |= {"learning_rate": rate, "items_per_s": round(self.items_per_s, 1)}
        if self.train_loss is not None:
            values[tags.loss("train")] = self.train_loss
        if self._module.scaler.active:
            scale = self._module.scaler.get_scale()
            values[tags.loss_scale()] = row["loss_scale"] = scale
            self._check_scale()
        if self.held:
            values[tags.held_steps()] = self.held
        self._writer.scalars(values, self.step)
        self._job.run.log_metrics(row)
        self._job.reporter.update(self._progress())

    def evaluated(self, split: tags.Split) -> None:
        """The results of an evaluation."""
        results = self._module.results
        self._writer.scalars({tags.metric(n, split): v for n, v in results.items()}, self.step)
        row: dict[str, Any] = {"step": self.step, "epoch": round(self._epoch(), 4)}
        self._job.run.log_metrics(row | {f"{split}/{name}": value for name, value in results.items()})
        if split == "validation":
            observed = census(describe(self._module.model), self._module.plan)
            self._writer.scalars(observed.scalars(), self.step)
            self._job.reporter.update(self._progress())
        self._since = time.perf_counter()

    def _check_scale(self) -> None:
        """Say once when the scale stands at its floor, or has settled after calibrating."""
        found = self._module.scaler.check()
        if found is not None and found.code not in self._told:
            self._told.add(found.code)
            self._job.reporter.findings([found])
            self._writer.text(tags.findings(), _listed([found]))

    def _progress(self) -> Progress:
        return Progress(
            step=self.step,
            steps=self._steps or None,
            epoch=max(math.ceil(self._epoch()), 1),
            epochs=self._job.config.trainer.max_epochs,
            loss=self.train_loss,
            metrics=self._module.results,
            items_per_s=self.items_per_s or None,
            scale=self._module.scaler.get_scale() if self._module.scaler.active else None,
            held=self.held,
        )

    def _epoch(self) -> float:
        """Epochs done, with the fraction of the one running."""
        return self.batches_done / self._batches


def _listed(found: Sequence[Finding]) -> str:
    return "\n".join(f"- **{f.severity} {f.code}** {f.sentence()} *{f.remedy}*" for f in found)
