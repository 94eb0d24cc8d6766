"""What a suite's numbers and intervals are made of, and what the terminal shows, on items with given scores."""

import random

import numpy as np
import pytest

from denserl.evaluation.items import Answer, Item, Judged
from denserl.evaluation.results import format_summary, summarise
from denserl.evaluation.suites.registry import SUITES, Suite

Z2 = 1.959963984540054**2
PLAIN = Suite(rows=None, item=None)


def judged(number: int, right: bool, prompt: str, subset: str = "all", question: str = "", losers: int = 1) -> Judged:
    turns = [{"role": "user", "content": prompt}]
    item = Item(str(number), subset, [Answer(turns, "a")], [Answer(turns, "bb")] * losers, question=question)
    return Judged(item, np.array([1.0 if right else -1.0]), np.zeros(losers))


def rmb(prompts: int = 60, scenarios: int = 12) -> list[Judged]:
    """Prompts of eight sets of scenarios, each with one to five pairs and perhaps a list, whose credits go together."""
    generator, found = random.Random(0), []
    for prompt in range(prompts):
        easy = generator.random()
        half, name = ("Helpfulness/Chat", f"Talk {prompt % scenarios}") if prompt % 2 else ("Harmlessness", f"S{prompt % 12}")
        for kind, count in (("Pairwise_set", generator.randint(1, 5)), ("BoN_set", generator.randint(0, 1) + (prompt < 24))):
            for _ in range(count):
                subset = f"{kind}/{half}/{name}"
                losers = 1 if kind == "Pairwise_set" else 3
                found.append(judged(len(found), generator.random() < easy, f"p{prompt}", subset, losers=losers))
    return found


def test_the_overall_interval_of_rmb_is_that_of_a_brute_force_bootstrap_of_prompts():
    """Prompts stand in pairs and lists of a scenario; they are drawn within those that stand in the same scenarios."""
    entries = rmb()
    found = summarise(SUITES["rmb"], entries, 3000, 0)
    by_prompt: dict[str, list] = {}
    for entry in entries:
        by_prompt.setdefault(entry.item.better[0].prompt[0]["content"], []).append(entry)
    strata: dict[tuple, list] = {}
    for own in by_prompt.values():
        strata.setdefault(tuple(sorted({entry.item.subset for entry in own})), []).append(own)
    generator, overall = random.Random(1), []
    for _ in range(3000):
        credits: dict[str, list] = {}
        for members in strata.values():
            for own in generator.choices(members, k=len(members)):
                for entry in own:
                    kind, half, *_ = entry.item.subset.split("/")
                    credits.setdefault(kind + half, []).append(entry.better[0] > 0)
        overall.append(sum(sum(own) / len(own) for own in credits.values()) / 4)
    bounds = np.quantile(overall, [0.025, 0.975]).tolist()
    # Two quantiles of 3000 draws differ by less than 0.3 standard deviations.
    assert found["intervals"]["overall"] == pytest.approx(bounds, abs=0.3 * np.std(overall))
    # As independent items it would be narrower.
    apart = [
        Judged(entry.item._replace(question=f"q{number}"), entry.better, entry.worse) for number, entry in enumerate(entries)
    ]
    low, high = summarise(SUITES["rmb"], apart, 3000, 0)["intervals"]["overall"]
    assert high - low < 0.9 * (bounds[1] - bounds[0])


def test_one_number_has_one_interval_and_is_shown_once():
    found = summarise(SUITES["rmb"], rmb(), 200, 0)
    for name in ("helpful_pairwise", "harmless_pairwise", "helpful_best_of_n", "harmless_best_of_n"):
        assert found["groups"][name]["interval"] == found["intervals"][name]
        assert found["groups"][name]["accuracy"] == found[name]
    lines = format_summary(found).splitlines()
    assert [line.split()[0] for line in lines[:7]] == [*list(found["intervals"])]
    assert all("length 0." in line or "length 1." in line for line in lines[:7])
    assert lines[7] == f"calibration error (ECE) {found['calibration']['ece']:.4f}"
    assert sum("helpful_pairwise " in line for line in lines) == 1
    assert len(lines) == 8 + 2 + len(found["subsets"]) and "S10" not in " ".join(lines[:10])


