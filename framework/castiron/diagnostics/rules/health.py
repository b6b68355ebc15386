"""N52x: what the ranges of a training foretell, before anything breaks."""

from __future__ import annotations

from castiron.diagnostics.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        code="N520",
        name="gradients-underflow",
        severity="warning",
        what="Gradients are too small for the narrow format in which they are computed, and become zero on "
        "the way back.",
        why="The layers below learn nothing, and nothing says so: zeros are finite.",
        remedy="Scale the loss: `scaling: dynamic`, or `scaling: {kind: static, scale: …}` with the power of "
        "two that is named. bfloat16 has the exponents of float32, and needs none.",
        bad="precision: {preset: fp16-mixed, scaling: {kind: static, scale: 1}}",
        good="precision: fp16-mixed",
    ),
    Rule(
        code="N521",
        name="updates-lost",
        severity="warning",
        what="Most updates of a layer are smaller than half the spacing of its weights' format: the weights "
        "stay what they were.",
        why="Training looks well and goes nowhere: in bfloat16 a weight of 1 does not move by less than "
        "2^-9.",
        remedy="Keep float32 master weights (`updates: {master: float32}`) or round stochastically "
        "(`updates: {rounding: stochastic}`).",
        bad="precision: {preset: bf16-true, updates: {master: null}}",
        good="precision: {preset: bf16-true, updates: {master: float32}}",
    ),
    Rule(
        code="N522",
        name="near-overflow",
        severity="warning",
        what="Values of a layer are within two binades (a factor of 4) of the largest number of "
        "their format.",
        why="A batch that is a little larger makes an infinity, and NaN a few operations later.",
        remedy="Keep the layer in a format with more exponents by the layer rule that is named.",
        bad="precision: fp16-mixed  # and the scores of a layer reach 40,000",
        good='precision: {preset: fp16-mixed, layers: {"scores": {compute: float32}}}',
    ),
    Rule(
        code="N523",
        name="state-grows",
        severity="warning",
        what="The state of a recurrent layer grows by a constant factor from time step to time step.",
        why="Growth is exponential: a longer sequence overflows, and its gradient before it does.",
        remedy="Bound the state (a forget gate, layer normalisation, a recurrent weight of spectral norm 1 "
        "or less), or make the sequences shorter.",
        bad="state = 1.5 * state + update",
        good="state = forget * state + (1 - forget) * update",
    ),
    Rule(
        code="N524",
        name="second-moment-underflow",
        severity="warning",
        what="Squared gradients are too small for the format of Adam's second moment: it is zero where the "
        "first moment is not.",
        why="Then eps alone stands in the divisor, and the update is nothing where it should be a step of "
        "about lr.",
        remedy="Make the loss larger (sum in place of mean, a constant factor: Adam's step does not depend "
        "on it), or keep the state in float32 or float64 where it is narrower.",
    ),
    Rule(
        code="N525",
        name="second-moment-overflow",
        severity="warning",
        what="Adam's second moment is infinite for some weights.",
        why="Their update is zero from now on, though everything looks finite.",
        remedy="Clip gradients (`trainer.clip_norm`), make the loss smaller, and start from a checkpoint "
        "from before it.",
    ),
    Rule(
        code="N526",
        name="scale-stuck",
        severity="warning",
        what="Step after step overflows, and the loss scale does not come to rest.",
        why="An overflow while the scale calibrates is expected; when it goes on, nothing is learnt while "
        "the run goes on.",
        remedy="The cause is seldom the scale: look for a layer that overflows in the forward pass, or for "
        "infinite data, and keep that layer in float32 or use bfloat16. A static scale: lower it.",
        bad="scaling: {kind: static, scale: 1.0e9}",
        good="scaling: dynamic",
    ),
    Rule(
        code="N527",
        name="dead-units",
        severity="warning",
        what="Nearly all units of a layer are zero for every row of the batches that were measured.",
        why="A unit of a ReLU that is zero everywhere has no gradient, and stays dead.",
        remedy="Lower the learning rate, or its peak by a warm-up; check the sign and size of the biases; "
        "use a leaky activation.",
    ),
    Rule(
        code="N528",
        name="format-would-do",
        severity="info",
        what="A narrower format would hold all values that were measured, without overflow and with next to "
        "no underflow.",
        why="Narrower formats are faster where the hardware has them, and take less memory.",
        remedy="Try it: `castiron suggest` measures what it gains, and proves it beside float32.",
    ),
)
