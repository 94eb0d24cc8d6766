"""What a training came to, in words, as it ends with them. What to run next is said by the commands."""

from collections.abc import Sequence
from statistics import NormalDist

from denserl.intervals import LEVEL, wilson
from denserl.rewards.pair_metrics import FEW_PAIRS, remarks

PERCENT = f"{LEVEL:.0%}"


def in_words(seconds: float) -> str:
    """A duration: 7.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, over = divmod(minutes, 60)
    return f"{hours} h {over} min" if hours else f"{minutes} min {rest} s"


def language_model_lines(losses: Sequence[float], metrics: dict[str, float], rows: int) -> list[str]:
    """Of a fine-tuning: the losses that were logged, and that of so many held-out rows, if there are any."""
    found = [f"loss {losses[-1]:.4f} nats a token at last, {losses[0]:.4f} at first"] if losses else []
    return found + ([f"loss {metrics['eval_loss']:.4f} nats a token on {rows} held-out rows"] if metrics else [])


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


def pair_model_lines(metrics: dict[str, float], pairs: int) -> list[str]:
    """Of the evaluation of a model that compares two responses: accuracy of both orders together, and what place alone does."""
    accuracy, agree, bias = (metrics[f"eval_{name}"] for name in ("accuracy", "position_consistency", "position_bias"))
    low, high = wilson(accuracy, pairs)
    return [
        f"accuracy {accuracy:.3f}, {PERCENT} interval [{low:.3f}, {high:.3f}], on {pairs} pairs, by both orders together; they "
        f"agree in {agree:.3f} of the pairs, and the first place is worth {bias:.3g} nats, in mean magnitude",
    ]


def pair_model_remarks(metrics: dict[str, float], pairs: int) -> list[str]:
    """What is doubtful in such an evaluation, a line each; often nothing."""
    same = ["all log-odds are the same: the model tells no responses apart"] if metrics["eval_score_std"] == 0 else []
    return remarks(metrics["eval_accuracy"], pairs, metrics["eval_score_std"]) + same


def step_model_lines(metrics: dict[str, float], solutions: int) -> list[str]:
    """Of the evaluation of a model of labelled steps: steps told right, beside always saying +; first errors found."""
    wrong = round(metrics["eval_wrong_solutions"] * solutions)

    def share(name: str, count: int) -> str:
        low, high = wilson(metrics[name], count) if count else (0.0, 1.0)
        return f"{metrics[name]:.3f}, {PERCENT} interval [{low:.3f}, {high:.3f}], of {count}"

    return [
        f"{metrics['eval_step_accuracy']:.3f} of the labelled steps told right (by always saying +: "
        f"{metrics['eval_always_plus_accuracy']:.3f}), {metrics['eval_steps_per_solution']:.1f} a solution; mean probability "
        f"{metrics['eval_good_probability']:.3f} of right ones, {metrics['eval_bad_probability']:.3f} of wrong ones",
        f"first errors: F1 {metrics['eval_first_error_f1']:.3f}; found in {share('eval_first_error_accuracy', wrong)} wrong "
        f"solutions, and none in {share('eval_correct_accuracy', solutions - wrong)} right ones",
    ]


def step_model_remarks(metrics: dict[str, float], solutions: int) -> list[str]:
    """What is doubtful in such an evaluation, a line each; often nothing."""
    found = []
    if solutions < FEW_PAIRS:
        found.append(f"these are of {solutions} held-out solutions only")
    if metrics["eval_step_accuracy"] <= metrics["eval_always_plus_accuracy"] and metrics["eval_wrong_solutions"]:
        found.append("no more steps are told right than by always saying +: the model has not learned to find wrong ones")
    if not 0 < metrics["eval_wrong_solutions"] < 1:
        which = "wrong" if metrics["eval_wrong_solutions"] else "right"
        found.append(f"all held-out solutions are {which}: they cannot show whether right and wrong are told apart")
    return found


def rating_model_lines(metrics: dict[str, float], names: Sequence[str], responses: int) -> list[str]:
    """Of the evaluation of a model of rated attributes: its errors, beside always saying the mean, and correlations of each."""
    each = [
        f"{name} {metrics[f'eval_mse/{name}']:.3g} (correlation {metrics[f'eval_pearson/{name}']:.2f}, of ranks "
        f"{metrics[f'eval_spearman/{name}']:.2f})"
        for name in names
    ]
    return [
        f"mean squared error {metrics['eval_mse']:.3g} of the ratings of {responses} responses (by always saying each "
        f"attribute's mean: {metrics['eval_mean_mse']:.3g}); {', '.join(each)}",
        f"scores of mean {metrics['eval_score_mean']:.3g} and std {metrics['eval_score_std']:.3g}, stored with the model",
    ]


def rating_model_remarks(metrics: dict[str, float], names: Sequence[str]) -> list[str]:
    """What is doubtful in such an evaluation, a line each; often nothing."""
    found = []
    if metrics["eval_mse"] >= metrics["eval_mean_mse"]:
        found.append("ratings are told no better than by always saying the mean: the model has not learned to tell them")
    same = [name for name in names if metrics[f"eval_spearman/{name}"] == 0]
    if same:
        found.append(f"{', '.join(same)}: ratings of the held-out rows, or the model's, are all the same, or there are none")
    return found


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
    if "eval_judge_win_rate" in last:
        rate, low, high = (_number(last, f"eval_judge_win_rate{end}") for end in ("", "_low", "_high"))
        lines.append(f"win rate {rate:.3f} [{low:.3f}, {high:.3f}] against the reference model ({PERCENT}, {of})")
    kl, length, ended = (_number(last, prefix + name) for name in ("kl", "response_length", "ended"))
    return [*lines, f"KL {kl:.3g} nats a response, {length:.1f} tokens, {ended:.0%} of them ended"]


def _number(row: dict, key: str) -> float:
    """A number of a metrics file, in which one that was not finite is null."""
    value = row.get(key)
    return float("nan") if value is None else value
