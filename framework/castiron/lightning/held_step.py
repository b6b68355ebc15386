"""A step that a live trainer held, as something that can be run again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from castiron.lightning.module import RecipeModule
from castiron.lightning.precision import PrecisionPlugin
from castiron.lightning.sharding import Sharded
from castiron.lightning.training_step import loss_of_step
from castiron.torch.replay import ReplayStep
from castiron.training.held import Verdict


def can_replay(trainer: pl.Trainer) -> bool:
    """Whether a process can run a step by itself: not where layers or statistics are spread over several."""
    strategy = trainer.strategy
    if isinstance(strategy, Sharded):
        return isinstance(trainer.lightning_module, RecipeModule)  # of which a whole one can be made
    if isinstance(strategy, SingleDeviceStrategy):
        return True
    module = trainer.lightning_module
    alone = not any(isinstance(m, nn.SyncBatchNorm) for m in module.modules())
    return isinstance(strategy, DDPStrategy) and alone


def replay_step(
    trainer: pl.Trainer,
    batches: Sequence[Any],
    indices: Sequence[int],
    verdict: Verdict,
    restore: Callable[[], None],
) -> ReplayStep:
    """A held step of a trainer. Of several processes all have to call it.

    Args:
        batches: its micro-batches, as the module got them.
        indices: `batch_idx` of each.
        verdict: what the guard saw.
        restore: puts buffers and random generators back to before the step.
    """
    module = trainer.lightning_module
    plugin = trainer.precision_plugin
    optimizers = trainer.optimizers
    if isinstance(trainer.strategy, Sharded) and isinstance(module, RecipeModule):
        module, plugin, restore = _whole(trainer, module, restore)
        optimizers = []
    own = plugin if isinstance(plugin, PrecisionPlugin) else None
    share = trainer.accumulate_grad_batches
    scale = own.loss_scale() if own is not None else None

    def run(batch: Any, i: int) -> Tensor | None:
        with torch.enable_grad(), _nothing_else_happens(trainer, module):
            if not module.automatic_optimization:
                module.training_step(batch, *_index(module, indices[i]))
                return None
            with own.forward_context() if own is not None else plugin.train_step_context():
                if isinstance(module, RecipeModule):  # which would count the loss
                    loss: Tensor | None = module.recipe.loss(module(batch), batch)
                else:
                    loss = loss_of_step(module, batch, indices[i])
            if loss is None:
                return None
            scaled = loss / share if share > 1 else loss
            with own.backward_context() if own is not None else contextlib.nullcontext():
                (scaled * scale if scale is not None else scaled).backward()
            return loss.detach()

    return ReplayStep(
        root=getattr(module, "precision_root", module),
        batches=batches,
        run=run,
        restore=restore,
        verdict=verdict,
        optimizers=optimizers,
        scale=scale or 1.0,
        policy=str(own.policy) if own is not None else "",
    )


def _whole(
    trainer: pl.Trainer, module: RecipeModule, restore: Callable[[], None]
) -> tuple[RecipeModule, PrecisionPlugin, Callable[[], None]]:
    """A model of its own for a process that has a share of the one that trains: with all parameters, under
    the same plan. All processes have to call it."""
    strategy, plugin = trainer.strategy, trainer.precision_plugin
    assert isinstance(strategy, Sharded)
    assert isinstance(plugin, PrecisionPlugin)
    restore()
    state = strategy.lightning_module_state_dict()
    whole = RecipeModule(module.recipe, module.policy).to(strategy.root_device)
    alone = PrecisionPlugin(plugin.policy)
    alone.convert_module(whole)

    def put_back() -> None:
        restore()
        whole.load_state_dict(state)

    put_back()
    return whole, alone, put_back


def _index(module: pl.LightningModule, index: int) -> tuple[int, ...]:
    """The arguments of training_step behind the batch."""
    code = module.training_step.__code__
    return (index,) if code.co_argcount > 2 else ()


@contextlib.contextmanager
def _nothing_else_happens(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Nothing is logged, no optimizer steps."""
    strategy: Any = trainer.strategy
    own = {name: module.__dict__.get(name) for name in ("log", "log_dict")}
    stepping = strategy.__dict__.get("optimizer_step")
    for name in own:
        module.__dict__[name] = _nothing
    strategy.optimizer_step = _only_closure
    try:
        yield
    finally:
        for name, before in own.items():
            if before is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = before
        if stepping is None:
            del strategy.__dict__["optimizer_step"]
        else:
            strategy.optimizer_step = stepping


def _nothing(*arguments: Any, **named: Any) -> None:
    pass


def _only_closure(optimizer: Any, closure: Callable[[], Any], *arguments: Any, **named: Any) -> Any:
    return closure()
