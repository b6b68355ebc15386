"""Draws the figures of the pages on concepts: `python docs/_ext/concept_figures.py`.

What can be computed is: formats and plan come from castiron itself, casts from NumPy. The figures are
committed, so that the pages show them wherever they are read; a test holds them to this file.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np

from castiron.formats import number_format
from castiron.policy import DeviceCapability, LayerInfo, PrecisionPolicy, Support, TensorInfo, resolve

FOLDER = Path(__file__).resolve().parents[1] / "images" / "concepts"
KINDS = {
    "plain": ("#f6f5f3", "#78716c"),
    "good": ("#e6f3ec", "#1f7a4d"),
    "bad": ("#fbe9ec", "#a8324a"),
    "wide": ("#fdf1e5", "#b3541e"),
}
"""Fill and line of a box."""


class Drawing:
    """An SVG of given size in pixels, put together piece by piece."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#1c1917">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#57534e"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def text(
        self, x: float, y: float, what: str, *, at: str = "start", mono: bool = False,
        bold: bool = False, color: str = "#1c1917", size: int = 13,
    ) -> None:  # fmt: skip
        family = ' font-family="Menlo, Consolas, monospace"' if mono else ""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{at}" font-size="{size}" fill="{color}"{family}{weight}>'
            f"{escape(what)}</text>"
        )

    def box(
        self, x: float, y: float, w: float, h: float, *lines: str, kind: str = "plain", mono: bool = False
    ) -> None:
        """A box with lines of text in its middle, the first of them bold."""
        fill, line = KINDS[kind]
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6" fill="{fill}" stroke="{line}"/>'
        )
        top = y + h / 2 - 8.5 * (len(lines) - 1) + 4.5
        for n, what in enumerate(lines):
            self.text(x + w / 2, top + 17 * n, what, at="middle", bold=n == 0 and not mono, mono=mono)

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<path d="M{path}" fill="none" stroke="#57534e" stroke-width="1.5"{dash} '
            'marker-end="url(#tip)"/>'
        )

    def rows(self, x: float, y: float, widths: tuple[int, ...], rows: list[tuple[str, ...]]) -> None:
        """A table; the first row is its head."""
        for n, row in enumerate(rows):
            at = x
            for width, what in zip(widths, row, strict=True):
                self.text(at, y + 22 * n, what, mono=n > 0, color="#57534e" if n == 0 else "#1c1917", size=12)
                at += width
        self.parts.append(
            f'<path d="M{x} {y + 7} H{x + sum(widths)}" stroke="#a8a29e" stroke-width="1" fill="none"/>'
        )

    def __str__(self) -> str:
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def policy() -> Drawing:
    """The roles of bf16-mixed along one step."""
    p = PrecisionPolicy.preset("bf16-mixed")
    d = Drawing(760, 262, "The roles of a policy, with the formats of bf16-mixed")
    d.text(20, 28, "bf16-mixed: a format for each role", bold=True)
    d.box(20, 70, 90, 60, "batch", "cast by role")
    d.arrow((110, 100), (150, 100))
    d.box(150, 50, 210, 100)
    for n, (role, what) in enumerate(
        (("param", p.param), ("compute", p.compute), ("output", p.output), ("buffers", p.buffers))
    ):
        d.text(164, 73 + 21 * n, role, bold=True)
        d.text(346, 73 + 21 * n, what, at="end", mono=True)
    d.text(255, 168, "a layer: stores, multiplies in, hands on", at="middle", color="#57534e", size=12)
    d.arrow((360, 100), (410, 100))
    d.box(410, 70, 130, 60, "island: softmax", p.islands.softmax or "none", kind="wide")
    d.arrow((540, 100), (590, 100))
    d.box(590, 70, 150, 60, "loss", p.loss, kind="wide")
    d.arrow((665, 130), (665, 217), (580, 217))
    d.box(410, 192, 170, 50, "gradients", f"summed in {p.accumulate}")
    d.arrow((410, 217), (320, 217))
    d.box(150, 192, 170, 50, "optimizer", f"state in {p.state}")
    d.arrow((200, 192), (200, 175))
    return d


