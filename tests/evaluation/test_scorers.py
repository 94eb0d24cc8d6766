"""Scores of responses against stock forwards of one row at a time; batches, cuts, ensembles, ranks, and mistakes."""

import json

import numpy as np
import pytest
import reference_loops as loops
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from denserl.config import ModelSourceConfig
from denserl.data.chat import encode_prompt, encode_response
from denserl.data.responses import Encoded, Responses
from denserl.data.schemas import BadRow
from denserl.errors import UserError
from denserl.evaluation.baselines import BaselineScorer, length_scores, random_scores
from denserl.models.reward_models import new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards import scorer as scorers
from denserl.rewards.config import ReadConfig
from denserl.rewards.scorer import RewardScorer

MOMENTS = {"mean": 0.25, "std": 2.0}
THRESHOLD = 4.0


def save_reward_model(folder, sft, seed, **settings):
    """An untrained reward model with random weights of some size in its head."""
    model = new_reward_model(str(sft), "fp32", seed)
    with torch.no_grad():
        model.score.weight.mul_(20)
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    load_tokenizer(str(sft)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sft = tiny_models.save_language_model(folder / "sft")
    dense = {"segment_reward": {"sft_model": str(sft), "entropy_threshold": THRESHOLD}}
    bandit = {"segment_reward": {"sft_model": str(sft), "entropy_threshold": 1000.0}}
    return {
        "sft": str(sft),
        "stock": save_reward_model(folder / "stock", sft, 1),
        "plain": save_reward_model(folder / "plain", sft, 1, **bandit),
        "dense": save_reward_model(folder / "dense", sft, 2, **dense),
        "first": save_reward_model(folder / "first", sft, 3, **MOMENTS, **bandit),
        "second": save_reward_model(folder / "second", sft, 4, mean=-0.5, std=0.5, **bandit),
    }


PROMPTS = [
    [{"role": "user", "content": "Tell me about the river."}],
    [{"role": "user", "content": ""}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": "And the bridge?"},
    ],
]
RESPONSES = ["A quiet river runs under the stone bridge.", "", "The boats wait there. " * 6]


def ids_of(tokenizer, prompt, response):
    """Prompt and response ids by the template's own words: ChatML, the response closed by its end-of-turn token."""
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in prompt) + "<|im_start|>assistant\n"
    return [tokenizer(text, add_special_tokens=False).input_ids for text in (turns, response + "<|im_end|>")]


