"""Numerical health of a training, every so many steps: for a bare loop, and what Lightning's callback
uses."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from castiron.diagnostics import Finding
from castiron.health.advice import Advisor
from castiron.health.merging import of_all_processes
from castiron.health.snapshot import ScaleHealth, Snapshot
from castiron.health.statistics import WHAT_IF
from castiron.policy import PrecisionPolicy
from castiron.torch.health.boundaries import Boundaries, CastWatch, unobserved
from castiron.torch.health.measure import Batch
from castiron.torch.health.steps import StepWatch, state_of
from castiron.torch.shares import is_shared

Dead = Mapping[str, NDArray[np.bool_]]
"""By layer: which units were silent for every row."""
Measured = tuple[Snapshot, Dead]
"""What one process saw of a step."""
_WHAT_IF_AT = 2
"""Number of the measurement that first asks what other formats would make of the values."""


class HealthMonitor:
    """Measures a training at every n-th step, and says what is wrong before it breaks.

    Make it before the model is compiled and before the first step. Between measured steps the model is as it
    was, and a step costs a comparison; what it keeps grows with the number of layers, not of parameters.

    Example:
        >>> health = HealthMonitor(model, optimizer, policy)
        >>> for batch in batches:
        ...     with health.step() as measured:
        ...         loss = loss_function(model(batch.x), batch.y)
        ...         measured.see_loss(loss)
        ...         loss.backward()
        ...         measured.before_update()  # gradients unscaled, not yet clipped
        ...         optimizer.step()
        ...     for finding in health.news():
        ...         print(finding)

    Args:
        model: whose layers are watched, under the names they have in it.
        optimizers: whose state and updates are looked at; `use` says it later.
        policy: its `health` section says how often; its scaling and updates, what advice is about.
        histograms_every: at every so many measurements, from the first on, all that layers hand on, all
            gradients and updates are measured; at the others the loss scale, and the largest magnitudes
            that layers hand on.
        what_if_every: at every so many of those, from the first on, also what changes slowly (parameters,
            the optimizer's moments), and what other formats would make of the values; None: at the third
            measurement of all, and at the second, fourth, eighth, sixteenth … of those after the first.
        on_snapshot: called with every `castiron.health.snapshot.Snapshot`.
        gather: of several processes that train together, brings what each measured to rank 0, in their
            order, and None to the others; all of them measure, and rank 0's snapshots are of all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Iterable[Optimizer] = (),
        policy: PrecisionPolicy | str = "float32",
        *,
        histograms_every: int = 4,
        what_if_every: int | None = None,
        on_snapshot: Callable[[Snapshot], None] | None = None,
        gather: Callable[[Measured], list[Measured] | None] | None = None,
    ) -> None:
        self.policy = PrecisionPolicy.model_validate(policy)
        self._model = model
        self._optimizers = (optimizers,) if isinstance(optimizers, Optimizer) else tuple(optimizers)
        self._on_snapshot = on_snapshot
        self._gather = gather
        self._histograms_every, self._what_if_every = histograms_every, what_if_every
        self._full = False
        self._all = histograms_every == 1
        self._attempts = 0
        self._boundaries = Boundaries(model)
        self._casts = CastWatch()
        self._steps = StepWatch(model, self._optimizers)
        self._advisor = Advisor(self.policy)
        self._batch = Batch()
        self._stance: contextlib.ExitStack = contextlib.ExitStack()
        self._count = 0
        self._measured = 0
        self._scaling = ScaleHealth("none")
        self._held = 0
        self._findings: list[Finding] = []
        self._kept_in: dict[str, torch.dtype] = {}
        """Format of the gradients of a layer's parameters, in which they are summed over micro-batches."""
        self._updating = False
        self.active = False
        """Whether the step at hand is measured."""
        self.last: Snapshot | None = None
        """The latest snapshot."""
        self._parameters: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for name, p in model.named_parameters():
            self._parameters.setdefault(name.rpartition(".")[0], []).append((name, p))

    def use(self, optimizers: Iterable[Optimizer]) -> None:
        """Look at these optimizers from here on: they may be made after the hooks."""
        self._optimizers = tuple(optimizers)
        self._steps = StepWatch(self._model, self._optimizers)

    # --- a step ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def step(self, number: int | None = None) -> Generator[HealthMonitor, None, None]:
        """One training step. `number` counts the steps before it; by default they are counted here."""
        self.begin(self._count if number is None else number)
        try:
            yield self
        except BaseException:
            self.discard()
            raise
        self.end()

    def begin(self, number: int) -> None:
        """A step begins; `number` steps were committed before it. Measured are the first, and every n-th."""
        self._count = number
        self._attempts += 1
        self.active = number % self.policy.health.every == 0
        if not self.active:
            return
        large, self._full = self.looks(self._measured)
        self._batch = Batch(WHAT_IF if self._full else (), peaks_only=not large)
        self._boundaries.begin(self._batch)
        self._stance = contextlib.ExitStack()
        if "torch._dynamo" in sys.modules:  # else nothing was compiled: asking would load it, in a second
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))

    def see_loss(self, loss: Tensor) -> None:
        """The forward pass is over; `backward` will be called on this loss (scaled, if it is)."""
        if self.active and self._boundaries.active:
            self._boundaries.end()
            self._stance.close()
            if self.policy.compute == "float16" or self._narrow():
                self._casts.see_loss(loss)

    def before_update(self, scaling: ScaleHealth | None = None) -> None:
        """Gradients are complete and unscaled; no optimizer has stepped."""
        if scaling is not None:
            self._scaling = scaling
        if not self.active or self._updating:
            return
        self._close_forward()
        self._updating = True
        if not self._batch.peaks_only:
            with unobserved():
                for layer, parameters in self._parameters.items():
                    gradients = _by_dtype(p.grad for _, p in parameters if p.grad is not None)
                    self._batch.add(("gradients", layer), gradients)
                    if gradients:
                        self._kept_in[layer] = gradients[0].dtype
                self._steps.before()

    def end(self, *, held: int | None = None) -> Snapshot | None:
        """The step was committed. → its snapshot, where it was measured. Waits for the device."""
        self._count += 1
        if held is not None:
            self._held = held
        if not self.active:
            return None
        self._close_forward()
        with unobserved():
            return self._measure()

    def _measure(self) -> Snapshot:
        peaks = self._batch.take_peaks()
        if self._batch.peaks_only:
            snapshot = Snapshot(
                self._count, peaks=peaks, casts=self._casts.take(), scaling=self._scaling, held=self._held
            )
        else:
            snapshot = self._everything(peaks)
        snapshot = self._of_all(snapshot, self._boundaries.take_dead())
        self.active = self._updating = False
        self._measured += 1
        self.last = snapshot
        self._findings += self._advisor.look(snapshot)
        self._look_at_scale()
        if self._on_snapshot is not None:
            self._on_snapshot(snapshot)
        return snapshot

    def discard(self, *, held: int | None = None, scaling: ScaleHealth | None = None) -> None:
        """The step was held, or raised: nothing of it is looked at but the loss scale."""
        if held is not None:
            self._held = held
        if scaling is not None:
            self._scaling = scaling
        if self.active:
            self._look_at_scale()
            self._close_forward()
            self._steps.discard()
            self._casts.take()
            self._batch.take()
            self._batch.take_peaks()
            self._boundaries.take_levels()
            self._boundaries.take_dead()
            self._boundaries.order.discard()
            self.active = self._updating = False

    def news(self) -> list[Finding]:
        """What there is to say since the last call."""
        found, self._findings = self._findings, []
        return found

    def remove(self) -> None:
        """Take the hooks off the model."""
        self.discard()
        self._boundaries.end()

    # --- details ---------------------------------------------------------------------------------------

    def _everything(self, peaks: dict[Any, tuple[str, float]]) -> Snapshot:
        updates, moments, changes = self._steps.after() if self._updating else ({}, {}, {})
        rest = Batch()
        for layer, parameters in self._parameters.items() if self._full or self._all else ():
            rest.formats = self._batch.formats
            rest.add(("parameters", layer), _by_dtype([p for _, p in parameters]))
            rest.formats = ()
            rest.add(("first moments", layer), self._state(parameters, "exp_avg"))
            rest.add(("second moments", layer), self._state(parameters, "exp_avg_sq"))
        for layer, change in changes.items():
            rest.add(("updates", layer), [change.float()])
        return Snapshot(
            step=self._count,
            groups={**self._batch.take(), **rest.take()},
            peaks=peaks,
            updates=updates,
            moments=moments,
            levels=self._boundaries.take_levels(),
            noise=self._boundaries.order.take(self._kept_in),
            casts=self._casts.take(),
            scaling=self._scaling,
            held=self._held,
            full=self._full,
        )

    def _of_all(self, own: Snapshot, dead: Dead) -> Snapshot:
        """What all processes measured; on others than rank 0, what this one did."""
        found = self._gather((own, dead)) if self._gather is not None else None
        if found is not None:
            shared = any(is_shared(p) for ps in self._parameters.values() for _, p in ps)
            own = of_all_processes([snapshot for snapshot, _ in found], shared=shared)
            silent = [d for _, d in found]
            dead = {name: np.logical_and.reduce([d[name] for d in silent if name in d]) for name in dead}
        return replace(own, dead={name: (int(units.sum()), units.size) for name, units in dead.items()})

    def looks(self, number: int) -> tuple[bool, bool]:
        """Whether a measurement is of everything, and whether it also asks what other formats would make of
        the values. The first measurements of all do not ask: a short run is not to pay for it."""
        every = self._histograms_every
        large = number % every == 0
        if self._what_if_every is not None:
            return large, large and number // every % self._what_if_every == 0
        early = number == _WHAT_IF_AT
        count = number // every
        return large or early, early or (large and count > 1 and count & (count - 1) == 0)

    def _look_at_scale(self) -> None:
        self._findings += self._advisor.look_at_scale(self._count, self._attempts, self._scaling)

    def _close_forward(self) -> None:
        self._boundaries.end()
        self._stance.close()

    def _narrow(self) -> bool:
        return any(rule.compute == "float16" for rule in self.policy.layers.values()) or (
            self.policy.param == "float16"
        )

    def _state(self, parameters: list[tuple[str, nn.Parameter]], key: str) -> list[Tensor]:
        found: list[Tensor] = []
        for _, parameter in parameters:
            for optimizer in self._optimizers:
                state: dict[str, Any] = state_of(optimizer, parameter)
                if isinstance(state.get(key), Tensor):
                    found.append(state[key])
        return _by_dtype(found)


def _by_dtype(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors of the format that most elements have: a group is of one format."""
    formats: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            formats.setdefault(tensor.dtype, []).append(tensor)
    return max(formats.values(), key=lambda ts: sum(t.numel() for t in ts), default=[])
