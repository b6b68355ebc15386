"""Text rewritten character by character, by LSTMs with attention: `castiron train seq2seq-attention`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field as Within
from pydantic import PositiveInt

from castiron.data import Dataset, Field, Ragged, Schema
from castiron.training import Recipe
from castiron.training.questions import dataset_of
from castiron_recipes.seq2seq_attention.dates import write

Share = Annotated[float, Within(ge=0, lt=1)]
PAD, UNKNOWN, END = 0, 1, 2
"""Numbers of what is no character: padding, a character that training rows have not, the end of a text."""


class Seq2SeqAttention(Recipe):
    """A text to another text, both read as characters: encoder, decoder, attention that leaves padding out.

    Without data it generates dates as people write them, to be written in ISO 8601; days that are tested are
    in no training row. The loss is in nats per character, the end among them.
    """

    name = "seq2seq-attention"
    bucket_by = "source"

    class Config(Recipe.Config):
        """What can be set in `model:`."""

        embedding: PositiveInt = 32
        """Size of a character's vector."""
        hidden: PositiveInt = 64
        """Size of the decoder's state, and of the encoder's in each direction."""
        dropout: Share = 0.1
        """Dropout of character vectors, and before the head."""

    config: Config

    # --- data --------------------------------------------------------------------------------------

    def schema(self) -> Schema:
        source = Field(name="source", role="text", missing="drop")
        return Schema.of(source, Field(name="target", role="text", missing="drop"))

    def questions(self, inputs: Sequence[str | Mapping[str, Any]]) -> Dataset:
        """To `predict`, an input is a source."""
        return dataset_of(Schema.of(Field(name="source", role="text")), inputs)

    def embedded_data(self, folder: Path) -> Mapping[str, Path]:
        return write(folder, seed=self.run.seed)

    def learn(self, train: Dataset) -> None:
        self.characters = {n: sorted(set("".join(train.texts(n)))) for n in ("source", "target")}
        self.longest = 1 + max(map(len, train.texts("target")))

    def encode(self, data: Dataset) -> Mapping[str, np.ndarray | Ragged]:
        return {name: self._encoded(name, data.texts(name)) for name in self.characters if name in data}

    def _encoded(self, name: str, texts: Sequence[str]) -> Ragged:
        """Each text as numbers of its characters, and the end."""
        known = {character: number for number, character in enumerate(self.characters[name], END + 1)}
        return Ragged.from_rows([*(known.get(c, UNKNOWN) for c in text), END] for text in texts)

    def decoded(self, numbers: Sequence[int]) -> str:
        """Numbers of a target's characters as text."""
        known = ["", "\ufffd", "", *self.characters["target"]]
        return "".join(known[number] for number in numbers)

    def save(self, folder: Path) -> None:
        learned = {"characters": self.characters, "longest": self.longest}
        (folder / "characters.json").write_text(json.dumps(learned), encoding="utf-8")

    def load(self, folder: Path) -> None:
        learned = json.loads((folder / "characters.json").read_text(encoding="utf-8"))
        self.characters, self.longest = learned["characters"], learned["longest"]

    # --- model -------------------------------------------------------------------------------------

    def _vocabulary(self, name: str) -> int:
        return len(self.characters[name]) + END + 1

    def model(self) -> Any:
        from castiron_recipes.seq2seq_attention.model import AttentionSeq2Seq

        c = self.config
        return AttentionSeq2Seq(
            self._vocabulary("source"),
            self._vocabulary("target"),
            embedding=c.embedding,
            hidden=c.hidden,
            dropout=c.dropout,
            longest=self.longest,
        )

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        told = (batch["target"],) if "target" in batch else ()
        return (batch["source"], batch["source_length"], *told)

    def shapes(self) -> Mapping[str, str]:
        symbols = self._vocabulary("target")
        return {"": f"batch source, batch, batch target -> batch target {symbols}"}

    def targets(self, batch: Mapping[str, Any]) -> Any:
        return batch["target"]

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        from torch.nn import functional as F

        return F.cross_entropy(outputs.transpose(1, 2), batch["target"], ignore_index=PAD)

    def predictions(self, outputs: Any) -> Any:
        return outputs.argmax(2)

    def metrics(self) -> Mapping[str, Any]:
        from torchmetrics.classification import MulticlassAccuracy

        from castiron_recipes.seq2seq_attention.metrics import ExactMatch

        characters = self._vocabulary("target")
        return {
            "exact_match": ExactMatch(PAD),
            "character_accuracy": MulticlassAccuracy(characters, average="micro", ignore_index=PAD),
        }

    def answers(self, outputs: Any) -> list[dict[str, Any]]:
        exponentials = np.exp(outputs - outputs.max(2, keepdims=True))
        best = (exponentials.max(2) / exponentials.sum(2)).astype(np.float64)  # [B, T]
        found = []
        for row, shares in zip(outputs.argmax(2).tolist(), best, strict=True):
            end = row.index(END) if END in row else len(row)
            # How likely the whole of it is, the end among it: a product over its own steps.
            whole = float(shares[: end + 1].prod())
            found.append({"target": self.decoded(row[:end]), "probability": whole})
        return found
