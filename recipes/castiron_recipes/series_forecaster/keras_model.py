"""The same models in Keras: two linear baselines and an LSTM.

Layers have the names that they have in `model.py` (an LSTM's layers are a list here), and weights start from
the same distributions. Shapes: B windows, L hours of the past, H hours of the horizon, C columns.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from castiron_recipes.keras_parts import uniform


class NLinear(keras.Model):
    """A linear map over time, shared by all columns, of differences to the last hour (Zeng et al., 2023)."""

    def __init__(self, past: int, horizon: int) -> None:
        super().__init__(name="n_linear", autocast=False)
        self.linear = over_time(past, horizon)
        self(tf.zeros([1, past, 1]))  # makes the variables

    def call(self, past: Any, training: bool = False) -> Any:
        """[B, L, C] → [B, H, C]."""
        last = past[:, -1:]
        change = self.linear(tf.transpose(past - last, [0, 2, 1]))
        return tf.cast(tf.transpose(change, [0, 2, 1]), last.dtype) + last


class DLinear(keras.Model):
    """A linear map of the trend and one of what is left of it (Zeng et al., 2023)."""

    def __init__(self, past: int, horizon: int, *, window: int = 25) -> None:
        """
        Args:
            window: hours of the moving average that is the trend; odd.
        """
        super().__init__(name="d_linear", autocast=False)
        self.window = window
        self.trend = over_time(past, horizon)
        self.season = over_time(past, horizon)
        self(tf.zeros([1, past, 1]))  # makes the variables

    def call(self, past: Any, training: bool = False) -> Any:
        """[B, L, C] → [B, H, C]."""
        trend = moving_average(past, self.window)
        found = self.trend(tf.transpose(trend, [0, 2, 1])) + self.season(
            tf.transpose(past - trend, [0, 2, 1])
        )
        return tf.transpose(found, [0, 2, 1])


class LSTMForecaster(keras.Model):
    """An LSTM over the past; its last state says how all hours of the horizon differ from the last hour."""

    def __init__(self, columns: int, horizon: int, *, hidden: int, layers: int, dropout: float) -> None:
        super().__init__(name="lstm_forecaster", autocast=False)
        self.horizon, self.columns = horizon, columns
        own, bound = keras.layers, uniform(hidden)
        self.lstm = [
            own.LSTM(
                hidden,
                return_sequences=i < layers - 1,
                kernel_initializer=bound,
                recurrent_initializer=bound,
                bias_initializer=bound,
                unit_forget_bias=False,
            )
            for i in range(layers)
        ]
        self.dropout = own.Dropout(dropout)
        self.head = own.Dense(horizon * columns, kernel_initializer=bound, bias_initializer=bound)
        self(tf.zeros([1, 2, columns]))  # makes the variables

    def call(self, past: Any, training: bool = False) -> Any:
        """[B, L, C] → [B, H, C]."""
        last = past[:, -1:]
        x = past - last
        for layer in self.lstm:
            x = layer(x)
        change = self.head(self.dropout(x, training=training))
        change = tf.reshape(change, [-1, self.horizon, self.columns])
        return tf.cast(change, last.dtype) + last


def over_time(past: int, horizon: int) -> Any:
    """A Dense layer that begins as a mean over the past."""
    return layers.Dense(horizon, kernel_initializer=keras.initializers.Constant(1 / past))


def moving_average(x: Any, window: int) -> Any:
    """[B, L, C] → [B, L, C]; the edges stand for what is beyond them."""
    side = window // 2
    edges = tf.repeat(x[:, :1], side, axis=1), tf.repeat(x[:, -1:], side, axis=1)
    return tf.nn.avg_pool1d(tf.concat([edges[0], x, edges[1]], axis=1), window, 1, "VALID")


def masked_mean(values: Any, known: Any) -> Any:
    """Mean of `values` where `known`; 0 where nothing is. Both [B, H, C]."""
    count = tf.maximum(tf.math.count_nonzero(known), 1)
    return tf.reduce_sum(tf.where(known, values, tf.zeros([], values.dtype))) / tf.cast(count, values.dtype)


class MeasuredError(keras.metrics.Metric):
    """Mean of |forecast - measured| ** power over hours that were measured: 1 is the MAE, 2 the MSE."""

    def __init__(self, power: int) -> None:
        super().__init__(name="mse" if power == 2 else "mae")
        self.power = power
        self.total = self.add_variable((), initializer="zeros", name="total")
        self.count = self.add_variable((), initializer="zeros", name="count")

    def update_state(self, measured: Any, forecast: Any, sample_weight: Any = None) -> None:
        """measured: values [B, H, C], and whether they are known [B, H, C]; forecast [B, H, C]."""
        values, known = measured
        errors = tf.abs(tf.cast(forecast, tf.float32) - tf.cast(values, tf.float32)) ** self.power
        self.total.assign_add(tf.reduce_sum(tf.where(known, errors, 0.0)))
        self.count.assign_add(tf.cast(tf.math.count_nonzero(known), tf.float32))

    def result(self) -> Any:
        return self.total / self.count
