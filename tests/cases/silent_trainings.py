"""Silent faults: every number is finite, no step is held, and nothing is learnt."""

from __future__ import annotations

from typing import Any

import torch
from case_kit import Training, silent
from torch import Tensor, nn

Batch = dict[str, Tensor]


def batches(model: nn.Module, steps: int = 6) -> list[Any]:
    return [{"x": torch.rand(16, 24)} for _ in range(steps)]


@silent(
    "Gradients too small for float16, at a loss scale of 1",
    "The gradient of the loss is 1e-8, and becomes zero where it goes back to float16. Nothing says so: "
    "zeros are finite.",
    policies=("fp16-mixed",), code="N520", says="a loss scale of at least 2^",
)  # fmt: skip
def gradients_too_small() -> Training:
    model = nn.Linear(24, 4)
    return Training(
        model=model,
        batches=batches(model),
        loss_of=lambda batch: model(batch["x"]).float().sum() * 1e-8,
        precision={"scaling": {"kind": "static", "scale": 1}},
    )


@silent(
    "Weights in bfloat16 at a learning rate of 6e-4",
    "Half the spacing of bfloat16 just below 1 is 2e-3: an update of 6e-4 rounds back to the weight. In 100 "
    "steps 0 of 768 weights move; in float32 all do.",
    policies=("bf16-true",), code="N521", says="updates: {master: float32}",
)  # fmt: skip
def updates_too_small() -> Training:
    model = nn.Linear(24, 32, bias=False)
    nn.init.ones_(model.weight)
    return Training(
        model=model,
        batches=batches(model),
        loss_of=lambda batch: model(batch["x"]).float().square().mean(),
        optimizers=[torch.optim.AdamW(model.parameters(), lr=6e-4)],
        precision={"updates": {"master": None}},
    )


@silent(
    "Weight decay that bfloat16 loses",
    "The decay of a step, lr times weight_decay, is 1e-4 of a weight: no weight ever shrinks.",
    policies=("bf16-true",), code="N521", says="100 % of the updates",
)  # fmt: skip
def decay_too_small() -> Training:
    model = nn.Linear(24, 32, bias=False)
    nn.init.ones_(model.weight)
    return Training(
        model=model,
        batches=batches(model),
        loss_of=lambda batch: model(batch["x"]).float().sum() * 0,
        optimizers=[torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)],
        precision={"updates": {"master": None}},
    )


@silent(
    "Adam with gradients of 1e-25",
    "Their squares are 1e-50, which float32 does not hold: Adam's second moment is zero, and eps alone "
    "divides.",
    policies=("float32",), code="N524", says="squared gradients underflow",
)  # fmt: skip
def squares_too_small() -> Training:
    model = nn.Linear(24, 4)
    return Training(
        model=model,
        batches=batches(model),
        loss_of=lambda batch: model(batch["x"]).sum() * 1e-25,
        optimizers=[torch.optim.Adam(model.parameters())],
    )


@silent(
    "A counter in bfloat16",
    "Once it is 256, adding 1 rounds back to 256. So does a metric that adds up in bfloat16: 400 ones are "
    "256.",
    policies=("float32",), code="F316", says="Accumulate in float32",
)  # fmt: skip
def counter_too_narrow() -> Training:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(24, 1)
            self.register_buffer("seen", torch.zeros((), dtype=torch.bfloat16))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += torch.ones((), dtype=torch.bfloat16)
            return self.head(x)

    model = Counting()
    return Training(
        model=model,
        batches=batches(model),
        loss_of=lambda batch: model(batch["x"]).sum(),
        precision={"buffers": "bfloat16"},
    )
