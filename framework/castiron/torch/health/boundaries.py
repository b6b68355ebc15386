"""What layers hand on, and the gradient of it, seen by hooks that are there in measured steps alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from castiron.health.snapshot import BackwardCast, Kind
from castiron.torch.dtypes import NARROW, dtype_name
from castiron.torch.health.measure import Batch
from castiron.torch.health.order import OrderWatch
from castiron.torch.modules import RECURRENT, family

_PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
"""Layers that compute nothing: what they hand on is what the layer before them did. So does dropout of one's
own, by its name."""
_STEPS = 1024
"""Calls of one layer in one forward pass whose level is kept."""
_OUTPUTS = 16
"""Tensors that one layer hands on, at most, whose largest magnitude is looked at."""
_NODES = 20_000
"""Nodes of a backward graph that are looked at for casts."""


class Boundaries:
    """Hooks on the layers of a model, there from `begin` to `end`: between measured steps a model is as it
    was, and none of its forward passes pays for them.

    A compiled graph never holds them: a measured step runs its forward pass uncompiled.

    Args:
        model: every layer without children is watched, and recurrent and attention layers whole.
    """

    def __init__(self, model: nn.Module) -> None:
        self.active = False
        self._batch: Batch | None = None
        self.order = OrderWatch()
        self._calls: dict[str, int] = {}
        self._levels: dict[str, list[Tensor]] = {}
        self._dead: dict[str, Tensor] = {}
        self._recurrent = {n: m for n, m in _layers(model) if isinstance(m, RECURRENT)}
        layers = dict(_layers(model))
        within = {n: m for n, m in model.named_modules() if n not in layers and n}
        watched = [(n, m) for n, m in layers.items() if not _passes(m)]
        self._hooks: list[tuple[nn.Module, _Seen]] = [(m, _Seen(self, n)) for n, m in watched]
        self._peak_hooks = [(m, _Peak(self, n, m)) for n, m in watched]
        self._calls_of: list[tuple[nn.Module, _Seen]] = [(m, _Called(self, n)) for n, m in within.items()]
        self._handles: list[RemovableHandle] = []

    def begin(self, batch: Batch) -> None:
        """What layers hand on from here on is measured into `batch`."""
        self.end()
        self.active, self._batch = True, batch
        hooks = self._peak_hooks if batch.peaks_only else self._hooks + self._calls_of
        self._handles = [module.register_forward_hook(hook) for module, hook in hooks]
        self._calls, self._levels, self._dead = {}, {}, {}

    def end(self) -> None:
        """What layers hand on from here on is not measured; gradients of what they did hand on still are."""
        self.active = False
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take_levels(self) -> dict[str, tuple[float, ...]]:
        """Root mean square by time step, of recurrent layers and of layers that were called several times.
        Waits for the device."""
        found: dict[str, tuple[float, ...]] = {}
        for name, levels in self._levels.items():
            stacked = torch.cat([level.reshape(-1) for level in levels]).float().cpu()
            if stacked.numel() > 1:
                found[name] = tuple(stacked.tolist())
        self._levels = {}
        return found

    def take_dead(self) -> dict[str, NDArray[np.bool_]]:
        """Which units are dead, of layers that have dead ones or could. Waits for the device."""
        dead, self._dead = self._dead, {}
        return {name: units.cpu().numpy() for name, units in dead.items()}

    @torch.no_grad()
    def see(self, name: str, module: nn.Module, output: Any) -> None:
        """A layer hands this on."""
        calls = self._calls[name] = self._calls.get(name, 0) + 1
        tensors = [(i, t) for i, t in _floats(output) if t.numel() and not t.is_sparse]
        if not tensors:
            return
        assert self._batch is not None
        main = tensors[0][1]
        if name in self._recurrent:
            self._see_state(name, module, output)
        elif main.dim() == 3 and family(module) is None and next(module.parameters(False), None) is not None:
            self._see_sequence(name, main)  # time steps may be looped over within
        elif 1 < calls <= _STEPS:
            self._levels.setdefault(name, []).append(_rms(main).reshape(1))
        if calls > 4 and calls & (calls - 1):
            return  # of many calls: the first four, then the 8th, 16th, …
        axis = 1 if main.dim() > 3 or family(module) == "conv" else -1
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.Threshold):
            silent = (main == 0).transpose(axis, -1).reshape(-1, main.shape[axis]).all(0)
            self._dead[name] = silent if name not in self._dead else self._dead[name] & silent
        for index, tensor in tensors:
            label = name if index == 0 else f"{name}[{index}]"
            self._batch.add(("activations", label), [tensor])
            if tensor.requires_grad:
                order = self.order if index == 0 and self._batch.formats else None
                tensor.register_hook(_Gradient(self._batch, label, order, axis))

    def see_peaks(self, keys: Sequence[tuple[Kind, str] | None], output: Any) -> None:
        """A layer hands this on, of which the largest magnitude alone counts."""
        batch = self._batch
        assert batch is not None
        if isinstance(output, Tensor):
            found = [output] if output.is_floating_point() else []
        else:
            found = []
            _visit(output, found)
        for key, tensor in zip(keys, found, strict=False):
            if key is not None and not tensor.is_sparse and tensor.numel():
                batch.add_peak(key, tensor)

    @torch.no_grad()
    def see_call(self, name: str, output: Any) -> None:
        """A module with layers inside hands this on. One that is called again and again in a forward pass
        is a cell: the levels of its states are kept, from the second call on."""
        calls = self._calls[name] = self._calls.get(name, 0) + 1
        if 1 < calls <= _STEPS:
            for index, tensor in _floats(output)[:3]:
                label = f"{name}[{index}]" if index else name
                self._levels.setdefault(label, []).append(_rms(tensor).reshape(1))

    def _see_sequence(self, name: str, x: Tensor) -> None:
        """Levels over either of the first two axes: time grows, a batch does not."""
        squares = x.detach().float().square().mean(2)
        for axis in (0, 1):
            if x.shape[axis] > 1:
                self._levels[f"{name}[axis {axis}]"] = [squares.mean(1 - axis).sqrt()]

    def _see_state(self, name: str, module: Any, output: Any) -> None:
        if not isinstance(module, nn.RNNBase):  # a cell: one time step a call
            state = output[-1] if isinstance(output, tuple) else output
            self._levels.setdefault(name, []).append(_rms(state).reshape(1))
            return
        sequence = output[0]
        if isinstance(sequence, PackedSequence):
            sizes = sequence.batch_sizes.to(sequence.data.device)
            levels = _packed_levels(sequence.data, sizes)
        else:
            x = sequence.detach()
            time = 0 if x.dim() == 2 else int(module.batch_first)
            x = x.movedim(time, 0).reshape(x.shape[time], -1, x.shape[-1])  # [T, B, H]
            if module.bidirectional:
                x = x[..., : x.shape[-1] // 2]
            levels = x.float().square().mean((1, 2)).sqrt()
        self._levels[name] = [levels]


def unobserved() -> contextlib.AbstractContextManager[Any]:
    """What is computed within is no part of the training: whoever looks at its operations (the audit of a
    step) does not see it."""
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return _hidden()
    return _NOBODY


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    with torch.utils._python_dispatch._disable_current_modes(), torch._C.DisableTorchFunction():
        yield


_NOBODY: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


class _Seen:
    """The forward hook of one layer: a class, so that a model with it can be copied and pickled."""

    def __init__(self, boundaries: Boundaries, name: str) -> None:
        self._boundaries, self._name = boundaries, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and self._boundaries.active:
            with unobserved():
                self._boundaries.see(self._name, module, output)

    def __deepcopy__(self, memo: Any) -> _Nothing:
        return _Nothing()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Nothing, ()


class _Peak(_Seen):
    """The forward hook of one layer in a step that looks at the largest magnitudes alone."""

    def __init__(self, boundaries: Boundaries, name: str, module: nn.Module) -> None:
        super().__init__(boundaries, name)
        self._keys: list[tuple[Kind, str] | None] = [
            ("activations", f"{name}[{i}]" if i else name) for i in range(_OUTPUTS)
        ]
        if isinstance(module, nn.RNNBase) and module.num_layers == 1:
            self._keys[1] = None  # the last states are among what it hands on

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and self._boundaries.active:
            with unobserved():
                self._boundaries.see_peaks(self._keys, output)


class _Called(_Seen):
    """The forward hook of a module with layers inside."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and self._boundaries.active:
            with unobserved():
                self._boundaries.see_call(self._name, output)


