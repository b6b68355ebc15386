"""What is kept of an operation that may be to blame, while its tensors are still there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from castiron.torch.replay.events import forward_event
from castiron.torch.replay.names import RECURRENT, aten_name, computes
from castiron.torch.replay.time_steps import first_bad_step
from castiron.torch.replay.tracker import Tracker, ancestry
from castiron.torch.replay.values import bad_along, named_tensors, numbers, statistics, tensors_in
from castiron.torch.trees import map_tensors
from castiron.training.incident import Event, TensorStatistics

_NAMES = ("input", "other", "third", "fourth")


@dataclass(slots=True, eq=False)
class Evidence:
    """What an operation got and gave."""

    op: str
    """The operation, or that inside it which first went wrong."""
    event: Event
    operands: tuple[TensorStatistics, ...]
    results: tuple[TensorStatistics, ...]
    rows: list[int] | None
    """Rows of the batch whose results are bad; None where results have no dimension of rows."""
    time_index: int | None


def gather(
    op: str,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    made: Sequence[Tensor],
    written: Sequence[Tensor],
    names: Mapping[int, str],
    rows: int | None,
) -> Evidence:
    """The evidence of a call that just ran.

    Args:
        made: tensors it made or wrote into.
        written: those it wrote into: they no longer hold what it got.
        names: of parameters, buffers and fields of the batch, by id.
        rows: rows of the batch.
    """
    with torch.no_grad():
        bad = [t for t in made if (v := numbers(t)) is not None and not v.isfinite().all()]
        operands = [t for t in tensors_in((args, kwargs)) if not any(t is w for w in written)]
        shown = tuple(statistics(n, t) for n, t in _named(args, kwargs, names) if t.dim() or t.numel())
        inner = None
        if not written and op not in RECURRENT:
            inner = _look_inside(func, args, kwargs)
        event = (
            inner.event
            if inner is not None
            else forward_event(
                op,
                operands,
                _scalars(args, kwargs),
                bad,
                None if written else lambda: _in_float64(func, args, kwargs),
            )
        )
        return Evidence(
            op=inner.op if inner is not None else op,
            event=event,
            operands=shown,
            results=tuple(
                statistics("result" if len(bad) == 1 else f"result {i}", t) for i, t in enumerate(bad)
            ),
            rows=_rows(bad, rows),
            time_index=first_bad_step(op, args, made) if op in RECURRENT else None,
        )


@dataclass(slots=True)
class _Inner:
    op: str
    event: Event


class _Dispatched(TorchDispatchMode):
    """Tracks the operations of torch's dispatcher that one torch function is made of."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, for seconds, at the first operation

    def __init__(self) -> None:
        super().__init__()
        self.tracker = Tracker()
        self.computing = 0
        self.events: dict[int, Event] = {}
        self._alive: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call, before = self.tracker.begin(aten_name(func), (args, kwargs))
        results = func(*args, **kwargs)
        made = self.tracker.end(call, before, (args, kwargs), results)
        self._alive.append((args, results))
        self.computing += computes(func)
        if made and call.produces:
            operands = list(tensors_in((args, kwargs)))
            self.events[call.index] = forward_event(
                call.op, operands, _scalars(args, kwargs), made, lambda: _in_float64(func, args, kwargs)
            )
        return results


def _look_inside(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Inner | None:
    """Which operation inside a composite one first went wrong; None where it is a single one, or unknown."""
    devices = {t.device.index for t in tensors_in((args, kwargs)) if t.is_cuda}
    inside = _Dispatched()
    try:
        with (
            torch.random.fork_rng(devices=[d for d in devices if d is not None]),
            torch.enable_grad(),
            inside,
        ):
            results = func(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError):
        return None  # cannot be run a second time
    if inside.computing < 2:
        return None
    calls, _ = ancestry([inside.tracker.value(t) for t in tensors_in(results)])
    first = next((c for c in reversed(calls) if c.index in inside.events), None)
    return None if first is None else _Inner(first.op, inside.events[first.index])


def _in_float64(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def widen(tensor: Tensor) -> Tensor:
        return tensor.detach().double() if tensor.is_floating_point() else tensor

    kwargs = {k: v for k, v in kwargs.items() if k != "dtype"}
    kind = next((t.device.type for t in tensors_in((args, kwargs))), "cpu")
    devices = [t.device.index for t in tensors_in((args, kwargs)) if t.is_cuda and t.device.index is not None]
    with torch.random.fork_rng(devices=devices), torch.autocast(kind, enabled=False), torch.no_grad():
        return func(*map_tensors(widen, args), **map_tensors(widen, kwargs))


def _named(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Mapping[int, str]
) -> list[tuple[str, Tensor]]:
    found = []
    tensors = [*named_tensors(args), *named_tensors(dict(kwargs))]
    for path, tensor in tensors:
        known = names.get(id(tensor))
        plain = _NAMES[int(path)] if path.isdecimal() and int(path) < len(_NAMES) else path
        found.append((known or plain, tensor))
    return found


def _scalars(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[float]:
    values = (*args, *kwargs.values())
    return [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]


def _rows(bad: Sequence[Tensor], rows: int | None) -> list[int] | None:
    """Rows of the batch in the first result that has a dimension of their number: the first or the second."""
    if rows is None:
        return None
    for tensor in bad:
        for dim in (0, 1):
            if tensor.dim() > dim and tensor.shape[dim] == rows:
                return bad_along(tensor, dim)
    return None
