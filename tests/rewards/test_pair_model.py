"""Models that compare two responses: what the stock language model says of the text, in both orders, whatever stands beside."""

import math

import numpy as np
import pytest
import tiny_models
from reward_folders import save_pair_model, save_reward_model, stock_log_odds

from denserl.config import ModelSourceConfig
from denserl.data.schemas import BadRow
from denserl.errors import UserError
from denserl.rewards.sources.build import load_members, source_of
from denserl.rewards.sources.pair_model import PairModel, pair_model_of
from denserl.segmentation import Segmenter
from denserl.trainer.fit import fit_normalizer
from denserl.trainer.fit_config import FitConfig

PROMPTS = [[{"role": "user", "content": text}] for text in ("Tell me about the river.", "Why?")]
TALK = [*PROMPTS[0], {"role": "assistant", "content": "It runs."}, {"role": "user", "content": "And the boats?"}]
TEXTS = [
    "A quiet river runs under the stone bridge.",
    "Rain.",
    "The boats [RESPONSE B] wait there. [CONTEXT] " * 3,
    "The kettle hums while the rain falls.",
]
# Prompts, and two of the texts.
PAIRS = [(0, 0, 1), (0, 0, 2), (1, 3, 1), (0, 1, 2), (1, 2, 0), (0, 3, 3)]


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return tiny_models.save_language_model(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def folder(sft, tmp_path_factory) -> str:
    return save_pair_model(tmp_path_factory.mktemp("pm"), sft)


@pytest.fixture(scope="module")
def published(sft, tmp_path_factory) -> str:
    return save_pair_model(tmp_path_factory.mktemp("published"), sft, "rlhflow")


@pytest.fixture(scope="module")
def model(folder) -> PairModel:
    return PairModel.load(folder)


def columns(pairs, flip=False):
    prompts = [PROMPTS[prompt] for prompt, _, _ in pairs]
    firsts, seconds = ([TEXTS[pair[place]] for pair in pairs] for place in (1, 2))
    return (prompts, seconds, firsts) if flip else (prompts, firsts, seconds)


def own_text(prompt, first, second) -> str:
    turns = "".join(f"{turn['role']}\n{turn['content']}<|im_end|>" for turn in prompt)
    parts = f"{turns}A\n{first}<|im_end|>B\n{second}<|im_end|>A or B?"
    return f"<|im_start|>user\n{parts}<|im_end|>\n<|im_start|>assistant\n"


def published_text(prompt, first, second) -> str:
    turns = "".join(f"\n<turn> {turn['role']}\n {turn['content']}" for turn in prompt)
    parts = f"[CONTEXT] \n{turns}\n [RESPONSE A] {first} [RESPONSE B] {second} \n"
    return f"<|im_start|>user\n{parts}<|im_end|>\n<|im_start|>assistant\n"


def test_log_odds_are_those_of_the_stock_language_model(model, folder):
    found = model.log_odds(*columns(PAIRS))
    expected = [
        [stock_log_odds(folder, own_text(PROMPTS[p], TEXTS[i], TEXTS[j])) for i, j in ((i, j), (j, i))] for p, i, j in PAIRS
    ]
    assert found == pytest.approx(np.array(expected), abs=1e-4) and np.std(found) > 0.05
    # Two orders of one text are one text; a response that holds a mark is read as any other.
    assert found[-1][0] == found[-1][1]
    by_hand = [(1 / (1 + math.exp(-a)) + 1 / (1 + math.exp(b))) / 2 for a, b in expected]
    assert model(*columns(PAIRS)) == pytest.approx(by_hand, abs=1e-5)


def test_the_published_layout_is_read_as_it_is_stored(published):
    model = PairModel.load(published)
    assert model.layout == "rlhflow"
    found = model.log_odds([TALK, PROMPTS[0]], [TEXTS[0], TEXTS[2]], [TEXTS[1], TEXTS[3]])
    rows = [(TALK, TEXTS[0], TEXTS[1]), (PROMPTS[0], TEXTS[2], TEXTS[3])]
    expected = [[stock_log_odds(published, published_text(p, *both)) for both in ((a, b), (b, a))] for p, a, b in rows]
    assert found == pytest.approx(np.array(expected), abs=1e-4)
    with pytest.raises(BadRow, match="no empty messages"):
        model.log_odds([TALK], [""], ["x"])


def test_neither_batch_nor_order_nor_what_stands_beside_changes_a_probability(model):
    together = model(*columns(PAIRS))
    alone = [model(*columns([pair]))[0] for pair in PAIRS]
    narrow = PairModel(model.model, model.tokenizer, model.layout, score_tokens=100)(*columns(PAIRS[::-1]))[::-1]
    assert together == pytest.approx(np.array(alone), abs=1e-6) and together == pytest.approx(narrow, abs=1e-6)
    assert (model(*columns(PAIRS, flip=True)) == 1 - together).all() and together[-1] == 0.5
    # The same pair, and the same pair the other way round, are judged once.
    twice = model(*columns([PAIRS[0], PAIRS[0], (0, 1, 0)]))
    assert twice[0] == twice[1] == 1 - twice[2]
    assert model([], [], []).shape == (0,)


def test_a_context_is_read_once_and_both_orders_in_one_batch(model, monkeypatch):
    from denserl.data.batching import pad_responses
    from denserl.rewards.sources import pair_model

    batches = []

    def kept(*args):
        batches.append(pad_responses(*args))
        return batches[-1]

    monkeypatch.setattr(pair_model, "pad_responses", kept)
    model.log_odds(*columns(PAIRS))
    assert len(batches) == 1 and batches[0].prompt_row.unique().numel() == len(PROMPTS)
    batches.clear()
    PairModel(model.model, model.tokenizer, model.layout, score_tokens=100).log_odds(*columns(PAIRS))
    assert len(batches) > 2 and all(len(batch.input_ids) % 2 == 0 for batch in batches)


def test_too_long_texts_lose_context_first_and_responses_alike(model):
    short = PairModel(model.model, model.tokenizer, model.layout, max_length=90)
    pair = short.encode(PROMPTS[0], TEXTS[2], TEXTS[0])
    assert pair.is_cut and not model.encode(PROMPTS[0], TEXTS[2], TEXTS[0]).is_cut
    assert all(len(ids.prompt_ids) + len(ids.response_ids) <= 90 for ids in pair)
    assert 0 < short([PROMPTS[0]], [TEXTS[2]], [TEXTS[0]])[0] < 1


def test_what_compares_and_what_scores_are_told_apart(sft, folder, published, tmp_path):
    scores = save_reward_model(tmp_path / "rm", sft, 1)
    with pytest.raises(UserError, match="scores responses one by one") as error:
        PairModel.load(scores)
    assert "--input pair" in error.value.fix
    config = ModelSourceConfig()
    with pytest.raises(UserError, match="has no score of one alone"):
        source_of(load_members([folder], "fp32", config), Segmenter(1000.0))
    with pytest.raises(UserError, match="has no score of one alone"):
        fit_normalizer(FitConfig(reward_model=[folder], data=["none"], output_dir=str(tmp_path)))
    with pytest.raises(UserError, match="are no ensemble"):
        pair_model_of(load_members([folder, published], "fp32", config))
    with pytest.raises(UserError, match="some compare two responses, and some score one"):
        load_members([folder, scores], "fp32", config)


def test_log_odds_that_are_not_finite_stop_the_run(folder):
    broken = PairModel.load(folder)
    broken.model.score.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="gives 1 of 1 pairs no finite log-odds"):
        broken([PROMPTS[0]], ["one"], ["two"])
