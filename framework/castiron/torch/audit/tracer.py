"""One step of a model, traced: forward, loss and backward, without computing where that can be."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from castiron.policy import Plan
from castiron.torch.audit.errors import translate
from castiron.torch.audit.fakes import fake_batch, fake_mode, fake_model, real_model
from castiron.torch.audit.recorder import Recorder
from castiron.torch.audit.records import Origin, Trace
from castiron.torch.audit.shapes import Shapes
from castiron.torch.precision import Precision, apply
from castiron.torch.trees import map_tensors

Loss = Callable[[Any, Any], Tensor]

_ROWS = 4
"""Rows of the batch that a real step is run on."""
_SMALL_MODEL, _FEW_FLOPS = 64 * 2**20, 200_000_000
"""Bytes of a model, and operations of a step, up to which a real step costs next to nothing."""


class Step:
    """What is traced: how a model is called, and what its loss is.

    Args:
        model: the model, or a module with a `training_step` (a LightningModule).
        batch: an argument, a tuple of arguments, or a mapping of arguments by name.
        loss: of outputs and batch; None where the model gives its loss itself, or has none.
        root: path of the submodule that the plan is about, within `model`.
        call: how the model is called with the batch; by default by what the batch is.
        shapes: glob on module paths, from `root` on → shapes of what goes in and out.
    """

    def __init__(
        self, model: nn.Module, batch: Any, loss: Loss | None = None, *, root: str = "",
        call: Callable[[nn.Module, Any], Any] | None = None, shapes: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.batch, self.loss, self.root = model, batch, loss, root
        self.shapes = dict(shapes or {})
        self._call = call

    @property
    def has_loss(self) -> bool:
        return self.loss is not None or self.is_lightning

    @property
    def is_lightning(self) -> bool:
        """Whether the model says itself what a training step is."""
        return callable(getattr(self.model, "training_step", None))

    def forward(self, model: nn.Module, batch: Any) -> Any:
        if self._call is not None:
            return self._call(model, batch)
        if isinstance(batch, Mapping):
            return model(**batch) if takes_names(model, batch) else model(batch)
        if isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields"):
            return model(*batch)
        return model(batch)


def takes_names(model: nn.Module, batch: Mapping[Any, Any]) -> bool:
    """Whether a forward has a parameter for every key of a batch."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return True
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return True
    return all(key in parameters for key in batch)


def trace(step: Step, plan: Plan, *, device: torch.device, as_is: bool = False) -> tuple[Trace, nn.Module]:
    """Trace one step on fake tensors; where that needs numbers, one real step on a few rows.

    The model, the process's random numbers and its gradients are left as they are.

    Args:
        as_is: without the plan's hooks and contexts: what runs where castiron is not there.

    Returns:
        What ran, and the copy that it ran on.
    """
    with _gradients_kept(step.model):
        fake = _Run(step, plan, device, as_is, real=False)
        traced = fake.run()
        if traced.failure is None or not _worth_a_real_step(traced.failure.error, step):
            return traced, fake.model
        real = _Run(step, plan, device, as_is, real=True)
        again = real.run()
        return again, real.model


def confirm(
    step: Step, plan: Plan, fake: Trace, *, device: torch.device, as_is: bool = False
) -> Trace | None:
    """One real step on a few rows, where that costs next to nothing; None where it does not.

    Fake tensors do not raise where some kernels do, and do not say what all of them give.
    """
    if not _has_numbers(step) or any(t.device.type != device.type for t in step.model.parameters()):
        return None
    size = batch_size(step.batch)
    share = 1.0 if size is None else min(1.0, _ROWS / max(size, 1))
    stored = sum(t.numel() * t.element_size() for t in (*step.model.parameters(), *step.model.buffers()))
    if stored > _SMALL_MODEL or share * sum(op.flops for op in fake.ops) > _FEW_FLOPS:
        return None
    with _gradients_kept(step.model):
        return _Run(step, plan, device, as_is, real=True).run()


