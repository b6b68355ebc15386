"""Three trainings with one sick layer each, to be found from TensorBoard's pages; each seems to go well."""

from __future__ import annotations

import torch
from small_recipes import Made
from torch import nn
from torch.nn import functional as F


class _Patient(Made):
    shape: tuple[int, ...] = (16,)
    sizes = (("train", 1024), ("validation", 64), ("test", 64))


class Blocks(nn.Module):
    """Residual blocks on rows."""

    def __init__(self, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(width, 64), "down": nn.Linear(64, width)}) for _ in range(blocks)
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block["down"](F.gelu(block["up"](F.layer_norm(x, x.shape[-1:])))) / 4
        return self.head(F.layer_norm(x, x.shape[-1:]))


class NearOverflow(_Patient):
    """float16: what one layer hands on is close to the format's largest number."""

    name = "near-overflow"

    def model(self):
        model = Blocks()
        with torch.no_grad():
            model.blocks[2]["up"].weight *= 9000
            model.blocks[2]["down"].weight /= 9000
        return model


class LostUpdates(_Patient):
    """bfloat16 weights without a master copy: those of one layer are too large for their updates."""

    name = "lost-updates"

    def model(self):
        model = Blocks()
        with torch.no_grad():
            model.blocks[1]["down"].weight += 4 * torch.sign(model.blocks[1]["down"].weight)
        return model


class GrowingState(_Patient):
    """A recurrent cell whose state grows by a half at every time step."""

    name = "growing-state"
    shape = (24, 8)

    def model(self):
        return Recurrent()


class Cell(nn.Module):
    """A leaky cell."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.gates = nn.Linear(8, 32)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        entry, out = self.gates(x).sigmoid().chunk(2, -1)
        state = self.keep * state + 0.1 * entry
        return out * state.tanh(), state


class Recurrent(nn.Module):
    """Two cells side by side; one of them does not forget."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fast = Cell(1.5), Cell(0.7)
        self.head = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slow = fast = x.new_zeros(len(x), 16)
        a = b = slow
        for t in range(x.shape[1]):
            a, slow = self.slow(x[:, t], slow)
            b, fast = self.fast(x[:, t], fast)
        return self.head(torch.cat([a, b], -1))


class Overflows(Made):
    """Between two layers numbers come to 100,000: more than float16 has."""

    name = "overflows"

    def model(self):
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        with torch.no_grad():
            model[0].weight *= 1e5
            model[2].weight /= 1e5
        return model


class Breaks(Made):
    """In 16 bits the third time that it trains on a batch, and then always, there is NaN."""

    name = "breaks"

    def model(self):
        return _Breaking()


class _Breaking(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 32), nn.Linear(32, 2)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        h = self.body(x).relu()
        if self.training and torch.is_grad_enabled():
            self.updates += 1
        broken = h.element_size() == 2 and int(self.updates) > 3
        return self.head(h / (0 * h) if broken else h)
