"""Models that judge steps: one forward is as good as one for each step, and their numbers stand at the right tokens."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from denserl.config import ModelSourceConfig
from denserl.data.chat import encode_prompt
from denserl.data.responses import Responses, encode
from denserl.data.schemas import BadRow
from denserl.data.step_encoding import AT_ENDS, StepLayout
from denserl.errors import UserError
from denserl.models.reward_models import new_reward_model
from denserl.models.reward_settings import store_settings
from denserl.models.tiny import new_llama, train_tokenizer
from denserl.models.tokenizers import load_tokenizer
from denserl.ppo_utils.dense_reward import DenseReward
from denserl.rewards.config import ReadConfig
from denserl.rewards.sources.base import read_segments
from denserl.rewards.sources.build import load_members, load_step_model, source_of, step_model_of
from denserl.rewards.sources.reading import choose_segmenter
from denserl.rewards.sources.step_model import StepSource
from denserl.segmentation import Segmenter
from denserl.steps import StepRule, step_texts
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_paying import step_reward_of

CONFIG = ModelSourceConfig()
PROMPT = [{"role": "user", "content": "How does the river run?"}]
TEXTS = [
    "It runs.\n\nIt waits.\n\n\n\nIt runs again",
    "\n\n".join(f"step {i}" for i in range(12)),
    "one",
    "It ends with a separator.\n\n",
    "",
]


def save_judge(folder: Path, sft: Path, seed: int = 1, **settings) -> str:
    """A classifier whose scores are the logits of steps."""
    model, tokenizer = new_reward_model(str(sft), "fp32", seed), load_tokenizer(str(sft))
    with torch.no_grad():
        model.score.weight.mul_(30)
    store_settings(model.config, **{"scores": "logit", "segmenter": "step", "agg_func": "min", **settings})
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    return tiny_models.save_language_model(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def other_sft(tmp_path_factory) -> Path:
    """Of another tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    tokenizer = train_tokenizer(["It runs. It waits again and again.\n\nA step, a river."] * 3, 300)
    new_llama(tokenizer, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(sft, tmp_path_factory) -> str:
    return save_judge(tmp_path_factory.mktemp("judge"), sft)


@pytest.fixture(scope="module")
def other_judge(other_sft, tmp_path_factory) -> str:
    return save_judge(tmp_path_factory.mktemp("other_judge"), other_sft)


def one_forward_a_step(path: str, text: str, layout: StepLayout = AT_ENDS) -> list[float]:
    """Each beginning of the solution read by itself, without padding, at its last token."""
    model, found, tokenizer = load_step_model([path], "fp32", CONFIG, "cpu").models[0], [], load_tokenizer(path)
    pieces = step_texts(text, StepRule())
    for count in range(1, len(pieces) + 1):
        so_far = pieces[:count]
        if layout.context_signs == "none":
            ids = encode_prompt(tokenizer, PROMPT) + tokenizer("".join(so_far), add_special_tokens=False).input_ids
        else:
            first, *others = (piece.strip() for piece in so_far)
            talk = [{"role": "user", "content": f"{PROMPT[0]['content']} {first}"}]
            for other in others:
                talk += [{"role": "assistant", "content": "+"}, {"role": "user", "content": other}]
            written = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(written, add_special_tokens=False).input_ids
        with torch.no_grad():
            found.append(model(input_ids=torch.tensor([ids])).logits.item())
    return found


def rollouts(sft: Path, texts: list[str], ended: list[bool]) -> Responses:
    tokenizer = load_tokenizer(str(sft))
    rows = [encode(tokenizer, PROMPT, text, 512) for text in texts]
    ids = [row.response_ids if end else row.response_ids[:-1] for row, end in zip(rows, ended)]
    return Responses([PROMPT] * len(texts), texts, [row.prompt_ids for row in rows], ids, ended)


def test_one_forward_gives_what_one_for_each_step_gives(judge):
    model = load_step_model([judge], "fp32", CONFIG, "cpu")
    pieces = [step_texts(text, model.rule) for text in TEXTS]
    found = model([PROMPT] * len(TEXTS), pieces)
    assert [len(row) for row in found] == [3, 12, 1, 1, 0]
    for text, row in zip(TEXTS, found):
        assert row == pytest.approx(one_forward_a_step(judge, text), abs=1e-5)
    assert np.std([value for row in found for value in row]) > 0.1
    # Neither batch nor order nor what stands beside it matters.
    turned = model([PROMPT] * len(TEXTS), pieces[::-1])[::-1]
    alone = [model([PROMPT], [row])[0] for row in pieces]
    for one, other, third in zip(found, turned, alone):
        assert one == pytest.approx(other, abs=1e-5) and one == pytest.approx(third, abs=1e-5)
    assert model([], []) == []


def test_signs_in_the_context_are_plus_whatever_the_model_was_taught_with(sft, tmp_path):
    judge = save_judge(tmp_path / "judge", sft, context_signs="true")
    model = load_step_model([judge], "fp32", CONFIG, "cpu")
    assert model.layout.context_signs == "plus"
    (found,) = model([PROMPT], [step_texts(TEXTS[0], model.rule)])
    assert found == pytest.approx(one_forward_a_step(judge, TEXTS[0], model.layout), abs=1e-5)


@pytest.mark.parametrize("ended", [[True] * 5, [True, False, True, False, True]])
def test_the_same_tokenizers_ids_and_their_text_are_judged_alike(sft, judge, ended):
    responses = rollouts(sft, TEXTS, ended)
    batch = responses.padded(load_tokenizer(str(sft)).pad_token_id, "cpu")
    members = load_members([judge], "fp32", CONFIG, load_tokenizer(str(sft)))
    source = source_of(members, choose_segmenter(members.each, members.paths, members.tokenizer))
    assert isinstance(source, StepSource) and source.reads_ids
    with torch.no_grad():
        scores = source(responses, batch)
        source.reads_ids = False
        by_text = source(responses, batch)
    assert scores.segments.counts.tolist() == [3, 12, 1, 1, 0]
    torch.testing.assert_close(scores.values, by_text.values, atol=1e-5, rtol=0)
    found = read_segments(scores.values, scores.segments).values
    for row, text in enumerate(TEXTS):
        count = int(scores.segments.counts[row])
        assert found[row, :count].tolist() == pytest.approx(one_forward_a_step(judge, text), abs=1e-5)
    # Segments are those of the segmenter, and no number stands anywhere else.
    own = choose_segmenter(members.each, members.paths, members.tokenizer)
    cut = own(torch.zeros(batch.response_mask.shape), batch.response_mask, batch.response_ids, torch.tensor(ended))
    assert all(torch.equal(one, other) for one, other in zip(cut, scores.segments))
    assert not scores.values[~scores.segments.ends].any()


def test_another_tokenizers_judge_is_given_text(sft, other_judge):
    tokenizer = load_tokenizer(str(sft))
    responses = rollouts(sft, TEXTS, [True] * 5)
    batch = responses.padded(tokenizer.pad_token_id, "cpu")
    members = load_members([other_judge], "fp32", CONFIG, tokenizer)
    assert len(members.tokenizer) != len(tokenizer)
    source = source_of(members, choose_segmenter(members.each, members.paths, tokenizer), written_by=tokenizer)
    with torch.no_grad():
        scores = source(responses, batch)
    for row, text in enumerate(TEXTS):
        at = scores.segments.ends[row]
        assert scores.values[row, at].tolist() == pytest.approx(one_forward_a_step(other_judge, text), abs=1e-5)
        lengths = [len(tokenizer(text[:end], add_special_tokens=False).input_ids) for end in ends_of(text)]
        assert (at.nonzero().squeeze(1) + 1).tolist() == lengths


def ends_of(text: str) -> list[int]:
    return [len("".join(step_texts(text, StepRule())[: n + 1])) for n in range(len(step_texts(text, StepRule())))]


def test_several_judges_are_one(sft, judge, tmp_path):
    second = save_judge(tmp_path / "second", sft, seed=2)
    both = load_step_model([judge, second], "fp32", CONFIG, "cpu", how="min")
    pieces = [step_texts(TEXTS[0], both.rule)]
    each = [load_step_model([path], "fp32", CONFIG, "cpu")([PROMPT], pieces)[0] for path in (judge, second)]
    assert both([PROMPT], pieces)[0] == pytest.approx(np.minimum(*each).tolist(), abs=1e-5)


def test_a_stored_pattern_is_run_where_it_is_asked_for(sft, tmp_path):
    judge = save_judge(tmp_path / "judge", sft, step_pattern=r"\. ")
    members = load_members([judge], "fp32", CONFIG)
    with pytest.raises(UserError, match="not run because a model names it"):
        step_model_of(members)
    asked = choose_segmenter(members.each, members.paths, members.tokenizer, steps=ReadConfig(step_pattern=r"\. "))
    source = source_of(members, asked)
    assert source.rule == source.model.rule == StepRule(pattern=r"\. ")


def test_what_is_no_judge_or_cannot_be_judged(sft, judge, tmp_path):
    rewards = save_judge(tmp_path / "rm", sft, scores=None, entropy_threshold=1.5, segmenter=None)
    with pytest.raises(UserError, match="gives rewards, and does not judge steps"):
        load_step_model([rewards], "fp32", CONFIG, "cpu")
    with pytest.raises(UserError, match="some judge steps"):
        load_members([judge, rewards], "fp32", CONFIG)
    members = load_members([judge], "fp32", CONFIG)
    with pytest.raises(UserError, match="judges the steps of a response, and nothing else"):
        source_of(members, Segmenter(1000.0))
    with pytest.raises(UserError, match="`read_at` last_token has no effect"):
        source_of(members, Segmenter(1.75, "step", rule=StepRule()), read_at="last_token")
    short = step_model_of(members, max_length=24)
    assert short.encode(PROMPT, ["one"]).read_at
    with pytest.raises(BadRow, match="the solution has .* tokens, and a sequence at most 24"):
        short.encode(PROMPT, step_texts(TEXTS[1], StepRule()))
    source = StepSource(short, StepRule(), load_tokenizer(judge))
    source.reads_ids = False
    responses = rollouts(sft, TEXTS, [True] * 5)
    with pytest.raises(UserError, match="steps of the response 'It runs.*cannot be judged"):
        source(responses, responses.padded(0, "cpu"))


def test_options_of_paying_steps(judge):
    members = load_members([judge], "fp32", CONFIG)
    segmenter = choose_segmenter(members.each, members.paths, members.tokenizer, steps=ReadConfig())

    def dense(**options) -> DenseReward:
        config = PPOConfig(model="m", reward_model=[judge], data=["d"], output_dir="o", **options)
        return step_reward_of(config, members, segmenter)

    assert dense() == DenseReward("end", None, "min", step_reward="difference")
    assert dense(credit="min", assignment="even") == DenseReward("even", None, "min", step_reward="centred", credit="min")
    assert dense(step_reward="prob", assignment="mean_last").step_reward == "prob"
    for wrong in ({"assignment": "difference_end"}, {"normalizer": "scalar"}, {"credit": "min", "assignment": "mean_last"}):
        with pytest.raises(UserError, match="`(assignment|normalizer|credit)`"):
            dense(**wrong)
