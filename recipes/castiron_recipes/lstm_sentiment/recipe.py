"""Sentiment of a text by a (bi)LSTM: `castiron train lstm-sentiment`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field as Within
from pydantic import PositiveFloat, PositiveInt

from castiron.data import Dataset, Field, Ragged, Schema, TextConfig, TextEncoder, load_vectors
from castiron.training import Recipe
from castiron_recipes.lstm_sentiment.carrying import to_tensorflow, to_torch
from castiron_recipes.lstm_sentiment.reviews import generate

Share = Annotated[float, Within(ge=0, lt=1)]


class LSTMSentiment(Recipe):
    """Sentiment of a text: embedding, (bi)LSTM, pooling over tokens, head.

    Without data it generates reviews (20,000 rows of CSV with realistic dirt) whose Bayes accuracy is known.
    """

    name = "lstm-sentiment"
    backends = ("torch", "tensorflow")
    bucket_by = "text"

    class Config(Recipe.Config):
        """What can be set in `model:`."""

        text: TextConfig = TextConfig()
        """How text becomes tokens."""
        embedding: PositiveInt = 128
        """Size of a word's vector."""
        embedding_std: PositiveFloat = 0.1
        """Standard deviation of word vectors that are drawn at random."""
        hidden: PositiveInt = 128
        """Size of the LSTM's state, in each direction."""
        layers: PositiveInt = 1
        """LSTM layers, one upon the other."""
        bidirectional: bool = True
        """Whether texts are read backwards too."""
        pooling: Literal["max", "mean", "max+mean"] = "max"
        """How the states of all tokens become one vector: max, mean or max+mean."""
        dropout: Share = 0.5
        """Dropout before the head."""
        embedding_dropout: Share = 0.3
        """Dropout of word-vector features, one mask per text."""
        word_dropout: Share = 0.05
        """Share of words that are hidden while training."""
        vectors: str | None = None
        """Pretrained word vectors: a text file of lines `word number number …`. null: random."""
        labels: dict[str, int] = {"negative": 0, "positive": 1, "neg": 0, "pos": 1, "0": 0, "1": 1}
        """Label text → class."""

    config: Config

    # --- data --------------------------------------------------------------------------------------

    def schema(self) -> Schema:
        return Schema.of(
            Field(name="id", role="id", dtype="int64", required=False),
            Field(name="text", role="text", missing="drop"),
            Field(
                name="label",
                role="target",
                categories=self.config.labels,
                missing={"treatment": "drop", "spellings": ["", "?"]},
            ),
            # Read for the report alone: a column as real files have them.
            Field(
                name="rating",
                role="feature",
                dtype="float32",
                required=False,
                missing={"treatment": "nan", "spellings": ["", "N/A"]},
            ),
        )

    def embedded_data(self, folder: Path) -> Mapping[str, Path]:
        files = generate(folder, seed=self.run.seed)
        self.notes.append(str(files))
        return files.splits

    def learn(self, train: Dataset) -> None:
        self.encoder = TextEncoder(self.config.text).fit(train["text"])

    def encode(self, data: Dataset) -> Mapping[str, np.ndarray | Ragged]:
        columns: dict[str, np.ndarray | Ragged] = {"text": self.encoder.encode_all(data["text"])}
        if "label" in data:
            columns["label"] = data.array("label")
        return columns

    def save(self, folder: Path) -> None:
        self.encoder.save(folder / "text.json")

    def load(self, folder: Path) -> None:
        self.encoder = TextEncoder.load(folder / "text.json")

    # --- model -------------------------------------------------------------------------------------

    @property
    def classes(self) -> int:
        """Number of classes."""
        return max(self.config.labels.values()) + 1

    def model(self) -> Any:
        c = self.config
        vectors: Any = None
        embedding = c.embedding
        if c.vectors is not None:
            vectors = load_vectors(c.vectors, self.encoder.vocabulary).matrix
            embedding = vectors.shape[1]
        make: Any
        if self.run.backend == "tensorflow":
            from castiron_recipes.lstm_sentiment.keras_model import SentimentLSTM as make
        else:
            import torch

            from castiron_recipes.lstm_sentiment.model import SentimentLSTM as make

            vectors = None if vectors is None else torch.from_numpy(vectors)
        return make(
            len(self.encoder),
            self.classes,
            embedding=embedding,
            embedding_std=c.embedding_std,
            hidden=c.hidden,
            layers=c.layers,
            bidirectional=c.bidirectional,
            pooling=c.pooling,
            dropout=c.dropout,
            embedding_dropout=c.embedding_dropout,
            word_dropout=c.word_dropout,
            vectors=vectors,
        )

    def carried(self, weights: Mapping[str, np.ndarray], to: str) -> dict[str, np.ndarray]:
        return to_tensorflow(weights) if to == "tensorflow" else to_torch(weights)

    def inputs(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return batch["text"], batch["text_length"]

    def shapes(self) -> Mapping[str, str]:
        return {
            "": f"batch time, batch -> batch {self.classes}",
            "lstm": "batch time _, batch -> batch time _",
        }

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        if self.run.backend == "tensorflow":
            import tensorflow as tf

            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], outputs)
            return tf.reduce_mean(losses)
        from torch.nn import functional as F

        return F.cross_entropy(outputs, batch["label"])

    def metrics(self) -> Mapping[str, Any]:
        if self.run.backend == "tensorflow":
            import keras

            from castiron_recipes.lstm_sentiment.keras_model import MacroF1

            return {"accuracy": keras.metrics.SparseCategoricalAccuracy(), "f1": MacroF1(self.classes)}
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        return {
            "accuracy": MulticlassAccuracy(self.classes, average="micro"),
            "f1": MulticlassF1Score(self.classes, average="macro"),
        }

    def answers(self, outputs: Any) -> list[dict[str, Any]]:
        names: dict[int, str] = {}
        for name, index in self.config.labels.items():
            names.setdefault(index, name)
        exponentials = np.exp(outputs - outputs.max(1, keepdims=True))
        shares = exponentials / exponentials.sum(1, keepdims=True)
        return [{"label": names[int(row.argmax())], "probability": float(row.max())} for row in shares]
