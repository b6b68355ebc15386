"""Stops a training whose validation metric improves no more."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl

from castiron.lightning.module import RecipeModule


class StopEarly(pl.Callback):
    """Stops after `patience` validations in a row without an improvement of more than `min_delta`.

    A metric that is NaN is no improvement. `message` says why it stopped, once it did.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"], *, patience: int, min_delta: float) -> None:
        self.monitor, self.mode, self.patience, self.min_delta = monitor, mode, patience, min_delta
        self.best: float | None = None
        self.waited = 0
        self.message = ""

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        assert isinstance(module, RecipeModule)
        score = module.results.get(self.monitor)
        if score is not None and self._improves(score):
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.should_stop = True
            best = "was never a number" if self.best is None else f"stayed at {self.best:.4g}"
            self.message = f"Stopped early: {self.monitor} {best} for {self.waited} validations."

    def _improves(self, score: float) -> bool:
        if score != score:
            return False
        if self.best is None:
            return True
        gain = self.best - score if self.mode == "min" else score - self.best
        return gain > self.min_delta

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
