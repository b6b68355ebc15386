"""What a step changes before its optimizer does, kept so that a held step leaves nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from castiron.torch.updates import guard_of

_OWN = ("optimizer", "_wrapped_by_lr_sched")


class Snapshot:
    """Buffers, torch's generators, schedules, learning rates, and the states of torchmetrics' metrics inside
    the module, as they were before a step.

    The generators of Python and NumPy are left alone: they belong to the data, and keeping NumPy's takes
    sixty microseconds a step.

    Taking it costs some copies of buffers, into memory that is kept, and a few microseconds: no parameter is
    copied, because an optimizer that is not stepped changes none. Where several optimizers step one after the
    other, a later one may turn out bad when an earlier one has stepped: `whole=True` copies parameters and
    optimizer state too.

    Args:
        module: whose buffers (and parameters) are kept.
        optimizers: whose settings (and state) are kept.
        schedules: learning-rate schedules of torch.
        whole: see above.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer] = (),
        schedules: Sequence[Any] = (),
        *,
        whole: bool = False,
    ) -> None:
        self._optimizers, self._schedules, self._whole = tuple(optimizers), tuple(schedules), whole
        kept = list(module.buffers())
        self._buffers = len(kept)
        if whole:
            kept += list(module.parameters())
        self._tensors: list[Tensor] = kept
        self._copies = [t.detach().clone() for t in kept]
        self._groups = _grouped(range(len(kept)), kept)
        self._random: dict[str, Any] = {}
        self._settings: list[list[dict[str, Any]]] = []
        self._states: list[dict[Any, dict[str, Any]]] = []
        self._schedule_states: list[dict[str, Any]] = []
        self._masters: list[dict[str, Any] | None] = []
        self._metrics = [m for m in module.modules() if _is_metric(m)]
        self._metric_states: list[dict[str, Any]] = []

    @torch.no_grad()
    def take(self) -> None:
        """Keep the present state."""
        for group in self._groups:
            torch._foreach_copy_([self._copies[i] for i in group], [self._tensors[i].detach() for i in group])
        self._random = _random_state()
        self._metric_states = [_metric_state(m) for m in self._metrics]
        self.take_settings()
        if self._whole:
            self._states = [
                {p: {k: _copy(v) for k, v in state.items()} for p, state in o.state.items()}
                for o in self._optimizers
            ]
            updates = [guard_of(o) for o in self._optimizers]
            self._masters = [None if u is None else u.kept() for u in updates]

    def take_settings(self) -> None:
        """Keep the present schedules and settings of optimizers, and of all else what was kept before."""
        self._settings = [
            [{k: v for k, v in g.items() if k != "params"} for g in o.param_groups] for o in self._optimizers
        ]
        self._schedule_states = [_shallow(s) for s in self._schedules]

    @contextlib.contextmanager
    def buffers_as_taken(self) -> Iterator[None]:
        """Within it, buffers are as they were when they were taken; afterwards as they are now."""
        with torch.no_grad():
            now = [b.clone() for b in self._tensors[: self._buffers]]
            for buffer, copy in zip(self._tensors[: self._buffers], self._copies, strict=False):
                buffer.copy_(copy)
            try:
                yield
            finally:
                for buffer, value in zip(self._tensors[: self._buffers], now, strict=True):
                    buffer.copy_(value)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, bit for bit."""
        for group in self._groups:
            torch._foreach_copy_([self._tensors[i].detach() for i in group], [self._copies[i] for i in group])
        _restore_random(self._random)
        for metric, state in zip(self._metrics, self._metric_states, strict=True):
            vars(metric).update({k: _copy_state(v) for k, v in state.items()})
        for optimizer, settings in zip(self._optimizers, self._settings, strict=True):
            for own, kept in zip(optimizer.param_groups, settings, strict=True):
                own.update(kept)
        for schedule, state in zip(self._schedules, self._schedule_states, strict=True):
            vars(schedule).update(state)
        if self._whole:
            for optimizer, states in zip(self._optimizers, self._states, strict=True):
                optimizer.state.clear()
                optimizer.state.update(
                    {p: {k: _copy(v) for k, v in state.items()} for p, state in states.items()}
                )
            for optimizer, masters in zip(self._optimizers, self._masters, strict=True):
                updates = guard_of(optimizer)
                if updates is not None and masters is not None:
                    updates.put_back(masters)


def drop_gradients(optimizers: Sequence[Optimizer]) -> None:
    """Take the gradients of these optimizers' parameters away: their next step then changes nothing, neither
    parameters nor state nor step counts."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def _shallow(schedule: Any) -> dict[str, Any]:
    """A schedule's own values; its lists are copied, its optimizer and functions are not kept."""
    return {k: list(v) if isinstance(v, list) else v for k, v in vars(schedule).items() if k not in _OWN}


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _is_metric(module: nn.Module) -> bool:
    """Whether it is a metric of torchmetrics, which keeps its states as plain attributes."""
    return isinstance(getattr(module, "_defaults", None), dict) and hasattr(module, "_update_count")


def _metric_state(metric: Any) -> dict[str, Any]:
    names = [*metric._defaults, "_update_count", "_computed"]
    return {name: _copy_state(getattr(metric, name, None)) for name in names}


def _copy_state(value: Any) -> Any:
    return list(value) if isinstance(value, list) else _copy(value)


def _grouped(indices: Sequence[int], tensors: Sequence[Tensor]) -> list[list[int]]:
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i in indices:
        groups.setdefault((tensors[i].device, tensors[i].dtype), []).append(i)
    return list(groups.values())


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _restore_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
