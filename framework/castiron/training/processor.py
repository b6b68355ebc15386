"""What a processor says it has, and what follows from that and from measured times for number formats."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from pathlib import Path

from castiron.diagnostics import HardwareError, Place, finding
from castiron.policy import Family, Support

MEASURED = ("float32", "float64", "bfloat16", "float16")
"""Formats whose support is measured."""
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
_FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_ne_convert",
    "amx_tile", "amx_bf16", "amx_fp16", "asimd", "neon", "fphp", "asimdhp", "bf16", "sve", "svebf16",
    "sve_bf16", "fp16_arith",
)  # fmt: skip
_CPU_NATIVE: dict[str, tuple[str, ...]] = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16", "svebf16", "sve_bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "asimdhp", "fphp", "fp16_arith"),
}


@functools.cache
def cpu_features(also: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """What matters for number formats of what the CPU says it has, or a framework says of it."""
    says = set(also)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("flags", "features")):
                says.update(line.split(":", 1)[1].split())
                break
    return tuple(name for name in _FEATURES if name in says)


def no_such_device(device: str, present: Iterable[str]) -> HardwareError:
    """What is raised where a config asks for a device that is not there (H703)."""
    return HardwareError(
        finding(
            "H703",
            f"there is no device '{device}'",
            place=Place(key="trainer.device"),
            expected=f"auto, {', '.join(present)}",
            received=f"'{device}'",
        )
    )


def support_of(
    family: Family,
    name: str,
    device: str,
    features: tuple[str, ...],
    times: dict[str, float],
    failures: dict[str, str],
    *,
    float8: str,
) -> Support:
    """How a device computes a family of operations in a format.

    Args:
        device: `cpu` or `cuda`.
        features: of the device; of a GPU `compute_8.0`.
        times: seconds by format, of those that ran.
        failures: why others did not.
        float8: why float8 is not computed.
    """
    if name == "tf32":
        if device == "cuda" and _compute_version(features) >= (8, 0):
            return Support(status="native")
        if device == "cuda":
            why = f"tf32 needs compute capability 8.0; this device has {_dotted(_compute_version(features))}"
        else:
            why = "tf32 is a mode of NVIDIA's tensor cores"
        return Support(status="unsupported", reason=why)
    if name in FLOAT8:
        return Support(status="unsupported", reason=float8)
    if name in failures:
        return Support(status="unsupported", reason=failures[name])
    cost = round(times[name] / times["float32"], 2) if times.get("float32") else None
    native, why = _native(name, device, features)
    if native or family == "embedding":
        return Support(status="native", cost=cost)
    return Support(status="emulated", cost=cost, reason=why)


def _native(name: str, device: str, features: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the processor has arithmetic for a format, and why not."""
    if name in ("float32", "float64"):
        return True, ""
    if device == "cpu":
        if any(f in features for f in _CPU_NATIVE[name]):
            return True, ""
        names = "avx512_bf16 or amx_bf16" if name == "bfloat16" else "avx512_fp16 or amx_fp16"
        return False, f"no {names}: {name} is converted to float32 and back"
    found = _compute_version(features)
    least = {"bfloat16": (8, 0), "float16": (5, 3)}[name]
    if found >= least:
        return True, ""
    return False, f"compute capability {_dotted(found)}, and {name} arithmetic needs {_dotted(least)}"


def _compute_version(features: tuple[str, ...]) -> tuple[int, int]:
    for feature in features:
        if feature.startswith("compute_"):
            major, minor = feature.removeprefix("compute_").split(".")
            return int(major), int(minor)
    return 0, 0


def _dotted(found: tuple[int, int]) -> str:
    return f"{found[0]}.{found[1]}"
