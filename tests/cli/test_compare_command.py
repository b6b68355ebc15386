"""`castiron compare`: a row for each policy, the layer where they part, a page that opens offline."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from castiron.health.differences import expected_growth, gamma, unit_roundoff

HERE = Path(__file__).parent
MLP = f"{HERE / 'small_recipes.py'}:Rows"
ONE = ("trainer.threads=1", "trainer.device=cpu")


class Page(HTMLParser):
    """Counts elements, and keeps what refers to something outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.outside += [v for n, v in attrs if n in ("src", "href") and not v.startswith("#")]


def test_policies_side_by_side(castiron, tmp_path):
    policies = "float32,float64,bf16-mixed,float8-mixed,fp16-mixed"
    arguments = ("data.batch_size=32", *ONE, "--policies", policies, "--steps", "6", "--name", "a")
    said = castiron("compare", MLP, *arguments, "--html")
    assert said.code == 0, said.err
    folder = tmp_path / "runs/compare/a"
    assert said.out.splitlines()[-1] == "runs/compare/a/compare.html"
    assert "float64 (widest)" in said.out
    assert "cannot run matmul layers in float8_e4m3fn" in said.out
    assert "bf16-mixed and float64 part in 0 (Linear): relative norm 0.00" in said.out
    assert "Backward, the first gradient apart is that of " in said.out

    record = json.loads((folder / "compare.json").read_text())
    sides = {s["name"]: s for s in record["sides"]}
    assert list(sides) == policies.split(",")
    assert record["reference"] == "float64"
    assert sides["float8-mixed"]["losses"] == []
    assert (sides["float8-mixed"]["status"], sides["float8-mixed"]["code"][0]) == ("refused", "H")
    assert f"refused: {sides['float8-mixed']['code']}" in said.out
    for name in ("float32", "bf16-mixed", "fp16-mixed"):
        side = sides[name]
        assert list(side["differences"]) == ["0", "1", "4", "6"]
        assert len(side["losses"]) == 6
        assert side["same_batches"]
        # the same batches and weights: the first loss differs by rounding, and all by little
        u = {"float32": 2**-24, "bf16-mixed": 2**-8, "fp16-mixed": 2**-11}[name]
        for mine, wide in zip(side["losses"], sides["float64"]["losses"], strict=True):
            assert abs(mine - wide) < 8 * u
        layers = side["differences"]["0"]["activations"]
        assert list(layers) == ["0", "1", "2", "3", "4"]
        assert all(0.1 * u < d["relative_norm"] < 8 * u for d in layers.values())
        assert side["parts"]["activations"] == "0"
        assert set(side["metrics"]) == {"loss"}
    bytes_of = {n: s["memory"] for n, s in sides.items()}
    assert bytes_of["float64"]["parameters"] == 2 * bytes_of["float32"]["parameters"]
    assert bytes_of["bf16-mixed"]["kept for backward"] < bytes_of["float32"]["kept for backward"]

    text = (folder / "compare.html").read_text()
    page = Page(text)
    assert page.outside == []
    assert "script" not in page.tags
    assert page.tags["svg"] >= 7
    assert text.index("part in 0 (Linear)") < text.index("<h2")
    figures = sorted(p.stem for p in (folder / "figures").iterdir())
    assert {"activations", "activation-gradients", "gradients", "losses", "loss-differences"} <= set(figures)
    assert all(p.stat().st_size < 150_000 for p in (folder / "figures").iterdir())
    events = EventAccumulator(str(folder / "bf16-mixed")).Reload()
    norms = events.Scalars("Health/difference of activations/0")
    assert [e.step for e in norms] == [0, 1, 4, 6]
    assert len(events.Scalars("Training/loss/train")) == 6
    assert EventAccumulator(str(folder)).Reload().Tags()["images"]

    again = castiron("compare", MLP, *arguments)
    assert again.code == 2
    assert "X817" in again.err


@pytest.mark.parametrize(("recipe", "after", "code"), [("Overflows", 0, "N501"), ("Breaks", 3, "N502")])
def test_an_incident_is_a_row_and_the_others_go_on(castiron, tmp_path, recipe, after, code):
    source = f"{HERE / 'sick_recipes.py'}:{recipe}"
    policies = "fp16-mixed,float32,fp16-true"
    said = castiron("compare", source, *ONE, "--policies", policies, "--steps", "5", "--name", "a", "--html")
    assert said.code == 0, said.err
    assert said.out.count(f"stopped after {after} steps: {code}") == 2
    assert f"fp16-true was stopped: {code} " in said.out
    assert "typer" not in said.out, "a place is a line of the recipe, or none"
    folder = tmp_path / "runs/compare/a"
    record = json.loads((folder / "compare.json").read_text())
    mixed, wide, narrow = record["sides"]
    assert (wide["status"], wide["code"], wide["step"], len(wide["losses"])) == ("ran", None, 5, 5)
    assert wide["metrics"]
    for side in (mixed, narrow):
        assert (side["status"], side["code"], side["step"]) == ("stopped", code, after)
        assert len(side["losses"]) == after
        assert all(map(math.isfinite, side["losses"]))
        assert side["metrics"] == {}
        assert side["differences"]["0"]["activations"]
    page = (folder / "compare.html").read_text()
    assert 'class="verdict ill"' in page
    assert page.count(f"stopped after {after} steps: {code}") == 2
    assert Page(page).outside == []


