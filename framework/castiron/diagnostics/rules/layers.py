"""L2xx: layer rules and the plan."""

from __future__ import annotations

from castiron.diagnostics.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        code="L201",
        name="rule-matches-nothing",
        severity="error",
        what="A layer rule matches no module path and no layer type of the model.",
        why="The layer it was meant for would silently run in the policy's general formats.",
        remedy="Mend the glob; `castiron train CONFIG --dry-run` prints the plan with every path.",
        bad='layers: {"haed": {compute: float32}}',
        good='layers: {"head": {compute: float32}}',
    ),
    Rule(
        code="L202",
        name="rules-clash",
        severity="error",
        what="Two layer rules give the same layer different formats for the same role.",
        why="Which of them wins would depend on their order in a file.",
        remedy="Narrow one of the globs, or say the same in both.",
        bad='layers: {"encoder.*": {compute: bfloat16}, "type:LayerNorm": {compute: float32}}',
        good='layers: {"encoder.linear*": {compute: bfloat16}, "type:LayerNorm": {compute: float32}}',
    ),
    Rule(
        code="L203",
        name="tied-parameters-differ",
        severity="error",
        what="Layers that share a parameter, or are the same layer under two paths, are given different "
        "formats.",
        why="A shared tensor has one dtype; giving it two would untie it, or favour the last layer.",
        remedy="Give all layers that share it the same formats, or untie them.",
        bad='layers: {"embedding": {param: bfloat16}}  # head.weight is embedding.weight',
        good='layers: {"embedding": {param: bfloat16}, "head": {param: bfloat16}}',
    ),
    Rule(
        code="L204",
        name="computes-wider-than-stored",
        severity="error",
        what="A layer is to compute in a wider format than its parameters are stored in.",
        why="The parameters are rounded already; the wide product would look more exact than it is.",
        remedy="Give the layer a param format as wide as its compute format.",
        bad='{preset: bf16-true, layers: {"head": {compute: float32}}}',
        good='{preset: bf16-true, layers: {"head": {param: float32, compute: float32}}}',
    ),
    Rule(
        code="L205",
        name="dtype-not-applied",
        severity="error",
        what="After the plan was applied, a parameter or buffer has another dtype than the plan says.",
        why="Something undid the cast: a custom setter, a parametrization, a module that replaces its "
        "tensors. Training would run in formats that nobody declared.",
        remedy="Look at how the named module sets this tensor; declare its dtype with a layer rule if it is "
        "meant.",
    ),
    Rule(
        code="L206",
        name="narrowing-overflows",
        severity="error",
        what="A parameter or buffer holds finite values that do not fit into the format the plan gives it.",
        why="They would become infinite in silence, and the first forward pass with them.",
        remedy="Keep this layer wider with a layer rule ('<path>': {param: float32}), use bfloat16 (the "
        "range of float32), or scale the values.",
        bad="{preset: fp16-true}  # a parameter holds 1e6",
        good='{preset: fp16-true, layers: {"scale": {param: float32}}}',
    ),
    Rule(
        code="L207",
        name="narrowing-underflows",
        severity="warning",
        what="A parameter or buffer holds non-zero values that become zero in the format the plan gives it.",
        why="Small weights and tables (1e-8 in float16) vanish, which no later step brings back.",
        remedy="Keep this layer wider with a layer rule ('<path>': {param: float32}) if the values matter.",
    ),
    Rule(
        code="L208",
        name="updates-lost-in-rounding",
        severity="warning",
        what="Parameters are stored in 16 bits, with neither a master copy nor stochastic rounding declared.",
        why="An update smaller than half the spacing at the weight rounds to nothing: a bfloat16 weight of 1 "
        "does not move under updates below 0.002.",
        remedy="Declare `updates: {master: float32}` or, for bfloat16, `updates: {rounding: stochastic}`.",
        bad="precision: {param: bfloat16}",
        good="precision: {param: bfloat16, updates: {master: float32}}",
    ),
    Rule(
        code="L209",
        name="parameter-not-initialised",
        severity="error",
        what="A lazy layer has parameters whose shape is not known yet.",
        why="What does not exist can be neither cast nor checked, and would be made in float32 later.",
        remedy="Run one batch through the model first, or give the layer its sizes.",
        bad="nn.LazyLinear(10)",
        good="nn.Linear(64, 10)",
    ),
    Rule(
        code="L210",
        name="not-available-in-this-framework",
        severity="error",
        what="The policy declares something that this framework's wing cannot apply.",
        why="Running something else in its place would be a silent substitution.",
        remedy="Declare what the message offers instead.",
        bad="islands: {softmax: float64}  # with compute bfloat16 in torch",
        good="islands: {softmax: float32}",
    ),
    Rule(
        code="L211",
        name="plan-is-of-another-model",
        severity="error",
        what="The plan and the model do not have the same layers.",
        why="Layers that the plan does not know would run in formats that nobody declared.",
        remedy="Resolve the plan anew after the last change of the model's layers.",
    ),
)
