"""The same run twice: seeds, deterministic algorithms, threads; each put back afterwards."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (of every device).

    Args:
        seed: 0 to 2**32 - 1 (NumPy's range).

    Raises:
        ValueError: the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"Expected a seed from 0 to 4294967295. Received {seed}.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def isolated_rng() -> Iterator[None]:
    """Within it, random numbers may be drawn and seeds set; afterwards the generators are as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool = True, *, warn_only: bool = False) -> Iterator[None]:
    """Within it, operations that have a deterministic kernel use it, and others raise (or warn).

    Also fixes cuDNN's choice of kernels and gives cuBLAS the workspace that makes it deterministic, which it
    reads when it is first used: enter it before the first CUDA operation. torch's habit of filling
    uninitialised memory in this mode is off: it costs time and changes no result of a correct program.
    """
    mode = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    workspace = os.environ.get(_WORKSPACE)
    try:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.deterministic = enabled
        if enabled:
            memory.fill_uninitialized_memory = False
            torch.backends.cudnn.benchmark = False
            os.environ.setdefault(_WORKSPACE, ":4096:8")
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fill
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[int]:
    """Within it, CPU kernels use this many threads; None leaves them as they are. Yields the number."""
    before = torch.get_num_threads()
    if number is not None and number < 1:
        raise ValueError(f"Expected at least 1 thread. Received {number}.")
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def seeded(seed: int, *, deterministic: bool = True) -> Iterator[None]:
    """Within it, everything is seeded and algorithms are deterministic where asked; afterwards generators
    and switches are as they were."""
    with isolated_rng(), deterministic_algorithms(deterministic):
        seed_everything(seed)
        yield
