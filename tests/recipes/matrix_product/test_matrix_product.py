"""The recipe `matrix-product`: both ways of summing, its lengths."""

from __future__ import annotations

import pytest
import torch

from castiron.diagnostics import ConfigError
from castiron.training.config_file import load_config
from castiron_recipes.matrix_product.model import InOrder, Products


def test_sums_in_order_are_those_of_the_kernel() -> None:
    torch.manual_seed(0)
    layer = InOrder(7, 3, bias=False)
    rows = torch.randn(5, 7)
    torch.testing.assert_close(layer(rows), torch.nn.functional.linear(rows, layer.weight))
    total = torch.zeros(5, 3)
    for k in range(7):
        total += rows[:, k : k + 1] * layer.weight[:, k]
    assert torch.equal(layer(rows), total)


def test_signs() -> None:
    for signs, least in ((False, 0.0), (True, -1.0)):
        model = Products([4, 64], 16, signs=signs, in_order=False)
        weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        assert least <= weights.min() < least + 0.2
        assert 0.8 < weights.max() <= 1


def test_lengths_ascend() -> None:
    with pytest.raises(ConfigError, match=r"expected numbers that ascend"):
        load_config("matrix-product", ["model.lengths=[64, 16]"])
