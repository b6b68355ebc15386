"""What a device can compute, held against what a policy needs."""

from __future__ import annotations

import pytest

from castiron.diagnostics import HardwareError
from castiron.policy import DeviceCapability, PrecisionPolicy, Support, preset_outlook
from castiron.policy.hardware import compute_of, judge, runs

NATIVE = Support(status="native", cost=0.5)
SLOW = Support(status="emulated", cost=20.0, reason="no avx512_fp16")
NEVER = Support(status="unsupported", reason="its kernel raises")

CPU = DeviceCapability(
    device="cpu",
    name="AMD EPYC",
    support={
        "matmul": {"bfloat16": NATIVE, "float16": SLOW},
        "lstm": {"bfloat16": NATIVE, "float16": NEVER},
    },
)
OLD = DeviceCapability(
    device="cpu", name="old CPU", support={"matmul": {"bfloat16": NEVER}, "lstm": {"bfloat16": NEVER}}
)


def refused(preset: str, *needs: tuple[str, str, str], on: DeviceCapability = CPU) -> HardwareError:
    with pytest.raises(HardwareError) as caught:
        judge(PrecisionPolicy.preset(preset), needs, on)  # type: ignore[arg-type]
    return caught.value


def test_what_is_native_is_not_spoken_of() -> None:
    policy = PrecisionPolicy.preset("bf16-mixed")
    assert judge(policy, [("matmul", "bfloat16", "head"), ("lstm", "bfloat16", "lstm")], CPU) == []


def test_refused_with_the_reason_and_the_nearest_that_works() -> None:
    (found,) = refused(
        "fp16-mixed", ("lstm", "float16", "a"), ("lstm", "float16", "b"), ("matmul", "float16", "c")
    ).findings
    assert found.code == "H701"
    assert found.count == 2
    assert found.evidence["layers"] == ["a", "b"]
    assert found.sentence() == (
        "AMD EPYC cannot run lstm layers in float16: its kernel raises. "
        "Expected a compute format that lstm layers run in on this device. "
        "Received float16 (policy fp16-mixed) at layer 'a'. (2 times)"
    )
    assert found.remedy == (
        "Nearest that works: keep these layers wide with a layer rule ('<path>': {compute: float32}), "
        "or use precision: bf16-mixed."
    )


def test_without_other_layers_there_is_nothing_to_keep_narrow() -> None:
    (found,) = refused("fp16-mixed", ("lstm", "float16", "a")).findings
    assert found.remedy == "Nearest that works: use precision: bf16-mixed."


def test_the_nearest_is_one_that_works_here() -> None:
    (found,) = refused("bf16-mixed", ("lstm", "bfloat16", "a"), on=OLD).findings
    assert found.remedy == "Nearest that works: use precision: float32."


def test_the_nearest_says_when_it_is_emulated() -> None:
    slow = DeviceCapability(
        device="cpu", name="x", support={"matmul": {"float8_e4m3fn": NEVER, "bfloat16": SLOW}}
    )
    (found,) = refused("float8-mixed", ("matmul", "float8_e4m3fn", "a"), on=slow).findings
    assert found.remedy == "Nearest that works: use precision: bf16-mixed (by emulation here)."


def test_everything_that_is_refused_is_said_at_once() -> None:
    problems = refused("bf16-mixed", ("lstm", "bfloat16", "a"), ("matmul", "bfloat16", "b"), on=OLD).findings
    assert [f.place.module for f in problems] == ["a", "b"]


def test_emulation_is_a_warning_with_its_measured_cost() -> None:
    (found,) = judge(
        PrecisionPolicy.preset("fp16-mixed"), [("matmul", "float16", "head"), ("matmul", "float16", "x")], CPU
    )
    assert (found.code, found.severity, found.count) == ("H702", "warning", 2)
    assert found.message == (
        "AMD EPYC runs matmul layers in float16 by emulation, measured at 20.0 times the time of float32: "
        "no avx512_fp16"
    )
    assert found.evidence["cost"] == 20.0


def test_a_cost_that_was_not_measured_is_not_invented() -> None:
    slow = DeviceCapability(
        device="cpu",
        name="x",
        support={"matmul": {"float16": Support(status="emulated", reason="no kernel")}},
    )
    (found,) = judge(PrecisionPolicy.preset("fp16-mixed"), [("matmul", "float16", "head")], slow)
    assert found.message == "x runs matmul layers in float16 by emulation: no kernel"


def test_what_was_never_probed() -> None:
    assert CPU.of("gru", "float32").status == "native"
    missing = CPU.of("gru", "bfloat16")
    assert (missing.status, missing.reason) == ("unsupported", "bfloat16 was not found on AMD EPYC")


@pytest.mark.parametrize(
    ("preset", "family", "expected"),
    [
        ("bf16-mixed", "matmul", "bfloat16"),
        ("bf16-mixed", "softmax", "float32"),
        ("bf16-mixed", "normalization", "float32"),
        ("bf16-mixed", "embedding", "float32"),
        ("bf16-true", "embedding", "bfloat16"),
        ("float64", "softmax", "float64"),
        ("tf32", "lstm", "tf32"),
        ("float8-mixed", "matmul", "float8_e4m3fn"),
        ("float8-mixed", "elementwise", "bfloat16"),
    ],
)
def test_what_a_family_computes_in(preset: str, family: str, expected: str) -> None:
    assert compute_of(PrecisionPolicy.preset(preset), family) == expected  # type: ignore[arg-type]


def test_the_worst_family_decides() -> None:
    fp16 = PrecisionPolicy.preset("fp16-mixed")
    assert runs(fp16, ["matmul"], CPU) == "emulated"
    assert runs(fp16, ["matmul", "lstm"], CPU) == "unsupported"
    assert runs(fp16, [], CPU) == "native"
    assert runs(PrecisionPolicy(), ["matmul", "lstm"], CPU) == "native"


def test_outlook() -> None:
    assert preset_outlook(CPU, ("matmul",)) == {
        "float64": "unsupported", "float32": "native", "tf32": "unsupported", "bf16-mixed": "native",
        "fp16-mixed": "emulated", "bf16-true": "native", "fp16-true": "emulated",
        "float8-mixed": "unsupported",
    }  # fmt: skip
