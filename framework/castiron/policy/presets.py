"""Presets: policies with a name; and the names that Lightning and Keras give them."""

from __future__ import annotations

import difflib
from typing import Any

_MASTER = {"master": "float32"}

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "float64": ("double precision throughout", {"param": "float64", "compute": "float64"}),
    "float32": ("single precision throughout; tf32 off", {"param": "float32", "compute": "float32"}),
    "tf32": (
        "float32 storage, matrix products in tf32 (NVIDIA Ampere and later)",
        {"param": "float32", "compute": "tf32"},
    ),
    "bf16-mixed": (
        "float32 parameters, bfloat16 compute, float32 islands and loss",
        {"param": "float32", "compute": "bfloat16"},
    ),
    "fp16-mixed": (
        "float32 parameters, float16 compute, dynamic loss scaling, float32 islands and loss",
        {"param": "float32", "compute": "float16", "scaling": {"kind": "dynamic"}},
    ),
    "bf16-true": (
        "bfloat16 parameters and compute, updated through a float32 master copy",
        {"param": "bfloat16", "compute": "bfloat16", "updates": _MASTER},
    ),
    "fp16-true": (
        "float16 parameters and compute, float32 master copy, dynamic loss scaling",
        {"param": "float16", "compute": "float16", "updates": _MASTER, "scaling": {"kind": "dynamic"}},
    ),
    "float8-mixed": (
        "float32 parameters, float8 matrix products, bfloat16 between layers",
        {
            "param": "float32",
            "compute": "float8_e4m3fn",
            "output": "bfloat16",
            "scaling": {"kind": "none"},
        },
    ),
}
"""Name → (what it is in a line, the fields it sets)."""

ALIASES: dict[str, str] = {
    # Lightning
    "64-true": "float64", "64": "float64",
    "32-true": "float32", "32": "float32",
    "16-mixed": "fp16-mixed", "16": "fp16-mixed",
    "bf16": "bf16-mixed",
    "16-true": "fp16-true",
    "transformer-engine": "float8-mixed",
    # Keras
    "mixed_float16": "fp16-mixed",
    "mixed_bfloat16": "bf16-mixed",
    "float16": "fp16-true",
    "bfloat16": "bf16-true",
    # what people write
    "fp64": "float64", "double": "float64",
    "fp32": "float32", "single": "float32", "full": "float32",
    "fp16": "fp16-mixed", "half": "fp16-mixed",
    "fp8": "float8-mixed", "float8": "float8-mixed",
}  # fmt: skip
"""Other names of presets: accepted, and shown as ours."""


def preset_name(name: str) -> str | None:
    """castiron's name of this preset or alias, or None."""
    key = name.strip()
    return key if key in PRESETS else ALIASES.get(key)


def expand_preset(name: str) -> dict[str, Any]:
    """The fields that a preset sets, `preset` itself among them.

    Raises:
        ValueError: no such preset; the message lists near misses.
    """
    ours = preset_name(name)
    if ours is None:
        near = difflib.get_close_matches(name.replace("_", "-"), [*PRESETS, *ALIASES], n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        raise ValueError(f"expected a preset ({', '.join(PRESETS)}), received {name!r}.{hint}")
    return {"preset": ours, **PRESETS[ours][1]}
