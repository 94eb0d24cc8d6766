"""Packed models: prompts that rows share, what is not packed, and stock behaviour of a packed model."""

import pytest
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from denserl.data.batching import pad_responses
from denserl.errors import UserError
from denserl.models import packing
from denserl.models.decoding import Decoder
from denserl.models.measured import Measured
from denserl.models.packing import Packing, is_packed
from denserl.models.probe import run_as
from denserl.models.scoring import token_logprob_entropy, token_rewards

# Rows 0, 2 and 3 begin alike, and so do 1 and 4; row 3 has no response.
FIRST, SECOND = tiny_models.random_rows([5, 7])
PROMPTS = [FIRST, SECOND, FIRST, FIRST, SECOND]
RESPONSES = [row[:length] for row, length in zip(tiny_models.random_rows([6] * 5, seed=3), [4, 2, 6, 0, 3], strict=True)]
PACKABLE = [family for family in tiny_models.FAMILIES if family != "gemma2"]


def batch():
    return pad_responses(PROMPTS, RESPONSES, 0)


@pytest.mark.parametrize("family", PACKABLE)
def test_a_shared_prompt_is_read_once_and_changes_nothing(family):
    model, widths = tiny_models.probed(tiny_models.language_model(family)), []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    with torch.no_grad():
        logprob, entropy = token_logprob_entropy(model, *batch()[:3], 6, shared=batch().shared)
        assert widths == [len(FIRST) + len(SECOND) + sum(map(len, RESPONSES))]
        for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            assert (logprob[b, len(response) :] == 0).all()
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
            own = logits.log_softmax(-1)
            want = own.gather(1, torch.tensor(response, dtype=torch.long)[:, None]).squeeze(1)
            torch.testing.assert_close(logprob[b, : len(response)].double(), want, rtol=1e-5, atol=1e-5)
            want = -(own.exp() * own).sum(-1)
            torch.testing.assert_close(entropy[b, : len(response)].double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
def test_rewards_and_gradients_with_shared_prompts_equal_those_of_rows_alone(family):
    packed, plain = tiny_models.probed(tiny_models.classifier(family)), tiny_models.classifier(family)
    ids, mask = batch()[:2]
    rewards = token_rewards(packed, ids, mask, batch().shared)
    weights = torch.randn(rewards.shape, generator=torch.Generator().manual_seed(1))
    (rewards * weights * mask).sum().backward()
    for b, row in enumerate(len(prompt + response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)):
        hidden = plain.base_model(input_ids=ids[b : b + 1, :row]).last_hidden_state
        alone = plain.score(hidden)[0, :, 0]
        torch.testing.assert_close(rewards[b, :row], alone, rtol=1e-5, atol=1e-5)
        (alone * weights[b, :row]).sum().backward()
    for (name, got), want in zip(packed.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-5 * want.grad.abs().max().item(), msg=name)


def test_on_the_cpu_a_short_prompt_is_read_with_each_row(monkeypatch):
    """Its scores are those of sharing."""
    monkeypatch.setattr(packing, "SHORTEST_SHARED", 6)
    model, widths = tiny_models.probed(tiny_models.classifier("llama")), []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    with torch.no_grad():
        shared, alone = (token_rewards(model, *batch()[:2], which) for which in (batch().shared, None))
    # Three rows begin with the first prompt, two with the second.
    tokens = sum(map(len, RESPONSES)) + 3 * len(FIRST) + len(SECOND)
    assert widths == [tokens, tokens + len(SECOND)]
    torch.testing.assert_close(shared * batch().attention_mask, alone * batch().attention_mask, rtol=1e-5, atol=1e-5)
    prompts = batch().shared
    assert packing.worth_sharing(prompts, torch.device("cuda")) is prompts


def test_where_tokens_stand_in_the_packed_row():
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    packing = Packing(mask, None)
    assert packing.tokens.tolist() == [0, 1, 2, 5, 6, 7] and packing.positions.tolist() == [0, 1, 2, 0, 1, 2]
    assert packing.slots.tolist() == [[0, 1, 2, 0], [0, 3, 4, 5]] and packing.counts == [3, 3]
    shared = pad_responses([[7, 8], [7, 8]], [[1], [2, 3]], 0)
    packing = Packing(shared.attention_mask, shared.shared)
    assert packing.tokens.tolist() == [0, 1, 2, 6, 7] and packing.positions.tolist() == [0, 1, 2, 2, 3]
    assert packing.slots.tolist() == [[0, 1, 2, 0], [0, 1, 3, 4]]
    assert (packing.counts, packing.prefixes, packing.owners) == ([3, 2], [0, 2], [0, 0])


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gemma2", {"head_dim": 8}),  # caps attention scores
        ("falcon", {}),  # computes attention its own way
        ("mamba", {}),  # carries a state from token to token
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 4, "num_experts": 4}),  # says its window in the mask alone
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"], "num_experts": 10, "head_dim": 8}),
    ],
)
def test_what_depends_on_more_than_attention_is_not_packed(family, settings):
    assert not is_packed(tiny_models.probed(other(family, **settings)))


def other(family: str, **settings):
    """A small random model of any family."""
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **settings), dtype=torch.float32).eval()


@pytest.mark.parametrize("family", ["nemotron", "doge"])
def test_a_model_that_hides_the_layout_from_its_attention_is_refused_when_it_runs_packed(family):
    model = run_as(other(family), Measured())
    with pytest.raises(UserError, match="keeps from its attention how the batch is laid out"):
        token_logprob_entropy(model, *batch()[:3])


def test_a_layer_that_attends_twice_is_refused_when_it_decodes():
    with pytest.raises(UserError, match="attends more than once"):
        Decoder(run_as(other("diffllama"), Measured()), 4).admit([FIRST])


def test_a_packed_model_generates_and_saves_as_a_stock_one(tmp_path):
    packed, plain = tiny_models.probed(tiny_models.language_model("llama")), tiny_models.language_model("llama")
    ids, mask = tiny_models.padded([FIRST, SECOND], "left")
    settings = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert packed.generate(ids, **settings).tolist() == plain.generate(ids, **settings).tolist()
    packed.save_pretrained(tmp_path)
    assert "denserl" not in (tmp_path / "config.json").read_text()
    assert not is_packed(AutoModelForCausalLM.from_pretrained(tmp_path))
