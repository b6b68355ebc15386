"""Every Python block of every page is run, here or by the page's own test; configs are accepted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).parent))

from pages import PAGES, ROOT, blocks, name

from castiron.policy import PrecisionPolicy
from castiron.training.config import RunConfig

OWN_TEST = {
    "docs/audit.md": "test_audit_page.py",
    "docs/casebook.md": "test_casebook.py",
    "docs/cases.md": "test_cases_page.py",
    "docs/guard.md": "test_guard_example.py",
    "docs/health.md": "test_health_page.py",
    "docs/keras.md": "test_keras_page.py",
    "docs/keras_audit.md": "test_keras_audit_page.py",
    "docs/subclass.md": "test_subclass_example.py",
    "docs/tour.md": "test_tour.py",
    "docs/trust.md": "test_trust_example.py",
}
"""Page → the test that runs its blocks, and looks at what they do."""
MODULE = """
import lightning, torch
from torch.utils.data import DataLoader, TensorDataset

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 1)
    def training_step(self, batch, _):
        return self.head(batch[0]).square().mean()
    def validation_step(self, batch, _):
        self.log("val_loss", self.head(batch[0]).square().mean())
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

module = Module()
train_loader = validation_loader = DataLoader(TensorDataset(torch.ones(8, 4)), batch_size=4)
"""
KERAS = "\nimport keras\nmodel = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])\n"
BEFORE = {"README.md": MODULE + KERAS, "docs/start.md": MODULE}
"""What a page takes for granted: a module, loaders, a model of the reader's."""
HERE = [p for p in PAGES if name(p) not in OWN_TEST and any(True for _ in blocks(p, "python"))]
YAML_BLOCKS = [
    pytest.param(block.text, id=f"{name(page)}:{block.line}")
    for page in PAGES
    for block in blocks(page, "yaml")
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", HERE, ids=name)
def test_python(page: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """All blocks of a page, one after the other, in a folder of their own."""
    import torch

    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    before = BEFORE.get(name(page), "")
    if "keras" in before:
        pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    names: dict[str, Any] = {"__name__": "page"}
    exec(before, names)
    for n, block in enumerate(blocks(page, "python")):
        if block.why_not is None:
            file = tmp_path / f"block_{n}.py"
            file.write_text(block.text, encoding="utf-8")
            exec(compile(block.text, str(file), "exec"), names)
    said = " ".join(capsys.readouterr().out.split())
    for text in blocks(page, "text"):
        if page.name == "diagnose_nan.md":
            for line in text.text.splitlines():
                shown = " ".join(line.rstrip("…").replace("gambler.py", "block_0.py").split())
                assert shown in said, line


@pytest.mark.parametrize("block", YAML_BLOCKS)
def test_configs(block: str) -> None:
    tree = YAML(typ="safe").load(block)
    if "recipe" in tree:
        RunConfig.model_validate(tree)
    else:
        PrecisionPolicy.model_validate(tree["precision"])


def test_pages_with_a_test_of_their_own_have_it() -> None:
    for page, test in OWN_TEST.items():
        assert (ROOT / page).is_file()
        text = (ROOT / "tests" / "docs" / test).read_text(encoding="utf-8")
        assert Path(page).name in text, f"{test} does not read {page}"
