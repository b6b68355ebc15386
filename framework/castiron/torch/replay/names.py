"""Names of operations, as people say them."""

from __future__ import annotations

from typing import Any

_SAME = {
    "__add__": "add", "__radd__": "add", "__iadd__": "add_", "__sub__": "sub", "__rsub__": "rsub",
    "__isub__": "sub_", "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul_", "__truediv__": "div",
    "__rdiv__": "div", "__rtruediv__": "div", "__itruediv__": "div_", "__idiv__": "div_", "__div__": "div",
    "__matmul__": "matmul", "__rmatmul__": "matmul", "__pow__": "pow", "__rpow__": "pow", "__ipow__": "pow_",
    "__neg__": "neg", "__abs__": "abs", "true_divide": "div", "divide": "div", "subtract": "sub",
    "multiply": "mul", "absolute": "abs", "negative": "neg", "_pack_padded_sequence": "pack_padded_sequence",
    "_pad_packed_sequence": "pad_packed_sequence",
}  # fmt: skip

_LESS = ("_forward", "_for_cpu", "_impl")

RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
"""Calls that run over all time steps of a sequence."""

_MOVES = frozenset((
    "t", "transpose", "permute", "view", "reshape", "_unsafe_view", "expand", "squeeze", "unsqueeze",
    "detach", "alias", "clone", "contiguous", "_to_copy", "to", "copy_", "slice", "select",
    "as_strided", "split", "split_with_sizes", "chunk", "unbind", "narrow", "empty", "empty_like",
    "new_empty", "zeros", "zeros_like", "fill_", "ones", "ones_like", "full_like", "scalar_tensor",
    "arange", "lift_fresh", "_reshape_alias", "stack", "cat", "flatten",
))  # fmt: skip
"""Operations that compute nothing: they hand numbers on."""


def op_name(func: Any, args: tuple[Any, ...] = ()) -> str:
    """The name of a torch function: `log`, `div`, `cross_entropy`, `add_`."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # a property such as x.T
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return _SAME.get(name, name)


def aten_name(func: Any) -> str:
    """The name of an operation of torch's dispatcher, without the variants of its kernels."""
    name = str(func.overloadpacket.__name__).lstrip("_").removeprefix("native_")
    for tail in _LESS:
        name = name.removesuffix(tail)
    return name


def computes(func: Any) -> bool:
    """Whether an operation of torch's dispatcher computes, and does not only move numbers."""
    return func.overloadpacket.__name__ not in _MOVES


def moves(op: str) -> bool:
    """Whether an operation of this name only hands numbers on."""
    return op in _MOVES or op.startswith("__")


def node_name(node: Any) -> str:
    """The name of a node of autograd: `SqrtBackward0`."""
    return str(node.name()).removeprefix("torch::autograd::").rpartition("::")[2]
