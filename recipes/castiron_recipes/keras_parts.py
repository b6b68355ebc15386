"""What the Keras models of several recipes share."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers


def uniform(inputs: int) -> Any:
    """What PyTorch draws weights from: uniform within 1/sqrt(inputs)."""
    bound = inputs**-0.5
    return keras.initializers.RandomUniform(-bound, bound)


class Pixels(layers.Layer):
    """uint8 pixels to numbers of mean 0 and deviation 1."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.numbers = {"mean": mean, "std": std}

    def build(self, shape: Any) -> None:
        # Read as they are stored, not in the format of products: so the result is, too, as in PyTorch.
        self.mean, self.std = (
            self.add_weight(
                shape=(),
                initializer=keras.initializers.Constant(value),
                trainable=False,
                autocast=False,
                name=name,
            )
            for name, value in self.numbers.items()
        )

    def call(self, images: Any) -> Any:
        """uint8 [B, H, W] → [B, H, W, 1]. bfloat16, too, has every whole number from 0 to 255."""
        mean, std = tf.convert_to_tensor(self.mean), tf.convert_to_tensor(self.std)
        return ((tf.cast(images[..., None], mean.dtype) / 255) - mean) / std
