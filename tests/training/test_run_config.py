"""The config's fields: defaults written out validate back to an equal config, whatever the values."""

from __future__ import annotations

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from castiron.policy import PrecisionPolicy
from castiron.training.config import DataConfig, OptimizerConfig, RunConfig, TrainerConfig
from castiron.training.config_file import json_schema
from castiron.training.yaml_reader import read_text
from castiron.training.yaml_writer import as_yaml

shares = st.floats(0, 0.99)
positive = st.floats(1e-12, 1e6)
counts = st.integers(1, 10**6)
texts = st.text(min_size=1, max_size=12)
paths = st.one_of(texts, st.lists(texts, min_size=1, max_size=3).map(tuple))

optimizers = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["adamw", "adam", "rmsprop", "adagrad", "sgd"]),
        "lr": positive,
        "weight_decay": st.floats(0, 10),
        "betas": st.tuples(shares, shares),
        "eps": positive,
        "momentum": shares,
        "fused": st.booleans(),
        "schedule": st.fixed_dictionaries(
            {"name": st.sampled_from(["constant", "cosine", "linear", "one-cycle"])},
            optional={"warmup": st.one_of(st.integers(0, 1000), shares), "final": st.floats(0, 1)},
        ),
    },
)
trainers = st.fixed_dictionaries(
    {"max_epochs": counts},
    optional={
        "max_steps": st.one_of(st.none(), counts),
        "accumulate": counts,
        "clip_norm": st.one_of(st.none(), positive),
        "device": st.sampled_from(["auto", "cpu", "cuda"]),
        "strategy": texts,
        "devices": counts,
        "deterministic": st.booleans(),
        "compile": st.booleans(),
        "threads": st.one_of(st.none(), counts),
        "monitor": texts,
        "mode": st.sampled_from(["min", "max"]),
        "validate_every": st.one_of(counts, st.floats(0.01, 1)),
        "checkpoint_every": st.one_of(st.none(), counts),
        "log_every": counts,
        "ema": st.one_of(st.none(), st.floats(0.01, 0.9999)),
        "early_stopping": st.one_of(
            st.none(), st.fixed_dictionaries({"patience": counts, "min_delta": st.floats(0, 1)})
        ),
        "limit_train": st.one_of(st.none(), counts),
        "limit_test": st.one_of(st.none(), counts),
    },
)
datas = st.one_of(
    st.fixed_dictionaries(
        {"train": paths},
        optional={
            "columns": st.dictionaries(
                texts, st.one_of(texts, st.integers(0, 9), st.just(("a", "b", 3))), max_size=3
            ),
            "batch_size": counts,
            "bucket": st.booleans(),
            "embedded": st.booleans(),
            "hold_out": st.fixed_dictionaries(
                {},
                optional={
                    "validation": st.one_of(st.integers(0, 99), shares),
                    "test": shares,
                    "seed": st.integers(0, 2**31),
                },
            ),
            "read": st.fixed_dictionaries(
                {},
                optional={
                    "header": st.booleans(),
                    "quoting": st.one_of(st.none(), st.booleans()),
                    "delimiter": st.sampled_from([None, ";", "|", "whitespace"]),
                    "missing_values": st.one_of(st.none(), st.lists(st.text(max_size=4), max_size=3)),
                },
            ),
        },
    ),
    st.fixed_dictionaries({}, optional={"batch_size": counts}),
)
policies = st.sampled_from(
    [
        "float64",
        "bf16-mixed",
        "fp16-mixed",
        "bf16-true",
        "fp16-true",
        "tf32",
        "p=bfloat16,c=bfloat16,a=float64",
        {"preset": "bf16-mixed", "output": "float32", "layers": {"head.*": {"compute": "float32"}}},
        {
            "preset": "fp16-mixed",
            "scaling": {"kind": "static", "scale": 1024.0},
            "islands": {"softmax": None},
        },
        {"compute": "bfloat16", "casts": {"lossy": "report", "rounding": "error"}, "loss": "float64"},
        {"preset": "bf16-true", "updates": {"master": None, "rounding": "stochastic"}},
    ]
)
configs = st.fixed_dictionaries(
    {"recipe": texts},
    optional={
        "backend": st.sampled_from(["torch", "tensorflow"]),
        "seed": st.integers(0, 2**63),
        "precision": policies,
        "data": datas,
        "optimizer": optimizers,
        "trainer": trainers,
        "model": st.dictionaries(
            texts, st.one_of(st.integers(), st.floats(allow_nan=False), texts, st.none())
        ),
        "guard": st.fixed_dictionaries(
            {},
            optional={
                "every": counts,
                "watch": st.just(("loss", "activations")),
                "response": st.sampled_from(["hold", "rollback"]),
                "budget": st.fixed_dictionaries({"holds": st.integers(0, 99)}),
            },
        ),
        "health": st.fixed_dictionaries({"every": counts}),
        "audit": st.fixed_dictionaries(
            {},
            optional={
                "level": st.sampled_from(["warn", "off"]),
                "ignore": st.just(("F301",)),
                "per_module": st.just({"head.*": ("F3",)}),
            },
        ),
    },
)


