"""Writes docs/parity.md from tests/docs/parity_features.py: what each wing does, and the test that shows it.

python scripts/parity_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "docs"))


def main() -> int:
    from parity_features import page

    (ROOT / "docs" / "parity.md").write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
