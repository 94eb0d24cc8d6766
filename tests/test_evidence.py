"""The evidence: every run's commands, parsed and not run, its measures, and the tables of the page."""

import json
import random
import re
import sys
from pathlib import Path

import parsed_stages
import pytest

from denserl.world import language

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import evidence  # noqa: E402
import evidence_cuts  # noqa: E402
import evidence_settings  # noqa: E402
import evidence_tables  # noqa: E402
import levels  # noqa: E402
from evidence_settings import ARMS  # noqa: E402

FIGURE = re.compile(r"(-?[\d.]*\d) \+- ([\d.]*\d)")  # a mean with the half width of its interval


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


@pytest.mark.parametrize("part", [p if p in ("models", "cuts") else pytest.param(p, marks=pytest.mark.long) for p in ARMS])
def test_every_arm_runs_the_commands_it_needs_once(part, parsed, tmp_path):
    """Every flag is parsed; a world, its language model and a reward model are made once, however many runs need them."""
    arms = list(ARMS[part].values())
    worlds = {arm.length: evidence.World(arm.length, 1, tmp_path) for arm in arms}
    for arm in (*arms, *arms):
        worlds[arm.length].run(arm)
    commands = [command for command, _ in parsed]
    assert commands.count("make-world") == commands.count("train-sft") == len(worlds)
    world = worlds[arms[0].length]
    assert commands.count("train-ppo") == len({world.run_folder(arm) for arm in arms if arm.length == world.length}) + sum(
        arm.length != world.length for arm in arms
    )
    trained = {repr((a.model._replace(fitted=False, members=1), m)) for a in arms if a.model for m in range(a.model.members)}
    assert commands.count("train-rm") == len(trained)


def test_another_setting_is_another_run(tmp_path, monkeypatch):
    world, arms = evidence.World(8, 0, tmp_path), ARMS["thresholds"]
    assert world.run_folder(arms["1.5 nats"]) == world.run_folder(ARMS["models"]["4000 pairs: segment, difference"])
    known = {world.run_folder(arm) for arm in arms.values()}
    assert len(known) == len(arms)
    before = world.run_folder(arms["1.5 nats"])
    for module, name in ((evidence.TINY, "ppo"), (evidence.TINY, "rm"), (evidence.THRESHOLDS, "segment")):
        with monkeypatch.context() as changed:
            changed.setitem(module, name, 1.25 if name == "segment" else {**module[name], "seed": 5})
            assert world.run_folder(arms["1.5 nats"]) != before


def rows(*points, **others):
    """Held-out evaluations of (rollouts, true reward, KL)."""
    named = ({"rollouts": r, "true": true, "kl": kl, "length": 9.0, "repeats": 0.25} for r, true, kl in points)
    return [{**row, "proxy": 2.0, "accuracy": 0.75, **others} for row in named]


def test_measures_and_effects_by_hand():
    """Of responses of 8 sentences: 1 can be reached, and 2 nats are where ways are compared."""
    at_the_end = rows((0, 0.0, 0.0), (100, 0.2, 1.0), (200, 0.6, 2.0), (300, 0.4, 8.0))
    difference = rows((0, 0.0, 0.0), (100, 0.8, 2.0), (200, 0.9, 5.0), (300, 0.9, 5.0))
    runs = {"length": {"8 sentences: at the end": {0: at_the_end}, "8 sentences: difference": {0: difference, 1: at_the_end}}}
    found = evidence_tables.measured(runs)["length"]
    means = {title: summary["mean"] for title, summary in found["8 sentences: at the end"].items()}
    assert means == {
        "true reward at the end": 0.4,
        "highest": 0.6,
        "KL": 8.0,
        "true reward at n / 4 nats": 0.6,
        "rollouts to 50 %": pytest.approx(175),
        "rollouts to 75 %": None,
        "rollouts to 90 %": None,
        "tokens": 9.0,
        "repeated": 0.25,
    }
    # Effects are of the seeds that both have: 0.6 is passed after 75 of the 200 rollouts.
    other = found["8 sentences: difference"]
    assert other["end above"]["values"] == [0.5] and other["above at n / 4 nats"]["values"] == [0.2]
    assert other["share of the rollouts to its best"]["values"] == [0.375]
    # Its KL never comes to the 8 nats at which the other ends.
    assert other["above at its last KL"]["values"] == [None]
    assert other["rollouts to 90 %"]["n"] == 1 and other["rollouts to 90 %"]["values"] == [200, None]


def test_sums_are_measured_against_what_there_is_room_for_and_models_tell_of_themselves():
    run = {0: rows((0, 0.0, 0.0), (100, 3.0, 1.0))}
    found = evidence_tables.measured(
        {"sums": {"4 sentences: at the end": run}, "paid": {"score_last, scalar": {}, "even, scalar": run}}
    )
    # 33 tokens hold six sentences of five; for responses of 32 sentences there are no more than 32 good ones.
    assert found["sums"]["4 sentences: at the end"]["rollouts to 50 %"]["mean"] == 100
    assert evidence_tables.best_reachable(ARMS["sums"]["32 sentences: difference"]) == 32
    assert "its own reward" not in found["sums"]["4 sentences: at the end"]
    told = found["paid"]["even, scalar"]
    assert told["its own reward"]["mean"] == 2.0 and told["accuracy of its model"]["mean"] == 0.75


