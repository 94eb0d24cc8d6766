"""Scores, log-probabilities, entropies, hidden states of tokens against the stock models run on one unpadded row at a time."""

import pytest
import tiny_models
import torch
from torch import nn

from denserl.data.batching import pad_responses
from denserl.models import logprob as chunks
from denserl.models.measured import Measured, logit_map, measured, remember
from denserl.models.packing import is_packed, position_ids
from denserl.models.scoring import next_logprobs, read_rewards, token_logprob_entropy, token_rewards

PROMPTS, RESPONSES = [3, 5, 1, 4], [6, 2, 7, 1]
ROWS = tiny_models.random_rows([p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)])


def as_it_is(model):
    return model


@pytest.fixture(params=[as_it_is, tiny_models.probed], ids=["padded", "packed"])
def prepared(request):
    """What is done to a model before it is used; results are the same."""
    return request.param


def plain(model, row: list[int], start: int, temperature: float = 1.0):
    """Log-probability and entropy of each token of a row from `start` on, by log_softmax over all logits, in fp64."""
    logits = model(input_ids=torch.tensor([row])).logits[0].double()
    logprobs, own = torch.log_softmax(logits / temperature, -1), torch.log_softmax(logits, -1)
    entropy = -(own.exp() * own).sum(-1)
    places = torch.arange(start - 1, len(row) - 1)
    return logprobs[places, torch.tensor(row)[start:]], entropy[places]


def check_rows(model, ids, mask, starts, temperature: float = 1.0) -> None:
    with torch.no_grad():
        logprob, entropy = token_logprob_entropy(model, ids, mask, torch.tensor(starts), max(RESPONSES), temperature)
        assert logprob.dtype == entropy.dtype == torch.float32
        assert logprob.shape == entropy.shape == (len(ROWS), max(RESPONSES))
        for b, (row, start) in enumerate(zip(ROWS, PROMPTS, strict=True)):
            expected = plain(model, row, start, temperature)
            for got, want in zip((logprob, entropy), expected, strict=True):
                torch.testing.assert_close(got[b, : RESPONSES[b]].double(), want, rtol=1e-5, atol=1e-5)


def same_gradients(model, whole) -> None:
    for (name, got), want in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert want.grad.abs().max() > 0, name
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-5 * want.grad.abs().max().item(), msg=name)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_gives_what_its_own_logits_give(family, prepared, monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS_PER_CHUNK", tiny_models.VOCABULARY * 5)
    model = prepared(tiny_models.language_model(family))
    # Gemma 2 caps attention scores, which sdpa does not.
    assert is_packed(model) == (prepared is tiny_models.probed and family != "gemma2")
    check_rows(model, *tiny_models.padded(ROWS), PROMPTS)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "gpt2"])
def test_what_may_come_next_is_what_its_own_logits_say(family, prepared):
    model, (ids, mask) = prepared(tiny_models.language_model(family)), tiny_models.padded(ROWS)
    with torch.no_grad():
        found = next_logprobs(model, ids, mask)
        expected = [model(input_ids=torch.tensor([row])).logits[0, -1].double().log_softmax(0) for row in ROWS]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite"])
def test_the_adjustment_of_logits_matters_in_these_families(family):
    model = tiny_models.language_model(family)
    ids = torch.tensor(ROWS[:1])
    raw = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state)
    assert (raw - model(input_ids=ids).logits).abs().max() > 0.1


