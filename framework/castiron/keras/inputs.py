"""A batch before it enters the model: every leaf cast by what it is for, and none by accident.

Roles come from the schema where there is one. Without it floating-point leaves are features, and integers
and booleans are left as they are: an id never becomes a float. Keras's own adapters cast float64 to floatx in
silence, and refuse text and objects without saying where; here both are said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import tensorflow as tf

from castiron.diagnostics import DataError, Finding
from castiron.keras.dtypes import NARROW, dtype_name, is_float, tensorflow_dtype, tensorflow_name
from castiron.policy import PrecisionPolicy
from castiron.training.refused_leaves import no_numbers, too_large

if TYPE_CHECKING:
    from castiron.data import Batches, Schema


def cast_inputs(batch: Any, policy: PrecisionPolicy, schema: Schema | None = None, *, role: str = "") -> Any:
    """The batch with floating-point leaves in the formats that the policy lets into the model.

    Features become what the first layer takes: float32 for float32 and mixed policies, the parameters'
    format for the `*-true` and float64 ones. Targets (known by the schema, or by `role`) become the loss
    dtype and are never narrowed below it. A float64 leaf never passes unless the policy declares float64.
    Works on NumPy arrays (which stay arrays) and on tensors, also inside a `tf.function`; nested mappings and
    sequences keep their types. An array comes back as the very same object where nothing was changed.

    Args:
        role: of leaves that the schema does not name. Without one a float32 leaf stays float32 also under
            `*-true` policies, and the layers narrow it.

    Raises:
        DataError: an array of Python objects (D117), of text (D101) or of other things (D118), or a value
            that becomes infinite in the narrower format (D103; not looked for inside a `tf.function`); with
            the place in the batch.
    """
    return _Cast(policy, schema)(batch, "batch", role)


def as_dataset(batches: Batches, policy: PrecisionPolicy, schema: Schema | None = None) -> Any:
    """One epoch of batches after another as a `tf.data.Dataset` of mappings, cast by role.

    Ragged text has rows of any length: its dimensions are None. An iterator goes on where the batches stand.
    """
    first = next(iter(_once(batches, policy, schema)))
    signature = {
        name: tf.TensorSpec([None] * np.ndim(value), tf.as_dtype(value.dtype))
        for name, value in first.items()
    }
    make: Callable[[], Iterator[Any]] = lambda: _once(batches, policy, schema)  # noqa: E731
    data = tf.data.Dataset.from_generator(make, output_signature=signature)
    return data.apply(tf.data.experimental.assert_cardinality(len(batches)))


def _once(batches: Batches, policy: PrecisionPolicy, schema: Schema | None) -> Iterator[Mapping[str, Any]]:
    state = batches.state_dict()
    for batch in batches:
        yield cast_inputs(dict(batch), policy, schema)
    batches.load_state_dict(state)


class _Cast:
    def __init__(self, policy: PrecisionPolicy, schema: Schema | None) -> None:
        self.feature = tensorflow_name(policy.param)
        self.target = tensorflow_name(policy.loss)
        # Features and targets cannot be told apart: a layer narrows what it takes by itself.
        self.unknown = "float32" if self.feature in NARROW else self.feature
        self.roles = {field.name: field.role for field in schema.fields} if schema is not None else {}

    def __call__(self, leaf: Any, path: str, role: str) -> Any:
        if tf.is_tensor(leaf):
            return self._tensor(leaf, path, role)
        if isinstance(leaf, (np.ndarray, np.generic)):
            return self._array(np.asarray(leaf), path, role)
        if isinstance(leaf, Mapping):
            new = {k: self(v, f"{path}[{k!r}]", self.roles.get(k, role)) for k, v in leaf.items()}
            return new if type(leaf) is dict else type(leaf)(new)  # type: ignore[call-arg]
        if isinstance(leaf, (tuple, list)):
            names = getattr(leaf, "_fields", None)
            items = [self(item, f"{path}[{i}]", role) for i, item in enumerate(leaf)]
            return type(leaf)(*items) if names else type(leaf)(items)
        return leaf

    def _wanted(self, role: str) -> str:
        if role in ("target", "weight"):
            return self.target
        return self.feature if role else self.unknown

    def _array(self, array: np.ndarray, path: str, role: str) -> np.ndarray:
        if array.dtype.kind in "OUSMm" or (array.dtype.kind == "V" and not _is_number(array.dtype)):
            raise DataError(no_numbers(array, path, encoded="text"))
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if not is_float(dtype_name(array.dtype)):
            return array
        wanted = self._wanted(role)
        target = tensorflow_dtype(wanted).as_numpy_dtype
        if array.dtype == target:
            return array
        with np.errstate(over="ignore"):
            cast = array.astype(target)
        if _narrows_range(target, array.dtype):
            lost = np.isinf(cast) & ~np.isinf(array)
            if lost.any():
                raise DataError(_overflow(array, lost, wanted, path))
        return cast

    def _tensor(self, tensor: Any, path: str, role: str) -> Any:
        if tensor.dtype == tf.string:
            raise DataError(no_numbers(np.empty(0, "S1"), path, encoded="text"))
        if not is_float(tensor.dtype):
            return tensor
        wanted = self._wanted(role)
        if tensor.dtype == tf.as_dtype(wanted):
            return tensor
        if hasattr(tensor, "numpy") and tf.executing_eagerly() and not isinstance(tensor, tf.RaggedTensor):
            return tf.convert_to_tensor(self._array(tensor.numpy(), path, role))
        return tf.cast(tensor, wanted)


def _is_number(dtype: Any) -> bool:
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return True


def _narrows_range(target: Any, source: Any) -> bool:
    return float(ml_dtypes.finfo(target).max) < float(ml_dtypes.finfo(source).max)


def _overflow(array: np.ndarray, lost: np.ndarray, wanted: str, path: str) -> Finding:
    first = tuple(int(i) for i in np.argwhere(lost)[0])
    largest = float(ml_dtypes.finfo(tensorflow_dtype(wanted).as_numpy_dtype).max)
    value, count = float(array[first]), int(lost.sum())
    return too_large(wanted, largest, path, first, value, dtype_name(array.dtype), count)
