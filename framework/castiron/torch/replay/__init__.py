"""Replay of a bad step under instrumentation: what went wrong first, where, and because of which rows."""

from castiron.torch.replay.attribution import attribute
from castiron.torch.replay.step import ReplayStep

__all__ = ["ReplayStep", "attribute"]
