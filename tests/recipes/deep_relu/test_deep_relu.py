"""The recipe `deep-relu`: magnitudes stay from layer to layer."""

from __future__ import annotations

import torch

from castiron_recipes.deep_relu.model import DeepNet


def test_magnitudes_stay() -> None:
    torch.manual_seed(0)
    model = DeepNet(32, 128, 24)
    rows = torch.randn(64, 32)
    with torch.no_grad():
        assert 0.2 < float(model.body(rows).square().mean() / rows.square().mean()) < 5
        assert model(rows).shape == (64,)
