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
        why="One such step poisons the weights, the moments of the optimizer, or the running statistics of "
        "a BatchNorm for good; frameworks train on.",
        remedy="Look at the rows and tensors that are named. `guard: {response: hold}` goes on without such "
        "steps, as far as `guard.budget` reaches.",
        bad="loss = (prediction / count).mean()  # count is 0 in one row",
        good="loss = (prediction / count.clamp(min=1)).mean()",
    ),
    Rule(
        code="N501",
        name="overflow",
        severity="error",
        what="An operation gave an infinity (or NaN, from infinities inside it) out of finite operands: its "
        "result is larger than its format can hold.",
        why="float16 ends at 65,504. One infinity makes the loss NaN a few operations later, where "
        "frameworks notice, if they do.",
        remedy="Compute the layer in float32, or make its operands smaller.",
        bad="scores = (queries @ keys.mT).softmax(-1)  # float16: the product passes 65,504",
        good="scores = (queries / queries.shape[-1] ** 0.5 @ keys.mT).softmax(-1)",
    ),
    Rule(
        code="N502",
        name="zero-over-zero",
        severity="error",
        what="An operation divided zero by zero, infinity by infinity, or took infinity from infinity: a "
        "constant column that is standardised, a softmax over a row that is masked whole, a mean of "
        "nothing.",
        why="The result is NaN, and so is all that it reaches; masking it afterwards does not clear the "
        "gradient.",
        remedy="Keep the divisor away from zero, and leave something to take the softmax or the mean of.",
        bad="x = (x - x.mean(0)) / x.std(0)",
        good="x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)",
    ),
    Rule(
        code="N503",
        name="zero-times-infinity",
        severity="error",
        what="An operation multiplied zero by infinity.",
        why="Multiplying with a mask of zeros does not hide an infinity, it makes NaN of it.",
        remedy="Mask with `masked_fill` or `where`, and keep the infinity from arising.",
        bad="loss = (mask * x.log()).sum()  # x is 0 where mask is",
        good="loss = x.masked_fill(mask == 0, 1).log().sum()",
    ),
    Rule(
        code="N504",
        name="outside-the-domain",
        severity="error",
        what="An operation has no finite value (or no finite slope) where it was asked: log of 0, sqrt of a "
        "negative number, the slope of sqrt at 0, division by 0.",
        why="The loss becomes infinite or NaN, or only the gradient does while the loss looks well.",
        remedy="Keep the operands inside the domain, or use the stable function: log_softmax, "
        "binary_cross_entropy_with_logits, torch.linalg.vector_norm.",
        bad="loss = -(y * p.log()).sum()",
        good="loss = torch.nn.functional.cross_entropy(logits, y)",
    ),
    Rule(
        code="N506",
        name="inherited",
        severity="error",
        what="A parameter, a buffer or another tensor was not finite before the step began.",
        why="The step at hand is only where it was noticed.",
        remedy="Go back to a checkpoint in which it is finite; `guard.watch` with parameters and optimizer "
        "stops at the step that spoils it.",
    ),
    Rule(
        code="N507",
        name="bad-data",
        severity="error",
        what="A field of the batch was not finite when it reached the model.",
        why="One such row makes the whole batch NaN in a BatchNorm; the model is not to blame.",
        remedy="Mend or leave out the rows that are named; declare the field in a data contract, which "
        "refuses them at load.",
    ),
    Rule(
        code="N508",
        name="optimizer-not-finite",
        severity="error",
        what="Gradients were finite, and the optimizer's own step made a parameter or its state NaN or "
        "infinite.",
        why="eps of Adam is 0 in float16, and 0/0 is NaN; a squared gradient overflows.",
        remedy="Use fused=True, float32 parameters or a master copy, or an eps that the format can hold.",
        bad="torch.optim.Adam(model.half().parameters(), foreach=True)",
        good="torch.optim.Adam(model.parameters())  # float32, under precision: fp16-mixed",
    ),
    Rule(
        code="N509",
        name="not-reproduced",
        severity="error",
        what="The step that was bad is finite when it is run again on the same parameters, batch and random "
        "state.",
        why="Then it is not the model's arithmetic: compiled code that differs from eager code, an "
        "operation that is not deterministic, memory that was overwritten, a faulty device.",
        remedy="Train without compile and with deterministic algorithms; where it stays, suspect the device.",
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
        code="N511",
        name="bad-loss-healthy-gradients",
        severity="error",
        what="The loss is NaN or infinite, and every gradient is finite (most often exactly 0).",
        why="All targets of a batch are ignored, or its mask is empty: the mean of nothing. The weights "
        "were never in danger, but the mean of the losses is.",
        remedy="Skip such batches, or divide by `count.clamp(min=1)`.",
        bad="loss = cross_entropy(logits, targets, ignore_index=-100)  # every target is -100",
        good="loss = cross_entropy(logits, targets, reduction='sum') / (targets != -100).sum().clamp(min=1)",
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
