"""The next character of a text by a small decoder: `castiron train char-lm`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field as Within
from pydantic import PositiveInt, model_validator

from castiron.data import Dataset, Field, Missing, Schema, Windows
from castiron.training import Recipe
from castiron_recipes.char_lm.corpus import write

Share = Annotated[float, Within(ge=0, le=1)]
UNKNOWN = "\ufffd"
"""Stands for characters that the training text has not."""


class CharLM(Recipe):
    """Characters of plain text, in windows: RMSNorm, rotary positions, causal attention, tied weights.

    The splits are parts of one file, one after the other. The loss is in nats per character. Without data it
    reads what castiron says of its own rules.
    """

    name = "char-lm"

    class Config(Recipe.Config):
        """What can be set in `model:`."""

        parts: dict[Literal["train", "validation", "test"], tuple[Share, Share]] = {
            "train": (0.0, 0.8),
            "validation": (0.8, 0.9),
            "test": (0.9, 1.0),
        }
        """Split → from where to where of its file it is, as shares of the characters."""
        context: PositiveInt = 128
        """Characters that the model sees at once."""
        stride: PositiveInt = 64
        """Characters between the beginnings of training windows; others lie end to end."""
        width: PositiveInt = 128
        """Features of a character."""
        layers: PositiveInt = 4
        """Blocks, one upon the other."""
        heads: PositiveInt = 4
        """Heads of attention; `width` is a multiple of twice as many."""
        dropout: Annotated[float, Within(ge=0, lt=1)] = 0.1
        """Dropout of what each block adds."""

        @model_validator(mode="after")
        def _heads_fit(self) -> CharLM.Config:
            if self.width % (2 * self.heads):
                raise ValueError(
                    f"width is {self.width}; expected a multiple of 2 * heads ({2 * self.heads})"
                )
            return self

    config: Config

    # --- data --------------------------------------------------------------------------------------

    def schema(self) -> Schema:
        empty = Missing(treatment="constant", value="")
        return Schema.of(Field(name="text", role="text", missing=empty), key=())

    def embedded_data(self, folder: Path) -> Mapping[str, Path]:
        path = write(folder)
        return {"train": path, "validation": path, "test": path}

    def learn(self, train: Dataset) -> None:
        text = "".join(f"{line}\n" for line in train.texts("text"))
        first, end = self._part("train", len(text))
        self.characters = [UNKNOWN, *sorted(set(text[first:end]) - {UNKNOWN})]

    def encode(self, data: Dataset) -> Mapping[str, Any]:
        c, lines = self.config, data.texts("text")
        if data.report.split == "predict":
            asked = [f"\n{line}"[-c.context :].rjust(c.context, "\n") for line in lines]
            return {"text": np.stack([self._numbers(text) for text in asked])}
        numbers = self._numbers("".join(f"{line}\n" for line in lines))
        first, end = self._part(data.report.split, len(numbers))
        step = c.stride if data.report.split == "train" else c.context
        starts = np.arange(first, end - c.context, step)
        begins = np.cumsum([0, *(len(line) + 1 for line in lines[:-1])])
        rows = np.searchsorted(begins, starts, side="right") - 1
        return {
            "text": Windows(numbers, starts, c.context, rows=rows),
            "next": Windows(numbers, starts + 1, c.context, rows=rows),
        }

    def _part(self, split: str, characters: int) -> tuple[int, int]:
        first, end = self.config.parts[split]  # type: ignore[index]
        return round(first * characters), round(end * characters)

    def _numbers(self, text: str) -> np.ndarray:
        """int64 [characters]."""
        known = {character: number for number, character in enumerate(self.characters)}
        return np.array([known.get(character, 0) for character in text], np.int64)

    def save(self, folder: Path) -> None:
        (folder / "characters.json").write_text(json.dumps(self.characters), encoding="utf-8")

    def load(self, folder: Path) -> None:
        self.characters = json.loads((folder / "characters.json").read_text(encoding="utf-8"))

    # --- model -------------------------------------------------------------------------------------

    def model(self) -> Any:
        from castiron_recipes.char_lm.model import CharDecoder

        c = self.config
        return CharDecoder(
            len(self.characters),
            context=c.context,
            width=c.width,
            layers=c.layers,
            heads=c.heads,
            dropout=c.dropout,
        )

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return (batch["text"],)

    def targets(self, batch: Mapping[str, Any]) -> Any:
        return batch["next"]

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        from torch.nn import functional as F

        return F.cross_entropy(outputs.transpose(1, 2), batch["next"])

    def predictions(self, outputs: Any) -> Any:
        return outputs.argmax(-1)

    def metrics(self) -> Mapping[str, Any]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(len(self.characters), average="micro")}

    def answers(self, outputs: Any) -> list[dict[str, Any]]:
        last = outputs[:, -1]
        exponentials = np.exp(last - last.max(1, keepdims=True))
        shares = exponentials / exponentials.sum(1, keepdims=True)
        return [
            {"next": self.characters[int(row.argmax())], "probability": float(row.max())} for row in shares
        ]
