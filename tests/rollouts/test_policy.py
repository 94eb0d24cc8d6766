"""Sampling: where responses end, padding, and the distribution that is sampled from."""

import math
from copy import deepcopy

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_recorder import op_graph
from transformers import LlamaConfig

from denserl.models import recording
from denserl.models.decoding import Decoder
from denserl.models.loading import load_policy
from denserl.rollouts import policy as policy_sampling
from denserl.rollouts.base import Rollouts
from denserl.rollouts.policy import InverseCDF, Pace, PolicySampler, pick
from denserl.streams import Purpose, stream

PAD = 0
PROMPTS = tiny_models.random_rows([3, 7, 1, 5, 4], seed=4, vocabulary=300)
STOPS = [2, 9]


class Scripted:
    """A model that answers with given tokens, padded after the end token as `generate` does; notes what it was asked."""

    device = torch.device("cpu")

    def __init__(self, tokens: list[list[int]]):
        self.tokens, self.asked, self.generation_config = iter(tokens), [], None
        self.config = LlamaConfig()

    def modules(self):
        return []

    def generate(self, input_ids, attention_mask, **kw):
        self.asked.append((input_ids, attention_mask, kw))
        answers = [next(self.tokens) for _ in input_ids]
        return torch.cat([input_ids, torch.tensor(answers)], 1)


def sampler(model, stop_ids=STOPS, **kw):
    """Prompts -> Rollouts, prompt i with the stream of place i."""
    sample = PolicySampler(lambda: model, stop_ids, PAD, **{"max_new_tokens": 4, **kw})
    return lambda prompts: sample(prompts, [stream(0, Purpose.SAMPLING, i) for i in range(len(prompts))])


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=6), st.integers(1, 4))
def test_a_response_goes_up_to_its_first_end_token(answers, batch_size):
    prompts = [[5, i] for i in range(len(answers))]
    responses, ended = [], []
    for answer in answers:
        response = []
        for token in answer:
            response.append(token)
            if token in STOPS:
                break
        responses.append(response)
        ended.append(response[-1] in STOPS)
    assert sampler(Scripted(answers), batch_size=batch_size)(prompts) == Rollouts(prompts, responses, ended)


def test_no_prompts_give_no_responses():
    assert sampler(Scripted([]))([]) == Rollouts([], [], [])


def test_a_response_cut_off_keeps_its_own_last_token():
    assert sampler(Scripted([[5, 6, 7, 8]]))([[3]]) == Rollouts([[3]], [[5, 6, 7, 8]], [False])


def test_every_end_token_stops_and_is_kept():
    found = sampler(Scripted([[5, 9, PAD, PAD], [2, PAD, PAD, PAD], [5, 6, 7, 2]]))([[3], [3], [3]])
    assert found.responses == [[5, 9], [2], [5, 6, 7, 2]] and found.ended == [True, True, True]


def test_a_pad_token_that_was_sampled_is_no_end():
    assert sampler(Scripted([[5, PAD, 6, 7]]))([[3]]).responses == [[5, PAD, 6, 7]]


