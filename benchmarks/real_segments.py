"""What entropies cut in real text, and what the segments are worth: docs/real_model.md, from the runs of `make real-model`.

python benchmarks/real_segments.py --runs runs/real-model --other runs/real/sft

On held-out pairs, cut as their reward model reads them: where cuts fall, at which thresholds, whether another model cuts at the
same places, and what rewards of segments go with. Beside that all that the runs themselves measured. Prints tables and writes
RUNS/real_segments.json and the pictures of the page.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from datasets import Dataset
from harness import REPOSITORY, ending_well
from scipy.stats import rankdata

from denserl.config import ModelSourceConfig
from denserl.data.config import ScoredPairsConfig
from denserl.data.features import NUMBER
from denserl.data.preferences import load_preferences
from denserl.data.schemas import SIDES
from denserl.inspection.cuts import Response, beginnings, responses_of
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.pairs import prepare_pairs, segment_rewards
from denserl.rewards.sources.build import load_members, source_of
from denserl.rewards.sources.reading import choose_segmenter
from denserl.segmentation import Segmenter
from denserl.trainer.trackers import read_metrics

SETS = {"ultrafeedback": "ultrafeedback-1k/test.jsonl", "hh": "hh-harmless/test.jsonl.gz"}
LENGTHS = {"max_length": 128, "max_prompt_length": 48}  # of examples/scripts/real_model.sh
# What may begin at a token, the first that holds; the rest goes on with a word.
KINDS = ("a line", "a sentence", "a clause", "another word", "a mark", "inside a word")
CLAUSE = ",;:)—–"
SHOWN = (1.0, 1.75, 2.5, 3.5, 4.5, 5.5)  # thresholds, nats
PER_CUT = (4, 8, 16)  # places a cut, where models are compared
RESAMPLES = 1000
NUMBERED = "row"  # a column of numbers, which tokenised pairs keep


@dataclass
class Options:
    """Look at segments of real text."""

    runs: Path = Path("runs/real-model")
    """Folder of `make real-model`."""
    other: Path | None = None
    """Another language model that cuts the same responses, such as runs/real/sft of `make real`."""
    data: Path = REPOSITORY.parent / "shared/data"
    """Folder with the pairs."""
    rows: int = 200
    """Held-out pairs of each set that are looked at."""
    pictures: Path | None = None
    """Folder for the pictures; default: the one of the runs."""
    threads: int = 2
    """CPU threads."""


class Cut(NamedTuple):
    """A response with what begins at each token but its first, and the entropy of what foretells that token."""

    kinds: np.ndarray  # (T - 1,) numbers among KINDS
    entropy: np.ndarray  # (T - 1,) nats
    places: np.ndarray  # (T - 1,) characters before the token


def kind_at(text: str, place: int) -> int:
    """What begins at a place of a text, a number among KINDS."""
    (word,), (line,), (sentence,) = beginnings(text, [place])
    said, there = text[:place].rstrip(), text[place:].lstrip()
    if line or sentence:
        return 0 if line else 1
    if word:
        return 2 if said[-1:] in CLAUSE else 3
    return 4 if not there[:1].isalnum() else 5


def cut_of(response: Response) -> Cut:
    places = response.ends[:-1]
    kinds = [kind_at(response.text, place) for place in places]
    return Cut(np.array(kinds, dtype=int), response.entropy[1:], np.array(places, dtype=int))


def interval(statistic: Callable[[np.ndarray], float], count: int, seed: int = 0) -> list[float]:
    """95 % percentile bootstrap interval of a statistic of the numbers of `count` prompts drawn anew."""
    rng = np.random.default_rng(seed)
    found = [statistic(rng.integers(count, size=count)) for _ in range(RESAMPLES)]
    return np.nanquantile(found, [0.025, 0.975]).tolist()


def where_cuts_fall(cuts: Sequence[Cut]) -> dict[str, Any]:
    """Shares of cuts by what begins there, at thresholds, and shares of all tokens; how often each kind is cut."""
    kinds, entropy = (np.concatenate([getattr(cut, name) for cut in cuts]) for name in ("kinds", "entropy"))

    def shares(chosen: np.ndarray) -> list[float]:
        return (np.bincount(kinds[chosen], minlength=len(KINDS)) / max(chosen.sum(), 1)).tolist()

    tokens = len(entropy) + len(cuts)
    at = [
        {
            "threshold": c,
            "cuts": int((entropy > c).sum()),
            "tokens a segment": tokens / ((entropy > c).sum() + len(cuts)),
            "shares": shares(entropy > c),
        }
        for c in SHOWN
    ]
    of_kind = (entropy[kinds == number] for number in range(len(KINDS)))
    means = [float(values.mean()) if len(values) else float("nan") for values in of_kind]
    return {"kinds": KINDS, "tokens": tokens, "all": shares(entropy > -1), "at": at, "mean entropy": means}


def moved(cuts: Sequence[Cut], by: float = 0.25) -> list[dict[str, float]]:
    """Of the cuts at a threshold, the share that is left when it is raised: the higher one's are among them."""
    entropy = np.concatenate([cut.entropy for cut in cuts])
    return [{"threshold": c, "left": float((entropy > c + by).sum() / (entropy > c).sum())} for c in SHOWN]


