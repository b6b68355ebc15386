"""The plan, applied to a torch model: parameters and buffers cast, forward passes in the declared formats.

precision = apply(model, plan)
with precision.forward_context():
    outputs = model(inputs)
with precision.backward_context():
    loss.backward()
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn

from castiron.diagnostics import Finding, Place, PlanError, finding
from castiron.policy import Plan
from castiron.torch import boundaries
from castiron.torch.availability import check_available
from castiron.torch.dtypes import NARROW, dtype_name, torch_dtype
from castiron.torch.islands import island_context
from castiron.torch.modules import devices_of, walk


class Precision:
    """A plan at work on a model. Made by `apply`; serves a bare loop and a Lightning plugin alike."""

    def __init__(self, plan: Plan, findings: list[Finding] | None = None) -> None:
        self.plan = plan
        self.findings = findings or []
        """What applying the plan has to say that does not stop it (L207, L208)."""
        self._autocast = boundaries.ambient_dtype(plan)
        computes = {torch_dtype(row.compute) for row in plan.rows}
        self._narrow = self._autocast is not None or bool(computes & NARROW)

    def forward_context(self, device_type: str | None = None) -> AbstractContextManager[None]:
        """A fresh context for one forward pass and its loss (not for backward), under any grad mode.

        Enter it outside of functions given to torch.compile. Nothing is entered where nothing computes in
        16 bits.
        """
        return self._forward(device_type or self._device()) if self._narrow else contextlib.nullcontext()

    def backward_context(self, device_type: str | None = None) -> AbstractContextManager[None]:
        """A context for `loss.backward()`: what activation checkpointing computes again has the same islands
        (it restores autocast by itself)."""
        if not self._narrow:
            return contextlib.nullcontext()
        return island_context(self.plan.policy.islands, device_type or self._device())

    @contextlib.contextmanager
    def _forward(self, device_type: str) -> Iterator[None]:
        with island_context(self.plan.policy.islands, device_type):
            if self._autocast is None:
                yield
            else:
                with torch.autocast(device_type, dtype=self._autocast):
                    yield

    def _device(self) -> str:
        if self.plan.device in ("cpu", "cuda"):
            return self.plan.device
        raise ValueError(
            "Expected forward_context(device_type) of a plan that was resolved without a device. "
            "Received no device_type."
        )

    def release(self, model: nn.Module) -> None:
        """Take every hook off again, also from a copy of the model. Parameters stay as they were cast."""
        boundaries.remove(model)


def apply(model: nn.Module, plan: Plan) -> Precision:
    """Cast a model's parameters and buffers as the plan says, see that it is so, and guard its boundaries.

    Parameters keep their identity: an optimizer made before goes on working as long as it has taken no step
    (its state has the format of the parameter at its first step). Tied parameters stay tied. Integer buffers
    are untouched. Call it before torch.compile's first run, and on the device or before moving there.

    Raises:
        PlanError: the plan is of another model (L211), a shared layer has two rows that differ (L203), values
            do not fit into the format they are given (L206), the plan needs what torch has not got (L210), or
            the dtypes observed afterwards are not those of the plan (L205).
    """
    check_available(model, plan)
    _check_layers(model, plan)
    boundaries.remove(model)
    formats = {**plan.parameters(), **plan.buffers()}
    findings = _cast(model, formats)
    boundaries.add(model, plan)
    if found := departures(model, plan):
        raise PlanError(found)
    return Precision(plan, findings + _lost_updates(model, plan))


def departures(model: nn.Module, plan: Plan) -> list[Finding]:
    """Each floating-point parameter and buffer whose dtype is not the one of the plan (L205)."""
    found = []
    for kind, expected, tensors in (
        ("parameter", plan.parameters(), dict(model.named_parameters(remove_duplicate=False))),
        ("buffer", plan.buffers(), dict(model.named_buffers(remove_duplicate=False))),
    ):
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                continue
            declared = expected.get(name)
            if declared is None:
                what = f"a {kind} that the plan does not know"
            elif dtype_name(tensor.dtype) == declared:
                continue
            else:
                what = f"{declared} for {kind} '{name}'"
            found.append(
                finding(
                    "L205",
                    f"{kind} '{name}' is not as planned" if declared else f"{kind} '{name}' is {what}",
                    place=Place(module=name.rpartition(".")[0]),
                    expected=what if declared else None,
                    received=dtype_name(tensor.dtype),
                )
            )
    return found


def _check_layers(model: nn.Module, plan: Plan) -> None:
    planned = {row.path: row for row in plan.rows}
    present = dict(walk(model))
    odd = [(p, "the model", "the plan") for p in present if p not in planned]
    odd += [(p, "the plan", "the model") for p in planned if p not in present]
    if odd:
        raise PlanError(
            finding(
                "L211",
                f"layer '{path}' is in {here} and not in {there}",
                place=Place(module=path),
                expected="a plan resolved from this very model",
                received=f"{len(odd)} layers that differ",
            )
            for path, here, there in odd[:5]
        )
    first: dict[int, str] = {}
    for path, module in present.items():
        home = first.setdefault(id(module), path)
        a, b = planned[home], planned[path]
        if (a.param, a.compute, a.output, a.buffers) != (b.param, b.compute, b.output, b.buffers):
            raise PlanError(
                finding(
                    "L203",
                    f"layer '{path}' is the same module as '{home}' and cannot run in two ways",
                    place=Place(module=path),
                    expected=f"compute {a.compute}, output {a.output}, param {a.param}, as for '{home}'",
                    received=f"compute {b.compute}, output {b.output}, param {b.param}",
                )
            )


@torch.no_grad()
def _cast(model: nn.Module, formats: dict[str, str]) -> list[Finding]:
    tensors = [
        *(("parameter", name, t) for name, t in model.named_parameters()),
        *(("buffer", name, t) for name, t in model.named_buffers()),
    ]
    jobs = [
        (kind, name, tensor, torch_dtype(formats[name]))
        for kind, name, tensor in tensors
        if tensor.is_floating_point() and name in formats and tensor.dtype is not torch_dtype(formats[name])
    ]
    casts = [tensor.data.to(dtype) for _, _, tensor, dtype in jobs]
    found = [
        f
        for (kind, name, tensor, _), new in zip(jobs, casts, strict=True)
        if (f := _judge(kind, name, tensor.data, new)) is not None
    ]
    if errors := [f for f in found if f.severity == "error"]:
        raise PlanError(errors)
    for (_, _, tensor, dtype), new in zip(jobs, casts, strict=True):
        grad, tensor.grad = tensor.grad, None
        tensor.data = new
        if grad is not None:
            tensor.grad = grad.to(dtype)
    if jobs:
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()
    return found


def _judge(kind: str, name: str, old: torch.Tensor, new: torch.Tensor) -> Finding | None:
    """What a cast lost: overflow is an error, underflow to zero a warning; rounding is what was asked for."""
    if old.device.type == "meta" or old.numel() == 0 or new.dtype.itemsize > old.dtype.itemsize:
        return None
    overflowed = int((new.isinf() & ~old.isinf()).sum())
    vanished = int(((new == 0) & (old != 0)).sum())
    if not overflowed and not vanished:
        return None
    source, target = dtype_name(old.dtype), dtype_name(new.dtype)
    magnitudes = old.abs()
    if overflowed:
        largest = magnitudes[new.isinf() & ~old.isinf()].max().item()
        return finding(
            "L206",
            f"{overflowed:,} of {old.numel():,} values of {kind} '{name}' do not fit into {target}",
            place=Place(module=name.rpartition(".")[0]),
            expected=f"magnitudes up to {torch.finfo(new.dtype).max:g}",
            received=f"{largest:g} ({source})",
            overflowed=overflowed,
        )
    smallest = magnitudes[(new == 0) & (old != 0)].min().item()
    return finding(
        "L207",
        f"{vanished:,} of {old.numel():,} values of {kind} '{name}' become zero in {target}",
        place=Place(module=name.rpartition(".")[0]),
        expected=f"magnitudes from {torch.finfo(new.dtype).smallest_normal:g}",
        received=f"{smallest:g} ({source})",
        vanished=vanished,
    )


def _lost_updates(model: nn.Module, plan: Plan) -> list[Finding]:
    """A warning where narrow parameters are updated with neither a master copy nor stochastic rounding."""
    updates = plan.policy.updates
    narrow = [n for n, p in model.named_parameters() if p.requires_grad and p.dtype in NARROW]
    if not narrow or updates.master is not None or updates.rounding == "stochastic":
        return []
    dtype = dtype_name(model.get_parameter(narrow[0]).dtype)
    half = torch.finfo(torch_dtype(dtype)).eps / 2
    return [
        finding(
            "L208",
            f"{len(narrow)} parameters in {dtype} are updated directly: an update smaller than "
            f"{half:.1g} of the weight rounds to nothing",
            place=Place(module=narrow[0].rpartition(".")[0]),
            expected="a float32 master copy, or stochastic rounding",
            received="updates: {master: null, rounding: nearest}",
            parameters=narrow,
        )
    ]


def model_device(model: nn.Module) -> str:
    """The device type that holds the model's tensors; cpu where it holds none.

    Raises:
        ValueError: its tensors are on devices of several types.
    """
    types = sorted({device.type for device in devices_of(model)})
    if len(types) > 1:
        raise ValueError(f"Expected a model on one type of device. Received {' and '.join(types)}.")
    return types[0] if types else "cpu"
