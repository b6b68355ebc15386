"""Models that nobody here wrote: every module of torch.nn, and architectures of the package transformers.

They are audited without a crash, and what is found in them is what was looked at and is true.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from castiron.torch.audit import audit

torch.set_num_threads(1)

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "audit_models.py"
NAMES = (
    "bert", "distilbert", "gpt2", "t5", "bart", "llama", "mistral", "mixtral", "vit", "resnet", "convnext",
    "clip", "whisper", "wav2vec2",
)  # fmt: skip
IN_SIXTEEN_BITS = {
    # the last Linear of a T5 block casts its input to the format of its weight; autocast casts it back
    "t5": {"F309"},
    # an RMS norm multiplies what it casts to 16 bits with its float32 weight, and so hands on float32
    "llama": {"F301"},
    "mistral": {"F301"},
    # and torch's grouped product, which multiplies the experts' weights, is none of autocast's operations
    "mixtral": {"F301", "F303"},
    # a float32 parameter scales 16-bit activations
    "convnext": {"F301"},
}
"""What is found under bf16-mixed and fp16-mixed; each was read in the model's code."""


def found(report: Any) -> set[str]:
    return {f.code for f in report.findings if f.severity != "info"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_transformers(name: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed; castiron does not need it")
    spec = importlib.util.spec_from_file_location("audit_models", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert set(NAMES) == set(script.MODELS)
    assert found(script.audited(name, "float32")) == set()
    for policy in ("bf16-mixed", "fp16-mixed"):
        assert found(script.audited(name, policy)) == IN_SIXTEEN_BITS.get(name, set())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", ["float32", "bf16-mixed", "fp16-mixed"])
def test_torch_nn(policy: str, list_of_torch: Callable[[str, str], list[Any]]) -> None:
    wrong, tried = [], 0
    for info in list_of_torch("common_modules", "module_db"):
        if "Lazy" in info.name:
            continue  # refused with L209: they have no parameters to plan before their first batch
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
        )
        for each in itertools.islice(inputs, 2):
            made, given = each.constructor_input, each.forward_input
            model = info.module_cls(*made.args, **made.kwargs)
            batch = (given.args, given.kwargs)
            if given.args and isinstance(given.args[0], torch.Tensor) and given.args[0].dim() == 0:
                continue  # its one number would be taken for a loss
            report = audit(model, batch, policy, call=lambda model, batch: model(*batch[0], **batch[1]))
            tried += 1
            refused = {"F319"} if info.name == "nn.BCELoss" and policy != "float32" else set()
            if found(report) != refused:
                wrong.append(f"{info.name}: {[str(f) for f in report.findings]}")
    assert not wrong, "\n".join(wrong)
    assert tried > 100
