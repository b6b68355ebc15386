"""`python -m castiron.cli`."""

import sys

from castiron.cli.main import run

sys.exit(run())
