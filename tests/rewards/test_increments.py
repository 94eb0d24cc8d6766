"""Sources that pay every token what it adds: implicit rewards by published vectors, prefixes of a reward model one by one."""

import pytest
import tiny_models
import torch
from reward_folders import PROMPTS, TEXTS, save_reward_model
from tiny_models import random_rows
from transformers import AutoModelForSequenceClassification

from denserl.data.chat import encode_prompt, encode_response
from denserl.data.responses import Responses
from denserl.models.reward_models import load_reward_model
from denserl.rewards.sources.base import increments, read_segments
from denserl.rewards.sources.implicit import ImplicitSource
from denserl.rewards.sources.reading import after_the_turn
from denserl.rewards.sources.reward_model import Moments, PrefixDifferences, RewardModelSource
from denserl.segmentation import Segmenter, segments_from_starts
from denserl.steps import StepRule

TOKENIZER = tiny_models.tiny_tokenizer()
PHI, REF = [-1.2, -0.3, -2.0, -0.5, -0.9, -0.1], [-1.5, -0.4, -1.0, -0.6, -1.4, -0.1]


def implicit(phi: list[list[float]], ref: list[list[float]], ended: list[bool], beta: float = 0.05):
    """The scores of responses whose log-probabilities are given."""
    lengths = [len(row) for row in phi]
    record = Responses([[]] * len(phi), [""] * len(phi), [[5, 6]] * len(phi), random_rows(lengths), ended)
    batch = record.padded(0, "cpu")

    def given(rows):
        # What stands off the mask has no meaning.
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=9.0)
        return lambda found: padded

    return ImplicitSource(given(phi), given(ref), beta)(record, batch), batch.response_mask


def test_implicit_rewards_by_hand():
    """0.05 times the log-ratios; segments of two, three and one token."""
    scores, mask = implicit([PHI], [REF], [False])
    assert scores.values[0].tolist() == pytest.approx([0.015, 0.005, -0.05, 0.005, 0.025, 0.0], abs=1e-6)
    starts = torch.tensor([[True, False, True, False, False, True]])
    found = read_segments(scores.values, segments_from_starts(starts, mask.clone()), scores.read).values[0]
    assert found.tolist() == pytest.approx([0.02, -0.02, 0.0], abs=1e-6)
    assert found.sum().sigmoid().item() == pytest.approx(0.5, abs=1e-6)
    assert -found.sum().sigmoid().log().item() == pytest.approx(0.69314718, abs=1e-6)


def thirds(tokens, entropies):
    return range(0, len(tokens), 3)


@pytest.mark.parametrize(
    "segmenter",
    [
        Segmenter(0.0),
        Segmenter(1.0),
        Segmenter(1000.0),
        Segmenter(1.0, "thirds", thirds, lambda ids: [str(i) for i in ids]),
        Segmenter(1.0, "step", rule=StepRule((" ",), most=4), decode=lambda ids: "word " * len(ids)),
    ],
    ids=["tokens", "peaks", "whole", "function", "steps"],
)
def test_segments_add_up_to_the_response_however_it_is_cut(segmenter):
    """The end of turn, which lies in no segment below the bandit level, is paid with the token before it."""
    phi, ref = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(3)).tolist()
    phi, ref = ([rows[0], rows[1][:5], rows[2][:1], rows[3][:7]] for rows in (phi, ref))
    ended = [True, False, True, True]
    scores, mask = implicit(phi, ref, ended)
    entropy = torch.rand(mask.shape, generator=torch.Generator().manual_seed(4)) * 2
    segments = segmenter(entropy, mask, torch.zeros_like(mask, dtype=torch.long), torch.tensor(ended))
    found = read_segments(scores.values, segments, scores.read).values.sum(1)
    wholes = [0.05 * (sum(p) - sum(r)) for p, r in zip(phi, ref, strict=True)]
    assert found.tolist() == pytest.approx(wholes, abs=1e-6)


def test_tokens_without_text_earn_nothing_in_steps():
    """Token 0 is a special one, behind the last step; a response that says nothing has no step. Whole responses have all."""
    ids, ended = torch.tensor([[5, 0, 9], [0, 9, 0]]), torch.tensor([True, True])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    scores = increments(torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 0.0]]), mask, ended.tolist())
    steps = Segmenter(1.0, "step", rule=StepRule(), decode=lambda some: "".join("so " for i in some if i))
    for segmenter, expected in ((steps, [1.0, 0.0]), (Segmenter(1000.0), [7.0, 3.0])):
        segments = segmenter(torch.zeros(2, 3), mask, ids, ended)
        assert read_segments(scores.values, segments, scores.read).values.sum(1).tolist() == expected


