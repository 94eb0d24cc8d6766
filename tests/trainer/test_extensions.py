"""What users bring themselves, through the commands: the files of examples/, rewards by hand, and mistakes in them."""

import itertools
import json
import logging
from pathlib import Path

import pytest
import reference_loops as loops
import tiny_models
import torch
from transformers import AutoModelForSequenceClassification

import denserl
from denserl.cli import bon, evaluate, train_ppo, train_rm
from denserl.cli.options import parse
from denserl.errors import UserError
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.objectives import Objective
from denserl.trainer.ppo_trainer import PPOTrainer
from denserl.trainer.trackers import read_metrics

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
REWARD, OBJECTIVE = EXAMPLES / "my_reward.py", EXAMPLES / "my_objective.py"
SEGMENTER, SUITE = EXAMPLES / "my_segmenter.py", EXAMPLES / "my_suite.py"


@pytest.fixture
def scored(monkeypatch) -> list:
    """The responses of each rollout, and the rewards of their tokens."""
    kept, score = [], PPOTrainer.score

    def keep_scored(self, responses, **kw):
        found = score(self, responses, **kw)
        kept.append((responses, found[0]))
        return found

    monkeypatch.setattr(PPOTrainer, "score", keep_scored)
    return kept


@pytest.fixture
def train(world, tmp_path):
    """Runs train-rm on a few pairs: options -> its output folder and metrics."""
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_models.boat_pairs(8)))

    def run(name: str = "rm", **options) -> tuple[Path, dict]:
        settings = {
            "model": world.sft,
            "data": tmp_path / "pairs.jsonl",
            "eval_data": tmp_path / "pairs.jsonl",
            "output_dir": tmp_path / name,
            "cache_dir": tmp_path / "cache",
            "entropy_threshold": 5.3,
            "batch_size": 8,
            "lr": 1e-3,
            "save_steps": 0,
        }
        return tmp_path / name, tiny_models.run_command(train_rm, "train-rm", tiny_models.as_argv(settings | options))

    return run


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("my_*.py")), ids=lambda path: path.name)
def test_an_example_has_at_most_twenty_lines(path):
    assert len(path.read_text().splitlines()) <= 20


def test_one_number_a_response_is_paid_at_its_last_token(ppo, scored):
    ppo(reward_model=None, reward_function=f"{REWARD}:plain_words", entropy_threshold=None)
    ((responses, found),) = scored
    for row, (text, ids) in enumerate(zip(responses.texts, responses.response_ids, strict=True)):
        words = text.split()
        expected = [0.0] * (len(ids) - 1) + [-sum(len(word) for word in words) / max(len(words), 1)]
        assert found.rewards[row, : len(ids)].tolist() == pytest.approx(expected, abs=1e-5)
    assert max(len(ids) for ids in responses.response_ids) > 1


