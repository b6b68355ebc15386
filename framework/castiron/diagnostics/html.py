"""Findings as HTML: a page by itself, and a fragment for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from castiron.diagnostics.finding import Finding
from castiron.diagnostics.render import by_severity

_COLOUR = {"error": "#b3261e", "warning": "#8a6100", "info": "#1b5e8a"}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1d1d1f}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.4rem .6rem;"
    "border-bottom:1px solid #ddd}code{font-size:90%}.bar{display:flex;height:1.2rem;border-radius:4px;"
    "overflow:hidden;margin:.5rem 0}"
)
_SHADES = ("#2b6cb0", "#dd6b20", "#38a169", "#805ad5", "#718096")


def report_fragment(
    headline: str, findings: Sequence[Finding], shares: Mapping[str, float] | None = None
) -> str:
    """The verdict, a bar of formats by share, and a table of the findings."""
    parts = [f"<p><strong>{escape(headline)}</strong></p>"]
    if shares:
        parts.append(_bar(shares))
    if findings:
        rows = "".join(_row(f) for f in by_severity(findings))
        head = "<tr><th>code</th><th>where</th><th>what</th><th>remedy</th></tr>"
        parts.append(f"<table>{head}{rows}</table>")
    return "".join(parts)


def report_page(
    title: str, headline: str, findings: Sequence[Finding], shares: Mapping[str, float] | None = None
) -> str:
    """The same as a page of its own."""
    body = report_fragment(headline, findings, shares)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _row(f: Finding) -> str:
    sentence = " ".join(
        part for part in (
            f.message,
            f"Expected {f.expected}." if f.expected else "",
            f"Received {f.received}." if f.received else "",
            f"({f.count:,} times)" if f.count > 1 else "",
        ) if part
    )  # fmt: skip
    return (
        f'<tr><td style="color:{_COLOUR[f.severity]}">{escape(f.severity)} <code>{escape(f.code)}</code></td>'
        f"<td><code>{escape(str(f.place))}</code></td><td>{escape(sentence)}</td><td>{escape(f.remedy)}</td></tr>"
    )


def _bar(shares: Mapping[str, float]) -> str:
    pieces, names = [], []
    for i, (name, share) in enumerate(shares.items()):
        shade = _SHADES[i % len(_SHADES)]
        label = escape(f"{name} {share:.1%}")
        pieces.append(f'<div title="{label}" style="width:{100 * share:.2f}%;background:{shade}"></div>')
        names.append(f'<span style="color:{shade}">■</span> {label}')
    return f'<div class="bar">{"".join(pieces)}</div><p>{" · ".join(names)}</p>'
