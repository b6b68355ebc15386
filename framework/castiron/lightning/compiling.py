"""torch.compile, after the plan is applied: hooks that come later are never called."""

from __future__ import annotations

import lightning.pytorch as pl

from castiron.lightning.module import RecipeModule


class CompileModel(pl.Callback):
    """Compiles a recipe's model in place when training starts; batches differ in length."""

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, RecipeModule)
        module.precision_root.compile(dynamic=True)
