"""The data that the recipe brings along: grey images of discs, boxes and triangles, and the mask of each.

Shapes lie over one another on a sloping background with noise; a pixel belongs to the shape on top.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from castiron.data.files import written_atomically

CLASSES = ("background", "disc", "box", "triangle")
ROWS = {"train": 800, "validation": 100, "test": 200}


def write(folder: Path, *, seed: int, size: tuple[int, int]) -> dict[str, Path]:
    """Write the splits as NumPy archives, `image` and `mask` uint8 [rows, *size]; → split, file."""
    random = np.random.default_rng(seed)
    files = {}
    for split, rows in ROWS.items():
        drawn = [draw(random, size) for _ in range(rows)]
        files[split] = folder / f"{split}.npz"
        with written_atomically(files[split]) as file:
            np.savez(file, image=np.stack([i for i, _ in drawn]), mask=np.stack([m for _, m in drawn]))
    return files


def draw(
    random: np.random.Generator, size: tuple[int, int], *, noise: float = 12
) -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask, uint8 [*size] each."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    slope = random.uniform(-40, 40, 2)
    image = 70 + slope[0] * (y / height - 0.5) + slope[1] * (x / width - 0.5)
    mask = np.zeros(size, np.uint8)
    for _ in range(random.integers(1, 4)):
        kind = int(random.integers(1, len(CLASSES)))
        radius = random.uniform(min(size) / 8, min(size) / 4)
        cy, cx = (random.uniform(radius, side - radius) for side in size)
        dy, dx = y - cy, x - cx
        inside = (
            dy**2 + dx**2 <= radius**2,
            np.maximum(abs(dy), abs(dx)) <= 0.85 * radius,
            (dy <= radius * 0.7) & (2 * abs(dx) <= dy + radius),
        )[kind - 1]
        mask[inside] = kind
        image[inside] = random.uniform(120, 220)
    image += random.normal(0, noise, image.shape)
    return image.clip(0, 255).round().astype(np.uint8), mask
