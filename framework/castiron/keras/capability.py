"""What a device computes with TensorFlow, in which format, and at what cost: found once, kept in the user's
cache.

Whether a format is native is read from what the processor says it has. Whether it runs at all, and how long
it takes beside float32, is measured with small layers: that cannot be known from a list.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from castiron.keras.determinism import isolated_rng
from castiron.keras.probes import make_probe
from castiron.policy import FAMILIES, DeviceCapability, Family, Support
from castiron.training.capability_cache import read, write
from castiron.training.environment import cpu_name, versions
from castiron.training.processor import FLOAT8, MEASURED, cpu_features, no_such_device, support_of

_ROUNDS = 4
_BUDGET_S = 0.05
"""Time for one family; at least two rounds are taken, so that no time is that of a first call."""
_CACHE_FORMAT = 1
_NO_FLOAT8 = "Keras only simulates float8 products"


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
        raise no_such_device(device, present)
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
                name: support_of(family, name, _kind(device), features, times, failures, float8=_NO_FLOAT8)
                for name in (*MEASURED, "tf32", *FLOAT8)
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
    return cpu_features()


def _measure(family: Family) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of a forward and backward pass per format (the least of several, in turns), and failures."""
    probes: dict[str, Callable[[], None]] = {}
    failures: dict[str, str] = {}
    for name in MEASURED:
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


def _details(device: str) -> dict[str, Any]:
    gpus = tf.config.list_physical_devices("GPU")
    index = int(device.rpartition(":")[2])
    details: dict[str, Any] = tf.config.experimental.get_device_details(gpus[index])
    return details


def device_name(device: str) -> str:
    """The model name of a processor or GPU."""
    if _kind(device) == "cuda":
        return str(_details(device).get("device_name", "GPU"))
    return cpu_name()


def _identity(device: str) -> dict[str, Any]:
    """Everything on which the result depends."""
    own = versions().get("castiron", "unknown")
    packages = {"tensorflow": tf.__version__, "keras": keras.__version__, "castiron": own}
    return {
        "format": _CACHE_FORMAT,
        "wing": "tensorflow",
        "device": _kind(device),
        "name": device_name(device),
        "features": list(features_of(device)),
        "versions": packages,
    }
