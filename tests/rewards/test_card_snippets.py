"""What a model's card says of reading it with plain transformers, run as it stands there, gives what denserl says."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from reward_folders import save_pair_model, save_reward_model

from denserl.cli.main import main as denserl
from denserl.data.labels import label_ids
from denserl.models.card import Making, card_of, write_cards
from denserl.models.heads import STOCK, Head
from denserl.models.loading import load_policy, match_embeddings
from denserl.models.reward_models import new_reward_model
from denserl.models.reward_settings import store_settings
from denserl.models.saving import save_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.config import ScorerConfig
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.pair_model import PairModel
from denserl.rewards.step_scorer import load_scorer
from denserl.trainer.config import SFTConfig

# Near the middle of the entropies of an untrained model of some 300 tokens.
SEGMENT = {"entropy_threshold": 5.3, "read_at": "end_of_turn"}
BANDIT = {"entropy_threshold": 1000.0, "read_at": "end_of_turn"}
STEPS = {"scores": "logit", "segmenter": "step", "agg_func": "min", "context_signs": "none"}
RATINGS = Head("attributes", names=("short", "true"), weights=(0.25, 0.75))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    tiny_models.save_language_model(folder / "sft")
    return folder


@pytest.fixture(autouse=True)
def here(root, monkeypatch):
    """The folder in which cards name models by their last names."""
    monkeypatch.chdir(root)


def python_of(folder: Path) -> dict[str, Any]:
    """What the Python of the card in a folder leaves, run as it stands there."""
    write_cards(folder, Making("train-rm", SFTConfig(model="sft", data=["rows.jsonl"], output_dir=str(folder))))
    (block,) = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    assert "denserl" not in block or "encode_orders" in block
    names: dict[str, Any] = {}
    exec(compile(block, "card", "exec"), names)
    return names


def label_head(root: Path, *labels: str) -> Head:
    return Head("label", labels=labels, label_ids=label_ids(load_tokenizer(str(root / "sft")), labels))


def save_label_model(folder: Path, root: Path, **stored) -> None:
    model = new_reward_model(str(root / "sft"), "fp32", head=label_head(root, "+", "-"))
    with torch.no_grad():
        model.score.weight.mul_(2)
    store_settings(model.config, **stored)
    save_model(model, folder)
    load_tokenizer(str(root / "sft")).save_pretrained(folder)


@pytest.mark.parametrize(
    "name, head, stored",
    [
        ("bandit", STOCK, BANDIT),
        ("from-elsewhere", STOCK, {}),
        ("token", STOCK, {"entropy_threshold": 0.0}),
        ("segment", STOCK, SEGMENT),
        ("least", STOCK, SEGMENT | {"agg_func": "min"}),
        ("logsumexp", STOCK, SEGMENT | {"agg_func": "logsumexp"}),
        ("ratings", RATINGS, SEGMENT | {"agg_func": "last"}),
        ("rated", RATINGS, BANDIT),
        ("labels", None, SEGMENT),
    ],
)
def test_scores_of_an_answer(name, head, stored, root):
    folder = root / name
    stored = stored | ({"sft_model": str(root / "sft")} if stored.get("entropy_threshold", 1000) < 10 else {})
    if head is None:
        save_label_model(folder, root, **stored)
    else:
        save_reward_model(folder, root / "sft", 1, head, **stored)
    found = python_of(folder)
    chat = found["chat"]
    (expected,) = RewardScorer([str(folder)])([chat[:1]], [chat[1]["content"]])
    assert found["score"].item() == pytest.approx(expected, rel=1e-4, abs=1e-5) and abs(expected) > 1e-3
    if stored.get("entropy_threshold") == 5.3:
        assert 2 < len(found["rewards"]) < len(found["scores"])


@pytest.mark.parametrize(
    "name, stored",
    [("steps", {}), ("lines", {"step_separator": ["\n"]}), ("outcome", {"max_steps": 1}), ("turns", {"context_signs": "plus"})],
)
@pytest.mark.parametrize("labels", [True, False])
def test_chances_of_steps(name, stored, labels, root):
    folder = root / f"{name}-{labels}"
    if labels:
        save_label_model(folder, root, **STEPS | stored)
    else:
        save_reward_model(folder, root / "sft", 1, **STEPS | stored)
    found = python_of(folder)
    scorer = load_scorer([str(folder)], ScorerConfig(), torch.device("cpu"), "fp32")
    (logits,) = scorer.step_scores([scorer.encode_steps([found["question"]], found["steps"])])
    assert found["chances"].tolist() == pytest.approx((1 / (1 + torch.tensor(-logits).exp())).tolist(), rel=1e-4)
    assert len(logits) == len(found["steps"]) and found["score"] == found["chances"].min()


def test_two_responses_in_one_text(root):
    save_pair_model(root / "pair", root / "sft", max_length=512)
    found = python_of(root / "pair")
    ((given, turned),) = PairModel.load(str(root / "pair")).log_odds([found["prompt"]], ["It is wide."], ["No."])
    assert found["score"].item() == pytest.approx((given - turned) / 2, rel=1e-4)


def test_a_policy_generates(root):
    found = python_of(root / "sft")
    ids = found["model"].generate(
        input_ids=found["prompt"]["input_ids"], attention_mask=found["prompt"]["attention_mask"], max_new_tokens=32
    )
    assert found["answer"] and found["answer"] in found["tokenizer"].decode(ids[0], skip_special_tokens=True)


@pytest.mark.parametrize("head", [None, STOCK, RATINGS])
def test_adapters_on_their_base(head, root):
    """With PEFT alone they give what the merged model gives."""
    pytest.importorskip("peft")
    from denserl.models.adapters import prepare_model, save_adapters
    from denserl.models.config import AdapterConfig
    from denserl.models.merging import merge_trained

    folder = root / f"adapted-{head and head.kind}"
    tokenizer = load_tokenizer(str(root / "sft"))
    model = load_policy(str(root / "sft"), "fp32") if head is None else new_reward_model(str(root / "sft"), "fp32", head=head)
    match_embeddings(model, tokenizer)
    if head is not None:
        store_settings(model.config, **BANDIT)
    adapted = prepare_model(model, AdapterConfig(lora_rank=2), "CAUSAL_LM" if head is None else "SEQ_CLS")
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    save_adapters(adapted, folder / "adapter")
    if head is not None:
        model.config.save_pretrained(folder / "adapter")
        tokenizer.save_pretrained(folder / "adapter")
    save_model(merge_trained(adapted, folder / "adapter"), folder)
    tokenizer.save_pretrained(folder)
    whole = python_of(folder)
    card = (folder / "adapter/README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(block, "card", "exec"), found)
    assert "library_name: peft" in card
    if head is None:
        assert found["answer"] == whole["answer"]
    else:
        assert found["score"].item() == pytest.approx(whole["score"].item(), rel=1e-5)


def test_a_head_that_no_stock_class_has_is_read_by_denserl_alone(root):
    save_reward_model(root / "mlp", root / "sft", 1, Head("mlp", layers=1, width=6), **BANDIT)
    card = card_of(root / "mlp", Making("train-rm", SFTConfig(model="sft", data=["rows.jsonl"], output_dir="mlp")))
    (block,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(block, "card", "exec"), found)
    prompts = [[{"role": "user", "content": "Tell me about the sea."}]]
    assert found["scores"] == pytest.approx(RewardScorer([str(root / "mlp")])(prompts, ["It is wide."]))
    assert "AutoModelForSequenceClassification.from_pretrained" not in card


def test_the_example_of_a_plain_reader_gives_the_score_of_the_answer(root, tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent.parent / "docs/sharing.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    save_reward_model(tmp_path / "runs/rm", root / "sft", 2, **BANDIT)
    denserl("export --reward_model runs/rm --layout hf --output_dir runs/rm-hf".split())
    found: dict[str, Any] = {}
    exec(block, found)
    chat = found["chat"]
    assert found["score"] == pytest.approx(RewardScorer(["runs/rm"])([chat[:1]], [chat[1]["content"]])[0], rel=1e-4)
    (block,) = re.findall(r"```python\n(.*?)\n```", Path("runs/rm-hf/README.md").read_text(), re.DOTALL)
    monkeypatch.chdir("runs")
    exec(block, told := {})
    (expected,) = RewardScorer(["rm"])([told["chat"][:1]], [told["chat"][1]["content"]])
    assert told["score"].item() == pytest.approx(expected, rel=1e-4)
