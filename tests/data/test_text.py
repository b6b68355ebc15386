"""TextEncoder: tokens, ids, determinism, what is saved, and what is said."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from castiron.data.text import TextEncoder
from castiron.data.tokenization import PAD, UNKNOWN, TextConfig
from castiron.diagnostics import DataError

TEXTS = ["A good film.", "Not a GOOD film,<br />not at all!", "good good"]


def words(encoder: TextEncoder, text: str) -> list[str]:
    return encoder.tokens(encoder.encode(text))


# --- vocabulary --------------------------------------------------------------------------------------


def test_the_most_frequent_come_first_and_ties_are_broken_by_text() -> None:
    encoder = TextEncoder().fit(TEXTS)
    assert encoder.vocabulary == (
        "<pad token>", "<unknown token>", "good", "a", "film", "not", "!", ",", ".", "all", "at",
    )  # fmt: skip
    assert len(encoder) == 11
    assert (PAD, UNKNOWN) == (0, 1)
    assert repr(encoder) == "TextEncoder(word, 11 tokens)"
    assert repr(TextEncoder()) == "TextEncoder(word, not fitted)"


def test_frequency_and_size_bound_the_vocabulary() -> None:
    assert TextEncoder(min_frequency=2).fit(TEXTS).vocabulary[2:] == ("good", "a", "film", "not")
    assert TextEncoder(max_vocabulary=4).fit(TEXTS).vocabulary[2:] == ("good", "a")
    assert len(TextEncoder(max_vocabulary=None).fit(str(i) for i in range(40_000))) == 40_002


PROGRAM = """
import hashlib, json, random, sys
from castiron.data.text import TextEncoder
draw = random.Random(1)
names = [f"w{i}" for i in range(500)]
texts = [" ".join(draw.choices(names, k=12)) for _ in range(500)]
random.Random(int(sys.argv[1])).shuffle(texts)
for kind in ("word", "bpe"):
    encoder = TextEncoder(kind=kind, max_vocabulary=400).fit(texts)
    print(kind, hashlib.sha256(json.dumps(encoder.vocabulary).encode()).hexdigest())
