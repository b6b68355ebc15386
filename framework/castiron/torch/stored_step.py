"""A held step, read from its folder: a model of the same kind is put into its state, on any machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from castiron.torch.incident_tensors import DamagedTensors, LeftOut, set_random_state, unpack
from castiron.torch.replay.step import ReplayStep
from castiron.training.held import Verdict, located
from castiron.training.incident import Attribution
from castiron.training.incident_folder import BATCH, BUFFERS, OPTIMIZER, PARAMETERS, RNG, IncidentFolder


class StoredStep:
    """The tensors of an incident's folder, to put into a model of the same kind."""

    def __init__(self, folder: IncidentFolder, device: torch.device | str = "cpu") -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.notes: list[str] = []
        """How what is here differs from the step."""
        self._of = str(folder.facts.get("device", "cpu"))
        if self._of != self.device.type:
            self.notes.append(
                f"The step ran on {self._of}, its replay runs on {self.device.type}: kernels and random "
                "numbers are others."
            )
        was = folder.incident.versions.get("torch", torch.__version__)
        if was != torch.__version__:
            self.notes.append(f"The step ran with torch {was}, its replay runs with {torch.__version__}.")

    def located(self, found: Attribution) -> Attribution:
        """An attribution whose rows have the files and lines that the folder knows."""
        origins = self.folder.facts.get("origins", {})
        known = [r if r.row is None else located(r, lambda n: str(origins[str(n)])) if str(r.row) in origins
                 else r for r in found.rows]  # fmt: skip
        return found.model_copy(update={"rows": tuple(known)})

    @property
    def verdict(self) -> Verdict:
        """What the guard saw."""
        told = self.folder.facts.get("verdict", {})
        try:
            seen = {str(what): tuple(map(str, names)) for what, names in told.get("seen", {}).items()}
            return Verdict(bool(told.get("bad", True)), seen, tuple(map(int, told.get("micro_batches", ()))))
        except (AttributeError, TypeError, ValueError):
            raise self.folder.damaged("state.json", "its 'verdict' is none") from None

    def number(self, name: str, default: float) -> float:
        """A number among the facts.

        Raises:
            CastironError: it is none (N513).
        """
        value = self.folder.facts.get(name)
        try:
            return default if value is None else float(value)
        except (TypeError, ValueError):
            raise self.folder.damaged("state.json", f"its '{name}' is no number") from None

    def batches(self) -> list[Any]:
        """The micro-batches, on the device."""
        batches = self._tree(BATCH)
        if odd := next(_left_out(batches), None):
            raise self.folder.not_replayable(
                "The batch held something that could not be stored.",
                expected="tensors, arrays, numbers, text, and mappings and sequences of them",
                received=odd.type,
            )
        return list(batches)

    @torch.no_grad()
    def put_parameters(self, root: nn.Module, checkpoint: Mapping[str, Tensor] | None = None) -> None:
        """Give a model the parameters of before the step, in the formats that it has.

        Args:
            root: the model.
            checkpoint: name → tensor, where the folder only refers to a checkpoint.

        Raises:
            CastironError: there are none in the folder, or they are another model's (N515).
        """
        own = dict(root.named_parameters())
        if checkpoint is None:
            stored = self._tree(PARAMETERS)
        else:  # which has buffers, too
            stored = {name: value for name, value in checkpoint.items() if name in own}
        self._fit("parameter", own, stored)
        for name, parameter in own.items():
            parameter.copy_(stored[name])
            if checkpoint is None:
                parameter.requires_grad_(stored[name].requires_grad)
        resting = set(self.folder.facts.get("not_training", ()))
        for name, module in root.named_modules():
            module.training = name not in resting

    def restore(self, root: nn.Module) -> Callable[[], None]:
        """What puts buffers and random generators to what they were before the step."""
        stored = self._tree(BUFFERS)
        self._fit("buffer", dict(root.named_buffers()), stored)
        generators = self._tree(RNG, torch.device("cpu"))
        if self.device.type != "cuda":
            generators = {"cpu": generators["cpu"]}

        @torch.no_grad()
        def put() -> None:
            for name, buffer in root.named_buffers():
                buffer.copy_(stored[name])
            set_random_state(generators)

        put()
        return put

    def put_optimizers(self, root: nn.Module, optimizers: Sequence[Optimizer]) -> bool:
        """Give optimizers the state of before the step. → whether there was one that fits."""
        if not self.folder.has(OPTIMIZER):
            return False
        stored = self._tree(OPTIMIZER)
        if len(stored) != len(optimizers):
            return False
        own = dict(root.named_parameters())
        try:
            for optimizer, state in zip(optimizers, stored, strict=True):
                optimizer.load_state_dict(_renumbered(state, optimizer, own))
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError):
            return False
        return True

    def _tree(self, name: str, device: torch.device | None = None) -> Any:
        path = self.folder.file(name)
        structures = self.folder.facts.get("structures")
        if not isinstance(structures, Mapping) or name not in structures:
            raise self.folder.damaged("state.json", f"it says nothing of '{name}'")
        try:
            return unpack(path, structures[name], device or self.device, self._of)
        except DamagedTensors as e:
            raise self.folder.damaged(name, str(e)) from None

    def _fit(self, kind: str, own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
        for name in (*own, *stored):
            here, there = own.get(name), stored.get(name)
            if isinstance(here, Tensor) and isinstance(there, Tensor) and here.shape == there.shape:
                continue
            if isinstance(there, LeftOut):
                raise self.folder.not_replayable(f"The {kind} '{name}' was not stored: it is {there.type}.")
            expected, received = (
                f"{kind} '{name}' {_shape(t)}" if isinstance(t, Tensor) else f"no {kind} '{name}'"
                for t in (there, here)
            )
            raise self.folder.not_replayable(
                "The model is not the one that the step was taken with.",
                "Make the model as it was then: the same code, and the settings in config.yaml.",
                expected=expected,
                received=received,
            )


def is_finite_step(
    step: ReplayStep, *, before_update: Callable[[], None] = lambda: None, update: bool = False
) -> bool:
    """Whether losses, gradients and buffers of a step are finite; and with `update` also the parameters that
    the optimizers leave. Parameters are changed then: use a model that is made for it.
    """
    buffers = {n for n, b in step.root.named_buffers() if b.is_floating_point() and b.isfinite().all()}
    step.restore()
    for parameter in step.root.parameters():
        parameter.grad = None
    for i, batch in enumerate(step.batches):
        loss = step.run(batch, i)
        if loss is not None and not bool(loss.isfinite().all()):
            return False
    gradients = [p.grad for p in step.root.parameters() if p.grad is not None]
    after = [*gradients, *(b for n, b in step.root.named_buffers() if n in buffers)]
    if not _all_finite(after):
        return False
    if update:
        for gradient in gradients:
            gradient.mul_(1 / step.scale)
        before_update()
        for optimizer in step.optimizers:
            optimizer.step()
        return _all_finite([p.detach() for p in step.root.parameters()])
    return True


def _renumbered(stored: Mapping[str, Any], optimizer: Optimizer, own: Mapping[str, Tensor]) -> dict[str, Any]:
    names = {id(p): n for n, p in own.items()}
    here = [names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]
    if here != stored["names"]:
        raise ValueError("the optimizer has other parameters")
    state: dict[str, Any] = stored["state"]
    return state


def _left_out(tree: Any) -> Any:
    if isinstance(tree, LeftOut):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _left_out(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _left_out(value)


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool((t.coalesce().values() if t.is_sparse else t).isfinite().all()) for t in tensors)


def _shape(tensor: Tensor) -> str:
    return f"of shape [{', '.join(str(n) for n in tensor.shape)}]"
