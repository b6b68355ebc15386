"""The same model in Keras: embeddings of categories beside numbers, then an MLP or nothing but a linear map.

Layers have the names that they have in `model.py`, and weights start from the same distributions. Shapes: B
rows, N numbers, K categorical columns, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from castiron_recipes.keras_parts import uniform


class TableNet(keras.Model):
    """Numbers and categories to outputs."""

    def __init__(
        self,
        numbers: int,
        categories: Sequence[int],
        outputs: int,
        *,
        hidden: Sequence[int],
        embedding: int,
        dropout: float,
    ) -> None:
        """
        Args:
            numbers: N.
            categories: size of each categorical column's vocabulary; number 0 stands for a missing cell.
            hidden: widths of the hidden layers; none: the outputs are linear in numbers and embeddings.
        """
        super().__init__(name="table_net")
        normal = keras.initializers.RandomNormal(stddev=0.1)
        widths = [min(embedding, size) for size in categories]
        self.embeddings = [
            layers.Embedding(size, width, embeddings_initializer=normal)
            for size, width in zip(categories, widths, strict=True)
        ]
        sizes = [numbers + sum(widths), *hidden]
        self.body: list[Any] = []
        for before, after in pairwise(sizes):
            self.body += [dense(before, after), layers.ReLU(), layers.Dropout(dropout)]
        self.head = dense(sizes[-1], outputs)
        self(tf.zeros([1, numbers]), tf.zeros([1, len(categories)], tf.int64))  # makes the variables

    def call(self, numbers: Any, categories: Any, training: bool = False) -> Any:
        """numbers [B, N], categories int64 [B, K] → [B, O]."""
        vectors = [table(categories[:, k]) for k, table in enumerate(self.embeddings)]
        if vectors:
            numbers = tf.concat([tf.cast(numbers, vectors[0].dtype), *vectors], axis=1)
        x = numbers
        for layer in self.body:
            x = layer(x, training=training) if isinstance(layer, layers.Dropout) else layer(x)
        return self.head(x)


def dense(before: int, after: int) -> Any:
    """A Dense layer whose weights start as those of PyTorch's Linear."""
    return layers.Dense(after, kernel_initializer=uniform(before), bias_initializer=uniform(before))


class MacroAUROC(keras.metrics.AUC):
    """Mean over classes of the area under the curve of one class against the rest, over 1,000 thresholds."""

    def __init__(self, classes: int) -> None:
        super().__init__(num_thresholds=1000, multi_label=True, num_labels=classes, name="auroc")
        self.classes = classes

    def update_state(self, targets: Any, logits: Any, sample_weight: Any = None) -> None:
        """targets [B], logits [B, C]."""
        super().update_state(tf.one_hot(targets, self.classes), tf.nn.softmax(logits))


class R2(keras.metrics.R2Score):
    """The share of the targets' variance that is explained."""

    def update_state(self, targets: Any, values: Any, sample_weight: Any = None) -> None:
        """Both [B]."""
        super().update_state(targets[:, None], values[:, None])
