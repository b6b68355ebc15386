"""The process-wide switches of matrix products: set explicitly, both ways, and put back.

torch has two interfaces for tf32. The newer (`fp32_precision` per backend and operation) can say everything;
the older (`allow_tf32`, `set_float32_matmul_precision`) is still read by other libraries, and raises when the
newer has said something it cannot express. Here the older is set first and the newer after it, to the same
effect, so that reading either works.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from castiron.policy.sections import MatmulSection

_OPERATIONS = tuple((b, op) for b in ("cuda", "mkldnn") for op in ("matmul", "conv", "rnn"))
_REDUCTIONS = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")


@contextlib.contextmanager
def matmul_switches(section: MatmulSection) -> Iterator[dict[str, Any]]:
    """Within it, the switches are as the policy declares; afterwards, also after an error, as they were.

    tf32 on or off for CUDA matrix products, cuDNN convolutions and recurrent layers, and oneDNN's same;
    reduced-precision reductions of float16 and bfloat16 products on or off, and of attention; accumulation of
    float16 products in float16 always off. Yields the `snapshot` of what was set.
    """
    before = _State()
    try:
        set_switches(section)
        yield snapshot()
    finally:
        before.restore()


def set_switches(section: MatmulSection) -> None:
    """Set the switches for the rest of the process."""
    with _quiet():
        torch.set_float32_matmul_precision("high" if section.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = section.tf32
        for backend, operation in _OPERATIONS:
            _set_precision(backend, operation, "tf32" if section.tf32 else "ieee")
        matmul = torch.backends.cuda.matmul
        for name in _REDUCTIONS:
            setattr(matmul, name, section.reduced_precision_reduction)
        matmul.allow_fp16_accumulation = False
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(section.reduced_precision_reduction)


def snapshot() -> dict[str, Any]:
    """What is set now, JSON-ready: `tf32`'s switches by backend and operation, reductions, denormals."""
    matmul = torch.backends.cuda.matmul
    return {
        "fp32_precision": {f"{b}.{op}": _precision(b, op) for b, op in _OPERATIONS},
        "float32_matmul_precision": _legacy("matmul"),
        "reduced_precision_reduction": {
            "float16": bool(getattr(matmul, _REDUCTIONS[0])),
            "bfloat16": bool(getattr(matmul, _REDUCTIONS[1])),
            "attention": bool(torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()),
        },
        "float16_accumulation": bool(matmul.allow_fp16_accumulation),
        "denormals_flushed": denormals_flushed(),
    }


def denormals_flushed() -> bool:
    """Whether this thread's CPU arithmetic turns subnormal numbers into zero (torch cannot be asked)."""
    smallest_normal = torch.tensor([torch.finfo(torch.float32).tiny])
    return bool((smallest_normal * 0.5 == 0).item())


class _State:
    """Everything that `set_switches` changes, to be put back."""

    def __init__(self) -> None:
        self.precisions = {key: _precision(*key) for key in _OPERATIONS}
        self.matmul, self.cudnn = _legacy("matmul"), _legacy("cudnn")
        matmul = torch.backends.cuda.matmul
        self.reductions = {
            name: (getattr(matmul, name), getattr(matmul, f"{name}_split_k", True)) for name in _REDUCTIONS
        }
        self.accumulation = matmul.allow_fp16_accumulation
        self.attention = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()

    def restore(self) -> None:
        with _quiet():
            if self.matmul is not None:
                torch.set_float32_matmul_precision(self.matmul)
            if self.cudnn is not None:
                torch.backends.cudnn.allow_tf32 = self.cudnn
            for (backend, operation), value in self.precisions.items():
                _set_precision(backend, operation, value)
            matmul = torch.backends.cuda.matmul
            for name, both in self.reductions.items():
                setattr(matmul, name, both if hasattr(matmul, f"{name}_split_k") else both[0])
            matmul.allow_fp16_accumulation = self.accumulation
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(self.attention)


def _precision(backend: str, operation: str) -> str:
    return str(torch._C._get_fp32_precision_getter(backend, operation))


def _set_precision(backend: str, operation: str, value: str) -> None:
    # by function: assigning to torch.backends.mkldnn.fp32_precision sets the value of every backend instead
    torch._C._set_fp32_precision_setter(backend, operation, value)


def _legacy(name: str) -> Any:
    """The older interface's value; None where it refuses to say, because the newer one has said more."""
    try:
        if name == "matmul":
            return torch.get_float32_matmul_precision()
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice to use the newer interface, which is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32.*")
        warnings.filterwarnings("ignore", message=".*fp32_precision.*")
        yield