def test_the_end_of_turn_is_paid_with_the_token_before_it():
    mask = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, False, False]])
    values = torch.tensor([[1.0, 2.0, 4.0, 9.0], [3.0, 9.0, 9.0, 9.0], [1.0, 5.0, 9.0, 9.0]])
    found = increments(values, mask, [True, True, False])
    assert found.values.tolist() == [[1, 6, 0, 0], [3, 0, 0, 0], [1, 5, 0, 0]] and found.segments is None


def test_a_model_beside_itself_is_worth_nothing():
    scores, _ = implicit([PHI], [PHI], [True])
    assert scores.values.count_nonzero() == 0


# Differences of prefixes.


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    root = tmp_path_factory.mktemp("classifiers")
    sft = tiny_models.save_language_model(root / "sft")
    folders = [save_reward_model(root / f"rm{seed}", sft, seed) for seed in (1, 2)]
    return folders, [load_reward_model(folder, "fp32") for folder in folders]


def conversation(ended: list[bool]) -> Responses:
    prompt_ids = [encode_prompt(TOKENIZER, prompt) for prompt in PROMPTS]
    ids = [encode_response(TOKENIZER, *row) for row in zip(PROMPTS, TEXTS, prompt_ids, strict=True)]
    ids = [row if done else row[:-1] for row, done in zip(ids, ended, strict=True)]
    return Responses(PROMPTS, TEXTS, prompt_ids, ids, ended)


@pytest.mark.parametrize("closing", [None, after_the_turn(TOKENIZER)], ids=["end of turn", "last token"])
def test_each_token_is_paid_what_it_changes_in_the_score_so_far(closing, classifiers):
    """Against the stock class, one forward for each prefix; where the template writes on after the turn, to its last token."""
    (folder, _), (model, _) = classifiers
    responses = conversation([True, False, True])
    batch = responses.padded(TOKENIZER.pad_token_id, "cpu")
    source = PrefixDifferences(RewardModelSource([model], closing=closing, pad_id=TOKENIZER.pad_token_id))
    stock = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = source(responses, batch)
    for row, (prompt, ids, ended) in enumerate(zip(responses.prompt_ids, responses.response_ids, responses.ended, strict=True)):
        prefixes = [[*prompt, *ids[:n]] for n in range(len(ids) + 1)]
        prefixes[-1] += closing or [] if ended else []
        with torch.no_grad():
            scores = [stock(input_ids=torch.tensor([prefix])).logits.item() for prefix in prefixes]
        expected = [after - before for before, after in zip(scores, scores[1:])]
        if ended:
            expected[-2:] = [expected[-2] + expected[-1], 0.0]
        assert found.values[row, : len(ids)].tolist() == pytest.approx(expected, abs=2e-4)
        assert found.values[row].sum().item() == pytest.approx(scores[-1] - scores[0], abs=2e-4)
        assert max(map(abs, expected)) > 0.1


def test_several_models_are_combined_before_prefixes_are_compared(classifiers):
    _, models = classifiers
    responses, moments = conversation([True, False, True]), [Moments(0.5, 2.0), Moments(-1.0, 0.25)]
    batch = responses.padded(TOKENIZER.pad_token_id, "cpu")
    ensemble = RewardModelSource(models, moments, how="min", pad_id=TOKENIZER.pad_token_id)
    starts = [ids[:-1] for ids in responses.prompt_ids], [ids[-1:] for ids in responses.prompt_ids]
    prompts = Responses(responses.prompts, responses.texts, *starts, [False] * 3)
    with torch.no_grad():
        found = PrefixDifferences(ensemble)(responses, batch).values.sum(1)
        scores = ensemble(responses, batch).values
        before = ensemble(prompts, prompts.padded(0, "cpu")).values[:, 0]
    at_end = scores.gather(1, batch.response_mask.sum(1, keepdim=True) - 1)[:, 0]
    assert found.tolist() == pytest.approx((at_end - before).tolist(), abs=2e-4)