def test_batches_that_differ_are_told():
    from castiron.policy import PrecisionPolicy
    from castiron.training.comparing import _side
    from castiron.training.side import Trained

    policy = PrecisionPolicy.preset("float32")
    wide = Trained(losses=(1.0, 1.0), step_ms=1.0, batches=("a", "b", "c"))
    mine = Trained(losses=(1.0, 1.0), step_ms=1.0, batches=("a", "x"))
    side = _side("float32", policy, mine, wide)
    assert not side.same_batches
    assert side.notes == ("From step 2 on its batches are others: differences are not those of arithmetic.",)
    assert _side("float32", policy, mine, None).same_batches


def test_ctrl_c_ends_it_and_leaves_nothing_half_written(tmp_path):
    words = [sys.executable, "-m", "castiron", "compare", MLP, *ONE, "--policies", "float64,float32"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*words, "--steps", "100000", "--name", "a"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("float64: 100000 steps")
        time.sleep(1.5)  # the training is under way, or about to be
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    assert "Interrupted" in rest
    assert "Traceback" not in rest
    assert not list(tmp_path.iterdir()), "neither a run nor what it was computed in"


def test_a_short_form_and_json(castiron):
    short = "p=float32,c=bfloat16,o=float32"
    said = castiron("compare", MLP, *ONE, "--policies", f"float32;{short}", "--steps", "2", "--json")
    assert said.code == 0, said.err
    record = json.loads(said.out)
    assert [s["name"] for s in record["sides"]] == ["float32", short]
    assert record["sides"][1]["differences"]["0"]["activations"]["0"]["format"] == "float32"
    assert Path(record["folder"], "compare.json").is_file()
    assert not Path(record["folder"], "compare.html").exists()


@pytest.mark.parametrize(
    ("policies", "told"),
    [("float32", "There is nothing to compare."), ("float32,bf17-mixed", "bf16-mixed")],
)
def test_mistakes_are_told_before_anything_runs(castiron, tmp_path, policies, told):
    said = castiron("compare", MLP, "--policies", policies)
    assert said.code == 2
    assert told in said.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("sums", ["kernel", "in-order"])
def test_errors_of_products_grow_as_theory_says(castiron, sums):
    lengths = [16, 64, 256, 1024]
    arguments = (f"model.lengths={lengths}", f"model.sums={sums}", "data.batch_size=32", *ONE, "--steps", "1")
    policies = "float64,float32,bf16-mixed" if sums == "kernel" else "float64,float32"
    said = castiron("compare", "matrix-product", *arguments, "--policies", policies, "--json")
    assert said.code == 0, said.err
    record = json.loads(said.out)
    sides = {s["name"]: s["products"] for s in record["sides"]}
    assert [p["n"] for p in sides["float32"]] == lengths
    assert sides["float64"] == []
    u = unit_roundoff("float32")
    for p in sides["float32"]:
        n, error = p["n"], p["error"]
        # A kernel that sums in blocks stays below the sum in order, by the size of its blocks at most.
        least = 0.1 if sums == "in-order" else 0.1 / math.sqrt(n / 16)
        assert least * expected_growth(n, u) < error < expected_growth(n, u) < gamma(n, u)
    if sums == "in-order":
        growth = [math.log2(b["error"] / a["error"]) for a, b in pairwise(sides["float32"])]
        assert growth == pytest.approx([1.0] * 3, abs=0.25), "twice the error at four times the length"
        return
    narrow = unit_roundoff("bfloat16")
    for p in sides[
        "bf16-mixed"
    ]:  # summed in float32: what rounds is operands and result, whatever the length
        assert 0.2 * narrow < p["error"] < 3 * narrow
    assert (Path(record["folder"]) / "figures/products.png").is_file()


def test_the_linear_and_the_deep_example(castiron):
    said = castiron(
        "compare",
        "compare/linear_regression",
        *ONE,
        "--policies",
        "float64,float32",
        "--steps",
        "60",
        "--json",
    )
    assert said.code == 0, said.err
    wide, narrow = json.loads(said.out)["sides"]
    apart = [abs(a - b) / b for a, b in zip(narrow["losses"], wide["losses"], strict=True)]
    # a convex problem: errors are pulled back and do not build up
    assert max(apart) < 200 * unit_roundoff("float32")
    assert narrow["differences"]["60"]["activations"]["head"]["relative_norm"] < 100 * unit_roundoff(
        "float32"
    )
    assert [(p["layer"], p["n"]) for p in narrow["products"]] == [("head", 19)]

    said = castiron("compare", "deep-relu", *ONE, "--policies", "float64,float32", "--steps", "1", "--json")
    assert said.code == 0, said.err
    record = json.loads(said.out)
    layers = record["sides"][1]["differences"]["0"]["activations"]
    norms = [d["relative_norm"] for n, d in layers.items() if n.startswith("body.") and int(n[5:]) % 2 == 0]
    assert len(norms) == 32
    # every layer adds its own rounding: independent errors grow with the root of the depth
    for k in (8, 16, 32):
        assert 0.4 * math.sqrt(k) < norms[k - 1] / norms[0] < 2.5 * math.sqrt(k)
    assert (Path(record["folder"]) / "figures/depth.png").is_file()
