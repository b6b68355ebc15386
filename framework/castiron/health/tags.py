"""TensorBoard tags: the one place that names them, with the sentence each card shows.

TensorBoard groups cards by what stands before the first slash: *Training*, *Precision*, *Health*,
*Incidents*, and titles a card with what stands behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Group = Literal["Training", "Precision", "Health", "Incidents"]
GROUPS: tuple[Group, ...] = ("Training", "Precision", "Health", "Incidents")

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag and its description (Markdown), which TensorBoard shows beside the card's title."""

    name: str
    description: str = ""

    def __str__(self) -> str:
        return self.name


def _tag(group: Group, *parts: str, says: str) -> Tag:
    return Tag("/".join((group, *parts)), says)


# --- Training ------------------------------------------------------------------------------------------


def loss(split: Split) -> Tag:
    return metric("loss", split)


def metric(name: str, split: Split) -> Tag:
    """A metric of a split; `loss` is one of them."""
    over = "mean since the last log" if split == "train" else f"over the whole {split} split"
    return _tag("Training", name, split, says=f"{name}, {over}.")


def logged(name: str) -> Tag:
    """A scalar that a user's own module logs, under the name it chose."""
    return _tag("Training", name, says=f"{name}, as the module logs it.")


def learning_rate(group: str | None = None) -> Tag:
    """Learning rate of the optimizer, or of one of its parameter groups."""
    return _tag("Training", "learning rate", *([group] if group else []), says="Learning rate of the step.")


def throughput() -> Tag:
    return _tag(
        "Training", "items per second", says="Rows of the data set trained on per second, this process."
    )


def epoch() -> Tag:
    return _tag("Training", "epoch", says="Epochs done, with the fraction of the one running.")


def gradient_norm() -> Tag:
    return _tag("Training", "gradient norm", says="L2 norm of all gradients, unscaled and before clipping.")


def data_report(split: Split) -> Tag:
    return _tag("Training", "data", split, says="What was read, and what every cast did to it.")


def config() -> Tag:
    return _tag("Training", "config", says="The resolved config: every default written out.")


# --- Precision -----------------------------------------------------------------------------------------


def policy() -> Tag:
    return _tag("Precision", "policy", says="What was declared.")


def plan() -> Tag:
    return _tag("Precision", "plan", says="The policy resolved against this model: a row per layer.")


def census() -> Tag:
    return _tag("Precision", "census", says="What the layers really store, format by format.")


def loss_scale() -> Tag:
    return _tag("Precision", "loss scale", says="Factor the loss was multiplied by before backward.")


def stored_bytes(kind: str, dtype: str) -> Tag:
    """Bytes of a kind of tensors (`parameters`, `buffers`, `optimizer state`) stored in a format."""
    return _tag("Precision", f"{kind} bytes", dtype, says=f"Bytes of {kind} stored in {dtype}.")


def computing_layers(compute: str) -> Tag:
    return _tag(
        "Precision", "layers by compute format", compute, says=f"Layers that compute in {compute}, by plan."
    )


# --- Health --------------------------------------------------------------------------------------------


def headroom(kind: str) -> Tag:
    """Least headroom over all layers."""
    return _tag(
        "Health",
        "headroom",
        kind,
        says=f"Binades from the largest of all {kind} to the largest number of their format, in the layer "
        "that has least. Below 2 a value that is four times as large overflows; below 0 one has.",
    )


def subnormal(kind: str) -> Tag:
    """Largest share of subnormal elements over all layers."""
    return _tag(
        "Health",
        "subnormal",
        kind,
        says=f"Share of the {kind} (zeros left out) that are subnormal in their format, in the layer "
        "that has most. They are stored with fewer bits, and what is smaller is lost.",
    )


def what_if(fate: str, format: str, kind: str) -> Tag:
    """Share that would overflow or underflow, in the layer that has most."""
    return _tag(
        "Health",
        f"what if {fate}",
        f"{format}, {kind}",
        says=f"Share of the {kind} that would {fate} in {format}, in the layer that has most.",
    )


def lost_updates(layer: str) -> Tag:
    return _layer(
        "lost updates", layer, "Share of the updates that round back to the weight they were added to."
    )


def update_ratio(layer: str) -> Tag:
    return _layer("update to weight", layer, "L2 norm of the update over that of the weights; 1e-3 is usual.")


def gradient_rms(layer: str) -> Tag:
    return _layer("gradient rms", layer, "Root mean square of the gradients, unscaled and before clipping.")


def growth(layer: str) -> Tag:
    return _layer(
        "growth per time step", layer, "Factor by which the state grows from time step to time step."
    )


def dead_units(layer: str) -> Tag:
    return _layer("dead units", layer, "Share of units that are zero for every row of the batch.")


def accumulation_noise(layer: str) -> Tag:
    return _layer(
        "accumulation noise",
        layer,
        "How far two orders of summing the layer's gradient from 8 micro-batches lie apart, relative to it, "
        "in the format in which gradients are kept. Above 1e-2, keep them in a wider one.",
    )


def exponents(kind: str) -> Tag:
    return _tag(
        "Health",
        "exponents",
        kind,
        says=f"Binary exponents of all {kind}: a bar at -10 counts magnitudes from 2^-10 to 2^-9. float16 "
        "holds -24 to 15, bfloat16 and float32 -126 to 127, float8_e4m3fn -9 to 8, float8_e5m2 -16 to 15.",
    )


def figure(name: str, says: str) -> Tag:
    return _tag("Health", name, says=says)


def difference(kind: str, layer: str) -> Tag:
    """How far a layer lies from that of the widest policy (`castiron compare`)."""
    return _tag(
        "Health",
        f"difference of {kind}",
        layer or "(model)",
        says="L2 norm of the difference from the widest policy, relative to its own; on the same batch, each "
        "with its own weights of that step.",
    )


def compared() -> Tag:
    return _tag("Health", "compared", says="Policies side by side, and where each parts from the widest.")


def advice() -> Tag:
    return _tag("Health", "advice", says="What the ranges foretell, and what to do about it.")


def _layer(name: str, layer: str, says: str) -> Tag:
    return _tag("Health", name, layer or "(model)", says=says)


# --- Incidents -----------------------------------------------------------------------------------------


def held_steps() -> Tag:
    return _tag(
        "Incidents", "held steps", says="Steps so far that were held: none of their effects was kept."
    )


def incident() -> Tag:
    """What happened in a held step, at that step."""
    return _tag("Incidents", "incident", says="A held step: what went wrong, where, and what to do about it.")


def findings() -> Tag:
    return _tag("Incidents", "findings", says="Warnings and errors of the run, with their remedies.")
