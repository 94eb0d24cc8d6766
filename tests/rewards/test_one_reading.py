"""One reading of a reward model: evaluation, on texts, and PPO, on the ids of its rollouts, give a response the same score.

The chat template writes a line break after the end of turn, at which stock classifiers are read, and models trained here not.
"""

import functools

import numpy as np
import pytest
import tiny_models
import torch
from reward_folders import PROMPTS, TEXTS, save_reward_model
from transformers import AutoTokenizer

from denserl.config import ModelSourceConfig
from denserl.data.chat import encode_prompt, encode_response
from denserl.data.responses import Responses
from denserl.models.heads import Head
from denserl.models.loading import load_policy
from denserl.models.reward_models import load_reward_model
from denserl.models.scoring import response_entropies
from denserl.models.tiny import train_tokenizer
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.config import ReadConfig
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.base import ResponseScorer
from denserl.rewards.sources.build import load_members, source_of
from denserl.rewards.sources.reading import choose_segmenter
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_models import PolicyModule, gold_scorer
from denserl.trainer.ppo_sources import Loaded, make_rewards

THRESHOLD = 4.0
# Whether the one score of an ended response is read after the end of turn. The last two are cut into segments.
KINDS = {"stock": True, "grm": True, "bandit": False, "bandit of version 0.1": False, "segment": False, "token": False}
WHOLE = [kind for kind in KINDS if kind not in ("segment", "token")]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return str(tiny_models.save_language_model(tmp_path_factory.mktemp("models") / "sft"))


@pytest.fixture(scope="module")
def folders(sft, tmp_path_factory) -> dict[str, str]:
    root, mlp = tmp_path_factory.mktemp("rewards"), Head("mlp", 1, 16, 0.1)
    here = {"sft_model": sft, "agg_func": "avg"}
    return {
        "stock": save_reward_model(root / "stock", sft, 1),
        "grm": save_reward_model(root / "grm", sft, 2, mlp),
        "bandit": save_reward_model(root / "bandit", sft, 3, **here, entropy_threshold=1000.0, read_at="end_of_turn"),
        "bandit of version 0.1": save_reward_model(root / "old", sft, 4, **here, entropy_threshold=1000.0),
        "segment": save_reward_model(root / "segment", sft, 5, **here, entropy_threshold=THRESHOLD, read_at="end_of_turn"),
        "token": save_reward_model(root / "token", sft, 6, mlp, **here, entropy_threshold=0.0, read_at="end_of_turn"),
    }


@pytest.fixture(scope="module")
def tokenizer(sft):
    return load_tokenizer(sft)


