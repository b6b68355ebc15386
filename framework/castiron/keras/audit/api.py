"""`castiron.audit` of a Keras model: what was declared against what runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from castiron.diagnostics import DataError, Finding, Place, finding
from castiron.keras.audit.checks import findings as check_trace
from castiron.keras.audit.checks import model as checks_of_model
from castiron.keras.audit.checks import optimizer as optimizers
from castiron.keras.audit.checks import switches
from castiron.keras.audit.context import Context, counted
from castiron.keras.audit.errors import explain
from castiron.keras.audit.kept import under
from castiron.keras.audit.kernels import PRODUCTS
from castiron.keras.audit.records import Trace
from castiron.keras.audit.tracing import Loss, ModelCall, Traced, default_call, trace
from castiron.keras.inputs import cast_inputs
from castiron.keras.loss import to_loss_dtype
from castiron.keras.modules import describe, walk
from castiron.policy import Plan, PrecisionPolicy, resolve
from castiron.training.audit import AuditReport, key, merge, tally
from castiron.training.audit_waivers import judge


def audit(
    model: Any,
    batch: Any,
    policy: PrecisionPolicy | str | Mapping[str, Any] | None = None,
    *,
    targets: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    plan: Plan | None = None,
    call: ModelCall | None = None,
    as_is: bool = False,
    applied: bool = False,
    shapes: Mapping[str, str] | None = None,
) -> AuditReport:
    """Trace the training step of a model and its evaluation into graphs, run neither, and hold every
    operation against the policy.

    The model is left as it is: the plan is applied for the time of the trace, as `enforce` would.

    Args:
        model: a built Keras model: Sequential, functional or subclassed.
        batch: what the model is called with: an array, a tuple of arguments, a mapping. float32 leaves are
            cast as the policy says, others are taken as they come.
        policy: a policy, a preset's name, a short string or a mapping; float32 by default. A model under
            `enforce` has one.
        targets: what a loss of Keras's kind compares the outputs with.
        loss: without `targets` a function of outputs and batch that gives a scalar; with `targets` Keras's
            kind (a name, a Loss, a function of targets and outputs), left out the one that the model was
            compiled with.
        optimizer: of Keras, to see what it keeps.
        plan: the policy resolved already.
        call: how the model is called: of model, batch and whether it trains.
        as_is: without castiron: what runs where nothing but the model is there. Its own dtype policies
            count, and are held against the plan.
        applied: the plan is at work on the model already.
        shapes: glob on layers' paths → what goes in and comes out of them, as `{"lstm": "batch time 8
            -> batch 16"}`. A name is an axis whose length is the same everywhere; `""` is the model itself.

    Returns:
        The report; `report.check()` raises AuditError where something of severity error was found.

    Raises:
        PlanError: the policy does not fit the model.
        pydantic.ValidationError: it is no policy.
    """
    started = time.perf_counter()
    enforced = model.__dict__.get("castiron")
    if enforced is not None and policy is None and plan is None:
        plan, applied = enforced.plan, True
    declared = plan.policy if plan is not None else PrecisionPolicy.model_validate(policy or "float32")
    if plan is None:
        plan, _ = resolve(declared, describe(model))
    found = list(checks_of_model.check(model, plan, as_is=as_is))
    if as_is or applied:  # else it is set as declared before anything runs
        found.extend(switches.check(declared))
    traced = Traced()
    try:
        given, role = _prepared(batch, declared, as_is), "target"
        wanted = cast_inputs(targets, declared, role=role) if targets is not None and not as_is else targets
    except DataError as e:
        found.extend(e.findings)
    else:
        with contextlib.nullcontext() if applied or as_is else under(model, plan):
            function = _loss(model, loss, wanted, declared, as_is=as_is)
            called = _with_targets(call or default_call) if targets is not None else call or default_call
            whole = (given, wanted) if targets is not None else given
            traced = trace(model, whole, function, called, shapes)
            found.extend(_of_steps(traced, plan, model, as_is))
            if optimizer is None and as_is:
                optimizer = getattr(model, "optimizer", None)
            if as_is:
                found.extend(checks_of_model.unscaled(_computes(traced, "float16"), optimizer))
            if optimizer is not None:
                found.extend(optimizers.check(optimizer, model.trainable_variables, declared))
    found.extend(_about_the_trace(traced))
    kept, waived = judge(found, declared.enforce)
    ops = counted(_training(traced))
    return AuditReport(
        policy=str(declared),
        policy_hash=declared.hash(),
        device=switches.device(),
        level=declared.enforce.level,
        traced="graph" if traced.traces else "none",
        operations=len(ops),
        layers=len(plan.layers()),
        formats=tally(op.record() for op in ops),
        findings=merge(kept),
        waived=merge(waived),
        seconds=time.perf_counter() - started,
    )


def assert_precision(model: Any, batch: Any, policy: Any = None, **arguments: Any) -> AuditReport:
    """For tests: the report, where nothing of severity error was found.

    Raises:
        AuditError: something was.
    """
    return audit(model, batch, policy, **arguments).check()


def _training(traced: Traced) -> Trace:
    return traced.traces.get("training", Trace())


def _of_steps(traced: Traced, plan: Plan, model: Any, as_is: bool) -> list[Finding]:
    """What the steps have to say; what evaluation does as training does is said once."""
    layers, jit = dict(walk(model)), bool(getattr(model, "jit_compile", False))
    found: list[Finding] = list(traced.shapes)
    seen: set[Any] = set()
    for step, one in traced.traces.items():
        new = [f for f in check_trace(Context(one, plan, layers, as_is=as_is, jit=jit)) if key(f) not in seen]
        seen.update(key(f) for f in new)
        for f in new:
            if step != "training":
                f.evidence["step"] = step  # type: ignore[index]
        found.extend(new)
    if traced.failure is not None:
        found.append(explain(traced.failure, layers))
    return found


def _prepared(batch: Any, policy: PrecisionPolicy, as_is: bool) -> Any:
    """Arrays, and float32 leaves as the policy lets them in. Others are for the audit to judge."""

    def change(leaf: Any) -> Any:
        if isinstance(leaf, (np.ndarray, np.generic)) and np.asarray(leaf).dtype.kind in "OUSMm":
            cast_inputs(leaf, policy)  # refuses it, and says which element
        if as_is or not hasattr(leaf, "dtype") or tf.as_dtype(leaf.dtype) != tf.float32:
            return leaf
        return cast_inputs(leaf, policy)

    return tf.nest.map_structure(change, batch)


def _with_targets(call: ModelCall) -> ModelCall:
    return lambda model, batch, training: call(model, batch[0], training)


def _loss(model: Any, loss: Any, targets: Any, policy: PrecisionPolicy, *, as_is: bool) -> Loss | None:
    """Of outputs and batch, whatever kind of loss was given."""
    if targets is None:
        function: Loss | None = loss
        return function

    def wide(outputs: Any) -> Any:
        return outputs if as_is else to_loss_dtype(outputs, policy.loss)

    @contextlib.contextmanager
    def declared() -> Any:
        floatx = keras.config.floatx()
        if not as_is and policy.loss == "float64":
            keras.config.set_floatx("float64")
        try:
            yield
        finally:
            keras.config.set_floatx(floatx)

    if loss is None:
        if not getattr(model, "compiled", False):
            return None

        def compiled(outputs: Any, batch: Any) -> Any:
            with declared():
                return model._compute_loss(x=batch[0], y=batch[1], y_pred=wide(outputs), training=True)

        return compiled

    def compared(outputs: Any, batch: Any) -> Any:
        with declared():
            taken: Callable[[Any, Any], Any] = keras.losses.get(loss)
            value = taken(batch[1], wide(outputs))
            return value if value.shape.rank == 0 else tf.reduce_mean(value)

    return compared


def _computes(traced: Traced, dtype: str) -> bool:
    """Whether any product is computed in this format."""
    ops = _training(traced).of("forward", "loss")
    return any(op.name in PRODUCTS and op.floats and op.floats[0].dtype == dtype for op in ops)


def _about_the_trace(traced: Traced) -> list[Finding]:
    if traced.has_loss or traced.failure is not None or not traced.traces:
        return []
    return [
        finding(
            "F328",
            "no loss was given: its operations were not looked at",
            place=Place(op="loss"),
            remedy="Pass it: castiron.audit(model, x, policy, targets=y, loss='mse').",
        )
    ]
