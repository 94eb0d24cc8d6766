"""Heads of labels: scores that are the language model's own log-odds, what they are saved as, and what is refused."""

import json
import shutil

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
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

from denserl.cli import merge
from denserl.errors import UserError
from denserl.models.adapters import prepare_model
from denserl.models.config import AdapterConfig
from denserl.models.heads import Head
from denserl.models.loading import match_embeddings
from denserl.models.packing import is_packed
from denserl.models.reward_models import holds_reward_head, load_reward_model, new_reward_model, train_whole_head
from denserl.models.saving import save_model
from denserl.models.scoring import read_rewards, token_rewards
from denserl.models.tokenizers import load_tokenizer

# Tied and not, with a soft cap, a factor, a bias, and other names of the head.
FAMILIES = ["llama-tied", "gemma2", "scaled", "phi", "gpt-neox"]
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


def test_of_three_labels_the_score_is_that_of_the_first_two(folder_of):
    head = HEAD._replace(labels=("A", "B", "C"), label_ids=(11, 29, 30))
    model = new_reward_model(str(folder_of("gemma2")), "fp32", head=head)
    ids, mask = tiny_models.padded(ROWS)
    with torch.no_grad():
        logits = language_model("gemma2")(ids, attention_mask=mask).logits[mask.bool()]
        found = read_rewards(model, ids, mask, 1, logprob_rows=0)
    torch.testing.assert_close(found.outputs[mask.bool()], logits[:, 11:12] - logits[:, 29:31], atol=1e-5, rtol=1e-5)
    assert torch.equal(found.scores, found.outputs[..., 0])


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


def fresh(folder, dtype="fp32", whole=False):
    model = new_reward_model(str(folder), dtype, head=HEAD)
    if whole:
        train_whole_head(model, str(folder), dtype)
    return model


def trained(folder, dtype="fp32", whole=False):
    """A model of labels whose trunk and rows have moved, or all rows."""
    model = fresh(folder, dtype, whole)
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


@pytest.mark.parametrize("family", ["llama-tied", "phi"])
def test_the_whole_head_learns_with_the_labels_rows_and_is_saved(folder_of, tmp_path, family):
    """The loss of the whole vocabulary moves every row; scores follow it, and the language model that is saved has it."""
    path = str(folder_of(family))
    model = fresh(path, whole=True)
    before = scores(model)
    torch.testing.assert_close(before, log_odds(stock(path)), rtol=0, atol=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids, mask = tiny_models.padded(ROWS)
    read = read_rewards(model.train(), ids, mask, 1)
    (-read.logprobs.mean()).backward()
    optimizer.step()
    optimizer.zero_grad()
    after = scores(model.eval())
    assert (after - before).abs().max() > 1e-3
    save_model(model, tmp_path)
    language, base = stock(tmp_path), stock(path)
    torch.testing.assert_close(log_odds(language), after, rtol=0, atol=1e-5)
    assert torch.equal(scores(load_reward_model(str(tmp_path), "fp32")), after)
    moved = (language.get_output_embeddings().weight != base.get_output_embeddings().weight).any(1)
    assert moved.all() and language.config.tie_word_embeddings == base.config.tie_word_embeddings
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != base.config.tie_word_embeddings


@pytest.mark.parametrize("family, whole", [("llama-tied", False), ("llama-tied", True), ("llama", True)])
def test_a_checkpoint_of_a_training_is_read_as_well(folder_of, tmp_path, family, whole):
    """As transformers.Trainer writes one: the weights by the names that they have in the model."""
    model, again = trained(folder_of(family), whole=whole), fresh(folder_of(family), whole=whole)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert torch.equal(scores(load_reward_model(str(tmp_path), "fp32")), scores(model))
    again.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert torch.equal(scores(again), scores(model))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_scores_are_those_of_padded_batches_and_of_a_language_model_in_bf16(folder_of, tmp_path, family):
    """In bf16 the head computes in fp32 with the weights as they are stored: what is read has no rounding of its own."""
    save_model(trained(folder_of(family)), tmp_path)
    packed = scores(load_reward_model(str(tmp_path), "fp32"))
    eager = load_reward_model(str(tmp_path), "fp32", attn_implementation="eager")
    assert not is_packed(eager)
    torch.testing.assert_close(scores(eager), packed, rtol=0, atol=1e-5)
    narrow = load_reward_model(str(tmp_path), "bf16")
    hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    first, second = (narrow.score.weight.double() @ hidden.double().T).unbind(0)
    cap = stock(tmp_path).config.to_dict().get("final_logit_softcapping")
    first, second = (x if cap is None else cap * torch.tanh(x / cap) for x in (first, second))
    torch.testing.assert_close(narrow.score(hidden).squeeze(1).double(), first - second, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def saved_once(folder_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_model(trained(folder_of("llama")), folder)
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    return shutil.copytree(saved_once, tmp_path / "saved")


def change_head(folder, **changed):
    config = json.loads((folder / "config.json").read_text())
    head = {key: value for key, value in {**config["segment_reward"]["head"], **changed}.items() if value != ()}
    (folder / "config.json").write_text(json.dumps(config | {"segment_reward": {"head": head}}))


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "head, found",
    [
        ({"label_ids": ()}, "() for the head's label_ids; expected different token ids"),
        ({"label_ids": [3, 3]}, "for the head's label_ids"),
        ({"label_ids": [3, True]}, "for the head's label_ids"),
        ({"label_ids": [3, -1]}, "for the head's label_ids"),
        ({"label_ids": [3, 97]}, "label_ids are 3 and 97, and its vocabulary has 97 tokens"),
        ({"labels": ["+"]}, "for the head's labels; expected two different texts, or three"),
        ({"labels": ["+", 3]}, "for the head's labels"),
        ({"scale": 0}, "0 for the head's scale; expected a finite number other than 0"),
        ({"cap": -1.0}, "-1.0 for the head's cap; expected a finite number above 0, or null"),
        ({"cap": float("nan")}, "for the head's cap"),
        ({"layers": 2}, "for head; expected an object with kind, bias, labels, label_ids, scale, cap"),
        ({"bias": True}, "1 missing (e.g. score.bias)"),
    ],
)
def test_a_head_that_a_config_does_not_describe_right_is_refused(saved, head, found):
    change_head(saved, **head)
    with pytest.raises(UserError) as error:
        load_reward_model(str(saved), "fp32")
    assert found in error.value.found


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda w: w.pop("lm_head.weight"), "its files hold no language model's head (lm_head.weight)"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(97, 31)}), "score.weight: (2, 31), expected (2, 32)"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(20, 32)}), "its files hold no language model's head"),
        (lambda w: w.update({"lm_head.bias": torch.zeros(97)}), "1 unexpected (e.g. score.bias)"),
        (lambda w: w.pop("model.norm.weight"), "1 missing (e.g. model.norm.weight)"),
        (lambda w: w.update({"extra.weight": torch.zeros(1)}), "1 unexpected (e.g. extra.weight)"),
    ],
)
def test_files_without_the_head_that_the_config_describes_are_refused(saved, change, found):
    change_weights(saved, change)
    with pytest.raises(UserError) as error:
        load_reward_model(str(saved), "fp32")
    assert found in error.value.found


