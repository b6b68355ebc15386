"""Writes docs/cases.md from tests/cases: what goes wrong, what castiron prints, and the remedy.

python scripts/cases_page.py
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cases"))

HEAD = """\
# Broken trainings

Every training on this page is a few lines that somebody might have written, and goes wrong. castiron holds
the step (nothing of it is applied), runs it again, and names the first operation that gave a bad result
though its operands were good. Each is a test (`tests/cases`), under the policies that are named; the blocks
are what it prints. The page is written by `python scripts/cases_page.py`.
"""


def main() -> int:
    import broken_functions
    import broken_layers
    import broken_steps
    import healthy_trainings
    import silent_trainings
    import torch
    from case_kit import BROKEN, HEALTHY, SILENT, find, train

    from castiron.training.incident_text import as_lines

    torch.set_num_threads(1)
    parts = [HEAD]
    for case in BROKEN.values():
        incident = train(case.make, case.policies[0]).incident
        assert incident is not None, case.name
        block = "\n".join(line.rstrip() for line in as_lines(incident))
        block = block.replace(case.file, "train.py")
        block = block.replace(f"tests/cases/{Path(case.file).name}", "train.py")
        parts.append(
            f"## {case.title}\n\n{textwrap.fill(case.why, 110)} ({', '.join(case.policies)})\n\n"
            f"```python\n{case.source.rstrip()}\n```\n\n```text\n{block}\n```\n"
        )
    parts.append(
        "## Silent faults\n\nNothing is held in these: every number is finite. What is wrong is told by the "
        "advice of numerical health (N520 and on), measured every so many steps, or by the audit (F3xx).\n"
    )
    for silent in SILENT.values():
        told = next(f for f in find(silent, silent.policies[0])[0] if f.code == silent.code)
        block = str(told).replace(str(Path(silent_trainings.__file__)), "train.py")
        parts.append(
            f"### {silent.title}\n\n{textwrap.fill(silent.why, 110)} ({', '.join(silent.policies)})\n\n"
            f"```python\n{silent.source.rstrip()}\n```\n\n```text\n{block}\n```\n"
        )
    parts.append("## What is left in peace\n\nNothing is held, and nothing reported, in these:\n")
    for name, (make, policies) in HEALTHY.items():
        about = (make.__doc__ or "").strip()
        parts.append(f"- {name.replace('_', ' ')} ({', '.join(policies)}){f'. {about}' if about else ''}")
    assert all(m.__doc__ for m in (broken_functions, broken_layers, broken_steps, healthy_trainings))
    (ROOT / "docs" / "cases.md").write_text("\n".join(parts) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
