"""What a training came to, in words, as it ends with them. What to run next is said by the commands."""

from collections.abc import Sequence
from statistics import NormalDist

from denserl.rewards.pair_metrics import LEVEL, remarks, wilson

PERCENT = f"{LEVEL:.0%}"


def in_words(seconds: float) -> str:
    """A duration: 7.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, over = divmod(minutes, 60)
    return f"{hours} h {over} min" if hours else f"{minutes} min {rest} s"


def reward_model_lines(metrics: dict[str, float], pairs: int) -> list[str]:
    """Of a reward model's evaluation: accuracy with Wilson's interval, what length alone would get, scores and segments."""
    accuracy = metrics["eval_accuracy"]
    low, high = wilson(accuracy, pairs)
    return [
        f"accuracy {accuracy:.3f}, {PERCENT} interval [{low:.3f}, {high:.3f}], on {pairs} pairs (longer response preferred: "
        f"{metrics['eval_length_accuracy']:.3f}; score and length correlate {metrics['eval_length_correlation']:+.2f})",
        f"scores of mean {metrics['eval_score_mean']:.3g} and std {metrics['eval_score_std']:.3g}, stored with the model; "
        f"{metrics['eval_segments_per_response']:.1f} segments a response, of {metrics['eval_segment_length']:.1f} tokens",
    ]


def reward_model_remarks(metrics: dict[str, float], pairs: int) -> list[str]:
    """What is doubtful in a reward model's evaluation, a line each; often nothing."""
    usual = max(abs(metrics[f"eval_{name}"]) for name in ("chosen_reward", "rejected_reward", "score_std"))
    same = ["all scores are the same: the model tells no responses apart"] if metrics["eval_score_std"] == 0 else []
    return remarks(metrics["eval_accuracy"], pairs, usual) + same


def policy_lines(rows: Sequence[dict], sampled: int, held_out: int) -> list[str]:
    """Of PPO's metrics file: rewards before and after, with the interval of the last, and what they cost.

    Args:
        sampled: responses of an iteration. held_out: prompts of a held-out evaluation, 0 without.
    """
    evaluated = [row for row in rows if "eval_reward" in row]
    prefix, rows, count, of = (
        ("eval_", evaluated, held_out, f"{held_out} held-out prompts")
        if evaluated
        else ("", rows, sampled, f"{sampled} samples")
    )
    if not rows:
        return []
    first, last = rows[0], rows[-1]
    lines = []
    for name in ("reward", "true_reward", "gold_reward"):
        if (key := prefix + name) in last:
            half = NormalDist().inv_cdf((1 + LEVEL) / 2) * _number(last, f"{key}_std") / max(count, 1) ** 0.5
            before = f", {_number(first, key):.3g} at first" if len(rows) > 1 else ""
            lines.append(f"{name.replace('_', ' ')} {_number(last, key):.3g} +- {half:.2g} ({PERCENT}, {of}){before}")
    kl, length, ended = (_number(last, prefix + name) for name in ("kl", "response_length", "ended"))
    return [*lines, f"KL {kl:.3g} nats a response, {length:.1f} tokens, {ended:.0%} of them ended"]


def _number(row: dict, key: str) -> float:
    """A number of a metrics file, in which one that was not finite is null."""
    value = row.get(key)
    return float("nan") if value is None else value
