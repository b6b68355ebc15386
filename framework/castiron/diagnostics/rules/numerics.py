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
    Rule(
        code="N512",
        name="not-an-incident",
        severity="error",
        what="What was given to replay is no incident's folder.",
        why="Replay needs the batch, parameters and random state of the step, which lie in that folder.",
        remedy="Give a folder such as runs/RECIPE/NAME/incidents/step-12, or its incident.json.",
        bad="castiron replay runs/lstm-sentiment/first/checkpoints",
        good="castiron replay runs/lstm-sentiment/first/incidents/step-12",
    ),
    Rule(
        code="N513",
        name="damaged-incident",
        severity="error",
        what="A file of an incident is missing, cut off, or not what was written.",
        why="A replay of other values than those of the step would explain a fault that never was.",
        remedy="Copy the whole folder again from where it was written.",
    ),
    Rule(
        code="N514",
        name="incident-of-another-version",
        severity="error",
        what="The folder has the layout of another version of castiron.",
        why="Its files would be read for what they are not.",
        remedy="Replay it with the version that wrote it; incident.json says which one, under `castiron`.",
    ),
    Rule(
        code="N515",
        name="incident-not-replayable",
        severity="error",
        what="The folder can be read, and does not hold all that this replay needs.",
        why="Without the step's own tensors, model or code there is no step to run again.",
        remedy="Read its incident.json: what was found when it happened is there.",
    ),
    Rule(
        code="N516",
        name="response-limit-spent",
        severity="error",
        what="A step was bad after `guard.response` had been carried out as often as its limit allows.",
        why="A response that has not helped so often does not meet the cause: training on wastes time.",
        remedy="Mend the cause: each held step was reported. The limit is a key beside the response: "
        "`guard: {response: rollback, rollback: {limit: 3}}`.",
        bad="guard: {response: lower-lr, lower_lr: {limit: 1}}  # and the data hold infinities",
        good="guard: {response: hold}  # or data without infinities",
    ),
)
