"""An audit's report for people, as plain lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from castiron.diagnostics import RULES, Finding
from castiron.diagnostics.render import by_severity

if TYPE_CHECKING:
    from castiron.training.audit import AuditReport

_WIDTH = 40


def text(report: AuditReport, *, phases: bool = False, all: bool = False) -> str:
    """The verdict; formats by share of FLOPs as bars; findings by code, then layer.

    Args:
        phases: formats of each phase by itself.
        all: also notes (severity info) and what was waived.
    """
    lines = [f"Audit {report.headline()}", f"policy {report.policy}"]
    if report.traced == "real":
        lines.append("traced by one real step on a few rows")
    lines += ["", *_bars(report)]
    if phases:
        for phase, formats in report.formats.items():
            lines += ["", f"{phase}:"]
            for name, share in sorted(formats.items(), key=lambda item: -item[1].flops):
                lines.append(
                    f"  {name:<14} {share.operations:>7,} operations  {share.flops:>14,} FLOPs  "
                    f"{share.bytes:>14,} bytes"
                )
    shown = [f for f in report.findings if all or f.severity != "info"]
    lines += _grouped(shown)
    hidden = len(report.findings) - len(shown)
    if hidden:
        lines += ["", f"{hidden} note{'s' if hidden > 1 else ''} not shown (--all)"]
    if report.waived:
        if all:
            lines += ["", "Waived:", *_grouped(report.waived)]
        else:
            lines += ["", f"{len(report.waived)} waived by the config or by comments (--all)"]
    return "\n".join(lines) + "\n"


def _bars(report: AuditReport) -> list[str]:
    flops, size = report.share("flops"), report.share("bytes")
    lines = []
    for name in {**flops, **size}:
        of_flops, of_bytes = flops.get(name, 0.0), size.get(name, 0.0)
        bar = "█" * round(of_flops * _WIDTH)
        lines.append(f"  {name:<14} {bar:<{_WIDTH}} {of_flops:>6.1%} of FLOPs  {of_bytes:>6.1%} of bytes")
    return lines


def _grouped(findings: Sequence[Finding]) -> list[str]:
    by_code: dict[str, list[Finding]] = {}
    for f in by_severity(findings):
        by_code.setdefault(f.code, []).append(f)
    lines = []
    for code, found in by_code.items():
        lines += ["", f"{found[0].severity} {code}  {RULES[code].what}"]
        for f in sorted(found, key=lambda f: (f.place.module or "", f.place.line or 0)):
            lines.append(f"  {f.sentence()}")
            lines.append(f"    → {f.remedy}")
    return lines