class _Nothing:
    """What stands in a copied model for the hook: the copy is not measured."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        pass


class _Gradient:
    """The hook of one tensor that a layer handed on."""

    def __init__(self, batch: Batch, label: str, order: OrderWatch | None, axis: int) -> None:
        self._batch, self._label, self._order, self._axis = batch, label, order, axis

    def __call__(self, gradient: Tensor) -> None:
        with unobserved():
            self._batch.add(("activation gradients", self._label), [gradient])
            if self._order is not None and not gradient.is_sparse:
                self._order.see(self._label, gradient, self._axis)


def _passes(module: nn.Module) -> bool:
    return isinstance(module, _PASSING) or type(module).__name__.endswith("Dropout")


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        children = [(n, c) for n, c in module.named_children() if c is not None]
        if not children or isinstance(module, RECURRENT) or family(module) == "attention":
            yield name, module
            return
        for n, child in children:
            yield from walk(f"{name}.{n}" if name else n, child)

    seen: set[int] = set()
    for name, module in walk("", model):
        if id(module) not in seen:
            seen.add(id(module))
            yield name, module


def _floats(output: Any) -> list[tuple[int, Tensor]]:
    """The floating-point tensors of an output, numbered in the order in which they stand."""
    if isinstance(output, Tensor):
        return [(0, output)] if output.is_floating_point() else []
    found: list[Tensor] = []
    _visit(output, found)
    return list(enumerate(found))


def _visit(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            found.append(value)
    elif isinstance(value, PackedSequence):
        _visit(value.data, found)
    elif isinstance(value, tuple | list):
        for item in value:
            _visit(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _visit(item, found)


def _rms(x: Tensor) -> Tensor:
    size: float = max(x.numel(), 1) ** 0.5
    found: Tensor = torch.linalg.vector_norm(x.detach(), dtype=torch.float32) / size
    return found


def _packed_levels(data: Tensor, sizes: Tensor) -> Tensor:
    """Root mean square by time step of packed rows: data [N, H], sizes [T] → [T]."""
    squares = data.detach().float().square().mean(1)
    time = torch.repeat_interleave(torch.arange(len(sizes), device=data.device), sizes)
    total = torch.zeros(len(sizes), device=data.device).index_add_(0, time, squares)
    return (total / sizes).sqrt()


# --- casts on the way back ------------------------------------------------------------------------------


class CastWatch:
    """Sees what the gradient of the loss loses where it goes from a wide format to float16.

    Below such a cast nothing of what underflowed is left to measure: a gradient that is zero looks as one
    that was never there.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[str, Batch]] = []
        self._handles: list[RemovableHandle] = []

    def see_loss(self, loss: Tensor) -> None:
        """The loss as it will be called `backward` on. Walks its graph; a no-op where nothing is narrow."""
        todo = [loss.grad_fn]
        known: set[Any] = set()
        while todo and len(known) < _NODES:
            node = todo.pop()
            if node is None or node in known:
                continue
            known.add(node)
            if node.name().startswith("ToCopyBackward"):
                self._handles.append(node.register_hook(self._cast))
            todo += [n for n, _ in node.next_functions]

    def _cast(self, below: tuple[Tensor, ...], above: tuple[Tensor, ...]) -> None:
        """A cast on the way back: gradients `above` it (of what the forward cast made), `below` it."""
        wide, narrow = above[0], below[0]
        if wide is None or narrow is None or narrow.dtype not in NARROW or wide.dtype in NARROW:
            return
        batch = Batch()
        with unobserved():
            batch.add("wide", [wide])
            batch.add("narrow", [narrow])
        self._batches.append((dtype_name(narrow.dtype), batch))

    def take(self) -> tuple[BackwardCast, ...]:
        """The casts seen so far. Waits for the device."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        found: list[BackwardCast] = []
        for name, batch in self._batches:
            measured = batch.take()
            if "wide" in measured and "narrow" in measured:
                wide, narrow = measured["wide"], measured["narrow"]
                lost = max(wide.live - narrow.live - narrow.non_finite, 0)
                found.append(BackwardCast(name, wide.live, lost, wide.largest, wide.quantile(0.01)))
        self._batches = []
        return tuple(found)
