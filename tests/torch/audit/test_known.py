"""The table of what is known to be bad: each entry shown by the numbers themselves, and found by audits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from castiron.policy import PrecisionPolicy
from castiron.torch.audit import audit
from castiron.torch.audit.known import of_optimizer
from castiron.torch.audit.optimizer import check

torch.set_num_threads(1)

LIMITS = {torch.bfloat16: 256, torch.float16: 2048}


def codes(forward, policy="float32"):
    model = nn.Module()
    model.head = nn.Linear(8, 4)
    model.forward = lambda x: forward(model.head(x))
    return [f.code for f in audit(model, torch.randn(16, 8), policy).findings if f.code == "F342"]


@pytest.mark.parametrize("dtype", LIMITS)
def test_counting_by_index_stops(dtype):
    ones, places = torch.ones(5000, dtype=dtype), torch.zeros(5000, dtype=torch.int64)
    count = torch.zeros(1, dtype=dtype)
    assert count.index_add(0, places, ones).item() == LIMITS[dtype]
    assert count.index_put((places,), ones, accumulate=True).item() == LIMITS[dtype]


def test_counting_by_index_is_found():
    def counted(dtype, n=5000, places=1):
        def forward(h):
            counts = torch.zeros(places, dtype=dtype)
            counts.index_add_(0, torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=dtype))
            return h + counts.sum().float()

        return codes(forward)

    assert counted(torch.bfloat16) == ["F342"]
    assert counted(torch.float16) == ["F342"]
    assert counted(torch.float32) == []
    assert counted(torch.bfloat16, n=100) == []
    assert counted(torch.bfloat16, places=100) == []


def picture(dtype):
    image = torch.arange(1000.0).expand(1, 1, 1, 1000)
    grid = torch.stack([torch.linspace(-1, 1, 1000), torch.zeros(1000)], -1)[None, None]
    return F.grid_sample(image.to(dtype), grid.to(dtype), align_corners=True), image, grid


def test_coordinates_of_sixteen_bits_miss_pixels():
    _, image, grid = picture(torch.float32)
    exact = F.grid_sample(image, grid, align_corners=True)
    rounded = F.grid_sample(image, grid.bfloat16().float(), align_corners=True)
    assert 0.5 < (exact - rounded).abs().max() <= 1


def test_coordinates_of_sixteen_bits_are_found():
    assert codes(lambda h: h + picture(torch.bfloat16)[0].float().mean()) == ["F342"]
    assert codes(lambda h: h + picture(torch.float32)[0].mean()) == []


def after(cls, dtype, **settings):
    p = nn.Parameter(torch.ones(2, dtype=dtype))
    optimizer = cls([p], lr=1e-3, **settings)
    p.grad = torch.tensor([0.0, 1.0], dtype=dtype)
    optimizer.step()
    first = optimizer.state[p]["exp_avg_sq"].clone()
    p.grad = torch.zeros(2, dtype=dtype)
    for _ in range(300):
        optimizer.step()
    return optimizer, p, first, optimizer.state[p]["exp_avg_sq"]


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
def test_the_second_moment_in_bfloat16_never_falls(cls):
    _, _, first, last = after(cls, torch.bfloat16)
    assert torch.equal(first, last)
    optimizer, _, first, last = after(cls, torch.bfloat16, betas=(0.9, 0.99))
    assert last[1] < first[1]
    said = list(check(optimizer, PrecisionPolicy.parse("p=bfloat16,state=bfloat16"), {}, torch.device("cpu")))
    assert [f.code for f in said if f.code == "F342"] == []


def test_eps_of_adam_in_float16():
    _, p, _, _ = after(torch.optim.Adam, torch.float16, fused=False)
    assert not torch.isfinite(p).all()
    _, p, _, _ = after(torch.optim.Adam, torch.float16, fused=False, eps=1e-4)
    assert torch.isfinite(p).all()


def test_optimizers_are_found():
    p = [nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))]
    adam = torch.optim.Adam(p)
    policy = PrecisionPolicy.preset("bf16-true", state="bfloat16", updates={"master": None})
    said = [f for f in check(adam, policy, {}, torch.device("cpu")) if f.code == "F342"]
    assert [f.message for f in said] == [
        "Adam: with beta2=0.999 the second moment in bfloat16 never falls: 0.001 of it is less than half a "
        "spacing"
    ]
    half = {"exp_avg_sq": torch.float16}
    found = of_optimizer(adam, half, {"eps": 1e-8}, stochastic=False)
    assert found is not None
    assert found[0] == "eps=1e-08 is zero in float16: where gradients are zero or small the step is 0/0"
    assert of_optimizer(adam, half, {"eps": 1e-8, "fused": True}, stochastic=False) is None
    assert of_optimizer(torch.optim.SGD(p), half, {"eps": 1e-8}, stochastic=False) is None
