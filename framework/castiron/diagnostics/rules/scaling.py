"""S4xx: loss scaling."""

from __future__ import annotations

from castiron.diagnostics.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        code="S401",
        name="scale-at-floor",
        severity="error",
        what="The loss scale stood at its floor, and gradients overflowed there `patience` times in a row.",
        why="Every step is skipped: nothing is learnt while the run goes on. Frameworks halve the scale to "
        "zero, and the first good step after that gives NaN weights.",
        remedy="The cause is not the scale: look at the first incident (non-finite data, a layer that "
        "overflows, a learning rate too high). Keep the layer wide, or use bfloat16.",
    ),
    Rule(
        code="S402",
        name="scale-not-invertible",
        severity="error",
        what="The loss scale, or one divided by it, is not finite.",
        why="Unscaling would multiply every gradient by infinity or zero, and poison the weights.",
        remedy="Keep `scaling.min` at 1 or above and `scaling.max` at 2^24 or below; restore the scaler's "
        "state from a good checkpoint.",
        bad="scaling: {kind: static, scale: 1.0e-40}",
        good="scaling: {kind: static, scale: 4096}",
    ),
    Rule(
        code="S403",
        name="scale-calibrating",
        severity="info",
        what="Gradients overflowed and the loss scale backed off: expected while a dynamic scale calibrates.",
        why="The step was skipped, nothing was lost.",
        remedy="None needed. If it goes on for some hundred steps, lower `scaling.initial` or `scaling.max`.",
    ),
    Rule(
        code="S404",
        name="scaler-state-of-another-kind",
        severity="error",
        what="The saved scaler state does not belong to the scaling that the policy declares.",
        why="Starting with another scale repeats the calibration, or overflows at once.",
        remedy="Resume with the scaling section of the run that saved it.",
        bad="scaling: none  # resuming a run that had scaling: dynamic",
        good="scaling: dynamic",
    ),
    Rule(
        code="S405",
        name="unscale-out-of-order",
        severity="error",
        what="Gradients were unscaled twice, or a step was taken on gradients never unscaled.",
        why="The update would be too small or too large by the factor of the scale.",
        remedy="Per step: scale(loss).backward(), unscale_(optimizers), clip, step(each), update().",
    ),
)
