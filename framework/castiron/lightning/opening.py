"""What a run writes before its first step: the plan, the data report, the config, the census."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import lightning.pytorch as pl

from castiron.data import DataReport
from castiron.diagnostics import Finding
from castiron.health import tags
from castiron.health.census import census
from castiron.health.layout import layout
from castiron.health.writer import EventWriter
from castiron.lightning.module import RecipeModule
from castiron.lightning.precision import PrecisionPlugin
from castiron.policy import LayerInfo, Plan
from castiron.torch.modules import describe
from castiron.training.backend import Job
from castiron.training.run_directory import CONFIG, PLAN


class Opening(pl.Callback):
    """Writes `plan.json` and the text pages of TensorBoard once the plan is applied to the model."""

    def __init__(self, job: Job, reports: Mapping[str, DataReport], writer: EventWriter) -> None:
        self._job, self._reports, self._writer = job, reports, writer

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, RecipeModule)
        plugin = trainer.precision_plugin
        assert isinstance(plugin, PrecisionPlugin)
        job, writer = self._job, self._writer
        plan, found = plugin.plan, plugin.findings
        assert plan is not None
        job.run.write_text(PLAN, plan.model_dump_json(indent=2) + "\n")
        job.reporter.plan(plan)
        if found:
            job.reporter.findings(found)
        write_precision(writer, plan, describe(module.precision_root), found)
        for split, report in self._reports.items():
            if split in ("train", "validation", "test"):
                writer.text(tags.data_report(split), report.as_markdown())  # type: ignore[arg-type]
        config = (job.run.path / CONFIG).read_text(encoding="utf-8")
        writer.text(tags.config(), f"```yaml\n{config}\n```")
        metrics = tuple(module.recipe.metrics())
        results = [tags.metric(name, s) for s in ("validation", "test") for name in ("loss", *metrics)]
        chosen = {k: v for k, v in job.config.resolved().items() if k in ("model", "optimizer", "trainer")}
        chosen |= {"seed": job.config.seed, "precision": plan.policy.label}
        chosen["batch_size"] = job.config.data.batch_size
        writer.hparams(chosen, results)
        writer.layout(layout(metrics, scaled=plan.policy.scaling.kind != "none", held=False, health=True))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        assert isinstance(module, RecipeModule)
        assert isinstance(trainer.precision_plugin, PrecisionPlugin)
        observed = census(describe(module.precision_root), trainer.precision_plugin.plan)
        self._writer.scalars(observed.scalars(), trainer.global_step)


def write_precision(
    writer: EventWriter, plan: Plan, layers: Sequence[LayerInfo], found: Sequence[Finding]
) -> None:
    """The pages on policy, plan and census, and the findings so far."""
    policy = plan.policy
    stored = census(layers, plan)
    writer.text(tags.policy(), f"**{policy.label}**\n\n`{policy}`\n\nhash `{policy.hash()}`")
    writer.text(tags.plan(), f"{plan.brief()}\n\n{plan.as_markdown()}")
    writer.text(tags.census(), stored.as_markdown())
    writer.scalars(stored.scalars(), 0)
    if found:
        writer.text(tags.findings(), _listed(found))


def _listed(found: Iterable[Finding]) -> str:
    return "\n".join(f"- **{f.severity} {f.code}** {f.sentence()} *{f.remedy}*" for f in found)
