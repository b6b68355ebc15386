"""Run by `torch.distributed.run` with four processes: gradients of 16 bits, averaged under a policy.

Prints the format in which they were added up, and the gradient that rank 0 has, of 256 on rank 0 and 1 on the
others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from castiron.torch import reducing


def main() -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    added_up_in = set()
    own = distributed.all_reduce

    def all_reduce(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        added_up_in.add(str(tensor.dtype))
        return own(tensor, *arguments, **named)

    distributed.all_reduce = all_reduce
    model = DistributedDataParallel(nn.Linear(1, 1, bias=False).to(torch.bfloat16))
    assert reducing.reduce_in(model, torch.float32)
    assert not reducing.reduce_in(model, torch.float32)  # it is done
    model(torch.full((1, 1), 256.0 if rank == 0 else 1.0, dtype=torch.bfloat16)).sum().backward()
    gradient = model.module.weight.grad
    assert gradient.dtype is torch.bfloat16
    assert not reducing.reduce_in(DistributedDataParallel(nn.Linear(1, 1)), torch.float32)  # nothing to do
    if rank == 0:
        print("gradients", *added_up_in, gradient.item())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
