"""The audit while a model is at work: each graph that its steps are compiled to is read as it is traced, and
the live model is held against the plan every so many steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from castiron.diagnostics import CastironError, Finding, Place, RunError, finding
from castiron.keras.audit.checks import findings as check_trace
from castiron.keras.audit.checks import switches
from castiron.keras.audit.checks.model import check_floatx
from castiron.keras.audit.context import Context, counted
from castiron.keras.audit.lines import is_apart
from castiron.keras.audit.reader import Reader
from castiron.keras.audit.records import Origin, Step, Trace
from castiron.keras.audit.scopes import Scopes
from castiron.keras.audit.tracing import batch_names, batch_size, origins_of
from castiron.keras.modules import walk
from castiron.keras.precision import departures
from castiron.policy import Plan
from castiron.training.audit import FILE, AuditReport, key, merge, tally
from castiron.training.audit_waivers import judge
from castiron.training.writing import write_text

_WARM_UP = 10
"""Steps before the first one at which the live model is looked at."""


class Observer:
    """Reads the graphs of a model's steps, and looks at the model between them.

    A steady step costs nothing: a graph is read when Python builds it, which is once for each signature.

    Args:
        plan: what is in force when it is asked.
        report: what was found before the first step: not told again. None: the first graph of a training step
            makes it, and where the policy is strict, stops it.
        eager: whether a step that runs without a graph is traced into one that is thrown away, to be read:
            Python of the model's then runs once more.
        jit: whether XLA compiles the steps, where the model does not know itself.
    """

    def __init__(
        self,
        model: Any,
        plan: Callable[[], Plan],
        report: AuditReport | None = None,
        *,
        eager: bool = False,
        jit: bool = False,
    ) -> None:
        self._model, self._plan, self._eager, self._jit = model, plan, eager, jit
        self.report = report
        """With what was found since."""
        self._seen = set() if report is None else {key(f) for f in (*report.findings, *report.waived)}
        self._stops = report is None
        self._news: list[Finding] = []
        self._step, self._reading, self._again = 0, False, False
        self._due: float = 0
        self._plan_next(0)

    # --- while a graph is built ----------------------------------------------------------------------

    def traced(self, step: Step, function: Callable[..., Any], data: Any, *more: Any) -> Any:
        """What `function(data, *more)` gives. Where that builds a graph, the graph is read.

        Raises:
            AuditError: before the first training step, under a strict policy: something of severity error.
        """
        if tf.executing_eagerly():
            if self._eager and step == "training" and (self._again or self._first):
                self._read_eager(function, data)
            return function(data, *more)
        if self._reading:
            return function(data, *more)
        scopes = Scopes(self._model)
        origins = origins_of(self._model)
        self._reading = True
        try:
            with (
                scopes.open(),
                tf.name_scope("castiron_forward/" if step == "inference" else "castiron_loss/"),
            ):
                result = function(data, *more)
            started = time.perf_counter()
            with np.errstate(all="ignore"):
                reader = Reader(scopes, origins, is_apart)
                found = reader.read(tf.compat.v1.get_default_graph(), {})
        finally:
            self._reading = False
        found.step = step
        leaves = tf.nest.flatten(data)
        _name_batch(reader, leaves, batch_names(data))
        _before_the_layers(found)
        found.batch_size = batch_size(leaves)
        self._take_in(found, step, started)
        return result

    def looking_at(self, step: Step, function: Callable[..., Any]) -> Callable[..., Any]:
        """A step whose graph is read."""

        def traced(data: Any, *more: Any) -> Any:
            return self.traced(step, function, data, *more)

        return traced

    def _is_jit(self) -> bool:
        return self._jit or bool(getattr(self._model, "jit_compile", False))

    @property
    def _first(self) -> bool:
        """Whether no training step has been taken, so that a strict policy can stop there."""
        return self._stops and not self._step

    # --- between steps -------------------------------------------------------------------------------

    def after(self, step: int) -> Sequence[Finding]:
        """What there is to tell for the first time, after so many steps were applied."""
        self._step = step
        if step < self._due and not self._news:
            return ()
        if step >= self._due:
            self._look(step)
        return self.take()

    def take(self) -> list[Finding]:
        """What has been found since this was last asked, without notes."""
        news, self._news = self._news, []
        return [f for f in news if f.severity != "info"]

    def write(self, folder: Path) -> list[Finding]:
        """Write the certificate. → what there is to tell where it cannot be: a full disk hides nothing of
        what stopped the training."""
        try:
            if self.report is not None:
                write_text(folder / FILE, self.report.to_json())
        except RunError as e:
            return list(e.findings)
        return []

    # --- parts ---------------------------------------------------------------------------------------

    def _read_eager(self, function: Callable[..., Any], data: Any) -> None:
        """Read the graph that a step would be."""
        self._again = False
        leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(data)]

        def step(*given: Any) -> None:
            self.traced("training", function, tf.nest.pack_sequence_as(data, given), None)

        try:
            tf.function(step, autograph=False).get_concrete_function(*leaves)
        except CastironError:
            raise
        except Exception as e:  # what runs without a graph need not have one
            because = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            place = Place(phase="forward")
            self._add(
                [
                    finding(
                        "F327", f"a step that runs eagerly has no graph to read: {because}", place=place,
                        severity="info",
                    )
                ],
                None,
            )  # fmt: skip

    def _look(self, step: int) -> None:
        """At the formats of variables, layers and the process."""
        plan = self._plan()
        self._add(
            [*check_floatx(plan.policy), *switches.check(plan.policy), *departures(self._model, plan)], step
        )
        self._plan_next(step + 1)
        self._again = True

    def _plan_next(self, step: int) -> None:
        every = self._plan().policy.enforce.every
        if every is None:
            self._due = float("inf")
        else:
            self._due = _WARM_UP + max(-(-(step - _WARM_UP) // every), 0) * every

    def _take_in(self, trace: Trace, step: Step, started: float) -> None:
        plan = self._plan()
        found = list(check_trace(Context(trace, plan, dict(walk(self._model)), jit=self._is_jit())))
        if step != "training":
            for f in found:
                f.evidence["step"] = step  # type: ignore[index]
        report = self.report or self._begin(plan)
        if not report.operations and step == "training":
            ops = counted(trace)
            formats = tally(op.record() for op in ops)
            report = report.model_copy(update={"operations": len(ops), "formats": formats})
        self.report = report
        self._add(found, self._step if step == "training" and self._step else None)
        self.report.seconds += time.perf_counter() - started
        if self._first and step == "training" and report.level == "strict":
            self.report.check()

    def _begin(self, plan: Plan) -> AuditReport:
        return AuditReport(
            policy=str(plan.policy),
            policy_hash=plan.policy.hash(),
            device=switches.device(),
            level=plan.policy.enforce.level,
            traced="graph",
            layers=len(plan.layers()),
        )

    def _add(self, found: Sequence[Finding], step: int | None) -> None:
        report = self.report or self._begin(self._plan())
        kept, waived = judge(found, self._plan().policy.enforce)
        new = [f for f in merge(kept) if key(f) not in self._seen]
        quiet = [f for f in merge(waived) if key(f) not in self._seen]
        self._seen.update(key(f) for f in (*new, *quiet))
        self._news += new
        steps = report.steps if step is None or step in report.steps else (*report.steps, step)
        self.report = report.model_copy(
            update={
                "steps": steps,
                "findings": merge((*report.findings, *new)),
                "waived": merge((*report.waived, *quiet)),
            }
        )


def _name_batch(reader: Reader, leaves: Sequence[Any], names: Sequence[str]) -> None:
    """Say of the tensors that a step was given that they are the batch's."""
    for leaf, name in zip(leaves, names, strict=True):
        for part in getattr(leaf, "values", None) or (leaf,):  # of each replica
            value = reader.value(part) if keras.ops.is_tensor(part) else None
            if value is not None:
                value.origin = Origin("batch", name)


def _before_the_layers(trace: Trace) -> None:
    """What a step does before it calls the model is no loss yet."""
    for op in trace.ops:
        if op.module is not None:
            return
        if op.phase == "loss":
            op.phase = "forward"
