"""Why answers have their scores: numbers by hand, files and page, and that what a model says of attributes adds up."""

import json

import numpy as np
import pytest
import tiny_models
import torch
from html_pages import Page

from denserl.evaluation.items import Answer, Item, with_scores
from denserl.evaluation.reasons import attribute_means, write_reasons
from denserl.evaluation.results import reasons_of
from denserl.models.heads import Head
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.config import ReadConfig
from denserl.rewards.scorer import Reasons, RewardScorer

HOSTILE = "<script>alert(1)</script>\x1b[31m"
PROMPT = [{"role": "user", "content": HOSTILE}]
RATINGS = np.array([[1.0, 2.0], [0.0, 1.0], [3.0, 1.0], [2.0, 2.0], [0.0, 4.0]])
COEFFICIENTS = np.array([[0.5, 1.0]] * 3 + [[1.0, -1.0]] * 2)
REASONS = Reasons(("help", HOSTILE), RATINGS, COEFFICIENTS)


@pytest.fixture
def judged():
    """One better answer against two worse ones (2.5 against 1 and 2.5: a tie), and one against one (0 against -4)."""
    answers = [Answer(PROMPT, f"{HOSTILE} {i}") for i in range(5)]
    items = [Item("q1", "all", answers[:1], answers[1:3]), Item("q2", "all", answers[3:4], answers[4:])]
    return with_scores(items, (RATINGS * COEFFICIENTS).sum(1))


def test_means_by_hand(judged):
    """Of the first item the second worse answer decides: it has the highest score."""
    found = attribute_means(judged, REASONS)
    assert found["help"] == pytest.approx({"rating": 6 / 5, "coefficient": 3.5 / 5, "margin": ((0.5 - 1.5) + (2 - 0)) / 2})
    assert found[HOSTILE] == pytest.approx({"rating": 10 / 5, "coefficient": 1 / 5, "margin": ((2 - 1) + (-2 + 4)) / 2})


def test_every_answer_has_a_row(judged, tmp_path):
    write_reasons(tmp_path, "rm", judged, REASONS)
    rows = [json.loads(line) for line in (tmp_path / "reasons.jsonl").read_text().splitlines()]
    expected = [("q1", "better", 0), ("q1", "worse", 0), ("q1", "worse", 1), ("q2", "better", 0), ("q2", "worse", 0)]
    assert [(row["id"], row["side"], row["answer"]) for row in rows] == expected
    assert rows[2]["attributes"]["help"] == {"rating": 3.0, "coefficient": 0.5, "contribution": 1.5}
    for row in rows:
        assert sum(part["contribution"] for part in row["attributes"].values()) == pytest.approx(row["score"])


def test_the_page_shows_texts_and_runs_nothing(judged, tmp_path):
    write_reasons(tmp_path, HOSTILE, judged, REASONS)
    html = (tmp_path / "reasons.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == [] and "script" not in page.tags and "\x1b" not in html
    text = " ".join(page.text.split())
    assert text.count("<script>alert(1)</script>‹U+001B›[31m") > 6
    assert "2 items, 1 of them not won by the better answer" in text
    # The tie before the item that was won.
    assert text.index(" a tie ") < text.index("better answer scores higher, by 4.000")
    assert "score+0.000-4.000+4.000" in text


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return tiny_models.save_language_model(tmp_path_factory.mktemp("sft"))


def answers() -> tuple[list, list]:
    rows = tiny_models.boat_pairs(4)
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows for _ in range(2)]
    return prompts, [row[side] for row in rows for side in ("chosen", "rejected")]


@pytest.mark.parametrize("read", [{}, {"read_at": "last_token"}, {"entropy_threshold": 5.3}], ids=str)
def test_what_a_gated_model_says_adds_up(read, sft, tmp_path):
    folder = tiny_models.save_gated_model(tmp_path, sft, sft_model=str(sft))
    scorer = RewardScorer([str(folder)], read=ReadConfig(**read))
    scores, found = scorer(*answers()), reasons_of(scorer)
    assert found.names == ("help", "verbosity", "style") and scores.std() > 0.1
    assert (found.ratings * found.coefficients).sum(1) == pytest.approx(scores, abs=1e-5)
    # Both answers to a prompt are weighed alike; the attribute that the others were freed of only takes from them.
    assert np.array_equal(found.coefficients[0::2], found.coefficients[1::2])
    assert (found.coefficients[:, 1] < 0).all() and (found.coefficients[:, (0, 2)] > 0).all()


def test_of_the_least_segment_no_sum_is_the_score(sft, tmp_path):
    folder = tiny_models.save_gated_model(tmp_path, sft, sft_model=str(sft), agg_func="min")
    scorer = RewardScorer([str(folder)], read=ReadConfig(entropy_threshold=5.3))
    scorer(*answers())
    assert reasons_of(scorer) is None


def test_what_a_model_of_attributes_says_adds_up(sft, tmp_path):
    """Its weights are the coefficients, whatever the prompt."""
    model = new_reward_model(str(sft), "fp32", head=Head("attributes", names=("a", "b"), weights=(0.5, -2.0)))
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    load_tokenizer(str(sft)).save_pretrained(tmp_path)
    scorer = RewardScorer([str(tmp_path)])
    scores, found = scorer(*answers()), scorer.reasons
    assert found.coefficients.tolist() == [[0.5, -2.0]] * 8
    assert (found.ratings * found.coefficients).sum(1) == pytest.approx(scores, abs=1e-5)
    assert load_reward_model(str(tmp_path), "fp32").score.weights == (0.5, -2.0)


def test_a_model_of_one_score_says_no_reasons(sft, tmp_path):
    model = new_reward_model(str(sft), "fp32")
    model.save_pretrained(tmp_path)
    load_tokenizer(str(sft)).save_pretrained(tmp_path)
    scorer = RewardScorer([str(tmp_path)])
    scorer(*answers())
    assert reasons_of(scorer) is None
