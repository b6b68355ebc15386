"""Optimizers from a config, with the arithmetic that the same config has in the other wing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from castiron.training.optimizer_settings import OptimizerSettings
from castiron.training.schedules import ScheduleSettings, factor_of


class BiasCorrectedAdam(keras.optimizers.Adam):
    """Adam with eps beside the bias-corrected root, as Kingma and Ba's Algorithm 1 and PyTorch have it.

    Keras adds eps before the correction ("epsilon hat"): in the first steps, where the correction is large,
    that is up to thirty times as much.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        dtype = variable.dtype
        lr, gradient = tf.cast(learning_rate, dtype), tf.cast(gradient, dtype)
        step = tf.cast(self.iterations + 1, dtype)
        one, beta_1, beta_2 = (tf.cast(x, dtype) for x in (1.0, self.beta_1, self.beta_2))
        first = tf.cast(m, dtype) + (gradient - tf.cast(m, dtype)) * (one - beta_1)
        second = tf.cast(v, dtype) * beta_2 + tf.square(gradient) * (one - beta_2)
        self.assign(m, first)
        self.assign(v, second)
        root = tf.sqrt(second) / tf.sqrt(one - tf.pow(beta_2, step)) + tf.cast(self.epsilon, dtype)
        self.assign_sub(variable, lr / (one - tf.pow(beta_1, step)) * first / root)


class BiasCorrectedAdamW(BiasCorrectedAdam):
    """The same with decoupled weight decay (Loshchilov and Hutter)."""


class CoupledDecay:
    """Weight decay added to the gradient (L2), as PyTorch has it for all but AdamW."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, gradient: Any, parameter: Any) -> Any:
        return gradient + tf.cast(self.decay, gradient.dtype) * tf.cast(parameter, gradient.dtype)


def build_optimizer(settings: OptimizerSettings) -> Any:
    """The Keras optimizer that a config declares. Decay that is added to the gradient is not in it: see
    `coupled_decay`.

    Raises:
        ValueError: an unknown name.
    """
    lr = settings.lr
    makers: dict[str, Callable[[], Any]] = {
        "adamw": lambda: BiasCorrectedAdamW(
            lr, *settings.betas, epsilon=settings.eps, weight_decay=settings.weight_decay or None
        ),
        "adam": lambda: BiasCorrectedAdam(lr, *settings.betas, epsilon=settings.eps),
        "sgd": lambda: TorchSGD(lr, settings.momentum, settings.nesterov),
        "rmsprop": lambda: TorchRMSprop(lr, settings.momentum, settings.eps),
        "adagrad": lambda: keras.optimizers.Adagrad(lr, initial_accumulator_value=0.0, epsilon=settings.eps),
    }
    if settings.name not in makers:
        raise ValueError(f"Expected an optimizer ({', '.join(makers)}). Received {settings.name!r}.")
    return makers[settings.name]()


def coupled_decay(settings: OptimizerSettings) -> CoupledDecay | None:
    """The weight decay that is added to gradients; None where there is none, or it is the optimizer's own."""
    if settings.name == "adamw" or not settings.weight_decay:
        return None
    return CoupledDecay(settings.weight_decay)


class TorchSGD(keras.optimizers.SGD):
    """SGD whose momentum is taken before the learning rate: v = m·v + g, w = w - lr·v.

    Keras takes it after, so that a change of the rate acts on old gradients too.
    """

    def __init__(self, lr: float, momentum: float, nesterov: bool) -> None:
        super().__init__(learning_rate=lr, momentum=momentum, nesterov=nesterov)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        dtype = variable.dtype
        lr, gradient = tf.cast(learning_rate, dtype), tf.cast(gradient, dtype)
        if self.momentum == 0:
            self.assign_sub(variable, lr * gradient)
            return
        velocity = self.momentums[self._get_variable_index(variable)]
        factor = tf.cast(self.momentum, dtype)
        new = factor * tf.cast(velocity, dtype) + gradient
        self.assign(velocity, new)
        self.assign_sub(variable, lr * (gradient + factor * new if self.nesterov else new))


class TorchRMSprop(keras.optimizers.RMSprop):
    """RMSprop with eps outside of the root, and momentum before the learning rate."""

    def __init__(self, lr: float, momentum: float, eps: float) -> None:
        super().__init__(learning_rate=lr, rho=0.99, momentum=momentum, epsilon=eps)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index, dtype = self._get_variable_index(variable), variable.dtype
        lr, gradient = tf.cast(learning_rate, dtype), tf.cast(gradient, dtype)
        rho = tf.cast(self.rho, dtype)
        square = rho * tf.cast(self._velocities[index], dtype) + (1 - rho) * tf.square(gradient)
        self.assign(self._velocities[index], square)
        step = gradient / (tf.sqrt(square) + tf.cast(self.epsilon, dtype))
        if self.momentum > 0:
            step = tf.cast(self.momentum, dtype) * tf.cast(self._momentums[index], dtype) + step
            self.assign(self._momentums[index], step)
        self.assign_sub(variable, lr * step)


class Schedule:
    """Sets an optimizer's learning rate before each step, from the number of steps committed so far."""

    def __init__(self, optimizer: Any, lr: float, schedule: ScheduleSettings, steps: int) -> None:
        self._optimizer, self._lr = optimizer, lr
        constant = schedule.name == "constant" and not schedule.warmup
        self._factor = None if constant else factor_of(schedule, steps)
        self.scale = 1.0
        """What a response to a bad step made of the rate."""

    def rate(self, step: int) -> float:
        """The learning rate of a step (from 0)."""
        return self._lr * self.scale * (1.0 if self._factor is None else self._factor(step))

    def set(self, step: int) -> None:
        """Give the optimizer the rate of this step."""
        self._optimizer.learning_rate.assign(self.rate(step))
