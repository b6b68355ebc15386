"""The decision of a step: is everything finite that must be?

One verdict for a whole optimizer step, from each micro-batch's loss, all gradients (after unscaling, before
clipping: clipping by a norm that is not finite destroys the evidence), buffers, and what else the policy
watches. On a CPU, where looking waits for nothing, the host asks at once; elsewhere the answer stays on the
device (`flag`) until somebody asks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from castiron.policy.sections import GuardTarget
from castiron.torch.activations import ActivationWatch
from castiron.torch.finite import any_of, look, values_of
from castiron.training.held import Verdict

UPDATED: frozenset[GuardTarget] = frozenset({"parameters", "optimizer"})
"""What an optimizer's step changes: looked at after it, such a step can still be undone."""
COMPUTED: frozenset[GuardTarget] = frozenset({"loss", "gradients", "buffers", "activations"})
"""What is known of a step before its optimizer acts."""


class StepGuard:
    """Collects what a step shows, and judges it once.

    Per step: `begin()`, `see_loss(loss)` for each micro-batch, `see_gradients()` when they are complete and
    unscaled, then `verdict()`. Nothing of a step is kept after the next `begin()`.

    Where activations are watched, make it before the first run of a compiled model: later hooks are never
    called there.

    Args:
        module: whose parameters and buffers are watched, under the names they have in it.
        optimizers: whose state is watched where the policy says so.
        watch: a policy's `guard.watch`.
    """

    def __init__(
        self, module: nn.Module, watch: Sequence[GuardTarget], optimizers: Sequence[Optimizer] = ()
    ) -> None:
        self._watch = frozenset(watch)
        self._optimizers = tuple(optimizers)
        self._parameters = dict(module.named_parameters())
        # A buffer that is not finite from the start is so on purpose: a mask of -inf.
        self._buffers = {
            n: b for n, b in module.named_buffers() if b.is_floating_point() and b.isfinite().all()
        }
        self._activations = ActivationWatch(module) if "activations" in self._watch else None
        self._losses: list[Tensor] = []
        self._gradients_seen = False
        self._gradients_good = False

    @property
    def watch(self) -> frozenset[GuardTarget]:
        """What is watched."""
        return self._watch

    def begin(self) -> None:
        """A new step."""
        self._losses.clear()
        self._gradients_seen = self._gradients_good = False
        if self._activations is not None:
            self._activations.begin()

    def end(self) -> None:
        """The step is over: what the model computes until the next `begin` is not watched."""
        if self._activations is not None:
            self._activations.end()

    def release(self) -> None:
        """Take the hooks off the module, where there are any."""
        if self._activations is not None:
            self._activations.remove()

    def see_loss(self, loss: Tensor) -> None:
        """The loss of one more micro-batch, before it is scaled."""
        self._losses.append(loss.detach())

    def see_gradients(self, norm: Tensor | None = None) -> None:
        """All gradients are there, unscaled and not clipped.

        Args:
            norm: that over all of them (`clipping.gradient_norm`), where it was taken already and lies on a
                CPU: where it is finite so is each of them, and they are not read again.
        """
        self._gradients_seen = True
        self._gradients_good = norm is not None and norm.is_cpu and math.isfinite(norm.item())

    def flag(self, targets: Collection[GuardTarget] | None = None) -> Tensor:
        """1.0 where the step is bad, else 0.0: float32, 0-dim, on the device. Waits for nothing.

        Args:
            targets: only these of what is watched; None: all.
        """
        bad, flags = self._look(targets)
        return torch.ones(()) if bad else any_of(flags)

    def verdict(self, targets: Collection[GuardTarget] | None = None) -> Verdict:
        """The verdict, with names where it is bad. Waits for the device.

        Args:
            targets: only these of what is watched; None: all.
        """
        watched = self._activations is not None and (targets is None or "activations" in targets)
        bad, flags = self._look(targets)
        if not bad and not (flags and any_of(flags).item()):
            if watched and self._activations is not None:
                self._activations.learn()
            return Verdict(False)
        seen: dict[str, tuple[str, ...]] = {}
        for what, tensors in self._named(targets).items():
            if names := tuple(name for name, t in tensors.items() if not values_of(t).isfinite().all()):
                seen[what] = names
        if watched and self._activations is not None:
            if not seen:
                self._activations.learn()
            if names := self._activations.bad():
                seen["activations"] = names
        if not seen:
            return Verdict(False)
        micro = tuple(i for i, loss in enumerate(self._losses) if not loss.isfinite().all())
        return Verdict(True, seen, micro)

    def _look(self, targets: Collection[GuardTarget] | None) -> tuple[bool, list[Tensor]]:
        named = self._named(targets)
        bad, flags = look([t for tensors in named.values() for t in tensors.values()])
        if self._activations is not None and (targets is None or "activations" in targets):
            flags.append(self._activations.flag())
        return bad, flags

    def _named(self, targets: Collection[GuardTarget] | None = None) -> dict[str, dict[str, Tensor]]:
        watch = self._watch if targets is None else self._watch.intersection(targets)
        found: dict[str, dict[str, Tensor]] = {}
        if "loss" in watch:
            found["loss"] = {f"micro-batch {i}": loss for i, loss in enumerate(self._losses)}
        if "gradients" in watch and self._gradients_seen and not self._gradients_good:
            found["gradients"] = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
        if "buffers" in watch:
            found["buffers"] = self._buffers
        if "parameters" in watch:
            found["parameters"] = dict(self._parameters)
        if "optimizer" in watch:
            found["optimizer"] = self._states()
        return found

    def _states(self) -> dict[str, Tensor]:
        names: dict[Tensor, str] = {p: n for n, p in self._parameters.items()}
        return {
            f"{key} of {names.get(p, 'a parameter')}": value
            for optimizer in self._optimizers
            for p, state in optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim()
        }
