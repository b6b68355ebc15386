"""Process-wide switches: set both ways, and put back."""

from __future__ import annotations

import contextlib
import os
import random

import numpy as np
import pytest
import torch

from castiron.policy.sections import MatmulSection
from castiron.torch.determinism import (
    deterministic_algorithms,
    isolated_rng,
    seed_everything,
    seeded,
    threads,
)
from castiron.torch.switches import denormals_flushed, matmul_switches, snapshot

KEYS = ["cuda.matmul", "cuda.conv", "cuda.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"]


@pytest.mark.parametrize("on", [False, True])
def test_every_switch_is_set_explicitly_and_put_back(on: bool) -> None:
    before = snapshot()
    with matmul_switches(MatmulSection(tf32=on, reduced_precision_reduction=on)) as during:
        assert during == snapshot()
        assert during["fp32_precision"] == dict.fromkeys(KEYS, "tf32" if on else "ieee")
        assert during["reduced_precision_reduction"] == {
            "float16": on,
            "bfloat16": on,
            "attention": on,
        }
        assert during["float16_accumulation"] is False
    assert snapshot() == before


@pytest.mark.parametrize("on", [False, True])
def test_the_older_interface_can_still_be_read(on: bool) -> None:
    """Lightning and torch.compile read it; it raises when the newer one has said something else."""
    with matmul_switches(MatmulSection(tf32=on)):
        assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
        assert torch.backends.cuda.matmul.allow_tf32 is on
        assert torch.backends.cudnn.allow_tf32 is on
    assert torch.get_float32_matmul_precision() == "highest"


def test_switches_are_put_back_after_an_error() -> None:
    before = snapshot()
    with pytest.raises(KeyError), matmul_switches(MatmulSection(tf32=True)):
        raise KeyError
    assert snapshot() == before


def test_what_a_user_set_is_put_back_in_either_interface() -> None:
    original = snapshot()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = False
        before = snapshot()
        with matmul_switches(MatmulSection(tf32=True)):
            pass
        assert snapshot() == before
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # the two now disagree
        before = snapshot()
        assert before["float32_matmul_precision"] is None
        with matmul_switches(MatmulSection(tf32=False)):
            assert snapshot()["float32_matmul_precision"] == "highest"
        assert snapshot() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        for key, value in original["fp32_precision"].items():
            torch._C._set_fp32_precision_setter(*key.split("."), value)
    assert snapshot() == original


def test_nested_contexts() -> None:
    with matmul_switches(MatmulSection(tf32=True)):
        with matmul_switches(MatmulSection(tf32=False)):
            assert snapshot()["fp32_precision"]["cuda.matmul"] == "ieee"
        assert snapshot()["fp32_precision"]["cuda.matmul"] == "tf32"


def test_flushed_denormals_are_seen() -> None:
    assert denormals_flushed() is False
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        assert denormals_flushed() is True
        assert snapshot()["denormals_flushed"] is True
    finally:
        torch.set_flush_denormal(False)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_one_seed_for_all_generators() -> None:
    seed_everything(17)
    first = draws()
    seed_everything(17)
    assert draws() == first
    with pytest.raises(ValueError, match="Expected a seed from 0 to 4294967295"):
        seed_everything(-1)


def test_generators_are_put_back() -> None:
    seed_everything(1)
    expected = draws()
    seed_everything(1)
    with contextlib.suppress(KeyError), isolated_rng():
        seed_everything(2)
        draws()
        raise KeyError
    assert draws() == expected


def test_deterministic_mode_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic_algorithms(warn_only=True), deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_seeded_does_both_and_puts_both_back() -> None:
    seed_everything(1)
    expected = draws()
    seed_everything(1)
    with seeded(5):
        inside = draws()
        assert torch.are_deterministic_algorithms_enabled()
    with seeded(5, deterministic=False):
        assert draws() == inside
        assert not torch.are_deterministic_algorithms_enabled()
    assert draws() == expected


def test_threads_are_put_back() -> None:
    with threads(2) as number:
        assert number == torch.get_num_threads() == 2
        with threads(None) as same:
            assert same == 2
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="Expected at least 1 thread"), threads(0):
        pass
