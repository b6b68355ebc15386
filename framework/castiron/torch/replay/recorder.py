"""Writes down every operation of a forward and backward pass: what it was, where, and whether it was good."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.overrides import TorchFunctionMode

from castiron.torch.replay.backward import BackwardRecord, is_backward
from castiron.torch.replay.evidence import gather
from castiron.torch.replay.names import op_name
from castiron.torch.replay.sources import lines_running
from castiron.torch.replay.tracker import Call, Tracker, Value
from castiron.torch.replay.values import tensors_in

_KEPT = 32
"""Operations that may be to blame, of which evidence is kept: more would only cost."""
_SKIPPED = frozenset(("backward", "grad", "requires_grad_", "retain_grad", "register_hook", "__get__"))
"""Functions of torch that compute nothing, or that are looked at elsewhere."""


@dataclass(slots=True)
class _Running:
    """A module's forward that is running."""

    path: str | None
    number: int
    is_loss: bool


@dataclass(slots=True)
class ModuleCall:
    """One call of a module of the model: which operations ran within it."""

    path: str
    first: int
    end: int | None = None


class Recorder(TorchFunctionMode):
    """Within it every torch function is tracked. One recorder serves one micro-batch.

    Args:
        paths: modules with their paths; others are nobody's.
        names: names of tensors that were there before (parameters, buffers, the batch), by id.
    """

    def __init__(self, paths: Mapping[nn.Module, str], names: Mapping[int, str], rows: int | None) -> None:
        super().__init__()
        self.tracker = Tracker()
        self.backward = BackwardRecord(self.tracker)
        self.modules: list[ModuleCall] = []
        self.bad_roots: list[Value] = []
        """Losses that were bad before backward began."""
        self._paths, self._names, self._rows = paths, names, rows
        self._running: list[_Running] = []
        self._called = 0
        self._kept = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_backward(func):
            if self._is_explained(args, kwargs):
                return func(*args, **kwargs)
            with self.backward.watching(args, kwargs):
                return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _SKIPPED and not (
            name == "__get__" and op_name(func) in ("T", "mT", "H", "mH", "data", "real")
        ):
            return func(*args, **kwargs)
        arguments = (args, kwargs)
        call, before = self.tracker.begin(op_name(func), arguments)
        results = func(*args, **kwargs)
        if isinstance(results, (Tensor, tuple, list)) or before:
            made = self.tracker.end(call, before, arguments, results)
            if made:
                self._note(call, func, args, kwargs, made, [t for t, v in before if t._version != v])
        return results

    def _is_explained(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether backward starts at a bad loss: then it has nothing to tell. (A loss that is bad by its
        scaling alone is not: its last operation is the first bad one.)"""
        values = [self.tracker.value(t) for t in tensors_in((args, kwargs))]
        bad = [v for v in values if v.maker is not None and v.maker.bad_operands]
        self.bad_roots += bad
        return bool(bad)

    def _note(
        self,
        call: Call,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        made: list[Tensor],
        written: list[Tensor],
    ) -> None:
        call.lines = lines_running(3)
        for at in reversed(self._running):
            if at.path is not None:
                call.module, call.within = at.path, at.number
                break
        call.in_loss = any(at.is_loss for at in self._running)
        self.backward.own(call, made)
        if call.produces and self._kept < _KEPT:
            self._kept += 1
            call.evidence = gather(call.op, func, args, kwargs, made, written, self._names, self._rows)

    # --- modules -------------------------------------------------------------------------------------

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        path = self._paths.get(module)
        self._called += 1
        self._running.append(_Running(path, self._called, isinstance(module, _Loss)))
        if path is not None:
            self.modules.append(ModuleCall(path, len(self.tracker.calls)))

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._running:
            return
        left = self._running.pop()
        if left.path is not None:
            for call in reversed(self.modules):
                if call.path == left.path and call.end is None:
                    call.end = len(self.tracker.calls)
                    break


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Everything that runs within is recorded; compiled functions run eagerly."""
    hooks = []
    for module in recorder._paths:  # hooks on all modules of the process make torch.compile warn
        hooks.append(module.register_forward_pre_hook(recorder._enter_module, prepend=True))
        hooks.append(module.register_forward_hook(recorder._leave_module, always_call=True))
    try:
        with _eager(), recorder:
            yield
    finally:
        for hook in hooks:
            hook.remove()
        recorder.backward.close()


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Compiled functions run as they were written. torch's compiler is not imported where nobody has."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def ran_compiled() -> bool:
    """Whether torch.compile has compiled anything in this process."""
    utils = sys.modules.get("torch._dynamo.utils")
    return utils is not None and utils.counters["frames"]["ok"] > 0