"""


def test_the_vocabulary_depends_neither_on_threads_nor_on_order_nor_on_hashing() -> None:
    answers = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM, shuffle],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": shuffle},
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for threads, shuffle in (("1", "1"), ("4", "2"), ("3", "3"))
    }  # fmt: skip
    assert len(answers) == 1


# --- tokens ------------------------------------------------------------------------------------------


def test_words_punctuation_replacement_and_case() -> None:
    encoder = TextEncoder().fit(["Don't cry,<br />it’s «fine»...", "x"])
    assert words(encoder, "Don't cry,<br />it’s «fine»...") == [
        "don't", "cry", ",", "it’s", "«", "fine", "»", ".", ".", ".",
    ]  # fmt: skip
    kept = TextEncoder(lowercase=False, split="whitespace", replace={}).fit(["Don't cry,<br />Now"])
    assert kept.vocabulary[2:] == ("/>Now", "Don't", "cry,<br")


def test_one_letter_has_one_code() -> None:
    encoder = TextEncoder().fit(["caf\u00e9"])
    assert encoder.encode("cafe\u0301 CAFÉ").tolist() == [2, 2]


def test_replacements_apply_in_their_order() -> None:
    encoder = TextEncoder(replace={"aa": "b", "b": "c"}).fit(["aa"])
    assert encoder.vocabulary[2:] == ("c",)


@pytest.mark.parametrize("split", ["punctuation", "whitespace"])
@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_no_text_can_name_the_special_tokens(kind: Any, split: Any) -> None:
    encoder = TextEncoder(kind=kind, split=split, max_vocabulary=400).fit(["pad token unknown <", *TEXTS])
    ids = encoder.encode("<pad token> <unknown token> [PAD] [UNK]")
    assert PAD not in ids
    if kind == "bpe":
        assert UNKNOWN not in ids


def test_bpe_knows_every_text() -> None:
    encoder = TextEncoder(kind="bpe", max_vocabulary=300).fit(TEXTS)
    assert len(encoder) <= 300
    assert UNKNOWN not in encoder.encode("Ein völlig neuer Satz 🎬")
    assert "Ġgood" in encoder.vocabulary
    assert words(encoder, "good!") == ["Ġgood", "Ġ!"]


# --- encoding ----------------------------------------------------------------------------------------


def test_ids_of_all_texts() -> None:
    encoder = TextEncoder().fit(TEXTS)
    encoded = encoder.encode_all(["good film", "", "a dreadful film"])
    assert [row.tolist() for row in encoded] == [[2, 4], [UNKNOWN], [3, UNKNOWN, 4]]
    assert encoded.values.dtype == np.int64
    assert len(encoder.encode_all([])) == 0


def test_an_empty_text_is_one_unknown_token() -> None:
    encoder = TextEncoder().fit(TEXTS)
    for empty in ("", "  \n", "<br />"):
        assert encoder.encode(empty).tolist() == [UNKNOWN]


@pytest.mark.parametrize(
    "texts",
    [
        tuple(TEXTS),
        pa.array(TEXTS),
        pa.chunked_array([TEXTS[:1], TEXTS[1:]], type=pa.large_string()),
        np.array(TEXTS, object),
    ],
)
def test_texts_may_come_in_any_sequence(texts: Any) -> None:
    encoder = TextEncoder().fit(texts)
    assert encoder.encode_all(texts) == TextEncoder().fit(TEXTS).encode_all(TEXTS)


def test_many_texts_are_encoded_in_chunks_and_keep_their_order() -> None:
    texts = [str(i) for i in range(10_000)]
    encoder = TextEncoder().fit(texts)
    for given_texts in (texts, pa.chunked_array([texts[:7], texts[7:]])):
        ids = encoder.encode_all(given_texts)
        assert encoder.tokens(ids.values) == texts
        assert (ids.lengths == 1).all()


def test_long_texts_are_cut_at_the_end_or_in_the_middle() -> None:
    texts = ["a b c d e f g", "a b"]
    for tail, kept in ((0.0, "a b c d e"), (0.4, "a b c f g"), (1.0, "c d e f g")):
        encoder = TextEncoder(max_length=5, tail=tail).fit(texts)
        assert [" ".join(encoder.tokens(row)) for row in encoder.encode_all(texts)] == [kept, "a b"]
        assert encoder.coverage(texts).truncated == 1


def test_coverage_counts_what_the_vocabulary_lacks() -> None:
    encoder = TextEncoder(max_length=4).fit(TEXTS)
    coverage = encoder.coverage(["good film", "", "a truly dreadful film indeed"])
    assert (coverage.texts, coverage.tokens, coverage.unknown, coverage.truncated, coverage.empty) == (
        3,
        7,
        3,
        1,
        1,
    )
    assert coverage.unknown_rate == pytest.approx(3 / 7)
    assert str(coverage) == "3 texts, 7 tokens, 42.86% unknown, 1 cut, 1 empty"
    assert encoder.coverage([]).unknown_rate == 0


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=12))
@settings(deadline=None, max_examples=50)
def test_every_text_has_a_token_and_no_id_is_padding(texts: list[str]) -> None:
    for encoder in ENCODERS:
        encoded = encoder.encode_all(texts)
        assert len(encoded) == len(texts)
        assert (encoded.lengths >= 1).all()
        assert (encoded.values > PAD).all()
        assert (encoded.values < len(encoder)).all()


ENCODERS = [TextEncoder().fit(TEXTS), TextEncoder(kind="bpe", max_vocabulary=280).fit(TEXTS)]


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "received"),
    [(None, "null"), (float("nan"), "nan (float)"), (3, "3 (int)"), (b"a", "b'a' (bytes)")],
)
def test_what_is_no_text_is_named_with_its_row(text: Any, received: str) -> None:
    texts = ["good"] * 5000 + [text]
    encoder = TextEncoder().fit(TEXTS)
    for use in (encoder.encode_all, TextEncoder().fit):
        with pytest.raises(DataError) as caught:
            use(texts)
        assert str(caught.value) == (
            f"D157 A text to encode is not text: row 5000 (counted from 0). Expected text. "
            f"Received {received}. Declare in the schema what a missing text does "
            "(missing: drop, or constant)."
        )
    with pytest.raises(DataError, match="row 1 "):
        encoder.encode_all(pa.chunked_array([["good", None]]))
    with pytest.raises(TypeError, match=r"Expected a sequence of texts. Received one str."):
        encoder.encode_all("good")


@pytest.mark.parametrize(
    ("settings_", "texts", "times"),
    [({}, [], "once"), ({}, ["", "<br />"], "once"), ({"min_frequency": 5}, TEXTS, "5 times")],
)
def test_a_vocabulary_of_nothing_is_refused(settings_: dict[str, Any], texts: list[str], times: str) -> None:
    with pytest.raises(DataError) as caught:
        TextEncoder(**settings_).fit(texts)
    assert str(caught.value) == (
        f"D156 The vocabulary is empty. Expected texts in which a token occurs at least {times}. "
        "Received none. Check the text column of the training data, min_frequency and max_vocabulary."
    )


def test_an_encoder_that_was_not_fitted_says_so() -> None:
    with pytest.raises(
        RuntimeError, match=r"Expected a fitted TextEncoder. Call fit\(texts\) or TextEncoder.load"
    ):
        TextEncoder().encode("good")


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"kind": "bpe", "max_vocabulary": 100}, "at least 258 for kind 'bpe' .* Received 100."),
        ({"kind": "bpe", "max_vocabulary": None}, "Received None."),
        ({"replace": {"": " "}}, "Expected texts to replace that are not empty."),
        ({"max_length": 0}, "greater than or equal to 1"),
        ({"lower": True}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_be(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TextEncoder(**settings_)
    with pytest.raises(ValidationError, match=message):
        TextEncoder(TextConfig(), **settings_)


# --- the file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings_",
    [
        {
            "lowercase": False,
            "split": "whitespace",
            "replace": {"x": "y"},
            "max_length": 3,
            "max_vocabulary": None,
        },
        {"kind": "bpe", "max_vocabulary": 300, "max_length": 6, "tail": 0.5},
    ],
)
def test_what_is_saved_loads_back(tmp_path: Path, settings_: dict[str, Any]) -> None:
    path = tmp_path / "new" / "vocabulary.json"
    encoder = TextEncoder(**settings_).fit(TEXTS)
    encoder.save(path)
    loaded = TextEncoder.load(path)
    assert loaded.config == encoder.config == TextConfig(**settings_)
    assert loaded.vocabulary == encoder.vocabulary
    texts = [*TEXTS, "", "something new, and long enough to be cut"]
    assert loaded.encode_all(texts) == encoder.encode_all(texts)
    assert [p.name for p in path.parent.iterdir()] == ["vocabulary.json"]
    again = tmp_path / "again.json"
    TextEncoder(**settings_).fit(random.Random(1).sample(TEXTS, len(TEXTS))).save(again)
    assert again.read_bytes() == path.read_bytes()


def broken(record: dict[str, Any], key: str, value: Any) -> bytes:
    return json.dumps({**record, key: value}).encode()


@pytest.mark.parametrize(
    ("change", "received"),
    [
        (lambda r: b"", "broken JSON (Expecting value"),
        (lambda r: json.dumps(r).encode()[:-30], "broken JSON ("),
        (lambda r: b"\xff\xfe\x00", "broken JSON ("),
        (lambda r: b"[1, 2]", "a JSON file of another kind"),
        (lambda r: json.dumps(r["tokenizer"]).encode(), "a JSON file of another kind"),
        (lambda r: broken(r, "version", 2), "version 2"),
        (lambda r: broken(r, "config", {"kind": "x"}), "an invalid config.kind (Input should be 'word' or"),
        (lambda r: broken(r, "tokenizer", {"model": 3}), "a tokenizer that does not load ("),
        (lambda r: broken(r, "tokenizer", None), "a tokenizer that does not load ("),
        (
            lambda r: broken(r, "tokenizer", {**r["tokenizer"], "model": {
                "type": "WordLevel", "vocab": {"[PAD]": 0, "[UNK]": 1}, "unk_token": "[UNK]"}}),
            "a tokenizer whose ids 0 and 1 are not padding and unknown",
        ),
    ],
)  # fmt: skip
def test_a_broken_or_other_file_is_refused(tmp_path: Path, change: Any, received: str) -> None:
    path = tmp_path / "encoder.json"
    TextEncoder().fit(TEXTS).save(path)
    path.write_bytes(change(json.loads(path.read_bytes())))
    with pytest.raises(DataError) as caught:
        TextEncoder.load(path)
    message = str(caught.value)
    assert message.startswith(
        "D155 The text encoder cannot be loaded. Expected a JSON file that TextEncoder.save wrote "
        f"(version 1). Received {received}"
    )
    assert f" at {path}. Give the encoder file that was saved with the run." in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Received No such file or directory at .*none.json"):
        TextEncoder.load(tmp_path / "none.json")
