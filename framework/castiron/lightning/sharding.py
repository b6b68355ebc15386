"""A model of which each process has a share (torch's `fully_shard`, also called FSDP2), under a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from castiron.lightning.precision import PrecisionPlugin
from castiron.policy import PrecisionPolicy
from castiron.torch.boundaries import gathered_dtypes
from castiron.torch.dtypes import torch_dtype
from castiron.torch.trees import map_tensors


class Sharded(DDPStrategy):
    """Shares parameters, gradients and optimizer state among all processes.

    A layer that computes in a narrower format than it stores is gathered in that format, which is what it
    would cast its weights to anyway; others are gathered as they are stored. Gradients are reduced in the
    policy's accumulate format. Buffers are not shared: rank 0's are everybody's, as under DDP.

    Checkpoints hold whole tensors, and are those of a single process: any number of processes can go on.
    """

    def __init__(self, policy: PrecisionPolicy, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._policy = policy

    def configure_ddp(self) -> None:
        module = self.lightning_module
        assert module is not None
        root: nn.Module = getattr(module, "precision_root", module)
        device = self.root_device.type
        mesh = init_device_mesh(device, (self.world_size,))
        reduce = torch_dtype(self._policy.accumulate)
        plugin = self.precision_plugin
        assert isinstance(plugin, PrecisionPlugin)
        assert plugin.plan is not None
        for tensor in [*root.parameters(), *root.buffers()]:
            distributed.broadcast(tensor.detach(), src=0)
        for layer, dtype in gathered_dtypes(root, plugin.plan):
            if layer is not root:
                fully_shard(layer, mesh=mesh, mp_policy=_mixed(dtype, reduce))
        dtypes = dict(gathered_dtypes(root, plugin.plan))
        fully_shard(root, mesh=mesh, mp_policy=_mixed(dtypes.get(root), reduce))
        self.model = module

    def setup(self, trainer: pl.Trainer) -> None:
        # What DDPStrategy does to a model that is evaluated only, it would do to shares as well.
        if trainer.state.fn != TrainerFn.FITTING and _is_sharded(self.lightning_module):
            self.setup_precision_plugin()
            return
        super().setup(trainer)

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        for buffer in self._module.buffers():
            distributed.broadcast(buffer, src=0)
        return super().training_step(*arguments, **named)

    # --- whole tensors, in and out -----------------------------------------------------------------

    @property
    def _module(self) -> pl.LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Every parameter and buffer, whole. All processes have to call it."""
        return {name: _whole(value) for name, value in self._module.state_dict().items()}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        load_whole(self._module, checkpoint["state_dict"])

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state, whole. All processes have to call it."""
        state: dict[str, Any] = map_tensors(_whole, super().optimizer_state(optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, whole in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            shared = {
                index: {
                    name: _share(value, parameters[index])
                    if isinstance(value, Tensor) and value.shape == parameters[index].shape
                    else value
                    for name, value in state.items()
                }
                for index, state in whole["state"].items()
            }
            optimizer.load_state_dict({**whole, "state": shared})


@torch.no_grad()
def load_whole(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load whole tensors into a module whose parameters are shared.

    Raises:
        RuntimeError: a tensor is missing, or has another shape.
    """
    own = module.state_dict()
    if set(own) != set(state):
        raise RuntimeError(f"the tensors differ: {', '.join(sorted(set(own) ^ set(state))[:5])}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise RuntimeError(f"'{name}' has the shape {list(state[name].shape)}")
        value = state[name].to(tensor.device, tensor.dtype)
        tensor.copy_(_share(value, tensor))


def _share(whole: Tensor, like: Tensor) -> Tensor:
    """This process's share of a tensor that all have, as `like` is shared."""
    if not isinstance(like, DTensor):
        return whole
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def _whole(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    whole: Tensor = tensor.full_tensor().detach().cpu()
    return whole


def _mixed(gathered: torch.dtype | None, reduce: torch.dtype) -> MixedPrecisionPolicy:
    # Inputs are the policy's own business (castiron.torch.boundaries).
    return MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=reduce, cast_forward_inputs=False)


def _is_sharded(module: nn.Module | None) -> bool:
    return module is not None and any(isinstance(p, DTensor) for p in module.parameters())
