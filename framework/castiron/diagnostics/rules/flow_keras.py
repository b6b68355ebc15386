"""F330 to F334: the flow of dtypes in Keras, where it has ways of its own.

The examples are models and what is done with them; tests run them.
"""

from __future__ import annotations

from castiron.diagnostics.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        code="F330",
        name="floatx-not-as-declared",
        severity="error",
        what="Keras's default float format (`keras.config.floatx()`) is not the declared one.",
        why="It is the format of every layer, loss, metric and tensor that is made without a dtype, for the "
        "whole process. Set late it switches only what is made from then on: a float32 model gets a float64 "
        "loss, and its gradients are cast back.",
        remedy="Call keras.config.set_floatx('float32') before anything is built, or never; declare float64 "
        "as a policy.",
        bad="model = keras.Sequential([keras.Input((8,)), L.Dense(4)])\nkeras.config.set_floatx('float64')",
        good="model = keras.Sequential([keras.Input((8,)), L.Dense(4)])",
    ),
    Rule(
        code="F331",
        name="layers-in-two-formats",
        severity="error",
        what="Some layers of a model are stored in float32 and others in float64.",
        why="set_floatx('float64') between two layers switches half of the model. Keras casts between the "
        "halves without a word: float64 is paid for, and float32 is what comes out.",
        remedy="Build the whole model under one floatx, or let castiron.keras.enforce put it under a policy.",
        bad="first = L.Dense(8)\nmodel = keras.Sequential([keras.Input((8,)), first, "
        "L.Dense(4, dtype='float64')])",
        good="model = keras.Sequential([keras.Input((8,)), L.Dense(8), L.Dense(4)])",
    ),
    Rule(
        code="F332",
        name="loss-not-scaled",
        severity="warning",
        what="A model computes in float16, and nothing scales its loss.",
        why="Gradients below 6e-08 are zero in float16. Keras scales the loss by itself only where the "
        "model's policy is named mixed_float16 and its own train_step runs; not in a loop of one's own, and "
        "not for a policy with another name.",
        remedy="Use castiron.keras.enforce or transaction with fp16-mixed, or wrap the optimizer: "
        "keras.optimizers.LossScaleOptimizer(optimizer).",
        bad="model = keras.Sequential([keras.Input((8,)), L.Dense(4, dtype='mixed_float16')])\n"
        "optimizer = keras.optimizers.Adam()",
        good="model = keras.Sequential([keras.Input((8,)), L.Dense(4, dtype='mixed_float16')])\n"
        "optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())",
    ),
    Rule(
        code="F333",
        name="whole-numbers-as-measurements",
        severity="warning",
        what="A recurrent or convolutional layer is given integers of the batch as if they were "
        "measurements.",
        why="keras.utils.pad_sequences gives int32 unless it is told otherwise: a series of 0.7, 1.9 arrives "
        "as 0, 1. Ids that were meant for an Embedding arrive as sizes.",
        remedy="Pad with dtype='float32'; give ids to an Embedding.",
        bad="model = keras.Sequential([keras.Input((8, 1)), L.LSTM(4)])\n"
        "x = keras.utils.pad_sequences([[0.7, 1.9]] * 4, maxlen=8)[..., None]",
        good="model = keras.Sequential([keras.Input((8, 1)), L.LSTM(4)])\n"
        "x = keras.utils.pad_sequences([[0.7, 1.9]] * 4, maxlen=8, dtype='float32')[..., None]",
    ),
    Rule(
        code="F334",
        name="built-under-another-policy",
        severity="error",
        what="A layer's dtype policy says one format, and its variables were made in another.",
        why="Variables are made when a layer is built. A policy that is set afterwards changes what the "
        "layer says of itself, not what it stores.",
        remedy="Set the policy before the layer is built, or let castiron.keras.enforce cast the variables.",
        bad="model = keras.Sequential([keras.Input((8,)), L.Dense(4)])\n"
        "model.layers[0].dtype_policy = keras.DTypePolicy('bfloat16')",
        good="model = keras.Sequential([keras.Input((8,)), L.Dense(4, dtype='bfloat16')])",
    ),
)
