"""castiron's table of what kernels refuse, against the real kernels of this torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from castiron.torch.audit.kernels import PROMOTES, no_lstm, refused

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def t(dtype, *shape):
    return torch.full(shape, 0.5).to(dtype).requires_grad_(dtype.is_floating_point)


PAIRS = {
    "mm": lambda a, b: t(a, 2, 2) @ t(b, 2, 2),
    "addmm": lambda a, b: torch.addmm(t(a, 2), t(a, 2, 2), t(b, 2, 2)),
    "bmm": lambda a, b: torch.bmm(t(a, 1, 2, 2), t(b, 1, 2, 2)),
    "baddbmm": lambda a, b: torch.baddbmm(t(a, 1, 2, 2), t(a, 1, 2, 2), t(b, 1, 2, 2)),
    "mv": lambda a, b: torch.mv(t(a, 2, 2), t(b, 2)),
    "dot": lambda a, b: torch.dot(t(a, 2), t(b, 2)),
    "linear": lambda a, b: F.linear(t(a, 2, 2), t(b, 2, 2)),
    "convolution": lambda a, b: F.conv1d(t(a, 1, 1, 4), t(b, 1, 1, 2)),
    "huber_loss": lambda a, b: F.huber_loss(t(a, 2), t(b, 2).detach()).backward(),
    "binary_cross_entropy": lambda a, b: F.binary_cross_entropy(t(a, 2), t(b, 2).detach()),
    "lerp": lambda a, b: torch.lerp(t(a, 2), t(b, 2), 0.5),
    "scaled_dot_product_flash_attention": lambda a, b: F.scaled_dot_product_attention(
        t(a, 1, 1, 2, 2), t(a, 1, 1, 2, 2), t(b, 1, 1, 2, 2)
    ),
    "prelu": lambda a, b: F.prelu(t(a, 2), t(b, 1)),
    "mkldnn_rnn_layer": lambda a, b: torch.nn.LSTM(2, 2, dtype=b)(t(a, 1, 1, 2)),
    "grid_sampler_2d": lambda a, b: F.grid_sample(t(a, 1, 1, 2, 2), t(b, 1, 2, 2, 2), align_corners=False),
}


def raises(run):
    try:
        run()
    except (RuntimeError, ValueError, TypeError):
        return True
    return False


@pytest.mark.parametrize("op", PAIRS)
def test_mixed_operands(op):
    for a, b in itertools.product(FLOATS, FLOATS):
        if raises(lambda: PAIRS[op](a, a)) or raises(lambda: PAIRS[op](b, b)):  # noqa: B023
            continue  # the CPU has no kernel of this format at all
        said = refused(op, [a, b]) is not None
        assert said == raises(lambda: PAIRS[op](a, b)), (op, a, b)  # noqa: B023


@pytest.mark.parametrize("op", ["mm", "addmm", "bmm", "mv", "dot"])
def test_integers(op):
    assert refused(op, [torch.float32, torch.int64])
    assert raises(lambda: PAIRS[op](torch.float32, torch.int64))


NORMS = {
    "layer_norm": lambda a, b: F.layer_norm(t(a, 2, 4), [4], t(b, 4), t(b, 4)),
    "group_norm": lambda a, b: F.group_norm(t(a, 2, 4), 2, t(b, 4), t(b, 4)),
    "batch_norm": lambda a, b: F.batch_norm(
        t(a, 2, 4), t(b, 4).detach(), t(b, 4).detach(), t(b, 4), t(b, 4), training=True
    ),
}


@pytest.mark.parametrize("op", NORMS)
def test_normalisation(op):
    for a, b in itertools.product(FLOATS, FLOATS):
        assert (refused(op, [a, b, b]) is not None) == raises(lambda: NORMS[op](a, b)), (op, a, b)  # noqa: B023


@pytest.mark.parametrize("target", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool])
def test_classes(target):
    run = lambda: F.nll_loss(t(torch.float32, 2, 3), torch.zeros(2).to(target))  # noqa: E731
    assert (refused("nll_loss", [torch.float32, target]) is not None) == raises(run)


@pytest.mark.parametrize("ids", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.float32])
def test_ids(ids):
    run = lambda: F.embedding(torch.zeros(2).to(ids), t(torch.float32, 3, 2))  # noqa: E731
    assert (refused("embedding", [torch.float32, ids]) is not None) == raises(run)


def test_what_promotes_does_so():
    a, b = t(torch.float32, 2, 2).detach(), t(torch.float64, 2, 2).detach()
    runs = {
        "cat": lambda: torch.cat([a, b]),
        "stack": lambda: torch.stack([a, b]),
        "where": lambda: torch.where(a > 0, a, b),
        "mse_loss": lambda: F.mse_loss(a, b),
        "smooth_l1_loss": lambda: F.smooth_l1_loss(a, b),
        "binary_cross_entropy_with_logits": lambda: F.binary_cross_entropy_with_logits(a, b),
        "hypot": lambda: torch.hypot(a, b),
        "addcmul": lambda: torch.addcmul(a, a, b),
        "addcdiv": lambda: torch.addcdiv(a, a, b),
        "kl_div": lambda: F.kl_div(a, b, reduction="sum"),
    }
    assert set(runs) <= PROMOTES
    for name, run in runs.items():
        assert run().dtype is torch.float64, name


def test_asking_for_an_lstm_leaves_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    no_lstm.cache_clear()
    no_lstm(torch.bfloat16, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
