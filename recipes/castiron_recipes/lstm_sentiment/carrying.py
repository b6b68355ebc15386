"""The weights of the two models, each under the other's names and in the other's layouts.

Both order the gates input, forget, cell, output. Keras multiplies by a kernel from the right, PyTorch by its
transpose; PyTorch keeps two biases that it adds up, Keras their sum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

_LAYER = re.compile(r"(lstm\.(?:ahead|back)\.\d+)\.")


def to_tensorflow(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From the names of `model.py` to those of `keras_model.py`."""
    found = {
        "embedding.embeddings": weights["embedding.weight"],
        "head.kernel": weights["head.weight"].T,
        "head.bias": weights["head.bias"],
    }
    for layer in _layers(weights):
        found[f"{layer}.cell.kernel"] = weights[f"{layer}.weight_ih_l0"].T
        found[f"{layer}.cell.recurrent_kernel"] = weights[f"{layer}.weight_hh_l0"].T
        found[f"{layer}.cell.bias"] = weights[f"{layer}.bias_ih_l0"] + weights[f"{layer}.bias_hh_l0"]
    return found


def to_torch(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From the names of `keras_model.py` to those of `model.py`."""
    found = {
        "embedding.weight": weights["embedding.embeddings"],
        "head.weight": weights["head.kernel"].T,
        "head.bias": weights["head.bias"],
    }
    for layer in _layers(weights):
        found[f"{layer}.weight_ih_l0"] = weights[f"{layer}.cell.kernel"].T
        found[f"{layer}.weight_hh_l0"] = weights[f"{layer}.cell.recurrent_kernel"].T
        found[f"{layer}.bias_ih_l0"] = weights[f"{layer}.cell.bias"]
        found[f"{layer}.bias_hh_l0"] = np.zeros_like(weights[f"{layer}.cell.bias"])
    return found


def _layers(weights: Mapping[str, np.ndarray]) -> list[str]:
    return list(dict.fromkeys(met[1] for name in weights if (met := _LAYER.match(name))))