def halves(prompts, responses):
    """The letters of both halves of each response."""
    return [[(len(r) // 2, len(r[: len(r) // 2])), (len(r), 2.0 * len(r[len(r) // 2 :]))] for r in responses]


def test_parts_of_a_response_are_paid_each_at_its_last_token(ppo, scored, world):
    ppo(reward_model=None, reward_function="test_extensions:halves", entropy_threshold=None)
    ((responses, found),) = scored
    tokenizer = load_tokenizer(str(world.sft))
    for row, (text, ids) in enumerate(zip(responses.texts, responses.response_ids, strict=True)):
        expected = [0.0] * len(ids)
        for end, number in halves([None], [text])[0]:
            lengths = [len(tokenizer.decode(ids[: n + 1], skip_special_tokens=True)) for n in range(len(ids))]
            expected[next(n for n, length in enumerate(lengths) if length >= end)] += number
        assert found.rewards[row, : len(ids)].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_example_with_parts_trains_and_logs_its_segments(ppo):
    output = ppo(reward_model=None, reward_function=f"{REWARD}:no_repeats", entropy_threshold=None)
    sample = json.loads((output / "samples.jsonl").read_text().splitlines()[0])
    assert {*sample["segments"][0]} == {"text", "raw", "normalised", "change", "paid"}
    assert read_metrics(output / "metrics.jsonl")[-1]["reward"] <= 0


def test_sources_are_added_with_their_weights_each_paid_in_its_own_way(ppo, scored, world):
    """The reward model by hand as the level pays it, and the function at the last token."""
    output = ppo(reward_function=f"{REWARD}:plain_words", reward_weights=None, samples_logged=8)
    ((responses, found),) = scored
    argv = ["--reward_weights", "0.5", "-2"]
    scored.clear()
    weighted = world.argv(output.parent / "weighted", reward_function=f"{REWARD}:plain_words")
    tiny_models.run_command(train_ppo, "train-ppo", [*weighted, *argv])
    ((again, other),) = scored
    assert again.response_ids == responses.response_ids
    model = AutoModelForSequenceClassification.from_pretrained(world.reward_model, dtype=torch.float32).eval()
    for row, (prompt, ids) in enumerate(zip(responses.prompt_ids, responses.response_ids, strict=True)):
        with torch.no_grad():
            hidden = model.model(torch.tensor([[*prompt, *ids]])).last_hidden_state[0, len(prompt) :]
        scores = (hidden @ model.score.weight[0]).tolist()
        segments = segments_of(found.sources[0].segments.ids[row].tolist())
        normalised = [(scores[tokens[-1]] - world.mean) / world.std for tokens in segments]
        (dense,) = loops.assign([normalised], [segments], [len(ids) - 1], len(ids), "difference_end")
        words = responses.texts[row].split()
        plain = [0.0] * (len(ids) - 1) + [-sum(map(len, words)) / max(len(words), 1)]
        assert found.rewards[row, : len(ids)].tolist() == pytest.approx(add(1, dense, 1, plain), abs=1e-3)
        assert other.rewards[row, : len(ids)].tolist() == pytest.approx(add(0.5, dense, -2, plain), abs=1e-3)
    metrics = read_metrics(output / "metrics.jsonl")[-1]
    own = [metrics[f"reward/{name}"] for name in ("reward_model", f"{REWARD}:plain_words")]
    assert metrics["reward"] == pytest.approx(sum(own), abs=1e-5)
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == len(found.rewards)
    for row, sample in enumerate(samples):
        assert sample["weights"] == {"reward_model": 1.0, f"{REWARD}:plain_words": 1.0}
        each = [sample["segments"], *sample["segments_of_other_sources"].values()]
        paid = [sum(segment["paid"] for segment in segments) for segments in each]
        assert sum(paid) == pytest.approx(found.rewards[row].sum().item(), abs=1e-3)


def add(a, x, b, y):
    return [a * i + b * j for i, j in zip(x, y, strict=True)]


def segments_of(ids: list[int]) -> list[list[int]]:
    """The tokens of each segment, from their numbers."""
    return [[t for t, number in enumerate(ids) if number == k] for k in range(max(ids) + 1)]


def fails(prompts, responses):
    raise KeyError("the verifier has no entry")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_function": "test_extensions:fails"}, "--reward_function test_extensions:fails raised KeyError: .*response '"),
        ({"reward_function": "tiny_models:unbounded"}, "returned inf for the response '"),
        ({"reward_function": "builtins:len"}, "--reward_function builtins:len"),
        ({"reward_function": "nowhere:f"}, "--reward_function nowhere:f: ModuleNotFoundError"),
        ({"reward_function": None}, "nothing gives rewards"),
        ({"reward_function": "tiny_models:letters", "entropy_threshold": 1.0}, "--entropy_threshold 1.0 has no effect without"),
        ({"reward_function": "tiny_models:letters", "reward_weights": 2.0}, "--reward_weights .* with a single source"),
    ],
)
def test_mistakes_in_functions_are_named(options, message, ppo):
    with pytest.raises(UserError, match=message):
        ppo(**{"reward_model": None, "entropy_threshold": None, **options})


def test_weights_of_another_number_of_sources(ppo):
    with pytest.raises(UserError, match="--reward_weights has 1 weights for 2 sources"):
        ppo(reward_function="tiny_models:letters", reward_weights=2.0)


def test_an_objective_of_ones_own_is_added_with_its_options(train):
    plain, without = train("plain")
    _, metrics = train("calm", objective=f"{OBJECTIVE}:Calm,weight=0.5,most=0")
    rows = read_metrics(plain / "metrics.jsonl")
    assert rows and "eval_calm_loss" not in without
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_bt_loss"] + 0.5 * metrics["eval_calm_loss"], rel=1e-5)


def test_a_segmenter_of_ones_own_is_stored_and_asked_for_by_name(train, ppo, world, tmp_path, caplog):
    name, texts = f"{SEGMENTER}:sentences", ["One. Two! Three?", "One", "One: two. Three. Four.", "Yes. No"]
    rows = [{"prompt": "Count.", "chosen": text, "rejected": f"{text} Not."} for text in texts]
    (tmp_path / "counts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder, metrics = train(segmenter=name, eval_data=tmp_path / "counts.jsonl")
    tokenizer, counts = load_tokenizer(str(world.sft)), []
    for text in (row[side] for row in rows for side in ("chosen", "rejected")):
        tokens = [tokenizer.decode([i]).rstrip() for i in tokenizer(text, add_special_tokens=False).input_ids]
        counts.append(1 + sum(token.endswith((".", "!", "?", ":")) for token in tokens[:-1]))
    assert metrics["eval_segments_per_response"] == pytest.approx(sum(counts) / len(counts)) and max(counts) >= 4
    assert json.loads((folder / "config.json").read_text())["segment_reward"]["segmenter"] == name
    ways = {"reward_model": folder, "entropy_threshold": None}
    with pytest.raises(UserError, match="trained with the segmenter .*, which is code") as error:
        ppo(**ways)
    assert f"--segmenter {name}" in error.value.fix
    with caplog.at_level(logging.WARNING):
        ppo(**ways, segmenter=name)
        assert "trained with segmenter" not in caplog.text
        ppo("other", **ways, segmenter=f"{SEGMENTER}:surprises")
    assert "trained with segmenter" in caplog.text
    argv = ["pairs", str(tmp_path / "counts.jsonl"), "--scorer", str(folder), "--output_dir", str(tmp_path / "judged")]
    results = tiny_models.run_command(evaluate, "evaluate", [*argv, "--segmenter", name])
    assert results["segmenter"] == name and results["accuracy"] == pytest.approx(metrics["eval_accuracy"])


def test_a_suite_of_ones_own_is_judged(world, tmp_path, capsys):
    row = {"id": 1, "topic": "rivers", "question": "Why?", "true": ["Because it rains."], "false": ["No", "Yes."]}
    (tmp_path / "facts.jsonl").write_text(json.dumps(row) + "\n")
    argv = [f"{SUITE}:facts", str(tmp_path / "facts.jsonl"), "--scorer", "length", "--output_dir", str(tmp_path / "out")]
    results = tiny_models.run_command(evaluate, "evaluate", argv)
    assert results["subsets"]["rivers"]["accuracy"] == 1.0
    with pytest.raises(UserError, match="there is no suite 'fact'"):
        tiny_models.run_command(evaluate, "evaluate", ["fact", *argv[1:]])


def test_level_and_threshold_are_those_of_the_reward_model_unless_asked_for(train, ppo, caplog):
    for level, threshold in (("token", 0.0), ("segment", 4.9), ("bandit", 1000.0)):
        folder, _ = train(level, reward_level=level, entropy_threshold=threshold)
        output = ppo(f"as-{level}", reward_model=folder, entropy_threshold=None, save_every=1)
        (checkpoint,) = (output / "checkpoints").glob("iteration-*")
        settings = json.loads((checkpoint / "state.json").read_text())["settings"]
        assert settings["threshold of reward_model"] == threshold
        assert ("mean_last" in settings["rewards of reward_model"]) == (level == "bandit")
    assert "trained at entropy threshold" not in caplog.text
    with caplog.at_level(logging.WARNING):
        ppo("other", reward_model=folder, reward_level="token", entropy_threshold=None)
    assert "bandit: trained at entropy threshold 1000; read at 0" in caplog.text


class Labelled(Objective):
    """Scores of the chosen near a number of the row."""

    labels = ("quality",)

    def __call__(self, groups):
        losses = (groups.scores[:, 0] - groups.labels["quality"]).square()
        return losses, {"quality_loss": losses, "quality": groups.labels["quality"]}


class Changing(Objective):
    """A metric of every other batch alone."""

    calls = itertools.count()

    def __call__(self, groups):
        losses = groups.scores.sum(1)
        return losses, {} if next(self.calls) % 2 else {"own": losses}


def test_an_objective_reads_numbers_of_the_rows_under_names_of_its_own(train, tmp_path):
    rows = [row | {"quality": float(number)} for number, row in enumerate(tiny_models.boat_pairs(8))]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rated = {"data": tmp_path / "rated.jsonl", "eval_data": tmp_path / "rated.jsonl"}
    _, metrics = train(objective="test_extensions:Labelled", **rated)
    assert metrics["eval_quality"] == pytest.approx(3.5) and metrics["eval_quality_loss"] > 0
    with pytest.raises(UserError, match="it has no 'quality', a number that an objective"):
        train("without", objective="test_extensions:Labelled")


def test_an_objective_whose_metrics_change_is_refused(train):
    with pytest.raises(UserError, match="returned the metrics .* of a batch, and bt_loss, own of the one before"):
        train(objective="test_extensions:Changing", batch_size=4)


def test_sources_and_samplers_made_in_python(world, tmp_path):
    """A source that pays a response's length in tokens, and a sampler that always answers the same."""
    options = parse(train_ppo.Options, "train-ppo", world.argv(tmp_path / "own", reward_model=None, entropy_threshold=None))
    asked = []

    def length(responses, batch):
        asked.append(len(responses.texts))
        return denserl.Scores(batch.response_mask.sum(1).float())

    def answers(config, current_policy, tokenizer):
        ids = tokenizer("The river.", add_special_tokens=False).input_ids
        return lambda prompts, streams: denserl.Rollouts(prompts, [ids] * len(prompts), [False] * len(prompts))

    dense = denserl.DenseReward("difference_end", None, "sum")
    own = denserl.PaidSource("length", length, denserl.Segmenter(1000.0), dense)
    denserl.PPOTrainer.from_config(options, sources=[own], sampler=answers).run()
    (row,) = read_metrics(tmp_path / "own/metrics.jsonl")
    assert row["reward"] == row["response_length"] > 1 and sum(asked) == 8


def test_a_gold_model_and_best_of_n_read_a_segmenter_that_is_named(train, ppo, world, tmp_path):
    name = f"{SEGMENTER}:sentences"
    folder, _ = train(segmenter=name)
    gold = {"eval_prompts": world.prompts, "gold_reward_model": folder}
    with pytest.raises(UserError, match="rm: trained with the segmenter"):
        ppo(**gold)
    output = ppo("named", **gold, segmenter=name)
    assert "eval_gold_reward" in read_metrics(output / "metrics.jsonl")[0]
    settings = {"model": world.sft, "data": world.prompts, "samples": 2, "max_new_tokens": 4, "reward_model": folder}
    argv = tiny_models.as_argv({**settings, "true_reward": "tiny_models:letters", "output_dir": tmp_path / "bon"})
    with pytest.raises(UserError, match="rm: trained with the segmenter"):
        tiny_models.run_command(bon, "bon", argv)
    assert not (tmp_path / "bon/samples.jsonl").exists()
    assert tiny_models.run_command(bon, "bon", [*argv, "--segmenter", name])["samples"] == 2


def test_a_source_that_is_given_twice_is_refused(world, tmp_path):
    argv = world.argv(tmp_path / "twice", reward_model=None, entropy_threshold=None)
    with pytest.raises(UserError, match="tiny_models:letters is given twice"):
        tiny_models.run_command(train_ppo, "train-ppo", [*argv, "--reward_function", *["tiny_models:letters"] * 2])


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"id": 2, "topic": "x", "question": "Why?", "false": ["No"]}, "'true' is missing"),
        ({"id": 2, "topic": "x", "question": "Why?", "true": ["a"], "false": []}, "no worse answer that is a text"),
        ({"id": 2, "topic": "x", "question": "Why?", "true": [1], "false": ["b"]}, "no better answer that is a text"),
        ({"id": 2, "topic": "x", "question": "Why?", "true": "abc", "false": ["b"]}, "'true' is a str, expected list"),
    ],
)
def test_a_row_that_a_suite_of_ones_own_makes_nothing_of_is_a_bad_row(row, reason, tmp_path):
    (tmp_path / "facts.jsonl").write_text(json.dumps(row) + "\n")
    argv = [f"{SUITE}:facts", str(tmp_path / "facts.jsonl"), "--scorer", "length", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match=f"facts.jsonl:1: .*{reason}"):
        tiny_models.run_command(evaluate, "evaluate", argv)
