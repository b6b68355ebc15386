"""What of the findings is reported: select, ignore, severity, and comments on the user's own lines."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable
from dataclasses import replace

from castiron.diagnostics import Finding
from castiron.policy.matching import compile_glob
from castiron.policy.sections import EnforceSection

_COMMENT = re.compile(r"#\s*castiron:\s*ignore(?:\[([A-Za-z0-9,\s]*)\])?")


def judge(found: Iterable[Finding], enforce: EnforceSection) -> tuple[list[Finding], list[Finding]]:
    """Findings with the severity that the config gives them. → those to report, those waived.

    `ignore` and `per_module` name codes (`F301`) or families (`F3`); `# castiron: ignore[F301]` on the line
    of a finding waives that code there, `# castiron: ignore` all of them. What `select` leaves out is
    neither.
    """
    kept: list[Finding] = []
    waived: list[Finding] = []
    for one in found:
        if enforce.select is not None and not _covers(enforce.select, one.code):
            continue
        severity = _severity(one, enforce)
        f = one if severity == one.severity else replace(one, severity=severity)  # type: ignore[arg-type]
        (waived if _is_waived(f, enforce) else kept).append(f)
    return kept, waived


def _severity(f: Finding, enforce: EnforceSection) -> str:
    """The longest key that covers the code decides."""
    keys = sorted((k for k in enforce.severity if f.code.startswith(k.upper())), key=len)
    return enforce.severity[keys[-1]] if keys else f.severity


def _is_waived(f: Finding, enforce: EnforceSection) -> bool:
    if _covers(enforce.ignore, f.code):
        return True
    path = f.place.module
    for glob, codes in enforce.per_module.items():
        if path is not None and compile_glob(glob).fullmatch(path) and _covers(codes, f.code):
            return True
    return f.place.file is not None and f.place.line is not None and _commented(f)


def _commented(f: Finding) -> bool:
    found = _COMMENT.search(linecache.getline(f.place.file or "", f.place.line or 0))
    if found is None:
        return False
    codes = found.group(1)
    return codes is None or _covers([c.strip() for c in codes.split(",") if c.strip()], f.code)


def _covers(codes: Iterable[str], code: str) -> bool:
    return any(code.startswith(c.upper()) for c in codes)
