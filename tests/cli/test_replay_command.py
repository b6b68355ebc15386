"""`castiron replay`: what it prints, as lines and as JSON, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from castiron.training.incident import Incident
from castiron.training.incident_folder import write_incident

Held = Callable[..., Path]


def overconfident(model: Any, batch: Any) -> None:
    """Sigmoid of 12 is 1 in bfloat16, and less than 1 in float32."""
    import torch

    model.eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(12.0)


def test_the_block_and_what_mends_it(castiron: Any, held_step: Held, tmp_path: Path) -> None:
    path = held_step("bf16-mixed", spoil=overconfident)
    options = ("--policy", "float32", "--device", "cpu", "--promote", "head", "--promote", "body")
    said = castiron("replay", str(path), *options)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert re.match(r"N50\d log meets 0", lines[0])
    assert "  when      step 12, epoch 1, rank 0" in lines
    assert any(re.match(r"  where     log .*\((forward|loss), domain\)$", line) for line in lines)
    assert any(re.match(r"  source    .*gambler\.py:\d+$", line) for line in lines)
    assert any(line.strip().startswith("return -(batch") for line in lines)
    assert any(
        re.match(r"  rows      data/train\.csv:\d+ \(position \d in the batch\)", line) for line in lines
    )
    assert "  replay    castiron replay incidents/step-12" in lines
    after = lines[lines.index("replayed  the same fault again") :]
    assert after[1] == "✓ policy float32  the fault goes away"
    assert after[2] == "✗ device cpu      the fault stays"
    assert after[3] == "✓ promote head    the fault goes away"
    assert after[4:] == ["✗ promote body    the fault stays"]


def test_a_remedy_that_is_refused_is_named(castiron: Any, held_step: Held) -> None:
    said = castiron("replay", str(held_step(spoil=overconfident)), "--promote", "haed")
    assert said.code == 2
    assert "error L201  The layer rule 'haed' matches nothing in the model." in said.err
    assert "at remedy 'promote haed'." in said.err
    said = castiron("replay", str(held_step(spoil=overconfident)), "--policy", "tf32")
    assert said.code == 2
    assert "remedy 'policy tf32'" in said.err


def test_json(castiron: Any, held_step: Held) -> None:
    path = held_step("bf16-mixed", spoil=overconfident)
    said = castiron("replay", str(path / "incident.json"), "--json", "--policy", "float32")
    assert said.code == 0
    found = json.loads(said.out)
    assert set(found) == {"incident", "replay", "remedies", "notes"}
    assert found["incident"] == json.loads((path / "incident.json").read_text())
    assert found["replay"]["reproduced"] is True
    assert found["remedies"] == [{"tried": "policy float32", "goes_away": True, "remains": None}]
    assert found["notes"] == []


def test_a_fault_that_does_not_come_again_is_said(
    castiron: Any, held_step: Held, gambler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code has been mended since."""
    path = held_step("bf16-mixed", spoil=overconfident)
    gambler.write_text(gambler.read_text().replace(".log()", ".clamp(min=1e-6).log()"))
    for name in [n for n in sys.modules if n.startswith("castiron_user_")]:
        monkeypatch.delitem(sys.modules, name)
    said = castiron("replay", str(path))
    assert said.code == 0
    assert "replayed  the step is finite here: the fault did not come again" in said.out


def test_the_recipe_may_lie_elsewhere(castiron: Any, held_step: Held, gambler: Path, tmp_path: Path) -> None:
    path = held_step(spoil=overconfident)
    moved = Path(shutil.move(gambler, tmp_path / "elsewhere.py"))
    said = castiron("replay", str(path))
    assert said.code == 2
    assert "error N515  The recipe of the run is not on this machine." in said.err
    assert "→ Install it, or say where it is: --recipe FILE.py:CLASS." in said.err
    said = castiron("replay", str(path), "--recipe", f"{moved.name}:Gambler")
    assert said.code == 0


def test_a_module_that_is_no_recipe_is_replayed_from_python(castiron: Any, tmp_path: Path) -> None:
    record = Incident(
        code="N504", step=3, epoch=0, phase="forward", event="domain", message="log meets 0", policy="float32"
    )
    path = write_incident(tmp_path / "incidents", record, facts={"kind": "module", "module": "my.nets.Net"})
    said = castiron("replay", str(path))
    assert said.code == 2
    assert said.out.startswith("N504 log meets 0\n"), "what was recorded is shown all the same"
    assert (
        f"error N515  The step is of Net, which is no recipe: the command line cannot make it. At {path}.\n"
        "  → Replay it from Python, with the module made as for the training: "
        f"castiron.lightning.replay('{path}', Net(…))." in said.err
    )
    said = castiron("replay", str(path), "--json")
    assert said.code == 2
    assert json.loads(said.out)["findings"][0]["code"] == "N515"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/step-3"], "error N512  There is no such folder. Expected an incident's folder."),
        (["."], "error N512  'incident.json' is missing."),
        ([".", "--policy", "bf17"], "error X820  Expected "),
        ([".", "--device", "gpu"], "error X820  Expected cpu or cuda after --device. Received 'gpu'."),
    ],
)
def test_mistakes(castiron: Any, arguments: list[str], message: str) -> None:
    said = castiron("replay", *arguments)
    assert said.code == 2
    assert message.lower() in said.err.lower()


def test_another_wing(castiron: Any, held_step: Held, fake_backend: Any) -> None:
    """The front door knows no framework: it prints what any wing answers."""
    said = castiron("replay", str(held_step("bf16-mixed", spoil=overconfident)))
    assert said.code == 0
    assert said.out.endswith("\nreplayed  the same fault again\n")


def test_a_runs_only_incident_is_found_by_the_runs_name(
    castiron: Any, held_step: Held, tmp_path: Path
) -> None:
    path = held_step(spoil=overconfident)
    target = tmp_path / "runs" / "gambler" / "first" / "incidents"
    target.parent.mkdir(parents=True)
    shutil.move(path.parent, target)
    said = castiron("replay", "gambler/first")
    assert said.code == 0
    assert "castiron replay runs/gambler/first/incidents/step-12" in said.out
