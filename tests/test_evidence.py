"""The evidence: every run's commands, parsed and not run, its measures, and the tables of the page."""

import json
import random
import sys
from pathlib import Path

import parsed_stages
import pytest

from denserl.world import language

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import evidence  # noqa: E402
import evidence_cuts  # noqa: E402
import evidence_settings  # noqa: E402
import evidence_tables  # noqa: E402
import levels  # noqa: E402
from evidence_settings import ARMS  # noqa: E402


@pytest.fixture
def parsed(monkeypatch):
    """The commands that would have been run, each leaving what is read of it."""

    def leave(command, options):
        folder = Path(options.output_dir)
        if command == "train-rm":
            (folder / "config.json").write_text(json.dumps({"std": 2.0}))

    commands, stage = parsed_stages.recorder(leave)
    monkeypatch.setattr(evidence, "stage", stage)
    return commands


@pytest.mark.parametrize("part", [p if p in ("cures", "cuts") else pytest.param(p, marks=pytest.mark.long) for p in ARMS])
def test_every_arm_runs_the_commands_it_needs_once(part, parsed, tmp_path):
    """Every flag is parsed; a world, its language model and a reward model are made once, however many runs need them."""
    arms = list(ARMS[part].values())
    worlds = {arm.length: evidence.World(arm.length, 1, tmp_path) for arm in arms}
    for arm in (*arms, *arms):
        worlds[arm.length].run(arm)
    commands = [command for command, _ in parsed]
    assert commands.count("make-world") == commands.count("train-sft") == len(worlds)
    assert commands.count("train-ppo") == len({repr(arm) for arm in arms})
    trained = {repr((a.model._replace(fitted=False, members=1), m)) for a in arms if a.model for m in range(a.model.members)}
    assert commands.count("train-rm") == len(trained)


def rows(*points, **others):
    """Held-out evaluations of (rollouts, true reward, KL)."""
    named = ({"rollouts": r, "true": true, "kl": kl, "length": 9.0, "repeats": 0.25, "proxy": 2.0} for r, true, kl in points)
    return [{**row, **others} for row in named]


def test_measures_and_effects_by_hand():
    """Of responses of 8 sentences: 1 can be reached, and 4 nats are where ways are compared."""
    at_the_end = rows((0, 0.0, 0.0), (100, 0.2, 2.0), (200, 0.6, 4.0), (300, 0.4, 8.0))
    difference = rows((0, 0.0, 0.0), (100, 0.8, 4.0), (200, 0.9, 5.0), (300, 0.9, 5.0))
    runs = {"length": {"8 sentences: at the end": {0: at_the_end}, "8 sentences: difference": {0: difference, 1: at_the_end}}}
    found = evidence_tables.measured(runs)["length"]
    means = {title: summary["mean"] for title, summary in found["8 sentences: at the end"].items()}
    assert means == {
        "true reward at the end": 0.4,
        "highest": 0.6,
        "KL": 8.0,
        "true reward at n / 2 nats": 0.6,
        "rollouts to 50 %": pytest.approx(175),
        "rollouts to 75 %": None,
        "rollouts to 90 %": None,
        "tokens": 9.0,
        "repeated": 0.25,
    }
    # Effects are of the seeds that both have: 0.6 is passed after 75 of the 200 rollouts.
    other = found["8 sentences: difference"]
    assert other["end above"]["values"] == [0.5] and other["above at n / 2 nats"]["values"] == [0.2]
    assert other["share of the rollouts to its best"]["values"] == [0.375]
    assert other["rollouts to 90 %"]["n"] == 1 and other["rollouts to 90 %"]["values"] == [200, None]


def test_sums_are_measured_against_the_longest_demonstration_and_models_tell_their_own_reward():
    run = {0: rows((0, 0.0, 0.0), (100, 2.5, 1.0))}
    found = evidence_tables.measured({"sums": {"4 sentences: at the end": run}, "cures": {"bandit": run}})
    assert found["sums"]["4 sentences: at the end"]["rollouts to 50 %"]["mean"] == 100  # of five good sentences
    assert "its own reward" not in found["sums"]["4 sentences: at the end"]
    assert found["cures"]["bandit"]["its own reward"]["mean"] == 2.0


