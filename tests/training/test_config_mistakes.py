"""Every mistake in a config gives one message: what, where, expected, received, remedy."""

# Messages are asserted whole, on one line.
# ruff: noqa: E501

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from castiron.diagnostics import ConfigError
from castiron.training.config_file import load_config
from castiron.training.registry import registered


@pytest.fixture
def refused(user_recipe, tmp_path, monkeypatch):
    """The messages about a config file for the recipe `Tiny`."""
    monkeypatch.chdir(tmp_path)

    def of(text: str, *overrides: str, head: str = "recipe: my_recipe.py:Tiny\n") -> list[str]:
        (tmp_path / "a.yaml").write_text(head + text)
        with pytest.raises(ConfigError) as error:
            load_config("a.yaml", overrides)
        assert error.value.exit_code == 2
        assert all(f.remedy for f in error.value.findings)
        return [str(f) for f in error.value.findings]

    return of


PRESETS = "float64, float32, tf32, bf16-mixed, fp16-mixed, bf16-true, fp16-true, float8-mixed"
SECTIONS = "recipe, backend, seed, precision, data, model, optimizer, trainer, audit, guard, health"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # misspelt keys
        ("sed: 3",
         "X801 There is no such key. Received 'sed' at a.yaml:2:1, key 'sed'. Did you mean 'seed'?"),
        ("optimizer: {lr: 0.1, wieght_decay: 0}",
         "X801 There is no such key. Received 'wieght_decay' at a.yaml:2:22, key 'optimizer.wieght_decay'. "
         "Did you mean 'optimizer.weight_decay'?"),
        ("lr: 0.1",
         "X801 There is no such key. Received 'lr' at a.yaml:2:1, key 'lr'. Did you mean 'optimizer.lr'?"),
        ("optimizer: {learning_rate: 0.1}",
         "X801 There is no such key. Received 'learning_rate' at a.yaml:2:13, key 'optimizer.learning_rate'. "
         "Did you mean 'optimizer.lr'?"),
        ("trainer: {gradient_clip_val: 1.0}",
         "X801 There is no such key. Received 'gradient_clip_val' at a.yaml:2:11, key 'trainer.gradient_clip_val'. "
         "Did you mean 'trainer.clip_norm'?"),
        ("model: {hiden: 3}",
         "X801 There is no such key. Received 'hiden' at a.yaml:2:9, key 'model.hiden'. "
         "Did you mean 'model.hidden'?"),
        ("model: {batch_size: 3}",
         "X801 There is no such key. Received 'batch_size' at a.yaml:2:9, key 'model.batch_size'. "
         "Did you mean 'data.batch_size'?"),
        ("model: {qqqq: 3}",
         "X801 There is no such key. Received 'qqqq' at a.yaml:2:9, key 'model.qqqq'. "
         "'model' takes: hidden, pooling, dropout."),
        ("zzzzzz: 3",
         f"X801 There is no such key. Received 'zzzzzz' at a.yaml:2:1, key 'zzzzzz'. A config takes: {SECTIONS}."),
        ("precision: {layers: {'head.*': {comput: float32}}}",
         "X801 There is no such key. Received 'comput' at a.yaml:2:33, key 'precision.layers.\"head.*\".comput'. "
         "Did you mean 'precision.layers.\"head.*\".compute'?"),
        # wrong types
        ("seed: seventeen",
         "X802 Expected a whole number. Received 'seventeen' (text) at a.yaml:2:7, key 'seed'. "
         "Give a value of the expected type."),
        ("data: {batch_size: '64'}",
         "X802 Expected a whole number. Received '64' (text) at a.yaml:2:20, key 'data.batch_size'. "
         "Write 64, without quotes and separators."),
        ("data: {batch_size: 64.0}",
         "X802 Expected a whole number. Received 64.0 at a.yaml:2:20, key 'data.batch_size'. "
         "Give a value of the expected type."),
        ("trainer: {compile: yes}",
         "X802 Expected true or false. Received 'yes' (text) at a.yaml:2:20, key 'trainer.compile'. "
         "YAML 1.2 writes true."),
        ("trainer: {compile: 1}",
         "X802 Expected true or false. Received 1 at a.yaml:2:20, key 'trainer.compile'. "
         "Give a value of the expected type."),
        ("seed: true",
         "X802 Expected a whole number. Received true at a.yaml:2:7, key 'seed'. "
         "Give a value of the expected type."),
        ("optimizer: {lr: [1]}",
         "X802 Expected a number. Received a list of 1 at a.yaml:2:17, key 'optimizer.lr'. "
         "Give a value of the expected type."),
        ("trainer: {clip_norm: big}",
         "X802 Expected a number or null. Received 'big' (text) at a.yaml:2:22, key 'trainer.clip_norm'. "
         "Give a value of the expected type."),
        ("data: null",
         "X802 Expected a mapping. Received null at a.yaml:2:7, key 'data'. Give a value of the expected type."),
        ("seed: null",
         "X802 Expected a whole number. Received null at a.yaml:2:7, key 'seed'. "
         "Give a value of the expected type."),
        ("data: {train: [a.csv, 3]}",
         "X802 Expected text. Received 3 at a.yaml:2:23, key 'data.train.1'. Give a value of the expected type."),
        ("data: {train: 3}",
         "X802 Expected text, a list or null. Received 3 at a.yaml:2:15, key 'data.train'. "
         "Give a value of the expected type."),
        ("precision: true",
         "X802 Expected a preset, a short string (p=float32,c=bfloat16) or a mapping. Received true at "
         "a.yaml:2:12, key 'precision'. Give a value of the expected type."),
        ("model: [1]",
         "X802 Expected a mapping. Received a list of 1 at a.yaml:2:8, key 'model'. "
         "Give a value of the expected type."),
        ("model: {hidden: wide}",
         "X802 Expected a whole number. Received 'wide' (text) at a.yaml:2:17, key 'model.hidden'. "
         "Give a value of the expected type."),
        # out of range
        ("optimizer:\n  lr: -1",
         "X803 Expected a number > 0. Received -1 at a.yaml:3:7, key 'optimizer.lr'. "
         "Give a value within the range."),
        ("trainer: {max_epochs: 0}",
         "X803 Expected a whole number > 0. Received 0 at a.yaml:2:23, key 'trainer.max_epochs'. "
         "Give a value within the range."),
        ("optimizer: {lr: .inf}",
         "X803 Expected a finite number. Received .inf at a.yaml:2:17, key 'optimizer.lr'. "
         "Give a value within the range."),
        ("model: {dropout: 1.5}",
         "X803 Expected a number < 1. Received 1.5 at a.yaml:2:18, key 'model.dropout'. "
         "Give a value within the range."),
        ("optimizer: {betas: [0.9]}",
         "X803 Expected 2 entries. Received a list of 1 at a.yaml:2:20, key 'optimizer.betas'. "
         "Give a value within the range."),
        ("optimizer: {betas: [0.9, 0.99, 0.999]}",
         "X803 Expected at most 2 entries. Received a list of 3 at a.yaml:2:20, key 'optimizer.betas'. "
         "Give a value within the range."),
        ("guard: {budget: {holds: -1}}",
         "X803 Expected a whole number >= 0. Received -1 at a.yaml:2:25, key 'guard.budget.holds'. "
         "Give a value within the range."),
        ("data: {hold_out: {test: 1.5}}",
         "X803 Expected a whole number or a number < 1. Received 1.5 at a.yaml:2:25, key 'data.hold_out.test'. "
         "Give a value within the range."),
        # words that are none
        ("precision: bf16_mixd",
         f"X805 Expected a preset ({PRESETS}). Received 'bf16_mixd' at a.yaml:2:12, key 'precision'. "
         "Did you mean 'bf16-mixed'?"),
        ("precision: bf16_mixed",
         f"X805 Expected a preset ({PRESETS}). Received 'bf16_mixed' at a.yaml:2:12, key 'precision'. "
         "Did you mean 'bf16-mixed'?"),
        ("precision: {preset: fp33}",
         f"X805 Expected a preset ({PRESETS}). Received 'fp33' at a.yaml:2:21, key 'precision.preset'. "
         "Did you mean 'fp32'?"),
        ("backend: pytorch",
         "X805 Expected 'torch' or 'tensorflow'. Received 'pytorch' at a.yaml:2:10, key 'backend'. "
         "Did you mean 'torch'?"),
        ("optimizer: {name: adamW2}",
         "X805 Expected 'adamw', 'adam', 'sgd', 'rmsprop' or 'adagrad'. Received 'adamW2' at a.yaml:2:19, "
         "key 'optimizer.name'. Did you mean 'adamw'?"),
        ("optimizer: {schedule: cosin}",
         "X805 Expected 'constant', 'cosine', 'linear' or 'one-cycle'. Received 'cosin' at a.yaml:2:23, "
         "key 'optimizer.schedule.name'. Did you mean 'cosine'?"),
        ("guard: {watch: [loss, gradient]}",
         "X805 Expected 'loss', 'gradients', 'buffers', 'activations', 'parameters' or 'optimizer'. Received "
         "'gradient' at a.yaml:2:23, key 'guard.watch.1'. Did you mean 'gradients'?"),
        ("model: {pooling: maximum}",
         "X805 Expected 'max' or 'mean'. Received 'maximum' at a.yaml:2:18, key 'model.pooling'. "
         "Did you mean 'max'?"),
        ("precision: {scaling: {kind: dynamc}}",
         "X805 Expected 'none', 'static' or 'dynamic'. Received 'dynamc' at a.yaml:2:29, "
         "key 'precision.scaling.kind'. Did you mean 'dynamic'?"),
        # together they make no sense
        ("trainer: {max_epochs: null}",
         "X815 trainer.max_epochs and trainer.max_steps are both null; expected an end. At a.yaml:2:10, "
         "key 'trainer'. Change one of the values."),
        ("precision: {preset: float32, guard: {every: 2}}\nguard: {every: 3}",
         "X816 The section 'guard' is stated at the top level (at a.yaml:3) and within 'precision'. "
         "At a.yaml:2:30, key 'precision.guard'. Keep one of the two."),
        ("precision: {enforce: {level: warn}}\naudit: {level: warn}",
         "X816 The section 'audit' is stated at the top level (at a.yaml:3) and within 'precision'. "
         "At a.yaml:2:13, key 'precision.enforce'. Keep one of the two."),
        ("data: {validation: v.csv}",
         "X815 data.validation is given and data.train is null; expected files for both, or for neither. "
         "At a.yaml:2:7, key 'data'. Change one of the values."),
        ("optimizer: {nesterov: true}",
         "X815 Nesterov needs sgd with a momentum, received adamw with momentum 0. At a.yaml:2:12, "
         "key 'optimizer'. Change one of the values."),
        ("backend: tensorflow",
         "X814 The recipe 'my_recipe.py:Tiny' has no model for this backend. Expected 'torch'. Received "
         "'tensorflow' at a.yaml:2:10, key 'backend'. Name one of the recipe's backends."),
        # files
        ("seed: 1\nseed: 2",
         "X807 The key 'seed' is stated twice (first at line 2). At a.yaml:3:1, key 'seed'. "
         "Keep one of the two."),
        ("data:\n\tbatch_size: 3",
         "X806 A tab indents this line; YAML indents with spaces. At a.yaml:3:1. "
         "Correct the file at the position shown."),
    ],
)  # fmt: skip
def test_one_message_with_its_place(refused, text, message):
    assert refused(text) == [message]


