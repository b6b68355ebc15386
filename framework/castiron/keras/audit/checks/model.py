"""F312, F315, F330, F331, F332, F334: what can be told of a model without tracing it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from castiron.diagnostics import Finding, Place, finding
from castiron.formats import number_format
from castiron.keras.dtypes import is_float, tensorflow_name
from castiron.keras.modules import own_variables, stored_dtype, variables, walk
from castiron.policy import Plan, PrecisionPolicy


def check(model: Any, plan: Plan, *, as_is: bool) -> Iterator[Finding]:
    """A model as it was given, before the plan is applied."""
    yield from check_floatx(plan.policy)
    yield from _halves(model, as_is)
    yield from _built_otherwise(model, as_is)
    if as_is:
        yield from _stored(model, plan)
        yield from _ids(model)


def unscaled(computes_float16: bool, optimizer: Any) -> Iterator[Finding]:
    """float16 gradients of a loss that nothing scales. (A policy that computes in float16 says what does.)

    Args:
        optimizer: the one that is used; None where it is not known.
    """
    if not computes_float16 or optimizer is None:
        return
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return
    yield finding(
        "F332",
        "products are computed in float16, and the loss is not scaled",
        place=Place(op="loss", phase="backward"),
        expected="a scaled loss",
        received=f"{type(optimizer).__name__} without a LossScaleOptimizer",
    )


def check_floatx(policy: PrecisionPolicy) -> Iterator[Finding]:
    """Whether what is made without a dtype is made as declared."""
    floatx = keras.config.floatx()
    wide = "float64" in (policy.param, policy.loss)
    expected = "float64" if wide else "float32"
    if floatx == expected or (wide and floatx == "float32"):
        return  # where float64 is declared, `fit` under `enforce` sets it for its time
    yield finding(
        "F330",
        f"keras.config.floatx() is {floatx}: layers, losses and tensors that are made without a dtype are "
        f"{floatx}",
        place=Place(op="set_floatx"),
        expected=expected,
        received=floatx,
        remedy=f"keras.config.set_floatx('{expected}').",
    )


def _halves(model: Any, as_is: bool) -> Iterator[Finding]:
    """Layers stored in float32 and others in float64: set_floatx was called between."""
    paths: dict[str, list[str]] = {"float32": [], "float64": []}
    for path, layer in walk(model):
        parameters, buffers = own_variables(layer)
        for variable in (*parameters, *buffers):
            if (dtype := stored_dtype(variable)) in paths and path not in paths[dtype]:
                paths[dtype].append(path)
    if not all(paths.values()):
        return
    few = min(paths, key=lambda d: len(paths[d]))
    other = "float64" if few == "float32" else "float32"
    yield finding(
        "F331",
        f"{len(paths[few])} layers are stored in {few} and {len(paths[other])} in {other}"
        + ("" if as_is else "; the plan puts that right"),
        place=Place(module=paths[few][0]),
        expected="one format",
        received=f"{few} in '{paths[few][0]}', {other} in '{paths[other][0]}'",
        severity="error" if as_is else "info",
    )


def _built_otherwise(model: Any, as_is: bool) -> Iterator[Finding]:
    for path, layer in walk(model):
        wanted = layer.dtype_policy.variable_dtype
        parameters, _ = own_variables(layer)
        odd = [v for v in parameters if is_float(stored_dtype(v)) and stored_dtype(v) != wanted]
        if wanted is None or not odd or not is_float(wanted):
            continue
        yield finding(
            "F334",
            f"a {type(layer).__name__} says that it stores {wanted}, and its variables are "
            f"{stored_dtype(odd[0])}" + ("" if as_is else "; the plan puts that right"),
            place=Place(module=path),
            expected=f"variables in {wanted}",
            received=f"'{odd[0].name}' in {stored_dtype(odd[0])}",
            severity="error" if as_is else "info",
        )


def _stored(model: Any, plan: Plan) -> Iterator[Finding]:
    expected = {**plan.parameters(), **plan.buffers()}
    for name, variable in variables(model).items():
        dtype = stored_dtype(variable)
        declared = expected.get(name)
        if not is_float(dtype) or declared is None or dtype == tensorflow_name(declared):
            continue
        yield finding(
            "F312",
            f"variable '{name}' is not as planned",
            place=Place(module=name.rpartition(".")[0]),
            expected=declared,
            received=dtype,
            remedy="Build the model under the declared policy, or let castiron.keras.enforce cast it.",
        )


def _ids(model: Any) -> Iterator[Finding]:
    """An `Input` without dtype before an Embedding: Keras turns the ids into its float format."""
    for tensor in getattr(model, "_inputs", None) or ():
        history = getattr(tensor, "_keras_history", None)
        if history is None or not is_float(tensor.dtype):
            continue
        layer = history.operation
        takers = [
            n.operation for n in layer._outbound_nodes if isinstance(n.operation, keras.layers.Embedding)
        ]
        if not takers:
            continue
        largest = max(t.input_dim for t in takers) - 1
        exact = number_format(tensor.dtype).max_exact_int
        fits = largest <= exact
        yield finding(
            "F315",
            f"Input '{layer.name}' of '{takers[0].name}' has no dtype: Keras turns ids into {tensor.dtype}"
            + ("" if fits else f", and they go up to {largest:,}"),
            place=Place(module=takers[0].name, field=layer.name),
            expected="dtype='int64' or 'int32'",
            received=tensor.dtype if fits else f"{largest:,} in {tensor.dtype}",
            severity="info" if fits else "error",
            remedy="keras.Input(shape, dtype='int64').",
        )
