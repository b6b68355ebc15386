"""Replay finds what is to blame, says when it does not come back, and leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from castiron.torch.replay import ReplayStep, attribute
from castiron.torch.snapshot import Snapshot
from castiron.training.held import Verdict
from castiron.training.incident import Attribution

Batch = dict[str, Tensor]


def replayed(
    model: nn.Module, batches: list[Any], loss_of: Callable[[Any], Tensor], verdict: Verdict | None = None
) -> Attribution:
    snapshot = Snapshot(model)
    snapshot.take()

    def run(batch: Any, i: int) -> Tensor:
        loss = loss_of(batch)
        loss.backward()
        return loss.detach()

    step = ReplayStep(
        root=model, batches=batches, run=run, restore=snapshot.restore, verdict=verdict or Verdict(True)
    )
    return attribute(step)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def test_parameters_buffers_generators_and_modes_are_afterwards_as_before() -> None:
    model = net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    x[3] = float("nan")
    found = replayed(model, [{"x": x}], lambda b: model(b["x"]).square().mean())
    assert [r.index for r in found.rows] == [3]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training


def test_what_is_drawn_at_random_comes_out_the_same() -> None:
    model = nn.Linear(4, 1)

    def loss_of(batch: Batch) -> Tensor:
        kept = nn.functional.dropout(torch.ones(2), 0.5)
        return model(batch["x"]).square().mean() / kept.sum()

    batch = {"x": torch.randn(8, 4)}
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        bad = not bool(loss_of(batch).isfinite())
        torch.manual_seed(seed)
        assert replayed(model, [batch], loss_of).reproduced == bad
        seen.add(bad)
    assert seen == {True, False}


def test_the_second_micro_batch_is_told_from_the_first() -> None:
    model = nn.Linear(4, 1)
    good, bad = torch.randn(8, 4), torch.randn(8, 4)
    bad[5] = float("inf")
    found = replayed(model, [{"x": good}, {"x": bad}], lambda b: model(b["x"]).square().mean())
    assert (found.micro_batch, [r.index for r in found.rows], found.code) == (1, [5], "N507")
    alone = replayed(model, [{"x": bad}], lambda b: model(b["x"]).square().mean())
    assert alone.micro_batch is None


def test_rows_carry_their_number_in_the_data_set() -> None:
    model = nn.Linear(4, 1)
    x = torch.randn(4, 4)
    x[2] = float("nan")
    batch = {"x": x, "row": torch.tensor([40, 41, 42, 43])}
    found = replayed(model, [batch], lambda b: model(b["x"]).square().mean())
    assert [(r.index, r.row) for r in found.rows] == [(2, 42)]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: (x, 3), lambda x: {"a": {"b": x}}])
def test_a_batch_may_be_any_tree_of_tensors(wrap: Callable[[Tensor], Any]) -> None:
    model = nn.Linear(4, 1)
    x = torch.randn(6, 4)
    x[1] = float("nan")

    def loss_of(batch: Any) -> Tensor:
        while not isinstance(batch, Tensor):
            batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        return model(batch).square().mean()

    found = replayed(model, [wrap(x)], loss_of)
    assert (found.code, [r.index for r in found.rows]) == ("N507", [1])


def test_a_step_that_is_finite_again_is_not_reproduced() -> None:
    model = nn.Linear(4, 1)
    found = replayed(
        model,
        [{"x": torch.randn(8, 4)}],
        lambda b: model(b["x"]).square().mean(),
        Verdict(True, {"loss": ()}),
    )
    assert (found.code, found.reproduced) == ("N509", False)
    assert found.message == "The guard saw NaN or infinity in loss; run again the step is finite"


@pytest.mark.slow
def test_what_only_compiled_code_does_is_said_to_be_of_the_compiled_code() -> None:
    def faulty(graph: Any, inputs: Any) -> Callable[..., Any]:
        return lambda *a: tuple(
            o * float("nan") if isinstance(o, Tensor) and o.is_floating_point() else o for o in graph(*a)
        )

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    compiled: Any = torch.compile(model, backend=faulty)
    x = torch.randn(8, 4)
    assert compiled(x).isnan().all()
    verdict = Verdict(True, {"loss": ("micro-batch 0",)})
    found = replayed(model, [{"x": x}], lambda b: compiled(b["x"]).square().mean(), verdict)
    assert found.code == "N509"
    assert "run eagerly, with nothing compiled, the step is finite" in found.message
    assert "trainer.compile=false" in found.remedy
    torch._dynamo.reset()


def test_a_reentrant_checkpoint_is_said_to_hide_what_happens_in_it() -> None:
    model = nn.Linear(4, 4)
    keep = torch.ones(8, 1)
    keep[5] = 0

    def loss_of(batch: Batch) -> Tensor:
        x = batch["x"].clone().requires_grad_(True)
        hidden: Tensor = torch.utils.checkpoint.checkpoint(
            lambda t: (model(t) * batch["keep"]).abs().sqrt(), x, use_reentrant=True
        )
        return hidden.square().mean()

    found = replayed(model, [{"x": torch.randn(8, 4), "keep": keep}], loss_of)
    assert "backward inside of backward" in found.message
    assert "use_reentrant=False" in found.remedy


def test_an_error_in_the_users_code_comes_through_and_leaves_no_hook() -> None:
    model = nn.Linear(4, 1)

    def loss_of(batch: Batch) -> Tensor:
        model(batch["x"])
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        replayed(model, [{"x": torch.randn(8, 4)}], loss_of)
    assert not model._forward_hooks
    assert torch.overrides._get_current_function_mode() is None
