"""Trains on two virtual CPUs under a MirroredStrategy, plain and guarded; tells as JSON how it went."""

from __future__ import annotations

import json
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from castiron.keras import enforce

L = keras.layers
CPUS = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(CPUS[0], [tf.config.LogicalDeviceConfiguration()] * 2)
STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X.sum(1, keepdims=True)


def trained(policy: Any, data: Any = X) -> Any:
    keras.utils.set_random_seed(3)
    with STRATEGY.scope():
        layers = [keras.Input((4,)), L.Dense(8), L.BatchNormalization(), L.Dropout(0.1), L.Dense(1)]
        model = keras.Sequential(layers)
        if policy is not None:
            enforce(model, policy)
        # Keras cannot accumulate gradients under a strategy: it merges replicas within a condition.
        optimizer = keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9)
        model.compile(optimizer, "mse", metrics=["mae"])
    model.fit(data, Y, batch_size=16, epochs=2, verbose=0, shuffle=False)
    return model


def state(model: Any) -> list[bytes]:
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return [part.numpy().tobytes() for v in variables for part in v._value.values]


def main() -> None:
    warnings.simplefilter("ignore")
    hold = {"preset": "float32", "guard": {"response": "hold"}}
    plain, guarded = trained(None), trained(hold)
    told: dict[str, Any] = {
        name: [v.numpy().tolist() for v in model.variables if v.dtype == "float32"]
        for name, model in (("plain", plain), ("guarded", guarded))
    }
    guarded.reset_metrics()  # as `fit` does first
    before = state(guarded)
    bad = X[:16].copy()
    bad[13, 2] = np.nan
    guarded.fit(bad, Y[:16], batch_size=16, verbose=0, shuffle=False)
    incident = guarded.castiron.incidents[0]
    told |= {
        "unchanged": state(guarded) == before,
        "committed": guarded.castiron.committed,
        "held": guarded.castiron.held,
        "incident": {
            "code": incident.code,
            "rank": incident.rank,
            "micro_batch": incident.micro_batch,
            "rows": [r.index for r in incident.rows],
            "seen": incident.seen,
        },
    }
    initial = 2.0**22
    scaled = trained({"preset": "fp16-mixed", "scaling": {"kind": "dynamic", "initial": initial}})
    scales = [float(v) for v in scaled.castiron.scaler.variables()[0].values]
    told |= {"initial": initial, "scale": scaled.castiron.scaler.get_scale(), "scales": scales}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