def test_prompts_are_padded_on_the_left_in_batches():
    model = Scripted([[2, 0, 0, 0]] * 3)
    sampler(model, batch_size=2)([[3, 4, 5], [6], [7]])
    (ids, mask, kw), (last_ids, _, _) = model.asked
    assert ids.tolist() == [[3, 4, 5], [PAD, PAD, 6]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert last_ids.tolist() == [[7]]
    assert kw["eos_token_id"] == STOPS and kw["max_new_tokens"] == 4


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return load_policy(str(tiny_models.save_language_model(tmp_path_factory.mktemp("policy"))), "fp32").eval()


def greedy(model, prompt: list[int], stops: list[int], longest: int) -> list[int]:
    """The most probable token again and again, each time on the whole unpadded row."""
    row = list(prompt)
    while len(row) < len(prompt) + longest and (len(row) == len(prompt) or row[-1] not in stops):
        with torch.no_grad():
            row.append(model(torch.tensor([row])).logits[0, -1].argmax().item())
    return row[len(prompt) :]


@pytest.mark.parametrize("how", [{"top_p": 1e-6}, {"temperature": 0.0}, {"temperature": 9e-5, "top_p": 0.5}])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_padding_does_not_change_what_is_most_probable(policy, batch_size, how):
    longest = 9
    free = [greedy(policy, prompt, [], longest) for prompt in PROMPTS]
    # End tokens that do come: the fourth of one response, the first of another.
    stops = [free[0][3], free[1][0]]
    found = sampler(policy, stops, max_new_tokens=longest, batch_size=batch_size, **how)(PROMPTS)
    assert found.responses == [greedy(policy, prompt, stops, longest) for prompt in PROMPTS]
    assert found.ended == [response[-1] in stops for response in found.responses]
    assert found.ended[:2] == [True, True]


def test_settings_of_the_model_do_not_bend_the_distribution(tmp_path):
    """A generation config may ship a repetition penalty (Qwen does); log-probabilities know nothing of one."""
    model = load_policy(str(tiny_models.save_language_model(tmp_path)), "fp32").eval()
    expected = [greedy(model, prompt, [], 9) for prompt in PROMPTS]
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.min_new_tokens = 5
    model.generation_config.no_repeat_ngram_size = 1
    assert sampler(model, [model.config.vocab_size - 1], max_new_tokens=9, top_p=1e-6)(PROMPTS).responses == expected
    # The model that is saved keeps its own settings.
    assert model.generation_config.repetition_penalty == 3.0


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_come_from_the_whole_tempered_distribution(policy, temperature):
    prompt, count = PROMPTS[1], 4000
    with torch.no_grad():
        logprobs = torch.log_softmax(policy(torch.tensor([prompt])).logits[0, -1].double() / temperature, -1)
    found = sampler(policy, max_new_tokens=1, temperature=temperature, batch_size=1000)([prompt] * count)
    tokens = torch.tensor(found.responses).squeeze(1)
    probabilities = logprobs.exp()
    mean, square = (probabilities * logprobs).sum(), (probabilities * logprobs**2).sum()
    error = ((square - mean**2) / count).sqrt()
    assert abs(logprobs[tokens].mean() - mean) < 4 * error
    # The default of `generate`, the 50 most probable alone, would miss the rest.
    rest = 1 - probabilities.topk(50).values.sum()
    outside = ~torch.isin(tokens, probabilities.topk(50).indices)
    assert rest > 0.2 and abs(outside.double().mean() - rest) < 4 * (rest * (1 - rest) / count).sqrt()


def test_a_response_depends_on_its_stream_alone(policy):
    sample = PolicySampler(lambda: policy, STOPS, PAD, max_new_tokens=9)
    streams = [stream(7, Purpose.SAMPLING, 0, i) for i in range(len(PROMPTS))]
    together = sample(PROMPTS, streams)
    torch.manual_seed(3)
    for order in ([4, 2, 0, 1, 3], [3], [1, 0]):
        some = sample([PROMPTS[i] for i in order], [streams[i] for i in order])
        assert some.responses == [together.responses[i] for i in order]
    assert sample(PROMPTS, [(8, 0, i) for i in range(len(PROMPTS))]).responses != together.responses
    assert len({tuple(response) for response in sample(PROMPTS[:1] * 5, streams).responses}) > 1


@given(st.integers(0, 2**32), st.integers(2, 12), st.sampled_from([1, 3, 4, 128]))
def test_a_token_is_the_first_whose_cumulative_probability_exceeds_the_number(seed, vocabulary, part):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_sampling, "PART", part)
        check_picks(torch.Generator().manual_seed(seed), vocabulary)


def check_picks(generator, vocabulary: int):
    scores = torch.randn(3, vocabulary, generator=generator)
    scores[:, 1] = -torch.inf  # as nucleus sampling leaves a token out
    numbers = torch.rand(3, 2, generator=generator, dtype=torch.float64)
    numbers[0, 1] = 0.0
    picked = InverseCDF(numbers, 5)(torch.zeros(3, 6), scores)
    for row in range(3):
        weights = [math.exp(x) for x in scores[row].tolist()]
        goal, total, token = numbers[row, 1].item() * sum(weights), 0.0, -1
        while token < 0 or total <= goal:
            token += 1
            total += weights[token]
        assert (picked[row] > -torch.inf).nonzero().flatten().tolist() == [token] and weights[token] > 0


def test_no_token_without_probability_is_drawn_at_the_ends():
    """The least and the greatest number, where the first and the last tokens, and whole parts, are left out."""
    scores = torch.full((2, 300), -torch.inf)
    scores[:, 130:132] = torch.tensor([0.3, 1.0])
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).nextafter(torch.tensor(0.5, dtype=torch.float64))
    assert pick(scores, ends).tolist() == [130, 131]
    assert pick(scores, torch.zeros(2, dtype=torch.float64)).tolist() == [130, 130]


