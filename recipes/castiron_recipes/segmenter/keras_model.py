"""The same model in Keras: a U-Net.

Layers have the names that they have in `model.py`, and weights start from the same distributions. Shapes: B
images, C channels (last, as TensorFlow has them), K classes; H and W of the image are halved at each level on
the way down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from castiron_recipes.keras_parts import Pixels, uniform


class ConvBlock(layers.Layer):
    """Two convolutions, each with a group norm and a ReLU. Height and width stay."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.before = before
        self.conv1 = conv(before, width, 3)
        self.norm1 = layers.GroupNormalization(4, epsilon=1e-5)
        self.conv2 = conv(width, width, 3)
        self.norm2 = layers.GroupNormalization(4, epsilon=1e-5)

    def call(self, x: Any) -> Any:
        """[B, H, W, before] → [B, H, W, width].

        Raises:
            ValueError: the channels are not where they are expected, or not as many.
        """
        if x.shape.rank != 4 or x.shape[3] != self.before:
            raise ValueError(
                f"Expected [batch, height, width, {self.before} channels]. Received {list(x.shape)}."
            )
        x = tf.nn.relu(self.norm1(self.conv1(x)))
        return tf.nn.relu(self.norm2(self.conv2(x)))


class UNet(keras.Model):
    """Images to logits of every pixel's class."""

    def __init__(self, classes: int, *, widths: Sequence[int], mean: float, std: float) -> None:
        """
        Args:
            widths: channels of each level, from the image's own resolution down; multiples of 4.
            mean, std: of the training pixels, divided by 255.
        """
        super().__init__(name="u_net")
        self.pixels = Pixels(mean, std)
        befores = [1, *widths[:-1]]
        self.down = [ConvBlock(a, b) for a, b in zip(befores, widths, strict=True)]
        self.up = [ConvBlock(below + here, here) for below, here in zip(widths[1:], widths[:-1], strict=True)]
        bound = uniform(widths[0])
        self.head = layers.Conv2D(classes, 1, kernel_initializer=bound, bias_initializer=bound)
        side = 2 ** (len(widths) - 1)
        self(tf.zeros([1, side, side], tf.uint8))  # makes the variables

    def call(self, images: Any, training: bool = False) -> Any:
        """uint8 [B, H, W] → [B, K, H, W], as in PyTorch."""
        x = self.pixels(images)
        seen = []
        for level, block in enumerate(self.down):
            x = block(tf.nn.max_pool2d(x, 2, 2, "VALID") if level else x)
            seen.append(x)
        for level in reversed(range(len(self.up))):
            x = tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)  # each pixel becomes four
            x = self.up[level](tf.concat([seen[level], x], axis=3))
        return tf.transpose(self.head(x), [0, 3, 1, 2])


def conv(before: int, width: int, size: int) -> Any:
    """A convolution without bias, whose weights start as PyTorch's."""
    drawn = uniform(before * size * size)
    return layers.Conv2D(width, size, padding="same", use_bias=False, kernel_initializer=drawn)
