"""Weights of layers that both frameworks have, under each other's names and in each other's layouts.

Keras multiplies by a kernel from the right, PyTorch by its transpose; a kernel of a convolution is [height,
width, before, after] in Keras and [after, before, height, width] in PyTorch. Layers have the same paths in
both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

_NORMS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_BACK = {keras: torch for torch, keras in _NORMS.items()}
_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_TORCH_LSTM = re.compile(r"(.+)\.(?:weight|bias)_(?:ih|hh)_l(\d+)")
_KERAS_LSTM = re.compile(r"(.+)\.(\d+)\.cell\.(kernel|recurrent_kernel|bias)")


def to_tensorflow(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of PyTorch's Linear, Conv2d, Embedding (in a list `embeddings`), norms and LSTM; other names stay.

    Each layer of an LSTM is one of a list in Keras.
    """
    found = {}
    for name, value in weights.items():
        if met := _TORCH_LSTM.fullmatch(name):
            path, layer = met.groups()
            own, of = f"{path}.{layer}.cell", {k: weights[f"{path}.{k}_l{layer}"] for k in _PARTS}
            found[f"{own}.kernel"], found[f"{own}.recurrent_kernel"] = of["weight_ih"].T, of["weight_hh"].T
            found[f"{own}.bias"] = of["bias_ih"] + of["bias_hh"]
            continue
        path, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        norm = path and weights.get(f"{path}.weight", value).ndim == 1
        if norm and leaf in _NORMS:
            leaf = _NORMS[leaf]
        elif leaf == "weight" and path.startswith("embeddings."):
            leaf = "embeddings"
        elif leaf == "weight":
            leaf, value = "kernel", value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)
        found[f"{path}.{leaf}" if path else leaf] = value
    return found


def to_torch(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of Keras's Dense, Conv2D, Embedding, norms and LSTM (in a list); other names stay."""
    found = {}
    for name, value in weights.items():
        if met := _KERAS_LSTM.fullmatch(name):
            path, layer, leaf = met.groups()
            if leaf == "bias":  # PyTorch keeps two, which it adds up
                found[f"{path}.bias_ih_l{layer}"] = value
                found[f"{path}.bias_hh_l{layer}"] = np.zeros_like(value)
            else:
                found[f"{path}.weight_{'ih' if leaf == 'kernel' else 'hh'}_l{layer}"] = value.T
            continue
        path, _, leaf = name.rpartition(".")
        if leaf == "moving_mean":
            found[f"{path}.num_batches_tracked"] = np.array(
                0, np.int64
            )  # of no use where there is a momentum
        if leaf == "kernel":
            leaf, value = "weight", value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        leaf = "weight" if leaf == "embeddings" else _BACK.get(leaf, leaf)
        found[f"{path}.{leaf}" if path else leaf] = value
    return found
