"""The time step at which the output of a recurrent layer first is bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from castiron.torch.replay.values import bad_along


def first_bad_step(op: str, args: Sequence[Any], made: Sequence[Tensor]) -> int | None:
    """Time step, from 0, of a call of torch's `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.

    The forward direction is bad from its first bad step on, the backward one up to it.

    Args:
        args: of the call: of a padded input (input, hx, weights, bias, layers, dropout, train, bidirectional,
            batch_first), of a packed one (data, batch_sizes, hx, weights, bias, layers, dropout, train,
            bidirectional).
        made: its results, the outputs first.
    """
    if not made or len(args) != 9 or not isinstance(args[0], Tensor):
        return None
    output = made[0]
    packed = isinstance(args[1], Tensor) and args[1].dim() == 1 and not args[1].is_floating_point()
    bidirectional = bool(args[8] if packed else args[7])
    width = output.shape[-1] // 2 if bidirectional else output.shape[-1]
    time = 0 if packed or not args[8] else output.dim() - 2
    forwards = _steps(output[..., :width], time, args[1] if packed else None)
    if forwards:
        return forwards[0]
    backwards = _steps(output[..., width:], time, args[1] if packed else None) if bidirectional else []
    return backwards[-1] if backwards else None


def _steps(output: Tensor, time: int, batch_sizes: Tensor | None) -> list[int]:
    positions = bad_along(output, time)
    if batch_sizes is None:
        return positions
    ends = batch_sizes.cumsum(0).tolist()
    return sorted({next(t for t, end in enumerate(ends) if p < end) for p in positions})
