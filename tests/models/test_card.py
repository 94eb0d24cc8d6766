"""Model cards: what they tell, that it is inert, and that no place of the machine is in them."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import tiny_models
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from denserl.markdown import block, inline
from denserl.models.card import BESIDE, CARD, Making, card_of, is_as_written, shown_command, write_cards
from denserl.models.heads import Head
from denserl.models.reward_models import new_reward_model
from denserl.models.reward_settings import sft_settings, store_settings
from denserl.models.tokenizers import load_tokenizer
from denserl.terminal import visible
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.reward_config import RewardConfig

HOSTILE = [
    "<script>alert(1)</script>",
    "``` \n# loud\n<img src=x onerror=alert(1)>",
    "`a` [b](javascript:alert(1)) ![c](http://x/y.png) | d |",
    "\x1b[31mred\u202e",
    "---\nlicense: mit\n---",
    "{{ 7 * 7 }}{% raw %}",
    "`",
    "   ",
    "www.example.org http://example.org <b@c.d>",
]


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    return tiny_models.save_language_model(tmp_path_factory.mktemp("home") / "sft")


def save(folder: Path, sft: Path, head: Head | None = None, **stored) -> Path:
    model = new_reward_model(str(sft), "fp32", head=head or Head())
    store_settings(model.config, **sft_settings(str(sft), "fp32:0123", str(folder)), **stored)
    model.save_pretrained(folder)
    load_tokenizer(str(sft)).save_pretrained(folder)
    return folder


def tokens_of(markdown: str) -> list:
    """Tokens of a page as CommonMark with tables and links has them, those inside paragraphs included."""
    found = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
    return [token for each in found for token in (each, *(each.children or ()))]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_in_markdown_is_code_and_nothing_else(text):
    (code,) = [token for token in tokens_of(f"- name: {inline(text)}, more") if token.type == "code_inline"]
    assert code.content.strip() == visible(text.replace("\n", " "), kept="").strip()
    (fence,) = tokens_of(block(text, "text"))
    assert (fence.type, fence.content) == ("fence", visible(text, kept="\n\t") + "\n")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_of_hostile_text_is_inert(text, sft, tmp_path):
    folder = tmp_path / re.sub(r"[/\x00]", "", text)
    save(folder, sft, Head("attributes", names=(text, "other"), weights=(1.0, 2.0)), entropy_threshold=5.3, segmenter=None)
    config = RewardConfig(
        model=str(sft), data=[f"{text}.jsonl"], output_dir=str(folder), system_prompt=text, input="ratings",
        head_type="attributes", rating_columns=["a"],
    )  # fmt: skip
    card = card_of(folder, Making("train-rm", config, [text], (0.5, 10)))
    metadata = ModelCard(card).data.to_dict()
    assert set(metadata) == {"library_name", "pipeline_tag", "tags"} and metadata["tags"] == ["denserl", "reward-model"]
    tokens = tokens_of(ModelCard(card).text)
    kinds = {token.type for token in tokens}
    # The mark at its end is the only HTML.
    assert [token.content[:12] for token in tokens if token.type == "html_block"] == ["<!-- denserl"]
    assert not kinds & {"html_inline", "link_open", "image", "table_open", "hr"}
    headings = [token.content for token in tokens_of(ModelCard(card).text) if token.type == "inline" and token.level == 1]
    assert "loud" not in headings and "Licence" in headings
    assert card == visible(card, kept="\n\t")


def test_no_path_of_the_machine_is_in_a_card(sft, tmp_path):
    folder = save(tmp_path / "deep/runs/rm", sft, entropy_threshold=5.3)
    (tmp_path / "deep/pairs.jsonl").write_text("{}\n")
    config = PPOConfig(
        model=str(sft),
        reward_model=[str(folder)],
        data=[str(tmp_path / "deep/pairs.jsonl")],
        output_dir=str(folder),
        cache_dir=str(tmp_path / "deep/cache"),
        reward_function=[str(tmp_path / "deep/mine.py") + ":reward"],
        reward_url=["http://someone:secret@10.0.0.7:8000/score"],
        rollout_args="--api-key secret",
        system_prompt=f"Read {tmp_path}/deep/rules.txt, and be helpful/harmless.",
        judge_key_env="KEY",
    )
    card = card_of(folder, Making("train-ppo", config, ["reward 1"]))
    named = re.findall(r".*(?:deep/|secret|10\.0\.0\.7|cache|/home).*", card.replace(str(tmp_path), "/home"))
    assert named == []
    assert "--reward_function mine.py:reward" in card and "--reward_url ADDRESS" in card
    assert "Read rules.txt, and be helpful/harmless." in card and "--reward_model rm" in card
    assert set(ModelCard(card).data.to_dict()) == {"library_name", "pipeline_tag", "tags"}


def test_names_on_the_hub_are_told(sft, tmp_path):
    folder = save(tmp_path / "rm", sft, entropy_threshold=1000.0)
    config = RewardConfig(
        model="someone/base@main", data=["someone/pairs:clean"], eval_data=["someone/held-out"], output_dir=str(folder)
    )
    data = ModelCard(card_of(folder, Making("train-rm", config, [], (0.75, 40)))).data
    assert data.base_model == "someone/base" or data.base_model == ["someone/base"]
    assert data.datasets == ["someone/pairs"] and data.license is None
    (result,) = data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("someone/held-out", "accuracy", 0.75)
    assert result.metric_name == "accuracy on 40 held-out pairs"


def test_options_are_shown_as_they_would_be_typed(sft):
    config = RewardConfig(model="someone/base", data=["a.jsonl", "b.jsonl"], output_dir="runs/rm", lr=1e-3, resume=True)
    lines = ["denserl train-rm", "--output_dir rm", "--data a.jsonl b.jsonl", "--model someone/base", "--lr 0.001"]
    assert shown_command("train-rm", config) == " \\\n    ".join(lines)


def test_a_card_that_a_user_wrote_or_changed_stays(sft, tmp_path, caplog):
    folder = save(tmp_path / "rm", sft, entropy_threshold=5.3)
    config = RewardConfig(model=str(sft), data=["rows.jsonl"], output_dir=str(folder))
    write_cards(folder, Making("train-rm", config, ["first"]))
    write_cards(folder, Making("train-rm", config, ["second"]))
    own = (folder / CARD).read_text()
    assert "second" in own and "first" not in own and is_as_written(own) and not (folder / BESIDE).exists()
    edited = own.replace("---\nlibrary", "---\nlicense: mit\nlibrary")
    (folder / CARD).write_text(edited)
    write_cards(folder, Making("train-rm", config, ["third"]))
    assert (folder / CARD).read_text() == edited and "third" in (folder / BESIDE).read_text()
    assert "is yours and stays" in caplog.text


def test_a_model_in_the_working_folder_is_called_as_that_is(sft, tmp_path, monkeypatch):
    folder = save(tmp_path / "rm", sft, entropy_threshold=5.3)
    monkeypatch.chdir(folder)
    card = card_of(Path("."), Making("train-rm", RewardConfig(model=str(sft), data=["rows.jsonl"], output_dir=".")))
    assert "# `rm`" in card and "--output_dir rm" in card and 'path = "rm"' in card


def test_what_a_model_is_and_what_went_in_is_told(sft, tmp_path):
    folder = save(tmp_path / "rm", sft, entropy_threshold=5.3, agg_func="min", max_length=64)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a private row"}\n')
    config = RewardConfig(model=str(sft), data=[str(tmp_path / "rows.jsonl")], output_dir=str(folder))
    card = card_of(folder, Making("train-rm", config, ["accuracy 0.7"], precision="fp32"))
    assert "scores segments of responses (segment level)" in card and "above 5.3 nats" in card
    assert "is the `min` of its parts" in card and "SFT model: `sft`, fingerprint `fp32:0123`" in card
    # As sha256sum says it.
    assert hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest() in card and "private row" not in card
    assert json.loads((folder / "config.json").read_text())["segment_reward"]["sft_model"] == str(sft)
