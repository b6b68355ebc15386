"""The training step and the evaluation step of a model as graphs: traced, never run. Inference is the
evaluation step without its loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from castiron.diagnostics import Finding
from castiron.keras.audit.reader import Reader
from castiron.keras.audit.records import Origin, Step, Trace
from castiron.keras.audit.scopes import Scopes
from castiron.keras.modules import own_variables, variables, walk
from castiron.training.declared_shapes import DeclaredShapes

ModelCall = Callable[[Any, Any, bool], Any]
"""(model, batch, training) → outputs."""
Loss = Callable[[Any, Any], Any]
"""(outputs, batch) → loss."""


@dataclass(slots=True)
class Traced:
    """The steps that could be traced; where one could not, why."""

    traces: dict[Step, Trace] = field(default_factory=dict)
    failure: Exception | None = None
    has_loss: bool = False
    shapes: list[Finding] = field(default_factory=list)
    """What departs from the shapes that are declared (F340)."""


def trace(
    model: Any, batch: Any, loss: Loss | None, call: ModelCall, shapes: Mapping[str, str] | None = None
) -> Traced:
    """Trace a model in the formats that it has now.

    Args:
        batch: a tree of arrays and tensors.
        shapes: what is declared at the boundaries of layers: held against the training step.
    """
    done = Traced(has_loss=loss is not None)
    leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(batch)]
    names = batch_names(batch)
    origins = origins_of(model)
    for step in _STEPS:
        declared = DeclaredShapes(shapes, batch_size(leaves)) if shapes and step == "training" else None
        scopes = Scopes(model, declared)
        built: dict[str, Any] = {}
        graph_of = _STEPS[step](model, batch, loss, call, built)
        try:
            with _whole_tracebacks(), scopes.open(), np.errstate(all="ignore"):
                specs = [
                    tf.TensorSpec(t.shape, t.dtype, name=f"castiron_batch_{i}") for i, t in enumerate(leaves)
                ]
                concrete = tf.function(graph_of, autograph=False).get_concrete_function(*specs)
        except Exception as e:  # the user's code may raise anything
            done.failure = e
            return done
        if declared is not None:
            declared.over()
            done.shapes = declared.findings
        reader = Reader(scopes, origins)
        count = len(leaves)
        given = {
            tensor.name: Origin("batch", name, _maximum(leaf))
            for tensor, name, leaf in zip(concrete.graph.inputs[:count], names, leaves, strict=True)
        }
        found = reader.read(concrete.graph, given)
        found.step = step
        found.batch_size = batch_size(leaves)
        found.results = [v for t in built["outputs"] if (v := reader.value(t)) is not None]
        if built.get("loss") is not None:
            found.loss = reader.value(built["loss"])
        done.traces[step] = found
    return done


def default_call(model: Any, batch: Any, training: bool) -> Any:
    """A model called with a batch as Keras's own users do: a mapping by the names of its arguments where it
    has them, a tuple as arguments where it takes so many, else as one argument."""
    given: dict[str, Any] = {"training": training} if model._call_has_training_arg else {}
    functional = hasattr(model, "_nodes_by_depth")
    if isinstance(batch, dict) and not functional:
        known = set(model._call_signature.parameters)
        if set(batch) <= known:
            return model(**batch, **given)
    if isinstance(batch, tuple):
        return model(list(batch), **given) if functional and len(batch) > 1 else model(*batch, **given)
    return model(batch, **given)


def batch_names(batch: Any) -> list[str]:
    """How each leaf of a batch is called: `['x']`, `[0]`; empty for a batch that is one array."""
    return [_path(path) for path, _ in keras.tree.flatten_with_path(batch)]


def _path(path: Any) -> str:
    return "".join(f"['{p}']" if isinstance(p, str) else f"[{p}]" for p in path)


# --- steps ---------------------------------------------------------------------------------------------


def _training(model: Any, batch: Any, loss: Loss | None, call: ModelCall, built: dict[str, Any]) -> Any:
    def training_step(*leaves: Any) -> list[Any]:
        given = tf.nest.pack_sequence_as(batch, leaves)
        values = [v._value for v in model.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = call(model, given, True)
            built["outputs"] = _tensors(outputs)
            target: Any = [t for t in built["outputs"] if t.dtype.is_floating]
            if loss is not None:
                with tf.name_scope("castiron_loss/"):
                    target = built["loss"] = loss(outputs, given)
        with tf.name_scope("castiron_backward/"):
            gradients = tape.gradient(target, values)
        return [*built["outputs"], *(g for g in gradients if g is not None)]

    return training_step


def _evaluation(model: Any, batch: Any, loss: Loss | None, call: ModelCall, built: dict[str, Any]) -> Any:
    def evaluation_step(*leaves: Any) -> list[Any]:
        given = tf.nest.pack_sequence_as(batch, leaves)
        outputs = call(model, given, False)
        built["outputs"] = _tensors(outputs)
        if loss is not None:
            with tf.name_scope("castiron_loss/"):
                built["loss"] = loss(outputs, given)
        return list(built["outputs"])

    return evaluation_step


_STEPS: dict[Step, Callable[..., Any]] = {"training": _training, "evaluation": _evaluation}


# --- parts ---------------------------------------------------------------------------------------------


def origins_of(model: Any) -> dict[int, Origin]:
    """id of each variable's handle → its name. (The handle that a graph captures is the very object.)"""
    kinds = {id(v): "parameter" for _, layer in walk(model) for v in own_variables(layer)[0]}
    found: dict[int, Origin] = {}
    for name, variable in variables(model).items():
        kind = kinds.get(id(variable), "buffer")
        origin = Origin(kind, name)  # type: ignore[arg-type]
        for part in getattr(variable._value, "values", None) or (variable._value,):  # of each replica
            handle = part.handle
            found[id(handle)] = found[handle._id] = origin
    return found


@contextlib.contextmanager
def _whole_tracebacks() -> Iterator[None]:
    """Errors keep the user's lines: both frameworks cut tracebacks short."""
    ours, theirs = keras.config.is_traceback_filtering_enabled(), tf.debugging
    cut = theirs.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    theirs.disable_traceback_filtering()
    try:
        yield
    finally:
        if ours:
            keras.config.enable_traceback_filtering()
        if cut:
            theirs.enable_traceback_filtering()


def _tensors(tree: Any) -> list[Any]:
    return [t for t in tf.nest.flatten(tree) if tf.is_tensor(t)]


def _maximum(tensor: Any) -> float | None:
    """Largest magnitude of whole numbers."""
    if not tensor.dtype.is_integer or int(tf.size(tensor)) == 0:
        return None
    return float(np.abs(tensor.numpy().astype(np.float64)).max())


def batch_size(leaves: Sequence[Any]) -> int | None:
    """Length of the first axis of a batch; None where a graph leaves it open."""
    sizes = [t.shape[0] for t in leaves if tf.is_tensor(t) and t.shape.rank]
    return None if not sizes or sizes[0] is None else int(sizes[0])
