"""Where in a `tf.data` pipeline a value that is not finite came to be: its functions, run eagerly again.

A function of `Dataset.map` runs inside the pipeline, where no step sees it. An element that goes into one
finite and comes out otherwise is run again, one operation after the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_callbacks

from castiron.keras.replay.calls import MOVES
from castiron.keras.replay.events import forward_event
from castiron.keras.replay.explain import remedy, sentence
from castiron.keras.replay.sources import lines_running
from castiron.keras.replay.values import is_finite, statistics
from castiron.training.incident import Attribution, Producer
from castiron.training.source_lines import source

SECONDS = 20.0
"""How long a pipeline is searched."""
_NAMES = ("input", "other", "third", "fourth")


def blame_pipeline(found: Attribution, dataset: Any) -> Attribution:
    """What replay found in the data, with the operation of the pipeline that made it; unchanged where no
    function of the pipeline did."""
    until = time.monotonic() + SECONDS
    for kind, function, elements in _functions(dataset):
        for number, element in enumerate(elements):
            if time.monotonic() > until:
                return found
            if not _all_finite(element):
                continue
            if _all_finite(function(element)):
                continue
            seen = _first_bad(function, element)
            return found if seen is None else _told(found, kind, number, *seen)
    return found


def _functions(dataset: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name of the transformation, function of an element, its elements), from the source on."""
    chain = []
    while dataset is not None:
        chain.append(dataset)
        dataset = getattr(dataset, "_input_dataset", None)
    for node in reversed(chain):
        wrapped = getattr(node, "_map_func", None)
        if wrapped is None or isinstance(node.element_spec, tf.data.DatasetSpec):
            continue
        function = getattr(wrapped, "_func", None)
        if function is not None:
            kind = "Dataset.map" if "Map" in type(node).__name__ else type(node).__name__
            yield kind, _unpacking(function), node._input_dataset


def _unpacking(function: Any) -> Any:
    """A function that takes an element as one argument, whatever it is made of."""
    return lambda element: function(*element) if isinstance(element, tuple) else function(element)


def _all_finite(tree: Any) -> bool:
    return all(is_finite(t) for t in tf.nest.flatten(tree, expand_composites=True) if tf.is_tensor(t))


def _first_bad(function: Any, element: Any) -> tuple[str, list[Any], list[Any], Any] | None:
    """(operation, operands, results, line) that first made something bad of what is finite."""
    seen: list[tuple[str, list[Any], list[Any], Any]] = []

    def see(
        op_type: Any, inputs: Any, attrs: Any, outputs: Any, op_name: Any = None, graph: Any = None
    ) -> None:
        if seen or graph is not None:
            return
        op = op_type.decode() if isinstance(op_type, bytes) else str(op_type)
        bad = [t for t in outputs if not is_finite(t)]
        if bad and op not in MOVES and all(is_finite(t) for t in inputs):
            seen.append((op, list(inputs), bad, lines_running(2)[0]))

    was_eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    op_callbacks.add_op_callback(see)
    try:
        function(element)
    finally:
        op_callbacks.remove_op_callback(see)
        tf.config.run_functions_eagerly(was_eager)
    return seen[0] if seen else None


def _told(
    found: Attribution, kind: str, number: int, op: str, inputs: list[Any], bad: list[Any], lines: Any
) -> Attribution:
    event = forward_event(op, inputs, bad)
    operands = tuple(statistics(name, t) for name, t in zip(_NAMES, inputs, strict=False))
    results = tuple(statistics("result", t) for t in bad)
    said = sentence(op, event, operands, results)
    return found.model_copy(
        update={
            "message": f"{found.message}: in a function of {kind}, for element {number:,}, {said}",
            "producer": Producer(op=op, parameter=found.producer.parameter, source=source(lines)),
            "operands": operands,
            "results": results,
            "remedy": remedy(op, event, None, results[0].dtype, 1.0, "data"),
        }
    )
