"""N5xx: numerics at run time."""

from __future__ import annotations

from castiron.diagnostics.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        code="N500",
        name="step-not-finite",
        severity="error",
        what="A loss, a gradient or a buffer of a training step is NaN or infinite. The step was held: "
        "parameters, optimizer state, schedules, buffers and the step count are as they were before it.",
        why="One such step poisons the weights, the moments of the optimizer, or the running statistics of a "
        "BatchNorm for good; frameworks train on.",
        remedy="Look at the rows and tensors that are named. `guard: {response: hold}` goes on without such "
        "steps, as far as `guard.budget` reaches.",
        bad="loss = (prediction / count).mean()  # count is 0 in one row",
        good="loss = (prediction / count.clamp(min=1)).mean()",
    ),
    Rule(
        code="N510",
        name="held-budget-spent",
        severity="error",
        what="More steps were held within the window than `guard.budget` puts up with.",
        why="A run that holds step after step learns little, and hides a cause that stays.",
        remedy="Mend the cause of the held steps: each was reported. Where they are expected, raise "
        "`guard.budget.holds`.",
        bad="guard: {response: hold, budget: {holds: 10, window: 1000}}  # and every tenth batch is bad",
        good="guard: {response: hold, budget: {holds: 200, window: 1000}}",
    ),
)
