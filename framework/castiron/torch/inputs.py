"""A batch before it enters the model: every leaf cast by what it is for, and none by accident.

Roles come from the schema where there is one. Without it (any LightningModule) floating-point leaves are
features, and integers and booleans are left as they are: an id never becomes a float.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from castiron.diagnostics import DataError, Finding
from castiron.policy import PrecisionPolicy
from castiron.torch.dtypes import NARROW, dtype_name, torch_dtype
from castiron.training.refused_leaves import no_numbers, too_large

if TYPE_CHECKING:
    from castiron.data import Schema


def cast_inputs(batch: Any, policy: PrecisionPolicy, schema: Schema | None = None) -> Any:
    """The batch with floating-point leaves in the formats that the policy lets into the model.

    Features become what the first layer takes: float32 for float32 and mixed policies, the parameters'
    format for the `*-true` and float64 ones. Targets (known by the schema) become the loss dtype and are
    never narrowed below it. A float64 leaf never passes unless the policy declares float64. NumPy arrays
    become tensors. Text and other leaves that are no numbers pass. Nested mappings, sequences, dataclasses
    and packed sequences keep their types; the very same object comes back where nothing was changed.

    Without a schema features and targets cannot be told apart: under `*-true` policies a float32 leaf then
    stays float32, and the layers narrow it, unless the policy has no island (no autocast that would).

    Raises:
        DataError: an array of Python objects (D117) or of text (D101), or a value that becomes infinite in
            the narrower format (D103); with the place in the batch.
    """
    return InputCast(policy, schema)(batch)


class InputCast:
    """`cast_inputs` for many batches: what follows from the policy and the schema is found out once."""

    def __init__(self, policy: PrecisionPolicy, schema: Schema | None = None) -> None:
        self.feature = torch_dtype(policy.param)
        self.target = torch_dtype(policy.loss)
        islands = policy.islands
        casts_itself = policy.compute in ("bfloat16", "float16") and bool(
            policy.is_mixed
            or islands.softmax
            or islands.normalization
            or islands.reductions
            or islands.exponentials
        )
        self.unknown = torch.float32 if self.feature in NARROW and casts_itself else self.feature
        self.roles = {field.name: field.role for field in schema.fields} if schema is not None else {}

    def __call__(self, leaf: Any, path: str = "batch", role: str | None = None) -> Any:
        """A batch, or a part of it: where it stands there, and the role of the field that it belongs to."""
        if isinstance(leaf, torch.Tensor):
            return self._tensor(leaf, path, role)
        if isinstance(leaf, (np.ndarray, np.generic)):
            return self._array(leaf, path, role)
        if isinstance(leaf, PackedSequence):
            data = self._tensor(leaf.data, f"{path}.data", role)
            return leaf if data is leaf.data else leaf._replace(data=data)
        if isinstance(leaf, Mapping):
            return self._mapping(leaf, path, role)
        if isinstance(leaf, (tuple, list)):
            return self._sequence(leaf, path, role)
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            names = [f.name for f in dataclasses.fields(leaf) if f.init]
            new = {n: self(getattr(leaf, n), f"{path}.{n}", self.roles.get(n, role)) for n in names}
            if all(new[n] is getattr(leaf, n) for n in names):
                return leaf
            return dataclasses.replace(leaf, **new)
        return leaf

    def _mapping(self, leaf: Mapping[Any, Any], path: str, role: str | None) -> Any:
        new = {k: self(v, f"{path}[{k!r}]", self.roles.get(k, role)) for k, v in leaf.items()}
        if all(new[k] is v for k, v in leaf.items()):
            return leaf
        kind: Any = type(leaf)
        if kind is dict:
            return new
        return kind(**new) if hasattr(kind, "__dataclass_fields__") else kind(new)

    def _sequence(self, leaf: Any, path: str, role: str | None) -> Any:
        names = getattr(leaf, "_fields", None)
        items = []
        for i, item in enumerate(leaf):
            place, its_role = (f"{path}[{i}]", role)
            if names:
                place, its_role = f"{path}.{names[i]}", self.roles.get(names[i], role)
            items.append(self(item, place, its_role))
        if all(new is old for new, old in zip(items, leaf, strict=True)):
            return leaf
        return type(leaf)(*items) if names else type(leaf)(items)

    def _tensor(self, tensor: torch.Tensor, path: str, role: str | None) -> torch.Tensor:
        if not tensor.dtype.is_floating_point:
            return tensor
        wanted = self._wanted(role)
        if tensor.dtype is wanted:
            return tensor
        cast = tensor.to(wanted)
        narrows_range = torch.finfo(wanted).max < torch.finfo(tensor.dtype).max
        if narrows_range and bool((cast.isinf() & ~tensor.isinf()).any()):
            raise DataError(_overflow(tensor, cast, path))
        return cast

    def _wanted(self, role: str | None) -> torch.dtype:
        if role == "target":
            return self.target
        return self.unknown if role is None else self.feature

    def _array(self, array: Any, path: str, role: str | None) -> torch.Tensor:
        array = np.asarray(array)
        if array.dtype.kind in "OUSVMm":
            raise DataError(no_numbers(array, path))
        if not array.flags.writeable or not array.dtype.isnative:
            array = np.array(array, dtype=array.dtype.newbyteorder("="))
        return self._tensor(torch.from_numpy(array), path, role)


def _overflow(tensor: torch.Tensor, cast: torch.Tensor, path: str) -> Finding:
    lost = cast.isinf() & ~tensor.isinf()
    first = tuple(lost.nonzero()[0].tolist())
    wanted, given = dtype_name(cast.dtype), dtype_name(tensor.dtype)
    largest, value = torch.finfo(cast.dtype).max, tensor[first].item()
    return too_large(wanted, largest, path, first, value, given, int(lost.sum()))
