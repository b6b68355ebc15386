#!/usr/bin/env bash
# Runs the tests; sets everything up first, where that was not done.
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/policy -k tf32 -n 0
#
# What stands behind it goes to pytest; paths are those of the checkout. The files' tests run side by side (how
# many at once, tests/conftest.py says); with `-n 0` they run one after the other.
set -euo pipefail

# shellcheck source=scripts/_setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"

cd -- "$root"
exec "$venv/bin/python" -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder "$@"
