"""Sources behind one contract: what they say, how it is read, and a function's numbers against a loop over characters."""

import math

import numpy as np
import pytest
import reference_loops as loops
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from reward_folders import PROMPTS, TEXTS, save_reward_model, stock_score
from tiny_models import random_rows

from denserl.data.chat import encode_prompt, encode_response
from denserl.data.responses import Responses
from denserl.errors import UserError
from denserl.models.reward_models import load_reward_model
from denserl.rewards.aggregation import AGGREGATIONS
from denserl.rewards.sources.base import ResponseScorer, Scores, per_token, read_segments
from denserl.rewards.sources.function import FunctionSource
from denserl.rewards.sources.reading import after_the_turn
from denserl.rewards.sources.reward_model import Moments, RewardModelSource
from denserl.rewards.sources.texts import SHOWN
from denserl.segmentation import Segmenter
from denserl.trainer.ppo_rewards import join_scores

TOKENIZER = tiny_models.tiny_tokenizer()


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def record(prompts, responses, ended=None, texts=None) -> Responses:
    """A record of token ids; messages are no matter."""
    count = len(responses)
    return Responses([[]] * count, texts or [""] * count, prompts, responses, [True] * count if ended is None else ended)


# How scores are read.


class Given:
    """A source that says what it is told to."""

    def __init__(self, *scores):
        self.scores = Scores(*scores)

    def __call__(self, responses, batch):
        return self.scores


def test_one_number_a_response_is_one_segment_over_all_of_its_tokens():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    values, segments, read = per_token(Scores(torch.tensor([1.5, -2.0, 0.25])), mask)
    assert values.shape == mask.shape and values.dtype == torch.float32
    assert segments.ids.tolist() == [[0, 0, 0, 0], [0, -1, -1, -1], [0, 0, -1, -1]]
    assert read_segments(values, segments, read).values.tolist() == [[1.5], [-2.0], [0.25]]
    dense = Scores(torch.zeros(3, 4))
    assert per_token(dense, mask) is dense


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS))
def test_segments_are_read_at_their_ends_or_over_their_tokens(batch, threshold):
    rows = loops.segment(batch.entropy, batch.mask, threshold, batch.has_end_of_turn)
    segments, scores = loops.to_segments(rows, batch.mask.shape[1]), batch.normal()
    of = {"last": lambda values: values[-1], "sum": math.fsum}
    for read, value in of.items():
        found = read_segments(scores, segments, read)
        assert found.segments is segments
        for b, row in enumerate(rows):
            expected = [value([scores[b, t].item() for t in tokens]) for tokens in row]
            assert found.values[b].tolist() == pytest.approx(expected + [0.0] * (found.values.shape[1] - len(row)), abs=1e-5)


PROMPT_IDS, RESPONSE_IDS = random_rows([5, 2, 7], seed=1), random_rows([4, 9, 1], seed=2)


@pytest.mark.parametrize("agg_func", ["avg", "min", "last", "sum", "logsumexp"])
@pytest.mark.parametrize("threshold", [0.0, 1.75, 1000.0])
def test_one_number_a_response_is_its_score_at_every_level_however_it_is_aggregated(threshold, agg_func):
    responses = record(PROMPT_IDS, RESPONSE_IDS)
    scorer = ResponseScorer(Given(torch.tensor([0.5, -1.0, 3.0])), Segmenter(threshold), None, agg_func)
    assert scorer(responses, responses.padded(0, "cpu")).tolist() == [0.5, -1.0, 3.0]


@pytest.mark.parametrize("agg_func", AGGREGATIONS)
@pytest.mark.parametrize("read", ["last", "sum"])
def test_a_sources_own_segments_are_read_whatever_the_segmenter_says(read, agg_func):
    rows = [[[0], [1, 2]], [[0, 1, 2], [3, 4], [5, 6, 7]], [[0]]]
    values = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    responses = record(PROMPT_IDS, RESPONSE_IDS)
    scorer = ResponseScorer(Given(values, loops.to_segments(rows, 9), read), Segmenter(0.0), None, agg_func)
    each = [
        [(math.fsum if read == "sum" else max)([values[b, t].item() for t in (tokens if read == "sum" else tokens[-1:])])
         for tokens in row]
        for b, row in enumerate(rows)
    ]  # fmt: skip
    expected = [loops.aggregate(scores, agg_func) for scores in each]
    assert scorer(responses, responses.padded(0, "cpu")).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def members() -> list:
    return [tiny_models.classifier("llama", seed) for seed in range(3)]


