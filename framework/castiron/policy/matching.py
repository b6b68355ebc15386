"""Which layers a rule means: globs on module paths, and layer types."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Sequence

from castiron.policy.modules import LayerInfo

TYPE_PREFIX = "type:"


@functools.lru_cache(maxsize=1024)
def compile_glob(glob: str) -> re.Pattern[str]:
    """A regular expression for a glob on dotted paths.

    `*` stands for any text within one part of the path, `**` for any number of parts, `?` for one
    character, `[…]` for one of a set: `encoder.*.attention`, `**.norm`, `blocks.[01]`.
    """
    pattern, i = "", 0
    while i < len(glob):
        if glob.startswith("**.", i):
            pattern, i = pattern + r"(?:[^.]+\.)*", i + 3
        elif glob.startswith(".**", i) and i + 3 == len(glob):
            pattern, i = pattern + r"(?:\.[^.]+)*", i + 3
        elif glob.startswith("**", i):
            pattern, i = pattern + r".*", i + 2
        elif glob[i] == "*":
            pattern, i = pattern + r"[^.]*", i + 1
        elif glob[i] == "?":
            pattern, i = pattern + r"[^.]", i + 1
        elif glob[i] == "[" and (end := glob.find("]", i + 2)) > 0:
            chosen = glob[i + 1 : end].replace("\\", r"\\").replace("[", r"\[")
            negated = chosen.startswith("!")
            pattern, i = pattern + f"[{'^' if negated else ''}{chosen[negated:]}]", end + 1
        else:
            pattern, i = pattern + re.escape(glob[i]), i + 1
    try:
        return re.compile(pattern)
    except re.error:
        return re.compile(re.escape(glob))


def matches(rule: str, layer: LayerInfo) -> bool:
    """Whether a rule's key means this layer itself (not merely a part of what it means)."""
    if rule.startswith(TYPE_PREFIX):
        return rule.removeprefix(TYPE_PREFIX) in (layer.type, *layer.bases)
    return layer.path != "" and compile_glob(rule).fullmatch(layer.path) is not None


def near_misses(rule: str, layers: Sequence[LayerInfo]) -> list[str]:
    """Up to three keys that would match something and look like this one."""
    types = _unique(t for layer in layers for t in (layer.type, *layer.bases))
    paths = [layer.path for layer in layers if layer.path]
    bare = rule.removeprefix(TYPE_PREFIX)
    if bare in types:
        return [TYPE_PREFIX + bare]
    if bare in paths:
        return [bare]
    exact = [p for p in paths if p.rsplit(".", 1)[-1] == bare.rsplit(".", 1)[-1]]
    if rule.startswith(TYPE_PREFIX):
        return [TYPE_PREFIX + t for t in difflib.get_close_matches(bare, types, n=3)]
    close = [] if exact else difflib.get_close_matches(bare, paths, n=3, cutoff=0.5)
    near = [TYPE_PREFIX + t for t in difflib.get_close_matches(bare, types, n=1, cutoff=0.8)]
    return _unique([*exact, *near, *close])[:3]


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
