"""What a run ran on: versions, machine, state of the code. No environment variables, no secrets."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from castiron.training.writing import timestamp

PACKAGES = (
    "castiron", "torch", "lightning", "torchmetrics", "tensorflow", "keras", "numpy", "ml_dtypes", "pyarrow",
    "grain", "tokenizers", "pydantic", "safetensors", "tensorboard",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Package → version, of those that are installed. Nothing is imported."""
    return dict(_installed())


@cache  # every checkpoint asks, and reading the packages' records takes tens of milliseconds
def _installed() -> dict[str, str]:
    found = {}
    for package in (*PACKAGES, "tensorflow_cpu"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if "tensorflow_cpu" in found:
        found.setdefault("tensorflow", f"{found.pop('tensorflow_cpu')} (cpu)")
    return found


def describe_environment(code: Path | None = None) -> dict[str, Any]:
    """JSON-ready: what `environment.json` holds.

    Args:
        code: a file of the recipe; the git state is that of its repository.
    """
    return {
        "time": timestamp(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "cpus_usable": cpus_usable(),
        "memory_bytes": memory_bytes(),
        "versions": versions(),
        "git": git_state((code or Path.cwd()).resolve()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpus_usable() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Main memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def git_state(path: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside of a repository or without git."""
    folder = path if path.is_dir() else path.parent
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(status),
    }


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
