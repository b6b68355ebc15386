"""H7xx: what a device can compute."""

from __future__ import annotations

from castiron.diagnostics.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        code="H701",
        name="format-not-supported",
        severity="error",
        what="The device cannot run a family of layers in the declared compute format.",
        why="Frameworks substitute another format or fail inside a kernel; castiron does neither.",
        remedy="`castiron doctor` shows what each preset would do on this machine.",
        bad="precision: tf32  # on a CPU",
        good="precision: float32",
    ),
    Rule(
        code="H702",
        name="format-emulated",
        severity="warning",
        what="The device runs a compute format only by conversion to another: the results are those of the "
        "declared format, the speed is not.",
        why="Narrow formats are chosen for speed; emulated, they are often slower than float32.",
        remedy="For speed choose a format that is native here (`castiron doctor`); for a rehearsal of a GPU "
        "run leave it so.",
        bad="precision: bf16-mixed  # on a CPU without avx512_bf16 or amx_bf16",
        good="precision: float32",
    ),
    Rule(
        code="H703",
        name="no-such-device",
        severity="error",
        what="The run asks for a device that is not there.",
        why="Falling back to another device changes speed, formats and results.",
        remedy="Set `trainer.device` to one that is there, or to auto.",
        bad="trainer: {device: cuda}  # on a machine without a GPU",
        good="trainer: {device: auto}",
    ),
)
