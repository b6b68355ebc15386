"""A run's report as one HTML page that needs nothing else: no script, no network, no other file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from castiron.diagnostics.html import report_fragment
from castiron.health import figures
from castiron.health.drawing import Canvas
from castiron.health.snapshot import Kind, Snapshot
from castiron.training.incident_text import as_text as incident_text
from castiron.training.run_report import HEALTH, UPDATES, RunReport, environment_rows, health_rows

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:62rem;padding:1rem 1.2rem 4rem;"
    "color:#1c2733;background:#fff}h1{font-size:1.5rem;margin:.8rem 0 .4rem}"
    "h2{font-size:1.15rem;margin:2.2rem 0 .5rem;border-bottom:1px solid #d9dfe5;padding-bottom:.2rem}"
    "table{border-collapse:collapse;width:100%;margin:.5rem 0}td,th{text-align:left;vertical-align:top;"
    "padding:.3rem .6rem .3rem 0;border-bottom:1px solid #e8ecf0;font-size:.9rem;overflow-wrap:anywhere}"
    ".verdict{border-left:.4rem solid;padding:.5rem 1rem;margin:1rem 0;background:#f6f8fa}"
    ".verdict p{margin:.2rem 0}.verdict p:first-child{font-weight:600;font-size:1.1rem}"
    ".well{border-color:#1f7a4d}.ill{border-color:#b3261e}nav a{margin-right:1rem}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f8fa;padding:.7rem;font-size:.8rem}"
    "svg{width:100%;height:auto;margin:.4rem 0}"
    ".bar{display:flex;height:1.2rem;overflow:hidden;margin:.5rem 0}"
)
_DRAWN: tuple[Kind, ...] = ("activations", "activation gradients", "gradients", "parameters")


def as_html(report: RunReport) -> str:
    """The page. The verdict comes first; parts that the run has no record of say so."""
    colour = "well" if report.is_well else "ill"
    parts = [f"<h1>Run {escape(report.name)}</h1>"]
    parts.append(f'<div class="verdict {colour}">{_paragraphs(report.verdict())}</div>')
    if report.unreadable:
        parts.append(_paragraphs(f"Not readable: {problem}" for problem in report.unreadable))
    sections = {
        "Plan": _plan(report),
        "Data": "".join(f"<pre>{escape(r.as_text())}</pre>" for r in report.data),
        "Audit": _audit(report),
        "Curves": _curves(report),
        "Health": _health(report),
        "Incidents": "".join(f"<pre>{escape(incident_text(i, p))}</pre>" for i, p in report.incidents)
        or "<p>None: no step was held.</p>",
        "Environment": table((), environment_rows(report.environment)),
        "Config": f"<pre>{escape(report.config)}</pre>" if report.config else "",
    }
    return page(report.name, "".join(parts), sections)


def page(title: str, head: str, sections: Mapping[str, str]) -> str:
    """A page that needs nothing else: what stands first, and sections with links to them."""
    links = " ".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    parts = [head, f"<nav>{links}</nav>"]
    for name, body in sections.items():
        parts.append(f'<h2 id="{name.lower()}">{name}</h2>{body or "<p>The run has no record of it.</p>"}')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}"
        "</body></html>\n"
    )


def _plan(report: RunReport) -> str:
    if report.plan is None:
        return ""
    rows = [
        (r.path or "(model)", r.type, r.param if r.parameters else "–", r.compute, r.output,
         f"{r.n_parameters:,}" if r.n_parameters else "–", r.reasons.get("compute", ""))
        for r in report.plan.layers()
    ]  # fmt: skip
    head = ("layer", "type", "param", "compute", "output", "parameters", "why")
    return f"<p>{escape(report.plan.brief())}</p>" + table(head, rows)


def _audit(report: RunReport) -> str:
    if report.audit is None:
        return ""
    return report_fragment(report.audit.headline(), report.audit.findings, report.audit.share("flops"))


def _curves(report: RunReport) -> str:
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, curve in report.curves.items():
        split, _, what = name.rpartition("/")
        groups.setdefault(what, {})[split or what] = curve
    ordered = sorted(groups.items(), key=lambda item: (item[0] != "loss", item[0]))
    # what was measured once stands in the verdict
    drawn = [(what, series) for what, series in ordered if any(len(c) > 1 for c in series.values())]
    return "".join(figures.lines(what, series).svg() for what, series in drawn)


def _health(report: RunReport) -> str:
    parts: list[str] = []
    if report.advice:
        head = ("step", "code", "what", "remedy")
        rows = [(f"{step:,}", f"{f.severity} {f.code}", f.sentence(), f.remedy) for step, f in report.advice]
        parts.append(table(head, rows))
    if not report.snapshots:
        return "".join(parts)
    if not report.advice:
        parts.append("<p>Nothing to warn of.</p>")
    parts += [f"<p>{escape(f.sentence())}</p>" for f in report.what_if()]
    parts += [table(HEALTH, health_rows(report.snapshots)), table(UPDATES, report.update_rows())]
    parts += [canvas.svg() for canvas in _figures(report.snapshots)]
    return "".join(parts)


def _figures(snapshots: Sequence[Snapshot]) -> list[Canvas]:
    made: list[Canvas] = []
    for kind in _DRAWN:
        last = next((s for s in reversed(snapshots) if s.kind(kind)), None)
        if last is not None:
            made.append(figures.exponents(last, kind))
    history = [s for s in snapshots if s.kind("activations")]
    if history:
        made += [figures.headroom_map(history), figures.underflow_map(history)]
    return made


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A `<table>` of texts; nothing where there are no rows."""
    if not rows:
        return ""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{top}</tr>' if head else ''}{body}</table>"


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
