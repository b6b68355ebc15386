#!/usr/bin/env bash
# Trains the LSTM sentiment classifier on its own data; sets everything up first, where that was not done.
#
#   bash scripts/train.sh
#   bash scripts/train.sh precision=bf16-mixed trainer.max_epochs=5 --name first
#
# What stands behind it goes to `castiron train lstm-sentiment`. Runs are kept in runs/ of the checkout.
set -euo pipefail

# shellcheck source=scripts/_setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"

status=0
"$venv/bin/castiron" train lstm-sentiment --runs "$root/runs" "$@" || status=$?
if [ "$status" -eq 0 ]; then
    printf '\nLook at it in TensorBoard:\n  %q board %q\n' "$venv/bin/castiron" "$root/runs"
fi
exit "$status"