def plan() -> Drawing:
    """What `resolve` makes of a policy, a model and a device."""

    def layer(path: str, kind: str, family: str | None) -> LayerInfo:
        weight = TensorInfo(name="weight", dtype="float32", shape=(8, 8), trainable=True)
        return LayerInfo(path=path, type=kind, family=family, parameters=(weight,))

    native = Support(status="native", cost=1.0)
    device = DeviceCapability(
        device="cpu",
        name="a CPU",
        support={f: {"float32": native, "bfloat16": native} for f in ("embedding", "lstm", "matmul")},
    )
    policy = PrecisionPolicy.preset("bf16-mixed", layers={"head": {"compute": "float32"}})
    model = [
        layer("embedding", "Embedding", "embedding"),
        layer("lstm", "LSTM", "lstm"),
        layer("head", "Linear", "matmul"),
    ]
    resolved, _ = resolve(policy, model, device)
    d = Drawing(760, 230, "A plan: a policy resolved against a model and a device")
    for n, (what, of) in enumerate(
        (("policy", "bf16-mixed, head: float32"), ("model", "its layers"), ("device", "its formats"))
    ):
        d.box(20, 20 + 68 * n, 190, 52, what, of)
        d.arrow((210, 46 + 68 * n), (262, 115))
    rows = [("layer", "param", "compute", "output")]
    rows += [(r.path, r.param, r.compute, r.output) for r in resolved.rows if r.path]
    d.text(275, 40, "plan: a row per layer, and the reason for each format", bold=True)
    d.rows(275, 72, (140, 110, 110, 100), rows)
    d.text(275, 180, "head computes in float32: " + _reason(resolved.rows, "head"), size=12, color="#57534e")
    d.text(275, 204, "Refused here: formats the device lacks, rules that match nothing.", size=12)
    return d


def _reason(rows: object, path: str) -> str:
    (row,) = (r for r in rows if r.path == path)  # type: ignore[attr-defined]
    return str(row.reasons["compute"])


def contract() -> Drawing:
    """Cells of a file, and what a cast to float32 does to them."""
    d = Drawing(760, 236, "Casts to float32: exact, rounded, lossy")
    d.text(20, 30, "Cells of a column of float32", bold=True)
    for n, (cell, becomes, verdict, kind) in enumerate(
        (
            ("0.5", f"{float(np.float32('0.5'))!r}", "exact", "good"),
            ("0.1", f"{float(np.float32('0.1')):.12f}…", "rounded: counted, with the error", "good"),
            ("16777217", f"{int(np.float32(16777217))}", "lossy, D105: another integer", "bad"),
            ("1e39", "inf", "lossy, D103: overflow", "bad"),
            ("N/A", "–", "no number: D101", "bad"),
        )
    ):  # fmt: skip
        y = 48 + 36 * n
        d.box(20, y, 110, 28, cell, mono=True)
        d.arrow((130, y + 14), (180, y + 14))
        d.box(180, y, 180, 28, becomes, mono=True)
        d.arrow((360, y + 14), (410, y + 14))
        d.box(410, y, 240, 28, verdict, kind=kind)
    d.text(664, 75, "accepted", color=KINDS["good"][1])
    d.text(664, 147, "refused with", color=KINDS["bad"][1])
    d.text(664, 165, "file, line and", color=KINDS["bad"][1])
    d.text(664, 183, "column, unless", color=KINDS["bad"][1])
    d.text(664, 201, "declared", color=KINDS["bad"][1])
    return d


def audit() -> Drawing:
    """Operations of one step beside what the plan says of them."""
    d = Drawing(760, 208, "An audit: operations beside the plan")
    d.text(20, 30, "One step, operation by operation", bold=True)
    d.text(300, 30, "received", bold=True)
    d.text(500, 30, "by the plan", bold=True)
    rows = (
        ("lstm", "bfloat16 × bfloat16", "bfloat16", "good", "✓"),
        ("mul", "bfloat16 × float32", "bfloat16", "bad", "F301"),
        ("linear", "bfloat16 × bfloat16", "bfloat16", "good", "✓"),
        ("mean (the loss)", "float32", "float32", "good", "✓"),
    )
    for n, (operation, got, wanted, kind, said) in enumerate(rows):
        y = 44 + 39 * n
        d.box(20, y, 220, 30, operation, mono=True)
        d.box(290, y, 180, 30, got, kind=kind, mono=True)
        d.box(490, y, 120, 30, wanted, mono=True)
        d.text(630, y + 20, said, bold=True, color=KINDS[kind][1])
        if n < len(rows) - 1:
            d.arrow((130, y + 30), (130, y + 39))
    d.text(672, 103, "tagger.py:16", mono=True, size=11, color=KINDS["bad"][1])
    return d