@settings(max_examples=120, deadline=None)
@given(configs)
def test_the_resolved_config_validates_back_to_an_equal_one(settings_given):
    config = RunConfig.model_validate(settings_given)
    tree = config.resolved()
    again = RunConfig.model_validate(tree)
    assert again == config
    assert again.resolved() == tree
    assert again.precision.hash() == config.precision.hash()


@settings(max_examples=60, deadline=None)
@given(configs)
@example(
    {"recipe": "x", "data": {"train": ("a", "?b", "-c", ":d", "? e", "?", "-", "#f", "&g", "*h", "!i", "%j")}}
)
@example({"recipe": "?x", "trainer": {"max_epochs": 1, "monitor": "-y"}})
def test_the_written_config_reads_back_to_the_same_values(settings_given):
    tree = RunConfig.model_validate(settings_given).resolved()
    document = read_text(as_yaml(tree, "A header.\nOf two lines."), "config.yaml")
    assert not document.findings
    assert document.tree == tree


def test_every_default_is_written_out():
    def keys(model: type[BaseModel]) -> set[str]:
        return {f.alias or name for name, f in model.model_fields.items()}

    tree = RunConfig(recipe="x").resolved()
    assert set(tree) == keys(RunConfig)
    assert set(tree["data"]) == keys(DataConfig)
    assert set(tree["optimizer"]) == keys(OptimizerConfig)
    assert set(tree["trainer"]) == keys(TrainerConfig)
    assert set(tree["precision"]) == keys(PrecisionPolicy) - {"guard", "health", "enforce"}


def test_every_field_is_documented():
    def undocumented(model: type[BaseModel]) -> list[str]:
        return [f"{model.__name__}.{name}" for name, f in model.model_fields.items() if not f.description]

    models = [RunConfig, *(type(getattr(RunConfig(recipe="x"), n)) for n in RunConfig.model_fields)]
    nested = [DataConfig().hold_out, DataConfig().read, OptimizerConfig().schedule]
    models += [type(n) for n in nested]
    assert [u for m in models if issubclass(m, BaseModel) for u in undocumented(m)] == []


def test_sections_of_the_policy_are_stated_at_the_top_level():
    config = RunConfig.model_validate({"recipe": "x", "guard": {"every": 3}, "audit": {"level": "warn"}})
    assert config.precision.guard.every == config.guard.every == 3
    assert config.precision.enforce == config.audit
    assert config.precision.enforce.level == "warn"


def test_sections_within_the_policy_are_seen_at_the_top_level():
    policy = PrecisionPolicy.preset("bf16-mixed", health={"every": 7})
    config = RunConfig(recipe="x", precision=policy)
    assert config.health.every == 7
    assert config.precision is policy


def test_a_section_is_declared_once():
    with pytest.raises(
        ValidationError, match=r"'guard' is stated at the top level and as 'precision\.guard'"
    ):
        RunConfig.model_validate({"recipe": "x", "guard": {}, "precision": {"guard": {"every": 2}}})
    policy = PrecisionPolicy.preset("float32", guard={"every": 2})
    with pytest.raises(ValidationError, match="stated at the top level"):
        RunConfig.model_validate({"recipe": "x", "guard": {"every": 3}, "precision": policy})


def test_the_label_of_a_preset_survives():
    config = RunConfig.model_validate({"recipe": "x", "precision": "bf16-mixed", "guard": {"every": 2}})
    assert config.resolved()["precision"]["preset"] == "bf16-mixed"
    assert RunConfig.model_validate(config.resolved()).precision.preset_name == "bf16-mixed"


def test_configs_are_immutable():
    config = RunConfig(recipe="x")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"data": {"train": "", "batch_size": 1}}, "expected a path, received an empty one"),
        ({"data": {"train": []}}, "expected a path, received an empty one"),
        ({"data": {"train": "a", "test": "b", "hold_out": {"test": 3}}}, "exclude each other"),
        ({"data": {"test": "b"}}, "expected files for both, or for neither"),
        ({"trainer": {"max_epochs": None}}, "expected an end"),
        ({"optimizer": {"name": "adam", "nesterov": True}}, "nesterov needs sgd with a momentum"),
    ],
)
def test_what_makes_no_sense_together(section, message):
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate({"recipe": "x", **section})


def test_short_forms_of_the_optimizer():
    assert RunConfig.model_validate({"recipe": "x", "optimizer": "sgd"}).optimizer.name == "sgd"
    config = RunConfig.model_validate({"recipe": "x", "optimizer": {"schedule": "cosine"}})
    assert config.optimizer.schedule.name == "cosine"


def test_the_json_schema_accepts_what_we_accept(user_recipe):
    from castiron.training.registry import find_recipe

    schema = json_schema(find_recipe(f"{user_recipe}:Tiny"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    config = RunConfig.model_validate({"recipe": "x", "precision": "bf16-mixed", "guard": {"every": 2}})
    assert not list(validator.iter_errors({**config.resolved(), "model": {"hidden": 3}}))
    assert not list(validator.iter_errors({"recipe": "x", "precision": "16-mixed"}))
    assert list(validator.iter_errors({"recipe": "x", "sed": 3}))
    assert list(validator.iter_errors({"recipe": "x", "model": {"hiden": 3}}))
    assert schema["properties"]["trainer"]["description"].startswith("How long")
