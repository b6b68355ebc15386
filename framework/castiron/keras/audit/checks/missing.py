"""F324: operations that the device has no kernel for in the format that they get."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import kernels

from castiron.diagnostics import Finding, finding
from castiron.keras.audit.context import Context


def check(context: Context) -> Iterator[Finding]:
    """Within what XLA compiles there are no kernels to ask for."""
    if context.jit:
        return
    told: set[tuple[Any, ...]] = set()
    for op in context.trace.of("forward", "loss", "backward"):
        floats = [v.dtype for v in (*op.operands, *op.results) if v.is_float]
        if not floats or has_kernel(op.node):
            continue
        where = (op.name, floats[0], op.module, op.lines[:1])
        if where in told:
            continue
        told.add(where)
        whose = f"the backward of {op.forward.title} needs {op.title}, which" if op.forward else op.title
        yield finding(
            "F324",
            f"{whose} has no kernel for {floats[0]} here: TensorFlow raises when it runs",
            place=context.place(op),
            expected="a format that the device computes in",
            received=floats[0],
        )


def has_kernel(node: Any) -> bool:
    """Whether a kernel takes an operation of a graph in its formats, on any device that there is."""
    formats = []
    for name in _type_attributes(node.type):
        try:
            given = node.get_attr(name)
        except ValueError:
            continue
        if isinstance(given, tf.DType):
            formats.append((name, given.base_dtype.as_datatype_enum))
    return _known(node.type, tuple(formats))


@functools.cache
def _kernels(op: str) -> tuple[tuple[tuple[str, frozenset[int]], ...], ...]:
    """What each kernel of an operation takes: (attribute, formats) of each of its conditions."""
    devices = {device.device_type for device in tf.config.list_logical_devices()} | {"DEFAULT"}
    found = kernels.get_registered_kernels_for_op(op).kernel
    return tuple(
        tuple((c.name, frozenset(c.allowed_values.list.type)) for c in k.constraint)
        for k in found
        if k.device_type in devices and not k.label
    )


@functools.cache
def _type_attributes(op: str) -> tuple[str, ...]:
    return tuple({name for conditions in _kernels(op) for name, types in conditions if types})


@functools.cache
def _known(op: str, formats: tuple[tuple[str, int], ...]) -> bool:
    given = dict(formats)
    takes = [
        all(name not in given or not types or given[name] in types for name, types in conditions)
        for conditions in _kernels(op)
    ]
    return not takes or any(takes)
