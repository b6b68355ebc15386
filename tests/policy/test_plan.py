"""A policy resolved against layers: rows, reasons, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from castiron.diagnostics import HardwareError, PlanError
from castiron.policy import (
    DeviceCapability,
    LayerInfo,
    Plan,
    PlanRow,
    PrecisionPolicy,
    Support,
    TensorInfo,
    resolve,
)


def tensor(name: str, dtype: str = "float32", same_as: str | None = None) -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shape=(4, 2), trainable=True, same_as=same_as)


def layer(path: str, cls: str, family: Any = None, **tensors: Any) -> LayerInfo:
    return LayerInfo(path=path, type=cls, family=family, **tensors)


MODEL = [
    layer("", "Classifier"),
    layer("embedding", "Embedding", "embedding", parameters=(tensor("embedding.weight"),)),
    layer("encoder", "Encoder"),
    layer("encoder.lstm", "LSTM", "lstm", parameters=(tensor("encoder.lstm.weight"),)),
    layer(
        "encoder.norm",
        "BatchNorm1d",
        "normalization",
        parameters=(tensor("encoder.norm.weight"),),
        buffers=(tensor("encoder.norm.mean"), tensor("encoder.norm.count", "int64")),
    ),
    layer("head", "Linear", "matmul", parameters=(tensor("head.weight"),)),
]


def plan(precision: Any, layers: list[LayerInfo] | None = None) -> Plan:
    return resolve(PrecisionPolicy.model_validate(precision), MODEL if layers is None else layers)[0]


def formats(row: PlanRow) -> tuple[str, str, str, str]:
    return row.param, row.compute, row.output, row.buffers


def test_bf16_mixed() -> None:
    made = plan("bf16-mixed")
    assert formats(made.row("head")) == ("float32", "bfloat16", "bfloat16", "float32")
    assert formats(made.row("encoder.norm")) == ("float32", "float32", "bfloat16", "float32")
    assert made.row("encoder.norm").reasons["compute"] == "island: normalization"
    assert made.row("embedding").compute == "float32"
    assert made.row("embedding").reasons["compute"] == "a lookup: nothing is computed"
    assert made.row("head").reasons == dict.fromkeys(
        ("param", "compute", "output", "buffers"), "preset bf16-mixed"
    )


def test_without_a_preset_the_reason_is_the_policy() -> None:
    assert plan("p=float32,c=bfloat16").row("head").reasons["compute"] == "policy"


def test_parameters_and_buffers_by_full_name() -> None:
    made = plan({"preset": "bf16-true", "layers": {"head": {"param": "float32"}}})
    assert made.parameters() == {
        "embedding.weight": "bfloat16",
        "encoder.lstm.weight": "bfloat16",
        "encoder.norm.weight": "bfloat16",
        "head.weight": "float32",
    }
    assert made.buffers() == {"encoder.norm.mean": "float32"}, "integer buffers have no format to choose"


def test_a_rule_reaches_what_is_inside_and_the_nearest_wins() -> None:
    made = plan(
        {
            "preset": "bf16-mixed",
            "layers": {
                "encoder": {"compute": "float32"},
                "type:LSTM": {"compute": "float64", "param": "float64"},
            },
        }
    )
    assert made.row("encoder.norm").compute == "float32"
    assert made.row("encoder.norm").output == "float32"
    assert made.row("encoder.norm").reasons["output"] == "rule 'encoder'"
    assert made.row("encoder.lstm").compute == "float64"
    assert made.row("encoder.lstm").reasons["compute"] == "rule 'type:LSTM'"
    assert made.row("head").compute == "bfloat16"


def test_the_nearest_wins_role_by_role() -> None:
    made = plan(
        {
            "preset": "bf16-mixed",
            "layers": {"encoder": {"buffers": "float64"}, "encoder.norm": {"output": "float32"}},
        }
    )
    assert formats(made.row("encoder.norm")) == ("float32", "float32", "float32", "float64")
    assert formats(made.row("encoder.lstm")) == ("float32", "bfloat16", "bfloat16", "float64")


def test_a_rule_on_an_island_lets_it_compute_narrow() -> None:
    made = plan({"preset": "bf16-mixed", "layers": {"encoder.norm": {"compute": "bfloat16"}}})
    assert made.row("encoder.norm").compute == "bfloat16"
    assert (
        plan({"preset": "bf16-mixed", "islands": {"normalization": None}}).row("encoder.norm").compute
        == "bfloat16"
    )


def test_within_a_rule_compute_follows_param_and_output_follows_compute() -> None:
    row = plan({"preset": "bf16-mixed", "layers": {"head": {"param": "float64"}}}).row("head")
    assert formats(row) == ("float64", "float64", "float64", "float32")
    row = plan({"preset": "float32", "layers": {"head": {"compute": "tf32"}}}).row("head")
    assert formats(row) == ("float32", "tf32", "float32", "float32")


def test_float64_has_no_narrower_islands() -> None:
    assert {row.compute for row in plan("float64").layers()} == {"float64"}


def test_containers_are_rows_but_no_layers() -> None:
    made = plan("float32")
    assert [row.path for row in made.rows] == [info.path for info in MODEL]
    assert [row.path for row in made.layers()] == ["embedding", "encoder.lstm", "encoder.norm", "head"]
    ruled = plan({"preset": "float32", "layers": {"encoder": {"output": "float64"}}})
    assert "encoder" in [row.path for row in ruled.layers()]


def test_an_unknown_row() -> None:
    with pytest.raises(KeyError, match=r"head\.0"):
        plan("float32").row("head.0")


# --- refusals -----------------------------------------------------------------------------------------------


def refusal(
    layers: dict[str, Any], preset: str = "bf16-mixed", model: list[LayerInfo] | None = None
) -> PlanError:
    with pytest.raises(PlanError) as caught:
        plan({"preset": preset, "layers": layers}, model)
    return caught.value


def test_a_rule_that_matches_nothing() -> None:
    (found,) = refusal({"haed": {"compute": "float32"}}).findings
    assert found.code == "L201"
    assert found.place.key == "precision.layers.haed"
    assert found.sentence() == (
        "The layer rule 'haed' matches nothing in the model. "
        "Expected a glob on module paths, or type:<class name>. "
        "Received 'haed' at key 'precision.layers.haed'."
    )
    assert found.remedy == "Did you mean 'head'? `castiron train CONFIG --dry-run` prints the plan."


def test_every_rule_that_matches_nothing_is_named() -> None:
    codes = [f.place.key for f in refusal({"a": {"output": "float32"}, "b": {"output": "float32"}}).findings]
    assert codes == ["precision.layers.a", "precision.layers.b"]


def test_two_rules_that_clash() -> None:
    (found,) = refusal(
        {"**.norm": {"output": "float32"}, "type:BatchNorm1d": {"output": "bfloat16"}}
    ).findings
    assert found.code == "L202"
    assert found.sentence() == (
        "Layer rules '**.norm' and 'type:BatchNorm1d' clash. Expected one format for output. "
        "Received float32 ('**.norm') and bfloat16 ('type:BatchNorm1d') "
        "at key 'precision.layers.type:BatchNorm1d', layer 'encoder.norm'."
    )


def test_two_rules_that_agree_or_speak_of_different_roles_do_not_clash() -> None:
    agreeing = {
        "**.norm": {"output": "float32"},
        "type:BatchNorm1d": {"output": "float32", "buffers": "float64"},
    }
    made = plan({"preset": "bf16-mixed", "layers": agreeing})
    assert formats(made.row("encoder.norm")) == ("float32", "float32", "float32", "float64")


TIED = [
    layer("embedding", "Embedding", "embedding", parameters=(tensor("embedding.weight"),)),
    layer("head", "Linear", "matmul", parameters=(tensor("head.weight", same_as="embedding.weight"),)),
]


def test_tied_parameters_in_two_formats() -> None:
    (found,) = refusal({"head": {"param": "float32"}}, "bf16-true", TIED).findings
    assert found.code == "L203"
    assert found.sentence() == (
        "'head.weight' is tied to 'embedding.weight' and cannot be stored twice. "
        "Expected param bfloat16, as in layer 'embedding'. Received param float32 at layer 'head'."
    )


def test_tied_parameters_in_one_format() -> None:
    made = plan(
        {"preset": "bf16-true", "layers": {"head": {"param": "float32"}, "embedding": {"param": "float32"}}},
        TIED,
    )
    assert made.parameters() == {"embedding.weight": "float32", "head.weight": "float32"}
    assert [row.n_parameters for row in made.rows] == [8, 0]


def test_tied_buffers_are_held_to_the_format_of_buffers() -> None:
    tied = [
        layer("a", "Norm", "normalization", buffers=(tensor("a.mean"),)),
        layer("b", "Norm", "normalization", buffers=(tensor("b.mean", same_as="a.mean"),)),
    ]
    plan({"preset": "bf16-true", "layers": {"b": {"param": "float32"}}}, tied)
    (found,) = refusal({"b": {"buffers": "float64"}}, "bf16-true", tied).findings
    assert (found.code, found.expected, found.received) == (
        "L203",
        "buffers float32, as in layer 'a'",
        "buffers float64",
    )


def test_computing_wider_than_stored() -> None:
    (found,) = refusal({"head": {"compute": "float32"}}, "bf16-true").findings
    assert found.code == "L204"
    assert found.sentence() == (
        "A layer cannot compute wider than it stores: its weights are rounded already. "
        "Expected param float32 or wider. Received param bfloat16, compute float32 at layer 'head'."
    )
    assert found.remedy == "Say both in the rule: {param: float32, compute: float32}."


def test_all_problems_of_a_plan_together() -> None:
    rules = {
        "head": {"compute": "float32"},
        "type:Linear": {"output": "float64"},
        "encoder.lstm": {"compute": "float64"},
    }
    problems = refusal(rules, "bf16-true").findings
    assert sorted(f.code for f in problems) == ["L202", "L204", "L204"]


# --- device, text, JSON -------------------------------------------------------------------------------------

NATIVE, SLOW = (
    Support(status="native", cost=0.5),
    Support(status="emulated", cost=20.0, reason="no avx512_fp16"),
)
CPU = DeviceCapability(
    device="cpu",
    name="this CPU",
    support={
        "matmul": {"bfloat16": NATIVE, "float16": SLOW, "float64": NATIVE},
        "lstm": {"bfloat16": NATIVE, "float16": Support(status="unsupported", reason="its kernel raises")},
        "normalization": {"bfloat16": NATIVE, "float64": NATIVE},
    },
)


def test_a_plan_names_its_device_and_keeps_its_notes() -> None:
    model = [MODEL[5]]
    made, notes = resolve(PrecisionPolicy.preset("fp16-mixed"), model, CPU)
    assert made.device == "cpu"
    assert [n.code for n in notes] == ["H702"]
    assert [n["code"] for n in made.notes] == ["H702"]
    assert resolve(PrecisionPolicy.preset("bf16-mixed"), MODEL, CPU)[1] == []


def test_a_device_that_cannot() -> None:
    with pytest.raises(HardwareError, match="this CPU cannot run lstm layers in float16: its kernel raises"):
        resolve(PrecisionPolicy.preset("fp16-mixed"), MODEL, CPU)


def test_brief() -> None:
    made = plan("bf16-mixed")
    assert made.brief() == (
        "bf16-mixed on any device: 4 layers (2 in float32, 2 in bfloat16); 32 parameters; "
        "loss in float32; optimizer state in float32"
    )


def test_markdown() -> None:
    made = plan({"preset": "bf16-mixed", "layers": {"head": {"compute": "float32"}}})
    assert made.as_markdown().splitlines() == [
        "| layer | type | param | compute | output | parameters | why |",
        "|---|---|---|---|---|---:|---|",
        "| `embedding` | Embedding | float32 | float32 | bfloat16 | 8 | a lookup: nothing is computed |",
        "| `encoder.lstm` | LSTM | float32 | bfloat16 | bfloat16 | 8 | preset bf16-mixed |",
        "| `encoder.norm` | BatchNorm1d | float32 | float32 | bfloat16 | 8 | island: normalization |",
        "| `head` | Linear | float32 | float32 | float32 | 8 | rule 'head' |",
    ]


@pytest.mark.parametrize(
    "precision", ["bf16-mixed", "fp16-true", "p=float64", {"layers": {"head": {"output": "float64"}}}]
)
def test_json_there_and_back(precision: Any) -> None:
    made = plan(precision)
    back = Plan.model_validate_json(made.model_dump_json())
    assert back == made
    assert back.policy.label == made.policy.label
