"""What a training's health leaves behind: TensorBoard's Health pages, and `health.parquet`."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from castiron.data.files import append_whole
from castiron.diagnostics import Finding, Place
from castiron.health import drawing, figures, tags
from castiron.health.dynamics import growth
from castiron.health.logs import ScalarLog, summary_of
from castiron.health.snapshot import KINDS, Kind, Snapshot, headroom
from castiron.health.statistics import WHAT_IF
from castiron.health.table import HealthTable
from castiron.health.writer import EventWriter
from castiron.health.writing import Closing, Tell, Unwritable

ADVICE = "health.jsonl"
"""What was said in a run: a finding a line, with the step `at` which."""
_CURVES = 16
"""Layers with curves of their own, at most; the table holds all."""
FIRST_FIGURES, AGAIN = 32, 4
"""Snapshots after which figures are drawn for the first time, and by what that grows from time to time: it
takes as long as many measurements."""
_HISTORY = 240
"""Snapshots that heatmaps are drawn from, at most: every second is dropped when there are more."""


def read_advice(folder: str | Path) -> list[tuple[int, Finding]]:
    """What was said in a run, with the step; a torn last line is passed over."""
    path = Path(folder) / ADVICE
    found: list[tuple[int, Finding]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            step = int(record.pop("at"))
            found.append((step, Finding(**{**record, "place": Place(**record.get("place", {}))})))
        except (ValueError, TypeError, KeyError):
            continue
    return found


class HealthRecorder(Closing):
    """Writes snapshots. Use it as a context manager, or `close()` it: figures of the whole run come at the
    end. A disk that is full, or a folder that is gone, is told once, and does not end a training.

    Args:
        folder: of the run.
        writer: TensorBoard's events.
        logs: told a few figures of each snapshot as well.
        resumed_at: last step that training goes on from.
        on_problem: told what cannot be written, once for each file; by default a `RuntimeWarning`.
    """

    def __init__(
        self,
        folder: str | Path,
        writer: EventWriter | None = None,
        *,
        logs: Sequence[ScalarLog] = (),
        resumed_at: int | None = None,
        on_problem: Tell | None = None,
    ) -> None:
        self._unwritable = Unwritable(on_problem)
        self._logs = tuple(logs)
        self._writer = writer
        if writer is not None:
            drawing.prepare()
        self._table = HealthTable(folder, resumed_at=resumed_at, unwritable=self._unwritable)
        self._history: list[Snapshot] = []
        self._kept = 0
        self._stride, self._seen, self._drawn, self._next = 1, 0, 0, FIRST_FIGURES
        self._curves: dict[str, list[str]] = {}
        self._latest: dict[Kind, Snapshot] = {}
        self._last: Snapshot | None = None
        self._advice = Path(folder) / ADVICE
        if resumed_at is None:
            with self._told():
                self._advice.unlink(missing_ok=True)

    def add(self, snapshot: Snapshot) -> None:
        """One more snapshot."""
        self._table.add(snapshot)
        self._remember(snapshot)
        summary = summary_of(snapshot) if self._logs else {}
        for log in self._logs if summary else ():
            log.log_metrics(summary, snapshot.step)
        if self._writer is None:
            return
        self._writer.scalars(self._scalars(snapshot), snapshot.step)
        if snapshot.full:
            for kind in KINDS:
                self._histogram(kind, snapshot)
        if self._seen >= self._next:
            self._next *= AGAIN
            self.draw()

    def say(self, findings: Sequence[Finding], step: int) -> None:
        """Advice, at the step it is given: in `health.jsonl`, and for TensorBoard."""
        if not findings:
            return
        lines = "".join(json.dumps({"at": step, **f.as_dict()}, default=str) + "\n" for f in findings)
        with self._told(), open(self._advice, "ab", buffering=0) as file:
            append_whole(file, lines.encode("utf-8"))
        if self._writer is None:
            return
        self._writer.text(
            tags.advice(),
            "\n".join(f"- **{f.severity} {f.code}** {f.sentence()} *{f.remedy}*" for f in findings),
            step,
        )

    def draw(self, *, again: bool = False) -> None:
        """The figures, as of now; `again` also where they are there already."""
        last = self._last
        if self._writer is None or last is None or (last.step == self._drawn and not again):
            return
        self._drawn = last.step
        shown: tuple[Kind, ...] = ("activations", "activation gradients", "parameters")
        for kind in shown:
            of = self._latest.get(kind)
            if of is not None:
                tag = tags.figure(
                    f"exponents by layer/{kind}",
                    "Rows: layers. Across: magnitudes as powers of two; dark: many. Above: what each format "
                    "holds (pale: as subnormal numbers). What lies outside a band would be lost in that "
                    "format.",
                )
                self._writer.image(tag, figures.exponents(of, kind).png(), last.step)
        tag = tags.figure("headroom by layer", "Rows: layers. Across: steps. Dark: near overflow.")
        self._writer.image(tag, figures.headroom_map(self._history).png(), last.step)
        tag = tags.figure(
            "underflow by layer", "Rows: layers. Across: steps. Dark: subnormal; grey: all zero."
        )
        self._writer.image(tag, figures.underflow_map(self._history).png(), last.step)

    def close(self) -> None:
        """The figures of the whole run, and the rest of the table."""
        self.draw()
        self._table.close()

    # --- details ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            remedy = "Make room or grant access; training goes on, and what is advised is in its output."
            self._unwritable.report("Lines of advice", self._advice, e, remedy)

    def _remember(self, snapshot: Snapshot) -> None:
        """Keep it for the heatmaps, without what they do not show."""
        self._seen += 1
        if not snapshot.kind("activations"):
            return  # peaks alone
        self._last = snapshot
        self._latest |= {kind: snapshot for kind, _ in snapshot.groups}
        self._kept += 1
        if (self._kept - 1) % self._stride == 0:
            kept = {
                k: s for k, s in snapshot.groups.items() if k[0] in ("activations", "activation gradients")
            }
            self._history.append(replace(snapshot, groups=kept, levels={}, casts=()))
        if len(self._history) > _HISTORY:
            self._history = self._history[::2]
            self._stride *= 2

    def _scalars(self, snapshot: Snapshot) -> dict[tags.Tag, float]:
        values: dict[tags.Tag, float] = {}
        if not snapshot.groups:  # peaks alone, of what layers hand on
            ups = [up for dtype, top in snapshot.peaks.values() if (up := headroom(dtype, top)) is not None]
            return {tags.headroom("activations"): min(ups)} if ups else values
        for kind in KINDS:
            groups = snapshot.kind(kind)
            tops = snapshot.largest(kind).values()
            ups = [up for dtype, top in tops if (up := headroom(dtype, top)) is not None]
            if ups and kind != "updates":
                values[tags.headroom(kind)] = min(ups)
            if kind != "updates" and groups:
                values[tags.subnormal(kind)] = max(
                    s.subnormals / s.live if s.live else 0 for s in groups.values()
                )
            for name in WHAT_IF if snapshot.full and kind in ("activations", "gradients") else ():
                made = [s.what_if[name] for s in groups.values() if name in s.what_if]
                if made:
                    values[tags.what_if("overflow", name, kind)] = max(m.overflow for m in made)
                    values[tags.what_if("underflow", name, kind)] = max(m.underflow for m in made)
        lost = {layer: u.update.lost_share for layer, u in snapshot.updates.items()}
        ratios = {layer: u.update.ratio for layer, u in snapshot.updates.items()}
        levels = {layer: growth(v) or 0.0 for layer, v in snapshot.levels.items() if len(v) >= 8}
        dead = {layer: d / n for layer, (d, n) in snapshot.dead.items() if n}
        rms = {layer: s.rms for layer, s in snapshot.kind("gradients").items()}
        for name, tag, found in (
            ("lost", tags.lost_updates, lost),
            ("ratio", tags.update_ratio, ratios),
            ("growth", tags.growth, levels),
            ("dead", tags.dead_units, dead),
            ("rms", tags.gradient_rms, rms),
            ("noise", tags.accumulation_noise, dict(snapshot.noise)),
        ):
            for layer in self._chosen(name, found):
                value = found.get(layer)
                if value is not None and math.isfinite(value):
                    values[tag(layer)] = value
        return values

    def _chosen(self, name: str, found: dict[str, float]) -> list[str]:
        """Layers whose curve is drawn: all of a small model; of a large one those that were largest at some
        time, so that no curve begins and ends at every step."""
        known = self._curves.setdefault(name, [])
        room = _CURVES - len(known)
        if room > 0:
            new = [layer for layer in found if layer not in known]
            if len(new) > room:
                new = sorted(new, key=lambda layer: -found[layer])[: max(room // 2, 1)]
            known += new
        return known

    def _histogram(self, kind: Kind, snapshot: Snapshot) -> None:
        """All elements of a kind by binary exponent. Zeros have none, and are left out."""
        assert self._writer is not None
        groups = [s for s in snapshot.kind(kind).values() if len(s.exponents) == 256 and s.live]
        if not groups:
            return
        counts = sum((s.exponents[1:-1] for s in groups), start=groups[0].exponents[1:-1] * 0)
        filled = counts.nonzero()[0]
        if not len(filled):
            return  # subnormals alone
        first, last = int(filled[0]), int(filled[-1])
        low = first + 1 - groups[0].bias
        edges = [float(low + i) for i in range(last - first + 2)]
        self._writer.histogram(tags.exponents(kind), edges, counts[first : last + 1].tolist(), snapshot.step)
