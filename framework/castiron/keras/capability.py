"""What a device computes with TensorFlow, in which format, and at what cost: found once, kept in the user's
cache.

Whether a format is native is read from what the processor says it has. Whether it runs at all, and how long
it takes beside float32, is measured with small layers: that cannot be known from a list.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from castiron.diagnostics import HardwareError, Place, finding
from castiron.keras.determinism import isolated_rng
from castiron.keras.probes import make_probe
from castiron.policy import FAMILIES, DeviceCapability, Family, Support
from castiron.training.capability_cache import read, write

_MEASURED = ("float32", "float64", "bfloat16", "float16")
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
_ROUNDS = 4
_BUDGET_S = 0.05
"""Time for one family; at least two rounds are taken, so that no time is that of a first call."""
_CACHE_FORMAT = 1


def device_capability(device: str = "auto", *, refresh: bool = False) -> DeviceCapability:
    """What a device ("auto", "cpu", "cuda", "cuda:1") computes; from the cache where it was probed before.

    Raises:
        HardwareError: there is no such device (H703).
    """
    where = resolve_device(device)
    identity = _identity(where)
    if not refresh and (cached := read(identity)) is not None:
        return cached
    capability = probe(where)
    write(identity, capability)
    return capability


def resolve_device(device: str) -> str:
    """TensorFlow's name of the device that a config means; auto is the first GPU, else the CPU.

    Raises:
        HardwareError: there is no such device (H703).
    """
    gpus = len(tf.config.list_logical_devices("GPU"))
    if device == "auto":
        return "/GPU:0" if gpus else "/CPU:0"
    present = {"cpu": "/CPU:0", **{f"cuda:{i}": f"/GPU:{i}" for i in range(gpus)}}
    name = "cuda:0" if device == "cuda" else device
    if name not in present:
        raise HardwareError(
            finding(
                "H703",
                f"there is no device '{device}'",
                place=Place(key="trainer.device"),
                expected=f"auto, {', '.join(present)}",
                received=f"'{device}'",
            )
        )
    return present[name]


def probe(device: str) -> DeviceCapability:
    """Find out what a device (TensorFlow's name) computes, without the cache. Takes some seconds; draws no
    random numbers of the caller's."""
    features = features_of(device)
    support: dict[Family, dict[str, Support]] = {}
    with isolated_rng(), tf.device(device):
        for family in FAMILIES:
            times, failures = _measure(family)
            support[family] = {
                name: _support(family, name, _kind(device), features, times, failures)
                for name in (*_MEASURED, "tf32", *_FLOAT8)
            }
    return DeviceCapability(
        device=_kind(device),
        name=device_name(device),
        features=features,
        support=support,
        versions=_identity(device)["versions"],
    )


def features_of(device: str) -> tuple[str, ...]:
    """What the processor says it has, as far as it matters for number formats."""
    if _kind(device) == "cuda":
        major, minor = _details(device).get("compute_capability", (0, 0))
        return (f"compute_{major}.{minor}",)
    return _cpu_features()


@functools.cache
def _cpu_features() -> tuple[str, ...]:
    says: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("flags", "features")):
                says.update(line.split(":", 1)[1].split())
                break
    known = (
        "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_ne_convert",
        "amx_tile", "amx_bf16", "amx_fp16", "asimd", "neon", "fphp", "asimdhp", "bf16", "sve", "svebf16",
    )  # fmt: skip
    return tuple(name for name in known if name in says)


_CPU_NATIVE: dict[str, tuple[str, ...]] = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16", "svebf16"),
    "float16": ("avx512_fp16", "amx_fp16", "asimdhp", "fphp"),
}


def _native(name: str, kind: str, features: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the processor has arithmetic for a format, and why not."""
    if name in ("float32", "float64"):
        return True, ""
    if kind == "cpu":
        if any(f in features for f in _CPU_NATIVE[name]):
            return True, ""
        names = "avx512_bf16 or amx_bf16" if name == "bfloat16" else "avx512_fp16 or amx_fp16"
        return False, f"no {names}: {name} is converted to float32 and back"
    found = _compute_version(features)
    least = {"bfloat16": (8, 0), "float16": (5, 3)}[name]
    if found >= least:
        return True, ""
    return False, f"compute capability {_dotted(found)}, and {name} arithmetic needs {_dotted(least)}"


def _support(
    family: Family,
    name: str,
    kind: str,
    features: tuple[str, ...],
    times: dict[str, float],
    failures: dict[str, str],
) -> Support:
    if name == "tf32":
        if kind == "cuda" and _compute_version(features) >= (8, 0):
            return Support(status="native")
        if kind == "cuda":
            why = f"tf32 needs compute capability 8.0; this device has {_dotted(_compute_version(features))}"
        else:
            why = "tf32 is a mode of NVIDIA's tensor cores"
        return Support(status="unsupported", reason=why)
    if name in _FLOAT8:
        return Support(status="unsupported", reason="Keras only simulates float8 products")
    if name in failures:
        return Support(status="unsupported", reason=failures[name])
    cost = times[name] / times["float32"] if times.get("float32") else None
    cost = None if cost is None else round(cost, 2)
    native, why = _native(name, kind, features)
    if native or family == "embedding":
        return Support(status="native", cost=cost)
    return Support(status="emulated", cost=cost, reason=why)


def _measure(family: Family) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of a forward and backward pass per format (the least of several, in turns), and failures."""
    probes: dict[str, Callable[[], None]] = {}
    failures: dict[str, str] = {}
    for name in _MEASURED:
        try:
            probes[name] = make_probe(family, name)
            probes[name]()
        except (tf.errors.OpError, TypeError, ValueError, NotImplementedError) as error:
            probes.pop(name, None)
            text = str(error).strip() or type(error).__name__
            failures[name] = f"TensorFlow's kernel fails: {text.splitlines()[0][:200]}"
    times = dict.fromkeys(probes, float("inf"))
    start = time.perf_counter()
    for done in range(_ROUNDS):
        if done >= 2 and time.perf_counter() - start > _BUDGET_S:
            break
        for name, run in probes.items():
            began = time.perf_counter()
            run()
            times[name] = min(times[name], time.perf_counter() - began)
    return times, failures


def _kind(device: str) -> str:
    return "cuda" if "GPU" in device else "cpu"


def _compute_version(features: tuple[str, ...]) -> tuple[int, int]:
    for feature in features:
        if feature.startswith("compute_"):
            major, minor = feature.removeprefix("compute_").split(".")
            return int(major), int(minor)
    return 0, 0


def _dotted(found: tuple[int, int]) -> str:
    return f"{found[0]}.{found[1]}"


def _details(device: str) -> dict[str, Any]:
    gpus = tf.config.list_physical_devices("GPU")
    index = int(device.rpartition(":")[2])
    details: dict[str, Any] = tf.config.experimental.get_device_details(gpus[index])
    return details


def device_name(device: str) -> str:
    """The model name of a processor or GPU."""
    if _kind(device) == "cuda":
        return str(_details(device).get("device_name", "GPU"))
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _identity(device: str) -> dict[str, Any]:
    """Everything on which the result depends."""
    try:
        own = version("castiron")
    except PackageNotFoundError:
        own = "unknown"
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "castiron": own}
    return {
        "format": _CACHE_FORMAT,
        "wing": "tensorflow",
        "device": _kind(device),
        "name": device_name(device),
        "features": list(features_of(device)),
        "versions": versions,
    }
