"""Commands: one file each, wiring only. `denserl NAME` and `python -m denserl.cli.NAME` are the same."""

import os

# Idle OpenMP threads must not spin: with several processes on few cores they starve each other. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
