"""scikit-learn's digits, packaged (SOURCE.md says whence), as NumPy archives of images and labels."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from castiron.data.files import written_atomically

_ENDS = {"train": 1297, "validation": 1497, "test": 1797}


def write(folder: Path, *, seed: int) -> dict[str, Path]:
    """Write 1,297 training, 200 validation and 300 test rows, shuffled by `seed`; → split, file.

    `image` is uint8 [rows, 8, 8] of 0 to 255 (16 steps), `label` uint8 [rows].
    """
    with gzip.open(Path(__file__).with_name("digits.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",").astype(np.uint8)
    table = table[np.random.default_rng(seed).permutation(len(table))]
    images = (table[:, :64].astype(np.float64) * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)
    files, start = {}, 0
    for split, end in _ENDS.items():
        files[split] = folder / f"{split}.npz"
        with written_atomically(files[split]) as out:
            np.savez(out, image=images[start:end], label=table[start:end, 64])
        start = end
    return files
