"""What a device computes, and the process-wide switches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from castiron.diagnostics import HardwareError
from castiron.keras import capability
from castiron.keras.determinism import deterministic_operations, isolated_rng, operations_are_deterministic
from castiron.keras.switches import matmul_switches, snapshot
from castiron.policy.sections import MatmulSection


def test_a_cpu_is_probed_and_the_result_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CASTIRON_CACHE", str(tmp_path))
    monkeypatch.setattr(capability, "FAMILIES", ("matmul", "attention", "lstm"))
    found = capability.device_capability("cpu")
    assert found.device == "cpu"
    assert found.of("lstm", "float32").status == "native"
    assert found.of("attention", "bfloat16").status in ("native", "emulated")
    assert found.of("matmul", "tf32").reason == "tf32 is a mode of NVIDIA's tensor cores"

    def never(device: str) -> Any:
        raise AssertionError("probed again")

    monkeypatch.setattr(capability, "probe", never)
    assert capability.device_capability("cpu") == found


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(HardwareError, match="H703 there is no device 'cuda:9'"):
        capability.device_capability("cuda:9")


def _fail_within(section: MatmulSection) -> None:
    with matmul_switches(section) as seen:
        assert seen["tf32"] is section.tf32
        raise KeyError


@pytest.mark.parametrize("before", [True, False])
def test_tf32_is_set_both_ways_and_put_back_after_an_error(before: bool) -> None:
    enable = tf.config.experimental.enable_tensor_float_32_execution
    enable(before)
    for wanted in (True, False):
        with pytest.raises(KeyError):
            _fail_within(MatmulSection(tf32=wanted))
        assert snapshot()["tf32"] is before
    enable(True)


def test_deterministic_kernels_are_put_back() -> None:
    before = operations_are_deterministic()
    with deterministic_operations(True):
        assert operations_are_deterministic()
    assert operations_are_deterministic() is before


def test_probing_draws_no_random_numbers_of_the_callers() -> None:
    tf.random.set_seed(1)
    wanted = tf.random.uniform([2]).numpy()
    tf.random.set_seed(1)
    with isolated_rng():
        tf.random.set_seed(5)
        tf.random.uniform([3])
    assert (tf.random.uniform([2]).numpy() == wanted).all()
