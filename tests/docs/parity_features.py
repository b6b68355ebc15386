"""What each wing does, and the test that shows it; `scripts/parity_page.py` makes docs/parity.md of it.

A cell is a test (`file::name`), or a reason why there is none, in a few words.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "keras"))

import keras_case_rows


@dataclass(frozen=True)
class Cell:
    """A test that shows a feature, or the reason why a wing has not got it."""

    test: str = ""
    reason: str = ""


def t(test: str) -> Cell:
    """Shown by this test, below `tests/`."""
    return Cell(test=test)


def no(reason: str) -> Cell:
    """Not there, and why."""
    return Cell(reason=reason)


TABLE: dict[str, list[tuple[str, Cell, Cell]]] = {
    "Precision": [
        (
            "a format for each layer, by the plan",
            t("torch/test_precision.py::test_every_layer_hands_on_what_its_row_says"),
            t("keras/test_keras_precision.py::test_bf16_mixed_computes_and_hands_on_as_planned"),
        ),
        (
            "parameters and buffers stored as declared, identities kept",
            t("torch/test_precision.py::test_parameters_keep_their_identity_and_buffers_their_integers"),
            t("keras/test_keras_precision.py::test_a_built_optimizer_goes_on_with_the_same_variables"),
        ),
        (
            "what was cast and did not fit is refused",
            t("torch/test_precision.py::test_a_parameter_that_does_not_fit_is_refused_by_name"),
            t(
                "keras/test_keras_precision.py::test_values_that_do_not_fit_are_refused_before_anything_changes"
            ),
        ),
        (
            "softmax inside attention stays wide",
            t("torch/test_islands.py::test_the_softmax_inside_attention_is_wide"),
            t("keras/test_keras_precision.py::test_attention_is_narrow_and_its_softmax_wide"),
        ),
        (
            "islands for any softmax, norm, sum and exponential in the code",
            t("torch/test_islands.py::test_an_island_computes_in_float32"),
            no(
                "Keras has no hook below layers: islands are those of layers (softmax, normalization, "
                "attention); the audit tells of the others (F308)"
            ),
        ),
        (
            "recurrent layers and their states",
            t("torch/test_boundaries.py::test_recurrent_layers_compute_and_hand_on_the_declared_format"),
            t("keras/test_keras_precision.py::test_stateful_recurrent_layers_keep_one_state_format"),
        ),
        (
            "float8 products",
            no("no kernel on the devices tested; a plan that asks for it there is refused (H7xx)"),
            no("refused (L210): Keras only simulates float8"),
        ),
        (
            "batches cast by role; text and objects refused with the place",
            t("torch/test_inputs.py::test_what_is_no_number_is_named_with_its_place"),
            t("keras/test_keras_inputs.py::test_arrays_of_no_numbers_are_refused_with_the_place"),
        ),
        (
            "tf32 and determinism set and put back",
            t("torch/test_switches.py::test_every_switch_is_set_explicitly_and_put_back"),
            t("keras/test_keras_capability.py::test_tf32_is_set_both_ways_and_put_back_after_an_error"),
        ),
        (
            "loss scaling with bounds and patience",
            t("torch/test_scaling.py::test_a_scale_stuck_at_its_floor_is_found_after_patience"),
            t(
                "keras/test_keras_scaling.py::test_the_scale_never_falls_below_its_floor_and_says_so_after_patience"
            ),
        ),
        (
            "master copies and stochastic rounding",
            t("torch/test_updates.py::test_with_either_it_moves_as_far_as_in_float32"),
            t("keras/test_keras_updates.py::test_a_master_copy_keeps_updates_smaller_than_the_spacing"),
        ),
        (
            "optimizer state in the declared format",
            t("torch/test_updates.py::test_moments_are_kept_in_the_declared_format_also_when_resumed"),
            t("keras/test_keras_updates.py::test_the_optimizer_keeps_its_state_as_declared"),
        ),
    ],
    "A step": [
        (
            "held whole, bit for bit",
            t("torch/test_transaction.py::test_every_piece_of_state_is_as_before_a_held_step"),
            t("keras/test_keras_transaction.py::test_a_held_step_leaves_every_variable_bit_for_bit"),
        ),
        (
            "also with averages, master copies, an optimizer that accumulates, and a loss scale",
            t("torch/test_updates.py::test_scaling_and_masters_hold_a_bad_step_together"),
            t("keras/test_keras_held_state.py::test_training_goes_on_as_if_there_had_been_no_bad_step"),
        ),
        (
            "compiled",
            t("torch/test_precision.py::test_a_compiled_model_runs_the_formats_of_the_eager_one"),
            t("keras/test_keras_transaction.py::test_a_held_step_leaves_every_variable_bit_for_bit"),
        ),
        (
            "gradient accumulation",
            t("torch/test_transaction.py::test_accumulated_batches_have_the_mean_of_their_gradients"),
            t(
                "keras/test_keras_transaction.py::test_accumulated_gradients_are_their_mean_and_the_bad_micro_batch_is_named"
            ),
        ),
        (
            "several optimizers, one decision",
            t("torch/test_transaction.py::test_several_optimizers_decide_together"),
            t("keras/test_keras_own_steps.py::test_two_models_and_two_optimizers"),
        ),
        (
            "activations watched at layer boundaries",
            t("torch/test_transaction.py::test_activations_are_watched_at_module_boundaries"),
            no("refused (X815): a bad activation that matters reaches the loss or a gradient"),
        ),
        (
            "the model's own training loop",
            t(
                "lightning/test_trainer.py::test_a_plain_module_trains_on_numpy_doubles_under_every_preset_of_this_cpu"
            ),
            t("keras/test_keras_enforce.py::test_fit_learns_what_plain_fit_learns"),
        ),
        (
            "responses: hold, lower-lr, rollback, promote",
            t("lightning/test_guard.py::test_rollback_goes_back_to_the_state_of_some_steps_before"),
            t("keras/test_keras_responses.py::test_rollback_goes_back_to_the_state_of_some_steps_before"),
        ),
        (
            "several devices decide as one",
            t("lightning/test_two_processes.py::test_both_ranks_hold_what_is_bad_on_one_of_them"),
            t("keras/test_keras_enforce.py::test_replicas_decide_as_one"),
        ),
        (
            "recipes in several processes",
            t("lightning/test_several_processes.py::test_several_processes_train_like_one"),
            t("keras/test_several_workers.py::test_several_processes_train_like_one_on_rows_of_their_own"),
        ),
        (
            "sharded parameters (FSDP)",
            t("lightning/test_trainer.py::test_the_policy_becomes_fsdps_own_mixed_precision"),
            no("not offered: tf.distribute replicates"),
        ),
    ],
    "Incident and replay": [
        (
            "broken trainings explained",
            t("cases/test_cases.py::test_a_broken_training_is_held_and_explained"),
            t("keras/test_keras_cases.py::test_a_broken_training_is_held_and_explained"),
        ),
        (
            "healthy ones left in peace",
            t("cases/test_cases.py::test_a_healthy_training_is_left_in_peace"),
            t("keras/test_keras_cases.py::test_a_healthy_training_is_left_in_peace"),
        ),
        (
            "a training step of the model's own, explained",
            t("lightning/test_guard.py::test_manual_optimization_is_replayed_without_stepping"),
            t("keras/test_keras_own_steps.py::test_a_loop_around_a_tape"),
        ),
        (
            "rows by file and line",
            t("torch/test_incidents.py::test_rows_are_named_where_the_folder_knows_them"),
            t("keras/test_keras_transaction.py::test_rows_are_named_by_file_and_line"),
        ),
        (
            "replayed from the folder alone, remedies tried",
            t("lightning/test_replaying.py::test_remedies_are_tried_each_by_itself"),
            t("keras/test_keras_responses.py::test_replay_says_which_remedy_mends_it"),
        ),
        (
            "check_numerics' own scenarios",
            no("they are TensorFlow's; the same faults are among the broken trainings"),
            t("keras/test_keras_check_numerics.py::test_a_while_loop_that_overflows_is_told_with_its_turn"),
        ),
    ],
    "Audit": [
        (
            "planted faults found, at their line",
            t("torch/audit/test_planted.py::test_planted_fault"),
            t("keras/audit/test_keras_planted.py::test_the_planted_fault_is_found"),
        ),
        (
            "nothing said of clean models",
            t("torch/audit/test_clean.py::test_nothing_is_found"),
            t("keras/audit/test_keras_clean.py::test_nothing_is_said_of_a_clean_model"),
        ),
        (
            "the model is left as it is",
            t("torch/audit/test_report.py::test_the_model_is_left_as_it_is"),
            t("keras/audit/test_keras_clean.py::test_an_audit_leaves_the_model_as_it_was"),
        ),
        (
            "without the framework's support (`as_is`)",
            t("torch/audit/test_report.py::test_as_is_finds_what_the_plan_would_have_mended"),
            t("keras/audit/test_keras_examples.py::test_examples"),
        ),
        (
            "FLOPs by format",
            t("torch/audit/test_report.py::test_flops_are_those_of_the_products"),
            t("keras/audit/test_keras_report.py::test_flops_are_those_of_all_steps_of_a_loop"),
        ),
        (
            "any model by `module:function`",
            t("cli/test_audit_command.py::test_any_model"),
            t("keras/audit/test_keras_report.py::test_any_model_by_its_function"),
        ),
        (
            "recipes before their first step",
            t("lightning/test_auditing.py::test_strict_stops_before_the_first_step"),
            t("keras/audit/test_keras_report.py::test_strict_stops_a_recipe_before_its_first_step"),
        ),
        (
            "again while training (`audit.every`)",
            t("lightning/test_auditing.py::test_a_departure_that_comes_late_is_reported_once"),
            t(
                "keras/audit/test_keras_continuous.py::test_a_recipe_whose_compiled_step_departs_from_the_audited_one"
            ),
        ),
        (
            "again when a step is compiled anew",
            no("one real step in so many is looked at instead; under `trainer.compile` none"),
            t(
                "keras/audit/test_keras_continuous.py::test_a_departure_that_comes_with_a_later_graph_is_told_once"
            ),
        ),
        (
            "in a loop of the framework's own, not a recipe's",
            no("castiron.lightning.Trainer audits nothing by itself; `castiron.audit` is called by hand"),
            t("keras/audit/test_keras_continuous.py::test_strict_stops_fit_before_the_first_step"),
        ),
        (
            "evaluation beside training",
            no("one training step is traced"),
            t("keras/audit/test_keras_report.py::test_what_only_evaluation_does_is_found"),
        ),
        (
            "models on meta, traced without memory",
            t("torch/audit/test_report.py::test_a_model_on_meta_is_audited"),
            no("a Keras model has its variables; no step is run, but the plan's casts copy them"),
        ),
        (
            "shapes declared at boundaries (F340)",
            t("torch/audit/test_shapes.py::test_axes_in_another_order"),
            t("keras/audit/test_keras_known.py::test_axes_that_are_not_as_declared"),
        ),
        (
            "shapes that recipes declare themselves",
            t(
                "recipes/segmenter/test_segmenter.py::test_a_contract_that_is_broken_stops_the_training_before_its_first_step"
            ),
            no("recipes declare those of PyTorch models; `castiron.audit(model, x, shapes=…)` takes any"),
        ),
        (
            "a sum over one axis divided by another's length (F341)",
            t("torch/audit/test_shapes.py::test_a_mean_over_the_wrong_axis"),
            t("keras/audit/test_keras_known.py::test_a_mean_over_the_wrong_axis"),
        ),
        (
            "operations and optimizers known to be bad in a format (F342)",
            t("torch/audit/test_known.py::test_counting_by_index_is_found"),
            t("keras/audit/test_keras_known.py::test_sums_by_index_stop_counting"),
        ),
        (
            "logarithms of 16-bit probabilities (F319)",
            t("torch/audit/test_planted.py::test_planted_fault"),
            t("keras/audit/test_keras_known.py::test_probabilities_rounded_to_one_have_no_gradient"),
        ),
        (
            "tf32 not as declared (F322)",
            t("torch/audit/test_report.py::test_the_switch_for_tf32"),
            t("keras/audit/test_keras_known.py::test_tf32_left_on"),
        ),
        (
            "subnormal numbers flushed to zero (F323)",
            t("torch/audit/test_examples.py::test_examples"),
            no(
                "TensorFlow's kernels and XLA always flush them and have no switch "
                "(`test_subnormal_numbers_are_zero_in_tensorflow_whatever_anybody_does`)"
            ),
        ),
        (
            "no kernel for the format (F324)",
            t("torch/audit/test_planted.py::test_no_kernel"),
            t("keras/audit/test_keras_known.py::test_no_kernel_for_the_format"),
        ),
        (
            "models that need numbers, traced by one real step (F326)",
            t("torch/audit/test_report.py::test_a_model_that_needs_numbers_is_traced_by_a_real_step"),
            no("a compiled step is a graph, where Python that asks for numbers is refused: told as F327"),
        ),
    ],
    "Health": [
        (
            "equal to the NumPy reference",
            t("torch/health/test_health_measure.py::test_any_float32"),
            t("keras/health/test_keras_measure.py::test_equal_to_the_reference"),
        ),
        (
            "activations, gradients, parameters, moments, updates",
            t("torch/health/test_health_monitor.py::test_the_exact_update_is_what_the_optimizer_does"),
            t("keras/health/test_keras_health.py::test_a_step_is_measured_as_the_reference_has_it"),
        ),
        (
            "measuring does not change the training",
            t("torch/health/test_health_monitor.py::test_measuring_changes_no_bit"),
            t("keras/health/test_keras_health.py::test_measuring_does_not_change_the_training"),
        ),
        (
            "advice: lost updates",
            t("torch/health/test_health_symptoms.py::test_bfloat16_weights_at_a_small_learning_rate"),
            t("keras/health/test_keras_planted_health.py::test_bfloat16_weights_at_a_small_learning_rate"),
        ),
        (
            "what the gradient loses where it is cast to float16 on its way back",
            t("torch/health/test_health_symptoms.py::test_float16_gradients_that_are_zero_without_a_trace"),
            t("keras/health/test_keras_planted_health.py::test_float16_gradients_of_1e_8"),
        ),
        (
            "what the order of accumulation does to a gradient",
            t("torch/health/test_health_order.py::test_equal_to_the_reference"),
            t("keras/health/test_keras_order.py::test_the_parts_are_the_references"),
        ),
        (
            "health.parquet and TensorBoard's Health pages",
            t("lightning/test_health.py::test_tensorboard_gets_curves_histograms_figures_and_nothing_empty"),
            t("keras/health/test_keras_health_run.py::test_a_run_is_measured"),
        ),
        (
            "in a loop or model of your own",
            t("lightning/test_health.py::test_any_lightning_trainer_and_any_logger"),
            t("keras/health/test_keras_planted_health.py::test_fit_is_measured_and_left_as_it_is"),
        ),
        (
            "`castiron health`, `castiron suggest`",
            t("cli/test_suggest.py::test_health_of_a_config_and_of_a_run"),
            t("keras/test_keras_calibrating.py::test_health_of_a_config_and_of_a_run"),
        ),
    ],
    "Runs": [
        (
            "the recipe from one config, by one word",
            t(
                "lightning/test_recipe_run.py::test_a_run_leaves_everything_that_is_needed_to_read_and_repeat_it"
            ),
            t(
                "keras/test_keras_recipe_run.py::test_a_run_leaves_the_files_and_pages_that_the_other_wing_leaves"
            ),
        ),
        (
            "tabular, image-classifier, series-forecaster, segmenter: one config, two wings",
            t("keras/test_keras_recipes.py::test_one_word_of_the_config_says_which_wing_trains"),
            t("keras/test_keras_recipes.py::test_one_word_of_the_config_says_which_wing_trains"),
        ),
        (
            "their outputs, losses and metrics with equal weights",
            t("keras/test_keras_recipes.py::test_equal_weights_give_equal_outputs_losses_and_metrics"),
            t("keras/test_keras_recipes.py::test_equal_weights_give_equal_outputs_losses_and_metrics"),
        ),
        (
            "char-lm and seq2seq-attention",
            t("recipes/test_presets.py::test_it_trains"),
            no("not yet: their models are written in PyTorch alone"),
        ),
        (
            "stopped and resumed to the same numbers",
            t("lightning/test_recipe_run.py::test_a_stopped_run_resumes_to_the_same_numbers"),
            t(
                "keras/test_keras_recipe_run.py::test_a_run_stopped_within_an_epoch_goes_on_to_the_same_numbers"
            ),
        ),
        (
            "damaged checkpoints are named",
            t("lightning/test_recipe_run.py::test_a_damaged_checkpoint_is_named"),
            t("keras/test_keras_recipe_run.py::test_a_damaged_checkpoint_is_said"),
        ),
        (
            "a precision manifest in the checkpoint, verified before loading",
            t("lightning/test_manifest.py::test_a_checkpoint_that_does_not_fit"),
            t("keras/test_keras_manifest.py::test_what_does_not_fit_is_refused_and_nothing_is_changed"),
        ),
        (
            "equal weights, equal outputs",
            t("keras/test_cross_wing.py::test_equal_weights_give_equal_outputs"),
            t("keras/test_cross_wing.py::test_equal_weights_give_equal_outputs"),
        ),
        (
            "20 steps from equal weights, equal losses",
            t("keras/test_cross_wing.py::test_20_steps_from_equal_weights_give_equal_losses"),
            t("keras/test_cross_wing.py::test_20_steps_from_equal_weights_give_equal_losses"),
        ),
        (
            "carried to the other wing (`castiron convert`)",
            t("keras/test_cross_wing.py::test_a_run_is_carried_there_and_back"),
            t("keras/test_cross_wing.py::test_a_run_is_carried_there_and_back"),
        ),
        (
            "policies side by side (`castiron compare`)",
            t("cli/test_compare_command.py::test_policies_side_by_side"),
            no("refused (X812): not built yet; its activations are read through PyTorch's hooks"),
        ),
        (
            "started from a file of weights (`--weights`)",
            t("cli/test_inspect_command.py::test_a_checkpoint_is_looked_into_exported_and_started_from"),
            no("refused (X815): `castiron convert` carries runs; other files are read by PyTorch alone"),
        ),
        (
            "a GPU",
            t("gpu/test_transaction_on_gpu.py::test_a_bad_step_leaves_nothing_behind"),
            no("tensorflow-cpu is what is tested; nothing is known to stand against a GPU"),
        ),
    ],
}
"""Section → (feature, PyTorch, TensorFlow)."""


def page() -> str:
    """docs/parity.md."""
    parts = [HEAD]
    for section, rows in TABLE.items():
        parts += [f"## {section}", "", "| | PyTorch | TensorFlow |", "|---|---|---|"]
        parts += [f"| {feature} | {_cell(torch)} | {_cell(keras)} |" for feature, torch, keras in rows]
        parts.append("")
    parts += ["## Broken trainings in TensorFlow, row by row", "", ROWS_HEAD, *keras_case_rows.table(), ""]
    return "\n".join(parts)


ROWS_HEAD = """\
The classes of broken trainings that castiron is held to (PyTorch's are [printed in full](cases.md)), and what
the TensorFlow wing says of each: whether the step is compiled, and the training or test below `tests/keras`
that shows it.
"""


HEAD = """\
# The two wings, feature by feature

The same policy, words and codes in PyTorch and in TensorFlow. Each cell names the test that shows it, or says
why there is none. The page is written by `python scripts/parity_page.py` from
`tests/docs/parity_features.py`; a test holds it against the tests that there are.
"""


def _cell(cell: Cell) -> str:
    if cell.reason:
        return f"no: {cell.reason}"
    file, _, name = cell.test.partition("::")
    return f"yes: `{file}` {name.removeprefix('test_').replace('_', ' ')}"
