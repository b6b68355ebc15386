"""What a device computes, found out and cached."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from castiron.diagnostics import HardwareError
from castiron.formats import FORMATS
from castiron.policy import FAMILIES, DeviceCapability, preset_outlook
from castiron.torch import capability as module
from castiron.torch.capability import device_capability, probe, resolve_device
from castiron.training.capability_cache import cache_directory
from castiron.training.processor import support_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def here() -> DeviceCapability:
    return probe(CPU)


def test_every_family_and_float_format_is_answered(here: DeviceCapability) -> None:
    assert set(here.support) == set(FAMILIES)
    floats = {name for name, f in FORMATS.items() if f.is_float}
    for family, formats in here.support.items():
        assert set(formats) == floats, family
        for name, support in formats.items():
            assert (support.cost is None) == (support.status == "unsupported"), (family, name)
            assert bool(support.reason) == (support.status != "native"), (family, name)


def test_float32_and_float64_are_native_and_float32_is_the_measure(here: DeviceCapability) -> None:
    for family in FAMILIES:
        assert here.of(family, "float32").status == "native"
        assert here.of(family, "float32").cost == 1.0
        assert here.of(family, "float64").status == "native"


def test_native_comes_from_what_the_processor_says(
    here: DeviceCapability, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_bfloat16 = any(f in here.features for f in ("avx512_bf16", "amx_bf16", "bf16"))
    assert here.of("matmul", "bfloat16").status == ("native" if has_bfloat16 else "emulated")
    for features, bfloat16, float16 in [
        (("avx2", "f16c"), "emulated", "emulated"),
        (("avx512f", "avx512_bf16"), "native", "emulated"),
        (("amx_bf16", "avx512_fp16"), "native", "native"),
    ]:
        for name, expected in (("bfloat16", bfloat16), ("float16", float16)):
            times = {"float32": 1.0, name: 0.1}  # fast, and still not native
            found = support_of("matmul", name, "cpu", features, times, {}, float8="")
            assert found.status == expected
            assert found.cost == 0.1
    emulated = support_of("lstm", "bfloat16", "cpu", (), {"float32": 2.0, "bfloat16": 7.0}, {}, float8="")
    assert emulated.cost == 3.5
    assert emulated.reason == "no avx512_bf16 or amx_bf16: bfloat16 is converted to float32 and back"


def test_cuda_is_judged_by_compute_capability() -> None:
    times = dict.fromkeys(("float32", "bfloat16", "float16"), 1.0)

    def status(name: str, version: str) -> str:
        return support_of("matmul", name, "cuda", (f"compute_{version}",), times, {}, float8="").status

    assert [status("bfloat16", v) for v in ("7.5", "8.0", "9.0")] == ["emulated", "native", "native"]
    assert [status("float16", v) for v in ("5.2", "7.0")] == ["emulated", "native"]
    assert [status("tf32", v) for v in ("7.5", "8.6")] == ["unsupported", "native"]
    reason = support_of("matmul", "tf32", "cuda", ("compute_7.5",), times, {}, float8="").reason
    assert reason == "tf32 needs compute capability 8.0; this device has 7.5"


def test_tf32_and_float8_do_not_run_on_a_cpu(here: DeviceCapability) -> None:
    assert here.of("matmul", "tf32").reason == "tf32 is a mode of NVIDIA's tensor cores"
    assert "scaled kernels" in here.of("matmul", "float8_e4m3fn").reason
    outlook = preset_outlook(here, FAMILIES)
    assert outlook["float32"] == "native"
    assert outlook["tf32"] == outlook["float8-mixed"] == "unsupported"


def test_a_kernel_that_fails_is_unsupported_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(family: Any, dtype: torch.dtype, device: torch.device) -> Any:
        def run() -> None:
            if dtype is torch.float16:
                raise RuntimeError("could not create a primitive descriptor\nmore")

        return run

    monkeypatch.setattr(module, "make_probe", make)
    found = probe(CPU)
    assert found.of("lstm", "float16").status == "unsupported"
    assert found.of("lstm", "float16").reason == (
        "torch's kernel fails: could not create a primitive descriptor"
    )


def test_probing_draws_no_random_numbers_and_leaves_threads(here: DeviceCapability) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    torch.set_num_threads(2)
    probe(CPU)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 2


# --- the cache ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of this test alone."""
    path = tmp_path / "cache"
    monkeypatch.setenv("CASTIRON_CACHE", str(path))
    return path


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch, here: DeviceCapability) -> list[torch.device]:
    """The devices that were probed; a probe answers at once."""
    made: list[torch.device] = []

    def quick(device: torch.device) -> DeviceCapability:
        made.append(device)
        return here

    monkeypatch.setattr(module, "probe", quick)
    return made


def test_the_second_time_nothing_is_probed(probes: list[torch.device], here: DeviceCapability) -> None:
    assert device_capability("cpu") == here
    start = time.perf_counter()
    assert device_capability("cpu") == here
    assert time.perf_counter() - start < 1
    assert len(probes) == 1
    device_capability("cpu", refresh=True)
    assert len(probes) == 2


@pytest.mark.parametrize("damage", ["", "{", '{"identity": 1}', "[]", "null", "\x00\xff"])
def test_a_damaged_cache_is_ignored_and_rewritten(
    probes: list[torch.device], cache: Path, damage: str, here: DeviceCapability
) -> None:
    device_capability("cpu")
    (path,) = cache.glob("capability-cpu-*.json")
    path.write_text(damage, encoding="latin-1")
    assert device_capability("cpu") == here
    assert len(probes) == 2
    assert json.loads(path.read_text())["capability"]["device"] == "cpu"


def test_another_machine_or_version_is_probed_anew(
    probes: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    device_capability("cpu")
    monkeypatch.setattr(module, "features_of", lambda device: ("avx2",))
    device_capability("cpu")
    monkeypatch.setattr(module.torch, "__version__", "2.99")
    device_capability("cpu")
    assert len(probes) == 3


def test_writers_at_the_same_time_leave_one_whole_file(
    probes: list[torch.device], cache: Path, here: DeviceCapability
) -> None:
    threads = [
        threading.Thread(target=device_capability, args=("cpu",), kwargs={"refresh": True}) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.suffix for p in cache.iterdir()] == [".json"]
    assert device_capability("cpu") == here


def test_a_cache_that_cannot_be_written_is_no_error(
    probes: list[torch.device], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: DeviceCapability
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("CASTIRON_CACHE", str(blocked))
    assert device_capability("cpu") == here


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CASTIRON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "castiron"


def test_a_device_that_is_not_there_is_an_error() -> None:
    assert resolve_device("cpu") == CPU
    with pytest.raises(HardwareError) as refused:
        resolve_device("cuda:99")
    assert refused.value.findings[0].sentence().startswith("there is no device 'cuda:99'. Expected auto, cpu")
    with pytest.raises(HardwareError, match="H703 there is no device 'tpu'"):
        device_capability("tpu")


@pytest.mark.gpu
def test_a_gpu_is_probed() -> None:
    found = probe(torch.device("cuda", 0))
    assert found.device == "cuda"
    assert found.of("matmul", "float16").status == "native"