@torch.no_grad()
def stock_scores(folder, prompt, response):
    """The stock classifier's head at each response token of one row without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    hidden = model.model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, len(prompt) :]
    return (hidden.double() @ model.score.weight[0].double()).numpy()


def test_ids_of_another_chat_template_are_not_scored_as_they_are(models):
    """A policy that was given a system prompt: the reward model reads its texts as it was trained, by its own template."""
    scorer, policy = RewardScorer([models["plain"]]), load_tokenizer(models["sft"], {"system_prompt": "Be brief."})
    prompt, text = PROMPTS[0], RESPONSES[0]
    ids = [encode_prompt(policy, prompt), encode_response(policy, prompt, text)]
    record = Responses([prompt], [text], [ids[0]], [ids[1]], [True])
    assert scorer.of_responses(record, policy) == pytest.approx(scorer([prompt], [text]), abs=1e-6)
    own = load_tokenizer(models["sft"])
    assert abs(scorer.of_responses(record, own) - scorer([prompt], [text])) > 1e-4


def test_a_classifier_from_elsewhere_is_read_as_the_stock_class_reads_it(models):
    """At the last token of the whole rendering, which in ChatML is the line break after the end of turn."""
    scorer = RewardScorer([models["stock"]])
    model = AutoModelForSequenceClassification.from_pretrained(models["stock"], dtype=torch.float32).eval()
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES):
        text = scorer.tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": response}], tokenize=False)
        assert text.endswith("<|im_end|>\n")
        with torch.no_grad():
            expected.append(model(**scorer.tokenizer(text, return_tensors="pt")).logits.item())
    scores = scorer(PROMPTS, RESPONSES)
    assert scores == pytest.approx(expected, abs=1e-4)
    assert np.abs(scores - RewardScorer([models["plain"]])(PROMPTS, RESPONSES)).min() > 1e-3
    # The line break has its place among the 20, though it is no part of the response.
    encoded = RewardScorer([models["stock"]], max_length=20).encode(PROMPTS[0], RESPONSES[2])
    assert (len(encoded.prompt_ids), len(encoded.response_ids)) == (1, 18)


def test_a_model_of_whole_responses_is_read_at_the_end_of_turn(models):
    scorer = RewardScorer([models["plain"]])
    rows = [ids_of(scorer.tokenizer, *pair) for pair in zip(PROMPTS, RESPONSES)]
    expected = [stock_scores(models["plain"], *row)[-1] for row in rows]
    scores = scorer(PROMPTS, RESPONSES)
    assert scores.dtype == np.float64 and scores == pytest.approx(expected, abs=1e-4)
    assert np.std(expected) > 0.01
    assert scorer.describe()["entropy_threshold"] == 1000


def test_a_dense_model_is_read_at_the_ends_of_its_segments(models):
    sft = AutoModelForCausalLM.from_pretrained(models["sft"], dtype=torch.float32).eval()
    scorer, expected, counts = RewardScorer([models["dense"]]), [], []
    for prompt, response in zip(PROMPTS, RESPONSES):
        start, answer = ids_of(scorer.tokenizer, prompt, response)
        with torch.no_grad():
            logits = sft(torch.tensor([start + answer])).logits[0, len(start) - 1 : -1].double()
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        (segments,) = loops.segment(entropy[None], torch.ones(1, len(answer)), THRESHOLD)
        counts.append(len(segments))
        expected.append(np.mean([stock_scores(models["dense"], start, answer)[tokens[-1]] for tokens in segments]))
    assert max(counts) > 2
    assert scorer(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-4)
    whole = RewardScorer([models["dense"]], read=ReadConfig(entropy_threshold=1000))(PROMPTS, RESPONSES)
    assert np.abs(whole - expected).max() > 1e-3


def test_a_model_that_was_trained_on_sums_is_scored_by_sums(models, tmp_path):
    settings = {"sft_model": models["sft"], "entropy_threshold": THRESHOLD}
    same = save_reward_model(tmp_path / "rm", models["sft"], 2, segment_reward={**settings, "agg_func": "sum"})
    means, scorer = RewardScorer([models["dense"]])(PROMPTS, RESPONSES), RewardScorer([same])
    counts = scorer(PROMPTS, RESPONSES) / means
    # The same weights: each sum is the mean times the number of segments.
    assert counts == pytest.approx(counts.round(), abs=1e-3) and counts.max() > 2
    assert scorer.describe()["agg_func"] == "sum"


def test_scores_are_those_of_the_row_in_any_order_and_batch(models):
    prompts, responses = PROMPTS * 4, [text * (1 + n // 3) for n, text in enumerate(RESPONSES * 4)]
    scores = RewardScorer([models["dense"]])(prompts, responses)
    alone = RewardScorer([models["dense"]], score_tokens=1)(prompts[::-1], responses[::-1])[::-1]
    padded = RewardScorer([models["dense"]], source=ModelSourceConfig(attention="eager"))(prompts, responses)
    assert scores == pytest.approx(alone, abs=1e-5) and scores == pytest.approx(padded, abs=1e-5)


def test_equal_answers_tie_whatever_batches_they_are_in(models):
    prompts = [PROMPTS[0]] * 40 + [PROMPTS[2]] * 40
    responses = [f"{'word ' * n}" for n in range(40)] + [f"{'word ' * n}" for n in range(40)]
    scorer = RewardScorer([models["plain"]], score_tokens=60)
    scores = scorer([*prompts, *prompts[::-1]], [*responses, *responses[::-1]])
    assert (scores[:80] == scores[80:][::-1]).all()


def test_a_long_prompt_loses_its_left_and_a_long_response_its_right(models):
    scorer, full = RewardScorer([models["plain"]], max_length=20), RewardScorer([models["plain"]])
    start, answer = ids_of(full.tokenizer, PROMPTS[2], "Yes it is.")
    assert len(start) > 20 > len(answer) + 2
    lost = len(start) + len(answer) - 20
    assert scorer.encode(PROMPTS[2], "Yes it is.") == Encoded(start[len(answer) - 20 :], answer, prompt_cut=lost)
    start, answer = ids_of(full.tokenizer, PROMPTS[0], RESPONSES[2])
    kept = Encoded(start[-1:], [*answer[:18], full.tokenizer.eos_token_id], True, len(start) - 1, len(answer) - 19)
    assert scorer.encode(PROMPTS[0], RESPONSES[2]) == kept
    assert np.isfinite(scorer(PROMPTS, RESPONSES)).all()


def test_what_was_shortened_is_counted_and_said(models, caplog):
    """By lengths alone: of 40 tokens the response takes what it needs, and the prompt keeps the rest, at least one."""
    scorer = RewardScorer([models["plain"]], max_length=40)
    prompts, responses = [PROMPTS[0], PROMPTS[2], PROMPTS[2], PROMPTS[0]], [*RESPONSES, "Rain."]
    lengths = [[len(part) for part in ids_of(scorer.tokenizer, *pair)] for pair in zip(prompts, responses)]
    left = [max(1, 40 - answer) for prompt, answer in lengths if prompt + answer > 40]
    expected = {
        "answers": 4,
        "prompts": len(left),
        "prompts_almost_gone": sum(kept < 16 for kept in left),
        "responses": sum(answer > 39 for _, answer in lengths),
    }
    assert 4 > expected["prompts"] > expected["prompts_almost_gone"] > 0 and expected["responses"] > 0
    with caplog.at_level("WARNING"):
        scorer(prompts, responses)
    assert scorer.describe()["shortened"] == expected
    (line,) = caplog.messages
    assert f"of 4 answers, {len(left)} have a shortened prompt ({expected['prompts_almost_gone']} keep" in line
    caplog.clear()
    RewardScorer([models["plain"]])(prompts, responses)
    assert not caplog.messages


def test_a_sequence_is_cut_at_the_positions_that_the_models_have(models, caplog):
    with caplog.at_level("INFO"):
        scorer = RewardScorer([models["plain"]])
    positions = AutoConfig.from_pretrained(models["plain"]).max_position_embeddings
    encoded = scorer.encode(PROMPTS[0], "word " * positions)
    assert len(encoded.prompt_ids) + len(encoded.response_ids) == positions
    assert scorer.describe()["max_length"] == positions and f"cut at {positions} tokens" in caplog.text
    assert RewardScorer([models["plain"]], max_length=20).max_length == 20


@pytest.mark.parametrize(
    "how, weight, combined",
    [
        ("mean", 1.0, lambda z: z.mean(0)),
        ("min", 1.0, lambda z: z.min(0)),
        ("mean_std", 0.5, lambda z: z.mean(0) - 0.5 * np.sqrt(((z - z.mean(0)) ** 2).mean(0))),
    ],
)
def test_an_ensemble_combines_standardised_members(models, how, weight, combined):
    first, second = (RewardScorer([models[name]])(PROMPTS, RESPONSES) for name in ("first", "second"))
    standardised = np.stack([(first - 0.25) / 2.0, (second + 0.5) / 0.5])
    found = RewardScorer([models["first"], models["second"]], how=how, weight=weight)
    assert found(PROMPTS, RESPONSES) == pytest.approx(combined(standardised), abs=1e-4)
    assert found.describe()["ensemble"] == how and len(found.describe()["scorer"]) == 2


def test_ranks_score_what_one_does(models, monkeypatch):
    expected = RewardScorer([models["plain"]], score_tokens=30)(PROMPTS, RESPONSES)
    scorer, shares = RewardScorer([models["plain"]], score_tokens=30), []
    encoded = [scorer.encode(*pair) for pair in zip(PROMPTS, RESPONSES)]
    monkeypatch.setattr("denserl.distributed.world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("denserl.distributed.rank", lambda rank=rank: rank)

        def gather(share, rank=rank):
            shares.append(share)
            return shares if rank else [share, dict.fromkeys(range(9), np.zeros(1))]

        monkeypatch.setattr("denserl.distributed.gather_objects", gather)
        scores = scorer.score(encoded)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert sorted([*shares[0], *shares[1]]) == [0, 1, 2]


def test_words_need_no_model():
    assert length_scores([[]] * 3, ["", "ab", "äöü"]).tolist() == [0, 2, 3]
    drawn = random_scores(3)([[]] * 5, [""] * 5)
    assert len(set(drawn)) == 5 and (drawn == BaselineScorer("random", 3)([[]] * 5, [""] * 5)).all()
    assert (drawn != random_scores(4)([[]] * 5, [""] * 5)).all()
    scorer = BaselineScorer("length", 0)
    assert scorer.score([scorer.encode([], "abc")]).tolist() == [3] and scorer.text([], "abc") == "abc"


def test_a_language_model_is_no_scorer(models):
    with pytest.raises(UserError, match="holds no reward head"):
        RewardScorer([models["sft"]])


def test_members_that_do_not_go_together_are_named(models):
    with pytest.raises(UserError, match="different entropy thresholds") as error:
        RewardScorer([models["first"], models["dense"]])
    assert "`entropy_threshold`" in error.value.fix
    with pytest.raises(UserError, match="plain: a member of an ensemble needs a mean"):
        RewardScorer([models["first"], models["plain"]])


def test_a_dense_model_needs_a_language_model_and_a_bandit_none(models, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(scorers, "load_policy", pytest.fail)
        scorer = RewardScorer([models["plain"]])
        assert scorer.sft_model is None and len(scorer([[{"role": "user", "content": "x"}]], ["y"])) == 1
    with pytest.raises(UserError, match="sft_model") as error:
        RewardScorer([models["stock"]], read=ReadConfig(entropy_threshold=1.0))
    assert "`sft_model`" in error.value.fix
    with pytest.raises(UserError, match="no effect at the bandit level"):
        RewardScorer([models["plain"]], sft_model=models["sft"])
    with pytest.raises(UserError, match="`max_length` is 1"):
        RewardScorer([models["plain"]], max_length=1)


def test_what_the_template_refuses_is_a_bad_row(models):
    with pytest.raises(BadRow, match="unknown role"):
        RewardScorer([models["plain"]])([[{"role": "tool", "content": "x"}]], ["y"])


def test_a_score_that_is_not_finite_stops(models, tmp_path):
    folder = save_reward_model(tmp_path, models["sft"], 5)
    scorer = RewardScorer([folder])
    scorer._scores.source.models[0].score.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="3 of 3 scores are not finite"):
        scorer(PROMPTS, RESPONSES)


def test_what_is_said_of_a_scorer_fits_into_json(models):
    assert json.loads(json.dumps(RewardScorer([models["dense"]]).describe()))["sft_model"] == models["sft"]