def alone(model, prompt: list[int], response: list[int]) -> list[float]:
    """The head's output at each response token of one unpadded row, by the stock class's own parts."""
    with torch.no_grad():
        hidden = model.model(torch.tensor([prompt + response])).last_hidden_state[0]
    return (hidden @ model.score.weight[0])[len(prompt) :].tolist()


@pytest.mark.parametrize("agg_func", ["avg", "sum", "last"])
@pytest.mark.parametrize("threshold", [0.0, 1.0, 1000.0])
def test_a_response_scores_as_its_segments_are_aggregated_at_every_level(threshold, agg_func, members):
    entropy = torch.rand(3, 9, generator=torch.Generator().manual_seed(3)) * 2
    asked = []

    def entropies(batch):
        asked.append(batch)
        return entropy

    responses = record(PROMPT_IDS, RESPONSE_IDS, [False, True, False])
    batch = responses.padded(0, "cpu")
    scorer = ResponseScorer(RewardModelSource(members[:1]), Segmenter(threshold), entropies, agg_func)
    rows = loops.segment(entropy, batch.response_mask, threshold, torch.tensor(responses.ended))
    scores = [alone(members[0], *row) for row in zip(PROMPT_IDS, RESPONSE_IDS, strict=True)]
    expected = [loops.aggregate([scores[b][tokens[-1]] for tokens in row], agg_func) for b, row in enumerate(rows)]
    assert scorer(responses, batch).tolist() == pytest.approx(expected, abs=1e-3)
    # The bandit level asks for no entropies.
    assert len(asked) == (threshold < 1000)


def test_a_response_scores_the_mean_of_its_segments(members):
    """Response 1 has 9 tokens, the last its end of turn: cut before tokens 3 and 4, segments end at tokens 2, 3 and 7."""
    entropy = torch.zeros(3, 9)
    entropy[1, 3:5] = 2.0
    scorer = ResponseScorer(RewardModelSource(members[:1]), Segmenter(1.0), lambda batch: entropy)
    responses = record(PROMPT_IDS, RESPONSE_IDS, [False, True, False])
    found = scorer(responses, responses.padded(0, "cpu"))
    token = [alone(members[0], *row) for row in zip(PROMPT_IDS, RESPONSE_IDS, strict=True)]
    expected = [token[0][3], (token[1][2] + token[1][3] + token[1][7]) / 3, token[2][0]]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_users_way_of_cutting_is_given_the_tokens_of_the_response(members):
    """Before every even token id."""

    def even(tokens, entropies):
        return [number for number, text in enumerate(tokens) if int(text) % 2 == 0]

    segmenter = Segmenter(1.0, "own", even, lambda ids: list(map(str, ids)))
    scorer = ResponseScorer(RewardModelSource(members[:1]), segmenter, lambda batch: torch.zeros(3, 9))
    responses = record(PROMPT_IDS, RESPONSE_IDS)
    contents = [list(range(max(len(ids) - 1, 1))) for ids in RESPONSE_IDS]
    openings = [[t for t in tokens if ids[t] % 2 == 0] for tokens, ids in zip(contents, RESPONSE_IDS, strict=True)]
    expected = []
    for prompt, ids, row in zip(PROMPT_IDS, RESPONSE_IDS, loops.segment_at(openings, contents), strict=True):
        scores = alone(members[0], prompt, ids)
        expected.append(sum(scores[tokens[-1]] for tokens in row) / len(row))
    assert scorer(responses, responses.padded(0, "cpu")).tolist() == pytest.approx(expected, abs=1e-4)


# A reward model that is read at what the template writes after the end of turn.


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return tiny_models.save_language_model(tmp_path_factory.mktemp("models") / "sft")


@pytest.fixture(scope="module")
def classifiers(sft):
    """Two stock classifiers and where they are saved."""
    folders = [save_reward_model(sft.parent / f"rm{seed}", sft, seed) for seed in (1, 2)]
    return folders, [load_reward_model(folder, "fp32") for folder in folders]


