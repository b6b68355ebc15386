"""`python -m castiron`: the same as the `castiron` command."""

import sys

from castiron.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