PACES = [Pace(1, 1.0), Pace(2, 0.75), Pace(3, 1.0), Pace(100, 0.0)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def drawn(model, prompt: list[int], random, stops: list[int], longest: int) -> list[int]:
    """Tokens drawn one by one with a stream's numbers, each time on the whole unpadded row."""
    row, numbers = list(prompt), np.random.default_rng(random).random(longest)
    for number in numbers:
        with torch.no_grad():
            ends = model(torch.tensor([row])).logits[0, -1].double().softmax(0).cumsum(0)
        row.append(int((ends <= number * ends[-1]).sum()))
        if row[-1] in stops:
            break
    return row[len(prompt) :]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_when_rows_leave_changes_no_response(policy, monkeypatch, device, temperature):
    """Whether the step is recorded or not, and whoever has waited for a place."""
    prompts, longest = tiny_models.random_rows([3, 7, 1, 5, 4, 4, 7, 12, 2, 9, 30, 1], seed=4, vocabulary=300), 12
    if temperature:
        stops = [2, *range(290, 320)]
        streams = [stream(0, Purpose.SAMPLING, number) for number in range(len(prompts))]
        expected = [drawn(policy, *of, stops, longest) for of in zip(prompts, streams, strict=True)]
    else:
        stops = [greedy(policy, prompt, [], 5)[-1] for prompt in prompts[:3]]
        expected = [greedy(policy, prompt, stops, longest) for prompt in prompts]
    lengths = [len(response) for response in expected]
    assert min(lengths) < 4 and lengths.count(longest) >= 2
    model = deepcopy(policy).to(device)
    for number, pace in enumerate(PACES):
        monkeypatch.setitem(policy_sampling.PACES, device, pace)
        if number % 2:
            monkeypatch.setitem(recording.RECORDS, "cpu", op_graph)
        for batch_size in (5, 12):
            found = sampler(model, stops, batch_size=batch_size, max_new_tokens=longest, temperature=temperature)(prompts)
            assert found == Rollouts(prompts, expected, [response[-1] in stops for response in expected])


class Counted:
    """A decoder of rows whose prompts are a number, of the tokens up to their end; notes how many rows it holds."""

    def __init__(self, held: list[int]):
        self.held, self.left = held, []

    def admit(self, prompts):
        self.left += [number for (number,) in prompts]
        self.held.append(len(self.left))
        return self.logits()[-len(prompts) :]

    def step(self, tokens):
        self.left = [number - 1 for number in self.left]
        return self.logits()

    def keep(self, rows):
        self.left = [self.left[row] for row in rows]

    def logits(self):
        return torch.nn.functional.one_hot(torch.tensor([STOPS[0] if number == 1 else 5 for number in self.left]), 10).float()


def test_no_more_rows_are_held_than_may_be(policy, monkeypatch):
    """The first of eight reaches the limit and leaves; of the seven others one ends, and two join in place of both."""
    monkeypatch.setitem(policy_sampling.PACES, "cpu", Pace(1, 0.75))
    lengths, held = [12, *[2] * 7, *[12] * 6, 11, 5, 6, 7], []
    monkeypatch.setattr(policy_sampling, "Decoder", lambda *_: Counted(held))
    found = sampler(policy, batch_size=8, max_new_tokens=12, temperature=0.0)([[length] for length in lengths])
    assert [len(response) for response in found.responses] == lengths
    assert held[:3] == [8, 8, 8] and max(held) == 8


class Small:
    """A model whose memory holds few rows at a time, and which is not packed."""

    def __init__(self, model, most: int):
        self.model, self.most, self.device = model, most, model.device
        self.config, self.generation_config, self.sizes = LlamaConfig(), model.generation_config, []

    def modules(self):
        return []

    def generate(self, input_ids, **kw):
        self.sizes.append(len(input_ids))
        if len(input_ids) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.model.generate(input_ids=input_ids, **kw)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_without_packing_and_short_of_memory_responses_are_the_same(policy, temperature, caplog):
    how = {"max_new_tokens": 6, "temperature": temperature}
    expected, small = sampler(policy, **how)(PROMPTS), Small(policy, 2)
    assert sampler(small, **how)(PROMPTS) == expected
    assert small.sizes == [5, 2, 2, 1]
    assert "out of memory with 5 rows at once; repeated with 2" in caplog.text
    sample = PolicySampler(lambda: small, STOPS, PAD, **how)
    streams = [stream(0, Purpose.SAMPLING, row) for row in range(len(PROMPTS))]
    assert [sample(PROMPTS, streams) for _ in range(2)] == [expected] * 2
    assert small.sizes[4:] == [5, 2, 2, 1, 2, 2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        sampler(Small(policy, 0))(PROMPTS)


def test_short_of_memory_what_is_done_is_kept_and_what_fits_remembered(policy, monkeypatch, caplog):
    """Memory for six rows until any has ended, and from then on for three."""
    admitted, most = [], [6]
    admit, keep = Decoder.admit, Decoder.keep

    def counted(decoder, prompts):
        if len(decoder) + len(prompts) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        admitted.append(len(prompts))
        return admit(decoder, prompts)

    def shrinking(decoder, rows):
        keep(decoder, rows)
        most[0] = 3

    prompts, how = tiny_models.random_rows([7] * 9, seed=4, vocabulary=300), {"max_new_tokens": 9}
    stops = [2, *range(250, 320)]
    expected = sampler(policy, stops, **how)(prompts)
    assert len(set(map(len, expected.responses))) > 3
    monkeypatch.setattr(Decoder, "admit", counted)
    monkeypatch.setattr(Decoder, "keep", shrinking)
    sample = PolicySampler(lambda: policy, stops, PAD, batch_size=6, **how)
    streams = [stream(0, Purpose.SAMPLING, row) for row in range(len(prompts))]
    assert sample(prompts, streams) == expected
    assert caplog.text.count("out of memory") == 1 and sample.batch_size == 3
    # Six of nine at first; then without those that had ended by the time when others could have joined.
    ended_by = sorted(len(response) for response in expected.responses[:6])[6 - int(0.75 * 6) - 1]
    done = sum(len(response) <= ended_by for response in expected.responses[:6])
    assert done > 0 and admitted[0] == 6 and sum(admitted[1:]) == 9 - done
    assert sample(prompts, streams) == expected and caplog.text.count("out of memory") == 1