def _worth_a_real_step(error: BaseException, step: Step) -> bool:
    """Whether numbers may help: they do not, where the error is about formats; and they must be there."""
    return translate(str(error)) is None and _has_numbers(step)


def _has_numbers(step: Step) -> bool:
    tensors = [*step.model.parameters(), *step.model.buffers(), *leaves(step.batch)]
    return not any(t.device.type == "meta" or isinstance(t, FakeTensor) for t in tensors)


@contextlib.contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    """A function that a model keeps may call the model itself, and not the copy that is traced."""
    before = [(p, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        for p, gradient in before:
            if p.grad is not gradient:
                p.grad = gradient


class _Run:
    def __init__(self, step: Step, plan: Plan, device: torch.device, as_is: bool, *, real: bool) -> None:
        self.step, self.plan, self.device, self.as_is, self.real = step, plan, device, as_is, real
        self.mode = None if real else fake_mode()
        batch = step.batch
        self.batch_size = batch_size(batch)
        self.maxima = {id(t): _maximum(t) for t in leaves(batch)}
        prefix = f"{step.root}." if step.root else ""
        formats = {} if as_is else {prefix + k: v for k, v in (plan.parameters() | plan.buffers()).items()}
        if self.mode is None:
            self.model = real_model(step.model)
            self.batch = map_tensors(self._few, batch)
        else:
            self.model = fake_model(step.model, self.mode, device, formats)
            self.batch = fake_batch(batch, self.mode, device)
        self.names = list(zip(leaves(self.batch), leaf_names(batch), leaves(batch), strict=True))
        self.root = self.model.get_submodule(step.root) if step.root else self.model

    def run(self) -> Trace:
        paths: dict[nn.Module, str] = {}
        for path, module in self.root.named_modules(remove_duplicate=False):
            paths.setdefault(module, path)
        recorder = Recorder(paths, self.device.type, keep=not self.real)
        recorder.trace.kind = "real" if self.real else "fake"
        recorder.trace.batch_size = self.batch_size if not self.real else batch_size(self.batch)
        recorder.trace.has_loss = self.step.has_loss
        precision = None if self.as_is else apply(self.root, self.plan)
        self.model.train()
        self._declare(recorder)
        hooks = self._watch_outputs(recorder)
        shapes = Shapes(self.step.shapes, recorder.trace.batch_size)
        try:
            with (
                contextlib.suppress(Exception),
                self._surroundings(),
                shapes.watching(self.root),
                recorder.recording(),
            ):
                self._step(recorder, precision)
        finally:
            recorder.trace.of_shapes = tuple(shapes.findings)
            for hook in hooks:
                hook.remove()
        return recorder.trace

    def _step(self, recorder: Recorder, precision: Precision | None) -> None:
        device_type = self.device.type
        forward = precision.forward_context(device_type) if precision else contextlib.nullcontext()
        backward = precision.backward_context(device_type) if precision else contextlib.nullcontext()
        step = self.step
        with torch.enable_grad():
            with forward:
                if step.is_lightning:
                    training_step: Any = self.model.training_step
                    loss = _loss_of(training_step(self.batch, 0))
                else:
                    outputs = step.forward(self.model, self.batch)
                    recorder.trace.results = tuple(recorder.value(t) for t in leaves(outputs))
                    recorder.phase = "loss"
                    loss = step.loss(outputs, self.batch) if step.loss is not None else _loss_of(outputs)
            if loss is not None and (step.has_loss or _gives_loss(loss)):
                recorder.trace.loss = recorder.value(loss)
                recorder.trace.has_loss = True
            recorder.phase = "backward"
            if loss is None:
                with torch._C.DisableTorchFunction():
                    loss = _stand_in(outputs)
            if loss is not None and loss.requires_grad:
                with backward:
                    loss.backward()

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        devices = [self.device] if self.device.type == "cuda" and self.real else []
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(torch.random.fork_rng(devices))
            if self.mode is not None:
                stack.enter_context(_silent("torch._subclasses.fake_tensor"))
                stack.enter_context(self.mode)
            yield

    def _declare(self, recorder: Recorder) -> None:
        for name, tensor in self.model.named_parameters(remove_duplicate=False):
            recorder.declare(tensor, Origin("parameter", name))
        for name, buffer in self.model.named_buffers(remove_duplicate=False):
            recorder.declare(buffer, Origin("buffer", name))
        for path, module in self.model.named_modules():
            for key, held in vars(module).items():
                if isinstance(held, Tensor):
                    recorder.declare(held, Origin("attribute", f"{path}.{key}" if path else key))
        for leaf, name, original in self.names:
            recorder.declare(leaf, Origin("batch", name, self.maxima.get(id(original))))

    def _watch_outputs(self, recorder: Recorder) -> list[Any]:
        """Hooks that run after castiron's own, so that they see what is really handed on."""
        hooks = []
        seen: set[nn.Module] = set()
        modules = dict(self.root.named_modules(remove_duplicate=False))
        for row in self.plan.rows:
            module = modules.get(row.path)
            if module is None or module in seen or not (row.is_layer or row.path == ""):
                continue
            seen.add(module)
            hooks.append(
                module.register_forward_hook(
                    lambda m, args, output, path=row.path: recorder.left(path, output)
                )
            )
        return hooks

    def _few(self, tensor: Tensor) -> Tensor:
        size = self.batch_size
        if size is None or tensor.dim() == 0 or tensor.shape[0] != size:
            return tensor
        return tensor[: min(size, _ROWS)]


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """What torch logs of an operation that needs numbers is no news: a real step follows."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def batch_size(batch: Any) -> int | None:
    """Length of the first axis of every tensor of the batch; None where they differ."""
    sizes = {t.shape[0] for t in leaves(batch) if t.dim() > 0}
    return sizes.pop() if len(sizes) == 1 else None


def leaves(tree: Any) -> list[Tensor]:
    """Every tensor of a batch."""
    found: list[Tensor] = []

    def look(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(look, tree)
    return found


def leaf_names(tree: Any, name: str = "") -> list[str]:
    """What each tensor of a batch is called, in the order of `leaves`."""
    if isinstance(tree, Tensor):
        return [name]
    if isinstance(tree, Mapping):
        return [n for key, item in tree.items() for n in leaf_names(item, f"{name}[{key!r}]")]
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "batch_sizes"):
        keys = getattr(tree, "_fields", range(len(tree)))
        return [n for key, item in zip(keys, tree, strict=True) for n in leaf_names(item, f"{name}[{key}]")]
    return [name] * len(leaves(tree))


def _maximum(tensor: Tensor) -> float | None:
    """Largest magnitude of integers; None of floats, and of tensors without numbers."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool:
        return None
    if tensor.device.type == "meta" or isinstance(tensor, FakeTensor) or tensor.numel() == 0:
        return None
    low, high = tensor.aminmax()
    return float(max(abs(int(low)), abs(int(high))))


def _loss_of(outputs: Any) -> Tensor | None:
    """The loss in what a training step or a model gives: a scalar, or what is called `loss`."""
    if isinstance(outputs, Tensor):
        return outputs if outputs.dim() == 0 and outputs.is_floating_point() else None
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return found if isinstance(found, Tensor) else None


def _gives_loss(loss: Tensor) -> bool:
    return loss.dim() == 0


def _stand_in(outputs: Any) -> Tensor | None:
    """Something to run backward from where there is no loss. It is no part of the audit."""
    parts = [t for t in leaves(outputs) if t.is_floating_point() and t.requires_grad]
    if not parts:
        return None
    return torch.stack([p.sum().to(torch.float32) for p in parts]).sum()
