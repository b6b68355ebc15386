"""Every command that a page shows is run, small, in a folder where what it names is there; or is not.

`<!-- not run: why -->` above a block says why it is not. A command on files that are not ours to ship is not
run either; nor are those of a page that has a test of its own. All are held against the command line: that
they exist, and take these arguments.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

sys.path.insert(0, str(Path(__file__).parent))

from pages import PAGES, ROOT, Block, blocks, name

from castiron.cli.board import free_port
from castiron.cli.main import app, run

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SMALL = ["trainer.max_steps=2", "trainer.limit_train=2", "trainer.limit_validation=1", "trainer.limit_test=1",
         "trainer.threads=1"]  # fmt: skip
ELSEWHERE = {"docs/compare.md": "test_compare_page.py"}
"""Page → the test that runs its commands."""
SIDES = ["trainer.limit_validation=1", "trainer.threads=1", "trainer.device=cpu"]
SIZES = {"matrix-product": ["model.lengths=[16, 32]"], "deep-relu": ["model.depth=4"]}
MODULE = """
import torch

class Model(torch.nn.Module):  # takes images or sequences of any size
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(1, 4)

    def forward(self, x):
        return self.head(x.flatten(1).mean(1, keepdim=True))

build_model = Model
"""
REVIEWS = "sentence,text,label\n" + "".join(
    f"a {word} film {n},a {word} film {n},{label}\n"
    for n in range(40)
    for word, label in (("fine", 1), ("dull", 0))
)


def commands(text: str) -> Iterator[tuple[list[str], str]]:
    """The words of each `castiron …` line, and its comment."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip().startswith("castiron "):
            yield shlex.split(line, comments=True)[1:], line.partition(" # ")[2]


def check(words: list[str]) -> None:
    """The command exists, and takes these arguments and options."""
    command: Any = typer.main.get_command(app)
    path, rest = "castiron", list(words)
    while hasattr(command, "commands"):
        called = rest.pop(0)
        assert called in command.commands, f"{path} has no command {called!r}"
        command, path = command.commands[called], f"{path} {called}"
    command.make_context(path, rest, resilient_parsing=False).close()


def missing(words: list[str], folder: Path) -> list[str]:
    """Files of data and runs that a command names and that are not here: real data are not ours to ship."""
    named = [w.partition("=")[2] for w in words if re.match(r"data\.(train|validation|test)=", w)]
    named += [w for w in words if w.startswith("runs/") and "lstm-sentiment" not in w]
    return [file for file in named if not (folder / file).exists()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What pages take for granted: runs that were trained, a reader's files."""
    import torch

    from castiron_recipes.lstm_sentiment import recipe as sentiment

    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("reader")
    (home / "my_module.py").write_text(MODULE)
    for file in ("reviews.csv", "train.csv"):
        (home / file).write_text(REVIEWS)
    (home / "train.tsv").write_text(REVIEWS.replace(",", "\t"))
    torch.save(torch.nn.Linear(2, 1).state_dict(), home / "stranger.pt")
    torch.save(torch.nn.Linear(2, 1).state_dict(), home / "weights.pt")
    (recipe, *_) = blocks(ROOT / "docs" / "subclass.md", "python")
    (home / "my_recipe.py").write_text(recipe.text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentiment, "generate", functools.partial(sentiment.generate, rows=1000))
        patch.chdir(home)
        few = [*SMALL, "precision=bf16-mixed"]
        assert run(["train", "lstm-sentiment", *few, "--name", "first"]) == 0
        shutil.copytree("runs/lstm-sentiment/first", "runs/lstm-sentiment/bf16")
        assert run(["export", "lstm-sentiment/first", "weights.safetensors"]) == 0
        yield home


@pytest.fixture
def said(capsys: Any) -> Callable[[], str]:
    return lambda: "\n".join(capsys.readouterr())


BLOCKS = [(page, block) for page in PAGES for block in blocks(page, "bash")]
DONE: dict[tuple[str, ...], int] = {}
"""Commands that were run already, with their exit codes."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{name(p)}:{b.line}" for p, b in BLOCKS])
def test_commands(
    page: Path, block: Block, folder: Path, held_step: Any, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for script in re.findall(r"^(?:bash|python) (\S+\.\w+)", block.text, flags=re.M):
        assert (ROOT / script).is_file()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for words, comment in commands(block.text):
        check(words)
        if block.why_not or name(page) in ELSEWHERE or missing(words, folder):
            continue
        if words[0] == "replay" and not (folder / "runs/lstm-sentiment/first/incidents").exists():
            spoiled = held_step(spoil=lambda model, batch: model.head.bias.data.fill_(-200.0))
            shutil.copytree(spoiled, folder / "runs/lstm-sentiment/first/incidents/step-12")
        small = smaller(page, words, folder)
        if tuple(small) not in DONE:
            DONE[tuple(small)] = opened(small) if small[0] == "board" else run(small)
        code = DONE[tuple(small)]
        expected = (1, 2) if "refused" in comment else (0,)
        assert code in expected, f"castiron {shlex.join(small)}\n{said()}"


def smaller(page: Path, words: list[str], folder: Path) -> list[str]:
    """The command as it is run here: a few steps, into a folder that no other command uses."""
    match words:
        case ["train", "--resume", run, *more, "--on-mismatch", "cast"]:
            # Its checkpoints stay those of another policy, which later commands would meet.
            shutil.copytree(folder / "runs" / run, folder / "runs" / f"{run}-cast-{len(DONE)}")
            return ["train", "--resume", f"{run}-cast-{len(DONE)}", *more, "--on-mismatch", "cast"]
        case ["train", "--resume", *_]:
            return [*words]
        case ["train", *_] if page.is_relative_to(ROOT / "recipes") and "--dry-run" not in words:
            return [*words, "trainer.threads=1", "--dry-run"]  # their training is tests/recipes
        case ["train", *_]:
            return [*words, *SMALL, "--runs", f"runs-{len(DONE)}"]
        case ["compare", recipe, *_]:
            return [*words, *SIDES, *SIZES.get(recipe, []), "--steps", "1", "--name", f"page-{len(DONE)}"]
        case ["suggest", *_]:
            return [*words, "trainer.threads=1", "--batches", "1", "--steps", "8"]
        case ["board"]:
            return ["board", "--port", str(free_port("localhost", None))]
        case ["configs", "copy", _, file]:
            (folder / file).unlink(missing_ok=True)
        case ["recipes", "copy", _, project]:
            shutil.rmtree(folder / project, ignore_errors=True)
        case ["export", _, file]:
            (folder / file).unlink(missing_ok=True)
    return words


def opened(words: list[str]) -> int:
    """What serves until it is stopped: looked at, and stopped by Ctrl-C."""
    address = f"http://localhost:{words[-1]}/data/runs"
    served = subprocess.Popen([sys.executable, "-m", "castiron", *words], stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(address) as answer:
                    assert any("first" in run for run in json.load(answer))
                break
            except OSError:
                time.sleep(0.2)
        served.send_signal(signal.SIGINT)
        return served.wait(30)
    finally:
        served.kill()
        served.wait()


def test_pages_with_a_test_of_their_own_have_it() -> None:
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (Path(__file__).parent / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_launch_lines_of_the_configs(path: Path) -> None:
    head = [line[1:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    found = list(commands("\n".join(head)))
    assert found, "a config says how it is launched"
    for words, _ in found:
        check(words)