class Common(NamedTuple):
    """Places of one response at which tokens of both models begin, and what foretells these tokens."""

    first: np.ndarray
    second: np.ndarray
    kinds: np.ndarray


def in_common(first: Cut, second: Cut) -> Common:
    _, here, there = np.intersect1d(first.places, second.places, return_indices=True)
    return Common(first.entropy[here], second.entropy[there], first.kinds[here])


def agreement(common: Sequence[Common], places_a_cut: int) -> dict[str, float]:
    """How far two models cut at the same places, when each may cut one place in so many, those of its highest entropies.

    f1: share of one's cuts that are the other's. chance: what it would be of cuts drawn evenly. kappa: Cohen's, which of equal
    numbers is (f1 - chance) / (1 - chance). within: f1 of cuts drawn evenly among places of the same kinds.
    """
    first, second, kinds = (np.concatenate([getattr(each, name) for each in common]) for name in Common._fields)
    count, chosen = max(len(first) // places_a_cut, 1), []
    for entropy in (first, second):
        mask = np.zeros(len(first), dtype=bool)
        mask[np.argsort(-entropy, kind="stable")[:count]] = True
        chosen.append(mask)
    both, chance = float((chosen[0] & chosen[1]).sum() / count), count / len(first)
    by_kind = sum(
        (chosen[0] & (kinds == k)).sum() * (chosen[1] & (kinds == k)).sum() / max((kinds == k).sum(), 1)
        for k in range(len(KINDS))
    )
    return {"f1": both, "chance": chance, "kappa": (both - chance) / (1 - chance), "within": float(by_kind / count)}


def between_models(common: Sequence[Common]) -> dict[str, Any]:
    """Agreement at several numbers of cuts with intervals of kappa over responses, and the rank correlation of entropies."""
    first, second = (np.concatenate([getattr(each, name) for each in common]) for name in ("first", "second"))
    found = []
    for many in PER_CUT:
        drawn = interval(lambda rows, many=many: agreement([common[row] for row in rows], many)["kappa"], len(common))
        found.append({"places a cut": many, **agreement(common, many), "kappa interval": drawn})
    return {"places": len(first), "spearman": spearman(first, second), "at": found}


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def correlated(rows: Sequence[Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """Spearman's correlation of pairs of numbers, with an interval that draws prompts anew. rows: of each prompt its pairs."""

    def of(chosen: np.ndarray) -> float:
        numbers = np.array([pair for row in chosen for pair in rows[row]], dtype=float).reshape(-1, 2)
        return spearman(numbers[:, 0], numbers[:, 1])

    return {"n": sum(map(len, rows)), "spearman": of(np.arange(len(rows))), "interval": interval(of, len(rows))}


class Rated(NamedTuple):
    """Rewards of a set's segments: of each pair those of both responses, the lengths of their segments, and ratings."""

    rewards: list[tuple[np.ndarray, np.ndarray]]
    lengths: list[tuple[np.ndarray, np.ndarray]]
    ratings: list[tuple[float, float]] | None


def what_rewards_go_with(rated: Rated) -> dict[str, Any]:
    """Rewards of segments against their lengths and places; scores of responses against lengths and ratings; right pairs."""
    sides = [list(zip(*both)) for both in zip(rated.rewards, rated.lengths)]

    def segments(of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> dict[str, Any]:
        return correlated([[pair for rewards, lengths in row for pair in zip(rewards, of(rewards, lengths))] for row in sides])

    within = [[pair for rewards, lengths in row for pair in zip(rewards - rewards.mean(), lengths)] for row in sides]
    found = {
        "reward and tokens of the segment": segments(lambda rewards, lengths: lengths),
        "the same within responses": correlated(within),
        "reward and place of the segment": segments(lambda rewards, lengths: np.arange(len(rewards))),
        "score and tokens of the response": correlated([[(r.mean(), n.sum()) for r, n in row] for row in sides]),
        "score and number of segments": correlated([[(r.mean(), len(n)) for r, n in row] for row in sides]),
    }
    gaps = np.array([chosen.mean() - rejected.mean() for chosen, rejected in rated.rewards])
    if rated.ratings is not None:
        scores = [[(r.mean(), rating) for r, rating in zip(*both)] for both in zip(rated.rewards, rated.ratings)]
        found["score and rating of the response"] = correlated(scores)
        margins = [[(gap, first - second)] for gap, (first, second) in zip(gaps, rated.ratings)]
        found["difference of scores and of ratings"] = correlated(margins)
    cut = [rewards for both in rated.rewards for rewards in both if len(rewards) > 1]
    places = {"first": [r[0] for r in cut], "between": [x for r in cut for x in r[1:-1]], "last": [r[-1] for r in cut]}
    spread = [np.concatenate(both) for both in rated.rewards]
    inside = np.mean([rewards.var() for both in rated.rewards for rewards in both])
    return {
        "pairs": len(gaps),
        "segments": sum(map(len, spread)),
        "accuracy": float((gaps > 0).mean()),
        "accuracy interval": interval(lambda rows: float((gaps[rows] > 0).mean()), len(gaps)),
        "mean reward by place": {place: float(np.mean(rewards)) for place, rewards in places.items()},
        "share of variance within responses": float(inside / np.concatenate(spread).var()),
        "with": found,
    }


class Judge:
    """The reward model of the runs, and the model whose entropies cut."""

    def __init__(self, options: Options):
        self.options, self.how = options, ModelSourceConfig()
        self.device = torch.device("cpu")
        self.members = load_members([str(options.runs / "rm")], "bf16", self.how)
        self.tokenizer = self.members.tokenizer
        self.segmenter: Segmenter = choose_segmenter(self.members.each, self.members.paths, self.tokenizer)
        self.config = ScoredPairsConfig(cache_dir=str(options.runs / "cache"), **LENGTHS)

    def rows(self, name: str) -> Dataset:
        """A set's held-out pairs."""
        return load_preferences([str(self.options.data / SETS[name])], on_bad_row="skip", limit=self.options.rows)

    def read(self, rows: Dataset, model: str, tokenizer: Any, dtype: str) -> Dataset:
        """Pairs as ids, with the entropies of a model."""
        numbered = rows.add_column(NUMBERED, np.arange(len(rows), dtype=float), feature=NUMBER)
        pairs = prepare_pairs(numbered, self.config, self.how, model, tokenizer, self.device, dtype, "skip")
        return pairs.add_column("place", [rows[int(number)]["place"] for number in pairs[NUMBERED]])

    def rated(self, name: str, pairs: Dataset) -> Rated:
        """What the segments of a set's pairs are worth."""
        source = source_of(self.members, self.segmenter)
        rewards = segment_rewards(source, pairs, self.segmenter, self.tokenizer, self.config.score_tokens, self.device)
        lengths = [self.lengths(*one) for side in SIDES for one in zip(pairs[f"{side}_ids"], pairs[f"{side}_entropy"])]
        both = [list(zip(values[: len(pairs)], values[len(pairs) :])) for values in (rewards, lengths)]
        return Rated(both[0], both[1], ratings_of(self.options.data / SETS[name], pairs["place"]))

    def lengths(self, ids: Sequence[int], entropy: Sequence[float]) -> np.ndarray:
        """Tokens of each segment of a response."""
        mask = torch.ones(1, len(ids), dtype=torch.bool)
        found = self.segmenter(torch.tensor([entropy]), mask, torch.tensor([ids]))
        return found.lengths[0, : int(found.counts[0])].numpy()


def ratings_of(path: Path, places: Sequence[str]) -> list[tuple[float, float]] | None:
    """The ratings of the rows at some places, where the set has some."""
    if path.suffix != ".jsonl":
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [json.loads(lines[int(place.rpartition(":")[2]) - 1])["metadata"] for place in places]
    return [(row["score_chosen"], row["score_rejected"]) for row in found]


def looked_at(options: Options) -> dict[str, Any]:
    """Everything of segments: cuts of both sets together, rewards of each."""
    judge, cuts, rated, examples = Judge(options), [], {}, []
    sets = {name: judge.rows(name) for name in SETS}
    for name, rows in sets.items():
        pairs = judge.read(rows, str(options.runs / "base"), judge.tokenizer, "bf16")
        responses = responses_of(pairs, SIDES, judge.tokenizer)
        cuts += [cut_of(response) for response in responses]
        known = judge.rated(name, pairs)
        rated[name] = what_rewards_go_with(known)
        if known.ratings is not None:
            examples = shown_segments(judge, responses, known)
    found = {"threshold": judge.segmenter.threshold, "where": where_cuts_fall(cuts), "moved": moved(cuts), "rewards": rated}
    found["examples"] = examples
    if options.other is not None:
        found["other model"] = between_models(compared(judge, sets.values(), options.other))
    return found


def compared(judge: Judge, sets: Iterable[Dataset], other: Path) -> list[Common]:
    """The places of each response at which tokens of both models begin; each reads it by its own tokenizer."""
    base, found = str(judge.options.runs / "base"), []
    models = [(base, judge.tokenizer, "bf16"), (str(other), load_tokenizer(str(other)), "fp32")]
    for rows in sets:
        first, second = (
            {(one.place, one.side): one for one in responses_of(judge.read(rows, model, by, dtype), SIDES, by)}
            for model, by, dtype in models
        )
        # Responses are cut to a number of tokens, which is not the same text.
        both = [(first[key], second[key]) for key in first if key in second]
        found += [in_common(cut_of(one), cut_of(its)) for one, its in both if begin_alike(one.text, its.text)]
    return [common for common in found if len(common.first)]


def begin_alike(first: str, second: str) -> bool:
    return first.startswith(second) or second.startswith(first)


def shown_segments(judge: Judge, responses: Sequence[Response], rated: Rated, count: int = 2) -> list[dict[str, Any]]:
    """The first responses of some twenty words, cut, with what each segment is worth."""
    found = []
    for response, rewards, lengths in zip(
        responses, (r for both in rated.rewards for r in both), (n for both in rated.lengths for n in both)
    ):
        if 15 <= len(response.entropy) <= 45 and len(rewards) >= 4 and len(found) < count:
            ends = [response.ends[min(last, len(response.ends)) - 1] for last in np.cumsum(lengths)]
            texts = [response.text[first:last] for first, last in zip([0, *ends], ends)]
            found.append({"side": response.side, "segments": [[text, round(float(r), 3)] for text, r in zip(texts, rewards)]})
    return found


def of_runs(runs: Path) -> dict[str, Any]:
    """What the runs themselves have measured, as far as they have been made."""
    found: dict[str, Any] = {"judged": {}, "text": {}, "answers": {}}
    for path in sorted((runs / "judged").glob("*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        found["judged"][path.parent.name] = {
            key: results[key] for key in ("accuracy", "n", "intervals", "length_baseline", "subsets")
        }
    for path in sorted((runs / "text").glob("*/inspect.json")):
        found["text"][path.parent.name] = json.loads(path.read_text(encoding="utf-8"))["likelihood"]["plain text"]
    for path in sorted((runs / "answers").glob("*/answers.json")):
        account = json.loads(path.read_text(encoding="utf-8"))
        found["answers"][path.parent.name] = {key: account[key] for key in ("questions", "truncated", "empty", "tokens")}
    if (runs / "ppo/metrics.jsonl").is_file():
        found["ppo"] = read_metrics(runs / "ppo/metrics.jsonl")
        found["prompts"] = json.loads((runs / "ppo/command.json").read_text(encoding="utf-8"))[-1]["settings"]["eval_limit"]
    return found


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """The pictures of the page: where cuts fall, and PPO on held-out prompts."""
    plt.switch_backend("agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=(3, 2))
    where, colours = found["segments"]["where"], plt.get_cmap("viridis")(np.linspace(0.05, 0.95, len(KINDS)))
    labels = ["all tokens", *(f"> {at['threshold']:g}\n{at['tokens a segment']:.1f} tokens" for at in where["at"])]
    shares = np.array([where["all"], *(at["shares"] for at in where["at"])])
    for kind, name in enumerate(KINDS):
        left.bar(labels, shares[:, kind], bottom=shares[:, :kind].sum(1), color=colours[kind], label=name)
    left.set(ylabel="share", title="What begins at a cut", ylim=(0, 1))
    left.tick_params(axis="x", labelsize=8)
    left.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    right.barh(KINDS, where["mean entropy"], color=colours)
    right.set(xlabel="nats", title="Mean entropy of what foretells it")
    right.invert_yaxis()
    figure.savefig(folder / "real_segments.png", dpi=90)
    plt.close(figure)
    held_out = [row for row in found["runs"].get("ppo", []) if "eval_reward" in row]
    if not held_out:
        return
    figure, panels = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    drawn = {
        "eval_reward": "reward, held-out prompts",
        "eval_gold_reward": "by the second model",
        "eval_kl": "KL, nats a response",
    }
    steps = [row["step"] for row in held_out]
    for panel, (key, title) in zip(panels, drawn.items()):
        errors = [standard_error(row, key, found["runs"]["prompts"]) for row in held_out]
        panel.errorbar(steps, [row[key] for row in held_out], errors, marker="o", capsize=3)
        panel.set(title=title, xlabel="iteration")
    figure.savefig(folder / "real_ppo.png", dpi=90)
    plt.close(figure)


def standard_error(row: Mapping[str, float], key: str, prompts: int) -> float:
    """Of a mean over held-out prompts; 0 where the spread is not known."""
    return row.get(f"{key}_std", 0.0) / prompts**0.5


def tables(found: Mapping[str, Any]) -> str:
    """The tables of the page."""
    segments = found["segments"]
    where = segments["where"]
    rows = [["threshold", "tokens a segment", *KINDS], ["all tokens", "", *percents(where["all"])]]
    rows += [[f"{at['threshold']:g}", f"{at['tokens a segment']:.1f}", *percents(at["shares"])] for at in where["at"]]
    parts = [in_markdown(rows)]
    if "other model" in segments:
        rows = [["places a cut", "F1", "by chance", "among places of like kind", "kappa", "95 % interval"]]
        for at in segments["other model"]["at"]:
            numbers = [f"{at[key]:.2f}" for key in ("f1", "chance", "within", "kappa")]
            rows.append([str(at["places a cut"]), *numbers, shown(at["kappa interval"])])
        parts.append(in_markdown(rows))
    rows = [["what goes with what, Spearman", *segments["rewards"]]]
    found_of = [of["with"] for of in segments["rewards"].values()]
    names = dict.fromkeys(name for of in found_of for name in of)
    rows += [[name, *(correlation(of.get(name)) for of in found_of)] for name in names]
    for what in ("accuracy", "share of variance within responses"):
        rows.append([what, *(f"{of[what]:.3f}" for of in segments["rewards"].values())])
    for place in ("first", "between", "last"):
        means = [of["mean reward by place"][place] for of in segments["rewards"].values()]
        rows.append([f"mean reward, {place}", *(f"{mean:.2f}" for mean in means)])
    return "\n\n".join([*parts, in_markdown(rows), *tables_of_runs(found["runs"])])


def tables_of_runs(runs: Mapping[str, Any]) -> list[str]:
    """Judgements, PPO on held-out prompts, and plain text, as far as the runs have them."""
    judged = [["judged", "pairs", "accuracy", "95 % interval", "of the longer one"]]
    for name, of in runs["judged"].items():
        longer = of["length_baseline"]["accuracy"]
        judged.append([name, str(of["n"]), f"{of['accuracy']:.3f}", shown(of["intervals"]["accuracy"]), f"{longer:.3f}"])
    ppo = [["iteration", "reward", "by the second model", "KL", "tokens", "ended"]]
    for row in (row for row in runs.get("ppo", []) if "eval_reward" in row):
        rewards = [
            f"{row[key]:.2f} +- {standard_error(row, key, runs['prompts']):.2f}" for key in ("eval_reward", "eval_gold_reward")
        ]
        others = [f"{row['eval_kl']:.2f}", f"{row['eval_response_length']:.1f}", f"{row['eval_ended']:.0%}"]
        ppo.append([str(row["step"]), *rewards, *others])
    text = [["plain text", "texts", "tokens", "nats a token", "95 % interval"]]
    for name, of in runs["text"].items():
        text.append([name, str(of["texts"]), str(of["tokens"]), f"{of['nats']:.3f}", shown(of["interval"])])
    return [in_markdown(rows) for rows in (judged, ppo, text) if len(rows) > 1]


def percents(shares: Sequence[float]) -> list[str]:
    return [f"{share:.1%}" for share in shares]


def shown(bounds: Sequence[float]) -> str:
    return f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"


def correlation(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['spearman']:+.2f} {shown(found['interval'])}, n = {found['n']}"


def in_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of which is the head, as a table."""
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *others])


def main() -> None:
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    found = {"segments": looked_at(options), "runs": of_runs(options.runs)}
    draw(found, options.pictures or options.runs)
    (options.runs / "real_segments.json").write_text(json.dumps(found, indent=1, allow_nan=True) + "\n", encoding="utf-8")
    print(tables(found))


if __name__ == "__main__":
    ending_well(main)
