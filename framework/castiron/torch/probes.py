"""Small layers of each family, to see what a device computes and how long it takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from castiron.policy import Family
from castiron.policy.sections import Islands
from castiron.torch.dtypes import NARROW
from castiron.torch.islands import island_context

Probe = Callable[[], None]
"""One forward and backward pass; raises where the device cannot do it."""


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


def _layer(family: Family) -> tuple[nn.Module, torch.Tensor]:
    """A layer and its input; well under a millisecond of float32 work on one core."""
    match family:
        case "matmul":
            return nn.Linear(256, 256), torch.randn(32, 256)
        case "conv":
            return nn.Conv2d(16, 16, 3, padding=1), torch.randn(2, 16, 16, 16)
        case "lstm":
            return nn.LSTM(64, 64), torch.randn(8, 8, 64)
        case "gru":
            return nn.GRU(64, 64), torch.randn(8, 8, 64)
        case "rnn":
            return nn.RNN(64, 64), torch.randn(8, 8, 64)
        case "attention":
            return _SelfAttention(), torch.randn(4, 32, 64)
        case "softmax":
            return nn.Softmax(-1), torch.randn(64, 16, 64)
        case "normalization":
            return nn.LayerNorm(64), torch.randn(64, 16, 64)
        case "embedding":
            return nn.Embedding(1000, 64), torch.randint(0, 1000, (64, 16))
        case "elementwise":
            return nn.GELU(), torch.randn(64, 16, 64)


def make_probe(family: Family, dtype: torch.dtype, device: torch.device) -> Probe:
    """A forward and backward pass of a family in a format, in the way castiron runs it.

    Products and recurrent layers of 16 bits keep float32 parameters and run under autocast on inputs that
    are cast first; every other layer is stored in the format itself.
    """
    layer, x = _layer(family)
    mixed = dtype in NARROW and family in ("matmul", "conv", "lstm", "gru", "rnn", "attention")
    layer.to(device=device, dtype=torch.float32 if mixed else dtype)
    x = x.to(device)
    if x.is_floating_point():
        x = x.to(dtype).requires_grad_()

    def run() -> None:
        layer.zero_grad()
        x.grad = None
        if mixed:
            with island_context(Islands(), device.type), torch.autocast(device.type, dtype=dtype):
                out = layer(x)
        else:
            out = layer(x)
        out = out[0] if isinstance(out, tuple) else out
        out.backward(torch.ones_like(out))

    return run
