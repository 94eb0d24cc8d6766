"""Folders of runs made by hand, in the shape that the commands write, and what stands on a page of them."""

import json
import re
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n picture"
FIT = {"constants": [0.5, 0.1, -1.0, 2.0], "r2_mean": -0.327, "r2_std": 0.81, "pairs": 12, "segments": 99, "groups": 7}
BINS = [
    {"low": 0.5, "high": 0.6, "n": 40, "confidence": 0.55, "accuracy": 0.5},
    {"low": 0.9, "high": 1.0, "n": 10, "confidence": 0.97, "accuracy": 0.9},
]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def command(folder: Path, name: str, outcome: str | None = "finished", inputs: dict | None = None, **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entry = {
        "command": f"denserl {name} --output_dir {folder}",
        "settings": {"output_dir": str(folder), "seed": 0, **settings},
        "versions": {"denserl": "0.2.0", "torch": "2.13.0"},
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:01:00+00:00",
        "outcome": outcome,
        "inputs": inputs or {},
    }
    (folder / "command.json").write_text(json.dumps([entry]), encoding="utf-8")
    return folder


def sample(step: int, prompt: str, *segments: tuple[str, float], **more) -> dict:
    """A sample row as train-ppo writes it; segments: text and what it is paid, half of which is its raw score."""
    parts = [{"text": text, "raw": paid / 2, "normalised": paid * 2, "change": paid, "paid": paid} for text, paid in segments]
    response = "".join(text for text, _ in segments)
    return {"step": step, "prompt": prompt, "response": response, "ended": True, "segments": parts, **more}


def ppo(folder: Path, seed: int = 0, shift: float = 0.0, samples: list[dict] = (), **settings) -> Path:
    """Three iterations, held-out numbers before and after them."""
    command(folder, "train-ppo", seed=seed, **settings)
    rows = [{"step": 0, "eval_reward": 0.125 + shift, "eval_kl": 0.0, "eval_true_reward": -0.5}]
    rows += [
        {"step": k, "reward": k / 3 + shift, "kl": 0.5 * k, "actor_lr": 1e-5 / k, "rollout_seconds": 1.5, "policy_loss": None}
        for k in (1, 2)
    ]
    rows.append(
        {"step": 3, "reward": 1.0 + shift, "kl": 1.5, "eval_reward": 0.875 + shift, "eval_kl": 1.25, "eval_true_reward": 0.5}
    )
    write_rows(folder / "metrics.jsonl", rows)
    write_rows(folder / "eval_samples.jsonl", list(samples))
    return folder


def reward_model(folder: Path, **settings) -> Path:
    command(folder, "train-rm", **settings)
    write_rows(folder / "metrics.jsonl", [{"step": 10, "accuracy": 0.7, "loss": 0.6}, {"step": 20, "eval_accuracy": 0.8}])
    return folder


def fit(folder: Path, **fits: dict) -> Path:
    command(folder, "fit-normalizer")
    (folder / "fits.json").write_text(json.dumps(fits or {"peak/avg/1.5": FIT}))
    return folder


def evaluation(folder: Path, **results) -> Path:
    command(folder, "evaluate")
    found = {
        "suite": "pairs",
        "overall": 0.75,
        "intervals": {"overall": [0.7, 0.8]},
        "subsets": {"easy": {"n": 50, "accuracy": 0.875, "interval": [0.8, 0.95]}},
        "groups": {},
        "calibration": {"ece": 0.0625, "bins": BINS},
        "remarks": [],
        **results,
    }
    (folder / "results.json").write_text(json.dumps(found))
    return folder


def best_of_n(folder: Path) -> Path:
    command(folder, "bon")
    band = {"mean": [0.1, 0.3], "low": [0.0, 0.2], "high": [0.2, 0.4]}
    results = {"prompts": 1, "samples": 2, "kl": [0.0, 0.193], "gold": [0.1, 0.3], "gold_best": 0.3, "best_n": 2}
    (folder / "results.json").write_text(json.dumps({**results, "unbiased": {"gold": band, "proxy": band}}))
    messages = [{"role": "user", "content": "a question"}]
    samples = [
        {"id": 4, "sample": k, "prompt": messages, "response": f"answer {k}", "ended": k > 0, "response_ids": [1] * 5}
        for k in (0, 1)
    ]
    write_rows(folder / "samples.jsonl", samples)
    write_rows(folder / "scores.jsonl", [{"id": 4, "sample": k, "proxy": k - 0.5, "gold": 0.25} for k in (0, 1)])
    return folder


def answered(folder: Path, said: str = "yes") -> Path:
    """Two turns of one question, as `denserl answer mtbench` leaves them."""
    command(folder, "answer")
    numbers = {"tokens": [2.0, 3.0], "characters": [3.0, 5.5], "truncated": 0.5, "empty": 0}
    account = {"suite": "mtbench", "model": "m", "questions": {"source": "q.jsonl", "count": 1}, "samples": 1, **numbers}
    (folder / "answers.json").write_text(json.dumps(account))
    messages = [{"role": "user", "content": "a question"}]
    after = [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": "why?"}]
    for turn, (prompt, response) in enumerate([(messages, said), (after, f"{said} indeed")], 1):
        row = {
            "id": 0,
            "sample": 0,
            "prompt": prompt,
            "response": response,
            "ended": turn == 1,
            "response_ids": [1] * (turn + 1),
        }
        write_rows(folder / f"samples-turn-{turn}.jsonl", [row])
    return folder


def judged(folder: Path) -> Path:
    command(folder, "judge")
    headline = {"name": "win_rate", "value": 62.5, "interval": [50.0, 75.0], "questions": 40}
    counts = {"questions": 40, "judged": 38, "invalid": 2}
    judge = {"judges": [{"judge": "rule"}], "template": "pairwise"}
    policies = {"mine": {"headline": headline, "remarks": ["few answers"], **counts}}
    results = {"suite": "prompts", "judge": judge, "policies": policies}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def charts_of(html: str) -> dict[str, dict]:
    """Title -> data of each chart on a page."""
    found = [json.loads(data) for data in re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)]
    return {chart["title"]: chart for chart in found}


def series_of(chart: dict) -> dict[str, list[tuple[float, float | None]]]:
    """Name of a line -> its points."""
    return {series["name"]: list(zip(series["x"], series["y"], strict=True)) for series in chart["series"]}


def samples_of(html: str) -> dict:
    """What the page's browser of samples is given."""
    (data,) = re.findall(r'<script type="application/json" id="rows">(.*?)</script>', html, re.DOTALL)
    return json.loads(data)
