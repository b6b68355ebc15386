"""The audit of a Keras model: its training, evaluation and inference steps, read as graphs."""

from __future__ import annotations

from castiron.keras.audit.api import assert_precision, audit

__all__ = ["assert_precision", "audit"]
