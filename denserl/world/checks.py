"""How well a reward model trained in the world recovers sentence boundaries and sentence values."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import PreTrainedTokenizerBase

from denserl.data.batching import map_responses, pad_rows
from denserl.data.chat import encode_prompt, encode_response
from denserl.models.loading import load_policy
from denserl.models.reward_models import load_reward_model
from denserl.models.scoring import response_entropies
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.pair_metrics import response_token_rewards
from denserl.segmentation import segment_by_entropy
from denserl.world import language


class Agreement(NamedTuple):
    """Segments of responses beside the sentences of the world."""

    f1: float  # of segment starts against sentence starts, without each response's first token, which is always both
    rewards: np.ndarray  # (n,) raw rewards of all segments
    values: np.ndarray  # (n,) true values of the sentences that their last tokens are of
    places: np.ndarray  # (n,) k / K, where in its response each segment stands

    def spearman(self, low: float = 0.0, high: float = 1.0) -> float:
        """Rank correlation of rewards and values, of segments whose place is in (low, high]."""
        there = (self.places > low) & (self.places <= high)
        return float(spearmanr(self.rewards[there], self.values[there]).statistic)


def check_segments(sft_model: str, reward_model: str, pairs: Path, threshold: float) -> dict[str, float]:
    """`f1` and `spearman` of the `Agreement` of a reward model's segments with the sentences of a preference file."""
    found = agreement(sft_model, reward_model, pairs, threshold)
    return {"f1": found.f1, "spearman": found.spearman()}


def agreement(sft_model: str, reward_model: str, pairs: Path, threshold: float) -> Agreement:
    """Score the responses of a preference file of the world and compare segments with its sentences.

    threshold: nats, where segments are cut.
    """
    tokenizer = load_tokenizer(sft_model)
    rows = [json.loads(line) for line in Path(pairs).read_text(encoding="utf-8").splitlines()]
    texts = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    messages = [[{"role": "user", "content": prompt}] for prompt, _ in texts]
    prompts = [encode_prompt(tokenizer, message) for message in messages]
    responses = [encode_response(tokenizer, m, response) for m, (_, response) in zip(messages, texts, strict=True)]
    policy, scorer = load_policy(sft_model, "fp32").eval(), load_reward_model(reward_model, "fp32").eval()
    share = {"pad_id": tokenizer.pad_token_id, "max_tokens": 16384, "device": "cpu"}
    entropies = map_responses(
        prompts,
        responses,
        lambda batch: response_entropies(policy, batch),
        progress="entropies",
        **share,
    )
    scores = map_responses(prompts, responses, lambda batch: response_token_rewards(scorer, batch), progress="scores", **share)
    found = hits = true = 0
    rewards, values, places = [], [], []
    for i, (prompt, response) in enumerate(texts):
        sentence = sentence_of_token(tokenizer, response)
        entropy = pad_rows([entropies[i]], 0.0, torch.float32)
        segments = segment_by_entropy(entropy, torch.ones_like(entropy), threshold)
        ids, ends = segments.ids[0].numpy(), segments.ends[0].numpy().nonzero()[0]
        starts = set(np.flatnonzero(np.diff(ids[: len(sentence)]) > 0))
        true_starts = set(np.flatnonzero(np.diff(sentence) > 0))
        found, true, hits = found + len(starts), true + len(true_starts), hits + len(starts & true_starts)
        worth = language.true_values(prompt, response)
        rewards += [float(scores[i][end]) for end in ends]
        values += [worth[sentence[min(end, len(sentence) - 1)]] for end in ends]
        places += [k / len(ends) for k in range(1, len(ends) + 1)]
    return Agreement(2 * hits / max(found + true, 1), np.array(rewards), np.array(values), np.array(places))


def sentence_of_token(tokenizer: PreTrainedTokenizerBase, response: str) -> np.ndarray:
    """The number of the sentence that each token of the response text belongs to."""
    offsets = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = [end for _, end in language.sentences(response)]
    return np.minimum(np.searchsorted(ends, [end for _, end in offsets], side="left"), len(ends) - 1)
