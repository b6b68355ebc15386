"""How text becomes tokens: the settings, and the pipeline of Hugging Face `tokenizers` that they describe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

PAD, UNKNOWN = 0, 1
"""Ids of padding, and of a token that the vocabulary does not have."""

SPECIAL = ("<pad token>", "<unknown token>")
"""Their names. No text can produce them: tokens hold no blanks."""


class TextConfig(BaseModel):
    """How text becomes tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["word", "bpe"] = "word"
    """word: whole words, others unknown; bpe: byte-pair pieces of words, nothing unknown."""
    lowercase: bool = True
    """Whether letters are lowered first."""
    split: Literal["punctuation", "whitespace"] = "punctuation"
    """punctuation: words ("don't" is one) and single punctuation marks; whitespace: at blanks alone, for
    text that is tokenised already."""
    replace: dict[str, str] = {"<br />": " "}
    """Literal texts to replace before anything else, in this order."""
    min_frequency: int = Field(default=1, ge=1)
    """How often a word (a pair, for bpe) must occur in the training texts to enter the vocabulary."""
    max_vocabulary: int | None = Field(default=30_000, ge=3)
    """Size of the vocabulary at most, padding and unknown included; the most frequent stay, ties by text.
    Null: no limit (word only)."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens of a text at most; longer ones are cut. Null: no limit."""
    tail: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of `max_length` that a cut text keeps from its end; the rest is its beginning."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> TextConfig:
        if self.kind == "bpe" and (self.max_vocabulary is None or self.max_vocabulary < 258):
            raise ValueError(
                f"Expected max_vocabulary of at least 258 for kind 'bpe' (256 bytes, padding, unknown). "
                f"Received {self.max_vocabulary}."
            )
        if "" in self.replace:
            raise ValueError("Expected texts to replace that are not empty. Received ''.")
        return self


def untrained(config: TextConfig) -> Tokenizer:
    """A tokenizer without vocabulary: clean, split, and look up."""
    # One letter, one code: "é" may come as one character or as two.
    steps: list[Any] = [normalizers.Replace(old, new) for old, new in config.replace.items()]
    steps.append(normalizers.NFC())
    if config.lowercase:
        steps.append(normalizers.Lowercase())
    split: Any = pre_tokenizers.WhitespaceSplit()
    if config.split == "punctuation":
        split = pre_tokenizers.Split(Regex(r"\w+(?:['’]\w+)*|[^\w\s]"), "removed", invert=True)
    if config.kind == "word":
        tokenizer = Tokenizer(models.WordLevel({}, unk_token=SPECIAL[UNKNOWN]))
    else:
        tokenizer = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
        split = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = split
    return tokenizer


def trainer(config: TextConfig) -> Any:
    """What makes the vocabulary; the special tokens get the first ids."""
    shared: dict[str, Any] = {
        "special_tokens": list(SPECIAL),
        "min_frequency": config.min_frequency,
        "show_progress": False,
    }
    if config.kind == "word":
        return trainers.WordLevelTrainer(vocab_size=config.max_vocabulary or 2**31, **shared)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trainers.BpeTrainer(
        vocab_size=config.max_vocabulary or 30_000, initial_alphabet=alphabet, **shared
    )
