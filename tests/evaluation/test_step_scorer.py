"""Scores by models of steps: against the stock class at the end of every step, and through `evaluate` as a user runs it."""

import json
import math
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from suite_files import write_lines

from denserl.cli import evaluate
from denserl.data.chat import encode_prompt
from denserl.data.responses import Responses, encode
from denserl.data.schemas import BadRow
from denserl.errors import UserError
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.config import ReadConfig
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.step_scorer import StepModelScorer, load_scorer

sys.path.insert(0, str(Path(__file__).parent.parent / "rewards"))
from reward_folders import save_reward_model, stock_score  # noqa: E402

STEPS = {"scores": "logit", "segmenter": "step", "agg_func": "min"}
PROMPT = [{"role": "user", "content": "How does the river run?"}]
TEXTS = ["It runs.\n\nIt waits.\n\nThe boats run again", "one step alone", "It ends so.\n\n", "  \n\n"]


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    sft = tiny_models.save_language_model(folder / "sft")
    for name, stored in {
        "prm": STEPS, "plus": {**STEPS, "context_signs": "plus"}, "orm": {**STEPS, "max_steps": 1},
        "logsumexp": {**STEPS, "agg_func": "logsumexp"}, "rm": {},
    }.items():  # fmt: skip
        save_reward_model(folder / name, sft, 1, **stored)
    return folder


def options(folder, name: str = "prm", **given) -> evaluate.Options:
    return evaluate.Options(
        suite="pairs", path="-", scorer=[str(folder / name)], output_dir="-", device="cpu", dtype="fp32", **given
    )


def scorer(folder, name: str = "prm", aggregate: str | None = None, **given) -> StepModelScorer | RewardScorer:
    config = options(folder, name, **given)
    return load_scorer(config.scorer, config, torch.device("cpu"), "fp32", read=config, aggregate=aggregate)


def chances_by_stock(folder, text: str, name: str = "prm") -> list[float]:
    """The stock class at the token that ends each step, each beginning of the answer read by itself."""
    path = str(folder / name)
    tokenizer, found, pieces = load_tokenizer(path), [], text.split("\n\n")
    prompt = encode_prompt(tokenizer, PROMPT)
    content = encode(tokenizer, PROMPT, text, 2048, True, prompt).response_ids[:-1]
    for k in range(len(pieces)):
        if pieces[k].strip():
            end = len("\n\n".join(pieces[: k + 1])) + 2 * (k + 1 < len(pieces))
            count = next(n for n in range(1, len(content) + 1) if len(tokenizer.decode(content[:n])) >= min(end, len(text)))
            found.append(1 / (1 + math.exp(-stock_score(path, prompt + content[:count]))))
    return found


def test_a_response_is_scored_by_the_chances_of_its_steps(folder):
    chances = [chances_by_stock(folder, text) for text in TEXTS]
    assert [len(row) for row in chances] == [3, 1, 1, 0] and max(chances[0]) - min(chances[0]) > 0.1
    for aggregate, of in {None: min, "mean": lambda p: sum(p) / len(p), "last": lambda p: p[-1], "prod": math.prod}.items():
        found = scorer(folder, aggregate=aggregate)([PROMPT] * 4, TEXTS)
        assert found.tolist() == pytest.approx([*map(of, chances[:3]), 0.0], abs=1e-5)
    judge = scorer(folder)
    steps = judge.step_scores([judge.encode_steps(PROMPT, ["It runs.\n", "It waits. ", " The boats run again"])])
    assert steps[0] == pytest.approx([math.log(p / (1 - p)) for p in chances[0]], abs=1e-4)
    # The outcome is of the whole text, which is one step.
    outcome = scorer(folder, "orm")([PROMPT], TEXTS[:1])
    assert outcome.tolist() == pytest.approx(chances[0][-1:], abs=1e-5)


def test_scores_are_of_text_and_prompt_alone(folder):
    judge = scorer(folder, score_tokens=64)
    texts = [*TEXTS, *TEXTS[::-1]]
    found = judge([PROMPT] * 8, texts)
    assert found[:4].tolist() == found[:3:-1].tolist()  # equal ones are scored once
    assert scorer(folder)([PROMPT] * 4, TEXTS[::-1])[::-1].tolist() == pytest.approx(found[:4].tolist(), abs=1e-6)


