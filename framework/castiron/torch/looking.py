"""A look at a model: what each layer hands on and the gradients, on one batch, with nothing changed by it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from castiron.torch.activations import _CONTAINERS
from castiron.torch.dtypes import dtype_name
from castiron.torch.trees import map_tensors
from castiron.training.side import SAMPLE, Probe, Product, Seen, What

_CALLS = 8
"""Calls of one module that are kept."""
_FLOPS = 1 << 31
"""Multiplications that the condition of a product may cost."""
_ROUNDS = 4

Forward = Callable[[], Tensor]
"""Runs the model on the batch in its own precision context; gives the loss."""


def look(
    model: nn.Module,
    forward: Forward,
    backward_context: Callable[[], contextlib.AbstractContextManager[None]],
    *,
    step: int,
    scale: float = 1.0,
) -> Probe:
    """Forward and backward in train mode, but layers that draw random numbers are told not to.

    Buffers, random generators, modes and `.grad` are as before afterwards. Gradients are those of the loss
    itself; where they overflow under `scale`, it is lowered until they do not.
    """
    with _undone(model):
        random = _silence(model, forward)
        recorder = _Recorder(model)
        saved = _Saved(model)
        try:
            with saved.hooks():
                loss = forward()
        finally:
            recorder.remove()
        layers = {n: t for n, t in recorder.live.items() if t.requires_grad}
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        wanted = [*layers.values(), *parameters.values()]
        while True:
            with backward_context():
                found = torch.autograd.grad(loss * scale, wanted, retain_graph=True, allow_unused=True)
            if scale <= 1 or all(g is None or bool(torch.isfinite(g).all()) for g in found):
                break
            scale = max(scale / 16, 1.0)
        gradients: dict[str, Tensor | None] = dict(zip([*layers, *parameters], found, strict=True))
        del loss, wanted, found
    by_what: dict[What, dict[str, Seen]] = {
        "activations": recorder.seen,
        "activation gradients": _gradients(gradients, list(layers), scale),
        "gradients": _gradients(gradients, list(parameters), scale),
    }
    return Probe(
        step=step, seen=by_what, products=recorder.products, saved_bytes=saved.bytes, random=tuple(random)
    )


class _Recorder:
    """Keeps what every layer hands on, under its path; `path[1]` is the second of several tensors."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: dict[str, Seen] = {}
        self.live: dict[str, Tensor] = {}
        self.products: dict[str, Product] = {}
        self._known: list[Tensor] = []
        self._handles = [
            module.register_forward_hook(self._hook(path))
            for path, module in model.named_modules()
            if not isinstance(module, _CONTAINERS)
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        calls = 0

        def note(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > _CALLS:
                return
            tensors: list[Tensor] = []
            map_tensors(lambda t: _kept(tensors, t), output)
            called = f"{path} (call {calls})" if calls > 1 else path
            for i, tensor in enumerate(tensors):
                # A module that hands on what an inner one did is that one.
                if tensor.is_floating_point() and not any(tensor is t for t in self._known):
                    name = f"{called}[{i}]" if i else called
                    self._known.append(tensor)
                    self.live[name] = tensor
                    self.seen[name] = seen(tensor)
            if isinstance(module, nn.Linear) and called in self.seen and args:
                self.products[called] = _product(module, args[0], tensors[0])

        return note


def seen(tensor: Tensor) -> Seen:
    """A tensor's values, or an even sample of them, on the CPU."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() > SAMPLE:
        index = torch.linspace(0, flat.numel() - 1, SAMPLE, dtype=torch.float64).long()
        flat = flat[index.to(flat.device)]
    wide = torch.float64 if flat.dtype == torch.float64 else torch.float32
    return Seen(flat.to("cpu", wide, copy=True).numpy(), dtype_name(tensor.dtype))


def _product(module: nn.Linear, x: Tensor, y: Tensor) -> Product:
    condition = 1.0
    with torch.no_grad(), torch.autocast(y.device.type, enabled=False):
        if x.numel() * module.out_features <= _FLOPS:
            wide = x.double().abs() @ module.weight.double().abs().T
            if module.bias is not None:
                wide = wide + module.bias.double().abs()
            norm = float(y.double().norm())
            condition = float(wide.norm()) / norm if norm else 1.0
    return Product(module.in_features, seen(x), seen(module.weight), condition)


def _gradients(found: dict[str, Tensor | None], names: list[str], scale: float) -> dict[str, Seen]:
    """In the order of the backward pass, the scale taken out."""
    kept: dict[str, Seen] = {}
    for name in reversed(names):
        gradient = found[name]
        if gradient is not None:
            stored = seen(gradient)
            kept[name] = Seen(stored.values / stored.values.dtype.type(scale), stored.format)
    return kept


def _kept(tensors: list[Tensor], tensor: Tensor) -> Tensor:
    tensors.append(tensor)
    return tensor


class _Saved:
    """Counts what autograd keeps for the backward pass: each storage once, parameters left out."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {t.untyped_storage().data_ptr() for t in model.parameters()}
        self._storages: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        return sum(self._storages.values())

    def hooks(self) -> contextlib.AbstractContextManager[None]:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t)

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.layout is torch.strided:  # oneDNN's own layouts have no storage to ask for
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._parameters:
                self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextlib.contextmanager
def _undone(model: nn.Module) -> Iterator[None]:
    """Modes, dropout rates of recurrent layers, buffers and random generators are put back."""
    modes = [(m, m.training, getattr(m, "dropout", None)) for m in model.modules()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            torch.manual_seed(0)
            yield
        finally:
            for module, training, dropout in modes:
                module.training = training
                if isinstance(module, nn.RNNBase):
                    module.dropout = dropout or 0.0
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _silence(model: nn.Module, forward: Forward) -> list[str]:
    """Take layers that draw random numbers out of train mode, innermost first. → those that still draw.

    Two formats would not draw the same numbers on every device, and the difference of masks is no error of
    arithmetic.
    """
    drawing: list[str] = []
    for _ in range(_ROUNDS):
        drawing = _drawing(model, forward)
        if not drawing:
            break
        for path in drawing:
            module = model.get_submodule(path)
            if isinstance(module, nn.RNNBase):  # cuDNN has no backward pass outside of train mode
                module.dropout = 0.0
            else:
                module.training = False
    return drawing


def _drawing(model: nn.Module, forward: Forward) -> list[str]:
    """Modules within which random numbers were drawn, and in no module inside them."""
    found: list[str] = []
    entered: list[tuple[list[Tensor], int]] = []

    def enter(module: nn.Module, args: Any) -> None:
        entered.append((_generators(), len(found)))

    def leave(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def check(module: nn.Module, args: Any, output: Any) -> None:
            before, known = entered.pop()
            moved = any(not torch.equal(a, b) for a, b in zip(before, _generators(), strict=True))
            if moved and len(found) == known:
                found.append(path)

        return check

    handles = []
    for path, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave(path))]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(found))


def _generators() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states