def test_loss_scaling_is_required_for_float16(refused):
    (message,) = refused("precision: {preset: fp16-mixed, scaling: none}")
    assert message.startswith("X815 Compute float16 needs loss scaling")
    assert "a.yaml:2:12, key 'precision'" in message


def test_an_unknown_format_lists_near_misses(refused):
    (message,) = refused("precision: {compute: flot32}")
    assert message.startswith("X805 Expected a number format (float64, float32, tf32, bfloat16")
    assert "Received 'flot32' at a.yaml:2:22, key 'precision.compute'. Did you mean 'float32'" in message


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_lines(refused):
    found = refused(
        "sed: 3\noptimizer:\n  lr: -1\n  nam: adam\ntrainer: {max_epochs: x}\nmodel: {hiden: 1, dropout: 2}\n",
        "guard.every=0",
    )
    assert [f[:4] for f in found] == ["X801", "X803", "X801", "X802", "X801", "X803", "X803"]
    assert "argument 'guard.every=0'" in found[-1]


def test_mistakes_of_the_recipe_do_not_hide_others(refused):
    found = refused("lr: 1\n", head="recipe: my_recipe.py:Tinny\n")
    assert [f[:4] for f in found] == ["X809", "X801"]
    assert "defines no 'Tinny'. At a.yaml:1:9, key 'recipe'. Did you mean 'Tiny'?" in found[0]


