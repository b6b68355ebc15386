"""An incident for people: one block for a terminal, plain or coloured, and Markdown for TensorBoard.

The order is that of the questions: what happened, when, where (module, operation, line), with which values,
because of which rows, how it travelled, what to do, how to run it again.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from castiron.training.incident import Attribution, BadRow, Incident, Link, TensorStatistics

if TYPE_CHECKING:
    from rich.console import Console

    from castiron.training.backend import Replayed

HEADINGS = ("value", "dtype", "shape", "min", "max", "nan", "+inf", "-inf", "zero", "subnormal")
_RIGHT = range(3, len(HEADINGS))
_SHOWN = 10
"""Rows of the data, and stations of a chain, that are named; of more the rest is counted."""

_RESPONSES = {
    "raise": "training was stopped",
    "hold": "training went on without the step",
    "rollback": "training went back to an earlier checkpoint",
    "lower-lr": "the learning rate was lowered, and training went on without the step",
    "promote": "the layer was promoted to float32, and training went on without the step",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One entry of the block."""

    label: str
    lines: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    code: str = ""
    """The user's source text, beneath the lines."""


def headline(incident: Incident | Attribution) -> str:
    """Code and what happened, in one line."""
    return f"{incident.code} {incident.message.strip().rstrip('.')}"


def parts(incident: Incident, path: str | Path | None = None) -> list[Part]:
    """The entries of the block, without the headline; those that there is nothing to say for are left out.

    Args:
        incident: the record.
        path: its folder; None: it was not written, and cannot be replayed.
    """
    found = [Part("when", (_when(incident),)), Part("where", (place(incident),))]
    source = incident.producer.source
    if source is not None:
        found.append(Part("source", (_shown(str(source)),), code=source.text))
    values = [*incident.operands, *incident.results]
    if values:
        names = [
            *((s.name, s) for s in incident.operands),
            *((f"→ {s.name}", s) for s in incident.results),
        ]
        found.append(Part("values", table=tuple(_row(name, s) for name, s in names)))
    if incident.rows:
        found.append(Part("rows", tuple(_some(map(_row_text, incident.rows), len(incident.rows)))))
    if incident.chain:
        found.append(Part("chain", tuple(_some(map(_link_text, incident.chain), len(incident.chain)))))
    if not incident.reproduced:
        found.append(Part("replayed", ("the step was run again at once, and was finite",)))
    if incident.remedy:
        found.append(Part("remedy", (incident.remedy,)))
    found.append(Part("policy", (incident.policy,)))
    if incident.response:
        found.append(Part("response", (f"{incident.response}: {_RESPONSES[incident.response]}",)))
    if path is not None:
        found.append(Part("replay", (command(path),)))
    return found


def place(incident: Incident | Attribution) -> str:
    """Operation, module, phase and time step: `log in layer 'head' (forward), time step 3`."""
    producer = incident.producer
    what = producer.op or ("the data" if incident.phase == "data" else "")
    if producer.parameter:
        kind = "field" if incident.phase == "data" else "parameter"
        what = f"{what}, {kind} '{producer.parameter}'" if what else f"{kind} '{producer.parameter}'"
    if producer.module is not None and incident.phase != "data":
        where = f"layer '{producer.module}'" if producer.module else "the model itself"
        what = f"{what} in {where}" if what else where
    what = f"{what} ({incident.phase}, {incident.event})" if what else f"{incident.phase}, {incident.event}"
    return what if producer.time_index is None else f"{what}, time step {producer.time_index}"


def command(path: str | Path) -> str:
    """The command that replays an incident, with the path relative where it lies below this folder."""
    return f"castiron replay {shlex.quote(_shown(os.path.abspath(path)))}"


# --- plain, coloured, Markdown -------------------------------------------------------------------------


def as_lines(incident: Incident, path: str | Path | None = None) -> list[str]:
    """The block as plain lines."""
    lines = [headline(incident)]
    entries = parts(incident, path)
    width = max(len(p.label) for p in entries)
    indent = " " * (width + 4)
    for part in entries:
        inside = [*part.lines, *_plain_table(part.table)]
        if part.code:
            inside.append(f"    {part.code}")
        lines.append(f"  {part.label.ljust(width)}  {inside[0]}")
        lines += [indent + line for line in inside[1:]]
    return lines


def as_text(incident: Incident, path: str | Path | None = None) -> str:
    """The block as plain text."""
    return "\n".join(as_lines(incident, path))


def print_incident(incident: Incident, console: Console, path: str | Path | None = None) -> None:
    """The block on a rich console; without colours where the console has none."""
    from rich.text import Text

    entries = parts(incident, path)
    width = max(len(p.label) for p in entries)
    code, _, message = headline(incident).partition(" ")
    console.print(Text.assemble((code, "bold red"), " ", (message, "bold")), soft_wrap=True, highlight=False)
    styles = {"remedy": "green", "replay": "cyan", "source": "cyan"}
    for part in entries:
        style = styles.get(part.label, "")
        inside = [Text(line, style=style) for line in part.lines]
        inside += [
            Text(line, style="dim" if i == 0 else _alarm(part.table[i - 1]))
            for i, line in enumerate(_plain_table(part.table))
        ]
        if part.code:
            inside.append(Text(f"    {part.code}", style="bold"))
        for i, line in enumerate(inside):
            label = part.label.ljust(width) if i == 0 else " " * width
            console.print(Text.assemble("  ", (label, "dim"), "  ", line), soft_wrap=True, highlight=False)


