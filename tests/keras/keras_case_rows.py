"""The table of broken trainings, row by row, for TensorFlow: what each ends in, and the test that shows it.

`scripts/parity_page.py` puts it on docs/parity.md, `test_keras_cases.py` holds it against the trainings.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL = "eager, graph, XLA"
_XLA_ONLY = "TensorFlow's own kernel says 0 · inf = 0 there; only XLA's formula says NaN"


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    title: str
    says: str
    """What castiron says of it."""
    cases: tuple[str, ...] = ()
    """Trainings of `keras_broken_*.py` that are held."""
    test: str = ""
    """Where it ends otherwise than in an incident: `file::function`, below tests/keras."""
    modes: str = ALL
    why: str = ""
    """Why not in every mode."""


ROWS: dict[int, Row] = {
    1: Row("hand cross-entropy, p = 0 and y = 0", "N504 Log, loss", ("cross_entropy_by_hand",)),
    2: Row("the same with y = 1", "N504 Log, loss", ("cross_entropy_by_hand_infinite",)),
    3: Row(
        "sqrt(0), then times 0", "N502 SqrtGrad, backward", ("root_of_zero_times_zero",), modes="XLA",
        why=_XLA_ONLY,
    ),
    4: Row("sqrt(0) alone", "N504 SqrtGrad, backward", ("root_of_zero",)),
    5: Row("a row of attention masked whole, not in the loss", "N502 Softmax, the row",
           ("masked_attention_by_hand",)),
    6: Row("the same with the framework's own attention", "nothing",
           test="keras_healthy_trainings.py::attention_with_a_row_masked_whole"),
    7: Row("two masks of the most negative number added, 16 bits", "N501 AddV2, forward",
           ("masks_overflow",)),
    8: Row(
        "where(x > 0, sqrt(x), 0) and its like at 0", "N502 or N504, backward",
        ("where_trap", "where_trap_log"), why=f"with sqrt XLA alone: {_XLA_ONLY}",
    ),
    9: Row("norms and deviations at 0 or a constant", "N504 SqrtGrad, backward",
           ("norm_at_zero", "deviation_of_a_constant", "norm_by_hand")),
    10: Row("(x − mean) / std, a constant column", "N502 RealDiv, forward", ("constant_column",)),
    11: Row(
        "every label ignored, or an empty mask", "N511: a bad loss, a healthy step",
        ("all_labels_ignored", "empty_mask"),
        why="XLA does not compile tf.boolean_mask: that one eager and graph",
    ),
    12: Row("float16 products beyond 65,504", "N501 MatMul, the layer", ("product_overflows",)),
    13: Row("softmax by hand, exp(300)", "N501 Exp, forward", ("softmax_by_hand",)),
    14: Row("float16 gradients that vanish", "N520, health", modes="graph",
            test="health/test_keras_planted_health.py::test_float16_gradients_of_1e_8"),
    15: Row("Adam on float16 parameters, gradient 0", "nothing: Adam computes in float32 here",
            test="keras_healthy_trainings.py::zero_gradients_and_adam_on_float16_parameters"),
    16: Row("bfloat16 weights, updates lost", "N521, health; the plan warns before", modes="graph",
            test="health/test_keras_planted_health.py::test_bfloat16_weights_at_a_small_learning_rate"),
    17: Row("bfloat16 weight decay lost", "nothing with a master copy; without one the plan warns",
            modes="graph",
            test="test_keras_updates.py::test_a_master_copy_keeps_updates_smaller_than_the_spacing"),
    18: Row("one infinite gradient, Adam", "N504, backward, the rows", ("custom_backward",)),
    19: Row("gradients of 1e-25 with Adam", "N524, health", modes="graph",
            test="health/test_keras_planted_health.py::test_adam_with_gradients_of_1e_25"),
    20: Row("an infinite gradient, clipped by norm", "N504 SqrtGrad: looked at before clipping",
            ("infinite_gradient_before_clipping",)),
    21: Row("BatchNorm receives an infinity", "N501, the layer; statistics put back",
            ("batch_norm_poisoned", "image_of_another_scale")),
    22: Row("a NaN row in the batch", "N507, the rows", ("bad_row", "bad_sequences")),
    23: Row("the loss scale collapses", "S401 at its floor; it never reaches 0", modes="graph",
            test="test_keras_transaction.py::test_a_scale_at_its_floor_ends_training_by_name_and_never_reaches_zero"),
    24: Row("overflows while the scale calibrates", "nothing; they are counted",
            test="keras_healthy_trainings.py::gradients_overflow_while_the_loss_scale_calibrates"),
    25: Row("labels cast to 16 bits", "nothing: integers stay integers", modes="before the step",
            test="test_keras_inputs.py::test_features_and_targets_are_cast_by_role_and_integers_stay"),
    26: Row("micro-batch 2 of 4 is bad", "N507, micro-batch 1 (from 0), the row", ("micro_batch",)),
    27: Row("a GAN, one model bad", "the step is taken back whole, the line named", modes="graph, XLA",
            test="test_keras_own_steps.py::test_two_models_and_two_optimizers"),
    28: Row("counters and metrics in bfloat16", "nothing: metrics are float32", modes="graph",
            test="test_keras_cases.py::test_metrics_count_in_float32_whatever_the_model_computes_in"),
    29: Row("NaN on one replica only", "N507 with its rank; all replicas hold", modes="graph",
            test="test_keras_enforce.py::test_replicas_decide_as_one"),
    30: Row("E[x²] − E[x]²", "F360, audit", modes="the graph is read",
            test="audit/test_keras_cancellation.py::test_a_variance_by_difference"),
    31: Row("NaN in compiled code only", "named with XLA's own formula of the gradient",
            test="keras_broken_functions.py::root_of_zero_times_zero", modes="XLA"),
    32: Row("float8 casts", "L210: refused, Keras only simulates float8", modes="before the step",
            test="test_keras_precision.py::test_float8_is_refused_by_name"),
    33: Row("a fault that does not come back", "N509, no layer is blamed", ("does_not_come_back",)),
}  # fmt: skip


def table() -> list[str]:
    """As lines of Markdown."""
    lines = ["| row | training | castiron says | compiled or not | test |", "|---|---|---|---|---|"]
    for number, row in ROWS.items():
        test = row.test.replace("::", " ") or ", ".join(row.cases)
        modes = f"{row.modes} ({row.why})" if row.why else row.modes
        lines.append(f"| {number} | {row.title} | {row.says} | {modes} | {test.replace('_', ' ')} |")
    return lines