def test_a_missing_recipe(refused):
    assert refused("seed: 1", head="") == [
        "X804 The key 'recipe' is not stated. At a.yaml:1:1. State the key."
    ]


def test_an_unknown_recipe(refused):
    (message,) = refused("", head="recipe: lstm-sentimnet\n")
    assert message == (
        f"X809 Expected a registered recipe ({', '.join(registered())}), my_file.py:MyRecipe or "
        "my.module:MyRecipe. "
        "Received 'lstm-sentimnet' at a.yaml:1:9, key 'recipe'. Did you mean 'lstm-sentiment'?"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=-1",
         "X803 Expected a number > 0. Received -1 at argument 'optimizer.lr=-1', key 'optimizer.lr'. "
         "Give a value within the range."),
        ("optimzer.lr=1",
         "X801 There is no such key. Received 'optimzer' at argument 'optimzer.lr=1', key 'optimzer'. "
         "Did you mean 'optimizer'?"),
        ("optimizer.lr",
         "X813 Expected dotted.key=value. Received argument 'optimizer.lr'. Write key=value, such as "
         "optimizer.lr=3e-4; quote it where the shell would change it."),
        ("--optimizer.lr=1",
         "X813 Expected dotted.key=value. Received argument '--optimizer.lr=1'. Overrides are written without "
         "dashes: optimizer.lr=1."),
        ("=1",
         "X813 Expected dotted.key=value. Received argument '=1'. Write key=value, such as optimizer.lr=3e-4; "
         "quote it where the shell would change it."),
        ("data..train=1",
         "X813 Expected dotted.key=value. Received argument 'data..train=1'. Write key=value, such as "
         "optimizer.lr=3e-4; quote it where the shell would change it."),
        ("data.train=",
         "X813 Expected a value after '='. Received nothing at argument 'data.train=', key 'data.train'. "
         "Write null where you mean that there is none."),
        ("data.train=*.csv",
         "X813 The text is not YAML: found undefined alias '.csv'. At argument 'data.train=*.csv', "
         "key 'data.train'. Quote text that YAML would take for something else: 'data.train=\"*.csv\"'."),
        ("data.train=[a",
         "X813 The text is not YAML: expected ',' or ']', but got '<stream end>'. At argument 'data.train=[a', "
         "key 'data.train'. Quote text that YAML would take for something else: 'data.train=\"[a\"'."),
        ("seed=!!python/name:os.system x",
         "X821 Expected plain values. Received the tag '!!python/name:os.system' at argument "
         "'seed=!!python/name:os.system x'. Write plain values."),
        ("seed.x=1",
         "X802 Expected a whole number. Received a mapping (x) at argument 'seed.x=1', key 'seed'. "
         "Give a value of the expected type."),
    ],
)  # fmt: skip
def test_mistakes_in_arguments_name_the_argument(refused, override, message):
    assert refused("", override) == [message]


