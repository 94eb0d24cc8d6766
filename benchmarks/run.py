"""All rows of the benchmark, or some of them: measures, prints the table, writes results.json.

With --device cuda: the rows of the project's own kernels there, and gpu.py, which measures what a GPU is for.
"""

import importlib
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from harness import Options, Result, arguments, as_options, ending_well, engine_python, peer_python, table, write_results

ROWS = {
    1: "dense_reward",
    2: "logprob",
    3: "rm_training",
    4: "ppo",
    5: "rollouts",
    6: "dataset_scoring",
    7: "overhead",
    8: "scaling",
    9: "starts",
    10: "row_memory",
    11: "rank_balance",
    12: "killed_entropies",
    13: "checkpoints",
    14: "masks",
    15: "rollout_engine",
}


# Row -> the peer that it needs.
PEERS = {3: "trl-1.16", 4: "trl-1.12"}
# Rows that need a server of vLLM.
BY_ENGINE = (15,)
WITHOUT_ENGINE = [row for row in ROWS if row not in BY_ENGINE]
ON_GPU = ("dense_reward", "logprob", "gpu")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--row", type=int, nargs="*", choices=ROWS, default=WITHOUT_ENGINE, help="rows to measure; default: all but 15"
    )
    parsed = parser.parse_args()
    options = as_options(parsed)
    if options.device == "cuda":
        ending_well(lambda: run(options, ON_GPU, options.runs / "results-cuda.json"))
    else:
        ending_well(lambda: run_rows(options, parsed.row))


def run_rows(options: Options, rows: list[int]) -> None:
    """Measure rows. UserError before any of them where a peer is missing."""
    for row in rows:
        if row in PEERS:
            peer_python(options, PEERS[row])
        if row in BY_ENGINE:
            engine_python(options)
    run(options, [ROWS[row] for row in rows], options.runs / "results.json")


def run(options: Options, modules: Sequence[str], path: Path) -> None:
    """Measure one module after the other; results are written as soon as they are there."""
    print(
        f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    results: list[Result] = []
    for module in modules:
        start = time.perf_counter()
        measured = importlib.import_module(module).measure(options)
        results += measured
        write_results(path, results)
        print(f"{table(measured)}\n({module}: {time.perf_counter() - start:.0f} s)", flush=True)
    if len(modules) > 1:
        print(table([result._replace(note="") for result in results]))


if __name__ == "__main__":
    main()