def test_responses_are_read_by_their_ids_or_as_text(folder):
    tokenizer = load_tokenizer(str(folder / "prm"))
    rows = [encode(tokenizer, PROMPT, text, 2048, ended) for text, ended in zip(TEXTS[:3], (True, False, True))]
    ended = [True, False, True]
    responses = Responses([PROMPT] * 3, TEXTS[:3], [r.prompt_ids for r in rows], [r.response_ids for r in rows], ended)
    judge = scorer(folder)
    assert judge.of_responses(responses, tokenizer).tolist() == pytest.approx(judge([PROMPT] * 3, TEXTS[:3]).tolist(), abs=1e-5)
    with pytest.raises(BadRow, match="and a sequence at most 12") as caught:
        scorer(folder, max_length=12).of_responses(responses, tokenizer)
    assert "`max_length` larger" in caught.value.fix


def test_steps_that_are_turns_are_read_before_their_signs(folder):
    judge = scorer(folder, "plus")
    (logits,) = judge.step_scores([judge.encode_steps(PROMPT, ["It runs.", "It waits."])])
    assert len(logits) == 2 and judge.describe()["context_signs"] == "plus"


@pytest.mark.parametrize(
    "name, given, said",
    [
        ("rm", {"aggregate": "min"}, "`aggregate` min has no effect: .*rm gives rewards"),
        ("prm", {"read_at": "last_token"}, "`read_at` last_token has no effect: .*prm judges the steps"),
        ("prm", {"entropy_threshold": 1.0}, "`entropy_threshold` 1.0 has no effect"),
        ("prm", {"segmenter": "peak"}, "`segmenter` peak has no effect"),
        ("logsumexp", {}, "the stored aggregation is logsumexp, which chances of steps have not\n  fix: give `aggregate`"),
    ],
)
def test_what_has_no_effect_is_refused(folder, name, given, said):
    aggregate = given.pop("aggregate", None)
    with pytest.raises(UserError, match=said):
        scorer(folder, name, aggregate, **given)
    assert isinstance(scorer(folder, "logsumexp", "last"), StepModelScorer)


def test_how_steps_are_cut_may_be_said(folder):
    whole = scorer(folder, step_separator=["nowhere"], segmenter="step")([PROMPT], TEXTS[:1])
    assert whole.tolist() == pytest.approx(chances_by_stock(folder, TEXTS[0])[-1:], abs=1e-5)
    assert isinstance(scorer(folder, "rm"), RewardScorer) and ReadConfig().segmenter is None


def judged(folder, tmp_path, name: str, suite: str, rows: list[dict], *flags: str) -> dict:
    words = [suite, str(write_lines(tmp_path / f"{suite}.jsonl", rows)), "--scorer", str(folder / name), *flags]
    evaluate.main([*words, "--output_dir", str(tmp_path / suite), "--bootstrap", "10", "--device", "cpu"])
    return json.loads((tmp_path / suite / "results.json").read_text())


def test_suites_are_judged_by_a_model_of_steps(folder, tmp_path):
    pairs = [{"prompt": PROMPT, "chosen": TEXTS[1], "rejected": TEXTS[0]}]
    found = judged(folder, tmp_path, "prm", "pairs", pairs, "--aggregate", "mean")
    assert found["aggregate"] == "mean" and found["step_separator"] == ["\n\n"] and found["max_length"] > 0
    chances = [chances_by_stock(folder, text) for text in TEXTS[:2]]
    assert found["mean_margin"] == pytest.approx(chances[1][0] - sum(chances[0]) / 3, abs=1e-5)
    rows = [{"problem": PROMPT[0]["content"], "steps": TEXTS[0].split("\n\n"), "label": label} for label in (-1, 0, 1)]
    found = judged(folder, tmp_path, "prm", "processbench", rows, "--step_threshold", "0.9")
    first = next(k for k, chance in enumerate(chances[0]) if chance < 0.9)
    part = found["subsets"]["processbench"]
    assert part["acc_correct"] == 0 and part["acc_error"] == (first in (0, 1)) / 2 == 0.5
    shown = (tmp_path / "processbench/steps.html").read_text()
    assert all(f"{chance:.2f}" in shown for chance in chances[0])


def test_a_suite_of_steps_needs_a_model_of_steps(folder, tmp_path, capsys):
    path = write_lines(tmp_path / "rows.jsonl", [{"problem": "Q", "steps": ["a"], "label": 0}])
    words = [
        "processbench",
        str(path),
        "--scorer",
        str(folder / "rm"),
        "--output_dir",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit):
        evaluate.main(words)
    assert "one number for an answer, and this suite judges the numbers of steps" in capsys.readouterr().err
