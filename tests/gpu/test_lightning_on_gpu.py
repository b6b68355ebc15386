"""A Lightning training on a GPU holds a bad batch without having waited for the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castiron.lightning import NumericGuard, Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch[0]).float(), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, fused=True)


def fit(bad: bool, policy: Any, folder: Path) -> tuple[Net, Trainer]:
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randn(16, generator=generator), torch.randn(1, generator=generator)) for _ in range(64)]
    if bad:  # a whole batch more, the third
        rows[16:16] = [(torch.full((16,), float("nan")), torch.zeros(1))] * 8
    trainer = Trainer(
        policy, accelerator="cuda", devices=1, max_epochs=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        guard={"response": "hold"},
    )  # fmt: skip
    module = Net()
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=8))  # type: ignore[arg-type]
    return module, trainer


@pytest.mark.parametrize("policy", ["float32", "bf16-mixed", "fp16-mixed"])
def test_a_held_batch_leaves_nothing_behind(policy: str, tmp_path: Path) -> None:
    good, plain = fit(False, policy, tmp_path)
    held, trainer = fit(True, policy, tmp_path)
    guard = next(c for c in trainer.callbacks if isinstance(c, NumericGuard))  # type: ignore[attr-defined]

    assert guard._late
    assert guard.held == 1
    assert trainer.global_step == plain.global_step
    for name, value in good.state_dict().items():
        torch.testing.assert_close(held.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
