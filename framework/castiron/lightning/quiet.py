"""Keeps back what Lightning says to its own users, where castiron drives it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning")

_ADVICE = (
    r".*does not have many workers.*",
    r".*`Trainer\(logger=False\)`.*",
    r".*You defined a `validation_step` but have no `val_dataloader`.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*GPU available but not used.*",
    r".*Trying to infer the `batch_size`.*",
    r".*The number of training batches.*is smaller than the logging interval.*",
    r".*found .* module\(s\) in eval mode.*",
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning's own use of torch
)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Within it Lightning's info lines and its advice on loaders and loggers are not shown; warnings about
    anything else are."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _ADVICE:
            warnings.filterwarnings("ignore", message=message)
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
