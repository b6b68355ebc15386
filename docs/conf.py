"""Sphinx: MyST pages, furo; warnings are errors (.ci/run)."""

from __future__ import annotations

import sys
from pathlib import Path

import castiron

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "castiron"
author = "the castiron authors"
copyright = author
version = release = castiron.__version__

extensions = ["myst_parser", "castiron_reference"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_ext"]
nitpicky = True

html_theme = "furo"
html_title = f"castiron {release}"
html_copy_source = False
html_show_sphinx = False
