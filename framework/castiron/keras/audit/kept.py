"""A plan on a model for a while: formats, policies and boundaries as they were afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from castiron.keras.modules import variables
from castiron.keras.precision import apply, rekey
from castiron.policy import Plan

_FUNCTIONS = ("train_function", "test_function", "predict_function")


@contextlib.contextmanager
def under(model: Any, plan: Plan) -> Iterator[None]:
    """Within it the plan is applied. Variables come back as the very objects that they were.

    Raises:
        PlanError: the plan does not fit.
    """
    stored = [(v, v._dtype, v._value) for v in variables(model).values()]
    policies, calls, inputs = [], [], []
    for layer in _layers(model):
        policies.append((layer, layer.__dict__.get("_dtype_policy"), layer.__dict__.get("_dtype")))
        calls.append((layer, layer.__dict__.get("call")))
        inputs += [(t, t._dtype) for t in getattr(layer, "_inputs", None) or ()]
    functions = {name: model.__dict__[name] for name in _FUNCTIONS if name in model.__dict__}
    try:
        apply(model, plan)
        yield
    finally:
        for variable, dtype, value in stored:
            variable._dtype, variable._value = dtype, value
        for layer, policy, dtype in policies:
            layer.__dict__["_dtype_policy"] = policy
            if dtype is not None:
                layer.__dict__["_dtype"] = dtype
        for layer, call in calls:
            if call is not None:
                layer.__dict__["call"] = call
            else:
                layer.__dict__.pop("call", None)
        for tensor, dtype in inputs:
            tensor._dtype = dtype
        model.__dict__.update(functions)
        optimizer = getattr(model, "optimizer", None)
        while optimizer is not None:
            if optimizer.built:
                rekey(optimizer)
            optimizer = getattr(optimizer, "inner_optimizer", None)


def _layers(model: Any) -> list[Any]:
    """Every layer and what layers keep beside their sublayers, each once."""
    found: dict[int, Any] = {}
    for layer in model._flatten_layers():
        for each in (layer, getattr(layer, "_softmax", None), getattr(layer, "_functional", None)):
            if each is not None and hasattr(each, "_dtype_policy"):
                found.setdefault(id(each), each)
        for tensor in getattr(layer, "_inputs", None) or ():
            history = getattr(tensor, "_keras_history", None)
            if history is not None:
                found.setdefault(id(history.operation), history.operation)
    return list(found.values())
