"""`castiron doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from castiron.cli.options import RUNS, Runs

if TYPE_CHECKING:
    from castiron.policy import DeviceCapability

Mark = Literal["ok", "warning", "error"]
_MARKS: dict[Mark, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "error": ("✗", "red"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    mark: Mark
    title: str
    detail: str = ""
    lines: list[str] = field(default_factory=list)
    """More of it, beneath."""
    record: Any = None
    """The same for programs."""


def doctor(
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="The device to look at.")] = "auto",
    runs: Runs = RUNS,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Tell what this machine can run.

    Versions, devices, number formats, presets, folders.

    Exit code 1 where something that castiron needs is missing.
    """
    from castiron.cli import console
    from castiron.cli.usage import chosen

    device = chosen("--device", device, ("auto", "cpu", "cuda"))
    checks = []
    for number, check in enumerate(_checks(device, runs), 1):
        checks.append(check)
        if not json:
            mark, style = _MARKS[check.mark]
            detail = f"  {check.detail}" if check.detail else ""
            console.say(
                f"{mark} {number}. {check.title}{detail}", style=None if check.mark == "ok" else style
            )
            for line in check.lines:
                console.say(f"     {line}")
    if json:
        console.as_json([asdict(c) for c in checks])
    if any(c.mark == "error" for c in checks):
        raise typer.Exit(1)


def _checks(device: str, runs: Path) -> Iterator[Check]:
    from castiron.training.environment import versions

    found = versions()
    yield _python()
    yield _castiron(found)
    yield _machine()
    yield from _wing("torch", device)
    if "tensorflow" in found:
        yield Check(
            "ok", "TensorFlow", f"tensorflow {found['tensorflow']}, keras {found.get('keras', 'missing')}"
        )
    else:
        yield Check("warning", "TensorFlow", "not installed; only needed for backend: tensorflow",
                    ["pip install 'castiron[tensorflow]'"])  # fmt: skip
    yield _recipes()
    yield _configs()
    yield _folders(runs)
    yield _cache()


def _python() -> Check:
    import platform
    import sys

    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    detail = f"{platform.python_version()} at {sys.executable}"
    return Check("ok" if good else "error", "Python", detail if good else f"{detail}; expected 3.11 to 3.13")


def _castiron(found: dict[str, str]) -> Check:
    import re
    from importlib import metadata

    import castiron

    required = [r for r in metadata.requires("castiron") or () if "extra ==" not in r]
    names = {re.split(r"[^\w.-]", r, maxsplit=1)[0] for r in required}
    missing = []
    for name in sorted(names):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    shown = ", ".join(f"{n} {v}" for n, v in found.items() if n not in ("castiron", "tensorflow", "keras"))
    if missing:
        return Check("error", "castiron", f"{castiron.__version__}; missing: {', '.join(missing)}",
                     ["pip install castiron"], record=found)  # fmt: skip
    return Check("ok", "castiron", castiron.__version__, [shown], record=found)


def _machine() -> Check:
    import platform

    from castiron.training.environment import cpu_name, cpus_usable, memory_bytes

    memory = memory_bytes()
    ram = f", {memory / 2**30:.0f} GiB of memory" if memory else ""
    return Check("ok", "Machine", f"{cpu_name()}, {cpus_usable()} cores usable{ram}", [platform.platform()])


def _wing(backend: str, device: str) -> Iterator[Check]:
    """The device through a backend: formats by kind of layer, and what each preset would do."""
    from castiron.diagnostics import CastironError
    from castiron.training.backend import load_backend

    try:
        capability = load_backend(backend).capability(device)
    except CastironError as e:
        yield Check("error", "Device", f"{e.findings[0].sentence()} {e.findings[0].remedy}")
        return
    features = f" ({', '.join(capability.features)})" if capability.features else ""
    yield Check(
        "ok", "Device", f"{capability.device}: {capability.name}{features}", record=capability.versions
    )
    support = {f: {n: s.model_dump() for n, s in row.items()} for f, row in capability.support.items()}
    what = "time of a small layer's step in each, relative to float32"
    yield Check("ok", "Number formats", what, formats_table(capability), record=support)
    outlooks = {name: outlook(name, capability) for name in _presets()}
    width = max(map(len, outlooks))
    lines = [f"{name.ljust(width)}  {told}" for name, told in outlooks.items()]
    yield Check("ok", "Presets here", "", lines, record=outlooks)
    yield Check("ok", "Guard", _guard(capability.device))


