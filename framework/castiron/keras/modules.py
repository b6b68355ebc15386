"""A Keras model as plain data: which layers it has, of what kind, and what they store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from castiron.diagnostics import Place, PlanError, finding
from castiron.keras.dtypes import dtype_name
from castiron.policy import Family, LayerInfo, TensorInfo

ACTIVATION = "activation"
"""Name of the row of a softmax that a layer applies itself, as in `Dense(2, activation="softmax")`."""

_L: Any = keras.layers
_FAMILIES: tuple[tuple[Family, tuple[str, ...]], ...] = (
    ("lstm", ("LSTM", "LSTMCell", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")),
    ("gru", ("GRU", "GRUCell")),
    ("rnn", ("SimpleRNN", "SimpleRNNCell", "RNN", "StackedRNNCells")),
    ("attention", ("MultiHeadAttention", "GroupQueryAttention", "AdditiveAttention", "Attention")),
    ("matmul", ("Dense", "EinsumDense")),
    (
        "conv",
        (
            *(f"Conv{n}D" for n in (1, 2, 3)),
            *(f"Conv{n}DTranspose" for n in (1, 2, 3)),
            *(f"{kind}Conv{n}D" for kind in ("Depthwise", "Separable") for n in (1, 2)),
        ),
    ),
    (
        "normalization",
        (
            "BatchNormalization",
            "LayerNormalization",
            "GroupNormalization",
            "RMSNormalization",
            "UnitNormalization",
            "SpectralNormalization",
        ),
    ),
    ("embedding", ("Embedding",)),
    ("softmax", ("Softmax",)),
)
_CLASSES: tuple[tuple[Family, tuple[type, ...]], ...] = tuple(
    (name, tuple(getattr(_L, c) for c in classes if hasattr(_L, c))) for name, classes in _FAMILIES
)
_SOFTMAX = ("softmax", "log_softmax")


def family(layer: Any) -> Family | None:
    """The kind of operation of a layer; None for containers, other activations and layers of a user's own."""
    for name, classes in _CLASSES:
        if isinstance(layer, classes):
            return name
    if isinstance(layer, _L.Activation) and _name(layer.activation) in _SOFTMAX:
        return "softmax"
    return None


def softmax_inside(layer: Any) -> str | None:
    """Name of the softmax that a layer applies to its own result: `Dense(2, activation="softmax")`."""
    if family(layer) == "softmax" or not isinstance(layer, (_L.Dense, _L.EinsumDense)):
        return None
    name = _name(layer.activation)
    return name if name in _SOFTMAX else None


def _name(activation: Any) -> str:
    return str(getattr(activation, "__name__", type(activation).__name__)).lower()


def is_container(layer: Any) -> bool:
    """Whether a model only hands tensors from layer to layer: Sequential and functional models."""
    return isinstance(layer, keras.Sequential) or hasattr(layer, "_nodes_by_depth")


def own_variables(layer: Any) -> tuple[list[Any], list[Any]]:
    """Parameters and buffers that a layer holds itself, not what its sublayers hold.

    The state of a stateful recurrent layer counts as a buffer; seeds and metrics do not.
    """
    parameters, buffers = list(layer._trainable_variables), list(layer._non_trainable_variables)
    known = {id(v) for v in (*parameters, *buffers)}
    states = getattr(layer, "states", None)
    if isinstance(layer, _L.RNN) and states is not None:
        buffers += [v for v in states if isinstance(v, keras.Variable) and id(v) not in known]
    return parameters, buffers


def children(layer: Any) -> list[tuple[str, Any]]:
    """The sublayers of a layer, each with its name.

    A layer of a Sequential or functional model goes by its own name; a layer kept in an attribute by that of
    the attribute (`encoder`, `blocks.0`), unless it is private, then by its own name too. Input layers are
    not listed: nothing is computed there.
    """
    inputs = _L.InputLayer
    own = [
        child
        for child in layer._flatten_layers(include_self=False, recursive=False)
        if not isinstance(child, inputs)
    ]
    if family(layer) == "attention":
        # The softmax inside attention is part of the attention: its format is the island's.
        own = [child for child in own if child is not getattr(layer, "_softmax", None)]
    names: dict[int, str] = {}
    if not is_container(layer):
        for attribute, value in vars(layer).items():
            if attribute.startswith("_"):
                continue
            for suffix, found in _layers_in(value):
                names.setdefault(id(found), attribute + suffix)
    return [(names.get(id(child), child.name), child) for child in own]


