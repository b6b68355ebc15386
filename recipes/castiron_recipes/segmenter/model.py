"""The model: a U-Net. Blocks of convolutions on the way down, and up again beside what was seen there.

Shapes: B images, C channels, K classes; H and W of the image are halved at each level on the way down.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvBlock(nn.Module):
    """Two convolutions, each with a group norm and a ReLU. Height and width stay; it says what it takes."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.before, self.width = before, width
        self.conv1 = nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(4, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(4, width)

    def contract(self, level: int) -> str:
        """Its shapes, as the audit holds them against a step; heights and widths are those of a level."""
        axes = f"height{level} width{level}"
        return f"batch {self.before} {axes} -> batch {self.width} {axes}"

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] → [B, width, H, W].

        Raises:
            ValueError: the channels are not where they are expected, or not as many.
        """
        if x.ndim != 4 or x.shape[1] != self.before:
            raise ValueError(
                f"Expected [batch, {self.before} channels, height, width]. Received {list(x.shape)}."
            )
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """Images to logits of every pixel's class."""

    def __init__(self, classes: int, *, widths: Sequence[int], mean: float, std: float) -> None:
        """
        Args:
            widths: channels of each level, from the image's own resolution down; multiples of 4.
            mean, std: of the training pixels, divided by 255.
        """
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        befores = [1, *widths[:-1]]
        self.down = nn.ModuleList(ConvBlock(a, b) for a, b in zip(befores, widths, strict=True))
        self.up = nn.ModuleList(
            ConvBlock(below + here, here) for below, here in zip(widths[1:], widths[:-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], classes, 1)

    mean: Tensor
    std: Tensor

    def contracts(self) -> dict[str, str]:
        """Path of each block, and of the model itself (""), → its shapes."""
        found = {"": f"batch height0 width0 -> batch {self.head.out_channels} height0 width0"}
        for name, blocks in (("down", self.down), ("up", self.up)):
            found |= {f"{name}.{n}": block.contract(n) for n, block in enumerate(blocks)}  # type: ignore[operator]
        return found

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W] → [B, K, H, W]."""
        x = (images[:, None].to(self.mean.dtype) / 255 - self.mean) / self.std
        seen = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            seen.append(x)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = self.up[level](torch.cat([seen[level], x], dim=1))
        logits: Tensor = self.head(x)
        return logits
