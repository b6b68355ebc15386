"""Whose line made an operation, from the traceback that TensorFlow keeps of it."""

from __future__ import annotations

import functools
import os
import sysconfig
from collections.abc import Iterator
from typing import Any, Literal

import castiron
from castiron.keras.audit.records import Call
from castiron.training.source_lines import Line

_Kind = Literal["user", "tensorflow", "operation", "variable", "layer", "own", "neutral", "edge"]
_OWN = os.path.dirname(castiron.__file__) + os.sep
_STANDARD = sysconfig.get_path("stdlib")
_EDGES = tuple(os.path.join("keras", "audit", name) for name in ("tracing.py", "continuous.py"))
_APART = ("replay", "health", "audit", "guard.py", "step.py", "snapshot.py", "scaling.py", "updates.py",
          "averaging.py", "custom_step.py", "replicas.py", "rounding.py")  # fmt: skip
"""What of castiron's works beside the model in a step's graph."""
_WRAPPERS = frozenset((
    "error_handler", "op_dispatch_handler", "wrapper", "__call__", "call", "<lambda>", "wrapped_func",
    "binary_op_wrapper", "r_binary_op_wrapper", "tf_convert", "_call_fn", "_dispatch", "symbolic_call",
))  # fmt: skip


def call_of(node: Any) -> Call:
    """The function that made an operation of a graph, and the user's lines around it."""
    lines: list[Line] = []
    name, by_user, variable = "", True, False
    for frame in _frames(node):
        kind = _kind(frame.filename)
        if kind == "edge":
            break
        if kind == "user":
            lines.append((frame.filename, frame.lineno))
        elif not lines:
            if kind in ("layer", "own"):
                by_user = False
            elif kind == "variable":
                variable = True
            elif kind in ("tensorflow", "operation") and frame.name not in _WRAPPERS:
                name = frame.name
    return Call(name.rstrip("_").removesuffix("_v2"), tuple(lines), by_user and bool(lines), variable)


def is_apart(node: Any) -> bool:
    """Whether an operation is a metric's, an optimizer's or castiron's own: beside the model."""
    for frame in _frames(node):
        kind = _kind(frame.filename)
        if kind == "own":
            name = frame.filename[len(_OWN) :].partition("keras" + os.sep)[2]
            return bool(name.startswith(_APART))
        if kind == "layer":
            below = frame.filename.replace(os.sep, "/").rpartition("/keras/src/")[2]
            if below.startswith(("optimizers/", "metrics/")):
                return True
        if kind in ("user", "edge", "layer"):
            return False
    return False


def _frames(node: Any) -> Iterator[Any]:
    """The frames that an operation was made in, innermost first. Python sees each only when it is asked for:
    a stack is deep, and a graph has thousands of operations."""
    trace = node.traceback
    for i in range(len(trace) - 1, -1, -1):
        yield trace[i]


def lines_of(error: BaseException) -> tuple[Line, ...]:
    """The user's lines in an error's traceback, innermost first; of what it was raised from, where it has
    none."""
    found: list[Line] = []
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if _kind(file) == "edge":
            found.clear()  # whoever is outside of the trace only asked for the audit
        elif _kind(file) == "user":
            found.append((file, trace.tb_lineno))
        trace = trace.tb_next
    if not found and (before := error.__cause__ or error.__context__) is not None:
        return lines_of(before)
    return tuple(reversed(found))


@functools.cache
def _kind(file: str) -> _Kind:
    if file.startswith(_OWN):
        return "edge" if file.endswith(_EDGES) else "own"
    parts = file.replace(os.sep, "/")
    if "/tensorflow/" in parts:
        return "tensorflow"
    if "/keras/src/" in parts:
        below = parts.rpartition("/keras/src/")[2]
        if below.startswith("backend/common/variables"):
            return "variable"
        if below.startswith(("backend/tensorflow/layer", "utils/", "ops/operation", "backend/common/")):
            return "neutral"
        if below.startswith(("ops/", "backend/", "activations/", "random/", "tree/")):
            return "operation"
        return "layer"
    if file.startswith("<") and "ipython" not in file:
        return "neutral"
    if any(f"/{package}/" in parts for package in ("absl", "wrapt", "optree")):
        return "neutral"
    if file.startswith(_STANDARD) and "-packages" not in file:
        return "neutral"
    return "user"
