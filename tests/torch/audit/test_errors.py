"""torch's own errors about formats, raised by the real kernels of this version, in castiron's words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from castiron.diagnostics import AuditError
from castiron.torch.audit.errors import dtype_errors, translate

X = torch.ones(4, 3, 8)


def half_lstm_state():
    lstm = nn.LSTM(8, 8)
    h = torch.zeros(1, 3, 8, dtype=torch.float64)
    return lstm(X, (h, h))


def changed_after_the_first_step():
    model = nn.Linear(8, 1)
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    model(X).sum().backward()
    optimizer.step()
    model.double()
    optimizer.zero_grad()
    model(X.double()).sum().backward()
    optimizer.step()


def huber():
    F.huber_loss(torch.ones(3, requires_grad=True), torch.ones(3, dtype=torch.float64)).backward()


def packed():
    sequence = nn.utils.rnn.pack_padded_sequence(X.double(), torch.tensor([4, 3, 2]))
    return nn.LSTM(8, 8)(sequence)


def assigned_gradient():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2, dtype=torch.float64)


CASES = {
    "linear": (lambda: nn.Linear(8, 2)(X.double()), "F306 a matrix product got float64 and float32."),
    "half linear": (lambda: nn.Linear(8, 2).half()(X), "F306 a matrix product got float32 and float16."),
    "matmul": (lambda: X[0] @ X[1].T.double(), "F306 a matrix product got float32 and float64."),
    "convolution": (
        lambda: nn.Conv1d(3, 2, 3)(X.double()), "F306 a convolution got float64 input and float32 weights.",
    ),
    "lstm": (
        lambda: nn.LSTM(8, 8)(X.double()), "F306 a recurrent layer of float32 weights got float64 input.",
    ),
    "packed lstm": (packed, "F306 a matrix product got float64 and float32."),
    "lstm state": (half_lstm_state, "F306 oneDNN got a float64 state (h0, c0) for a recurrent layer."),
    "layer norm": (
        lambda: nn.LayerNorm(8)(X.double()),
        "F306 a normalisation layer got input in another format than its weights.",
    ),
    "list": (lambda: nn.LSTM(8, 8)([[1.0]]), "F307 a layer got a Python list in place of a tensor."),
    "integer labels": (
        lambda: F.binary_cross_entropy_with_logits(torch.ones(3), torch.ones(3, dtype=torch.int64)),
        "F307 a loss or an in-place operation computes in float32 and is to be stored as int64.",
    ),
    "boolean labels": (
        lambda: F.binary_cross_entropy_with_logits(torch.ones(3), torch.ones(3, dtype=torch.bool)),
        "F307 a difference of booleans, in a loss with boolean labels.",
    ),
    "bce": (
        lambda: F.binary_cross_entropy(torch.ones(3), torch.ones(3, dtype=torch.float64)),
        "F306 a loss or its backward got float64 where float32 is needed.",
    ),
    "huber": (huber, "F306 a loss or its backward got float64 where float32 is needed."),
    "classes": (
        lambda: F.cross_entropy(torch.ones(3, 2), torch.zeros(3, dtype=torch.int32)),
        "F307 class numbers came as int32.",
    ),
    "ids": (
        lambda: F.embedding(torch.ones(3), torch.ones(3, 2)),
        "F307 an embedding got ids that are no int64 or int32.",
    ),
    "numpy left": (
        lambda: np.ones(8) * X.requires_grad_(),
        "F307 a",
    ),
    "numpy right": (
        lambda: np.exp(torch.ones(2, requires_grad=True)),
        "F307 a tensor that needs gradients meets a NumPy array.",
    ),
    "assigned gradient": (
        assigned_gradient,
        "F307 a gradient in float64 is put on a parameter that wants float32.",
    ),
    "changed after the first step": (
        changed_after_the_first_step, "F307 an operation wants float32 for 'end' and got float64",
    ),
    "overflowing mask": (
        lambda: torch.ones(2, dtype=torch.float16).masked_fill(torch.tensor([True, False]), -1e9),
        "F307 a number in the code does not fit into",
    ),
    "scatter": (
        lambda: torch.zeros(3).scatter(0, torch.tensor([0]), torch.ones(1, dtype=torch.float64)),
        "F306 values are written into a tensor of another format.",
    ),
    "no kernel": (
        lambda: torch.linalg.inv(torch.eye(2, dtype=torch.bfloat16)),
        "F307 the kernel linalg.inv does not exist for bfloat16.",
    ),
    "no kernel in words": (
        lambda: torch.softmax(torch.ones(2, dtype=torch.int64), 0),
        "F307 the kernel softmax_lastdim_kernel_impl does not exist for int64.",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_translation(name):
    run, expected = CASES[name]
    with pytest.raises((RuntimeError, ValueError, TypeError, AttributeError)) as caught:
        run()
    make = translate(str(caught.value))
    assert make is not None, str(caught.value)
    found = make()
    assert str(found).startswith(expected), str(found)
    assert found.remedy
    assert found.evidence["error"] == str(caught.value)


def test_where_it_was():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)))
    model[1][0].double()
    with pytest.raises(AuditError) as caught, dtype_errors(model):
        model(X)
    (found,) = caught.value.findings
    assert found.place.module == "1.0"
    assert found.place.file == __file__
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), dtype_errors(nn.Linear(8, 8)):
        nn.Linear(8, 8)(torch.ones(3, 3))
    with pytest.raises(KeyError), dtype_errors(nn.Linear(8, 8)):
        {}["a"]
    assert translate("shapes cannot be multiplied") is None
