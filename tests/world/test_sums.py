"""The world of sums: its files against a reader that evaluates their text, and the verifier on whatever a policy may write."""

import itertools
import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from denserl.errors import UserError
from denserl.world import make_sums, sums

SIZES = make_sums.SumSizes(600, 600, 300, 300, 300, 300, 300, 20, 50, 50, hidden_size=16, num_layers=1)
ERROR_RATE = 0.15
PROMPT = "4 + 2 - 1 + 3 ?"
RIGHT = "4 + 2 = 6\n\n6 - 1 = 5\n\n5 + 3 = 8"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums")
    return folder, make_sums.write_world(folder, 3, SIZES, ERROR_RATE)


def read(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def by_eval(prompt: str, steps: list[str]) -> list[bool]:
    """Labels by the text alone: the beginning of the prompt up to each operation is evaluated, and so is each step's left side.

    Fails where a step does not go on from the one before, or a number is out of range.
    """
    words = prompt.removesuffix(" ?").split()
    assert len(steps) == (len(words) - 1) // 2
    labels, written = [], words[0]
    for number, step in enumerate(steps):
        left, total = step.split(" = ")
        assert left == " ".join([written, *words[1 + 2 * number : 3 + 2 * number]])
        assert total in "0123456789" and abs(eval(left) - int(total)) <= 3 and 0 <= eval(left) <= 9
        labels.append(eval(" ".join(words[: 3 + 2 * number])) == int(total))
        written = total
    return labels


def test_labels_are_what_evaluating_the_text_gives(world):
    rows = read(world[0], "steps_train") + read(world[0], "steps_test")
    assert len(rows) == 900
    for row in rows:
        labels = by_eval(row["prompt"], row["steps"])
        assert (row["labels"], row["final"], row["answer"]) == (labels, labels[-1], str(eval(row["prompt"].removesuffix("?"))))
        assert sums.step_labels(row["prompt"], "\n\n".join(row["steps"])) == labels
    for row in read(world[0], "processbench"):
        labels = by_eval(row["problem"], row["steps"])
        assert row["label"] == (labels.index(False) if False in labels else -1)
        assert row["final_answer_correct"] == labels[-1]


def test_outcomes_pairs_answers_and_demonstrations_agree_with_it(world):
    for name in ("outcomes_train", "outcomes_test"):
        assert all(by_eval(r["question"], r["answer"].split("\n\n"))[-1] == r["label"] for r in read(world[0], name))
    for row in read(world[0], "preferences_train") + read(world[0], "preferences_test"):
        assert all(by_eval(row["prompt"], row["chosen"].split("\n\n")))
        assert not by_eval(row["prompt"], row["rejected"].split("\n\n"))[-1]
    for row in read(world[0], "answers_test"):
        assert [by_eval(row["prompt"], a.split("\n\n"))[-1] for a in row["answers"]] == row["label"] and len(row["label"]) == 16
    assert all(all(by_eval(r["prompt"], r["response"].split("\n\n"))) for r in read(world[0], "sft"))


def test_a_step_errs_as_often_as_is_said(world):
    erring = of = 0
    for row in read(world[0], "sft_erring"):
        steps = row["response"].split("\n\n")
        by_eval(row["prompt"], steps)
        errors = [eval(left) != int(total) for left, total in (step.split(" = ") for step in steps)]
        erring, of = erring + sum(errors), of + len(errors)
    # Some 2400 steps: a standard error of 0.007. Steps that have no other total within range lower it a little.
    assert erring / of == pytest.approx(ERROR_RATE, abs=0.025)


def test_problems_stay_in_range_and_have_three_to_five_steps(world):
    rows = read(world[0], "prompts_train")
    lengths = {len(row["prompt"].split()) // 2 - 1 for row in rows}
    assert lengths == {3, 4, 5}
    for row in rows:
        words = row["prompt"].removesuffix(" ?").split()
        totals = [eval(" ".join(words[: 1 + 2 * n])) for n in range(len(words) // 2 + 1)]
        assert all(0 <= total <= 9 for total in totals) and set(words[2::2]) <= {"1", "2", "3"}
    facts = {(a, sign, b) for a in range(10) for sign in "+-" for b in (1, 2, 3) if 0 <= eval(f"{a}{sign}{b}") <= 9}
    assert len(facts) == 48


def test_held_out_problems_occur_nowhere_in_training(world):
    prompts = {
        file.name: {row.get("prompt") or row.get("question") or row["problem"] for row in read(world[0], file.name)}
        for file in (*make_sums.HELD_OUT, *make_sums.TRAINING)
    }
    assert len(prompts) == len(list(world[0].glob("*.jsonl")))
    held_out = set.union(*(prompts[file.name] for file in make_sums.HELD_OUT))
    assert not held_out & set.union(*(prompts[file.name] for file in make_sums.TRAINING))


def test_soft_labels_are_the_share_of_ways_to_end_right(world):
    """Every way a solution may go on is walked through, each with its own probability."""
    hard, soft = read(world[0], "steps_train"), read(world[0], "steps_train_soft")
    assert [(row["prompt"], row["steps"]) for row in hard] == [(row["prompt"], row["steps"]) for row in soft]
    for row in soft[:15]:
        problem = sums.read_problem(row["prompt"])
        for k, label in enumerate(row["labels"], start=1):
            written, chance = int(row["steps"][k - 1][-1]), 0.0
            for way in itertools.product(range(10), repeat=len(problem.changes) - k):
                share, at = 1.0, written
                for number, total in enumerate(way, start=k):
                    share *= sums.next_totals(problem, at, number, ERROR_RATE).get(total, 0.0)
                    at = total
                    if not share:
                        break
                chance += share * (at == problem.totals[-1])
            assert label == pytest.approx(chance, abs=1e-12)
    # By hand: what is right so far is mended by no one, and two steps are left.
    assert sums.chances(sums.Problem(4, (2, -1, 3)), [6, 5, 8], 0.0) == [1, 1, 1]
    assert sums.chances(sums.Problem(4, (2, -1, 3)), [6, 5, 7], 0.2)[1:] == [pytest.approx(0.8), 0]


def test_next_totals_by_hand():
    # 4 + 2, then - 1 and + 3: a total must leave room for 2 more and be at least 1.
    found = sums.next_totals(sums.Problem(4, (2, -1, 3)), 4, 0, 0.25)
    assert found == {6: 0.75, **dict.fromkeys((3, 4, 5, 7), 0.0625)}


def test_every_number_is_one_token_the_same_wherever_it_stands(world):
    tokenizer = AutoTokenizer.from_pretrained(world[0] / "base")
    numbers = [tokenizer(str(number)).input_ids for number in range(10)]
    assert all(len(ids) == 1 for ids in numbers)
    words = RIGHT.replace("\n\n", " ").split()
    digits = [numbers[int(word)][0] for word in words if word.isdigit()]
    found = tokenizer(RIGHT).input_ids
    assert [id for id in found if [id] in numbers] == digits and len(found) == 3 * 5 + 2
    assert tokenizer.decode(found) == RIGHT and len(tokenizer(PROMPT).input_ids) == 8
    model = AutoModelForCausalLM.from_pretrained(world[0] / "base", dtype="float32")
    assert model.config.vocab_size == len(tokenizer) and model.config.num_hidden_layers == 1


def test_one_seed_writes_the_same_bytes_whatever_the_other_sizes(world, tmp_path):
    make_sums.write_world(tmp_path / "same", 3, replace(SIZES, steps=10), ERROR_RATE)
    make_sums.write_world(tmp_path / "other", 4, replace(SIZES, steps=10), ERROR_RATE)
    for file in sorted(world[0].glob("*.jsonl")):
        same, other = ((tmp_path / name / file.name).read_bytes() for name in ("same", "other"))
        assert file.read_bytes().startswith(same) and not file.read_bytes().startswith(other)


@pytest.mark.parametrize(
    "response, labels",
    [
        (RIGHT, [1, 1, 1]),
        (RIGHT + "\n\n", [1, 1, 1]),
        ("\n\n" + RIGHT.replace("\n\n", "\n\n\n\n"), [1, 1, 1]),
        (" 4 + 2 = 6 \n\n6 - 1 = 5\n\n5 + 3 = 8 ", [1, 1, 1]),
        ("4 + 2 = 7\n\n7 - 1 = 6\n\n6 + 3 = 9", [0, 0, 0]),
        ("4 + 2 = 7\n\n7 - 1 = 5\n\n5 + 3 = 8", [0, 1, 1]),  # a second error mends the first
        ("4 + 2 = 6\n\n6 - 1 = 5", [1, 1]),
        (RIGHT + "\n\n8 + 0 = 8", [1, 1, 1, 0]),
        (RIGHT + "\n\n" + RIGHT, [1, 1, 1, 0, 0, 0]),
        ("4 + 2 - 1 + 3 = 8", [0]),
        ("4 + 2 = 6\n6 - 1 = 5\n5 + 3 = 8", [0]),  # one step
        ("4 + 2 = 6 = 6\n\n6 - 1 = 5\n\n5 + 3 = 8", [0, 1, 1]),
        ("6\n\n5\n\n8", [0, 0, 0]),
        ("4 + 2 = ٦\n\n6 - 1 = 5", [0, 0]),
        ("4 + 2 = " + "9" * 5000, [0]),
        ("__import__('os').abort()", [0]),
        ("\n\n\n", []),
        ("", []),
    ],
)
def test_the_verifier_on_what_a_policy_may_write(response, labels):
    assert sums.step_labels(PROMPT, response) == labels
    assert sums.true_reward([MESSAGES], [response]) == [float(len(labels) == 3 and labels[-1])]
    ((*parts,),) = sums.true_steps([MESSAGES], [response])
    assert [number for _, number in parts] == labels
    ends = [end for end, _ in parts]
    assert ends == sorted(set(ends)) and (not ends or ends[-1] == len(response))


def test_kinds_by_hand():
    response = "4 + 2 = 7\n\n7 + 1 = 5\n\n5 + 3 = 8\n\n8 + 0 = 8"
    assert sums.kinds(PROMPT, response) == ["wrong", "other", "right", "other"]
    assert sums.kinds(PROMPT, "4 + 2 = 6.") == ["other"]


@settings(max_examples=30)
@given(st.text())
def test_any_text_has_a_label_for_each_step(text):
    (parts,) = sums.true_steps([MESSAGES], [text])
    assert len(parts) == len(sums.step_labels(PROMPT, text)) == len([piece for piece in text.split("\n\n") if piece.strip()])


@pytest.mark.parametrize("prompt", ["", "4 + 2", "4 + 2 ? ", "4 + 10 ?", "4 * 2 ?", "٤ + 2 ?", "4 + 0 ?", "Hello."])
def test_a_foreign_prompt_is_refused(prompt):
    with pytest.raises(UserError, match="no problem of the world of sums"):
        sums.step_labels(prompt, RIGHT)


def test_a_problem_is_what_its_prompt_says():
    rng = random.Random(0)
    for problem in (sums.draw_problem(rng) for _ in range(200)):
        assert sums.read_problem(problem.prompt) == problem
        assert problem.totals[-1] == eval(problem.prompt.removesuffix("?"))


def test_needs_as_many_responses_as_prompts():
    for truth in (sums.true_reward, sums.true_steps):
        with pytest.raises(ValueError):
            truth([MESSAGES], [])
