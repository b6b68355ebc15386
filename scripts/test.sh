#!/usr/bin/env bash
# Runs the tests; sets everything up first, where that was not done.
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/policy -k tf32 -n 0
#
# What stands behind it goes to pytest; paths are those of the checkout. The files' tests run side by side, in one
# process more than there are cores (many wait for programs that they start) and up to four; with `-n 0` they run
# one after the other.
set -euo pipefail

# shellcheck source=scripts/_setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"

cd -- "$root"
cores="$("$venv/bin/python" -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')"
exec "$venv/bin/python" -m pytest --numprocesses "$((cores + 1))" --maxprocesses 4 --dist loadfile "$@"
