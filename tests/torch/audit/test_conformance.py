"""What operations do with operands of several formats: castiron's verdict against the kernels of this torch.

torch's own list of operations gives the examples; one operand at a time is put into another format. Where the
real kernel raises, a trace on fake tensors with castiron's table must say so, and only there; where it does
not, the formats of the results must agree.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from castiron.torch.audit.fakes import fake_batch, fake_mode
from castiron.torch.audit.kernels import refused
from castiron.torch.audit.recorder import Recorder

torch.set_num_threads(1)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NEEDS_NUMBERS = {"cov", "equal", "nn.functional.gaussian_nll_loss"}
"""Fake tensors cannot run them at all; the audit takes a real step then."""
RAISES_IN_BACKWARD = {"nn.functional.huber_loss"}
NOT_CALLED = {"_softmax_backward_data", "jiterator_binary", "jiterator_4inputs_with_extra_args"}
"""Only backward calls it, with formats of its own choice; and what compiles for CUDA at a call."""
OTHER_RESULTS = {
    "addr", "native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit",
    "_batch_norm_with_update",
}  # fmt: skip
"""Statistics of norms are saved for backward in float32, which fake tensors do not know and nothing else
sees; of `addr` the formats of the operands are judged, whatever its result."""


def is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def cast(tree: Any, place: int | None, dtype: torch.dtype) -> Any:
    """The operands with that one, or all of them, in another format."""
    count = itertools.count()

    def change(leaf: Any) -> Any:
        if not is_float(leaf):
            return leaf
        return leaf.detach().to(dtype) if place in (None, next(count)) else leaf.detach()

    return tree_map(change, tree)


def formats(results: Any) -> list[torch.dtype]:
    return [t.dtype for t in tree_leaves(results) if isinstance(t, Tensor)]


def really(op: Any, tree: Any) -> list[torch.dtype] | None:
    """Formats of the results; None where the kernel raises."""
    try:
        return formats(op(tree[0], *tree[1], **tree[2]))
    except Exception:  # whatever it is: the kernel does not take it
        return None


def by_castiron(op: Any, tree: Any, device: str) -> list[torch.dtype] | None:
    mode = fake_mode()
    first, args, kwargs = fake_batch(tree, mode, torch.device(device))
    recorder = Recorder({}, device, keep=True)
    try:
        with mode, recorder.recording():
            found = formats(op(first, *args, **kwargs))
    except Exception:  # whatever it is: the kernel does not take it
        return None
    for o in recorder.trace.ops:
        if refused(o.base, [v.dtype for v in o.operands], [v.shape for v in o.operands]) is not None:
            return None
    return found


def mixed(op: Any, device: str) -> Iterator[tuple[str, Any]]:
    """Calls of an operation with one operand in another format."""
    for sample in itertools.islice(op.sample_inputs(device, torch.float32, requires_grad=False), 2):
        tree = (sample.input, list(sample.args), dict(sample.kwargs))
        floats = sum(is_float(leaf) for leaf in tree_leaves(tree))
        if floats < 2 or really(op, tree) is None:
            continue
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            if really(op, cast(tree, None, dtype)) is None:
                continue  # no kernel of this format at all
            for place in range(min(floats, 4)):
                yield f"operand {place} in {dtype}", cast(tree, place, dtype)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device", DEVICES)
def test_every_operation_of_torch(
    device: str, monkeypatch: pytest.MonkeyPatch, list_of_torch: Callable[[str, str], list[Any]]
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    monkeypatch.setattr(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True)
    wrong, tried = [], 0
    for op in list_of_torch("common_methods_invocations", "op_db"):
        if torch.float32 not in op.supported_dtypes(device) or op.name in NOT_CALLED | NEEDS_NUMBERS:
            continue
        for what, tree in mixed(op, device):
            tried += 1
            real, ours = really(op, tree), by_castiron(op, tree, device)
            if (real is None) != (ours is None) and op.name not in RAISES_IN_BACKWARD:
                wrong.append(f"{op.name}, {what}: the kernel {'raises' if real is None else 'takes it'}")
            elif real and ours and real != ours and op.name not in OTHER_RESULTS:
                wrong.append(f"{op.name}, {what}: gives {real}, and castiron says {ours}")
    assert not wrong, "\n".join(wrong)
    assert tried > 1000
