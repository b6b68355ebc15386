"""Stochastic rounding of float32 to bfloat16: up or down with probabilities that make it exact on average."""

from __future__ import annotations

import torch


@torch.no_grad()
def stochastic_round_(
    target: torch.Tensor, source: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Write `source` (float32) to `target` (bfloat16), rounded stochastically; returns the target.

    A value between two neighbours of bfloat16 becomes the upper with a probability equal to its distance
    from the lower, over their distance. A bfloat16 is the upper half of a float32's bits, so a random number
    of 16 bits is added below it and the lower half cut off (as in torchao's optimizers; Gupta et al. 2015,
    "Deep Learning with Limited Numerical Precision"). Values that bfloat16 holds stay what they are, also
    infinities and NaN; what is finite stays finite (the lower neighbour, where the upper is infinite).

    Raises:
        TypeError: other formats.
    """
    if source.dtype is not torch.float32 or target.dtype is not torch.bfloat16:
        raise TypeError(f"Expected float32 to bfloat16. Received {source.dtype} to {target.dtype}.")
    bits = source.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    rounded = ((bits + noise) & -0x10000).view(torch.float32)
    cut = (bits & -0x10000).view(torch.float32)
    finite = source.isfinite()
    # past the largest bfloat16 the upper neighbour is infinite
    rounded = torch.where(rounded.isfinite(), rounded, cut)
    target.copy_(torch.where(finite, rounded, source))
    return target
