"""Copies of a model and a batch without numbers: shapes, formats and devices only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode

from castiron.torch.dtypes import torch_dtype
from castiron.torch.trees import map_tensors


def fake_mode() -> FakeTensorMode:
    """A mode of fake tensors that takes real ones as they come (constants, NumPy arrays)."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_model(
    model: nn.Module, mode: FakeTensorMode, device: torch.device, formats: Mapping[str, str]
) -> nn.Module:
    """A deep copy of a model whose parameters and buffers are fake, on `device`.

    Ties and lists of weights (`_flat_weights` of recurrent layers) stay what they are. Takes no memory for
    the tensors, also where the model is on the meta device.

    Args:
        formats: full name of a parameter or buffer → the format that the plan gives it.
    """
    memo: dict[int, Any] = _left_out(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in memo:
            fake = _fake(parameter, mode, device, formats.get(name))
            memo[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
            memo[id(parameter)].__dict__.update(parameter.__dict__)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if id(buffer) not in memo:
            memo[id(buffer)] = _fake(buffer, mode, device, formats.get(name))
    with FakeCopyMode(mode):
        return copy.deepcopy(model, memo)


def real_model(model: nn.Module) -> nn.Module:
    """A deep copy of a model, numbers and all."""
    return copy.deepcopy(model, _left_out(model))


def fake_batch(tree: Any, mode: FakeTensorMode, device: torch.device) -> Any:
    """The batch without its numbers."""
    return map_tensors(lambda t: _fake(t, mode, device, None), tree)


def _fake(tensor: Tensor, mode: FakeTensorMode, device: torch.device, format: str | None) -> Tensor:
    if isinstance(tensor, FakeTensor) and tensor.fake_mode is mode:
        return tensor
    dtype = torch_dtype(format) if format is not None and tensor.is_floating_point() else tensor.dtype
    where = torch.device(device) if tensor.device.type == "meta" else tensor.device
    if tensor.layout is not torch.strided:
        with mode:
            return torch.empty(tensor.shape, dtype=dtype, device=where)
    # built without the mode: its own conversion would keep the tensor itself alive
    meta = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=dtype, device="meta")
    return FakeTensor(mode, meta, where)


def _left_out(model: nn.Module) -> dict[int, Any]:
    """What a copy of a model does without: the trainer that a LightningModule hangs on."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name in ("_trainer", "_fabric"):
            found = module.__dict__.get(name)
            if found is not None:
                memo[id(found)] = None
    return memo
