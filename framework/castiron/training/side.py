"""One side of a comparison, as plain data from a wing: a training under one policy, and what layers held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from castiron.diagnostics import ConfigError, Finding, Place, finding
from castiron.training.backend import Backend, Job

What = Literal["activations", "activation gradients", "gradients"]
WHATS: tuple[What, ...] = ("activations", "activation gradients", "gradients")
"""What layers hand on; its gradients; the gradients of parameters, by the parameter's name."""

SAMPLE = 1 << 16
"""Elements of a tensor that are kept, evenly spread over it; all of a smaller one."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor, or an even sample of it."""

    values: NDArray[Any]
    """[n], float64 or float32: holds the values of `format` exactly."""
    format: str
    """What the tensor was stored in."""


@dataclass(frozen=True, slots=True)
class Product:
    """Operands of a layer that is one matrix product, and what its error is to be held against."""

    n: int
    """Products in a sum: the inner length."""
    x: Seen
    weight: Seen
    condition: float
    """``‖ |x||W|ᵀ + |b| ‖ / ‖y‖``: 1 without cancellation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One look at a model: forward and backward on a fixed batch, nothing learnt from it."""

    step: int
    seen: Mapping[What, Mapping[str, Seen]]
    """Activations in the order in which layers ran, gradients in the order in which they come."""
    products: Mapping[str, Product] = field(default_factory=dict)
    saved_bytes: int = 0
    """Kept from the forward for the backward pass, parameters left out."""
    random: tuple[str, ...] = ()
    """Layers that drew random numbers although they were told not to."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The incident that ended a training."""

    finding: Finding
    step: int
    """Optimizer steps committed before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a wing brings back of one side."""

    losses: tuple[float, ...]
    """Of each step."""
    step_ms: float
    """Median time of a step, without the first ones."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """On the validation split, at the end; empty where there is none, or an incident came before."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes: parameters, optimizer state, kept for backward; on a GPU its peak."""
    probes: tuple[Probe, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    """Path of each layer → its class."""
    stopped: Stop | None = None
    batches: tuple[str, ...] = ()
    """Digest of the row numbers of each step's batch."""


class Comparer(Protocol):
    """What `castiron compare` asks of a wing."""

    def side(self, job: Job, at: Sequence[int]) -> Trained:
        """Train as the job says, keep nothing; look at the model after these steps (0: before the first)."""


def comparer(backend: Backend) -> Comparer:
    """The wing as one that can compare.

    Raises:
        ConfigError: it cannot.
    """
    if not hasattr(backend, "side"):
        raise ConfigError(
            finding(
                "X812",
                f"The backend '{backend.name}' does not compare policies yet.",
                place=Place(key="backend"),
                remedy="Use backend: torch for this.",
            )
        )
    return cast(Comparer, backend)


def sampled(values: NDArray[Any]) -> NDArray[Any]:
    """At most `SAMPLE` elements [n], evenly spread; the same ones of every tensor of this size."""
    flat = values.reshape(-1)
    if flat.size <= SAMPLE:
        return flat
    return flat[np.linspace(0, flat.size - 1, SAMPLE).astype(np.int64)]
