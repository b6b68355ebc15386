"""What a person reads of an incident."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from castiron.training.backend import Replayed, Tried
from castiron.training.incident import (
    Attribution,
    BadRow,
    Incident,
    Link,
    Producer,
    Source,
    TensorStatistics,
)
from castiron.training.incident_text import as_markdown, as_text, place, print_incident, replayed_lines

WHOLE = Incident(
    code="N504",
    step=1200,
    epoch=2,
    micro_batch=1,
    rank=3,
    phase="forward",
    event="domain",
    message="log meets 0, where it has no finite value: 2 -inf of 6",
    producer=Producer(
        op="log",
        module="model.head",
        source=Source(file="net.py", line=41, text="return -(p * p.log()).sum()"),
        time_index=7,
    ),
    operands=(TensorStatistics(name="self", dtype="float32", shape=(2, 3), min=0.0, max=0.75, zero=2),),
    results=(
        TensorStatistics(
            name="result", dtype="bfloat16", shape=(2, 3), min=-1.5, max=-0.2876, neginf=2, subnormal=1
        ),
    ),
    rows=(
        BadRow(index=5, row=17, file="data/train.csv", line=19),
        BadRow(index=6, row=1018),
        BadRow(index=7),
    ),
    chain=(
        Link(what="mul", module="model.head", phase="forward", source=Source(file="net.py", line=42)),
        Link(what="sum", module="", phase="loss"),
        Link(what="loss", phase="loss"),
    ),
    remedy="Use `torch.log_softmax`.",
    policy="p=float32,c=bfloat16,o=bfloat16",
    response="hold",
)
PATH = "/runs/a b/incidents/step-1200"


def test_the_whole_block() -> None:
    assert as_text(WHOLE, PATH).splitlines() == [
        "N504 log meets 0, where it has no finite value: 2 -inf of 6",
        "  when      step 1,200, epoch 2, micro-batch 1, rank 3",
        "  where     log in layer 'model.head' (forward, domain), time step 7",
        "  source    net.py:41",
        "                return -(p * p.log()).sum()",
        "  values    value     dtype     shape   min      max  nan  +inf  -inf  zero  subnormal",
        "            self      float32   2×3       0     0.75    0     0     0     2          0",
        "            → result  bfloat16  2×3    -1.5  -0.2876    0     0     2     0          1",
        "  rows      data/train.csv:19 (position 5 in the batch)",
        "            row 1,018 of the data (position 6 in the batch)",
        "            position 7 in the batch",
        "  chain     mul in layer 'model.head' (forward)  net.py:42",
        "            sum in the model itself (loss)",
        "            loss (loss)",
        "  remedy    Use `torch.log_softmax`.",
        "  policy    p=float32,c=bfloat16,o=bfloat16",
        "  response  hold: training went on without the step",
        "  replay    castiron replay '/runs/a b/incidents/step-1200'",
    ]


def test_what_is_not_known_is_left_out() -> None:
    bare = Incident(
        code="N509", step=0, epoch=0, phase="forward", event="not-reproduced", message="gone",
        policy="float32", reproduced=False,
    )  # fmt: skip
    assert as_text(bare).splitlines() == [
        "N509 gone",
        "  when      step 0, epoch 0, rank 0",
        "  where     forward, not-reproduced",
        "  replayed  the step was run again at once, and was finite",
        "  policy    float32",
    ]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"producer": Producer(op="mm", module="")}, "mm in the model itself (forward, domain)"),
        (
            {"phase": "data", "event": "data", "producer": Producer(parameter="x", module="")},
            "the data, field 'x' (data, data)",
        ),
        (
            {"event": "inherited", "producer": Producer(parameter="a.weight", module="a", op="embedding")},
            "embedding, parameter 'a.weight' in layer 'a' (forward, inherited)",
        ),
        (
            {"phase": "optimizer", "event": "optimizer", "producer": Producer(op="Adam", parameter="a.bias")},
            "Adam, parameter 'a.bias' (optimizer, optimizer)",
        ),
        ({"producer": Producer()}, "forward, domain"),
    ],
)
def test_where(told: dict[str, Any], expected: str) -> None:
    assert place(WHOLE.model_copy(update=told)) == expected


def test_of_many_rows_the_rest_is_counted() -> None:
    many = WHOLE.model_copy(update={"rows": tuple(BadRow(index=i) for i in range(1012))})
    text = as_text(many)
    assert "position 9 in the batch\n" in text
    assert "position 10 in the batch" not in text
    assert "and 1,002 more\n" in text


def test_a_path_below_this_folder_is_shown_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_text(WHOLE, tmp_path / "runs" / "step-1").endswith("castiron replay runs/step-1")
    assert as_text(WHOLE, "runs/step-1").endswith("castiron replay runs/step-1")
    source = Source(file=str(tmp_path / "net.py"), line=3)
    here = WHOLE.model_copy(update={"producer": Producer(op="log", source=source)})
    assert "  source    net.py:3\n" in as_text(here)


def test_what_a_replay_has_shown() -> None:
    same = Attribution.model_validate({n: getattr(WHOLE, n) for n in Attribution.model_fields})
    other = same.model_copy(update={"code": "N501", "message": "mm overflows", "event": "overflow"})
    remedies = (
        Tried(tried="policy float32", goes_away=True),
        Tried(tried="promote a", goes_away=False, remains=same),
        Tried(tried="device cpu", goes_away=False, remains=other),
    )
    found = Replayed(incident=WHOLE, replay=same, remedies=remedies, notes=("A note.",))
    assert [line for line, _ in replayed_lines(found)] == [
        "A note.",
        "replayed  the same fault again",
        "✓ policy float32  the fault goes away",
        "✗ promote a       the fault stays",
        "✗ device cpu      another fault takes its place: N501 mm overflows; log in layer 'model.head' "
        "(forward, overflow), time step 7",
    ]
    assert replayed_lines(Replayed(incident=WHOLE, replay=other))[0][0].startswith(
        "replayed  another fault: N501 mm"
    )
    gone = same.model_copy(update={"reproduced": False})
    assert replayed_lines(Replayed(incident=WHOLE, replay=gone)) == [
        ("replayed  the step is finite here: the fault did not come again", "bold yellow")
    ]


def test_the_terminal_shows_the_same_words() -> None:
    plain, colour = io.StringIO(), io.StringIO()
    print_incident(WHOLE, Console(file=plain, width=200), PATH)
    assert plain.getvalue().splitlines() == as_text(WHOLE, PATH).splitlines()
    print_incident(WHOLE, Console(file=colour, width=200, force_terminal=True, color_system="standard"), PATH)
    assert "\x1b[1;31mN504\x1b[0m" in colour.getvalue()


def test_markdown() -> None:
    text = as_markdown(WHOLE, PATH)
    assert text.startswith(
        "**N504** log meets 0, where it has no finite value: 2 -inf of 6\n\n- *when*: step 1,200"
    )
    assert "- *source*: net.py:41\n  `return -(p * p.log()).sum()`\n" in text
    assert "| self | float32 | 2×3 | 0 | 0.75 | 0 | 0 | 0 | 2 | 0 |\n" in text
    assert "- *rows*:\n    - data/train.csv:19 (position 5 in the batch)\n" in text
    assert "- *remedy*: Use `torch.log_softmax`.\n" in text
    assert text.endswith("- *replay*: `castiron replay '/runs/a b/incidents/step-1200'`\n")