def as_markdown(incident: Incident, path: str | Path | None = None) -> str:
    """The block as Markdown."""
    code, _, message = headline(incident).partition(" ")
    lines = [f"**{code}** {_escaped(message)}", ""]
    for part in parts(incident, path):
        if part.table:
            lines += ["", f"| {' | '.join(HEADINGS)} |"]
            lines.append("|" + "|".join("---:" if i in _RIGHT else "---" for i in range(len(HEADINGS))) + "|")
            lines += [f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in part.table]
            lines.append("")
        elif part.label in ("replay", "policy"):
            lines.append(f"- *{part.label}*: `{part.lines[0]}`")
        elif len(part.lines) == 1:
            # Remedies are Markdown already.
            text = part.lines[0] if part.label == "remedy" else _escaped(part.lines[0])
            lines.append(f"- *{part.label}*: {text}")
        else:
            lines.append(f"- *{part.label}*:")
            lines += [f"    - {_escaped(line)}" for line in part.lines]
        if part.code:
            lines.append(f"  `{part.code.replace('`', chr(39))}`")
    return "\n".join(lines).strip() + "\n"


def replayed_lines(found: Replayed) -> list[tuple[str, str]]:
    """What running the step again has shown, and what became of each remedy: lines with their styles."""
    lines = [(text, "") for text in found.notes]
    if not found.replay.reproduced:
        lines.append(("replayed  the step is finite here: the fault did not come again", "bold yellow"))
    elif is_same(found.incident, found.replay):
        lines.append(("replayed  the same fault again", "bold"))
    else:
        lines.append((f"replayed  another fault: {brief(found.replay)}", "bold yellow"))
    width = max((len(t.tried) for t in found.remedies), default=0)
    for t in found.remedies:
        if t.goes_away:
            lines.append((f"✓ {t.tried.ljust(width)}  the fault goes away", "green"))
        else:
            other = t.remains is not None and not is_same(t.remains, found.replay)
            remains = f"another fault takes its place: {brief(t.remains)}" if other and t.remains else ""
            lines.append((f"✗ {t.tried.ljust(width)}  {remains or 'the fault stays'}", "red"))
    return lines


def is_same(one: Incident | Attribution, other: Incident | Attribution) -> bool:
    """Whether two attributions blame the same thing."""
    return _blamed(one) == _blamed(other)


def brief(found: Incident | Attribution) -> str:
    """What happened and where, in one line."""
    return f"{headline(found)}; {place(found)}"


def _blamed(found: Incident | Attribution) -> tuple[str | None, ...]:
    producer = found.producer
    return (found.code, found.phase, producer.op, producer.module, producer.parameter)


# --- pieces --------------------------------------------------------------------------------------------


def _when(incident: Incident) -> str:
    told = [f"step {incident.step:,}", f"epoch {incident.epoch}"]
    if incident.micro_batch is not None:
        told.append(f"micro-batch {incident.micro_batch}")
    told.append(f"rank {incident.rank}")
    return ", ".join(told)


def _row(name: str, s: TensorStatistics) -> tuple[str, ...]:
    shape = "×".join(str(n) for n in s.shape) or "scalar"
    extremes = ("–" if v is None else f"{v:.6g}" for v in (s.min, s.max))
    counts = (f"{n:,}" for n in (s.nan, s.posinf, s.neginf, s.zero, s.subnormal))
    return (name, s.dtype, shape, *extremes, *counts)


def _alarm(row: Sequence[str]) -> str:
    return "red" if any(cell != "0" for cell in row[5:8]) else ""


def _plain_table(rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    cells = [HEADINGS, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADINGS))]
    return [
        "  ".join(
            cell.rjust(width) if i in _RIGHT else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _shown(path: str) -> str:
    """A path as it is said in this folder."""
    here = os.path.join(os.getcwd(), "")
    return path.removeprefix(here)


def _row_text(row: BadRow) -> str:
    position = f"position {row.index} in the batch"
    if row.file is not None:
        file = _shown(row.file)
        return f"{file}:{row.line} ({position})" if row.line is not None else f"{file} ({position})"
    return f"row {row.row:,} of the data ({position})" if row.row is not None else position


def _link_text(link: Link) -> str:
    where = (
        "" if link.module is None else f" in layer '{link.module}'" if link.module else " in the model itself"
    )
    source = f"  {_shown(str(link.source))}" if link.source is not None else ""
    return f"{link.what}{where} ({link.phase}){source}"


def _some(lines: Iterable[str], total: int) -> list[str]:
    shown = [line for line, _ in zip(lines, range(_SHOWN), strict=False)]
    return [*shown, f"and {total - _SHOWN:,} more"] if total > _SHOWN else shown


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_|<>[]" else c for c in text)
