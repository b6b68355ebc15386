"""The same model in Keras: pixels to a scale, augmentation, residual blocks with batch normalisation, head.

Layers have the names that they have in `model.py`, and weights start from the same distributions. Shapes: B
images, H × W pixels, C channels (last, as TensorFlow has them), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from castiron_recipes.keras_parts import Pixels, uniform


class ResNet(keras.Model):
    """Images to class logits; each group of blocks halves the resolution of the one before."""

    def __init__(
        self,
        classes: int,
        *,
        widths: Sequence[int],
        blocks: int,
        stride: int,
        mean: float,
        std: float,
        shift: int,
        flip: bool,
        erase: int,
        dropout: float,
    ) -> None:
        """
        Args:
            stride: of the first convolution, which spans 2 · stride + 1 pixels.
            mean, std: of the training pixels, divided by 255.
        """
        super().__init__(name="res_net")
        self.pixels = Pixels(mean, std)
        self.augment = Augment(shift, flip=flip, erase=erase)
        self.around = stride if stride != 1 else 0
        self.stem = conv(1, widths[0], 2 * stride + 1, stride)
        self.norm = norm()
        self.blocks = []
        before = widths[0]
        for group, width in enumerate(widths):
            for i in range(blocks):
                self.blocks.append(Block(before, width, stride=2 if group and not i else 1))
                before = width
        self.dropout = layers.Dropout(dropout)
        bound = uniform(before)
        self.head = layers.Dense(classes, kernel_initializer=bound, bias_initializer=bound)
        side = stride * 2 ** len(widths)
        self(tf.zeros([1, side, side], tf.uint8))  # makes the variables

    def call(self, images: Any, training: bool = False) -> Any:
        """uint8 [B, H, W] → [B, K]."""
        x = padded(self.augment(self.pixels(images), training=training), self.around)
        x = tf.nn.relu(self.norm(self.stem(x), training=training))
        for block in self.blocks:
            x = block(x, training=training)
        # Sums are islands: in 16 bits a mean over many pixels would stand still.
        wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
        x = tf.cast(tf.reduce_mean(wide, axis=[1, 2]), x.dtype)
        return self.head(self.dropout(x, training=training))


class Block(layers.Layer):
    """Two convolutions beside a shortcut (He et al., 2016); its last norm begins at 0, and so do they."""

    def __init__(self, before: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.around = 1 if stride != 1 else 0
        self.conv1 = conv(before, width, 3, stride)
        self.norm1 = norm()
        self.conv2 = conv(width, width, 3)
        self.norm2 = norm(gamma="zeros")
        if stride != 1 or before != width:
            self.shortcut = conv(before, width, 1, stride)

    def call(self, x: Any, training: bool = False) -> Any:
        """[B, H, W, C] → [B, H / stride, W / stride, width]."""
        y = tf.nn.relu(self.norm1(self.conv1(padded(x, self.around)), training=training))
        y = self.norm2(self.conv2(y), training=training)
        return tf.nn.relu(y + (self.shortcut(x) if hasattr(self, "shortcut") else tf.cast(x, y.dtype)))


class Augment(layers.Layer):
    """While training, each image is shifted by up to `shift` pixels, mirrored, and has a square erased."""

    def __init__(self, shift: int, *, flip: bool, erase: int) -> None:
        super().__init__(autocast=False)
        self.shift, self.flip, self.erase = shift, flip, erase
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x: Any, training: bool = False) -> Any:
        """[B, H, W, 1] → [B, H, W, 1]."""
        if not training:
            return x
        rows, height, width = tf.shape(x)[0], tf.shape(x)[1], tf.shape(x)[2]
        down, right = tf.range(height)[None], tf.range(width)[None]
        if self.shift:
            # The edge stands for what is beyond it: the background.
            dy, dx = (self._drawn(rows, -self.shift, self.shift + 1) for _ in range(2))
            x = tf.gather(x, tf.clip_by_value(down + dy, 0, height - 1), axis=1, batch_dims=1)
            x = tf.gather(x, tf.clip_by_value(right + dx, 0, width - 1), axis=2, batch_dims=1)
        if self.flip:
            mirrored = self._drawn(rows, 0, 2)[:, :, None, None] == 1
            x = tf.where(mirrored, tf.reverse(x, [2]), x)
        if self.erase:
            y0, x0 = (self._drawn(rows, -self.erase, side) for side in (height, width))
            tall = (down >= y0) & (down < y0 + self.erase)
            broad = (right >= x0) & (right < x0 + self.erase)
            x = tf.where((tall[:, :, None] & broad[:, None])[..., None], tf.zeros([], x.dtype), x)
        return x

    def _drawn(self, rows: Any, first: Any, end: Any) -> Any:
        """int32 [rows, 1], from `first` to before `end`."""
        return keras.random.randint([rows, 1], first, end, dtype="int32", seed=self.seed_generator)


def padded(x: Any, around: int) -> Any:
    """[B, H, W, C] before a stride: Keras would pad it at one side alone; PyTorch pads both."""
    return tf.pad(x, [[0, 0], [around] * 2, [around] * 2, [0, 0]]) if around else x


def conv(before: int, width: int, size: int, stride: int = 1) -> Any:
    """A convolution without bias, whose weights start as PyTorch's."""
    return layers.Conv2D(
        width,
        size,
        stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        kernel_initializer=uniform(before * size * size),
    )


def norm(gamma: str = "ones") -> Any:
    """A batch norm with PyTorch's constants."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, gamma_initializer=gamma)
