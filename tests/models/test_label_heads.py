"""Heads of labels: scores that are the language model's own log-odds, what they are saved as, and what is refused."""

import pytest
import tiny_models
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    PhiConfig,
)

from denserl.models.heads import Head
from denserl.models.loading import load_reward_model, new_reward_model
from denserl.models.saving import save_model
from denserl.models.scoring import token_rewards

# Tied and not, with a soft cap, a factor, a bias, and other names of the head.
FAMILIES = ["llama", "llama-tied", "gemma2", "scaled", "phi", "gpt2", "gpt-neox"]
IDS = (11, 29)
HEAD = Head("label", labels=("+", "-"), label_ids=IDS)
ROWS = tiny_models.random_rows([9, 5, 7])


class ScaledConfig(LlamaConfig):
    model_type = "scaled_llama"


class ScaledLlama(LlamaForCausalLM):
    """A Llama that multiplies its logits, as some families do that have no classifier."""

    config_class = ScaledConfig

    def forward(self, *args, **kw):
        output = super().forward(*args, **kw)
        output.logits = output.logits * 0.25
        return output


class ScaledTrunk(LlamaModel):
    config_class = ScaledConfig


class ScaledClassifier(LlamaForSequenceClassification):
    config_class = ScaledConfig


AutoConfig.register("scaled_llama", ScaledConfig)
AutoModel.register(ScaledConfig, ScaledTrunk)
AutoModelForCausalLM.register(ScaledConfig, ScaledLlama)
AutoModelForSequenceClassification.register(ScaledConfig, ScaledClassifier)
SIZES = {name: value for name, value in tiny_models.SIZES.items() if name != "num_key_value_heads"}
OWN_FAMILIES = {
    "scaled": lambda: ScaledConfig(**tiny_models.SIZES),
    "phi": lambda: PhiConfig(**SIZES),
    "gpt-neox": lambda: GPTNeoXConfig(**SIZES),
}


def language_model(family: str):
    if family not in OWN_FAMILIES:
        return tiny_models.language_model(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(OWN_FAMILIES[family](), dtype=torch.float32).eval()
        if model.get_output_embeddings().bias is not None:
            torch.nn.init.normal_(model.get_output_embeddings().bias)
        return model


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A family -> the folder of a random language model of it."""
    folders = {}

    def folder(family: str):
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            language_model(family).save_pretrained(folders[family])
        return folders[family]

    return folder


def scores(model) -> torch.Tensor:
    """Of every token of ROWS, one after the other."""
    ids, mask = tiny_models.padded(ROWS)
    with torch.no_grad():
        return token_rewards(model, ids, mask)[mask.bool()]


def log_odds(model) -> torch.Tensor:
    """The same of a stock language model, row by row: its logit for the first label less that for the second."""
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([row])).logits[0] for row in ROWS]).double()
    return (logits[:, IDS[0]] - logits[:, IDS[1]]).float()


def stock(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def trained(folder, dtype="fp32"):
    """A model of labels whose trunk and rows have moved."""
    model = new_reward_model(str(folder), dtype, head=HEAD)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_it_gives_the_log_odds_of_the_language_model(folder_of, family):
    expected = log_odds(stock(folder_of(family)))
    assert expected.std() > 0.3
    torch.testing.assert_close(scores(new_reward_model(str(folder_of(family)), "fp32", head=HEAD)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_saved_as_a_language_model_that_says_the_same(folder_of, tmp_path, family):
    model = trained(folder_of(family))
    before = scores(model)
    save_model(model, tmp_path)
    language, base = stock(tmp_path), stock(folder_of(family))
    assert type(language) is type(base) and language.config.architectures == [type(base).__name__]
    torch.testing.assert_close(log_odds(language), before, rtol=0, atol=1e-5)
    assert torch.equal(scores(load_reward_model(str(tmp_path), "fp32")), before)
    # All other rows are those that the language model had.
    rows, old = language.get_output_embeddings().weight, base.get_output_embeddings().weight
    moved = (rows != old).any(1).nonzero().flatten().tolist()
    assert moved == sorted(IDS) and not language.config.tie_word_embeddings
