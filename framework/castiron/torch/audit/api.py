"""`castiron.audit`: a model, a batch and a policy; what was declared against what runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer

from castiron.diagnostics import Finding, Place, finding
from castiron.policy import Plan, PrecisionPolicy, resolve
from castiron.torch.audit import optimizer as optimizers
from castiron.torch.audit.checks import findings as check_trace
from castiron.torch.audit.checks import stored
from castiron.torch.audit.context import Context
from castiron.torch.audit.errors import explain
from castiron.torch.audit.kernels import PRODUCTS
from castiron.torch.audit.records import Op, Trace
from castiron.torch.audit.tracer import Loss, Step, confirm, trace
from castiron.torch.dtypes import torch_dtype
from castiron.torch.inputs import cast_inputs
from castiron.torch.modules import describe
from castiron.torch.replay.names import computes
from castiron.torch.switches import snapshot
from castiron.torch.trees import map_tensors
from castiron.training.audit import AuditReport, merge, tally
from castiron.training.audit_waivers import judge


def audit(
    model: nn.Module,
    batch: Any,
    policy: PrecisionPolicy | str | Mapping[str, Any] | None = None,
    *,
    loss: Loss | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    plan: Plan | None = None,
    root: str = "",
    call: Callable[[nn.Module, Any], Any] | None = None,
    shapes: Mapping[str, str] | None = None,
    as_is: bool = False,
    device: str | torch.device | None = None,
) -> AuditReport:
    """Trace one training step of a model, without computing, and hold every operation against the policy.

    The model is left as it is, on the meta device too: what is traced is a copy on fake tensors to which the
    plan is applied as a Trainer would. Where a step cannot be traced without numbers, or where it costs next
    to nothing, one real step of a copy is run on a few rows of the batch.

    Args:
        model: any module; of a LightningModule its `training_step` is traced.
        batch: the model's argument, a tuple of arguments, or a mapping of arguments by name. float32 leaves
            are cast as the policy says, others are taken as they come.
        policy: a policy, a preset's name, a short string or a mapping; float32 by default.
        loss: a function of outputs and batch that gives a scalar. Left out, the model's own (`outputs.loss`,
            or a scalar output) is taken.
        optimizer: one or several, to see what they keep.
        plan: the policy resolved already.
        root: path within `model` of the module that the plan is about.
        call: how the model is called: of model and batch. By default by what the batch is.
        shapes: what goes into layers and comes out of them, by path: `{"lstm": "batch time 8 -> batch time
            16"}`. A name is an axis whose length is the same everywhere; `""` is the model itself.
        as_is: without castiron's hooks and contexts: what runs where nothing but the model is there.
        device: what to trace for; by default where the model is (a CPU, where it is on meta).

    Returns:
        The report; `report.check()` raises AuditError where something of severity error was found.

    Raises:
        PlanError: the policy does not fit the model.
        pydantic.ValidationError: it is no policy.
        ValueError: a shape cannot be read.
    """
    started = time.perf_counter()
    declared = plan.policy if plan is not None else PrecisionPolicy.model_validate(policy or "float32")
    target = model.get_submodule(root) if root else model
    given = plan is not None
    if plan is None:
        plan, _ = resolve(declared, describe(target))
    where = torch.device(device) if device is not None else _device(model)
    step = Step(model, _prepared(batch, declared), loss, root=root, call=call, shapes=shapes)
    traced, copy = trace(step, plan, device=where, as_is=as_is)
    context = Context(traced, plan, as_is=as_is, device=where.type)
    found = list(check_trace(context))
    if traced.failure is not None:
        explained = explain(traced.failure)
        if not any(f.code == explained.code and f.place.line == explained.place.line for f in found):
            found.append(explained)
    else:
        found.extend(stored.check(context, copy.get_submodule(root) if root else copy))
    confirmed = traced.kind == "real"
    if traced.kind == "fake" and traced.failure is None:
        real = confirm(step, plan, traced, device=where, as_is=as_is)
        if real is not None:
            confirmed = True
            found.extend(_only_real(Context(real, plan, as_is=as_is, device=where.type), found))
    found.extend(traced.of_shapes)
    found.extend(_about_the_trace(traced))
    found.extend(_switches(declared, where, traced, in_charge=as_is or given))
    names = {id(p): n for n, p in target.named_parameters()}
    for one in _list(optimizer):
        found.extend(optimizers.check(one, declared, names, torch.device("cpu")))
    kept, waived = judge(found, declared.enforce)
    counted = [op for op in traced.ops if is_counted(op)]
    return AuditReport(
        policy=str(declared),
        policy_hash=declared.hash(),
        device=where.type,
        level=declared.enforce.level,
        traced=traced.kind,
        confirmed=confirmed,
        operations=len(counted),
        layers=len(plan.layers()),
        formats=tally(op.record() for op in counted),
        findings=merge(kept),
        waived=merge(waived),
        seconds=time.perf_counter() - started,
    )


def assert_precision(model: nn.Module, batch: Any, policy: Any = None, **arguments: Any) -> AuditReport:
    """For tests: the report, where nothing of severity error was found.

    Raises:
        AuditError: something was.
    """
    return audit(model, batch, policy, **arguments).check()


_OF_FORMATS = frozenset(("F301", "F302", "F303", "F306", "F307", "F310", "F311", "F319", "F324"))
"""What a step on a few rows can say of the whole one."""


def _only_real(context: Context, found: Sequence[Finding]) -> Iterator[Finding]:
    """What the real kernels show and fake tensors did not: an error about formats, another result."""
    known = {(f.code, f.place.file, f.place.line) for f in found}
    stopped = {(f.place.file, f.place.line) for f in found if f.code in ("F306", "F307", "F319", "F324")}
    failure = context.trace.failure
    if failure is not None:
        explained = explain(failure)
        if explained.code in _OF_FORMATS and (explained.place.file, explained.place.line) not in stopped:
            yield explained
    for f in check_trace(context):
        if f.code in _OF_FORMATS and (f.code, f.place.file, f.place.line) not in known:
            yield f


def is_counted(op: Op) -> bool:
    """Whether an operation computes, and does not only move numbers."""
    return bool(op.results) and computes(op.func)


def _prepared(batch: Any, policy: PrecisionPolicy) -> Any:
    """Arrays as tensors, and float32 leaves as the policy lets them in. Others are for the audit to judge."""
    batch = _tensors(batch)

    def change(tensor: Tensor) -> Tensor:
        if tensor.dtype is not torch.float32:
            return tensor
        if tensor.device.type == "meta" or isinstance(tensor, FakeTensor):
            return tensor.to(torch_dtype(policy.param)) if not policy.is_mixed else tensor
        cast: Tensor = cast_inputs(tensor, policy)
        return cast

    return map_tensors(change, batch)


def _tensors(tree: Any) -> Any:
    if isinstance(tree, np.ndarray) and tree.dtype.kind not in "OUSVMm":
        return torch.from_numpy(np.ascontiguousarray(tree))
    if type(tree) in (tuple, list):
        return type(tree)(_tensors(item) for item in tree)
    if type(tree) is dict:
        return {key: _tensors(item) for key, item in tree.items()}
    return tree


def _device(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != "meta":
            return torch.device(tensor.device)
    return torch.device("cpu")


def _about_the_trace(traced: Trace) -> list[Finding]:
    found = []
    if traced.kind == "real":
        found.append(
            finding(
                "F326", "the model needs numbers to run; one real step on a few rows was traced on a copy"
            )
        )
    if not traced.has_loss and traced.failure is None:
        found.append(finding("F328", "no loss was given: its operations were not looked at"))
    return found


def _switches(
    policy: PrecisionPolicy, device: torch.device, traced: Trace, *, in_charge: bool
) -> list[Finding]:
    """Switches of the process that decide what runs.

    Args:
        in_charge: whether they are as they will be: castiron's Trainer sets those for tf32 itself.
    """
    found = []
    state = snapshot()
    if device.type == "cuda" and not policy.matmul.tf32:
        for name, value in state["fp32_precision"].items():
            if not name.startswith("cuda") or value in ("ieee", "none") or not _switched(traced, name):
                continue
            found.append(
                finding(
                    "F322",
                    f"the switch {name} is on for tf32",
                    place=Place(op=name),
                    expected="ieee",
                    received=str(value),
                    severity="error" if in_charge else "warning",
                )
            )
    if state["denormals_flushed"]:
        found.append(
            finding(
                "F323", "this process flushes subnormal numbers to zero", expected="kept", received="zero"
            )
        )
    return found


def _switched(traced: Trace, switch: str) -> bool:
    """Whether a float32 product runs that the switch is about."""
    kind = switch.partition(".")[2]
    return any(
        op.base in PRODUCTS
        and bool(op.floats)
        and op.floats[0].dtype is torch.float32
        and kind == ("conv" if "conv" in op.base else "rnn" if "rnn" in op.base else "matmul")
        for op in traced.of("forward", "loss")
    )


def _list(optimizer: Optimizer | Sequence[Optimizer] | None) -> Sequence[Optimizer]:
    if optimizer is None:
        return ()
    return (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
