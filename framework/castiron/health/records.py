"""Summaries as TensorBoard's protocol buffers. Imports neither TensorFlow nor a framework."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar_metadata
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams import plugin_data_pb2 as hparams_pb2
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.plugins.text import metadata as text_metadata

Value = Any
"""A `summary_pb2.Summary.Value`."""


@dataclass(frozen=True, slots=True)
class Head:
    """What every summary begins with."""

    tag: str
    description: str = ""
    first: bool = True
    """Whether it is the tag's first record in the file: only that one carries metadata, as TensorBoard's
    format asks."""

    @property
    def title(self) -> str:
        """What stands behind the group: a card already stands under its group's name."""
        return self.tag.partition("/")[2] or self.tag

    def metadata(self, plugin: Any) -> Any:
        """The metadata that a plugin of TensorBoard makes for its summaries, or None."""
        return plugin.create_summary_metadata(self.title, self.description) if self.first else None


def file_header(wall_time: float) -> bytes:
    """The first record of an event file."""
    source = event_pb2.SourceMetadata(writer="castiron.health.writer")
    event = event_pb2.Event(wall_time=wall_time, file_version="brain.Event:2", source_metadata=source)
    return bytes(event.SerializeToString())


def session_start_at(wall_time: float, step: int) -> bytes:
    """A record that makes readers drop what earlier files of the folder hold from this step on."""
    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return bytes(event_pb2.Event(wall_time=wall_time, step=step, session_log=log).SerializeToString())


def event(wall_time: float, step: int, values: Sequence[Value]) -> bytes:
    """One record: summaries of a step."""
    summary = summary_pb2.Summary(value=values)
    return bytes(event_pb2.Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())


def scalar(head: Head, value: float) -> Value:
    return summary_pb2.Summary.Value(
        tag=head.tag, simple_value=_float32(value), metadata=head.metadata(scalar_metadata)
    )


def text(head: Head, markdown: str) -> Value:
    return summary_pb2.Summary.Value(
        tag=head.tag, tensor=_string(markdown.encode()), metadata=head.metadata(text_metadata)
    )


def image(head: Head, png: bytes) -> Value:
    """A picture; width and height are read from its header chunk (PNG specification, 11.2.2)."""
    if len(png) < 24 or not png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"expected the bytes of a PNG file, received {bytes(png[:8])!r}")
    width, height = struct.unpack(">II", png[16:24])
    picture = summary_pb2.Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return summary_pb2.Summary.Value(tag=head.tag, image=picture, metadata=head.metadata(image_metadata))


def histogram(
    head: Head,
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    total: float | None = None,
    total_squares: float | None = None,
) -> Value:
    """A histogram; empty buckets at either end are left out, as TensorBoard's reader does."""
    edges, counts = [float(e) for e in edges], [float(c) for c in counts]
    if len(edges) != len(counts) + 1:
        raise ValueError(f"expected {len(counts) + 1} edges for {len(counts)} buckets, received {len(edges)}")
    if not all(a < b for a, b in itertools.pairwise(edges)):
        raise ValueError(f"expected edges in ascending order, received {edges}")
    filled = [i for i, count in enumerate(counts) if count > 0]
    first, last = (filled[0], filled[-1] + 1) if filled else (0, 0)
    edges, counts = edges[first : last + 1], counts[first:last]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    weighted = list(zip(middles, counts, strict=True))
    buckets = summary_pb2.HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=sum(counts),
        sum=sum(m * c for m, c in weighted) if total is None else total,
        sum_squares=sum(m * m * c for m, c in weighted) if total_squares is None else total_squares,
        bucket_limit=edges[1:],
        bucket=counts,
    )
    return summary_pb2.Summary.Value(tag=head.tag, histo=buckets, metadata=head.metadata(histogram_metadata))


def custom_scalars(layout: Any) -> Value:
    """The layout of the Custom Scalars page."""
    return summary_pb2.Summary.Value(
        tag=custom_scalar_metadata.CONFIG_SUMMARY_TAG,
        tensor=_string(layout.SerializeToString()),
        metadata=custom_scalar_metadata.create_summary_metadata(),
    )


# --- hyper-parameters ----------------------------------------------------------------------------------


def experiment(values: Mapping[str, Any], metrics: Sequence[str], wall_time: float) -> Value:
    """Which hyper-parameters there are, and which scalars are results."""
    kinds = {bool: api_pb2.DATA_TYPE_BOOL, float: api_pb2.DATA_TYPE_FLOAT64, str: api_pb2.DATA_TYPE_STRING}
    content = api_pb2.Experiment(
        time_created_secs=wall_time,
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=kinds[type(value)]) for name, value in flat(values).items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=Head(tag).title)
            for tag in metrics
        ],
    )
    return _hparams(hparams_metadata.EXPERIMENT_TAG, hparams_pb2.HParamsPluginData(experiment=content))


def session_start(values: Mapping[str, Any], wall_time: float) -> Value:
    content = hparams_pb2.SessionStartInfo(start_time_secs=wall_time)
    for name, value in flat(values).items():
        if isinstance(value, bool):
            content.hparams[name].bool_value = value
        elif isinstance(value, float):
            content.hparams[name].number_value = value
        else:
            content.hparams[name].string_value = value
    data = hparams_pb2.HParamsPluginData(session_start_info=content)
    return _hparams(hparams_metadata.SESSION_START_INFO_TAG, data)


def session_end(success: bool, wall_time: float) -> Value:
    status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
    content = hparams_pb2.SessionEndInfo(status=status, end_time_secs=wall_time)
    data = hparams_pb2.HParamsPluginData(session_end_info=content)
    return _hparams(hparams_metadata.SESSION_END_INFO_TAG, data)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """Nested mappings as dotted names; numbers as floats; what is neither number nor bool as text."""
    found: dict[str, bool | float | str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        elif isinstance(value, bool):
            found[name] = value
        elif isinstance(value, int | float):
            found[name] = float(value)
        else:
            found[name] = "null" if value is None else str(value)
    return found


def _hparams(tag: str, data: Any) -> Value:
    return summary_pb2.Summary.Value(
        tag=tag, metadata=hparams_metadata.create_summary_metadata(data), tensor=hparams_metadata.NULL_TENSOR
    )


# --- pieces --------------------------------------------------------------------------------------------


def _string(content: bytes) -> Any:
    """A tensor of one string, without dimensions."""
    shape = tensor_shape_pb2.TensorShapeProto()
    return tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[content])


def _float32(value: float) -> float:
    """A value that a protocol buffer's float field takes: what is beyond float32 becomes infinite."""
    value = float(value)
    return value if abs(value) <= 3.4028234663852886e38 or value != value else value * float("inf")