def test_unknown_keys_are_refused_where_a_recipe_forgot_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loose.py").write_text(
        "from pydantic import BaseModel\nfrom castiron.training import Recipe\n\n"
        "class Loose(Recipe):\n    name = 'loose'\n\n    class Config(BaseModel):\n        hidden: int = 3\n"
    )
    with pytest.raises(ConfigError, match=r"X801 There is no such key\. .*Did you mean 'model.hidden'"):
        load_config("loose.py:Loose", ["model.hiden=3"])


# --- sources ---------------------------------------------------------------------------------------


def sentence(source: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(source)
    (found,) = error.value.findings
    return str(found)


def test_sources_that_are_not_there(user_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("recipe: lstm-sentiment\n")
    assert (
        sentence("mien.yaml") == "X808 There is no such file. Received 'mien.yaml'. Did you mean 'mine.yaml'?"
    )
    assert sentence("lstm_sentiment/sst3") == (
        "X808 There is no such config file, packaged config or recipe. Received 'lstm_sentiment/sst3'. "
        "Did you mean 'lstm_sentiment/sst2'?"
    )
    assert sentence("configs/lstm_sentiment/sst3.yaml") == (
        "X808 There is no such file. Received 'configs/lstm_sentiment/sst3.yaml'. "
        "Did you mean 'lstm_sentiment/sst2'?"
    )
    assert sentence("lstm-sentimnt").endswith("Did you mean 'lstm-sentiment'?")
    assert sentence("qqq") == (
        "X808 There is no such config file, packaged config or recipe. Received 'qqq'. "
        "`castiron configs list` and `castiron recipes list` show what there is."
    )
    assert sentence("my_recip.py:Tiny") == (
        "X808 The recipe's file does not exist. Received 'my_recip.py' at argument 'my_recip.py:Tiny', "
        "key 'recipe'. Did you mean 'my_recipe.py'?"
    )
    assert "Received the folder" in sentence(str(tmp_path))


# --- nothing but findings --------------------------------------------------------------------------

words = st.sampled_from(
    ["recipe", "precision", "data", "model", "optimizer", "trainer", "guard", "seed", "lr", "layers", "train",
     "scaling", "kind", "preset", "betas", "schedule", "watch", "head", "", "a.b"]
)  # fmt: skip
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), words,
    st.sampled_from(["bf16-mixed", "float16", "dynamic", "p=float32", "p=float8_e5m2,c=tf32"]),
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(words, trees, max_size=5))
def test_any_tree_is_a_config_or_is_refused(tree, user_recipe):
    from castiron.training.config_file import validate_tree
    from castiron.training.config_merge import Merged
    from castiron.training.registry import find_recipe
    from castiron.training.yaml_reader import Document

    config, problems = validate_tree(Merged([Document(tree)]), find_recipe(f"{user_recipe}:Tiny"))
    assert (config is None) == bool(problems)
    for f in problems:
        assert f.sentence()
        assert f.remedy


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=120), argument=st.text(max_size=40))
def test_any_text_is_a_config_or_is_refused(text, argument, user_recipe):
    path = user_recipe.parent / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):
        load_config(path, [argument, "zzz=1"])
