#!/usr/bin/env bash
# Train a reward model. Without arguments: how to call it.
# Model types, data names and hyper-parameters: denserl/cli/model_types.yaml.
set -euo pipefail
# The environment in use, else the one that `make` creates.
command -v denserl > /dev/null || PATH="$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin:$PATH"
exec python3 -m denserl.cli.paper_scripts train-rm "$@"