def test_arms_are_compared_with_the_first_of_their_panel():
    assert evidence_settings.compared_with("length", "16 sentences: even") == "16 sentences: at the end"
    assert evidence_settings.compared_with("length", "16 sentences: at the end") is None
    assert evidence_settings.compared_with("thresholds", "0 nats") == "1000 nats"


@pytest.mark.parametrize(
    "values, expected",
    # Of two values the interval is 12.706, the t quantile of one degree of freedom, times half their distance.
    [([0.5, 0.7], "0.60 +- 1.27"), ([100, 102], "101 +- 13"), ([12.0, None], "12.0 (1 of 2)"), ([None, None], "-")],
)
def test_a_cell_of_a_table(values, expected):
    assert evidence_tables.cell(levels.summarise(values)) == expected


def test_the_tables_of_a_page_are_written_between_its_marks():
    page = "A\n<!-- table one -->\nold\n<!-- end -->\nB\n<!-- table two -->\nkept\n<!-- end -->\n"
    assert evidence_tables.filled(page, {"one": "| 1 |\n"}) == page.replace("old", "| 1 |")


def test_other_cuts_are_as_many_as_the_peaks():
    tokens, entropies = [f"t{i}" for i in range(10)], [9.0, 0, 2.0, 0, 0, 1.6, 0, 0, 1.4, 0]
    # Two peaks behind the first token, so three segments: of 3, 4 and 3 tokens.
    assert evidence_cuts.evenly(tokens, entropies) == [3, 7]
    drawn = evidence_cuts.at_random(tokens, entropies)
    assert drawn == evidence_cuts.at_random(tokens, entropies) and len(set(drawn)) == 2 and set(drawn) <= set(range(1, 10))
    others = {tuple(evidence_cuts.at_random([*tokens[:-1], f"{i}"], entropies)) for i in range(40)}
    assert len(others) > 10
    assert evidence_cuts.evenly(["a"], [9.0]) == evidence_cuts.at_random(["a"], [9.0]) == []


def test_pairs_of_repeats_lose_for_one_sentence_said_again():
    row = {
        "prompt": "p",
        "chosen": "Coupons keep baking cheap. Practice helps with time.",
        "rejected": "Oats belong to baking.",
    }
    (found,) = evidence.with_repeats([row], random.Random(0))
    assert found["chosen"] == row["chosen"]
    kinds = language.kinds("Tell me about cheap baking.", found["rejected"])
    assert kinds == ["apt", "filler", "repeated"]


def test_an_unknown_name_is_refused_with_the_way_to_the_names(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evidence.ending_well(lambda: evidence.main(evidence.Options(only="nonsense", runs=tmp_path)))
    assert "--dry" in capsys.readouterr().err


def test_what_is_there_is_reported_from_its_files(tmp_path, monkeypatch):
    """Two runs of one seed, as train-ppo would leave them, and the page that is made of them."""
    page = tmp_path / "page.md"
    page.write_text("![Frontiers](shots/length-kl.png)\n<!-- table length -->\n<!-- end -->\n")
    for name, last in (("4 sentences: at the end", 0.4), ("4 sentences: difference", 0.7)):
        folder = evidence.World(4, 0, tmp_path).run_folder(ARMS["length"][name])
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        names = ("kl", "normalised_reward", "response_length", "segments")
        lines = [{"step": s, "eval_true_reward": s / 40 * last, **{f"eval_{name}": s for name in names}} for s in (0, 40)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        sample = {"prompt": "user\nTell me about cheap baking.\nassistant\n", "response": "Coupons keep baking cheap."}
        (folder / "eval_samples.jsonl").write_text("".join(json.dumps({"step": s, **sample}) + "\n" for s in (0, 40)))
    monkeypatch.setattr(evidence, "ProcessPoolExecutor", None)  # nothing is run
    options = evidence.Options(seeds=[0], runs=tmp_path, page=page)
    evidence.report(options)
    found = json.loads((tmp_path / "evidence.json").read_text())
    assert found["length"]["4 sentences: difference"]["end above"]["values"] == [0.3]
    assert "| 4 sentences: difference | 0.70 | 40.0 |" in page.read_text()
    assert "| 4 sentences: difference | 0.70 | 0.70 | 40.0 |" in (tmp_path / "evidence.md").read_text()
    assert (tmp_path / "shots/length-kl.png").read_bytes() == (tmp_path / "length-kl.png").read_bytes()
    assert (tmp_path / "length-kl.png").stat().st_size and (tmp_path / "length-rollouts.png").stat().st_size
