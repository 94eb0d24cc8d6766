"""Folders of demo runs made by hand."""

import json

PNG = b"\x89PNG\r\n\x1a\n picture"
RESULTS = {
    "best_accuracy": 0.85,
    "seed": 7,
    "target_true_reward": 0.3,
    "rollout_batch_size": 64,
    "versions": {"denserl": "0.1.0", "torch": "2.13.0"},
    "minutes": 4.94,
    "levels": {
        "segment": {
            "rm_accuracy": 0.83,
            "rm_share_of_best": 0.976,
            "true_before": -0.2,
            "true_after": 0.5,
            "kl": 9.14,
            "rollouts_to_target": 1024,
            "level": "segment",
            "threshold": 1.0,
            "assignment": "difference_end",
            "normalizer": "scalar",
        },
        "segment-published": {
            "rm_accuracy": 0.83,
            "rm_share_of_best": 0.976,
            "true_before": -0.2,
            "true_after": 0.3,
            "kl": 7.0,
            "rollouts_to_target": 2048,
            "level": "segment",
            "threshold": 1.0,
            "assignment": "even",
            "normalizer": "location",
        },
        "bandit": {
            "rm_accuracy": 0.8,
            "rm_share_of_best": 0.941,
            "true_before": -0.2,
            "true_after": 0.1,
            "kl": 12.0,
            "rollouts_to_target": None,
            "level": "bandit",
            "threshold": 1000,
            "assignment": "mean_last",
            "normalizer": "scalar",
        },
    },
}


def sample(step: int, prompt: str, *segments: tuple[str, float, float], ended: bool = True, **more) -> dict:
    """Segments: text, raw and normalised reward; what a segment changes is twice the latter here."""
    parts = [{"text": text, "raw": raw, "normalised": paid, "change": 2 * paid} for text, raw, paid in segments]
    return {"step": step, "prompt": prompt, "response": "", "ended": ended, "segments": parts, **more}


def write_rows(path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder, samples: list[dict]) -> None:
    held_out = {"eval_kl": 0.5, "eval_reward": 1.0, "eval_true_reward": 0.1}
    for name, way in RESULTS["levels"].items():
        write_rows(
            folder / f"ppo-{name}/metrics.jsonl", [{"step": 0, **held_out}, {"step": 1, "kl": 0.1}, {"step": 5, **held_out}]
        )
        write_rows(folder / f"ppo-{name}/eval_samples.jsonl", samples)
        write_rows(
            folder / f"rm-{way['level']}/metrics.jsonl", [{"step": 10, "accuracy": 0.7}, {"step": 20, "eval_accuracy": 0.8}]
        )
    (folder / "fit-segment").mkdir()
    (folder / "fit-segment/normalizer.png").write_bytes(PNG)