def test_a_language_model_without_a_head_in_its_config_is_no_reward_model(folder_of):
    with pytest.raises(UserError, match="looks like a language model"):
        load_reward_model(str(folder_of("llama")), "fp32")


def test_whether_a_folder_holds_a_reward_model_is_said_by_its_config_too(saved, folder_of):
    assert holds_reward_head(str(saved)) and not holds_reward_head(str(folder_of("llama")))


def test_adapters_are_merged_and_the_rows_come_with_them(tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny_models.save_language_model(tmp_path / "base")
    tokenizer = load_tokenizer(str(base))
    model = new_reward_model(str(base), "fp32", head=HEAD)
    adapted = prepare_model(model, AdapterConfig(lora_rank=2), "SEQ_CLS")
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert isinstance(adapted, peft.PeftModel) and {n.split(".")[-1] for n, p in adapted.named_parameters() if p.requires_grad}
    before = scores(adapted.eval())
    adapted.save_pretrained(tmp_path / "adapter")
    model.config.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    merge.main(["--model", str(base), "--adapter", str(tmp_path / "adapter"), "--output_dir", str(tmp_path / "merged")])
    torch.testing.assert_close(scores(load_reward_model(str(tmp_path / "merged"), "fp32")), before, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_odds(stock(tmp_path / "merged")), before, rtol=0, atol=1e-5)
    assert (tmp_path / "merged" / "generation_config.json").read_text() == (base / "generation_config.json").read_text()


def test_a_vocabulary_that_grew_has_rows_for_its_new_tokens(tmp_path):
    base = tiny_models.save_language_model(tmp_path / "base")
    model, tokenizer = new_reward_model(str(base), "fp32", head=HEAD), load_tokenizer(str(base))
    tokenizer.add_tokens([f"<new {i}>" for i in range(5)])
    match_embeddings(model, tokenizer)
    before = scores(model)
    save_model(model, tmp_path / "saved")
    language, head = stock(tmp_path / "saved"), stock(base).get_output_embeddings().weight
    assert len(language.get_output_embeddings().weight) == language.config.vocab_size == 384
    torch.testing.assert_close(language.lm_head.weight[:320], head, rtol=0, atol=0)
    torch.testing.assert_close(language.lm_head.weight[320:], head.mean(0).expand(64, -1))
    torch.testing.assert_close(log_odds(language), before, rtol=0, atol=1e-5)
