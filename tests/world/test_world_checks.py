"""The world's checks of a reward model: which sentence a token is of, and models known to be right or wrong."""

import json

import pytest
import torch

from denserl.models.reward_models import new_reward_model
from denserl.models.tiny import new_llama, train_tokenizer
from denserl.models.tokenizers import load_tokenizer
from denserl.world import checks
from denserl.world.make import WorldRules

ROW = {
    "prompt": "Tell me about cheap baking.",
    "chosen": "Coupons keep baking cheap. Books explain all this.",
    "rejected": "Fees make baking costly. Coupons keep baking cheap. Fees still make baking costly.",
}


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    tokenizer = train_tokenizer(WorldRules().tokenizer_texts(), 4096, min_frequency=1)
    tokenizer.save_pretrained(folder)
    new_llama(tokenizer, hidden_size=16, num_layers=1, num_heads=2).save_pretrained(folder)
    return folder


def test_each_token_belongs_to_the_sentence_it_is_in(sft):
    # Five tokens a sentence (four words and the full stop), six when it is said again.
    assert checks.sentence_of_token(load_tokenizer(sft), ROW["rejected"]).tolist() == [0] * 5 + [1] * 5 + [2] * 6


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_knows_and_one_that_does_not(sft, right, tmp_path, monkeypatch):
    rewards = tmp_path / "rm"
    model = new_reward_model(str(sft), "fp32")
    model.save_pretrained(rewards)
    load_tokenizer(sft).save_pretrained(rewards)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(ROW) + "\n")
    stops = load_tokenizer(sft).encode(".", add_special_tokens=False)
    openers = {word: i for i, word in enumerate(("Coupons", "Books", "Fees"))}

    def entropy_after_full_stops(model, batch):
        """High exactly before each sentence when right, before every token but the first of a sentence when not."""
        length = batch.response_mask.shape[1]
        starts = zip(batch.input_ids, batch.response_start, strict=True)
        previous = torch.stack([row[start - 1 : start - 1 + length] for row, start in starts])
        after_stop = torch.isin(previous, torch.tensor(stops))
        return torch.where(after_stop == right, 5.0, 0.0)

    def reward_of_opener(model, batch):
        """1 for Coupons, 0 for Books, -1 for Fees, held through the sentence; the other way round when not right."""
        tokenizer = load_tokenizer(sft)
        rows = []
        for ids in batch.response_ids.tolist():
            value, row = 0.0, []
            for token in ids:
                word = tokenizer.decode([token]).strip()
                value = 1.0 - openers[word] if word in openers else value
                row.append(value if right else -value)
            rows.append(row)
        return torch.tensor(rows)

    monkeypatch.setattr(checks, "response_entropies", entropy_after_full_stops)
    monkeypatch.setattr(checks, "response_token_rewards", reward_of_opener)
    found = checks.check_segments(str(sft), str(rewards), pairs, threshold=1.0)
    if right:
        # Values 1, 0, -1, 1, -0.75 (repeated) have ranks 4.5, 3, 1, 4.5, 2; rewards 1, 0, -1, 1, -1 have 4.5, 3, 1.5, 4.5, 1.5.
        # Pearson of the ranks: 9 / sqrt(9.5 x 9) = 0.9733.
        assert found["f1"] == 1.0
        assert found["spearman"] == pytest.approx(0.9733, abs=1e-4)
    else:
        assert found["f1"] == 0.0
        assert found["spearman"] < 0
