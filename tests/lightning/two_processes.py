"""Run by `torch.distributed.run` with two processes: a training under DDP in which one rank's batch is bad.

Writes `rank-N.json` into the folder of its first argument: steps, held steps, incidents, and a hash of the
weights.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from castiron.diagnostics import NumericIncident
from castiron.lightning import NumericGuard, Trainer


class Net(pl.LightningModule):
    """With statistics that a skipped step would spoil."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch["x"]), batch["y"])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Batches:
    """Other batches on each rank; one rank's third is bad where `bad_rank` says so."""

    def __init__(self, rank: int, bad_rank: int | None) -> None:
        self._rank, self._bad_rank = rank, bad_rank

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self._rank)
        for number in range(5):
            batch = {
                "x": torch.randn(6, 4, generator=generator),
                "y": torch.randn(6, 1, generator=generator),
                "row": torch.arange(number * 6, number * 6 + 6),
            }
            if number == 2 and self._rank == self._bad_rank:
                batch["x"][4, 1] = float("nan")
            yield batch


def main(folder: Path, response: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    trainer = Trainer(
        guard={"response": response}, accelerator="cpu", devices=2, strategy="ddp", max_epochs=1,
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    rank, module = trainer.global_rank, Net()
    stopped = None
    try:
        trainer.fit(module, Batches(rank, bad_rank=1))
    except NumericIncident as error:
        stopped = error.findings[0].code
    guard = next(c for c in trainer.callbacks if isinstance(c, NumericGuard))  # type: ignore[attr-defined]
    weights = b"".join(p.detach().numpy().tobytes() for p in module.parameters())
    record = {
        "steps": trainer.global_step,
        "held": guard.held,
        "incidents": [str(p) for p in guard.incidents],
        "stopped": stopped,
        "weights": hashlib.sha256(weights).hexdigest(),
        "finite": all(bool(t.isfinite().all()) for t in module.state_dict().values()),
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
