"""The scale of grey pixels, as training images have it: what recipes of images learn, save and load."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

_FILE = "pixels.json"


@dataclass(frozen=True)
class PixelScale:
    """Mean and standard deviation of pixels, divided by 255."""

    mean: float
    std: float

    @classmethod
    def of(cls, images: np.ndarray) -> PixelScale:
        """Of uint8 images of any shape; taken in float64."""
        # A histogram, not a cast of all images to float64: 256 numbers instead of 8 bytes a pixel.
        counts = np.bincount(images.reshape(-1), minlength=256)
        values = np.arange(256) / 255
        mean = float(np.average(values, weights=counts))
        std = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
        return cls(mean, std or 1.0)

    def save(self, folder: Path) -> None:
        (folder / _FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> PixelScale:
        return cls(**json.loads((folder / _FILE).read_text()))
