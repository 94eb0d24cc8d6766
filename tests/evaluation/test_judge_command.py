"""`denserl judge` as a user runs it: recorded judgements, and a judge that follows a rule, on every suite."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from policy_files import PROMPTS, write_alpacaeval, write_arenahard, write_mtbench, write_prompts
from rule_server import Rule, serving
from test_win_rate import recorded

from denserl.cli import judge
from denserl.judging.templates import find_template
from denserl.judging.verdicts import alpacaeval_switched
from denserl.rewards.scorer import RewardScorer

sys.path.insert(0, str(Path(__file__).parent.parent / "rewards"))
from reward_folders import save_reward_model  # noqa: E402


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


def run(output, suite, *words):
    judge.main([suite, *map(str, words), "--output_dir", str(output), "--bootstrap", "20"])
    return json.loads((output / "results.json").read_text())


@pytest.mark.parametrize(
    "name, published, headline",
    [
        ("FuseChat-Llama-3.1-8B-Instruct", (63.331583, 1.422507, 518, 286, 1, 64.409938, 2033), 65.4502),
        ("claude-2.1", (15.733507, 1.120316, 115, 688, 2, 14.409938, 1096), 24.5477),
    ],
)
def test_recorded_annotations_have_the_published_numbers(shared_data, tmp_path, name, published, headline):
    preferences, baseline, policy = recorded(shared_data, name)
    prompts = [f"instruction {number}" for number in range(len(preferences))]
    texts = [["x" * length for length in lengths] for lengths in (baseline, policy)]
    files = [write_alpacaeval(tmp_path / f"{k}.json", prompts, texts[k], ("gpt4_1106_preview", name)[k]) for k in (0, 1)]
    rows = [
        {"instruction": prompt, "output_1": first, "generator_1": "gpt4_1106_preview", "output_2": second, "generator_2": name}
        | {"annotator": "weighted", "preference": preference, "dataset": "d"}
        for prompt, first, second, preference in zip(prompts, *texts, preferences, strict=True)
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    found = run(
        tmp_path / "out", "alpacaeval", files[1], "--baseline", files[0], "--annotations", tmp_path / "annotations.json"
    )
    own = found["policies"][name]
    keys = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "discrete_win_rate", "avg_length")
    assert [own["original"][key] for key in keys] == pytest.approx(published, abs=1e-6)
    assert own["headline"]["value"] == pytest.approx(headline, abs=0.01) and "fixed" in own["headline"]["name"]
    assert own["win_rate"]["value"] == pytest.approx(published[0], abs=1e-6)


def value(prompt: str, text: str) -> float:
    """What the judge of the tests takes an answer for: the length of its last word of digits, which no place says."""
    return float(text.rsplit("worth ", 1)[1].split()[0]) if "worth " in text else -1.0


@pytest.fixture(scope="module")
def server():
    names = ("pairwise", "alpacaeval", "pairwise-verdict", "arenahard", "mtbench-single", "mtbench-pair")
    first, *more = (Rule(find_template(name), value) for name in names)
    with serving(first, *more) as found:
        yield found


@pytest.fixture
def world(tmp_path):
    """Twelve questions; the good policy's answers are worth more in three quarters of them than the baseline's."""
    prompts = PROMPTS[:12]
    worth = {"base": [0.2] * 12, "good": [0.6 if i % 4 else -0.5 for i in range(12)], "bad": [-0.2] * 12}
    return tmp_path, prompts, {name: [f"worth {own} <b>{i}</b>" for i, own in enumerate(all)] for name, all in worth.items()}


def test_prompts_are_judged_and_nothing_is_asked_twice(world, server, capsys):
    folder, prompts, texts = world
    files = {name: write_prompts(folder / f"{name}.jsonl", prompts, own) for name, own in texts.items()}
    words = (files["good"], files["bad"], "--baseline", files["base"], "--judge", server.url)
    found = run(folder / "out", "prompts", *words)
    assert {name: own["win_rate"]["value"] for name, own in found["policies"].items()} == {"good": 75.0, "bad": 0.0}
    (difference,) = found["differences"]
    assert difference["value"] == pytest.approx(75.0) and difference["questions"] == 12
    assert found["judge"]["judges"][0]["calls"] == 2 * 2 * 12 == len(server.bodies)
    said = capsys.readouterr().out
    assert "good - bad" in said and "75.00" in said
    rows = [json.loads(line) for line in (folder / "out/judgements.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and [game["policy_first"] for game in rows[0]["games"]] == [True, False]


def test_alpacaeval_plays_one_game_and_a_complete_store_needs_no_judge(world):
    folder, prompts, texts = world
    files = {name: write_alpacaeval(folder / f"{name}.json", prompts, own, name) for name, own in texts.items()}
    words = (files["good"], "--baseline", files["base"])
    rule = Rule(find_template("alpacaeval"), value, noise=0.2, position_bias=0.3)
    with serving(rule) as server:
        found = run(folder / "out", "alpacaeval", *words, "--judge", server.url)
        assert len(server.bodies) == 12 and {body["max_tokens"] for body in server.bodies} == {1}
    own = found["policies"]["good"]
    assert found["parse"]["games_that_differ"] == 0
    # In closed form: the chance of what is shown first, by the rule, in the order that each instruction draws.
    firsts = [alpacaeval_switched(prompt) for prompt in prompts]
    better = [number % 4 > 0 for number in range(12)]
    chances = [0.3 + 0.7 * (0.8 if first == good else 0.2) for first, good in zip(firsts, better, strict=True)]
    worths = [chance if first else 1 - chance for chance, first in zip(chances, firsts, strict=True)]
    assert own["win_rate"]["value"] == pytest.approx(100 * sum(worths) / 12)
    assert own["original"]["n_wins"] == sum(worth > 0.5 for worth in worths) and own["games"] == 12
    annotations = folder / "out/good/rule/annotations.json"
    rows = json.loads(annotations.read_text())
    assert [row["preference"] for row in rows] == pytest.approx([1 + worth for worth in worths])
    assert {(row["generator_1"], row["generator_2"]) for row in rows} == {("base", "good")}
    (board,) = csv.DictReader(annotations.with_name("leaderboard.csv").open())
    assert board[""] == "good" and float(board["win_rate"]) == own["original"]["win_rate"] and board["n_total"] == "12"
    # Its own annotations give its own numbers, and a second run asks nobody.
    again = run(folder / "recorded", "alpacaeval", *words, "--annotations", annotations)
    assert again["policies"]["good"]["original"] == pytest.approx(own["original"])
    before = {path: path.read_bytes() for path in (annotations, folder / "out/results.json", folder / "out/report.html")}
    run(folder / "out", "alpacaeval", *words, "--judge", server.url, "--judge_model", "rule")
    assert {path: path.read_bytes() for path in before} == before


def test_arenahard_plays_two_games_and_asks_again_for_a_mark(world, capsys):
    folder, prompts, texts = world
    files = write_arenahard(folder, prompts, texts)
    with serving(Rule(find_template("arenahard"), value)) as server:
        words = (files["good"], files["bad"], "--baseline", files["base"], "--questions", files["questions"], "--style_control")
        found = run(folder / "out", "arenahard", *words, "--judge", server.url)
    own = found["policies"]["good"]
    assert own["win_rate"]["value"] == 75.0 and own["original"]["v0.1"]["win_rate"] == pytest.approx(75.0)
    assert {"newer", "v0.1 style control", "newer style control"} <= own["original"].keys() and own["games"] == 24
    said, (low, high) = capsys.readouterr().out, own["original"]["newer style control"]["interval"]
    assert "v0.1 style control" in said
    assert f"{own['original']['newer style control']['win_rate']:.2f} [{low:.2f}, {high:.2f}]" in said
    judgments = folder / "out/model_judgment/rule/good.jsonl"
    rows = [json.loads(line) for line in judgments.read_text().splitlines()]
    assert [game["score"] for game in rows[1]["games"]] == ["B>A", "A>B"] and rows[0]["games"][0]["score"] == "A>B"
    again = run(folder / "recorded", "arenahard", *words[:1], *words[2:6], "--annotations", judgments)
    alone, beside = (entry["original"]["v0.1"] for entry in (again["policies"]["good"], own))
    assert alone["rating"] == pytest.approx(beside["rating"]) and alone["win_rate"] == pytest.approx(75.0)


def test_mtbench_grades_both_turns_and_compares_conversations(world, capsys):
    folder, prompts, texts = world
    turns = [(prompt, f"And more of {number}?") for number, prompt in enumerate(prompts)]
    files = write_mtbench(folder, turns, {name: [(text, text[::-1]) for text in own] for name, own in texts.items()})
    # A grade is 1 + 9 (value + 1) / 2, rounded: of the first turn by its text, of the second, which is turned round, 1.
    with serving(Rule(find_template("mtbench-single"), value), Rule(find_template("mtbench-pair"), value)) as server:
        found = run(folder / "out", "mtbench", files["good"], "--questions", files["questions"], "--judge", server.url)
        words = (files["good"], "--questions", files["questions"], "--judge", server.url)
        pairs = run(folder / "pairs", "mtbench", *words, "--mode", "pair", "--baseline", files["base"])
    original = found["policies"]["good"]["original"]
    first = [round(1 + 9 * ((0.6 if number % 4 else -0.5) + 1) / 2) for number in range(12)]
    assert original["turn_1"] == pytest.approx(sum(first) / 12) and original["turn_2"] == 1
    said = capsys.readouterr().out
    assert "turn_1" in said and f"{sum(first) / 12:.2f}" in said
    average = pytest.approx((sum(first) / 12 + 1) / 2)
    assert original["average"] == average and found["policies"]["good"]["average"]["value"] == average
    # In the second turn the judge is shown the whole conversation, and the worth of its first answer decides again.
    rates = pairs["policies"]["good"]["original"]
    assert {key: rates[key] for key in ("win", "loss", "tie", "error")} == {"win": 18, "loss": 6, "tie": 0, "error": 0}
    grades = folder / "out/model_judgment/rule_single.jsonl"
    rows = [json.loads(line) for line in grades.read_text().splitlines()]
    assert [(row["question_id"], row["turn"]) for row in rows[:3]] == [(81, 1), (81, 2), (82, 1)]
    assert rows[0]["judge"] == ["rule", "mtbench-single"]
    again = run(folder / "again", "mtbench", files["good"], "--questions", files["questions"], "--annotations", grades)
    assert again["policies"]["good"]["original"] == original


def test_right_answers_without_a_place_in_the_template_are_refused_before_anything_is_asked(world, capsys):
    folder, prompts, texts = world
    files = write_mtbench(folder, [(prompt, "More?") for prompt in prompts], {"good": [(text, text) for text in texts["good"]]})
    words = (
        files["good"],
        "--questions",
        files["questions"],
        "--references",
        files["good"],
        "--judge",
        "http://127.0.0.1:9/v1",
    )
    with pytest.raises(SystemExit):
        run(folder / "out", "mtbench", *words, "--judge_template", "rating")
    assert "12 questions have reference answers, for which the template rating has no place" in capsys.readouterr().err


def test_marks_that_a_suites_own_program_does_not_read_are_refused_before_anything_is_asked(world, capsys):
    folder, prompts, texts = world
    files = write_arenahard(folder, prompts, texts)
    words = ("arenahard", files["good"], "--baseline", files["base"], "--questions", files["questions"])
    with serving(Rule(find_template("pairwise"), value)) as server:
        words = (*words, "--judge", server.url, "--judge_template", "pairwise")
        with pytest.raises(SystemExit):
            run(folder / "out", *words)
        assert "asks for [[A]], [[B]], which arenahard's own program does not read" in capsys.readouterr().err
        assert not server.bodies
        found = run(folder / "out", *words, "--parse", "strict")
    assert found["policies"]["good"]["win_rate"]["value"] == 75.0


def test_a_reward_model_is_a_stand_in_and_is_told_where_it_trained_the_policy(world, caplog):
    folder, prompts, texts = world
    sft = tiny_models.save_language_model(folder / "sft")
    model = save_reward_model(folder / "rm", sft, 3, entropy_threshold=1000.0, read_at="end_of_turn")
    ppo = folder / "ppo"
    ppo.mkdir()
    files = {name: write_prompts(ppo / f"{name}.jsonl", prompts, own) for name, own in texts.items()}
    record = [{"command": "denserl train-ppo", "inputs": {"reward_model": {"rm": {"path": str(model)}}}}]
    (ppo / "command.json").write_text(json.dumps(record))
    (ppo / "answers.json").write_text(json.dumps({"model": str(ppo / "policy")}))
    words = (files["good"], "--baseline", files["base"], "--judge_reward_model", model, "--device", "cpu")
    found = run(folder / "out", "prompts", *words)
    own = found["policies"]["good"]
    assert found["stand_in"] is True and "win_rate" not in own and own["headline"]["name"] == "rm_win_rate"
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    good, base = (RewardScorer([model])(messages, texts[name]) for name in ("good", "base"))
    worths = 1 / (1 + np.exp(base - good))
    assert own["rm_win_rate"]["value"] == pytest.approx(100 * worths.mean(), abs=1e-3)
    assert found["judge"]["trained"] == {str(files["good"]): [model]} and "the policy was trained with" in caplog.text
    assert not (folder / "out/judgements.jsonl").exists()
    hard = run(folder / "hard", "prompts", *words, "--hard")["policies"]["good"]["rm_win_rate"]["value"]
    assert hard == pytest.approx(100 * (worths > 0.5).mean())


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run but the record of the command, and the judge's answers, which have dates and come in any order."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("command.json", "judge_answers.jsonl")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_busy_servers_cut_connections_and_a_refusal_in_the_middle_end_in_the_same_files(world, capsys):
    folder, prompts, texts = world
    files = {name: write_prompts(folder / f"{name}.jsonl", prompts[:5], own[:5]) for name, own in texts.items()}
    words = (files["good"], "--baseline", files["base"], "--judge_votes", 3)
    rule = Rule(find_template("pairwise"), value, noise=0.3, position_bias=0.3, invalid=0.1)
    with serving(rule) as server:
        run(folder / "clean", "prompts", *words, "--judge", server.url)
    clean = contents(folder / "clean")
    assert len(clean) == 3
    with serving(rule, faults=[None, None, None, None, "busy", "cut", (400, "no room for more")]) as server:
        for _ in range(100):
            try:
                run(folder / "faults", "prompts", *words, "--judge", server.url, "--judge_concurrency", 2)
                break
            except SystemExit as end:
                assert end.code == 2 and "no room for more" in capsys.readouterr().err
        # Each was answered once, but for those whose answer was under way when the run ended.
        assert len(server.bodies) < 1.5 * len({json.dumps(body) for body in server.bodies})
    assert contents(folder / "faults") == clean
