"""The plan, applied to a Keras model: variables cast, a DTypePolicy for each layer, boundaries guarded.

precision = apply(model, plan)

Keras's global policy and floatx are neither read nor changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from castiron.diagnostics import Finding, Place, PlanError, finding
from castiron.keras import boundaries
from castiron.keras.availability import check_available
from castiron.keras.dtypes import NARROW, dtype_name, is_float, tensorflow_name
from castiron.keras.modules import is_container, stored_dtype, variables, walk
from castiron.policy import Plan, PlanRow


@keras.saving.register_keras_serializable("castiron")
class LayerFormats(keras.DTypePolicy):
    """A DTypePolicy of any two formats; Keras's own names know only a few pairs.

    Saved models name it: to load one, import `castiron.keras` first.
    """

    def __init__(self, param: str, compute: str) -> None:
        self._name = f"p={param},c={compute}"
        self._compute_dtype, self._variable_dtype = compute, param
        self._quantization_mode = None

    def get_config(self) -> dict[str, str]:
        return {"param": self._variable_dtype, "compute": self._compute_dtype}


def layer_policy(param: str, compute: str) -> Any:
    """The DTypePolicy of a layer that stores in one format and computes in another; Keras's own where it has
    one."""
    param, compute = tensorflow_name(param), tensorflow_name(compute)
    if param == compute:
        return keras.DTypePolicy(param)
    if param == "float32" and compute in NARROW:
        return keras.DTypePolicy(f"mixed_{compute}")
    return LayerFormats(param, compute)


class Precision:
    """A plan at work on a model. Made by `apply`."""

    def __init__(self, plan: Plan, findings: list[Finding] | None = None) -> None:
        self.plan = plan
        self.findings = findings or []
        """What applying the plan has to say that does not stop it (L207, L208)."""

    def release(self, model: Any) -> None:
        """Take every boundary off again. Variables and layer policies stay as they are."""
        boundaries.remove(model)


def apply(model: Any, plan: Plan) -> Precision:
    """Cast a built model's variables as the plan says, give each layer its policy, and see that it is so.

    Keras variables keep their identity: an optimizer built before goes on working. Functions that TensorFlow
    traced before hold the old variables: those of Keras (fit, evaluate, predict) are made anew. Integer
    variables are untouched.

    Raises:
        PlanError: the plan is of another model (L211), a shared layer has two rows that differ (L203), values
            do not fit into the format they are given (L206), the plan needs what TensorFlow has not got
            (L210), or the formats observed afterwards are not those of the plan (L205).
    """
    check_available(model, plan)
    _check_layers(model, plan)
    boundaries.remove(model)
    findings = _cast(model, {**plan.parameters(), **plan.buffers()})
    rows = {row.path: row for row in plan.rows}
    for path, layer in walk(model):
        _set_policy(layer, rows[path])
    boundaries.add(model, plan)
    optimizer = getattr(model, "optimizer", None)
    while optimizer is not None:
        if optimizer.built:
            rekey(optimizer)
        optimizer = getattr(optimizer, "inner_optimizer", None)
    for name in ("train_function", "test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    if found := departures(model, plan):
        raise PlanError(found)
    return Precision(plan, findings + _lost_updates(model, plan))


def departures(model: Any, plan: Plan) -> list[Finding]:
    """Each variable whose dtype, and each layer whose policy, is not the one of the plan (L205)."""
    found = []
    expected = {**plan.parameters(), **plan.buffers()}
    for name, variable in variables(model).items():
        if not is_float(stored_dtype(variable)):
            continue
        declared = expected.get(name)
        if declared is None:
            message, wanted = f"variable '{name}' is not in the plan", None
        elif stored_dtype(variable) == declared == dtype_name(variable._value.dtype):
            continue
        else:
            message, wanted = f"variable '{name}' is not as planned", f"{declared} for variable '{name}'"
        found.append(
            finding(
                "L205",
                message,
                place=Place(module=name.rpartition(".")[0]),
                expected=wanted,
                received=stored_dtype(variable),
            )
        )
    for path, layer in walk(model):
        wanted_policy = _policy_of(layer, plan.row(path))
        if layer.compute_dtype != wanted_policy.compute_dtype:
            found.append(
                finding(
                    "L205",
                    f"layer '{path}' does not compute as planned",
                    place=Place(module=path),
                    expected=f"compute {wanted_policy.compute_dtype}",
                    received=f"compute {layer.compute_dtype}",
                )
            )
    return found


def _policy_of(layer: Any, row: PlanRow) -> Any:
    if is_container(layer):
        # It hands tensors on; what enters keeps its format until the layer that computes with it.
        return layer_policy(row.param, row.param)
    return layer_policy(row.param, row.compute)


def _set_policy(layer: Any, row: PlanRow) -> None:
    inner = getattr(layer, "_softmax", None)
    for each in (layer, inner if isinstance(inner, keras.layers.Softmax) else None):
        if each is None:
            continue
        policy = _policy_of(layer, row)
        if each.dtype_policy.name == policy.name and isinstance(each.dtype_policy, type(policy)):
            continue
        each._dtype_policy = policy
    if hasattr(layer, "_inputs"):
        _set_inputs(layer, tensorflow_name(row.param))
    functional = getattr(layer, "_functional", None)
    if functional is not None:
        functional._dtype_policy = layer._dtype_policy
        _set_inputs(functional, tensorflow_name(row.param))


def _set_inputs(model: Any, param: str) -> None:
    """What a functional model makes of its inputs: numbers in the stored format, ids whole numbers.

    An `Input` without a dtype is float32, and turns float64 data and large ids into it in silence.
    """
    for tensor in model._inputs:
        history = getattr(tensor, "_keras_history", None)
        layer = history.operation if history is not None else None
        if not isinstance(layer, keras.layers.InputLayer) or not is_float(tensor.dtype):
            continue
        consumers = [node.operation for node in layer._outbound_nodes if node.operation in model._operations]
        ids = bool(consumers) and all(isinstance(c, keras.layers.Embedding) for c in consumers)
        tensor._dtype = "int64" if ids else param
        layer._dtype_policy = keras.DTypePolicy(tensor._dtype)
        layer._dtype = tensor._dtype


def _check_layers(model: Any, plan: Plan) -> None:
    from castiron.keras.modules import describe

    planned = {row.path: row for row in plan.rows}
    present = [info.path for info in describe(model)]
    odd = [(p, "the model", "the plan") for p in present if p not in planned]
    odd += [(p, "the plan", "the model") for p in planned if p not in present]
    if odd:
        raise PlanError(
            finding(
                "L211",
                f"layer '{path}' is in {here} and not in {there}",
                place=Place(module=path),
                expected="a plan resolved from this very model",
                received=f"{len(odd)} layers that differ",
            )
            for path, here, there in odd[:5]
        )
    first: dict[int, str] = {}
    for path, layer in walk(model):
        home = first.setdefault(id(layer), path)
        a, b = planned[home], planned[path]
        if (a.param, a.compute, a.output, a.buffers) != (b.param, b.compute, b.output, b.buffers):
            raise PlanError(
                finding(
                    "L203",
                    f"layer '{path}' is the same layer as '{home}' and cannot run in two ways",
                    place=Place(module=path),
                    expected=f"compute {a.compute}, output {a.output}, param {a.param}, as for '{home}'",
                    received=f"compute {b.compute}, output {b.output}, param {b.param}",
                )
            )


def _cast(model: Any, formats: dict[str, str]) -> list[Finding]:
    jobs = [
        (name, variable, tensorflow_name(formats[name]))
        for name, variable in variables(model).items()
        if name in formats
        and is_float(stored_dtype(variable))
        and stored_dtype(variable) != tensorflow_name(formats[name])
    ]
    casts = [(variable._value.numpy(), tf.cast(variable._value, dtype)) for _, variable, dtype in jobs]
    found = [
        f
        for (name, _, dtype), (old, new) in zip(jobs, casts, strict=True)
        if (f := _judge(name, old, new.numpy(), dtype)) is not None
    ]
    if errors := [f for f in found if f.severity == "error"]:
        raise PlanError(errors)
    with model.distribute_strategy.scope() if hasattr(model, "distribute_strategy") else tf.init_scope():
        for (_, variable, dtype), (_, new) in zip(jobs, casts, strict=True):
            replace_value(variable, new, dtype)
    return found


def replace_value(variable: Any, value: Any, dtype: str) -> None:
    """Give a Keras variable a value of another dtype. It stays the same variable for all who hold it."""
    variable._dtype = dtype
    variable._value = None
    variable._initialize(value)


def rekey(optimizer: Any) -> None:
    """Have a built optimizer find its variables again after `replace_value`: it keeps them by their value's
    identity."""
    known = optimizer._trainable_variables
    optimizer._trainable_variables_indices = {optimizer._var_key(v): i for i, v in enumerate(known)}


def _judge(name: str, old: np.ndarray, new: np.ndarray, target: str) -> Finding | None:
    """What a cast lost: overflow is an error, underflow to zero a warning; rounding is what was asked for."""
    if old.size == 0 or new.dtype.itemsize > old.dtype.itemsize:
        return None
    a, b = np.abs(old.astype(np.float64)), np.abs(new.astype(np.float64))
    overflowed, vanished = np.isinf(b) & ~np.isinf(a), (b == 0) & (a != 0)
    source, limits = dtype_name(old.dtype), ml_dtypes.finfo(new.dtype)
    if overflowed.any():
        return finding(
            "L206",
            f"{int(overflowed.sum()):,} of {old.size:,} values of variable '{name}' do not fit into {target}",
            place=Place(module=name.rpartition(".")[0]),
            expected=f"magnitudes up to {float(limits.max):g}",
            received=f"{a[overflowed].max():g} ({source})",
            overflowed=int(overflowed.sum()),
        )
    if vanished.any():
        return finding(
            "L207",
            f"{int(vanished.sum()):,} of {old.size:,} values of variable '{name}' become zero in {target}",
            place=Place(module=name.rpartition(".")[0]),
            expected=f"magnitudes from {float(limits.smallest_normal):g}",
            received=f"{a[vanished].min():g} ({source})",
            vanished=int(vanished.sum()),
        )
    return None


def _trainable(model: Any) -> Iterator[tuple[str, Any]]:
    trained = {id(v) for v in model.trainable_variables}
    for name, variable in variables(model).items():
        if id(variable) in trained:
            yield name, variable


def _lost_updates(model: Any, plan: Plan) -> list[Finding]:
    """A warning where narrow parameters are updated with neither a master copy nor stochastic rounding."""
    updates = plan.policy.updates
    narrow = [(n, stored_dtype(v)) for n, v in _trainable(model) if stored_dtype(v) in NARROW]
    if not narrow or updates.master is not None or updates.rounding == "stochastic":
        return []
    dtype = narrow[0][1]
    half = float(ml_dtypes.finfo(tf.as_dtype(dtype).as_numpy_dtype).eps) / 2
    return [
        finding(
            "L208",
            f"{len(narrow)} parameters in {dtype} are updated directly: an update smaller than "
            f"{half:.1g} of the weight rounds to nothing",
            place=Place(module=narrow[0][0].rpartition(".")[0]),
            expected="a float32 master copy, or stochastic rounding",
            received="updates: {master: null, rounding: nearest}",
            parameters=[name for name, _ in narrow],
        )
    ]
