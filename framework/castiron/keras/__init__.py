"""The TensorFlow wing: the plan applied, steps, scaling, optimizers, through Keras on TensorFlow.

model = enforce(keras_model, "bf16-mixed")          # and compile, fit, evaluate, predict as ever

with transaction(model, optimizer, policy) as step:  # a loop of one's own
    for batch in batches:
        step(loss_of, batch)
"""

from __future__ import annotations

import keras as _keras

from castiron.diagnostics import ConfigError, finding
from castiron.keras.capability import device_capability
from castiron.keras.enforcement import enforce
from castiron.keras.inputs import as_dataset, cast_inputs
from castiron.keras.loss import to_loss_dtype
from castiron.keras.modules import describe
from castiron.keras.precision import Precision, apply, departures
from castiron.keras.replaying import replay_incident
from castiron.keras.scaling import make_scaler
from castiron.keras.switches import matmul_switches
from castiron.keras.transaction import transaction

if _keras.backend.backend() != "tensorflow":
    raise ConfigError(
        finding(
            "X812",
            "Keras runs on another framework than TensorFlow.",
            expected="KERAS_BACKEND=tensorflow",
            received=f"KERAS_BACKEND={_keras.backend.backend()}",
            remedy="Set KERAS_BACKEND=tensorflow before Keras is imported.",
        )
    )

__all__ = [
    "Precision",
    "apply",
    "as_dataset",
    "cast_inputs",
    "departures",
    "describe",
    "device_capability",
    "enforce",
    "make_scaler",
    "matmul_switches",
    "replay_incident",
    "to_loss_dtype",
    "transaction",
]