def _guard(device: str) -> str:
    """What it costs to hold a bad step back, by optimizer."""
    if device == "cpu":
        return "any optimizer; the verdict on a step is there as soon as its gradients are"
    return (
        "Adam, AdamW, SGD and Adagrad with fused=True take the verdict on the device; with any other "
        "optimizer the host waits for it once a step"
    )


def _presets() -> list[str]:
    from castiron.policy import PRESETS

    return list(PRESETS)


def formats_table(capability: DeviceCapability) -> list[str]:
    """Families of layers against formats: cost, emulated, or –."""
    from castiron.cli.console import plain_table
    from castiron.formats import FORMATS

    stated = {name for row in capability.support.values() for name in row}
    formats = [name for name in FORMATS if name in stated]
    rows = []
    for family, row in capability.support.items():
        cells: list[str] = [family]
        for name in formats:
            support = row.get(name)
            if support is None or support.status == "unsupported":
                cells.append("–")
            else:
                cost = f"{support.cost:.2f}" if support.cost is not None else "yes"
                cells.append(f"{cost} emulated" if support.status == "emulated" else cost)
        rows.append(cells)
    return plain_table(["layers", *formats], rows)


def outlook(preset: str, capability: DeviceCapability) -> str:
    """What a preset would do on a device, in a sentence."""
    from castiron.diagnostics import HardwareError
    from castiron.policy import PrecisionPolicy
    from castiron.policy.hardware import compute_of, judge

    policy = PrecisionPolicy.preset(preset)
    families = [f for f in capability.support if f != "embedding"]
    refused: list[str] = []
    emulated: list[tuple[float, str]] = []
    for family in families:
        support = capability.of(family, compute_of(policy, family))
        if support.status == "unsupported":
            refused.append(family)
        elif support.status == "emulated":
            cost = f" {support.cost:.1f}×" if support.cost is not None else ""
            emulated.append((support.cost or 0.0, f"{family}{cost}"))
    by_emulation = f"by emulation (time relative to float32: {_costliest(emulated)})" if emulated else ""
    if not refused:
        return f"runs {by_emulation}".rstrip()
    nearest = ""
    try:
        judge(policy, [(f, compute_of(policy, f), f) for f in families], capability)
    except HardwareError as e:
        nearest = next((f.remedy for f in e.findings if f.remedy), "")
    if "matmul" in refused:  # nothing is left without matrix products
        return f"refused. {nearest}".rstrip()
    others = f"; the others run {by_emulation}" if by_emulation else ""
    return f"refused for {', '.join(refused)}{others}. {nearest}".rstrip()


def _costliest(emulated: list[tuple[float, str]], most: int = 3) -> str:
    names = [name for _, name in sorted(emulated, reverse=True)]
    more = f", {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _recipes() -> Check:
    from castiron.training.registry import registered

    found = registered()
    return Check(
        "ok" if found else "error", "Recipes", ", ".join(found) or "none registered; reinstall castiron"
    )


def _configs() -> Check:
    from castiron.training.configs import configs_folder, packaged_configs

    found = packaged_configs()
    mark: Mark = "ok" if found else "error"
    return Check(mark, "Configs", f"{len(found)} in {configs_folder()}")


def _folders(runs: Path) -> Check:
    import os
    import shutil

    folder = runs.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    mark: Mark = "ok" if writable and free > 2**30 else "error" if not writable else "warning"
    state = "" if writable else "; it cannot be written"
    return Check(mark, "Runs", f"{runs.resolve()}{state}, {free / 2**30:.1f} GiB free")


def _cache() -> Check:
    from castiron.data.fetch import CACHE_VARIABLE, cache_folder

    return Check("ok", "Cache", f"{cache_folder()} (another: ${CACHE_VARIABLE})")
