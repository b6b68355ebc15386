"""Writes docs/presets.md from tests/recipes/preset_table.py: what each recipe does under each preset.

python scripts/presets_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "recipes"))


def main() -> int:
    from preset_table import page

    (ROOT / "docs" / "presets.md").write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
