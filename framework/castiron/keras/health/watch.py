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
from castiron.keras.health.order import parts_of
from castiron.keras.modules import children, family, own_variables, stored_dtype, walk
from castiron.keras.registry import gradients_forgotten
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
_LAST = (L.LSTM, L.GRU, L.SimpleRNN)
"""Recurrent layers that can hand on all time steps, and hand on the last of them."""
_STEPS = 1024
"""Calls of one layer in one forward pass whose level is kept."""
Key = tuple[Kind, str]


class Watch:
    """One way of looking at a step: what to measure, and, once the step is traced, what it gives.

    Args:
        large: everything; else only the largest magnitudes that layers hand on.
        slow: also what changes slowly: parameters and the optimizer's moments.
        formats: those to ask about.
        learns: whether the step updates the parameters.
    """

    def __init__(
        self,
        core: StepCore,
        *,
        large: bool = True,
        slow: bool = True,
        formats: Sequence[str] = (),
        learns: bool = True,
    ) -> None:
        self._core = core
        self.large, self.slow, self.formats, self.learns = large, slow, tuple(formats), learns
        self.dtypes: dict[Key, str] = {}
        """Format of each group, known when the step has been traced."""
        self.kept: dict[str, str] = {}
        """Format of the weights of each layer: of the master copies, where there are any."""
        self._layers = [
            (path, layer) for path, layer in _watched(core.model) if not isinstance(layer, _PASSING)
        ]
        self._cells = [(path, layer) for path, layer in walk(core.model) if path and _is_cell(layer)]
        self._groups: dict[Key, list[Any]] = {}
        self._states: dict[str, list[Any]] = {}
        self._graph: Any = None
        self.casts: list[tuple[str, str]] = []
        """Formats, before and after, of each cast to float16 on the gradient's way back."""
        self._casts: list[dict[str, Group]] = []
        self.levels: dict[str, Any] = {}
        self.dead: dict[str, Any] = {}
        self.parts: dict[str, Any] = {}
        """Of the gradients of what layers with parameters hand on; see `parts_of`."""
        self.summed_in: dict[str, str] = {}
        """Layer → format in which the gradients of its parameters are added up over micro-batches."""
        self._samples: dict[str, dict[str, Any]] = {}

    # --- while the step is traced ------------------------------------------------------------------

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Within it a step is built that also measures; `outputs` has what it gives."""
        self._groups, self.levels, self.dead, self._samples = {}, {}, {}, {}
        self._states, self.casts, self._casts, self.parts = {}, [], [], {}
        self._graph = _graph()
        spies: list[tuple[Any, Any]] = []
        for path, layer in self._cells if self.large else ():
            spies.append((layer, layer.__dict__.get("call")))
            layer.__dict__["call"] = self._called(path, layer.call)
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
            for layer, before in reversed(spies):
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
        for path, states in self._states.items():
            self.levels[path] = tf.stack(states)
        return {
            "groups": groups,
            "samples": self._samples,
            "levels": self.levels,
            "dead": self.dead,
            "casts": self._casts,
            "parts": self.parts,
        }

    def _add(self, kind: Kind, path: str, tensors: Sequence[Any]) -> None:
        floats = [t for t in tensors if is_float(t.dtype)]
        if floats:
            self._groups.setdefault((kind, path), []).extend(floats)
            self.dtypes[kind, path] = dtype_name(self._groups[kind, path][0].dtype)

    # --- layers ------------------------------------------------------------------------------------

    def _spied(self, path: str, layer: Any, call: Any) -> Any:
        def spied(*args: Any, **kwargs: Any) -> Any:
            if self.large and isinstance(layer, _LAST) and not layer.return_sequences:
                result = self._whole_sequence(path, layer, call, *args, **kwargs)
            else:
                result = call(*args, **kwargs)
            flat = self._floats(result)
            labels = {id(t): path if i == 0 else f"{path}[{i}]" for i, t in enumerate(flat)}
            for tensor in flat:
                self._add("activations", labels[id(tensor)], [tensor])
            if not self.large or not flat:
                return result
            self._see_state(path, layer, flat[0])
            seen = {id(t): self._with_gradient(labels[id(t)], t, layer) for t in flat}
            return tf.nest.map_structure(lambda t: seen.get(id(t), t), result)

        return spied

    def _floats(self, result: Any) -> list[Any]:
        """The floating-point tensors that a layer hands on. What is made within a loop or a function of the
        model's own cannot be seen from outside of it."""
        if _graph() is not self._graph:
            return []
        return [t for t in tf.nest.flatten(result) if tf.is_tensor(t) and is_float(t.dtype)]

    def _with_gradient(self, path: str, tensor: Any, layer: Any) -> Any:
        """The same tensor; its gradient is measured as it comes by."""

        @tf.custom_gradient
        def same(x: Any) -> tuple[Any, Any]:
            def gradient(upstream: Any) -> Any:
                dense = tf.convert_to_tensor(upstream)
                dense.set_shape(x.shape)
                self._add("activation gradients", path, [dense])
                self._see_order(path, layer, dense)
                return upstream

            return tf.identity(x), gradient

        with gradients_forgotten():  # a tape in this graph has them at hand
            new = same(tensor)
        mask = getattr(tensor, "_keras_mask", None)
        if mask is not None:
            new._keras_mask = mask
        return new

    def _see_order(self, path: str, layer: Any, gradient: Any) -> None:
        if not self.formats or not layer.trainable_variables:
            return
        first = getattr(layer, "data_format", None) == "channels_first"
        parts = parts_of(gradient, 1 if first else -1)
        if parts is not None:
            known = self.parts.get(path)
            self.parts[path] = parts if known is None else known + parts

    def _whole_sequence(self, path: str, layer: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
        """What a recurrent layer hands on of its last time step; its level is seen at all of them."""
        layer.return_sequences = True
        try:
            result = call(*args, **kwargs)
        finally:
            layer.return_sequences = False
        sequence, *states = result if isinstance(result, (tuple, list)) else (result,)
        self._see_state(path, layer, sequence)
        last = sequence[:, -1]
        return (last, *states) if isinstance(result, (tuple, list)) else last

    def _called(self, path: str, call: Any) -> Any:
        """A layer that is called again and again in a forward pass is a cell: the levels of its states are
        kept, from the second call on."""
        calls = [0]

        def called(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            calls[0] += 1
            flat = self._floats(result)
            for i, tensor in enumerate(flat[:3] if 1 < calls[0] <= _STEPS else ()):
                level = tf.sqrt(tf.reduce_mean(tf.square(tf.cast(tensor, tf.float32))))
                self._states.setdefault(f"{path}[{i}]" if i else path, []).append(level)
            return result

        return called

    def _see_state(self, path: str, layer: Any, main: Any) -> None:
        if isinstance(layer, L.RNN) and main.shape.rank == 3:
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
                owner = owners.get(id(variable), "")
                self._add("gradients", owner, [gradient])
                self.summed_in.setdefault(owner, dtype_name(gradient.dtype))
                if self.learns:
                    self._samples[variable.path]["gradient"] = tf.cast(_sample(gradient), tf.float64)
        self._see_casts()

    def _see_casts(self) -> None:
        """What the gradient loses where it goes from a wide format to float16: below such a cast nothing of
        what underflowed is left to measure. Those within loops are not seen, nor is eager mode."""
        for op in self._graph.get_operations() if self._graph is not None else ():
            if op.type != "Cast" or "gradient_tape/" not in op.name:
                continue
            wide, narrow = op.inputs[0], op.outputs[0]
            if wide.dtype.is_floating and wide.dtype.size > 2 and narrow.dtype == tf.float16:
                self.casts.append((dtype_name(wide.dtype), dtype_name(narrow.dtype)))
                self._casts.append({"wide": measured([wide]), "narrow": measured([narrow])})

    def _before(self) -> None:
        if not self.learns:
            return
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
            if self.slow:
                self._add("parameters", path, [tf.convert_to_tensor(own._value)])
            if not self.learns:
                continue
            kept = target if target is own or updates._keeps else own
            sample = self._samples[own.path]
            self.kept[own.path] = stored_dtype(kept)
            sample["after"] = _sample(tf.convert_to_tensor(kept._value))
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


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _is_cell(layer: Any) -> bool:
    """Whether a layer may be a cell that is called for each time step: it has layers inside and is no
    recurrent layer itself, or it is nobody's but the user's."""
    if isinstance(layer, L.RNN):
        return False
    return bool(children(layer)) or not type(layer).__module__.startswith("keras.")


def _sample(tensor: Any) -> Any:
    flat = tf.reshape(tensor, [-1])
    return flat[:: max(-(-int(flat.shape[0]) // SAMPLE), 1)]


def _peak(tensors: Sequence[Any]) -> Any:
    return tf.reduce_max(tf.stack([peak(t) for t in tensors]))