def transaction() -> Drawing:
    """A step: one decision, then all of it or nothing."""
    d = Drawing(760, 232, "A step as a transaction")
    for n, what in enumerate(("forward", "loss", "backward")):
        d.box(20 + 125 * n, 80, 95, 50, what)
        if n:
            d.arrow((20 + 125 * n - 30, 105), (20 + 125 * n, 105))
    d.arrow((365, 105), (400, 105))
    d.box(400, 65, 130, 80, "the guard", "loss, gradients,", "buffers finite?")
    d.arrow((530, 90), (570, 57))
    d.text(556, 58, "yes", size=12, at="end")
    d.box(570, 24, 170, 62, "commit", "weights, state, schedules,", "averages, buffers", kind="good")
    d.arrow((530, 120), (570, 153))
    d.text(556, 162, "no", size=12, at="end")
    d.box(570, 124, 170, 62, "hold", "nothing of it is kept,", "bit for bit", kind="bad")
    d.arrow((655, 186), (655, 210), (465, 210))
    d.box(300, 194, 165, 32, "replay → incident", kind="wide")
    d.text(20, 42, "Micro-batches, optimizers and processes", size=12, color="#57534e")
    d.text(20, 59, "of a step share one decision.", size=12, color="#57534e")
    return d


def incident() -> Drawing:
    """The way from the operation that is to blame to the loss where it was seen."""
    d = Drawing(760, 216, "An incident: the first bad operation, not those that handed it on")
    stations = (("sigmoid", "0 … 0.54", "good"), ("log", "-inf", "bad"), ("gather", "-inf", "plain"),
                ("mean", "-inf", "plain"), ("neg", "inf", "plain"), ("loss", "inf", "plain"))  # fmt: skip
    for n, (operation, holds, kind) in enumerate(stations):
        d.box(20 + 123 * n, 58, 93, 52, operation, holds, kind=kind)
        if n:
            d.arrow((20 + 123 * n - 30, 84), (20 + 123 * n, 84))
    d.text(189, 44, "good operands, bad result: to blame", at="middle", bold=True, color=KINDS["bad"][1])
    d.text(450, 44, "they hand it on", at="middle", color="#57534e")
    d.text(728, 44, "the guard sees it", at="end", color="#57534e")
    d.arrow((189, 110), (189, 136))
    d.box(20, 136, 720, 62)
    for n, (what, is_) in enumerate(
        (("what", "log meets 0"), ("source", "my_recipe.py:8"), ("rows", "train.csv:85"),
         ("replay", "the step, kept whole"))
    ):  # fmt: skip
        d.text(40 + 175 * n, 160, what, bold=True)
        d.text(40 + 175 * n, 181, is_, mono=True, size=12)
    return d


def health() -> Drawing:
    """Exponents of two sets of numbers above the ranges of the formats."""
    low, high, left, step = -40, 24, 130, 9.4
    d = Drawing(760, 268, "Exponents of numbers beside the ranges of formats")

    def at(exponent: float) -> float:
        return left + (exponent - low) * step

    random = np.random.default_rng(0)
    weights, gradients = random.normal(0, 0.05, 20_000), random.normal(0, 1, 20_000) * 2.0**-22
    for values, color, name, x in (
        (gradients, "#b3541e", "gradients", at(-22)), (weights, "#1f7a4d", "weights", at(-5.5))
    ):  # fmt: skip
        counts = np.bincount(np.frexp(values)[1] - 1 - low, minlength=high - low)
        for n, count in enumerate(counts[: high - low]):
            if tall := round(90 * count / counts.max()):
                d.parts.append(
                    f'<rect x="{at(low + n):.1f}" y="{130 - tall}" width="{step - 1:.1f}" height="{tall}" '
                    f'fill="{color}"/>'
                )
        d.text(x, 32, name, at="middle", color=color, bold=True)
    d.parts.append(f'<path d="M{left} 130 H{at(high):.1f}" stroke="#57534e"/>')
    for exponent in range(low, high + 1, 8):
        d.text(at(exponent), 147, f"2^{exponent}", at="middle", size=11, color="#57534e")
    for n, name in enumerate(("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")):
        f, y = number_format(name), 162 + 25 * n
        smallest, normal, top = (
            float(np.log2(v)) for v in (f.smallest_subnormal or 0, f.smallest_normal or 0, f.max)
        )
        d.text(left - 10, y + 13, name, at="end", mono=True, size=11)
        for a, b, opacity in ((smallest, normal, 0.3), (normal, top, 0.8)):
            a, b = max(a, low), min(b, high)
            if b > a:
                d.parts.append(
                    f'<rect x="{at(a):.1f}" y="{y}" width="{(b - a) * step:.1f}" height="17" fill="#57708f" '
                    f'fill-opacity="{opacity}"/>'
                )
    return d


FIGURES: dict[str, Callable[[], Drawing]] = {
    "policy": policy,
    "plan": plan,
    "contract": contract,
    "audit": audit,
    "transaction": transaction,
    "incident": incident,
    "health": health,
}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(str(draw()), encoding="utf-8")
