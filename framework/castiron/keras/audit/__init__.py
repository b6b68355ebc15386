"""The audit of a Keras model: its training step and its evaluation, read as graphs."""

from __future__ import annotations

from castiron.keras.audit.api import assert_precision, audit

__all__ = ["assert_precision", "audit"]
