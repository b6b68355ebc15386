"""Lightning's strategy for the devices that a config asks for."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from castiron.diagnostics import ConfigError, Place, finding
from castiron.lightning.sharding import Sharded
from castiron.policy import PrecisionPolicy
from castiron.torch.guard import UPDATED
from castiron.training.config import RunConfig
from castiron.training.ranks import rank_here

SEVERAL = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp")
"""What `trainer.strategy` may be where several processes train."""


def devices(config: RunConfig, policy: PrecisionPolicy, world: int) -> dict[str, Any]:
    """Arguments of a Trainer: how many devices it trains on, and how they train together.

    Args:
        world: processes that train; 1 also where a run of several is evaluated.

    Raises:
        ConfigError: the strategy is none of those, or not for this policy (X815).
    """
    trainer = config.trainer
    if world == 1:
        name = trainer.strategy if trainer.devices * trainer.nodes == 1 else "auto"
        if name == "fsdp":
            raise _refused("There is nothing to share among the devices of one process.", "auto", name)
        return {"devices": 1, "strategy": name}
    name = trainer.strategy
    if name not in SEVERAL:
        raise _refused("This strategy is not for several processes of a recipe.", ", ".join(SEVERAL), name)
    strategy: Any
    if name == "fsdp":
        _check_sharded(config, policy)
        strategy = Sharded(policy)
    else:
        strategy = DDPStrategy(find_unused_parameters=name == "ddp_find_unused_parameters_true")
    return {"devices": trainer.devices, "num_nodes": trainer.nodes, "strategy": strategy}


def environment() -> list[ClusterEnvironment]:
    """Who started these processes, for Lightning, which would guess; none for one process."""
    here = rank_here()
    if here is None:
        return []
    return [SLURMEnvironment(auto_requeue=False) if here.by == "srun" else TorchElasticEnvironment()]


def _check_sharded(config: RunConfig, policy: PrecisionPolicy) -> None:
    """What cannot be done to a model of which each process has a share."""
    refused = {
        "trainer.ema": config.trainer.ema is not None,
        "trainer.compile": config.trainer.compile,
        "precision.scaling": policy.scaling.kind != "none",
        "precision.updates.master": policy.updates.master is not None,
        "precision.updates.rounding": policy.updates.rounding != "nearest",
        "guard.response": policy.guard.response in ("rollback", "promote"),
        # looked at after the optimizer's step, which then has to be undone on every share
        "guard.watch": not UPDATED.isdisjoint(policy.guard.watch),
    }
    for key, is_asked in refused.items():
        if is_asked:
            raise ConfigError(
                finding(
                    "X815",
                    f"'{key}' does not go with fsdp, where each process has a share of the model only.",
                    place=Place(key=key),
                    expected="strategy ddp, or this left at its default",
                    received="strategy fsdp",
                    remedy="Say trainer.strategy=ddp, or leave the setting out.",
                )
            )


def _refused(message: str, expected: str, received: str) -> ConfigError:
    place = Place(key="trainer.strategy")
    return ConfigError(finding("X815", message, place=place, expected=expected, received=received))