@pytest.mark.parametrize("chunk", [1, 97 * 3, 97 * 16, 2**24])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_and_temperature(chunk, temperature, monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS_PER_CHUNK", chunk)
    check_rows(tiny_models.language_model("llama"), *tiny_models.padded(ROWS), PROMPTS, temperature)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_left_padding_and_more_padding_change_nothing(family, prepared):
    model = prepared(tiny_models.language_model(family))
    for extra in (0, 3):
        ids, mask = tiny_models.padded(ROWS, "left", extra)
        offsets = [ids.shape[1] - len(row) + start for row, start in zip(ROWS, PROMPTS, strict=True)]
        check_rows(model, ids, mask, offsets)
        check_rows(model, *tiny_models.padded(ROWS, "right", extra), PROMPTS)


def test_one_start_for_all_rows_and_the_default_length():
    model = tiny_models.language_model("llama")
    rows = tiny_models.random_rows([9, 9])
    with torch.no_grad():
        logprob, entropy = token_logprob_entropy(model, torch.tensor(rows), torch.ones(2, 9, dtype=torch.long), 4)
        assert logprob.shape == (2, 5)
        for b, row in enumerate(rows):
            want = plain(model, row, 4)
            torch.testing.assert_close(logprob[b].double(), want[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(entropy[b].double(), want[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2"])
def test_gradients_equal_those_of_the_plain_path(family, prepared, monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS_PER_CHUNK", tiny_models.VOCABULARY * 3)
    weights = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in RESPONSES]
    chunked, whole = prepared(tiny_models.language_model(family)), tiny_models.language_model(family)
    ids, mask = tiny_models.padded(ROWS)
    logprob, entropy = token_logprob_entropy(chunked, ids, mask, torch.tensor(PROMPTS), max(RESPONSES))
    sum((w * (logprob - entropy)[b, : len(w)]).sum() for b, w in enumerate(weights)).backward()
    for w, row, start in zip(weights, ROWS, PROMPTS, strict=True):
        wanted, wanted_entropy = plain(whole, row, start)
        (w * (wanted - wanted_entropy)).sum().backward()
    same_gradients(chunked, whole)


def test_the_graph_holds_no_logits_of_all_positions(monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS_PER_CHUNK", tiny_models.VOCABULARY)
    model, widest = tiny_models.probed(tiny_models.language_model("llama")), []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: widest.append(output.numel()))
    ids, mask = tiny_models.padded(ROWS)
    token_logprob_entropy(model, ids, mask, torch.tensor(PROMPTS), 4)[0].sum().backward()
    # One position in the model's own forward; then each response token once forward and once again in the backward pass.
    tokens = sum(min(length, 4) for length in RESPONSES)
    assert set(widest) == {tiny_models.VOCABULARY} and len(widest) == 1 + 2 * tokens


def test_positions_count_from_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert position_ids(mask)[0, 2:].tolist() == [0, 1, 2]
    assert position_ids(mask)[1, :3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("family", ["llama", "mistral", "mistral-window", "qwen2", "phi3", "gemma", "gemma2", "gpt2"])
def test_reward_of_the_last_token_is_the_stock_score(family, prepared):
    model = prepared(tiny_models.classifier(family))
    ids, mask = tiny_models.padded(ROWS, extra=2)
    with torch.no_grad():
        rewards = token_rewards(model, ids, mask)
        stock = model(input_ids=ids, attention_mask=mask).logits[:, 0]
    last = rewards.gather(1, torch.tensor([[len(row) - 1] for row in ROWS])).squeeze(1)
    assert rewards.shape == ids.shape and rewards.dtype == torch.float32
    assert stock.std() > 1e-3
    torch.testing.assert_close(last, stock, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_reward_of_every_token_is_the_stock_score_of_the_row_cut_there(family, side, prepared):
    model = prepared(tiny_models.classifier(family))
    ids, mask = tiny_models.padded(ROWS, side, extra=1)
    with torch.no_grad():
        rewards = token_rewards(model, ids, mask)
        for b, row in enumerate(ROWS):
            cut = [model(input_ids=torch.tensor([row[: n + 1]])).logits.item() for n in range(len(row))]
            torch.testing.assert_close(rewards[b, mask[b].bool()], torch.tensor(cut), rtol=1e-5, atol=1e-5)


class Wrapped(nn.Module):
    """What engines and data-parallel wrappers look like from outside; counts its forwards."""

    def __init__(self, module):
        super().__init__()
        self.module, self.forwards = module, 0

    def forward(self, **kw):
        self.forwards += 1
        return self.module(**kw)


def test_a_wrapper_runs_its_own_forward_and_gives_the_same_rewards(prepared):
    model = prepared(tiny_models.classifier("llama"))
    wrapped = Wrapped(Wrapped(model))
    ids, mask = tiny_models.padded(ROWS)
    with torch.no_grad():
        assert torch.equal(token_rewards(wrapped, ids, mask), token_rewards(model, ids, mask))
    assert wrapped.forwards == 1
    assert not model.score._forward_hooks


def test_the_reader_of_scores_is_removed_when_the_forward_fails():
    model = tiny_models.classifier("llama")
    with pytest.raises(IndexError):
        token_rewards(model, torch.tensor([[10**6]]), torch.tensor([[1]]))
    assert not model.score._forward_hooks


def test_gradients_flow_to_head_and_backbone(prepared):
    model, whole = prepared(tiny_models.classifier("llama")), tiny_models.classifier("llama")
    ids, mask = tiny_models.padded(ROWS)
    rewards = token_rewards(model, ids, mask)
    rewards.gather(1, torch.tensor([[len(row) - 1] for row in ROWS])).sum().backward()
    whole(input_ids=ids, attention_mask=mask).logits.sum().backward()
    same_gradients(model, whole)


def two_heads(family: str, prepared=as_it_is):
    """A classifier with a language model's head beside its own; and the language model and classifier it is made of."""
    model, scorer, speaker = (*map(tiny_models.classifier, (family, family)), tiny_models.language_model(family))
    model = prepared(model)
    speaker.base_model.load_state_dict(model.base_model.state_dict())
    model.lm_head = nn.Linear(32, tiny_models.VOCABULARY, bias=False)
    model.lm_head.load_state_dict(speaker.get_output_embeddings().state_dict())
    remember(model, (measured(model) or Measured())._replace(logits=logit_map(speaker)))
    return model, scorer, speaker


@pytest.mark.parametrize("family", ["llama", "llama-tied", "mistral-window", "qwen2", "gemma2", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_one_forward_gives_the_scores_and_log_probabilities_of_two_models(family, side, prepared):
    model, scorer, speaker = two_heads(family, prepared)
    ids, mask = tiny_models.padded(ROWS, side, extra=2)
    offsets = [(ids.shape[1] - len(row) if side == "left" else 0) + start for row, start in zip(ROWS, PROMPTS, strict=True)]
    for rows in (None, 2):
        with torch.no_grad():
            rewards, logprobs, *_ = read_rewards(model, ids, mask, torch.tensor(offsets), max(RESPONSES), rows)
            assert rewards.dtype == logprobs.dtype == torch.float32
            assert logprobs.shape == (rows or len(ROWS), max(RESPONSES))
            alone = token_rewards(scorer, ids, mask)
            torch.testing.assert_close(rewards[mask.bool()], alone[mask.bool()], rtol=1e-5, atol=1e-5)
            for b in range(rows or len(ROWS)):
                want, _ = plain(speaker, ROWS[b], PROMPTS[b])
                torch.testing.assert_close(logprobs[b, : RESPONSES[b]].double(), want, rtol=1e-5, atol=1e-5)
                assert not logprobs[b, RESPONSES[b] :].any()


def test_rows_that_share_a_prompt_have_the_log_probabilities_of_each_alone(prepared):
    model, _, speaker = two_heads("llama", prepared)
    prompts, responses = [ROWS[0][:3], ROWS[1][:5]] * 2, tiny_models.random_rows([4, 2, 5, 1], seed=4)
    batch = pad_responses(prompts, responses, 0)
    with torch.no_grad():
        _, logprobs, *_ = read_rewards(model, *batch[:3], 5, shared=batch.shared)
        for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            want, _ = plain(speaker, prompt + response, len(prompt))
            torch.testing.assert_close(logprobs[b, : len(response)].double(), want, rtol=1e-5, atol=1e-5)


def test_gradients_of_both_heads_add_up_in_the_trunk(prepared):
    model, scorer, speaker = two_heads("llama", prepared)
    ids, mask = tiny_models.padded(ROWS)
    rewards, logprobs, *_ = read_rewards(model, ids, mask, torch.tensor(PROMPTS), max(RESPONSES), 2)
    (rewards[mask.bool()].sum() + logprobs.sum()).backward()
    token_rewards(scorer, ids, mask)[mask.bool()].sum().backward()
    sum(plain(speaker, ROWS[b], PROMPTS[b])[0].sum() for b in range(2)).backward()
    trunks = (x.base_model.named_parameters() for x in (model, scorer, speaker))
    for (name, got), (_, by_score), (_, by_words) in zip(*trunks, strict=True):
        want = by_score.grad + by_words.grad
        torch.testing.assert_close(got.grad, want, rtol=1e-4, atol=1e-5 * want.abs().max().item(), msg=name)
    torch.testing.assert_close(model.lm_head.weight.grad, speaker.lm_head.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.score.weight.grad, scorer.score.weight.grad, rtol=1e-4, atol=1e-5)


def test_the_language_model_head_runs_on_the_response_tokens_of_the_first_rows_alone(prepared):
    model, _, _ = two_heads("llama", prepared)
    read = []
    model.lm_head.register_forward_hook(lambda module, args, output: read.append(args[0].shape))
    ids, mask = tiny_models.padded(ROWS)
    with torch.no_grad():
        read_rewards(model, ids, mask, torch.tensor(PROMPTS), max(RESPONSES), 2)
    assert read == [(RESPONSES[0] + RESPONSES[1], 32)]


def states_of(model, row: list[int], place: int) -> torch.Tensor:
    """The last hidden state of an unpadded row at a place, as the stock class gives it."""
    return model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, place]


@pytest.mark.parametrize("family", ["llama", "mistral-window", "qwen2", "phi3", "gemma2", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_states_are_those_that_the_stock_class_gives_at_the_positions(family, side, prepared):
    """At the first token, within the prompt, at the last token: positions in the padded batch."""
    model = tiny_models.classifier(family)
    ids, mask = tiny_models.padded(ROWS, side, extra=2)
    places = [0, 4, len(ROWS[2]) - 1, len(ROWS[3]) - 1]
    offsets = [ids.shape[1] - len(row) if side == "left" else 0 for row in ROWS]
    starts = torch.tensor([offset + start for offset, start in zip(offsets, PROMPTS, strict=True)])
    with torch.no_grad():
        expected = torch.stack([states_of(model, row, place) for row, place in zip(ROWS, places, strict=True)])
        at = torch.tensor([offset + place for offset, place in zip(offsets, places, strict=True)])
        found = read_rewards(prepared(model), ids, mask, starts, logprob_rows=0, hidden_at=at)
        assert found.logprobs is None and found.hidden.shape == (len(ROWS), 32)
        torch.testing.assert_close(found.hidden, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(found.scores, token_rewards(model, ids, mask))
        # The head's reading of a hidden state is the score that stands there.
        own = model.score(found.hidden).squeeze(1)
        torch.testing.assert_close(own, found.scores[range(len(ROWS)), at], rtol=1e-5, atol=1e-5)


def test_hidden_states_of_rows_that_share_a_prompt(prepared):
    """Also within the shared prompt, which a packed model reads once."""
    model = tiny_models.classifier("llama")
    prompts, responses = [ROWS[0][:3], ROWS[1][:5]] * 2, tiny_models.random_rows([4, 2, 5, 1], seed=4)
    batch, places = pad_responses(prompts, responses, 0), [6, 6, 2, 1]
    with torch.no_grad():
        rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        expected = torch.stack([states_of(model, row, place) for row, place in zip(rows, places, strict=True)])
        at = torch.tensor(places)
        found = read_rewards(prepared(model), *batch[:3], 5, 0, at, batch.shared)
        torch.testing.assert_close(found.hidden, expected, rtol=1e-5, atol=1e-5)


def test_hidden_states_carry_gradients_to_the_trunk(prepared):
    model, whole = tiny_models.classifier("llama"), tiny_models.classifier("llama")
    ids, mask = tiny_models.padded(ROWS)
    places = torch.tensor([len(row) - 1 for row in ROWS])
    weights = torch.randn(len(ROWS), 32, generator=torch.Generator().manual_seed(0))
    found = read_rewards(prepared(model), ids, mask, torch.tensor(PROMPTS), None, 0, places).hidden
    (weights * found).sum().backward()
    sum((weight * states_of(whole, row, len(row) - 1)).sum() for weight, row in zip(weights, ROWS, strict=True)).backward()
    assert model.score.weight.grad is None or not model.score.weight.grad.any()
    same_gradients(model.model, whole.model)


def test_what_is_not_asked_for_is_not_read():
    model, _, _ = two_heads("llama")
    ids, mask = tiny_models.padded(ROWS)
    with torch.no_grad():
        found = read_rewards(model, ids, mask, torch.tensor(PROMPTS))
        assert found.hidden is None and found.logprobs.shape == (len(ROWS), ids.shape[1] - min(PROMPTS))
        # Without a language model's head there is nothing to read log-probabilities with, and nothing is asked of one.
        assert read_rewards(tiny_models.classifier("llama"), ids, mask, torch.tensor(PROMPTS), None, 0).logprobs is None
