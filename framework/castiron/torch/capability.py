"""What a device computes, in which format, and at what cost: found once, kept in the user's cache.

Whether a format is native is read from what the processor says it has. Whether it runs at all, and how long
it takes beside float32, is measured with small layers: that cannot be known from a list.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from castiron.diagnostics import HardwareError, Place, finding
from castiron.policy import FAMILIES, DeviceCapability, Family, Support
from castiron.torch.determinism import isolated_rng, threads
from castiron.torch.dtypes import torch_dtype
from castiron.torch.probes import make_probe
from castiron.training.capability_cache import read, write

_MEASURED = ("float32", "float64", "bfloat16", "float16")
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
_PRODUCTS: tuple[Family, ...] = ("matmul", "conv", "lstm", "gru", "rnn", "attention")
_ROUNDS = 5
_BUDGET_S = 0.05
"""Time for one family; at least two rounds are taken, so that no time is that of a first call."""
_CACHE_FORMAT = 1


def device_capability(device: str | torch.device = "auto", *, refresh: bool = False) -> DeviceCapability:
    """What a device ("auto", "cpu", "cuda", "cuda:1") computes; from the cache where it was probed before.

    Raises:
        HardwareError: there is no such device (H703).
    """
    where = resolve_device(str(device))
    identity = _identity(where)
    if not refresh and (cached := read(identity)) is not None:
        return cached
    capability = probe(where)
    write(identity, capability)
    return capability


def resolve_device(device: str) -> torch.device:
    """The device that a config means; auto is the first CUDA device, else the CPU.

    Raises:
        HardwareError: there is no such device (H703).
    """
    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    present = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    kind, _, index = device.partition(":")
    name = f"{kind}:{index or 0}" if kind == "cuda" else device
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
    return torch.device(name)


def probe(device: torch.device) -> DeviceCapability:
    """Find out what a device computes, without the cache. Takes about a second; draws no random numbers of
    the caller's."""
    features = features_of(device)
    support: dict[Family, dict[str, Support]] = {}
    with isolated_rng(), threads(1), torch.enable_grad(), torch.inference_mode(False):
        for family in FAMILIES:
            times, failures = _measure(family, device)
            support[family] = {
                name: _support(family, name, device.type, features, times, failures)
                for name in (*_MEASURED, "tf32", *_FLOAT8)
            }
    return DeviceCapability(
        device=device.type,
        name=device_name(device),
        features=features,
        support=support,
        versions=_identity(device)["versions"],
    )


def features_of(device: torch.device) -> tuple[str, ...]:
    """What the processor says it has, as far as it matters for number formats."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return (f"compute_{major}.{minor}",)
    return _cpu_features()


@functools.cache
def _cpu_features() -> tuple[str, ...]:
    says = {str(k).lower().replace("avx512_f", "avx512f") for k, v in _torch_cpu().items() if v is True}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("flags", "features")):
                says.update(line.split(":", 1)[1].split())
                break
    known = (
        "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_ne_convert",
        "amx_tile", "amx_bf16", "amx_fp16", "asimd", "neon", "fphp", "asimdhp", "bf16", "sve", "svebf16",
        "sve_bf16", "fp16_arith",
    )  # fmt: skip
    # what torch was told to use (ATEN_CPU_CAPABILITY) may be less than what the processor has
    return (*(name for name in known if name in says), f"torch:{torch.backends.cpu.get_cpu_capability()}")


def _torch_cpu() -> dict[str, Any]:
    return dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}


_CPU_NATIVE: dict[str, tuple[str, ...]] = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16", "svebf16", "sve_bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "asimdhp", "fphp", "fp16_arith"),
}


def _native(name: str, device_type: str, features: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the processor has arithmetic for a format, and why not."""
    if name in ("float32", "float64"):
        return True, ""
    if device_type == "cpu":
        wanted = _CPU_NATIVE[name]
        if any(f in features for f in wanted):
            return True, ""
        names = "avx512_bf16 or amx_bf16" if name == "bfloat16" else "avx512_fp16 or amx_fp16"
        return False, f"no {names}: {name} is converted to float32 and back"
    version = _compute_version(features)
    least = {"bfloat16": (8, 0), "float16": (5, 3)}[name]
    if version >= least:
        return True, ""
    return False, f"compute capability {_dotted(version)}, and {name} arithmetic needs {_dotted(least)}"


def _support(
    family: Family,
    name: str,
    device_type: str,
    features: tuple[str, ...],
    times: dict[str, float],
    failures: dict[str, str],
) -> Support:
    if name == "tf32":
        if device_type == "cuda" and _compute_version(features) >= (8, 0):
            return Support(status="native")
        if device_type == "cuda":
            why = f"tf32 needs compute capability 8.0; this device has {_dotted(_compute_version(features))}"
        else:
            why = "tf32 is a mode of NVIDIA's tensor cores"
        return Support(status="unsupported", reason=why)
    if name in _FLOAT8:
        why = "float8 products need scaled kernels, which castiron's PyTorch wing does not drive"
        return Support(status="unsupported", reason=why)
    if name in failures:
        return Support(status="unsupported", reason=failures[name])
    cost = times[name] / times["float32"] if "float32" in times else None
    cost = None if cost is None else round(cost, 2)
    native, why = _native(name, device_type, features)
    if native or family == "embedding":
        return Support(status="native", cost=cost)
    return Support(status="emulated", cost=cost, reason=why)


def _measure(family: Family, device: torch.device) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of a forward and backward pass per format (the least of several, in turns), and failures."""
    probes: dict[str, Callable[[], None]] = {}
    failures: dict[str, str] = {}
    for name in _MEASURED:
        try:
            probes[name] = make_probe(family, torch_dtype(name), device)
            probes[name]()
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            probes.pop(name, None)
            text = str(error).strip() or type(error).__name__
            failures[name] = f"torch's kernel fails: {text.splitlines()[0][:200]}"
    times = dict.fromkeys(probes, float("inf"))
    start = time.process_time()
    for done in range(_ROUNDS):
        if done >= 2 and time.process_time() - start > _BUDGET_S:
            break
        for name, run in probes.items():
            times[name] = min(times[name], _time(run, device))
    return times, failures


def _time(run: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        # processor time of this one-threaded process: other programs on the machine do not count
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _compute_version(features: tuple[str, ...]) -> tuple[int, int]:
    for feature in features:
        if feature.startswith("compute_"):
            major, minor = feature.removeprefix("compute_").split(".")
            return int(major), int(minor)
    return 0, 0


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


# --- identity ----------- -------------------------------------------------------------------------------


def device_name(device: torch.device) -> str:
    """The model name of a processor or GPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _identity(device: torch.device) -> dict[str, Any]:
    """Everything on which the result depends."""
    versions = {"torch": torch.__version__, "castiron": _castiron_version()}
    if device.type == "cuda":
        versions |= {"cuda": str(torch.version.cuda), "driver": _driver_version()}
    return {
        "format": _CACHE_FORMAT,
        "device": device.type,
        "name": device_name(device),
        "features": list(features_of(device)),
        "versions": versions,
    }


def _castiron_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("castiron")
    except PackageNotFoundError:
        return "unknown"


def _driver_version() -> str:
    with contextlib.suppress(AttributeError, RuntimeError):
        return str(getattr(torch._C, "_cuda_getDriverVersion")())  # noqa: B009 - only in builds with CUDA
    return "unknown"
