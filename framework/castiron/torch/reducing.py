"""Gradients of several processes, added up in the declared accumulate format (DDP)."""

# No `from __future__ import annotations`: DDP reads those of a hook, and refuses strings.
from typing import Any

import torch
from torch import Tensor, distributed
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel


def reduce_in(model: DistributedDataParallel, dtype: torch.dtype) -> bool:
    """Let gradients be averaged over all processes in `dtype`, each rounded to its own format once, after.

    Left alone, DDP adds up float16 and bfloat16 gradients in their own format: small ones are lost among many
    processes, and float16 overflows. Nothing is done where all gradients have this format, or where a
    communication hook is there already. → whether it was.
    """
    if all(p.dtype is dtype for p in model.parameters() if p.requires_grad) or model._comm_hooks:
        return False
    model.register_comm_hook(dtype, _mean)
    return True


def _mean(dtype: torch.dtype, bucket: distributed.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
    own: Tensor = bucket.buffer()
    wide = own.to(dtype).div_(distributed.get_world_size())
    work: Any = distributed.all_reduce(wide, async_op=True)
    future: Future[Tensor] = work.get_future().then(lambda done: own.copy_(done.value()[0]))
    return future
