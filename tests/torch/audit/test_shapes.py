"""Declared shapes at the boundaries of layers (F340), and means over the wrong axis (F341)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from castiron.torch.audit import audit
from castiron.training.shapes import Axes, Boundary

torch.set_num_threads(1)


def test_axes_are_the_same_wherever_they_stand():
    axes = Axes({"batch": 16})
    assert axes.agree(("batch", "time", "8"), (16, 40, 8))
    assert axes.agree(("time", "batch", "_"), (40, 16, 3))
    assert axes.agree(("batch", "..."), (16, 1, 2, 3))
    assert axes.agree(("batch", "..."), (16,))
    assert not axes.agree(("batch", "time"), (16, 39))
    assert not axes.agree(("batch", "time", "8"), (16, 40))
    assert not axes.agree(("n", "n"), (2, 3))
    assert axes.resolved(("batch", "time", "new")) == "[batch=16, time=40, new]"
    assert axes.other_order(("batch", "time", "8"), (40, 16, 8)) == "[time, batch, 8]"
    assert axes.other_order(("batch", "time", "8"), (41, 16, 9)) is None


def test_what_cannot_be_read():
    with pytest.raises(ValueError, match=r"an axis is a name, a number, _ or \.\.\., and not 'b-c'"):
        Boundary.parse("a b-c -> d")
    with pytest.raises(ValueError, match="at most once"):
        Boundary.parse("a ... ... -> d")
    assert Boundary.parse("batch 4") == Boundary((), (("batch", "4"),))


class Tagger(nn.Module):
    """An LSTM that wants [T, B, F]."""

    def __init__(self, batch_first):
        super().__init__()
        self.lstm = nn.LSTM(8, 6, batch_first=batch_first)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


DECLARED = {
    "": "batch time 8 -> batch time 3",
    "lstm": "batch time 8 -> batch time 6",
    "head": "... 6 -> ... 3",
}


def found(model, x, shapes=None):
    report = audit(model, x, shapes=shapes)
    return [(f.place.module, str(f)) for f in report.findings if f.severity != "info"]


def test_nothing_is_said_of_shapes_as_declared():
    assert found(Tagger(True), torch.randn(16, 5, 8), DECLARED) == []


def test_axes_in_another_order():
    class Swapped(Tagger):
        def forward(self, x):
            return super().forward(x.transpose(0, 1)).transpose(0, 1)

    said = dict(found(Swapped(True), torch.randn(16, 5, 8), DECLARED))
    assert set(said) == {"lstm"}
    assert "another shape than declared: its axes look like [time, batch, " in said["lstm"]
    assert "Expected [batch=16, time=5, " in said["lstm"]


def test_a_length_that_is_not_declared():
    ((where, said),) = found(Tagger(True), torch.randn(16, 5, 8), {"head": "batch time 6 -> batch time 4"})
    assert where == "head"
    assert said.startswith(
        "F340 a Linear hands on a tensor of another shape than declared. Expected [batch=16, time=5, 4]. "
        "Received [16, 5, 3] at layer 'head'"
    )


def test_declarations_of_nothing():
    model = Tagger(True)
    model.spare = nn.Linear(2, 2)
    said = dict(found(model, torch.randn(4, 5, 8), {"haed": "_", "spare": "batch 2"}))
    assert "no layer has this path" in said["haed"]
    assert "a layer that did not run" in said["spare"]


class Mean(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.head, self.how = nn.Linear(8, 4), how

    def forward(self, x):
        return self.how(self.head(x))


@pytest.mark.parametrize(
    ("how", "wrong"),
    [
        (lambda h: h.sum(1) / len(h), True),
        (lambda h: h.sum(1, keepdim=True) / h.shape[0], True),
        (lambda h: h.sum(1) / h.shape[1], False),
        (lambda h: h.sum(0) / len(h), False),
        (lambda h: h.sum() / len(h), False),
        (lambda h: (h.sum(1) / len(h)).sum(), False),  # the other axis is summed too: a mean over the batch
    ],
)
def test_a_mean_over_the_wrong_axis(how, wrong):
    report = audit(Mean(how), torch.randn(16, 8))
    said = [str(f) for f in report.findings if f.code == "F341"]
    assert bool(said) == wrong
    if wrong:
        assert said[0].startswith(
            "F341 a sum over 4 numbers (axis 1 of [16, 4]) is divided by 16, the length of another axis. "
            "Expected a division by 4. Received 16 at "
        )
