"""Islands: operations that stay wide under autocast, on every device, and only inside castiron's contexts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from castiron.policy.sections import Islands
from castiron.torch.islands import _separate_compiled_graphs, active_islands, island_context, mask_of

NONE = Islands(softmax=None, normalization=None, reductions=None, exponentials=None)

OPERATIONS: dict[str, list[Callable[[torch.Tensor], torch.Tensor]]] = {
    "softmax": [
        lambda x: F.softmax(x, -1),
        lambda x: x.log_softmax(-1),
        lambda x: F.softmin(x, -1),
        lambda x: x.logsumexp(0),
        lambda x: torch.special.softmax(x, -1),
    ],
    "normalization": [
        lambda x: F.layer_norm(x, (8,)),
        lambda x: F.group_norm(x, 2),
        lambda x: F.rms_norm(x, (8,)),
        lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8), training=True),
        lambda x: F.instance_norm(x[None]),
        lambda x: x.norm(),
        lambda x: torch.linalg.norm(x),
        lambda x: torch.linalg.vector_norm(x, dim=0),
        lambda x: x.var(),
        lambda x: x.std(0),
        lambda x: torch.var_mean(x)[1],
        lambda x: F.normalize(x),
        lambda x: F.cosine_similarity(x, x),
    ],
    "reductions": [
        lambda x: x.sum(),
        lambda x: torch.sum(x, 0),
        lambda x: x.mean(),
        lambda x: x.mean(-1, keepdim=True),
        lambda x: x.prod(),
        lambda x: x.cumsum(0),
        lambda x: torch.nansum(x),
    ],
    "exponentials": [
        lambda x: x.exp(),
        lambda x: torch.log(x.abs()),
        lambda x: x**2,
        lambda x: 2**x,
        lambda x: torch.rsqrt(x.abs()),
        lambda x: F.softplus(x),
        lambda x: F.logsigmoid(x),
        lambda x: torch.expm1(x),
    ],
}
CASES = [(name, f) for name, fs in OPERATIONS.items() for f in fs]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "operation"), CASES)
def test_an_island_computes_in_float32(
    name: str, operation: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype
) -> None:
    x = torch.randn(4, 8).to(dtype)
    with island_context(Islands(), "cpu"), torch.autocast("cpu", dtype):
        result = operation(x)
    expected = operation(x.float())
    assert result.dtype is torch.float32
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", list(OPERATIONS))
def test_a_family_can_be_left_to_the_compute_format(family: str) -> None:
    x = torch.randn(4, 8).bfloat16()
    only_this_off = Islands(**{family: None})
    narrow = OPERATIONS[family][0]
    with island_context(only_this_off, "cpu"), torch.autocast("cpu", torch.bfloat16):
        assert narrow(x).dtype is torch.bfloat16
        others = [fs[0] for name, fs in OPERATIONS.items() if name != family]
        assert {f(x).dtype for f in others} == {torch.float32}


def test_all_sixteen_combinations_are_told_apart() -> None:
    names = ("softmax", "normalization", "reductions", "exponentials")
    for mask in range(16):
        chosen = {name for i, name in enumerate(names) if mask >> i & 1}
        islands = Islands(**{name: "float32" if name in chosen else None for name in names})
        assert mask_of(islands) == mask
        with island_context(islands, "cpu"):
            assert active_islands() == chosen


def test_nothing_changes_outside_of_the_context() -> None:
    x = torch.randn(4, 8).bfloat16()
    with island_context(Islands(), "cpu"):
        pass
    with torch.autocast("cpu", torch.bfloat16):
        assert x.softmax(-1).dtype is torch.bfloat16
        assert x.mean().dtype is torch.bfloat16
    assert active_islands() == frozenset()


def test_contexts_nest_and_come_back_after_an_error() -> None:
    with island_context(Islands(), "cpu"):
        with contextlib.suppress(ZeroDivisionError), island_context(NONE, "cpu"):
            assert active_islands() == frozenset()
            raise ZeroDivisionError
        assert len(active_islands()) == 4
    assert active_islands() == frozenset()


def test_another_thread_has_no_islands() -> None:
    seen = []
    with island_context(Islands(), "cpu"):
        thread = threading.Thread(target=lambda: seen.append(active_islands()))
        thread.start()
        thread.join()
    assert seen == [frozenset()]


def test_an_explicit_dtype_and_integers_are_respected() -> None:
    with island_context(Islands(), "cpu"), torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(4, 8).bfloat16()
        assert x.softmax(-1, dtype=torch.bfloat16).dtype is torch.bfloat16
        assert x.sum(dtype=torch.float64).dtype is torch.float64
        assert torch.ones(3, dtype=torch.long).sum().dtype is torch.int64
        assert x.double().mean().dtype is torch.float64


def test_the_softmax_inside_attention_is_wide() -> None:
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(2, 5, 16)
    with island_context(Islands(), "cpu"), torch.autocast("cpu", torch.bfloat16):
        _, weights = attention(x, x, x)
    assert weights.dtype is torch.float32
    assert (weights.sum(-1) - 1).abs().max() < 1e-6  # rounded to 16 bits it would be 4e-3


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: torch.mv(a, b[0]),
        lambda a, b: torch.dot(a[0], b[0]),
        lambda a, b: torch.einsum("ij,kj->ik", a, b),
        lambda a, b: torch.tensordot(a, b, dims=([1], [1])),
        lambda a, b: torch.linalg.multi_dot([a, b, a]),
        lambda a, b: F.bilinear(a, b, torch.ones(2, 8, 8)),
        lambda a, b: torch.lstm_cell(a, [a, b], torch.ones(32, 8), torch.ones(32, 8))[0],
    ],
)
def test_products_that_autocast_forgets_on_a_cpu_are_narrow_too(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    expected = product(a, b)
    for left, right in ((a, b), (a.bfloat16(), b)):
        with island_context(Islands(), "cpu"), torch.autocast("cpu", torch.bfloat16):
            result = product(left, right)
        assert result.dtype is torch.bfloat16
        torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.5)


def test_narrow_running_statistics_are_written_back() -> None:
    norm = nn.BatchNorm1d(8).bfloat16()
    with island_context(Islands(), "cpu"), torch.autocast("cpu", torch.bfloat16):
        norm(torch.randn(16, 8).bfloat16() + 3)
    assert norm.running_mean is not None
    assert norm.running_mean.dtype is torch.bfloat16
    assert (norm.running_mean > 0.1).all()


def test_sums_do_not_overflow_float16() -> None:
    x = torch.full((1000,), 1000.0, dtype=torch.float16)
    with island_context(Islands(), "cpu"), torch.autocast("cpu", torch.float16):
        assert x.sum().item() == 1_000_000
        assert x.mean().item() == 1000
        assert torch.isfinite(x.norm())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.norm(self.linear(x))
        x, weights = self.attention(x, x, x)
        return x.mean(1), weights


def test_compiled_graphs_have_the_islands_of_their_context() -> None:
    """Also when the very same function was compiled without them before, and the other way round."""
    torch._dynamo.reset()
    net, x = Net(), torch.randn(2, 5, 16)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for islands, expected in ((NONE, torch.bfloat16), (Islands(), torch.float32), (NONE, torch.bfloat16)):
        with island_context(islands, "cpu"), torch.autocast("cpu", torch.bfloat16):
            pooled, weights = compiled(x)
            reference = net(x)
        assert (pooled.dtype, weights.dtype) == (expected, expected)
        torch.testing.assert_close(pooled, reference[0])
    pooled.float().sum().backward()
    assert net.linear.weight.grad is not None


@pytest.mark.parametrize(("version", "tag"), [("2.11.1", "castiron-islands"), ("2.13.0+cpu", "")])
def test_older_caches_of_compiled_graphs_are_kept_apart(
    monkeypatch: pytest.MonkeyPatch, version: str, tag: str
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with torch.compiler.config.patch(cache_key_tag=""):
        for _ in range(2):
            _separate_compiled_graphs()
        assert torch.compiler.config.cache_key_tag == tag


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_recomputes_with_the_same_islands(reentrant: bool) -> None:
    net, x = Net(), torch.randn(2, 5, 16, requires_grad=True)

    def gradient(use_checkpoint: bool) -> torch.Tensor:
        net.zero_grad()
        with island_context(Islands(), "cpu"), torch.autocast("cpu", torch.bfloat16):
            if use_checkpoint:
                pooled, _ = checkpoint(net, x, use_reentrant=reentrant)
            else:
                pooled, _ = net(x)
        with island_context(Islands(), "cpu"):
            pooled.square().sum().backward()
        assert net.linear.weight.grad is not None
        return net.linear.weight.grad.clone()

    assert torch.equal(gradient(False), gradient(True))


@pytest.mark.gpu
def test_cuda_islands_that_autocast_leaves_out() -> None:
    x = torch.randn(4, 8, device="cuda").bfloat16()
    with torch.autocast("cuda", torch.bfloat16):
        assert x.mean().dtype is torch.bfloat16
    with island_context(Islands(), "cuda"), torch.autocast("cuda", torch.bfloat16):
        for operation in (lambda t: t.mean(), lambda t: t.var(), lambda t: t.softmax(-1)):
            assert operation(x).dtype is torch.float32
