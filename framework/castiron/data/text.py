"""Text to token ids: vocabularies of words or byte-pair pieces, on Hugging Face `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import ValidationError
from tokenizers import Tokenizer

from castiron.data.files import odd_kind, written_atomically
from castiron.data.ragged import Int64, Ragged
from castiron.data.tokenization import PAD, SPECIAL, UNKNOWN, TextConfig, trainer, untrained
from castiron.diagnostics import DataError, Place, finding

_FORMAT, _VERSION = "castiron text encoder", 1
_CHUNK = 4096
_MOST = 1 << 30
"""Bytes of a file; a larger one was not written here."""

Texts: TypeAlias = "Sequence[str] | pa.ChunkedArray | pa.Array"


@dataclass(frozen=True, slots=True)
class Coverage:
    """How well a vocabulary covers texts. Counts are of the texts as encoded, after cutting."""

    texts: int
    tokens: int
    unknown: int
    """Tokens that the vocabulary does not have; also the one that stands for an empty text."""
    truncated: int
    """Texts that were longer than max_length."""
    empty: int
    """Texts without any token: a single unknown token stands for each."""

    @property
    def unknown_rate(self) -> float:
        return self.unknown / self.tokens if self.tokens else 0.0

    def __str__(self) -> str:
        return (
            f"{self.texts:,} texts, {self.tokens:,} tokens, {self.unknown_rate:.2%} unknown, "
            f"{self.truncated:,} cut, {self.empty:,} empty"
        )


class TextEncoder:
    """Texts to int64 token ids: 0 is padding, 1 unknown, then the vocabulary, most frequent first.

    Fit it on the training texts alone. The vocabulary depends on their content only: not on their order,
    nor on threads (ties are broken by text). Every text has at least one token: an empty one is encoded as a
    single unknown token.

        encoder = TextEncoder(max_vocabulary=20_000, max_length=400).fit(train.columns["text"])
        ids = encoder.encode_all(test.columns["text"])  # Ragged
    """

    def __init__(self, config: TextConfig | None = None, **settings: Any) -> None:
        self.config = TextConfig(**{**(config.model_dump() if config else {}), **settings})
        self._tokenizer: Tokenizer | None = None

    def fit(self, texts: Texts | Iterable[str]) -> TextEncoder:
        """Make the vocabulary from these texts; returns the encoder itself.

        Raises:
            DataError: D156 where no token is left; D157 where a text is null or no text.
        """
        tokenizer = untrained(self.config)
        tokenizer.train_from_iterator(_chunks(texts), trainer(self.config))
        # Rebuilt without its added tokens: these would also be found inside texts.
        description = json.loads(tokenizer.to_str())
        description["added_tokens"] = []
        tokenizer = Tokenizer.from_str(json.dumps(description))
        smallest = len(SPECIAL) + (256 if self.config.kind == "bpe" else 0)
        if tokenizer.get_vocab_size() <= smallest and self.config.max_vocabulary != smallest:
            raise DataError(
                finding(
                    "D156",
                    "The vocabulary is empty.",
                    expected=f"texts in which a token occurs at least {_times(self.config.min_frequency)}",
                    received="none",
                )
            )
        self._tokenizer = tokenizer
        self.__dict__.pop("vocabulary", None)
        return self

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The token of every id. Pieces of kind bpe are in the byte-level alphabet (a blank is 'Ġ')."""
        of = self._fitted.get_vocab()
        return tuple(sorted(of, key=of.__getitem__))

    def __len__(self) -> int:
        """Number of ids, padding and unknown included: the rows of an embedding."""
        return self._fitted.get_vocab_size()

    def encode(self, text: str) -> Int64:
        """The ids of one text, int64 [T], T >= 1."""
        return self.encode_all([text]).values

    def encode_all(self, texts: Texts) -> Ragged:
        """The ids of each text, in order; every row has at least one.

        Raises:
            DataError: D157 where a text is null or no text; the row is named.
        """
        return self.encode_with_coverage(texts)[0]

    def coverage(self, texts: Texts) -> Coverage:
        """How well the vocabulary covers these texts."""
        return self.encode_with_coverage(texts)[1]

    def encode_with_coverage(self, texts: Texts) -> tuple[Ragged, Coverage]:
        """`encode_all` and `coverage` in one pass."""
        tokenizer = self._fitted
        parts: list[Ragged] = []
        truncated = empty = 0
        for chunk in _chunks(texts):
            ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(chunk)]
            lengths = np.fromiter(map(len, ids), np.int64, len(ids))
            if blank := int((lengths == 0).sum()):
                empty += blank
                ids = [row or [UNKNOWN] for row in ids]
                np.maximum(lengths, 1, out=lengths)
            values = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
            part = Ragged.from_lengths(values, lengths)
            if (limit := self.config.max_length) is not None:
                truncated += int((lengths > limit).sum())
                part = part.truncate(limit, tail=round(limit * self.config.tail))
            parts.append(part)
        encoded = Ragged.concatenate(parts)
        unknown = int((encoded.values == UNKNOWN).sum())
        return encoded, Coverage(len(encoded), encoded.values.size, unknown, truncated, empty)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The tokens of these ids, to show them."""
        of = self.vocabulary
        return [of[i] for i in ids]

    def save(self, path: str | Path) -> None:
        """Write the encoder as one JSON file: its settings, and the file of `tokenizers` within it."""
        record = {
            "format": _FORMAT,
            "version": _VERSION,
            "config": self.config.model_dump(),
            "tokenizer": json.loads(self._fitted.to_str()),
        }
        with written_atomically(path) as file:
            file.write(json.dumps(record, ensure_ascii=False, indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> TextEncoder:
        """The encoder that `save` wrote.

        Raises:
            DataError: D155; the file is missing, broken, of another kind, or of a later version.
        """
        try:
            if kind := odd_kind(Path(path)):
                raise _unreadable(path, f"a {kind}")
            if (size := Path(path).stat().st_size) > _MOST:
                raise _unreadable(path, f"a file of {size:,} bytes")
            record = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise _unreadable(path, error.strerror or "an unreadable file") from error
        except (ValueError, RecursionError) as error:
            raise _unreadable(path, f"broken JSON ({error})") from error
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise _unreadable(path, "a JSON file of another kind")
        if record.get("version") != _VERSION:
            raise _unreadable(path, f"version {record.get('version')!r}")
        try:
            encoder = cls(TextConfig.model_validate(record.get("config")))
        except ValidationError as error:
            key = ".".join(("config", *(str(part) for part in error.errors()[0]["loc"])))
            raise _unreadable(path, f"an invalid {key} ({error.errors()[0]['msg']})") from error
        try:
            tokenizer = Tokenizer.from_str(json.dumps(record.get("tokenizer")))
        except Exception as error:  # tokenizers raises plain Exception for any malformed file
            raise _unreadable(path, f"a tokenizer that does not load ({error})") from error
        if tuple(tokenizer.id_to_token(i) for i in (PAD, UNKNOWN)) != SPECIAL:
            raise _unreadable(path, "a tokenizer whose ids 0 and 1 are not padding and unknown")
        ids = sorted(tokenizer.get_vocab().values())
        if ids != list(range(len(ids))):
            raise _unreadable(path, "a tokenizer whose ids have gaps")
        try:
            tokenizer.encode_batch_fast(["\U0010ffff a"])
        except Exception as error:  # as above; a file may load and still not encode
            raise _unreadable(path, f"a tokenizer that does not encode ({error})") from error
        encoder._tokenizer = tokenizer
        return encoder

    @property
    def _fitted(self) -> Tokenizer:
        if self._tokenizer is None:
            raise RuntimeError(
                "Expected a fitted TextEncoder. Call fit(texts) or TextEncoder.load(path) first."
            )
        return self._tokenizer

    def __repr__(self) -> str:
        size = f"{len(self):,} tokens" if self._tokenizer else "not fitted"
        return f"TextEncoder({self.config.kind}, {size})"


def _chunks(texts: Texts | Iterable[str]) -> Iterator[list[str]]:
    """Lists of at most `_CHUNK` texts, so that memory does not grow with their number."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"Expected a sequence of texts. Received one {type(texts).__name__}.")
    if isinstance(texts, pa.ChunkedArray | pa.Array):
        lists: Iterable[list[Any]] = (
            texts[start : start + _CHUNK].to_pylist() for start in range(0, len(texts), _CHUNK)
        )
    else:
        lists = _listed(texts)
    first = 0
    for chunk in lists:
        for place, text in enumerate(chunk):
            if not isinstance(text, str):
                raise DataError(
                    finding(
                        "D157",
                        f"A text to encode is not text: row {first + place} (counted from 0).",
                        expected="text",
                        received="null" if text is None else f"{text!r} ({type(text).__name__})",
                        row=first + place,
                    )
                )
        first += len(chunk)
        yield chunk


def _listed(texts: Iterable[Any]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _unreadable(path: str | Path, received: str) -> DataError:
    return DataError(
        finding(
            "D155",
            "The text encoder cannot be loaded.",
            place=Place(file=str(path)),
            expected=f"a JSON file that TextEncoder.save wrote (version {_VERSION})",
            received=received,
        )
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