def _layers_in(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, keras.Layer):
        yield "", value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            for suffix, found in _layers_in(item):
                yield f".{i}{suffix}", found
    elif isinstance(value, dict):
        for key, item in value.items():
            for suffix, found in _layers_in(item):
                yield f".{key}{suffix}", found


def walk(model: Any) -> Iterator[tuple[str, Any]]:
    """Every path of a model with its layer, outermost first; a shared layer comes under each path."""
    yield from _walk("", model, ())


def _walk(path: str, layer: Any, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    if id(layer) in above:
        return
    yield path, layer
    for name, child in children(layer):
        yield from _walk(f"{path}.{name}" if path else name, child, (*above, id(layer)))


def describe(model: Any) -> list[LayerInfo]:
    """Every layer of a built model, outermost first, with what it holds itself.

    A layer that is reachable by two paths is listed under both. A variable that is held twice (a shared
    layer) says by `same_as` the name under which it was met first. A softmax that a Dense layer applies
    itself has a row of its own, `<path>.activation`.

    Raises:
        PlanError: a layer has not been built: its variables have no shape yet (L209).
    """
    first: dict[int, str] = {}
    layers, unbuilt = [], []
    for path, layer in walk(model):
        if not layer.built and _builds(layer):
            unbuilt.append((path, type(layer).__name__))
        parameters, buffers = own_variables(layer)
        names = class_names(layer)
        layers.append(
            LayerInfo(
                path=path,
                type=names[0],
                bases=names[1:],
                family=family(layer),
                parameters=tuple(_tensors(path, parameters, first)),
                buffers=tuple(_tensors(path, buffers, first)),
            )
        )
        if (softmax := softmax_inside(layer)) is not None:
            layers.append(LayerInfo(path=_join(path, ACTIVATION), type=softmax, family="softmax"))
    if unbuilt:
        raise PlanError(
            finding(
                "L209",
                f"a {cls} has no variables yet",
                place=Place(module=path),
                expected="a built model",
                received="a layer that was never called or built",
                remedy="Call the model once on a batch, or model.build(input_shape), before the plan is "
                "applied.",
            )
            for path, cls in unbuilt
        )
    return layers


def variables(model: Any) -> dict[str, Any]:
    """Full name → keras.Variable of every parameter and buffer, each once."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for path, layer in walk(model):
        parameters, buffers = own_variables(layer)
        own = [*parameters, *buffers]
        for name, variable in zip(_names(path, own), own, strict=True):
            if id(variable) not in seen:
                seen.add(id(variable))
                found[name] = variable
    return found


def class_names(layer: Any) -> tuple[str, ...]:
    """The layer's class and those it inherits from, nearest first, up to `keras.Layer`."""
    classes = type(layer).__mro__
    return tuple(c.__name__ for c in classes[: classes.index(keras.Layer)]) or ("Layer",)


def _tensors(path: str, own: list[Any], first: dict[int, str]) -> Iterator[TensorInfo]:
    for name, variable in zip(_names(path, own), own, strict=True):
        known = first.setdefault(id(variable), name)
        yield TensorInfo(
            name=name,
            dtype=stored_dtype(variable),
            shape=tuple(variable.shape),
            trainable=bool(variable.trainable),
            same_as=None if known == name else known,
        )


def _names(path: str, own: list[Any]) -> list[str]:
    """Full names of a layer's variables; where two have the same, the later ones are numbered."""
    counts: dict[str, int] = {}
    names = []
    for variable in own:
        n = counts[variable.name] = counts.get(variable.name, 0) + 1
        names.append(_join(path, variable.name if n == 1 else f"{variable.name}_{n - 1}"))
    return names


def stored_dtype(variable: Any) -> str:
    """What a variable is stored in; `variable.dtype` says what it is read in, inside an autocast scope."""
    return dtype_name(variable._dtype)


def _builds(layer: Any) -> bool:
    """Whether a layer makes variables in a `build` of its own, and not only has its sublayers made theirs."""
    return type(layer).build is not keras.Layer.build and not children(layer)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
