"""Islands: operations that stay wide while the layers around them compute in 16 bits.

torch's own autocast keeps softmax, norms and sums in float32 on CUDA, and in 16 bits on a CPU; variance and
mean are narrow on both; some products (bilinear, matrix-vector, recurrent cells) it narrows on CUDA alone,
and on a CPU they run in float32 or raise on mixed operands. castiron registers the missing rules with torch's
dispatcher under the same autocast keys (`AutocastCPU`, `AutocastCUDA`) wherever torch has none, so that they
also reach operations inside torch's own functions (the softmax inside attention), cost nothing elsewhere,
and are traced by torch.compile like autocast itself.

The rules act only inside castiron's contexts. What marks such a context must be local to the thread, reach
the threads of backward (checkpointing recomputes a forward there), and be part of torch.compile's guards and
cache keys, or a graph compiled without islands could be reused with them. One thing in torch is all of that:
the autocast state of a device type. So the mark is the autocast state of a device type that castiron does not
run on, where it has no other effect; which families are islands is encoded in its dtype.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from castiron.policy.sections import Islands
from castiron.torch.dtypes import NARROW

WIDE = torch.float32
"""What the islands of this wing compute in."""

_MARK = "ipu"
_FAMILIES = ("softmax", "normalization", "reductions", "exponentials")
_CODES: tuple[torch.dtype, ...] = (
    torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32,
    torch.uint64, torch.float64, torch.complex64, torch.complex128, torch.bfloat16, torch.float8_e4m3fn,
    torch.float32, torch.float16,
)  # fmt: skip
"""Position: a bit per family, the first lowest. All four are float16: what a thread's mark has unless set."""
_MASKS = {dtype: mask for mask, dtype in enumerate(_CODES)}

_OPERATIONS: dict[str, tuple[str, ...]] = {
    "softmax": (
        "softmax", "log_softmax", "special_softmax", "special_log_softmax", "logsumexp", "special_logsumexp",
        "logcumsumexp",
    ),
    "normalization": (
        "layer_norm", "group_norm", "rms_norm", "batch_norm", "instance_norm",
        "norm", "frobenius_norm", "nuclear_norm", "linalg_norm", "linalg_vector_norm", "linalg_matrix_norm",
        "var", "std", "var_mean", "std_mean", "renorm",
        "cosine_similarity", "pairwise_distance", "dist", "cdist", "pdist",
    ),
    "reductions": ("sum", "mean", "prod", "nansum", "nanmean", "cumsum", "cumprod", "trace"),
    "exponentials": (
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "special_expm1", "special_log1p", "pow",
        "rsqrt", "reciprocal", "softplus", "sinh", "cosh", "tan", "asin", "acos", "arcsin", "arccos",
        "erfinv", "special_erfinv", "log_sigmoid", "xlogy", "special_xlogy", "xlog1py", "special_xlog1py",
    ),
}  # fmt: skip
"""Families of a policy's `islands` → operations of torch's `aten`; after torch's own list for CUDA."""

_PRODUCTS = (
    "bilinear", "mv", "addmv", "dot", "vdot", "addr", "einsum", "tensordot", "chain_matmul",
    "linalg_multi_dot", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
)  # fmt: skip
"""Operations that compute in the autocast format; of torch's lists that for CUDA alone has them."""

_BATCH_STATISTICS = {"batch_norm", "instance_norm"}
"""These write their running statistics in place (arguments 3 and 4)."""

_TAG = "castiron-islands"
_lock = threading.Lock()
_libraries: dict[str, torch.library.Library] = {}


