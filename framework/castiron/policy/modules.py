"""A model as plain data: which layers it has, of what kind, and what they store. Filled in by a wing."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Family = Literal[
    "matmul", "conv", "lstm", "gru", "rnn", "attention", "softmax", "normalization", "embedding",
    "elementwise",
]  # fmt: skip
"""Kinds of operation whose support and cost differ from format to format."""

FAMILIES: tuple[Family, ...] = (
    "matmul", "conv", "lstm", "gru", "rnn", "attention", "softmax", "normalization", "embedding",
    "elementwise",
)  # fmt: skip


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorInfo(_Record):
    """A parameter or buffer, by its full name in the model; `same_as` names the one it is tied to."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    trainable: bool = False
    same_as: str | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        n = 1
        for extent in self.shape:
            n *= extent
        return n


class LayerInfo(_Record):
    """A module of the model and what it holds itself (not what its children hold)."""

    path: str
    """Dotted path; the model itself is the empty string."""
    type: str
    """Class name."""
    bases: tuple[str, ...] = ()
    """Class names it inherits from, nearest first, the framework's base class left out."""
    family: Family | None = None
    parameters: tuple[TensorInfo, ...] = ()
    buffers: tuple[TensorInfo, ...] = ()