def conversation(ended) -> Responses:
    """Three answers as ids; those that have not ended lack their end of turn."""
    prompts = [encode_prompt(TOKENIZER, prompt) for prompt in PROMPTS]
    ids = [encode_response(TOKENIZER, prompt, text) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    return Responses(PROMPTS, TEXTS, prompts, [row if done else row[:-1] for row, done in zip(ids, ended, strict=True)], ended)


def closing_source(models, **kw) -> RewardModelSource:
    closing = after_the_turn(TOKENIZER)
    assert TOKENIZER.decode(closing) == "\n"
    return RewardModelSource(models, closing=closing, pad_id=TOKENIZER.pad_token_id, **kw)


def said(source, responses: Responses) -> list[float]:
    with torch.no_grad():
        return source(responses, responses.padded(TOKENIZER.pad_token_id, "cpu")).values.tolist()


def test_with_closing_an_ended_response_scores_what_the_stock_class_says_of_the_whole_rendering(classifiers):
    (folder, _), models = classifiers
    responses = conversation([True, False, True])
    expected = []
    for prompt, text, prompt_ids, ids, ended in zip(*responses[:5], strict=True):
        rendering = TOKENIZER.apply_chat_template([*prompt, {"role": "assistant", "content": text}], tokenize=False)
        whole = TOKENIZER(rendering, add_special_tokens=False).input_ids
        assert whole[: len(prompt_ids + ids)] == prompt_ids + ids
        # One that was cut off is not closed for it: its score is that at its last token.
        expected.append(stock_score(folder, whole if ended else prompt_ids + ids))
    found = said(closing_source(models[:1]), responses)
    assert found == pytest.approx(expected, abs=1e-4) and np.std(expected) > 0.01
    # Neither is what is read at the end of turn.
    at_end = [stock_score(folder, prompt_ids + ids) for prompt_ids, ids in zip(responses.prompt_ids, responses.response_ids)]
    assert abs(found[0] - at_end[0]) > 1e-3 and abs(found[2] - at_end[2]) > 1e-3


def test_with_closing_a_score_is_that_of_its_response_in_any_batch(classifiers):
    _, models = classifiers
    responses = conversation([True, False, True])
    together = said(closing_source(models[:1]), responses)
    each = [said(closing_source(models[:1]), responses.rows([row]))[0] for row in range(3)]
    assert together == pytest.approx(each, abs=1e-5)
    assert said(closing_source(models[:1]), responses.rows([2, 0])) == pytest.approx([together[2], together[0]], abs=1e-5)
    # Rows that share a prompt, one of them ended and one not.
    twice = Responses(*(column * 2 for column in responses))._replace(ended=[True, False, True, False, True, True])
    found = said(closing_source(models[:1]), twice.rows([0, 3, 5]))
    alone = [said(closing_source(models[:1]), twice.rows([row]))[0] for row in (0, 3, 5)]
    assert found == pytest.approx(alone, abs=1e-5) and abs(found[0] - found[1]) > 1e-3


def test_with_closing_several_models_are_standardised_and_combined(classifiers):
    _, models = classifiers
    moments, responses = [Moments(0.5, 2.0), Moments(-1.0, 0.25)], conversation([True, False, True])
    each = np.array([said(closing_source([model]), responses) for model in models])
    standardised = (each - [[0.5], [-1.0]]) / [[2.0], [0.25]]
    assert said(closing_source(models, moments=moments, how="min"), responses) == pytest.approx(standardised.min(0), abs=1e-4)


# A user's function.


def rollouts(texts: list[str], ended: list[bool] | None = None) -> Responses:
    """Responses as their texts are tokenised, closed where they ended."""
    ended = [True] * len(texts) if ended is None else ended
    ids = [TOKENIZER(text, add_special_tokens=False).input_ids for text in texts]
    ids = [[*row, TOKENIZER.eos_token_id] if done else row for row, done in zip(ids, ended, strict=True)]
    prompts = [[{"role": "user", "content": f"prompt {i}"}] for i in range(len(texts))]
    return Responses(prompts, texts, [[5, 6]] * len(texts), ids, ended)


def source_of_values(*values) -> FunctionSource:
    """A function that returns given values."""
    return FunctionSource(lambda prompts, texts: list(values), "mine:reward", "reward_function", decode)


def called(source, responses: Responses) -> Scores:
    return source(responses, responses.padded(TOKENIZER.pad_token_id, "cpu"))


def holder(ids: list[int], text: str, character: int) -> int:
    """The number of the token that holds the last byte of a character: a token's name has one letter for each byte."""
    wanted, read = len(text[: character + 1].encode()), 0
    for token, i in enumerate(ids):
        read += len(TOKENIZER.convert_ids_to_tokens(i))
        if wanted <= read:
            return token
    raise AssertionError("past the text")


def by_loop(ids: list[int], text: str, parts: list[tuple[int, float]]):
    """The tokens of each segment, and the sum of the numbers of the parts that end in it."""
    rows, sums, first = [], [], 0
    for end, number in parts:
        last = 1 if end == 0 else max(1, holder(ids, text, end - 1) + 1)
        if last > first:
            rows.append(list(range(first, last)))
            sums.append(0.0)
        sums[-1] += number
        first = last
    return rows, sums


def test_one_number_each():
    responses = rollouts(["The river runs.", "Rain.", ""])
    scores = called(source_of_values(1, np.float32(0.5), -3.0), responses)
    assert scores.values.tolist() == [1.0, 0.5, -3.0] and scores.segments is None
    prompts_seen = []
    source = FunctionSource(lambda p, t: prompts_seen.append((p, t)) or [1.0] * 3, "f", "reward_function", decode)
    called(source, responses)
    assert prompts_seen == [(list(responses.prompts), list(responses.texts))]


WORDS = st.text(st.sampled_from("ab rivetTkn.,\n"), max_size=30)


@st.composite
def texts_with_parts(draw):
    text = draw(st.sampled_from(["The kettle hums in the small kitchen.", "A quiet river runs under the stone bridge"]) | WORDS)
    ends = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return text, [(end, draw(st.floats(-5, 5, width=32))) for end in ends]


@given(st.lists(texts_with_parts(), min_size=1, max_size=4), st.data())
def test_parts_are_segments_of_the_tokens_that_hold_their_last_characters(rows, data):
    ended = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    # Without any token there is nothing to score.
    ended = [done or not text for done, (text, _) in zip(ended, rows, strict=True)]
    texts, parts = map(list, zip(*rows, strict=True))
    responses = rollouts(texts, ended)
    scores = called(source_of_values(*parts), responses)
    expected = [by_loop(*row) for row in zip(responses.response_ids, texts, parts, strict=True)]
    width = max(map(len, responses.response_ids))
    segments = loops.to_segments([row for row, _ in expected], width)
    for name, found, want in zip(segments._fields, scores.segments, segments, strict=True):
        assert torch.equal(found, want), name
    sums = read_segments(*scores).values
    for b, (_, own) in enumerate(expected):
        assert sums[b].tolist() == pytest.approx(own + [0.0] * (sums.shape[1] - len(own)), abs=1e-5)
    source = source_of_values(*parts)
    assert source.totals(responses) == pytest.approx([sum(number for _, number in own) for own in parts])


def test_parts_by_hand():
    """`The river` and ` runs.`, of which `The` is one token; the second part ends with the text, the end of turn after it."""
    responses = rollouts(["The river runs."])
    pieces = [TOKENIZER.decode([i]) for i in responses.response_ids[0]]
    assert pieces == ["The", " river", " r", "un", "s", ".", "<|im_end|>"]
    scores = called(source_of_values([(9, 1.5), (15, -0.5)]), responses)
    assert scores.segments.ids.tolist() == [[0, 0, 1, 1, 1, 1, -1]]
    assert read_segments(*scores).values.tolist() == [[1.5, -0.5]]
    # Text after the last part lies in no segment.
    scores = called(source_of_values([(9, 1.5)]), responses)
    assert scores.segments.ids.tolist() == [[0, 0, -1, -1, -1, -1, -1]]
    # A part that ends within a token ends with that token.
    scores = called(source_of_values([(5, 1.5), (10, 2.0)]), responses)
    assert scores.segments.ids.tolist() == [[0, 0, 1, -1, -1, -1, -1]]


def test_parts_within_one_token_are_added_up():
    """`T`, `Th` and `The` are within the token `The`; ` river` is the next part's."""
    responses = rollouts(["The river runs."])
    scores = called(source_of_values([(1, 1.0), (2, 0.25), (3, 0.5), (9, -4.0)]), responses)
    assert scores.segments.ids.tolist() == [[0, 1, -1, -1, -1, -1, -1]] and scores.segments.counts.tolist() == [2]
    assert read_segments(*scores).values.tolist() == [[1.75, -4.0]]
    # At the start of the text: of the first token, for there is none before it.
    scores = called(source_of_values([(0, 7.0), (3, 1.0)]), responses)
    assert read_segments(*scores).values.tolist() == [[8.0]] and scores.segments.lengths.tolist() == [[1]]


def test_no_parts_are_no_reward():
    responses = rollouts(["The river runs.", "Rain."])
    scores = called(source_of_values([], [(5, 2.0)]), responses)
    assert scores.segments.counts.tolist() == [0, 1] and read_segments(*scores).values.tolist() == [[0.0], [2.0]]
    scores = called(source_of_values([], []), responses)
    assert scores.segments.counts.tolist() == [0, 0] and read_segments(*scores).values.shape == (2, 0)


def test_numbers_and_parts_side_by_side():
    responses = rollouts(["The river runs.", "Rain.", "The boats wait"])
    scores = called(source_of_values([(3, 1.0), (9, 2.0)], 5.0, (((14), -1.0),)), responses)
    found = read_segments(*scores)
    assert found.values.tolist() == [[1.0, 2.0], [5.0, 0.0], [-1.0, 0.0]]
    assert found.segments.counts.tolist() == [2, 1, 1]
    assert source_of_values([(3, 1.0), (9, 2.0)], 5.0, [(14, -1.0)]).totals(responses) == [3.0, 5.0, -1.0]


def test_a_number_is_read_alike_whatever_is_said_of_others():
    responses = rollouts(["The river runs.", "Rain."])
    mask = responses.padded(TOKENIZER.pad_token_id, "cpu").response_mask
    alone = per_token(called(source_of_values(1.0, 5.0), responses), mask)
    together = per_token(called(source_of_values([(9, 1.0)], 5.0), responses), mask)
    assert together.segments.ids[1].tolist() == alone.segments.ids[1].tolist()


def test_what_is_said_does_not_depend_on_which_responses_are_scored_together():
    """In PPO a micro-batch of numbers after one of parts: 5.0 becomes 5.0 for each of its tokens."""
    responses = rollouts(["The river runs.", "Rain."])

    def function(prompts, texts):
        return [[(9, 1.0)] if "river" in text else 5.0 for text in texts]

    source = FunctionSource(function, "f", "reward_function", decode)
    each = []
    for row in range(2):
        part = responses.rows([row])
        batch = part.padded(TOKENIZER.pad_token_id, "cpu")
        each.append(per_token(source(part, batch), batch.response_mask))
    assert read_segments(*join_scores(each)).values.tolist() == [[1.0], [5.0]]
    assert read_segments(*join_scores(each[::-1])).values.tolist() == [[5.0], [1.0]]


def test_a_part_ends_with_the_token_that_completes_its_last_character():
    text = "\u00e9\U0001f600x \u00c4pfel"
    responses = rollouts([text])
    for ends in ([1, 2, 3], [2, 4, len(text)], [1, 5]):
        parts = [(end, float(end)) for end in ends]
        rows, sums = by_loop(responses.response_ids[0], text, parts)
        scores = called(source_of_values(parts), responses)
        assert torch.equal(scores.segments.ids, loops.to_segments([rows], len(responses.response_ids[0])).ids)
        assert read_segments(*scores).values.tolist() == [sums]


def test_arrays_are_numbers_and_parts():
    responses = rollouts(["The river runs.", "Rain."])
    for values in (np.array([1.0, 2.0], dtype=np.float32), torch.tensor([1.0, 2.0]), np.array([1, 2]), (1.0, 2.0)):
        source = FunctionSource(lambda p, t, values=values: values, "f", "reward_function", decode)
        assert called(source, responses).values.tolist() == [1.0, 2.0]
    parts = [np.array([[3, 1.0], [9, 2.0]]), torch.tensor([[5.0, -1.0]])]
    scores = called(source_of_values(*parts), responses)
    assert read_segments(*scores).values.tolist() == [[1.0, 2.0], [-1.0, 0.0]]
    # (B, K, 2): as many parts of each.
    source = FunctionSource(lambda p, t: np.array([[[3, 1.0]], [[5, 2.0]]]), "f", "reward_function", decode)
    assert read_segments(*called(source, responses)).values.tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_count(count):
    with pytest.raises(UserError, match=f"^`reward_function` mine:reward returned {count} values for 2 responses") as error:
        called(source_of_values(*[1.0] * count), rollouts(["The river runs.", "Rain."]))
    assert error.value.one_rank


def test_an_exception_names_the_response_it_was_raised_for():
    def function(prompts, texts):
        return [1 / len(text) for text in texts]

    source = FunctionSource(function, "mine:reward", "reward_function", decode)
    shown = "^`reward_function` mine:reward raised ZeroDivisionError: .* for the response ''"
    with pytest.raises(UserError, match=shown) as error:
        called(source, rollouts(["The river runs.", "", "Rain."]))
    assert isinstance(error.value.__cause__, ZeroDivisionError) and error.value.one_rank
    long = "The river runs. " * 9

    def on_long(prompts, texts):
        if any(len(text) > SHOWN for text in texts):
            raise KeyError("river")
        return [0.0] * len(texts)

    with pytest.raises(UserError) as error:
        called(FunctionSource(on_long, "f", "reward_function", decode), rollouts(["Rain.", long]))
    assert f"raised KeyError: 'river' for the response {long[:SHOWN]!r}..." in error.value.found


def test_an_exception_that_no_response_alone_raises():
    def function(prompts, texts):
        if len(texts) > 1:
            raise RuntimeError("too many")
        return [0.0]

    with pytest.raises(UserError, match="raised RuntimeError: too many for 2 responses together"):
        called(FunctionSource(function, "f", "reward_function", decode), rollouts(["The river runs.", "Rain."]))


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), float("inf"), -np.inf, [(2, 1.0), (5, float("nan"))], np.array([[5, np.inf]])),
        # Infinite where rewards are fp32 (up to 3.4e38), the last one once its parts are added up.
        *(1e39, -1e300, [(2, 2e38), (5, 2e38)]),
    ],
)
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(UserError, match="^`reward_function` mine:reward returned .* for the response 'Rain.'") as error:
        called(source_of_values(1.0, value), rollouts(["The river runs.", "Rain."]))
    assert "finite" in error.value.fix


