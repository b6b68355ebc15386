"""The noise of accumulation order, measured while a model trains: what the NumPy reference says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from castiron.health.dynamics import accumulation_noise
from castiron.health.dynamics import parts_of as parts_by_reference
from castiron.health.snapshot import Snapshot
from castiron.policy import PrecisionPolicy
from castiron.torch.health.monitor import HealthMonitor
from castiron.torch.health.order import OrderWatch, parts_of


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=9),
        elements=st.floats(width=32),
    ),
    name=st.sampled_from(["float32", "bfloat16", "float16", "float64"]),
    axis=st.sampled_from([-1, 1]),
)
def test_equal_to_the_reference(values: np.ndarray, name: str, axis: int) -> None:
    gradient, dtype = torch.from_numpy(values), getattr(torch, name)
    watch = OrderWatch()
    watch.see("layer", gradient, axis)
    watch.see("other", gradient[:1] * 2, axis)
    found = watch.take({"layer": dtype})
    if values.size // values.shape[axis] < 8:
        assert found == {}
        return
    with np.errstate(all="ignore"):
        expected = accumulation_noise(parts_of(gradient, axis).numpy(), name)
    assert found.get("layer") == (None if expected is None else pytest.approx(expected, rel=1e-12, abs=0))
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(
            parts_of(gradient, axis).numpy(), parts_by_reference(values, axis), rtol=1e-12, atol=1e-300
        )
    assert watch.take({"layer": dtype}) == {}


def test_units_are_a_sample() -> None:
    gradient = torch.randn(16, 300)
    np.testing.assert_allclose(
        parts_of(gradient, -1), parts_by_reference(gradient.numpy()[:, ::5]), rtol=1e-12
    )


def measured(model: nn.Module, x: torch.Tensor, what_if_every: int = 1) -> list[Snapshot]:
    """The snapshots of two steps on the same rows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen: list[Snapshot] = []
    health = HealthMonitor(
        model,
        optimizer,
        PrecisionPolicy.preset("float32", health={"every": 1}),
        histograms_every=1,
        what_if_every=what_if_every,
        on_snapshot=seen.append,
    )
    for _ in range(2):
        with health.step() as step:
            optimizer.zero_grad()
            loss = model(x).float().square().sum()
            step.see_loss(loss)
            loss.backward()
            step.before_update()
            optimizer.step()
    health.remove()
    return seen


def test_the_layers_of_a_model_where_what_if_is_asked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6, 5), nn.ReLU(), nn.Linear(5, 2))
    first, second = measured(model, torch.randn(32, 3, 8), what_if_every=2)
    assert set(first.noise) == {"0", "2", "4"}, "layers with parameters"
    assert all(0 < noise < 1e-4 for noise in first.noise.values())
    assert second.noise == {}


def test_the_sum_of_the_parts_is_the_gradient_of_a_bias() -> None:
    torch.manual_seed(0)
    for layer, x, axis in (
        (nn.Linear(6, 5), torch.randn(32, 7, 6), -1),
        (nn.Conv2d(3, 4, 3), torch.randn(16, 3, 8, 8), 1),
    ):
        y = layer(x)
        y.retain_grad()
        y.square().sum().backward()
        assert layer.bias is not None
        torch.testing.assert_close(parts_of(y.grad, axis).sum(0).float(), layer.bias.grad)


def test_in_the_format_that_gradients_are_kept_in() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    wide = nn.Linear(8, 4)
    narrow = nn.Linear(8, 4).bfloat16()
    noise = [measured(m, x.to(m.weight.dtype))[0].noise[""] for m in (wide, narrow)]
    assert noise[0] < 1e-5 < 1e-3 < noise[1]


def test_a_layer_that_is_called_several_times() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    assert set(measured(Twice(), torch.randn(16, 4))[0].noise) == {"layer"}
