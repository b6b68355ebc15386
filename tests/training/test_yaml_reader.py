"""YAML as plain values with places; whatever is wrong is a finding."""

# Messages are asserted whole, on one line.
# ruff: noqa: E501

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castiron.training.yaml_reader import MAX_BYTES, dotted, read_file, read_text, read_value


def said(text: str) -> list[str]:
    return [f"{f.code} {f.sentence()}" for f in read_text(text, "a.yaml").findings]


def test_values_are_those_of_yaml_1_2():
    tree = read_text(
        "a: 1e-3\nb: yes\nc: true\nd: 0o17\ne: 0x1F\nf: .inf\ng: ~\nh: 2020-01-01\ni: '1'\nj: 1_000\nk: -.INF\nl:\n",
        "a.yaml",
    ).tree
    assert tree == {
        "a": 0.001, "b": "yes", "c": True, "d": 15, "e": 31, "f": math.inf, "g": None, "h": "2020-01-01",
        "i": "1", "j": 1000, "k": -math.inf, "l": None,
    }  # fmt: skip


def test_keys_are_text():
    assert read_text("1: a\ntrue: b\nnull: c\n", "a.yaml").tree == {"1": "a", "true": "b", "null": "c"}


def test_places_of_keys_and_values():
    document = read_text("a:\n  b: [10, 20]\n  c: {d: x}\n", "a.yaml")
    assert str(document.values["a", "b", 1]) == "a.yaml:2:11, key 'a.b.1'"
    assert str(document.keys["a", "c", "d"]) == "a.yaml:3:7, key 'a.c.d'"


def test_anchors_and_merge_keys():
    document = read_text(
        "base: &b {x: 1, y: 2}\nmine:\n  <<: *b\n  y: 3\nboth: {<<: [{x: 9}, *b]}\n", "a.yaml"
    )
    assert document.tree["mine"] == {"y": 3, "x": 1}
    assert document.tree["both"] == {"x": 9, "y": 2}
    assert document.keys["mine", "x"].line == 1
    assert not document.findings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "X806 The file is empty. Expected a mapping of keys to values. At a.yaml."),
        ("# only a comment\n", "X806 The file is empty. Expected a mapping of keys to values. At a.yaml."),
        ("- 1\n- 2\n", "X806 Expected a mapping of keys to values. Received a list of 2 at a.yaml:1:1."),
        ("word", "X806 Expected a mapping of keys to values. Received 'word' (text) at a.yaml:1:1."),
        ("a:\n\tb: 1\n", "X806 A tab indents this line; YAML indents with spaces. At a.yaml:2:1."),
        ("a: 1\nb: 2\na: 3\n", "X807 The key 'a' is stated twice (first at line 1). At a.yaml:3:1, key 'a'."),
        ("a: {b: 1, b: 2}\n", "X807 The key 'b' is stated twice (first at line 1). At a.yaml:1:11, key 'a.b'."),
        ("a: !!python/object/apply:os.system [ls]\n",
         "X821 Expected plain values. Received the tag '!!python/object/apply:os.system' at a.yaml:1:4, key 'a'."),
        ("a: !!python/name:os.system x\n",
         "X821 Expected plain values. Received the tag '!!python/name:os.system' at a.yaml:1:4, key 'a'."),
        ("a: !mine 3\n", "X821 Expected plain values. Received the tag '!mine' at a.yaml:1:4, key 'a'."),
        ("a: [1, 2\n",
         "X806 The text is not YAML: expected ',' or ']', but got '<stream end>'. At a.yaml:2:1."),
        ("a: *nowhere\n", "X806 The text is not YAML: found undefined alias 'nowhere'. At a.yaml:1:4."),
        ("a: @x\n",
         "X806 The text is not YAML: found character '@' that cannot start any token. At a.yaml:1:4."),
        ("a: 1\n---\nb: 2\n", "X806 The file holds more than one document. At a.yaml:2:1."),
        ("? [a]\n: 1\n", "X806 Expected a word as a key. Received a mapping or list at a.yaml:1:3."),
        ("a: \x01\n", "X806 Expected printable text. Received the control character 1 at a.yaml:1:4."),
        ("a: !!int x\n", "X802 Expected a whole number. Received 'x' (text) at a.yaml:1:4, key 'a'."),
        ("a: {<<: 3}\n",
         "X806 Expected a mapping, or a list of mappings, after '<<'. At a.yaml:1:9, key 'a'."),
    ],
)  # fmt: skip
def test_what_is_wrong_has_a_place(text, message):
    assert said(text) == [message]


def test_every_problem_is_reported_at_once():
    found = said("a: 1\na: 2\nb: !x 1\nc: {d: 1, d: 2}\n")
    assert [f[:4] for f in found] == ["X807", "X821", "X807"]


def test_aliases_cannot_exhaust_the_memory():
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    start = time.process_time()
    found = said(bomb)
    assert time.process_time() - start < 5
    assert len(found) == 1
    assert found[0].startswith(
        "X821 The file's aliases multiply to too many values. Expected at most 5,000 values."
    )


def test_a_bomb_of_merge_keys():
    bomb = "a0: &a0 {k: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
    )
    assert said(bomb)[0].startswith("X821")


@pytest.mark.parametrize(
    "text", ["a: &x [*x]\n", "a: " + "[" * 100 + "]" * 100, "a: " + "[" * 20_000, "{" * 5000]
)
def test_nesting_is_bounded(text):
    assert said(text)[0].startswith(
        "X821 The file is nested too deeply. Expected at most 40 levels. At a.yaml"
    )


def test_files_that_are_no_text(tmp_path):
    def sentence(path):
        (found,) = read_file(path, path.name).findings
        return f"{found.code} {found.sentence()}"

    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nname: café\n".encode("latin-1"))
    assert sentence(latin) == "X823 Expected text in UTF-8. Received byte 0xe9 at latin.yaml:2:10."
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert sentence(folder) == "X823 Expected a YAML file. Received the folder 'folder.yaml'."
    large = tmp_path / "large.yaml"
    large.write_text("#" * (MAX_BYTES + 1))
    assert sentence(large).startswith(
        "X823 The file is too large for a config. Expected at most 262,144 bytes."
    )


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_file(path).tree == {"a": 1}


def test_dotted_keys_quote_what_needs_it():
    assert dotted(("precision", "layers", "encoder.*", "compute")) == 'precision.layers."encoder.*".compute'
    assert dotted(("data", "train", 0)) == "data.train.0"


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    document = read_text(text, "a.yaml")
    assert document.findings or isinstance(document.tree, dict)
    read_value(text, "argument")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*"{}[]:,-?&*!|>'\"%@`#\n\t ab01<~.", "- ", ": ", "<<", "!!", "---", "\r\n"]),
                max_size=60).map("".join))  # fmt: skip
def test_any_sequence_of_yaml_signs_is_read_or_refused(text):
    document = read_text(text, "a.yaml")
    assert document.findings or isinstance(document.tree, dict)
    for f in document.findings:
        assert f.remedy
        assert f.place.file == "a.yaml"