def test_a_cure_closes_a_share_of_the_gap_to_the_true_values():
    ends = {"difference": 0.4, "true values": 0.9, "GRM": 0.5}
    runs = {f"the model: {name}": {0: rows((0, 0.0, 0.0), (100, end, 1.0))} for name, end in ends.items()}
    runs["what is paid: bandit"] = {0: rows((0, 0.0, 0.0), (200, 0.25, 1.0))}
    runs |= {f"what is paid: {name}": runs[f"the model: {name}"] for name in ("difference", "true values")}
    found = evidence_tables.measured({"cures": runs})["cures"]
    # The bandit's best, 0.25 after 200 rollouts, it passes after 50.
    assert found["the model: GRM"]["share of the bandit's rollouts"]["mean"] == pytest.approx(0.25)
    assert found["the model: GRM"]["of the gap"]["mean"] == pytest.approx(0.2)
    assert found["the model: true values"]["of the gap"]["mean"] == 1.0


def test_arms_are_compared_with_the_first_of_their_panel():
    assert evidence_settings.compared_with("length", "16 sentences: even") == "16 sentences: at the end"
    assert evidence_settings.compared_with("length", "16 sentences: at the end") is None
    assert evidence_settings.compared_with("thresholds", "token") == "bandit"


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


def test_figures_in_words_are_those_of_the_tables():
    """Means with intervals, in whatever place and sign, rounded as the sentence has them; in README as the table has them."""
    lines = (ROOT / "docs/evidence.md").read_text().splitlines()
    measured = {pair for line in lines if line.startswith("|") for pair in FIGURE.findall(line)}
    said = {pair for line in lines if not line.startswith("|") for pair in FIGURE.findall(line)}
    assert len(said) > 30

    def rounds_to(told, value):
        digits = len(told.partition(".")[2])
        return abs(abs(float(told)) - abs(float(value))) <= 0.5 * 10**-digits + 1e-9

    assert [pair for pair in said if not any(all(map(rounds_to, pair, cell)) for cell in measured)] == []
    rows = re.findall(r"^\| (?:true values|a model of).*", (ROOT / "README.md").read_text(), re.MULTILINE)
    figures = [pair for row in rows for pair in FIGURE.findall(row)]
    assert len(figures) > 20 and {*figures} <= measured


def test_other_cuts_are_about_as_many_and_do_not_look_ahead():
    tokens, entropies = [f"t{i}" for i in range(1000)], [0.0] * 1000
    assert evidence_cuts.every_five(tokens[:12], entropies) == [5, 10]
    assert evidence_cuts.two_later(tokens[:13], entropies) == [7, 12]
    drawn = evidence_cuts.at_random(tokens, entropies)
    # 200 of 1000 are expected, with a standard deviation of 13.
    assert 0 not in drawn and 140 < len(drawn) < 260
    assert evidence_cuts.at_random(tokens[:500], entropies) == [place for place in drawn if place < 500]
    assert evidence_cuts.at_random(["x", *tokens[1:]], entropies) != drawn


def test_what_a_reward_model_loses_is_told_beside_true_values_credited_alike():
    """Of one number at the end 0.4 of 0.5; of differences, of the seed that both have, 0.6 of 0.8."""
    ends = {
        "true values: at the end": {0: 0.5},
        "true values: difference": {0: 0.8, 1: 0.9},
        "1000 pairs: bandit": {0: 0.4},
        "1000 pairs: segment, difference": {0: 0.6},
    }
    runs = {name: {seed: rows((0, 0.0, 0.0), (9, end, 1.0)) for seed, end in of.items()} for name, of in ends.items()}
    found = evidence_tables.gaps(runs)
    assert {name: [lost["lost"]["mean"], lost["left of it"]["mean"]] for name, lost in found.items()} == {
        "1000 pairs: bandit": pytest.approx([0.1, 0.8]),
        "1000 pairs: segment, difference": pytest.approx([0.2, 0.75]),
    }


@pytest.mark.parametrize(
    "last, expected",
    [
        ("Friends keep baking cheap.", {("apt", "repeated", "apt"), ("apt", "filler", "repeated")}),
        # What is said again already is not said again in its own place, which would change nothing.
        ("Coupons still keep baking cheap.", {("apt", "repeated", "repeated")}),
    ],
)
def test_pairs_of_repeats_lose_for_one_sentence_in_the_place_of_a_later_one(last, expected):
    chosen = f"Coupons keep baking cheap. Practice helps with time. {last}"
    found = evidence.with_repeats(
        [{"prompt": "p", "chosen": chosen, "rejected": "Oats belong to baking."}] * 20, random.Random(0)
    )
    assert {row["chosen"] for row in found} == {chosen}
    assert {tuple(language.kinds("Tell me about cheap baking.", row["rejected"])) for row in found} == expected


@pytest.mark.parametrize(
    "given, told",
    [({"only": "nonsense"}, "--dry"), ({"only": "("}, "no regular expression"), ({"page": Path("none.md")}, "no page none.md")],
)
def test_mistakes_are_refused_before_anything_is_run(given, told, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evidence.ending_well(lambda: evidence.main(evidence.Options(**given, runs=tmp_path)))
    assert told in capsys.readouterr().err


def test_what_is_there_is_reported_from_its_files(tmp_path):
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
    # Of whatever seeds, those that are there.
    options = evidence.Options(seeds=[7], runs=tmp_path, page=page)
    evidence.report(options)
    found = json.loads((tmp_path / "evidence.json").read_text())
    assert found["length"]["4 sentences: difference"]["end above"]["values"] == [0.3]
    assert found["seeds"]["length"]["4 sentences: difference"] == [0]
    assert "| 4 sentences: difference | 0.70 | 40.0 |" in page.read_text()
    assert "| 4 sentences: difference | 0.70 | 0.70 | 40.0 |" in (tmp_path / "evidence.md").read_text()
    assert (tmp_path / "shots/length-kl.png").read_bytes() == (tmp_path / "length-kl.png").read_bytes()
    assert (tmp_path / "length-kl.png").stat().st_size and (tmp_path / "length-rollouts.png").stat().st_size
