"""What a step's graph is asked while it is traced: layers, the gradients of what they hand on, parameters
before and after, and the optimizer's moments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from castiron.health.snapshot import Kind
from castiron.keras.dtypes import dtype_name, is_float
from castiron.keras.health.measure import Group, measured, peak
from castiron.keras.modules import children, family, own_variables, stored_dtype, walk
from castiron.keras.step import StepCore

L: Any = keras.layers
SAMPLE = 2048
"""Elements of a parameter, at most, whose update is looked at."""
_PASSING = tuple(
    getattr(L, name)
    for name in (
        "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "Flatten", "Reshape",
        "Identity", "InputLayer", "Permute",
    )
)  # fmt: skip
"""Layers that compute nothing: what they hand on is what the layer before them did."""
Key = tuple[Kind, str]


class Watch:
    """One way of looking at a step: what to measure, and, once the step is traced, what it gives.

    Args:
        large: everything; else only the largest magnitudes that layers hand on.
        slow: also what changes slowly: parameters and the optimizer's moments.
        formats: those to ask about.
    """

    def __init__(
        self, core: StepCore, *, large: bool = True, slow: bool = True, formats: Sequence[str] = ()
    ) -> None:
        self._core = core
        self.large, self.slow, self.formats = large, slow, tuple(formats)
        self.dtypes: dict[Key, str] = {}
        """Format of each group, known when the step has been traced."""
        self.kept: dict[str, str] = {}
        """Format of the weights of each layer: of the master copies, where there are any."""
        self._layers = [
            (path, layer) for path, layer in _watched(core.model) if not isinstance(layer, _PASSING)
        ]
        self._groups: dict[Key, list[Any]] = {}
        self._gradients: dict[str, list[Any]] = {}
        self.levels: dict[str, Any] = {}
        self.dead: dict[str, Any] = {}
        self._samples: dict[str, dict[str, Any]] = {}

    # --- while the step is traced ------------------------------------------------------------------

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Within it a step is built that also measures; `outputs` has what it gives."""
        self._groups, self.levels, self.dead, self._samples = {}, {}, {}, {}
        spies: list[tuple[Any, Any]] = []
        for path, layer in self._layers:
            spies.append((layer, layer.__dict__.get("call")))
            layer.__dict__["call"] = self._spied(path, layer, layer.call)
        observer = self._core.observer
        if self.large:
            self._core.observer = self._see_gradients
            self._before()
        try:
            yield
        finally:
            self._core.observer = observer
            for layer, before in spies:
                if before is None:
                    del layer.__dict__["call"]
                else:
                    layer.__dict__["call"] = before

    def outputs(self) -> dict[str, Any]:
        """Tensors, at the end of the traced step: groups, samples of the update, levels, dead units."""
        if not self.large:
            return {"peaks": {f"{kind}|{path}": _peak(ts) for (kind, path), ts in self._groups.items()}}
        self._after()
        groups: dict[str, Group] = {}
        for (kind, path), tensors in self._groups.items():
            main = dtype_name(tensors[0].dtype)
            same = [t for t in tensors if dtype_name(t.dtype) == main]
            asked = self.formats if kind not in ("first moments", "second moments", "updates") else ()
            groups[f"{kind}|{path}"] = measured(same, asked)
            self.dtypes[kind, path] = main
        return {"groups": groups, "samples": self._samples, "levels": self.levels, "dead": self.dead}

    def _add(self, kind: Kind, path: str, tensors: Sequence[Any]) -> None:
        floats = [t for t in tensors if is_float(t.dtype)]
        if floats:
            self._groups.setdefault((kind, path), []).extend(floats)
            self.dtypes[kind, path] = dtype_name(self._groups[kind, path][0].dtype)

    # --- layers ------------------------------------------------------------------------------------

    def _spied(self, path: str, layer: Any, call: Any) -> Any:
        def spied(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            flat = [t for t in tf.nest.flatten(result) if tf.is_tensor(t) and is_float(t.dtype)]
            labels = {id(t): path if i == 0 else f"{path}[{i}]" for i, t in enumerate(flat)}
            for tensor in flat:
                self._add("activations", labels[id(tensor)], [tensor])
            if not self.large or not flat:
                return result
            self._see_state(path, layer, flat[0])
            seen = {id(t): self._with_gradient(labels[id(t)], t) for t in flat}
            return tf.nest.map_structure(lambda t: seen.get(id(t), t), result)

        return spied

    def _with_gradient(self, path: str, tensor: Any) -> Any:
        """The same tensor; its gradient is measured as it comes by."""

        @tf.custom_gradient
        def same(x: Any) -> tuple[Any, Any]:
            def gradient(upstream: Any) -> Any:
                self._add("activation gradients", path, [tf.convert_to_tensor(upstream)])
                return upstream

            return tf.identity(x), gradient

        new = same(tensor)
        mask = getattr(tensor, "_keras_mask", None)
        if mask is not None:
            new._keras_mask = mask
        return new

    def _see_state(self, path: str, layer: Any, main: Any) -> None:
        if isinstance(layer, L.RNN) and layer.return_sequences and main.shape.rank == 3:
            wide = tf.cast(main, tf.float32)
            self.levels[path] = tf.sqrt(tf.reduce_mean(tf.square(wide), axis=[0, 2]))
        if isinstance(layer, L.ReLU) or getattr(layer, "activation", None) is keras.activations.relu:
            silent = tf.reduce_all(tf.equal(tf.reshape(main, [-1, tf.shape(main)[-1]]), 0), 0)
            known = self.dead.get(path)
            self.dead[path] = silent if known is None else tf.logical_and(known, silent)

    # --- parameters ----------------------------------------------------------------------------------

    def _owners(self) -> dict[int, str]:
        """id of a variable → path of the layer that holds it."""
        found: dict[int, str] = {}
        for path, layer in walk(self._core.model):
            for variable in own_variables(layer)[0]:
                found.setdefault(id(variable), path)
        return found

    def _see_gradients(self, gradients: list[Any]) -> None:
        owners = self._owners()
        for variable, gradient in zip(self._core.updates.parameters, gradients, strict=True):
            if gradient is not None:
                self._add("gradients", owners.get(id(variable), ""), [gradient])
                self._samples[variable.path]["gradient"] = tf.cast(_sample(gradient), tf.float64)

    def _before(self) -> None:
        updates = self._core.updates
        for own, target in zip(updates.parameters, updates.targets, strict=True):
            # A stand-in that is made of the parameter anew at every step is no copy that is kept.
            kept = target if target is own or updates._keeps else own
            self._samples[own.path] = {"before": _sample(tf.convert_to_tensor(kept._value))}

    def _after(self) -> None:
        core, owners = self._core, self._owners()
        updates, optimizer = core.updates, core.updates.optimizer
        moments = {
            "first": getattr(optimizer, "_momentums", None) or getattr(optimizer, "momentums", None),
            "second": getattr(optimizer, "_velocities", None),
        }
        for own, target in zip(updates.parameters, updates.targets, strict=True):
            path = owners.get(id(own), "")
            kept = target if target is own or updates._keeps else own
            sample = self._samples[own.path]
            self.kept[own.path] = stored_dtype(kept)
            sample["after"] = _sample(tf.convert_to_tensor(kept._value))
            if self.slow:
                self._add("parameters", path, [tf.convert_to_tensor(own._value)])
            for name, slots in moments.items():
                if not slots:
                    continue
                slot = slots[optimizer._get_variable_index(target)]
                sample[name] = tf.cast(_sample(tf.convert_to_tensor(slot._value)), tf.float64)
                if self.slow:
                    kind: Kind = "first moments" if name == "first" else "second moments"
                    self._add(kind, path, [tf.convert_to_tensor(slot._value)])

    def paths(self) -> dict[str, str]:
        """Path of a parameter → path of its layer."""
        owners = self._owners()
        return {v.path: owners.get(id(v), "") for v in self._core.updates.parameters}


def _watched(model: Any) -> Iterator[tuple[str, Any]]:
    """Layers without layers inside, and recurrent and attention layers whole."""
    seen: set[int] = set()

    def down(path: str, layer: Any) -> Iterator[tuple[str, Any]]:
        inner = children(layer)
        if not inner or isinstance(layer, L.RNN) or family(layer) == "attention":
            if id(layer) not in seen:
                seen.add(id(layer))
                yield path, layer
            return
        for name, child in inner:
            yield from down(f"{path}.{name}" if path else name, child)

    yield from down("", model)


def _sample(tensor: Any) -> Any:
    flat = tf.reshape(tensor, [-1])
    return flat[:: max(-(-int(flat.shape[0]) // SAMPLE), 1)]


def _peak(tensors: Sequence[Any]) -> Any:
    return tf.reduce_max(tf.stack([peak(t) for t in tensors]))
