"""Presets, aliases, what follows what, and the wording of every refusal."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from castiron.policy import ALIASES, PRESETS, PrecisionPolicy, preset_name

EXPECTED = {
    # preset: param, compute, output, scaling, master
    "float64": ("float64", "float64", "float64", "none", None),
    "float32": ("float32", "float32", "float32", "none", None),
    "tf32": ("float32", "tf32", "float32", "none", None),
    "bf16-mixed": ("float32", "bfloat16", "bfloat16", "none", None),
    "fp16-mixed": ("float32", "float16", "float16", "dynamic", None),
    "bf16-true": ("bfloat16", "bfloat16", "bfloat16", "none", "float32"),
    "fp16-true": ("float16", "float16", "float16", "dynamic", "float32"),
    "float8-mixed": ("float32", "float8_e4m3fn", "bfloat16", "none", None),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_presets(name: str) -> None:
    policy = PrecisionPolicy.preset(name)
    found = (policy.param, policy.compute, policy.output, policy.scaling.kind, policy.updates.master)
    assert found == EXPECTED[name]
    wide = "float64" if name == "float64" else "float32"
    assert {policy.accumulate, policy.state, policy.loss, policy.buffers} == {wide}
    assert policy.matmul.tf32 == (name == "tf32")
    assert policy.label == policy.preset_name == name
    assert PrecisionPolicy.parse(name) == policy
    assert PrecisionPolicy.model_validate(name) == policy


def test_the_table_of_presets_is_complete() -> None:
    assert list(PRESETS) == list(EXPECTED)


LIGHTNING = {
    "64-true": "float64", "64": "float64", "32-true": "float32", "32": "float32", "16-mixed": "fp16-mixed",
    "16": "fp16-mixed", "bf16-mixed": "bf16-mixed", "bf16": "bf16-mixed", "bf16-true": "bf16-true",
    "16-true": "fp16-true", "transformer-engine": "float8-mixed",
}  # fmt: skip
KERAS = {
    "float64": "float64", "float32": "float32", "mixed_float16": "fp16-mixed", "mixed_bfloat16": "bf16-mixed",
    "float16": "fp16-true", "bfloat16": "bf16-true",
}  # fmt: skip


@pytest.mark.parametrize(("alias", "ours"), [*LIGHTNING.items(), *KERAS.items(), *ALIASES.items()])
def test_names_of_lightning_and_keras_are_accepted_and_shown_as_ours(alias: str, ours: str) -> None:
    policy = PrecisionPolicy.preset(alias)
    assert policy == PrecisionPolicy.preset(ours)
    assert policy.label == ours
    assert preset_name(f" {alias} ") == ours


def test_every_precision_of_lightning_is_known() -> None:
    from typing import get_args

    from lightning.fabric.connector import _PRECISION_INPUT_STR, _PRECISION_INPUT_STR_ALIAS

    quantized = "transformer-engine-float16"  # float8 with float16 between layers: declared by hand
    for name in {*get_args(_PRECISION_INPUT_STR), *get_args(_PRECISION_INPUT_STR_ALIAS)} - {quantized}:
        assert preset_name(name), name


@pytest.mark.parametrize("number", [16, 32, 64])
def test_yaml_writes_some_of_them_as_numbers(number: int) -> None:
    assert PrecisionPolicy.model_validate(number) == PrecisionPolicy.preset(str(number))


# --- what follows what --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"param": "float64"}, "p=float64,c=float64,o=float64"),
        ({"param": "bfloat16"}, "p=bfloat16,c=bfloat16,o=bfloat16"),
        ({"compute": "bf16"}, "p=float32,c=bfloat16,o=bfloat16"),
        ({"compute": "bf16", "output": "fp32"}, "p=float32,c=bfloat16,o=float32"),
        ({"compute": "tf32"}, "p=float32,c=tf32,o=float32"),
        ({"compute": "e4m3"}, "p=float32,c=float8_e4m3fn,o=bfloat16"),
        ({"preset": "float64", "loss": "float32"}, "p=float64,c=float64,o=float64,l=float32"),
        ({"preset": "bf16-mixed", "output": "float32"}, "p=float32,c=bfloat16,o=float32"),
        ({"preset": "tf32", "matmul": {"reduced_precision_reduction": True}},
         "p=float32,c=tf32,o=float32,matmul.reduced_precision_reduction=true"),
    ],
)  # fmt: skip
def test_compute_follows_param_and_output_follows_compute(given: dict[str, Any], expected: str) -> None:
    policy = PrecisionPolicy.model_validate(given)
    assert str(policy) == expected
    assert PrecisionPolicy.parse(expected) == policy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p=float32,c=bfloat16,o=float32", {"output": "float32"}),
        (" p = fp32 , c = bf16 ", {"output": "bfloat16"}),
        ("preset=bf16-mixed,o=float32", {"compute": "bfloat16", "output": "float32"}),
        ("preset=fp16-mixed,scaling.kind=static,scaling.scale=1024", {"compute": "float16"}),
        ('layers."head.*".compute=float64,layers."a,b=".output=float32', {"param": "float32"}),
        ("s=bfloat16,a=float64,l=float64,b=float64", {"state": "bfloat16", "accumulate": "float64"}),
    ],
)
def test_short_strings(text: str, expected: dict[str, str]) -> None:
    policy = PrecisionPolicy.parse(text)
    assert {role: getattr(policy, role) for role in expected} == expected


def test_labels() -> None:
    assert PrecisionPolicy().label == "p=float32,c=float32,o=float32"
    assert PrecisionPolicy.preset("bf16-mixed", output="float32").label == "bf16-mixed (changed)"
    assert PrecisionPolicy.preset("bf16-mixed", output="bfloat16").label == "bf16-mixed"


def test_is_mixed() -> None:
    mixed = {name for name in PRESETS if PrecisionPolicy.preset(name).is_mixed}
    assert mixed == {"bf16-mixed", "fp16-mixed", "float8-mixed"}


def test_a_policy_cannot_be_changed() -> None:
    policy = PrecisionPolicy()
    with pytest.raises(ValidationError, match="Instance is frozen"):
        policy.param = "float64"  # type: ignore[misc]
    assert policy.replace(state="bfloat16").state == "bfloat16"
    assert policy.state == "float32"


# --- refusals -----------------------------------------------------------------------------------------------

STORED = "float64, float32, bfloat16, float16, float8_e4m3fn, float8_e5m2"
COMPUTED = "float64, float32, tf32, bfloat16, float16, float8_e4m3fn, float8_e5m2"
NAMES = ", ".join(EXPECTED)

REFUSALS: list[tuple[Any, str, str]] = [
    ("bf16-mixd", "",
     f"expected a preset ({NAMES}), received 'bf16-mixd'. "
     "Did you mean 'bf16-mixed' or 'fp16-mixed' or '16-mixed'?"),
    ("", "", f"expected a preset ({NAMES}), received ''."),
    ({"preset": True}, "", "expected the name of a preset, received True"),
    ({"param": "flaot32"}, "param",
     f"expected a number format ({STORED}), received 'flaot32'. Did you mean 'float32'?"),
    ({"compute": "xyz"}, "compute", f"expected a number format ({COMPUTED}), received 'xyz'."),
    ({"loss": "xyz"}, "loss", "expected a number format (float64, float32), received 'xyz'."),
    ({"param": "tf32"}, "param",
     "Input should be 'float64', 'float32', 'bfloat16', 'float16', 'float8_e4m3fn' or 'float8_e5m2'"),
    ({"param": "int64"}, "param",
     "Input should be 'float64', 'float32', 'bfloat16', 'float16', 'float8_e4m3fn' or 'float8_e5m2'"),
    ({"loss": "bf16"}, "loss", "Input should be 'float64' or 'float32'"),
    ({"parm": "float32"}, "parm", "Extra inputs are not permitted"),
    ({"compute": "float16"}, "",
     "compute float16 needs loss scaling (its smallest gradient is 6e-08): "
     "expected scaling dynamic or static, received none"),
    ({"layers": {"head": {"compute": "float16"}}}, "",
     "compute float16 needs loss scaling (its smallest gradient is 6e-08): "
     "expected scaling dynamic or static, received none"),
    ({"scaling": "dynamic"}, "",
     "scaling dynamic makes no sense where nothing computes in float16 or float8: "
     "float32 has the exponent range of float32 or more; expected scaling none"),
    ({"preset": "bf16-mixed", "scaling": {"kind": "static"}}, "",
     "scaling static makes no sense where nothing computes in float16 or float8: "
     "bfloat16 has the exponent range of float32 or more; expected scaling none"),
    ({"scaling": "dinamic"}, "scaling",
     "Input tag 'dinamic' found using 'kind' does not match any of the expected tags: "
     "'none', 'static', 'dynamic'"),
    ({"preset": "fp16-mixed", "scaling": {"kind": "dynamic", "min": 8, "initial": 4}}, "scaling.dynamic",
     "expected min <= initial <= max, received 8, 4, 1.67772e+07"),
    ({"preset": "fp16-mixed", "scaling": {"kind": "dynamic", "growth": 1}}, "scaling.dynamic.growth",
     "Input should be greater than 1"),
    ({"preset": "fp16-mixed", "scaling": {"kind": "dynamic", "backoff": 1}}, "scaling.dynamic.backoff",
     "Input should be less than 1"),
    ({"preset": "fp16-mixed", "scaling": {"kind": "static", "scale": float("inf")}}, "scaling.static.scale",
     "Input should be a finite number"),
    ({"param": "float8_e5m2"}, "",
     "param float8_e5m2: float8 is a compute format; expected 16 bits or more"),
    ({"compute": "tf32", "param": "float64"}, "", "compute tf32 needs param float32, received param float64"),
    ({"matmul": {"tf32": True}}, "",
     "matmul.tf32 true contradicts compute float32; tf32 is declared as the compute format"),
    ({"compute": "tf32", "matmul": {"tf32": False}}, "",
     "matmul.tf32 false contradicts compute tf32; tf32 is declared as the compute format"),
    ({"updates": {"master": "float32"}}, "",
     "updates.master float32 is no wider than param float32; expected null (no master copy)"),
    ({"preset": "fp16-true", "updates": {"rounding": "stochastic"}}, "",
     "updates.rounding stochastic is for bfloat16 parameters; received param float16"),
    ({"param": "bfloat16", "updates": {"rounding": "stochastic", "master": "float32"}}, "",
     "updates.rounding stochastic and updates.master exclude each other; expected one"),
    ({"layers": {"head": {}}}, "layers.head",
     "a layer rule must set at least one of param, compute, output, buffers"),
    ({"layers": {"head": {"compute": "bf17"}}}, "layers.head.compute",
     f"expected a number format ({COMPUTED}), received 'bf17'. Did you mean 'bf16'?"),
    ({"layers": {"": {"compute": "float32"}}}, "layers..[key]", "String should have at least 1 character"),
    ({"guard": {"every": 0}}, "guard.every", "Input should be greater than 0"),
    ({"guard": {"watch": ["los"]}}, "guard.watch.0",
     "Input should be 'loss', 'gradients', 'buffers', 'activations', 'parameters' or 'optimizer'"),
    ("p=float32,c", "", "expected key=value, received 'c' in the policy 'p=float32,c'"),
    ("p=float32,param=float64", "", "key 'param' is set twice in the policy 'p=float32,param=float64'"),
    ('layers."a.compute=float32', "", "the key \"a.compute=float32 is not properly quoted"),
    ("z=float32", "z", "Extra inputs are not permitted"),
    (3.5, "", "Input should be a valid dictionary or instance of PrecisionPolicy"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "where", "says"), REFUSALS, ids=[str(r[0])[:60] for r in REFUSALS])
def test_refusals(given: Any, where: str, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PrecisionPolicy.model_validate(given)
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == where
    assert error["msg"].removeprefix("Value error, ") == says


def test_contradictions_are_listed_together() -> None:
    with pytest.raises(ValidationError) as caught:
        PrecisionPolicy.model_validate({"compute": "float16", "updates": {"master": "float32"}})
    (error,) = caught.value.errors()
    assert error["msg"].count(";") >= 1
    assert "needs loss scaling" in error["msg"]
    assert "updates.master float32 is no wider" in error["msg"]


@pytest.mark.parametrize(
    "given",
    [
        {"preset": "float8-mixed", "scaling": "dynamic"},
        {"compute": "float8_e5m2", "scaling": {"kind": "static", "scale": 8}},
        {"preset": "fp16-mixed", "scaling": {"kind": "static"}},
        {"preset": "float32", "layers": {"head": {"compute": "float16"}}, "scaling": "dynamic"},
        {"preset": "bf16-true", "updates": {"rounding": "stochastic"}},
        {"preset": "bf16-true", "updates": {"master": "float64"}},
        {"param": "bfloat16"},
    ],
)
def test_declarations_that_make_sense(given: dict[str, Any]) -> None:
    PrecisionPolicy.model_validate(given)
