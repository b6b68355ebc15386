"""The generated reference pages: complete, and readable."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from castiron.cli.main import app
from castiron.diagnostics import RULES
from castiron.formats import FORMATS
from castiron.policy import ALIASES, PRESETS

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = "reference/generated/"


@pytest.fixture(scope="module")
def reference() -> Any:
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    spec = importlib.util.spec_from_file_location(
        "castiron_reference", ROOT / "docs/_ext/castiron_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(reference: Any) -> dict[str, str]:
    found: dict[str, str] = reference.pages()
    return found


def test_every_field_of_policy_and_config_has_a_row(reference: Any, pages: dict[str, str]) -> None:
    for page, models in (("policy.md", reference.POLICY), ("config.md", reference.CONFIG)):
        for model in models:
            section = pages[REFERENCE + page].split(f"\n## {model.__name__}\n")[1].split("\n## ")[0]
            rows = [line for line in section.splitlines() if line.startswith("| `")]
            assert len(rows) == len(model.model_fields), model.__name__
            for row, (name, field) in zip(rows, model.model_fields.items(), strict=True):
                key, kind, _, text = (c.strip() for c in row.strip("|").replace("\\|", "¦").split(" | "))
                assert key == f"`{field.alias or name}`"
                assert kind
                assert kind != "anything" or name == "model"
                assert text, f"{model.__name__}.{name} has no docstring"


def test_every_section_that_a_page_links_to_is_there(pages: dict[str, str]) -> None:
    import re

    for page in ("policy.md", "config.md"):
        for target, anchor in re.findall(r"\]\((\w+\.md)#(\w+)\)", pages[REFERENCE + page]):
            headings = [
                line[3:].lower() for line in pages[REFERENCE + target].splitlines() if line.startswith("## ")
            ]
            assert anchor in headings, f"{page} → {target}#{anchor}"


def test_every_rule_has_a_page_and_a_row(pages: dict[str, str]) -> None:
    for code, rule in RULES.items():
        assert f"[{code}]({code}.md)" in pages["rules/index.md"]
        text = pages[f"rules/{code}.md"]
        assert text.startswith(f"# {code} {rule.name}\n")
        for part in (rule.what, rule.why, rule.remedy, rule.bad, rule.good):
            assert part in text


def test_every_preset_alias_and_format_is_there(pages: dict[str, str]) -> None:
    for name in (*PRESETS, *ALIASES):
        assert f"`{name}`" in pages[REFERENCE + "presets.md"]
    for name in FORMATS:
        assert f"| `{name}` |" in pages[REFERENCE + "formats.md"]
    assert (
        "| `float16` | 16 | 5, 10 | 65504 | 6.1035e-05 | 5.9605e-08 | 0.00097656 | 2,048 |"
        in pages[REFERENCE + "formats.md"]
    )


def test_every_command_is_there(pages: dict[str, str]) -> None:
    names = [c.name for c in app.registered_commands] + [g.name for g in app.registered_groups]
    for name in names:
        assert f"\n## castiron {name}\n" in pages[REFERENCE + "commands.md"]
    assert "--resume" in pages[REFERENCE + "commands.md"]


def test_every_public_name_has_a_section(pages: dict[str, str]) -> None:
    import castiron.lightning
    import castiron.policy
    import castiron.torch
    import castiron.training

    for package in (castiron, castiron.lightning, castiron.policy, castiron.torch, castiron.training):
        text = pages[f"{REFERENCE}api/{package.__name__}.md"]
        sections = text.split("\n## ")
        names = [name for name in package.__all__ if not name.startswith("__")]
        assert [s.partition("\n")[0] for s in sections[1:]] == names
        for section in sections[1:]:
            assert len(section.splitlines()) > 4, section
    trainer = pages[f"{REFERENCE}api/castiron.lightning.md"].split("\n## Trainer\n")[1]
    assert "policy: PrecisionPolicy | str | Mapping[str, Any] = 'float32'," in trainer
    assert "a policy, a preset's name, a short string, or a mapping." in trainer
    assert "def enforce(" in pages[f"{REFERENCE}api/castiron.keras.md"]


def test_pages_that_are_no_more_are_removed(reference: Any, tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "X999.md").write_text("gone")
    reference.write(tmp_path)
    assert not (tmp_path / "rules" / "X999.md").exists()
    before = (tmp_path / REFERENCE / "policy.md").stat().st_mtime_ns
    reference.write(tmp_path)
    assert (tmp_path / REFERENCE / "policy.md").stat().st_mtime_ns == before, (
        "unchanged pages are not written again"
    )
