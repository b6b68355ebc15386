"""What several processes may be asked for, and what is refused before one of them trains."""

from __future__ import annotations

import pytest

from castiron.diagnostics import ConfigError
from castiron.lightning.strategies import devices
from castiron.training import load_config


def refusal(*overrides: str, world: int = 2) -> str:
    """The message that these settings are refused with."""
    config = load_config("lstm-sentiment", ["trainer.devices=2", *overrides]).config
    with pytest.raises(ConfigError) as caught:
        devices(config, config.precision, world)
    (found,) = caught.value.findings
    assert found.code == "X815"
    return f"{found.place.key}: {found.message}"


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("trainer.compile=true", "trainer.compile"),
        ("trainer.ema=0.99", "trainer.ema"),
        ("precision=fp16-mixed", "precision.scaling"),
        ("precision={preset: bf16-true, updates: {master: float32}}", "precision.updates.master"),
        ("precision={preset: bf16-true, updates: {rounding: stochastic}}", "precision.updates.rounding"),
        ("guard.response=rollback", "guard.response"),
        ("guard.response=promote", "guard.response"),
        ("guard.watch=[loss, gradients, parameters]", "guard.watch"),
        ("guard.watch=[loss, gradients, optimizer]", "guard.watch"),
    ],
)
def test_what_a_share_of_a_model_cannot_do_is_refused(setting: str, key: str) -> None:
    told = refusal("trainer.strategy=fsdp", setting)
    assert told == f"{key}: '{key}' does not go with fsdp, where each process has a share of the model only."


def test_a_strategy_that_castiron_does_not_lead_is_refused() -> None:
    assert refusal("trainer.strategy=deepspeed").startswith(
        "trainer.strategy: This strategy is not for several"
    )


def test_one_process_has_nothing_to_share() -> None:
    config = load_config("lstm-sentiment", ["trainer.strategy=fsdp"]).config
    with pytest.raises(ConfigError, match="nothing to share"):
        devices(config, config.precision, 1)


def test_a_run_of_several_processes_is_evaluated_by_one() -> None:
    config = load_config("lstm-sentiment", ["trainer.devices=2", "trainer.strategy=fsdp"]).config
    assert devices(config, config.precision, 1) == {"devices": 1, "strategy": "auto"}
