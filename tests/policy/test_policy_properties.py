"""What holds of every policy: its string parses back, its hash is stable, its schema accepts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castiron.formats import ComputeName, FloatName, is_wider
from castiron.policy import ALIASES, PRESETS, PrecisionPolicy
from castiron.policy.sections import (
    Budget,
    CastSection,
    DynamicScaling,
    EnforceSection,
    GuardSection,
    HealthSection,
    Islands,
    LayerRule,
    MatmulSection,
    NoScaling,
    StaticScaling,
    UpdateSection,
    WideName,
)

WIDE = get_args(WideName)
ISLANDS = list(Islands.model_fields)
FLOATS = get_args(FloatName)
COMPUTES = get_args(ComputeName)
SCHEMA = PrecisionPolicy.model_json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
NARROW = {"float16", "float8_e4m3fn", "float8_e5m2"}

positive = st.floats(min_value=1e-30, max_value=1e30, allow_nan=False)
key = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(
    ["head", "encoder.*", "**.norm", "blocks.[01]", "type:LayerNorm", 'a"b', "a,b=c", "ä.ö", "null", "param"]
)
whole = st.integers(1, 10**9)


def optional(values: Any) -> Any:
    return st.none() | values


@st.composite
def rules(draw: Any, computes: tuple[str, ...]) -> dict[str, str]:
    rule = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "param": st.sampled_from(FLOATS),
                "compute": st.sampled_from(computes),
                "output": st.sampled_from(FLOATS),
                "buffers": st.sampled_from(FLOATS),
            },
        )
    )
    return rule or {"output": "float64"}


@st.composite
def scalings(draw: Any) -> dict[str, Any]:
    if draw(st.booleans()):
        return {"kind": "static", "scale": draw(positive)}
    least, first, most = sorted(draw(st.tuples(positive, positive, positive)))
    return {
        "kind": "dynamic", "min": least, "initial": first, "max": most,
        "growth": draw(st.floats(1.001, 64)), "backoff": draw(st.floats(0.001, 0.999)),
        "interval": draw(whole), "patience": draw(whole),
    }  # fmt: skip


@st.composite
def declarations(draw: Any) -> dict[str, Any]:
    """Mappings that a policy accepts, with values that are not defaults anywhere."""
    param = draw(st.sampled_from(FLOATS[:4]))
    compute = draw(st.sampled_from([c for c in COMPUTES if c != "tf32" or param == "float32"]))
    scaled = compute in NARROW and (compute == "float16" or draw(st.booleans()))
    within = COMPUTES if scaled else tuple(c for c in COMPUTES if c != "float16")
    given: dict[str, Any] = {
        "param": param,
        "compute": compute,
        "output": draw(st.sampled_from(FLOATS)),
        "accumulate": draw(st.sampled_from(WIDE)),
        "state": draw(st.sampled_from(FLOATS)),
        "loss": draw(st.sampled_from(WIDE)),
        "buffers": draw(st.sampled_from(FLOATS)),
        "layers": draw(st.dictionaries(key, rules(within), max_size=3)),
        "islands": draw(st.dictionaries(st.sampled_from(ISLANDS), st.sampled_from([*WIDE, None]))),
        "matmul": {"tf32": compute == "tf32", "reduced_precision_reduction": draw(st.booleans())},
        "scaling": draw(scalings()) if scaled else {"kind": "none"},
        "casts": {
            "rounding": draw(st.sampled_from(["report", "error", "ignore"])),
            "lossy": draw(st.sampled_from(["error", "report"])),
            "float64_source": draw(st.sampled_from(["report", "error", "ignore"])),
            "missing": draw(st.sampled_from(["error", "report"])),
        },
        "guard": {
            "every": draw(whole),
            "watch": draw(st.lists(st.sampled_from(["loss", "gradients", "parameters"]), max_size=3)),
            "response": draw(st.sampled_from(["raise", "hold", "rollback", "lower-lr", "promote"])),
            "budget": {"holds": draw(st.integers(0, 99)), "window": draw(whole)},
        },
        "health": {"every": draw(whole)},
        "enforce": {
            "level": draw(st.sampled_from(["strict", "warn", "off"])),
            "select": draw(optional(st.lists(st.sampled_from(["F3", "D101", 'x",]'])))),
            "ignore": draw(st.lists(st.sampled_from(["F301", "N5"]))),
            "per_module": draw(st.dictionaries(key, st.lists(st.just("F301")), max_size=2)),
        },
    }  # fmt: skip
    if is_wider("float32", param):
        stochastic = param == "bfloat16" and draw(st.booleans())
        given["updates"] = (
            {"rounding": "stochastic"} if stochastic else {"master": draw(st.sampled_from(WIDE))}
        )
    return given


@given(declarations())
@settings(max_examples=200, deadline=None)
def test_the_string_of_a_policy_parses_back(given: dict[str, Any]) -> None:
    policy = PrecisionPolicy.model_validate(given)
    back = PrecisionPolicy.parse(str(policy))
    assert back.canonical() == policy.canonical()
    assert back == policy
    assert hash(back) == hash(policy)
    assert back.hash() == policy.hash()
    assert str(back) == str(policy)


@given(declarations())
@settings(deadline=None)
def test_a_policy_survives_json_and_a_change_there_and_back(given: dict[str, Any]) -> None:
    policy = PrecisionPolicy.model_validate(given)
    assert PrecisionPolicy.model_validate_json(policy.model_dump_json()) == policy
    assert PrecisionPolicy.model_validate_json(policy.model_dump_json(by_alias=True)) == policy
    other = policy.replace(health={"every": policy.health.every + 1})
    assert other != policy
    assert other.hash() != policy.hash()
    assert other.replace(health=policy.health) == policy


@given(declarations())
@settings(deadline=None)
def test_the_schema_accepts_what_a_policy_accepts(given: dict[str, Any]) -> None:
    VALIDATOR.validate(json.loads(json.dumps(given)))


@given(
    declarations(), st.sampled_from(["param", "guard", "layers", "scaling"]), st.sampled_from([3.5, [], "no"])
)
@settings(deadline=None)
def test_the_schema_refuses_what_a_policy_refuses(given: dict[str, Any], where: str, what: Any) -> None:
    given[where] = what
    with pytest.raises(ValueError, match="validation error"):
        PrecisionPolicy.model_validate(given)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(given)


# --- hash -----------------------------------------------------------------------------------------------

HASHES = {
    "float64": "3d70d6c0edefdeea",
    "float32": "4bcbb90a435f3bf9",
    "tf32": "05cc33dbec1845f8",
    "bf16-mixed": "2d39dd21dbc00f4e",
    "fp16-mixed": "05dd85b45867104f",
    "bf16-true": "63b569db47a12921",
    "fp16-true": "3ec95d6b676ec246",
    "float8-mixed": "bd4cb902bfb5951a",
}


@pytest.mark.parametrize("seed", ["0", "1", "31337"])
def test_hashes_do_not_depend_on_the_process(seed: str) -> None:
    """A changed hash breaks saved plans and manifests: change these figures knowingly."""
    script = (
        "import json; from castiron.policy import PRESETS, PrecisionPolicy as P; "
        "print(json.dumps({n: [P.preset(n).hash(), hash(P.preset(n))] for n in PRESETS}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    found = json.loads(done.stdout)
    assert {name: hexadecimal for name, (hexadecimal, _) in found.items()} == HASHES
    assert {name: number for name, (_, number) in found.items()} == {
        name: hash(PrecisionPolicy.preset(name)) for name in PRESETS
    }


def test_the_label_is_no_part_of_identity() -> None:
    spelled_out = PrecisionPolicy.model_validate({"param": "float32", "compute": "bfloat16"})
    assert spelled_out == PrecisionPolicy.preset("bf16-mixed")
    assert spelled_out.hash() == PrecisionPolicy.preset("bf16-mixed").hash()
    assert len({spelled_out, PrecisionPolicy.preset("bf16-mixed")}) == 1
    assert spelled_out.preset_name is None


def test_order_of_layer_rules_is_no_part_of_identity() -> None:
    one = PrecisionPolicy.preset(
        "bf16-mixed", layers={"a": {"output": "float32"}, "b": {"output": "float64"}}
    )
    two = PrecisionPolicy.preset(
        "bf16-mixed", layers={"b": {"output": "float64"}, "a": {"output": "float32"}}
    )
    assert one == two
    assert one.hash() == two.hash()


# --- JSON Schema ------------------------------------------------------------------------------------------


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "value", [*PRESETS, *ALIASES, 16, 32, 64, "p=float32,c=bfloat16", {}, {"preset": "16"}]
)
def test_the_schema_accepts_presets_and_short_strings(value: Any) -> None:
    VALIDATOR.validate(value)
    PrecisionPolicy.model_validate(value)


@pytest.mark.parametrize("value", [{"param": "bf16"}, {"preset": "fp16-mixed", "scaling": "static"}])
def test_the_schema_accepts_short_names(value: Any) -> None:
    VALIDATOR.validate(value)
    PrecisionPolicy.model_validate(value)


@pytest.mark.parametrize(
    "value", ["bf16-mixd", 17, True, [], {"parm": "float32"}, {"layers": {"a": {"p": 1}}}]
)
def test_the_schema_refuses(value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(value)
    with pytest.raises(ValueError, match="validation error"):
        PrecisionPolicy.model_validate(value)


SECTIONS = (
    PrecisionPolicy, LayerRule, Islands, MatmulSection, NoScaling, StaticScaling, DynamicScaling,
    UpdateSection, CastSection, Budget, GuardSection, HealthSection, EnforceSection,
)  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.__name__)
def test_every_field_is_described(section: Any) -> None:
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name} has no docstring"
        assert field.description.rstrip().endswith((".", ")")), f"{section.__name__}.{name}"


def test_every_section_is_in_the_schema_with_its_description() -> None:
    for section in SECTIONS[1:]:
        found = SCHEMA["$defs"][section.__name__]
        assert found["description"]
        assert found["additionalProperties"] is False
        for name, field in found["properties"].items():
            assert field.get("description"), f"{section.__name__}.{name}"
