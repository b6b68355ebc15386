"""The same model in Keras: embedding, (bi)LSTM over rows of unequal length, pooling, head.

Layers have the names that they have in `model.py`, so that layer rules mean the same, and weights start from
the same distributions. Shapes: B rows, T tokens, E embedding, H hidden, D directions, C classes.
"""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from castiron_recipes.keras_parts import uniform

PAD, UNKNOWN = 0, 1
Pooling = Literal["max", "mean", "max+mean"]


class SentimentLSTM(keras.Model):
    """Token ids to class logits."""

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        *,
        embedding: int,
        hidden: int,
        embedding_std: float = 0.1,
        layers: int = 1,
        bidirectional: bool = True,
        pooling: Pooling = "max",
        dropout: float = 0.5,
        embedding_dropout: float = 0.3,
        word_dropout: float = 0.0,
        vectors: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            vectors: float32 [vocabulary, E], pretrained; rows that are all zero stay as they were drawn.
        """
        super().__init__(name="sentiment_lstm")
        own = keras.layers
        self.pooling = pooling
        self.word_dropout = WordDropout(word_dropout)
        self.embedding = own.Embedding(
            vocabulary,
            embedding,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=embedding_std),
        )
        # One mask for all tokens of a row (Gal and Ghahramani, 2016).
        self.embedding_dropout = own.SpatialDropout1D(embedding_dropout)
        self.lstm = VariableLengthLSTM(embedding, hidden, depth=layers, bidirectional=bidirectional)
        self.dropout = own.Dropout(dropout)
        width = self.lstm.output_size * len(pooling.split("+"))
        bound = uniform(width)
        self.head = own.Dense(classes, kernel_initializer=bound, bias_initializer=bound)
        self(tf.ones([1, 2], tf.int64), tf.constant([2], tf.int64))  # makes the variables
        table = self.embedding.embeddings.numpy()
        table[PAD] = 0
        if vectors is not None:
            known = vectors.any(1)
            table[known] = vectors[known]
        self.embedding.embeddings.assign(table)

    def call(self, ids: Any, length: Any, training: bool = False) -> Any:
        """ids int64 [B, T] padded with 0, length int64 [B] → logits [B, C]."""
        x = self.embedding(self.word_dropout(ids, training=training))
        x = self.lstm(self.embedding_dropout(x, training=training), length)
        return self.head(self.dropout(pool(x, length, self.pooling), training=training))


class VariableLengthLSTM(layers.Layer):
    """An LSTM over padded rows, each read up to its own length, in both directions.

    The backward direction is a forward LSTM over rows reversed within their length, so that padding comes
    last for both, reaches no token, and needs no mask.
    """

    def __init__(self, size: int, hidden: int, *, depth: int = 1, bidirectional: bool = True) -> None:
        super().__init__()
        directions = 2 if bidirectional else 1
        bound = uniform(hidden)

        def lstm() -> Any:
            return layers.LSTM(
                hidden,
                return_sequences=True,
                kernel_initializer=bound,
                recurrent_initializer=bound,
                bias_initializer=bound,
                unit_forget_bias=False,
            )

        self.ahead = [lstm() for _ in range(depth)]
        self.back = [lstm() for _ in range(depth) if bidirectional]
        self.output_size = directions * hidden

    def call(self, x: Any, length: Any) -> Any:
        """x [B, T, E], length int64 [B] → [B, T, D·H]; what stands beyond a row's length is meaningless."""
        for i, layer in enumerate(self.ahead):
            y = layer(x)
            if self.back:
                z = self.back[i](tf.reverse_sequence(x, length, seq_axis=1, batch_axis=0))
                y = tf.concat([y, tf.reverse_sequence(z, length, seq_axis=1, batch_axis=0)], axis=2)
            x = y
        return x


class WordDropout(layers.Layer):
    """Replaces words by the unknown word, each with probability `p`, while training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, ids: Any, training: bool = False) -> Any:
        """int64 [B, T] → int64 [B, T]; padding stays."""
        if not training or self.p == 0:
            return ids
        drawn = keras.random.uniform(tf.shape(ids), dtype="float32", seed=self.seed_generator)
        hidden = tf.logical_and(drawn < self.p, ids != PAD)
        return tf.where(hidden, tf.constant(UNKNOWN, ids.dtype), ids)


def pool(x: Any, length: Any, how: Pooling) -> Any:
    """x [B, T, N], length [B] → [B, N], or [B, 2N] for max+mean; over each row's own tokens."""
    position = tf.range(tf.shape(x)[1], dtype=length.dtype)
    beyond = (position[None, :] >= length[:, None])[:, :, None]
    parts = []
    if "max" in how:
        hidden = tf.where(beyond, x.dtype.min, x)
        # The place of the maximum, not reduce_max, which spreads the gradient over ties: in 16 bits there
        # are many.
        place = tf.argmax(hidden, axis=1)[:, None, :]
        parts.append(keras.ops.take_along_axis(hidden, place, axis=1)[:, 0, :])
    if "mean" in how:
        # Sums are islands: in 16 bits they would stand still after some hundred tokens.
        total = tf.reduce_sum(tf.cast(tf.where(beyond, tf.zeros([], x.dtype), x), tf.float32), axis=1)
        parts.append(tf.cast(total / tf.cast(length[:, None], tf.float32), x.dtype))
    return tf.concat(parts, axis=1) if len(parts) > 1 else parts[0]


class MacroF1(keras.metrics.Metric):
    """Mean over classes of F1; a class that neither occurs nor is predicted counts as 0."""

    def __init__(self, classes: int) -> None:
        super().__init__(name="f1")
        self.counts = self.add_variable((classes, classes), initializer="zeros", name="counts")

    def update_state(self, targets: Any, logits: Any, sample_weight: Any = None) -> None:
        """targets [B], logits [B, C]."""
        found = tf.math.confusion_matrix(
            targets, tf.argmax(logits, axis=1), num_classes=self.counts.shape[0], dtype=tf.float32
        )
        self.counts.assign_add(found)

    def result(self) -> Any:
        counts = tf.convert_to_tensor(self.counts)
        right = tf.linalg.diag_part(counts)
        total = tf.reduce_sum(counts, 0) + tf.reduce_sum(counts, 1)
        return tf.reduce_mean(tf.math.divide_no_nan(2 * right, total))
