"""What a device computes, in which format, and at what cost: found once, kept in the user's cache.

Whether a format is native is read from what the processor says it has. Whether it runs at all, and how long
it takes beside float32, is measured with small layers: that cannot be known from a list.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from castiron.policy import FAMILIES, DeviceCapability, Family, Support
from castiron.torch.determinism import isolated_rng, threads
from castiron.torch.dtypes import torch_dtype
from castiron.torch.probes import make_probe
from castiron.training.capability_cache import read, write
from castiron.training.environment import cpu_name, versions
from castiron.training.processor import FLOAT8, MEASURED, cpu_features, no_such_device, support_of

_ROUNDS = 5
_BUDGET_S = 0.05
"""Time for one family; at least two rounds are taken, so that no time is that of a first call."""
_CACHE_FORMAT = 1
_NO_FLOAT8 = "float8 products need scaled kernels, which castiron's PyTorch wing does not drive"


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
        raise no_such_device(device, present)
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
                name: support_of(family, name, device.type, features, times, failures, float8=_NO_FLOAT8)
                for name in (*MEASURED, "tf32", *FLOAT8)
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
    says = dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}
    names = {str(k).lower().replace("avx512_f", "avx512f") for k, v in says.items() if v is True}
    # what torch was told to use (ATEN_CPU_CAPABILITY) may be less than what the processor has
    return (*cpu_features(frozenset(names)), f"torch:{torch.backends.cpu.get_cpu_capability()}")


def _measure(family: Family, device: torch.device) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of a forward and backward pass per format (the least of several, in turns), and failures."""
    probes: dict[str, Callable[[], None]] = {}
    failures: dict[str, str] = {}
    for name in MEASURED:
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


def device_name(device: torch.device) -> str:
    """The model name of a processor or GPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return cpu_name()


def _identity(device: torch.device) -> dict[str, Any]:
    """Everything on which the result depends."""
    packages = {"torch": torch.__version__, "castiron": versions().get("castiron", "unknown")}
    if device.type == "cuda":
        packages |= {"cuda": str(torch.version.cuda), "driver": _driver_version()}
    return {
        "format": _CACHE_FORMAT,
        "device": device.type,
        "name": device_name(device),
        "features": list(features_of(device)),
        "versions": packages,
    }


def _driver_version() -> str:
    with contextlib.suppress(AttributeError, RuntimeError):
        return str(getattr(torch._C, "_cuda_getDriverVersion")())  # noqa: B009 - only in builds with CUDA
    return "unknown"