def rollouts(tokenizer, ended=(True, True, True)) -> Responses:
    """The record that PPO has of three responses; one that was cut off has lost its end of turn, and nothing else."""
    prompts = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    ids = [encode_response(tokenizer, prompt, text) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    ids = [row if done else row[:-1] for row, done in zip(ids, ended, strict=True)]
    return Responses(PROMPTS, TEXTS, prompts, ids, list(ended))


class Ppo:
    """Scores as PPO's source of rewards gives them, on a record of ids."""

    def __init__(self, paths: list[str], sft: str, tokenizer, **how):
        self.tokenizer = tokenizer
        self.members = load_members(paths, "fp32", ModelSourceConfig(), tokenizer)
        self.segmenter = choose_segmenter(self.members.each, paths, tokenizer)
        source = source_of(self.members, self.segmenter, **how)
        entropies = functools.partial(response_entropies, load_policy(sft, "fp32").eval())
        self.scorer = ResponseScorer(source, self.segmenter, entropies, self.members.stored.agg_func)

    def __call__(self, responses: Responses) -> np.ndarray:
        with torch.no_grad():
            return self.scorer(responses, responses.padded(self.tokenizer.pad_token_id, "cpu")).double().numpy()


def by_stock_class(folder: str, tokenizer, responses: Responses, after_the_turn: bool) -> list[float]:
    """One unpadded row at a time, by the class's own forward, which reads the head at the last token it is given."""
    model, scores = load_reward_model(folder, "fp32"), []
    for prompt, text, prompt_ids, ids, ended in zip(*responses[:5], strict=True):
        row = [*prompt_ids, *ids]
        if ended and after_the_turn:
            messages = [*prompt, {"role": "assistant", "content": text}]
            rendering = tokenizer.apply_chat_template(messages, tokenize=False)
            assert rendering.endswith("<|im_end|>\n")
            row = tokenizer(rendering, add_special_tokens=False).input_ids
            assert row[:-1] == [*prompt_ids, *ids]
        with torch.no_grad():
            scores.append(model(input_ids=torch.tensor([row])).logits.item())
    return scores


@pytest.mark.parametrize("kind", KINDS)
def test_an_ended_response_gets_one_score(kind, folders, sft, tokenizer):
    responses = rollouts(tokenizer)
    by_text = RewardScorer([folders[kind]])(PROMPTS, TEXTS)
    by_ids = RewardScorer([folders[kind]]).of_responses(responses, tokenizer)
    by_ppo = Ppo([folders[kind]], sft, tokenizer)(responses)
    assert by_text == pytest.approx(by_ppo, abs=CLOSE) and by_ids == pytest.approx(by_ppo, abs=CLOSE)
    assert np.std(by_text) > 0.01
    if kind in WHOLE:
        expected = by_stock_class(folders[kind], tokenizer, responses, KINDS[kind])
        assert by_ppo == pytest.approx(expected, abs=1e-4)
        # Read at the other place it would be another score.
        other = by_stock_class(folders[kind], tokenizer, responses, not KINDS[kind])
        assert np.abs(by_ppo - other).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_that_was_cut_off_gets_one_score_which_is_not_that_of_the_closed_one(kind, folders, sft, tokenizer):
    cut_off, closed = rollouts(tokenizer, (False, False, False)), rollouts(tokenizer)
    scorer, ppo = RewardScorer([folders[kind]]), Ppo([folders[kind]], sft, tokenizer)
    by_ppo = ppo(cut_off)
    assert scorer.of_responses(cut_off, tokenizer) == pytest.approx(by_ppo, abs=CLOSE)
    # By its text, if it is said that it was cut off.
    encoded = [scorer.encode(prompt, text, ended=False) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    assert scorer.score(encoded) == pytest.approx(by_ppo, abs=CLOSE)
    if kind in WHOLE:
        assert by_ppo == pytest.approx(by_stock_class(folders[kind], tokenizer, cut_off, KINDS[kind]), abs=1e-4)
        assert np.abs(by_ppo - ppo(closed)).min() > 1e-3
        assert np.abs(by_ppo - scorer(PROMPTS, TEXTS)).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_what_ended_and_what_was_cut_off_do_not_touch_one_another(kind, folders, sft, tokenizer):
    scorer, ppo = RewardScorer([folders[kind]]), Ppo([folders[kind]], sft, tokenizer)
    closed, cut_off = rollouts(tokenizer), rollouts(tokenizer, (False, False, False))
    both = Responses(*([*a, *b] for a, b in zip(closed, cut_off, strict=True))).rows([3, 0, 4, 5, 2, 1])
    expected = np.concatenate([ppo(closed), ppo(cut_off)])[[3, 0, 4, 5, 2, 1]]
    assert ppo(both) == pytest.approx(expected, abs=CLOSE)
    assert scorer.of_responses(both, tokenizer) == pytest.approx(expected, abs=CLOSE)


def test_the_same_ids_are_two_responses_if_one_ended_and_the_other_was_cut_off(folders, tokenizer):
    """A stop token of the policy's own may end a response as well as stand where it was cut off."""
    responses = rollouts(tokenizer)
    twice = Responses(*([*column, *column] for column in responses))._replace(ended=[True] * 3 + [False] * 3)
    scores = RewardScorer([folders["stock"]]).of_responses(twice, tokenizer)
    expected = by_stock_class(folders["stock"], tokenizer, twice, True)
    assert scores == pytest.approx(expected, abs=1e-4) and np.abs(scores[:3] - scores[3:]).min() > 1e-3


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("read_at", ["end_of_turn", "last_token"])
def test_where_a_score_is_read_can_be_given_to_both(kind, read_at, folders, sft, tokenizer):
    responses = rollouts(tokenizer, (True, True, False))
    scorer = RewardScorer([folders[kind]], read=ReadConfig(read_at=read_at))
    ppo = Ppo([folders[kind]], sft, tokenizer, read_at=read_at)
    expected = by_stock_class(folders[kind], tokenizer, responses, read_at == "last_token")
    assert ppo(responses) == pytest.approx(expected, abs=1e-4)
    assert scorer.of_responses(responses, tokenizer) == pytest.approx(ppo(responses), abs=CLOSE)


def test_members_of_an_ensemble_are_read_where_each_of_them_is(sft, tokenizer, tmp_path):
    moments = [(0.25, 2.0), (-0.5, 0.5)]
    paths = [save_reward_model(tmp_path / f"rm{i}", sft, 7 + i, moments=pair) for i, pair in enumerate(moments)]
    responses = rollouts(tokenizer, (True, False, True))
    each = np.array([by_stock_class(path, tokenizer, responses, True) for path in paths])
    expected = ((each - [[0.25], [-0.5]]) / [[2.0], [0.5]]).min(0)
    assert Ppo(paths, sft, tokenizer, how="min")(responses) == pytest.approx(expected, abs=1e-4)
    assert RewardScorer(paths, how="min").of_responses(responses, tokenizer) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_ppos_rewards_and_gold_rewards_are_these_scores(kind, folders, sft, tokenizer):
    """Through what a run is made with: its sources, and the gold reward model that judges it."""
    responses = rollouts(tokenizer, (True, False, True))
    expected = RewardScorer([folders[kind]]).of_responses(responses, tokenizer)
    options = {"model": sft, "reward_model": [folders[kind]], "data": ["unread"], "output_dir": "unwritten"}
    config = PPOConfig(**options, normalizer="none")
    members = load_members(config.reward_model, "fp32", config, tokenizer)
    rewards = make_rewards(config, Loaded(tokenizer, tokenizer.decode, members, members.models))
    reference = load_policy(sft, "fp32").eval()
    batch = responses.padded(tokenizer.pad_token_id, "cpu")
    with torch.no_grad():
        mask, entropy = batch.response_mask, response_entropies(reference, batch)
        ended = torch.tensor(responses.ended)
        _, (paid,) = rewards.pay(rewards.score(responses, batch), entropy, mask, batch.response_ids, ended)
        gold = gold_scorer(members, members.models, PolicyModule(reference))(responses, batch)
    assert paid.score.tolist() == pytest.approx(expected, abs=CLOSE)
    assert gold.tolist() == pytest.approx(expected, abs=CLOSE)


def test_a_template_that_writes_nothing_after_the_end_of_turn_has_one_place(folders, sft, tokenizer, tmp_path):
    bare = AutoTokenizer.from_pretrained(sft)
    bare.chat_template = bare.chat_template.replace("'<|im_end|>' + '\n'", "'<|im_end|>'")
    model = load_reward_model(folders["stock"], "fp32")
    model.save_pretrained(tmp_path)
    bare.save_pretrained(tmp_path)
    bare = load_tokenizer(str(tmp_path))
    assert not bare.apply_chat_template([*PROMPTS[0], {"role": "assistant", "content": "x"}], tokenize=False).endswith("\n")
    responses = rollouts(bare)
    expected = by_stock_class(str(tmp_path), bare, responses, False)
    assert RewardScorer([str(tmp_path)])(PROMPTS, TEXTS) == pytest.approx(expected, abs=1e-4)
    assert Ppo([str(tmp_path)], sft, bare)(responses) == pytest.approx(expected, abs=1e-4)


def test_what_a_model_of_another_tokenizer_wrote_is_encoded_anew_and_stays_cut_off(folders, tokenizer):
    other = train_tokenizer(["completely different words of another kind"] * 3, 300)
    ids = [other(text, add_special_tokens=False).input_ids for text in TEXTS]
    written = Responses(PROMPTS, TEXTS, [[4]] * 3, ids, [True, False, False])
    scorer = RewardScorer([folders["stock"]])
    expected = scorer.of_responses(rollouts(tokenizer, (True, False, False)), tokenizer)
    assert scorer.of_responses(written, other) == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("kind", ["stock", "bandit"])
def test_a_long_prompt_of_carried_ids_loses_its_left(kind, folders, sft, tokenizer):
    responses = rollouts(tokenizer, (True, False, True))
    room = max(len(ids) for ids in responses.response_ids) + 4
    scorer, closing = RewardScorer([folders[kind]], max_length=room), int(KINDS[kind])
    kept = [room - closing - len(ids) for ids in responses.response_ids]
    cut = responses._replace(prompt_ids=[ids[-keep:] for ids, keep in zip(responses.prompt_ids, kept, strict=True)])
    assert min(map(len, responses.prompt_ids)) > min(kept)
    assert scorer.of_responses(responses, tokenizer) == pytest.approx(Ppo([folders[kind]], sft, tokenizer)(cut), abs=CLOSE)


@pytest.mark.parametrize("kind", ["stock", "bandit"])
def test_a_response_that_was_cut_off_before_its_first_word_has_a_score(kind, folders, tokenizer):
    """Of special tokens alone, say, which another tokenizer has no words for: what is left to read is the prompt."""
    other = train_tokenizer(["completely different words of another kind"] * 3, 300)
    written = Responses(PROMPTS[:1], [""], [[4]], [[other.pad_token_id]], [False])
    assert np.isfinite(RewardScorer([folders[kind]]).of_responses(written, other)).all()


def test_a_response_that_was_cut_off_and_is_too_long_is_read_at_a_token_of_its_own(folders, sft, tokenizer):
    responses = rollouts(tokenizer, (False, False, False)).rows([2])
    ids = responses.response_ids[0]
    scorer = RewardScorer([folders["bandit"]], max_length=9)
    shorter = responses._replace(prompt_ids=[responses.prompt_ids[0][-1:]], response_ids=[ids[:8]])
    expected = Ppo([folders["bandit"]], sft, tokenizer)(shorter)
    assert scorer.of_responses(responses, tokenizer) == pytest.approx(expected, abs=CLOSE)
