"""A real step of a training under a recorder: what appears there for the first time is reported once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from castiron.diagnostics import Finding
from castiron.policy import Plan
from castiron.torch.audit.checks import findings as check_trace
from castiron.torch.audit.context import Context
from castiron.torch.audit.recorder import Recorder
from castiron.torch.audit.records import Origin
from castiron.torch.audit.tracer import batch_size, leaf_names, leaves
from castiron.torch.precision import model_device
from castiron.training.audit import AuditReport, key, merge
from castiron.training.audit_waivers import judge


class Observer:
    """Looks at single steps of a running training.

    Args:
        model: the module that the plan is about.
        report: what was found before the first step: not told again.
    """

    def __init__(self, model: nn.Module, plan: Plan, report: AuditReport) -> None:
        self._model, self._plan = model, plan
        self.report = report
        """With what was found since."""
        self._paths: dict[nn.Module, str] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self._paths.setdefault(module, path)
        self._seen = {key(f) for f in (*report.findings, *report.waived)}
        self._recorder: Recorder | None = None
        self._done: tuple[Recorder, int] | None = None

    @contextlib.contextmanager
    def watching(self, batch: Any, step: int) -> Iterator[None]:
        """Within it, forward, loss and backward of this step are recorded."""
        recorder = Recorder(self._paths, model_device(self._model), keep=False, count=False)
        recorder.trace.kind = "real"
        recorder.trace.batch_size = batch_size(batch)
        for name, tensor in self._model.named_parameters():
            recorder.declare(tensor, Origin("parameter", name))
        for name, buffer in self._model.named_buffers():
            recorder.declare(buffer, Origin("buffer", name))
        for leaf, name in zip(leaves(batch), leaf_names(batch), strict=True):
            recorder.declare(leaf, Origin("batch", name))
        self._recorder = recorder
        try:
            with recorder.recording():
                yield
        finally:
            self._recorder = None
        self._done = recorder, step

    def backward_begins(self) -> None:
        """Forward and loss are over."""
        if self._recorder is not None:
            self._recorder.phase = "backward"

    def take(self) -> list[Finding]:
        """What the step that was just watched has shown for the first time; nothing where none was."""
        if self._done is None:
            return []
        recorder, step = self._done
        self._done = None
        context = Context(recorder.trace, self._plan, device=model_device(self._model))
        kept, waived = judge(check_trace(context), self._plan.policy.enforce)
        new = [f for f in merge(kept) if key(f) not in self._seen]
        quiet = [f for f in merge(waived) if key(f) not in self._seen]
        self._seen.update(key(f) for f in (*new, *quiet))
        self.report = self.report.model_copy(
            update={
                "steps": (*self.report.steps, step),
                "findings": merge((*self.report.findings, *new)),
                "waived": merge((*self.report.waived, *quiet)),
            }
        )
        return [f for f in new if f.severity != "info"]