@pytest.mark.parametrize(
    "value", [10**400, [(float("inf"), 1.0)], [(3, 10**400)]], ids=["number", "end of a part", "number of a part"]
)
def test_numbers_that_no_float_holds_are_refused(value):
    with pytest.raises(UserError, match="^`reward_function` mine:reward returned .* for the response 'Rain.'"):
        called(source_of_values(1.0, value), rollouts(["The river runs.", "Rain."]))


@pytest.mark.parametrize(
    "ends", [[5, 3], [3, 5, 4], [16], [3, 99], [-1], [-2, 3]], ids=["back", "back later", "past", "far past", "before", "first"]
)
def test_ends_out_of_order_or_past_the_text_are_refused(ends):
    shown = f"returned parts that end at .{', '.join(map(str, ends))}. for the response 'The river runs.' of 15 characters"
    with pytest.raises(UserError, match=shown):
        called(source_of_values([(end, 1.0) for end in ends]), rollouts(["The river runs."]))


@pytest.mark.parametrize("value", [None, "high", [1.0, 2.0], [(1, 2, 3)], [("a", 1.0)], {"reward": 1}, np.zeros(2), [None]])
def test_what_is_neither_number_nor_parts_is_refused(value):
    with pytest.raises(UserError, match="^`reward_function` mine:reward returned .* for the response 'Rain.'") as error:
        called(source_of_values(1.0, value), rollouts(["The river runs.", "Rain."]))
    assert "a number, or (end, number) pairs" in error.value.fix


def test_a_function_that_returns_nothing():
    with pytest.raises(UserError, match="^`reward_function` f raised TypeError"):
        called(FunctionSource(lambda prompts, texts: None, "f", "reward_function", decode), rollouts(["Rain."]))


def test_a_function_by_name():
    responses = rollouts(["The river runs.", "Rain."])
    expected = tiny_models.letters(responses.prompts, responses.texts)
    for name in ("tiny_models:letters", "tiny_models:letters_as_array"):
        source = FunctionSource.named(name, "true_reward", decode)
        assert source.totals(responses) == pytest.approx(expected, rel=1e-6)
        assert called(source, responses).values.tolist() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(UserError, match="^`true_reward` tiny_models:unbounded returned inf"):
        FunctionSource.named("tiny_models:unbounded", "true_reward", decode).totals(responses)
    with pytest.raises(UserError, match="^`true_reward` tiny_models:gone: AttributeError"):
        FunctionSource.named("tiny_models:gone", "true_reward", decode)
