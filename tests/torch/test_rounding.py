"""Stochastic rounding: unbiased, seeded, exact where there is nothing to round."""

from __future__ import annotations

import pytest
import torch

from castiron.torch.rounding import stochastic_round_


def rounded(source: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return stochastic_round_(torch.empty_like(source, dtype=torch.bfloat16), source, generator)


@pytest.mark.parametrize("value", [1.001, -1.0001, 3.14159, 1e-20, 1.1754944e-38, 6e-40, 1e30, 255.9])
def test_the_mean_is_the_value(value: float) -> None:
    """Of n draws between neighbours a and b, the mean is within 5 standard errors: |b − a| / (2 √n) each."""
    n = 40_000
    draws = rounded(torch.full((n,), value)).double()
    neighbours = draws.unique()
    assert 1 <= len(neighbours) <= 2
    exact = torch.tensor(value, dtype=torch.float32).double()
    assert neighbours.min() <= exact <= neighbours.max()
    spacing = (neighbours.max() - neighbours.min()).item()
    assert abs(draws.mean().item() - exact.item()) <= 5 * spacing / (2 * n**0.5)


def test_the_probability_is_the_distance() -> None:
    low, high = 1.0, 1.0 + 2.0**-7
    for share in (0.1, 0.5, 0.9):
        draws = rounded(torch.full((40_000,), low + share * (high - low)), seed=5).float()
        assert (draws == high).double().mean().item() == pytest.approx(share, abs=0.015)


def test_what_bfloat16_holds_stays_what_it_is() -> None:
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    kept = rounded(every.float())
    same = (kept.view(torch.int16) == every.view(torch.int16)) | (kept.isnan() & every.isnan())
    assert same.all()


def test_finite_values_stay_finite() -> None:
    largest = torch.full((1000,), torch.finfo(torch.float32).max)
    assert (rounded(largest) == torch.finfo(torch.bfloat16).max).all()
    assert (rounded(-largest) == torch.finfo(torch.bfloat16).min).all()


def test_a_seed_repeats_and_another_differs() -> None:
    x = torch.rand(1000)
    assert torch.equal(rounded(x, 1), rounded(x, 1))
    assert not torch.equal(rounded(x, 1), rounded(x, 2))


def test_layout_does_not_matter() -> None:
    x = torch.rand(8, 6).t()
    target = torch.empty(8, 6, dtype=torch.bfloat16).t()
    stochastic_round_(target, x)
    assert (target.float() - x).abs().max() < 2.0**-7


def test_other_formats_are_refused() -> None:
    with pytest.raises(TypeError, match="Expected float32 to bfloat16"):
        stochastic_round_(torch.ones(1).half(), torch.ones(1))