def test_subsets_are_in_the_order_of_people_and_many_are_left_to_the_table():
    names = [f"Pairwise_set/Harmlessness/S{number}" for number in range(1, 12)]
    entries = [judged(number, True, f"p{number}", name) for number, name in enumerate(sorted(names))]
    assert list(summarise(SUITES["rmb"], entries, 20, 0)["subsets"]) == names
    many = [judged(number, number % 2 == 0, f"p{number}", f"s{number % 30}") for number in range(60)]
    lines = format_summary(summarise(PLAIN, many, 20, 0)).splitlines()
    assert len(lines) == 4 and lines[-1] == "  30 subsets: in results.csv"


def test_eight_of_eight_are_not_sure_to_be_all():
    found = summarise(PLAIN, [judged(number, True, f"p{number}") for number in range(8)], 100, 0)
    wilson = pytest.approx([8 / (8 + Z2), 1.0])
    assert found["accuracy"] == 1 and round(8 / (8 + Z2), 2) == 0.68
    assert found["intervals"]["accuracy"] == found["intervals"]["macro_accuracy"] == wilson
    assert found["subsets"]["all"]["interval"] == wilson
    # Of one prompt, eight pairs are one piece of evidence, whether won or lost.
    found = summarise(PLAIN, [judged(number, False, "p") for number in range(8)], 100, 0)
    assert found["intervals"]["accuracy"] == pytest.approx([0.0, Z2 / (1 + Z2)]) and found["questions"] == 1


def test_a_mean_of_subsets_at_one_is_worth_as_many_questions_as_its_variance_says():
    """Half of 4 questions and half of 8: variance p (1 - p) (1/16 + 1/32), that of 32 / 3 questions."""
    entries = [judged(number, True, f"p{number}", "few" if number < 4 else "more") for number in range(12)]
    found = summarise(PLAIN, entries, 50, 0)
    n = 32 / 3
    assert found["intervals"]["macro_accuracy"] == pytest.approx([n / (n + Z2), 1.0])
    assert found["intervals"]["accuracy"] == pytest.approx([12 / (12 + Z2), 1.0])


def test_items_of_one_question_are_told_by_its_name_or_their_prompt():
    """Two questions of ten items each, all right or all wrong, are none, one or both right; twenty are nearly a half."""
    wide, narrow = [], []
    for prompt, question, found in (("p{half}", "", wide), ("p{number}", "q{half}", wide), ("p{number}", "", narrow)):
        names = [{"number": number, "half": number // 10} for number in range(20)]
        entries = [judged(n["number"], n["half"] == 0, prompt.format(**n), question=question.format(**n)) for n in names]
        found.append(summarise(PLAIN, entries, 500, 0))
    assert [each["intervals"]["accuracy"] for each in wide] == [[0.0, 1.0]] * 2 and wide[0]["questions"] == 2
    low, high = narrow[0]["intervals"]["accuracy"]
    # Half of 20: 0.5 +- 1.96 sqrt(1 / 80), in steps of 0.05.
    assert (low, high) == pytest.approx((0.28, 0.72), abs=0.051) and narrow[0]["questions"] == 20


def test_length_alone_has_a_macro_accuracy_too():
    entries = [judged(number, True, f"p{number}", "few" if number < 2 else "more") for number in range(6)]
    entries[0] = Judged(entries[0].item._replace(better=[Answer([], "longer")]), entries[0].better, entries[0].worse)
    # By length one of two is won in the first subset, and none of four in the second.
    assert summarise(PLAIN, entries, 20, 0)["length_baseline"] == {"accuracy": 1 / 6, "macro_accuracy": 1 / 4}
