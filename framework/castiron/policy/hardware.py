"""What a device computes in each format, as plain data; and whether a policy can run there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from castiron.diagnostics import Finding, HardwareError, Place, finding
from castiron.policy.modules import Family
from castiron.policy.policy import PrecisionPolicy
from castiron.policy.presets import PRESETS

Status = Literal["native", "emulated", "unsupported"]

_FALLBACKS: dict[str, tuple[str, ...]] = {
    "float64": ("float32",),
    "tf32": ("float32",),
    "bfloat16": ("bf16-mixed", "fp16-mixed", "float32"),
    "float16": ("bf16-mixed", "float32"),
    "float8_e4m3fn": ("bf16-mixed", "fp16-mixed", "float32"),
    "float8_e5m2": ("bf16-mixed", "fp16-mixed", "float32"),
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Support(_Record):
    """How a device computes one family of operations in one format."""

    status: Status
    cost: float | None = None
    """Time of a forward and backward pass relative to float32, where it was measured."""
    reason: str = ""
    """Why it is not native."""


class DeviceCapability(_Record):
    """What a device can compute: family of operations → format → support."""

    device: str
    """`cpu` or `cuda`."""
    name: str
    features: tuple[str, ...] = ()
    support: dict[Family, dict[str, Support]]
    versions: dict[str, str] = {}

    def of(self, family: Family, compute: str) -> Support:
        """Support of a format in a family. Of what was never probed only float32 is taken for granted."""
        formats = self.support.get(family, {})
        if compute in formats:
            return formats[compute]
        if compute == "float32":
            return Support(status="native", cost=1.0)
        return Support(status="unsupported", reason=f"{compute} was not found on {self.name}")


Need = tuple[Family, str]
"""A family of operations and the format that it is to compute in."""


def judge(
    policy: PrecisionPolicy, needs: Iterable[tuple[Family, str, str]], capability: DeviceCapability
) -> list[Finding]:
    """Hold what a plan needs against what a device can do.

    Args:
        needs: (family, compute format, path of a layer that needs it).

    Returns:
        A warning for each family and format that runs by emulation, with its measured cost.

    Raises:
        HardwareError: a format does not run; with the reason and the nearest policy that works.
    """
    by_need: dict[Need, list[str]] = {}
    for family, compute, path in needs:
        by_need.setdefault((family, compute), []).append(path)
    refused, warned = [], []
    for (family, compute), paths in by_need.items():
        support = capability.of(family, compute)
        where = Place(module=paths[0])
        if support.status == "unsupported":
            refused.append(
                finding(
                    "H701",
                    f"{capability.name} cannot run {family} layers in {compute}: {support.reason}",
                    place=where,
                    expected=f"a compute format that {family} layers run in on this device",
                    received=f"{compute} (policy {policy.label})",
                    remedy=_nearest(policy, [f for f, _ in by_need], family, compute, capability),
                    count=len(paths),
                    layers=paths,
                )
            )
        elif support.status == "emulated":
            cost = f", measured at {support.cost:.1f} times the time of float32" if support.cost else ""
            warned.append(
                finding(
                    "H702",
                    f"{capability.name} runs {family} layers in {compute} by emulation{cost}: "
                    f"{support.reason}",
                    place=where,
                    count=len(paths),
                    layers=paths,
                    cost=support.cost,
                )
            )
    if refused:
        raise HardwareError(refused)
    return warned


def runs(policy: PrecisionPolicy, families: Iterable[Family], capability: DeviceCapability) -> Status:
    """The worst status among these families under a policy (layer rules left out of account)."""
    order: tuple[Status, ...] = ("native", "emulated", "unsupported")
    found = [capability.of(f, compute_of(policy, f)).status for f in families]
    return max(found, key=order.index, default="native")


def compute_of(policy: PrecisionPolicy, family: Family) -> str:
    """What a layer of this family computes in by policy alone; islands are wide."""
    if family == "embedding":
        return policy.param
    island = {"softmax": policy.islands.softmax, "normalization": policy.islands.normalization}.get(family)
    if island and policy.compute != "float64":
        return island
    if family == "elementwise" and policy.compute.startswith("float8"):
        return policy.output
    return policy.compute


def _nearest(
    policy: PrecisionPolicy,
    families: list[Family],
    family: Family,
    compute: str,
    capability: DeviceCapability,
) -> str:
    """What to do instead: a layer rule where the other layers run, else the nearest preset that works."""
    options = []
    others = [f for f in families if f != family]
    if others and not policy.compute.startswith("float8"):
        rest = runs(policy, others, capability)
        if rest != "unsupported" and policy.param == "float32":
            options.append("keep these layers wide with a layer rule ('<path>': {compute: float32})")
    for name in _FALLBACKS.get(compute, ("float32",)):
        status = runs(PrecisionPolicy.preset(name), families, capability)
        if status != "unsupported":
            note = " (by emulation here)" if status == "emulated" else ""
            options.append(f"use precision: {name}{note}")
            break
    return ("Nearest that works: " + ", or ".join(options) + ".") if options else ""


def preset_outlook(capability: DeviceCapability, families: Iterable[Family]) -> dict[str, Status]:
    """What each preset would do on this device for layers of these families."""
    wanted = tuple(families)
    return {name: runs(PrecisionPolicy.preset(name), wanted, capability) for name in PRESETS}
