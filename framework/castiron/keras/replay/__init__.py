"""Replay: a held step run again, eagerly and under instrumentation, until it is known what to blame."""

from castiron.keras.replay.attribution import attribute
from castiron.keras.replay.step import ReplayStep

__all__ = ["ReplayStep", "attribute"]
