"""Do RewardBench's own programs score a reward model that was trained here as `denserl evaluate` does? Run by hand:

    .venv/bin/python tests/clients/rewardbench_program.py

Makes an environment of its own for them, once; trains a tiny model, exports it, and has both sides judge it, pairs by the
`rewardbench` program and rows of RewardBench 2 by its script run_v2. Ends with status 1 where a score differs.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "evaluation")]

import suite_files  # noqa: E402
import tiny_models  # noqa: E402

WANTED = "0.1.4"
# Of fp32 scores in two versions of a library, relative to their size.
TOLERANCE = 1e-5
SUBJECTS = ("kettle", "river", "bridge", "garden", "boat")


def environment(folder: Path) -> str:
    """The Python of an environment with the programs, made where it is not there yet."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        # They import pkg_resources, which later versions of setuptools no longer have.
        packages = [f"torch=={version('torch').partition('+')[0]}", f"rewardbench=={WANTED}", "setuptools<81"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return str(python)


def conversation(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def pairs(count: int) -> list[dict]:
    """Pairs of one and of two turns, as whole conversations."""
    rows = []
    for i in range(count):
        subject = SUBJECTS[i % len(SUBJECTS)]
        start = [f"Tell me about the {subject} number {i}."]
        if i % 3 == 0:
            start += ["Which one?", f"The old {subject}, please."]
        good, bad = f"The {subject} is old. " * (1 + i % 4), f"No.{' Never.' * (i % 5)}"
        rows.append({"chosen": conversation(*start, good), "rejected": conversation(*start, bad)})
    return rows


def lists(count: int) -> list[dict]:
    """Rows of RewardBench 2: one right answer among four, and those of Ties."""
    rows, names = [], ("Factuality", "Precise IF", "Math", "Safety", "Focus")
    for i in range(count):
        texts = [
            f"{word} {SUBJECTS[(i + n) % len(SUBJECTS)]} {i * n}." for n, word in enumerate(("The", "No", "An old", "Why a"))
        ]
        row = {"id": f"{i}", "prompt": f"Say something, {i}.", "chosen": texts[:1], "rejected": texts[1:], "num_correct": 1}
        rows.append({**row, "total_completions": 4, "subset": names[i % len(names)]})
    return rows + [row for row in suite_files.rows_of_rewardbench2() if row["subset"] == "Ties"]


def run(program: str, name: str, options: dict, **kw) -> str:
    """What a program prints, a denserl command or one of RewardBench's."""
    words = [str(word) for option in options.items() for word in option if word is not None]
    return subprocess.run([program, *name.split(), *words], check=True, stdout=subprocess.PIPE, text=True, **kw).stdout


def denserl(command: str, options: dict) -> None:
    run(sys.executable, f"-m denserl.cli.main {command}", options)


def trained(scratch: Path) -> Path:
    """A tiny reward model, trained for a few steps at the level of whole responses."""
    tiny_models.save_language_model(scratch / "sft")
    data = suite_files.write_lines(scratch / "train.jsonl", pairs(64))
    where = {"--model": scratch / "sft", "--data": data, "--output_dir": scratch / "rm", "--cache_dir": scratch / "cache"}
    how = {"--reward_level": "bandit", "--batch_size": 16, "--micro_batch_size": 16, "--lr": 1e-3, "--device": "cpu"}
    denserl("train-rm", where | how)
    return scratch / "rm"


def judged_pairs(python: str, scratch: Path, model: Path) -> tuple[list, list, dict]:
    """Scores of ours and of the `rewardbench` program, and the accuracy of both."""
    data, ours = suite_files.write_lines(scratch / "pairs.jsonl", pairs(40)), scratch / "pairs"
    denserl(f"evaluate pairs {data}", {"--scorer": model, "--output_dir": ours, "--device": "cpu"})
    settings = {"--model": "exported", "--dataset": data, "--load_json": None, "--not_quantized": None}
    settings |= {"--torch_dtype": "float32", "--max_length": 2048, "--output_dir": "theirs/"}
    run(python, f"{HERE}/rewardbench_on_cpu.py rewardbench", settings, cwd=scratch)

    def scores(path: Path) -> list[float]:
        opened = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
        with opened as file:
            rows = [json.loads(line) for line in file]
        return [float(_only(row[f"scores_{side}"])) for row in rows for side in ("chosen", "rejected")]

    accuracies = {
        path: json.loads(path.read_text())["accuracy"] for path in (ours / "rm.json", scratch / "theirs/exported.json")
    }
    found = scores(ours / "rm_outputs.jsonl.gz"), scores(scratch / "theirs/exported_outputs.jsonl")
    return *found, {"accuracy": list(accuracies.values())}


def judged_lists(python: str, scratch: Path, model: Path) -> tuple[list, list, dict]:
    """Scores of ours and of RewardBench's script for its second suite, and what both make of each subset."""
    data, ours = suite_files.write_lines(scratch / "lists.jsonl", lists(60)), scratch / "lists"
    denserl(f"evaluate rewardbench2 {data}", {"--scorer": model, "--output_dir": ours, "--device": "cpu"})
    settings = {"--model": "exported", "--dataset": data, "--torch_dtype": "float32", "--do_not_save": None}
    said = run(python, f"{HERE}/rewardbench_on_cpu.py run_v2", settings, cwd=scratch)
    subsets = re.findall(r"^([A-Z][\w ]+): (?:\S+ \(|Overall score )([\d.e-]+)\)?$", said, re.MULTILINE)
    own = json.loads((ours / "eval-set/rm.json").read_text())
    files = (ours / "eval-set-scores/rm.json", scratch / "results/eval-set-scores/exported.json")
    columns = [json.loads(path.read_text())["scores"] for path in files]
    found = ([float(_only(score)) for row in rows for score in row] for rows in columns)
    return *found, {name: [own[name], float(score)] for name, score in subsets}


def _only(score):
    return score[0] if isinstance(score, list) else score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", type=Path, help="their environment; default: a folder of the system's for temporary files")
    options = parser.parse_args()
    python = environment(options.env or Path(tempfile.gettempdir()) / f"denserl-client-rewardbench-{WANTED}")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        model = trained(Path(folder))
        denserl("export", {"--reward_model": model, "--layout": "hf", "--output_dir": Path(folder) / "exported"})
        for name, judge in (("rewardbench", judged_pairs), ("run_v2", judged_lists)):
            ours, theirs, numbers = judge(python, Path(folder), model)
            size = max(map(abs, ours))
            difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / size
            print(f"\n{name} {WANTED}: {len(ours)} scores up to {size:.2f}, largest relative difference {difference:.1e}")
            print(*(f"  {what}: denserl {own:.4f}, {name} {other:.4f}" for what, (own, other) in numbers.items()), sep="\n")
            failed |= difference > TOLERANCE or any(abs(own - other) > 1e-6 for own, other in numbers.values())
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
