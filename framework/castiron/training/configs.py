"""Finds the configs that ship with castiron: those in the package, else the checkout's. Nothing else may."""

from __future__ import annotations

from pathlib import Path

import castiron


def configs_folder() -> Path:
    """The folder `configs`, with a folder for each recipe."""
    package = Path(castiron.__file__).resolve().parent
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parents[1] / "configs"


def packaged_configs() -> dict[str, Path]:
    """Name, such as `lstm_sentiment/default`, → file."""
    folder = configs_folder()
    files = sorted(folder.rglob("*.yaml")) if folder.is_dir() else []
    return {f.relative_to(folder).with_suffix("").as_posix(): f for f in files}


def headline(path: Path) -> str:
    """What a config is, in a line: the first words of the comment that it begins with."""
    try:
        with open(path, encoding="utf-8") as file:
            first = file.readline()
    except (OSError, UnicodeDecodeError):
        return ""
    return first.lstrip("# ").strip() if first.startswith("#") else ""
