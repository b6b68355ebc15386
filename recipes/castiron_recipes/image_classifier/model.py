"""The model: pixels to a scale, augmentation, residual blocks of convolutions with batch normalisation, head.

Shapes: B images, H × W pixels, C channels, K classes. Strides halve H and W from group to group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResNet(nn.Module):
    """Images to class logits; each group of blocks halves the resolution of the one before."""

    def __init__(
        self,
        classes: int,
        *,
        widths: Sequence[int],
        blocks: int,
        stride: int,
        mean: float,
        std: float,
        shift: int,
        flip: bool,
        erase: int,
        dropout: float,
    ) -> None:
        """
        Args:
            stride: of the first convolution, which spans 2 · stride + 1 pixels.
            mean, std: of the training pixels, divided by 255.
        """
        super().__init__()
        self.pixels = Pixels(mean, std)
        self.augment = Augment(shift, flip=flip, erase=erase)
        self.stem = nn.Conv2d(1, widths[0], 2 * stride + 1, stride, padding=stride, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        groups = []
        before = widths[0]
        for group, width in enumerate(widths):
            for i in range(blocks):
                groups.append(Block(before, width, stride=2 if group and not i else 1))
                before = width
        self.blocks = nn.Sequential(*groups)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W] → [B, K]."""
        x = self.augment(self.pixels(images))
        x = F.relu(self.norm(self.stem(x)))
        x = self.blocks(x).mean((2, 3))
        logits: Tensor = self.head(self.dropout(x))
        return logits


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al., 2016); its last norm begins at 0, and so do they."""

    def __init__(self, before: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, width, H / stride, W / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Pixels(nn.Module):
    """uint8 pixels to numbers of mean 0 and deviation 1."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W] → [B, 1, H, W]. bfloat16, too, has every whole number from 0 to 255."""
        return ((images[:, None].to(self.mean.dtype) / 255) - self.mean) / self.std


class Augment(nn.Module):
    """While training, each image is shifted by up to `shift` pixels, mirrored, and has a square erased."""

    def __init__(self, shift: int, *, flip: bool, erase: int) -> None:
        super().__init__()
        self.shift, self.flip, self.erase = shift, flip, erase

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, H, W] → [B, 1, H, W]."""
        if not self.training:
            return x
        rows, _, height, width = x.shape
        if self.shift:
            # The edge stands for what is beyond it: the background.
            padded = F.pad(x, [self.shift] * 4, mode="replicate")
            dy, dx = torch.randint(0, 2 * self.shift + 1, (2, rows, 1, 1), device=x.device)
            down = torch.arange(height, device=x.device)[:, None] + dy
            right = torch.arange(width, device=x.device) + dx
            x = padded[torch.arange(rows, device=x.device)[:, None, None], 0, down, right][:, None]
        if self.flip:
            mirrored = torch.rand(rows, 1, 1, 1, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(3), x)
        if self.erase:
            y0 = torch.randint(-self.erase, height, (rows, 1, 1, 1), device=x.device)
            x0 = torch.randint(-self.erase, width, (rows, 1, 1, 1), device=x.device)
            down = torch.arange(height, device=x.device)[:, None]
            right = torch.arange(width, device=x.device)
            inside = (down >= y0) & (down < y0 + self.erase) & (right >= x0) & (right < x0 + self.erase)
            x = x.masked_fill(inside, 0)
        return x
