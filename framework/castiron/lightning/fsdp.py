"""The policy under Lightning's FSDP strategy: FSDP's own mixed precision, set from the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy

from castiron.diagnostics import ConfigError, Place, finding
from castiron.lightning.precision import PrecisionPlugin
from castiron.policy import PrecisionPolicy
from castiron.torch.dtypes import torch_dtype

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecision


class FSDPPrecisionPlugin(PrecisionPlugin, FSDPPrecision):
    """`PrecisionPlugin` for `FSDPStrategy`, which takes only plugins of its own kind.

    Parameters are gathered in the compute format, gradients are reduced in the accumulate format, buffers are
    kept in the buffers format. (Lightning's own plugin reduces in the compute format.)

    Raises:
        ConfigError: the policy scales the loss; an overflow in one shard must hold the others, which this
            plugin does not arrange.
    """

    def __init__(self, policy: PrecisionPolicy | str | Mapping[str, Any]) -> None:
        PrecisionPlugin.__init__(self, policy)
        if self.policy.scaling.kind != "none":
            raise ConfigError(
                finding(
                    "X815",
                    "Loss scaling does not go with FSDP here: each shard would decide for itself.",
                    place=Place(key="precision.scaling"),
                    expected="scaling none, or another strategy",
                    received=f"scaling {self.policy.scaling.kind} with FSDP",
                    remedy="Use bf16-mixed, which needs no scaling.",
                )
            )

    @property
    def mixed_precision_config(self) -> MixedPrecision:
        from torch.distributed.fsdp import MixedPrecision

        compute = "float32" if self.policy.compute == "tf32" else self.policy.compute
        return MixedPrecision(
            param_dtype=torch_dtype(compute),
            reduce_dtype=torch_dtype(self.policy.accumulate),
            buffer_dtype=torch_dtype(self.policy.buffers),
        )

    def clip_grad_by_norm(self, optimizer: torch.optim.Optimizer, clip_val: int | float) -> None:
        FSDPPrecision.clip_grad_by_norm(self, optimizer, clip_val)


def is_fsdp(strategy: object) -> bool:
    """Whether a Trainer's `strategy` argument means FSDP."""
    return isinstance(strategy, FSDPStrategy) or (isinstance(strategy, str) and strategy.startswith("fsdp"))
