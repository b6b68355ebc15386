"""Measure: TensorBoard's tags, layout and event files; the dtype census."""

from castiron.health.census import Census, Count, LayerCensus, census
from castiron.health.layout import layout
from castiron.health.tags import GROUPS, Tag
from castiron.health.writer import EventWriter

__all__ = ["GROUPS", "Census", "Count", "EventWriter", "LayerCensus", "Tag", "census", "layout"]