class island_context:
    """Within it, operations of these families that meet tensors of 16 bits under autocast compute in float32.

    Their results stay float32 until a matrix product or the boundary of a layer rounds them.
    """

    def __init__(self, islands: Islands, device_type: str) -> None:
        install(device_type)
        self._code = _CODES[mask_of(islands)]

    def __enter__(self) -> None:
        self._before = torch.is_autocast_enabled(_MARK), torch.get_autocast_dtype(_MARK)
        torch.set_autocast_dtype(_MARK, self._code)
        torch.set_autocast_enabled(_MARK, True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        enabled, dtype = self._before
        torch.set_autocast_enabled(_MARK, enabled)
        torch.set_autocast_dtype(_MARK, dtype)


def mask_of(islands: Islands) -> int:
    """A bit per family that is kept wide."""
    return sum(1 << i for i, name in enumerate(_FAMILIES) if getattr(islands, name) is not None)


def active_islands() -> frozenset[str]:
    """The families that are islands right here."""
    if not torch.is_autocast_enabled(_MARK):
        return frozenset()
    mask = _MASKS[torch.get_autocast_dtype(_MARK)]
    return frozenset(name for i, name in enumerate(_FAMILIES) if mask >> i & 1)


def install(device_type: str) -> None:
    """Register the rules of a device type, once per process. Outside castiron's contexts they do nothing."""
    if device_type in _libraries:
        return
    with _lock:
        if device_type in _libraries:
            return
        key = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}[device_type]
        library = torch.library.Library("aten", "IMPL", key)
        below = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
        for bit, family in enumerate(_FAMILIES):
            for name in _OPERATIONS[family]:
                for overload in _overloads(name, key):
                    library.impl(overload, _widening(overload, 1 << bit, below))
        for name in _PRODUCTS:
            for overload in _overloads(name, key):
                library.impl(overload, _narrowing(overload, device_type, below))
        _separate_compiled_graphs()
        _libraries[device_type] = library


def _separate_compiled_graphs() -> None:
    """Before 2.13 torch's cache of compiled graphs on disk does not tell autocast states apart: there, what
    this process compiles is kept under a tag of its own."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 13):
        config: Any = torch.compiler.config
        if _TAG not in config.cache_key_tag:
            config.cache_key_tag += _TAG


def _overloads(name: str, key: str) -> list[torch._ops.OpOverload]:
    """The functional overloads of an operation that torch has no rule for; `out=` and in-place ones bypass
    autocast in torch too."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return []
    found = []
    for overload in packet.overloads():
        op = getattr(packet, overload)
        if op._schema.is_mutable or any("Dimname" in str(a.type) for a in op._schema.arguments):
            continue
        try:
            known = torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key)
        except RuntimeError:
            continue  # TorchScript's own, for numbers and lists: the dispatcher does not know it
        if not known:
            found.append(op)
    return found


def _widening(op: torch._ops.OpOverload, bit: int, below: torch._C.DispatchKeySet) -> Callable[..., Any]:
    """The operation with its 16-bit operands widened, where its family is an island; else as it is."""
    names = [a.name for a in op._schema.arguments]
    dtype_at = names.index("dtype") if "dtype" in names else None
    statistics = op._schema.name.removeprefix("aten::") in _BATCH_STATISTICS
    exclude, is_on, code_of = (
        torch._C._ExcludeDispatchKeyGuard,
        torch.is_autocast_enabled,
        torch.get_autocast_dtype,
    )

    def rule(*args: Any, **kwargs: Any) -> Any:
        with exclude(below):
            if not is_on(_MARK) or not _MASKS[code_of(_MARK)] & bit:
                return op(*args, **kwargs)
            if dtype_at is not None:
                if len(args) > dtype_at or kwargs.get("dtype") is not None:
                    return op(*args, **kwargs)  # an explicit dtype goes before every rule
                if args[0].dtype in NARROW:
                    kwargs["dtype"] = WIDE
                return op(*args, **kwargs)
            wide = [a.to(WIDE) if isinstance(a, torch.Tensor) and a.dtype in NARROW else a for a in args]
            result = op(*wide, **kwargs)
            if statistics:
                for at in (3, 4):
                    if wide[at] is not args[at]:
                        args[at].copy_(wide[at])
            return result

    return rule


def _narrowing(
    op: torch._ops.OpOverload, device_type: str, below: torch._C.DispatchKeySet
) -> Callable[..., Any]:
    """The operation with its floating-point operands in the autocast format, inside castiron's contexts."""
    exclude, is_on = torch._C._ExcludeDispatchKeyGuard, torch.is_autocast_enabled

    def cast(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            eligible = value.is_floating_point() and value.dtype is not torch.float64
            return value.to(dtype) if eligible else value
        return [cast(v, dtype) for v in value] if isinstance(value, (list, tuple)) else value

    def rule(*args: Any, **kwargs: Any) -> Any:
        with exclude(below):
            if is_on(_MARK):
                dtype = torch.get_autocast_dtype(device_type)
                args = tuple(cast(a, dtype) for a in args)
            return op(*args, **kwargs)

    return rule
