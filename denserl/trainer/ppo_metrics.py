"""What PPO reports of an iteration: means over responses, sample responses with their segments, averages of steps, times."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from denserl import distributed
from denserl.data.characters import ends_of_tokens
from denserl.data.responses import Responses
from denserl.ppo_utils.dense_reward import DenseRewards, weighted_sum
from denserl.ppo_utils.experience import Experience, ScoredRollouts
from denserl.ppo_utils.kl import approx_kl
from denserl.ppo_utils.mismatch import mismatch
from denserl.rewards.sources.reading import response_text
from denserl.trainer.checkpoint import read_state
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_rewards import Rewards
from denserl.trainer.tracker_runs import chosen_trackers
from denserl.trainer.trackers import Trackers, write_batch

# What held-out responses are worth beside the reward that is trained on, by name: a number each.
Judged = dict[str, list[float]]

TOKENS_LOGGED = 2048  # of a sample response those, its first, whose KL and entropy are logged
QUANTILES = {"reward_q05": 0.05, "reward_q50": 0.5, "reward_q95": 0.95}


def rollout_metrics(
    scored: ScoredRollouts, rewards: Rewards, judged: Judged, counted: Tensor, max_new_tokens: int
) -> dict[str, float]:
    """What is reported of the counted responses of all ranks (docs/metrics.md).

    counted: (N,) bool. max_new_tokens: the most that a response may have.
    """
    per_response = of_responses(scored, rewards, max_new_tokens)
    per_response |= {key: torch.tensor(values, device=counted.device) for key, values in judged.items()}
    spread = ["reward", *judged]
    per_response |= {f"{key}_std": per_response[key].float() ** 2 for key in spread}
    totals = {key: torch.where(counted, value, 0.0).sum() for key, value in per_response.items()}
    scores = torch.where(counted, per_response["reward"], torch.nan)
    means, every_score = distributed.average_and_gather(totals, counted.sum(), scores)
    means |= rewards.logged(counted)
    means |= {f"{key}_std": max(means[f"{key}_std"] - means[key] ** 2, 0.0) ** 0.5 for key in spread}
    if scored.sampled is not None:
        means |= mismatch(scored.logprobs, scored.sampled, scored.mask & counted[:, None])
    of_tokens = per_token(means.pop("nll"), means.pop("ref_nll"), means["kl"], means["response_length"])
    return means | of_tokens | quantiles(every_score)


def of_responses(scored: ScoredRollouts, rewards: Rewards, max_new_tokens: int) -> dict[str, Tensor]:
    """Numbers of each response, (N,), whose means are reported, or make what is (`per_token`)."""
    mask, sources = scored.mask, scored.sources
    segments, tokens = sources[0].segments, mask.sum(1)
    per_response = {
        "kl": torch.where(mask, approx_kl(scored.logprobs, scored.ref_logprobs), 0.0).sum(1),
        "nll": -torch.where(mask, scored.logprobs, 0.0).sum(1),
        "ref_nll": -torch.where(mask, scored.ref_logprobs, 0.0).sum(1),
        "reward": weighted_sum([source.score for source in sources], rewards.weights),
        "normalised_reward": weighted_sum([source.changes.sum(1) for source in sources], rewards.weights),
        "paid": scored.rewards.sum(1),
        "response_length": tokens.float(),
        "segments": segments.counts.float(),
        "segment_length": segments.lengths.sum(1) / segments.counts.clamp(min=1),
        "entropy": torch.where(mask, scored.entropy, 0.0).sum(1) / tokens.clamp(min=1),
        "ended": scored.ended.float(),
        "capped": (~scored.ended & (tokens >= max_new_tokens)).float(),
    }
    held = [source.clipped for paid, source in zip(rewards.sources, sources, strict=True) if paid.dense.score_clip is not None]
    if held:
        per_response["score_clipped"] = torch.stack(held).mean(0)
    if len(sources) > 1:
        for paid, source in zip(rewards.sources, sources, strict=True):
            per_response |= {f"reward/{paid.name}": source.score, f"segments/{paid.name}": source.segments.counts.float()}
    return per_response


def per_token(nll: float, ref_nll: float, kl: float, tokens: float) -> dict[str, float]:
    """Perplexities, exp of a token's mean negative log-probability, and KL, of sums over responses, means of these given."""
    tokens = max(tokens, 1e-8)
    perplexity, of_reference = torch.tensor([nll / tokens, ref_nll / tokens]).exp().tolist()
    return {"perplexity": perplexity, "ref_perplexity": of_reference, "kl_per_token": kl / tokens}


def quantiles(scores: Tensor) -> dict[str, float]:
    """Of the scores of responses that are numbers, of any shape; NaN where there are none."""
    scores = scores[~scores.isnan()].double()
    found = scores.quantile(scores.new_tensor(list(QUANTILES.values()))) if len(scores) else [float("nan")] * len(QUANTILES)
    return {name: float(value) for name, value in zip(QUANTILES, found, strict=True)}


class RunLog(NamedTuple):
    """Where a run writes: metrics, sample responses, and the batches of steps that were skipped."""

    trackers: Trackers
    tokenizer: PreTrainedTokenizerBase
    output_dir: Path
    samples: int  # logged of each iteration

    @property
    def skipped(self) -> Path:
        """Folder for the batches of steps that were not applied."""
        return self.output_dir / "skipped"

    def log_samples(
        self, name: str, step: int, responses: Responses, scored: ScoredRollouts, rewards: Rewards, judged: Judged
    ) -> None:
        """Rank 0's first responses with their segments by each source: the numbers of each, and what its tokens were paid.

        Of each also its reward, KL and entropy by token, and a hash of its prompt's ids, by which it is found again.
        """
        if not self.trackers.active:
            return
        count = min(self.samples, len(responses.texts))
        scored = _on_host(scored, count)
        samples = [
            self._sample(responses, scored, rewards, i) | {key: values[i] for key, values in judged.items()}
            for i in range(count)
        ]
        self.trackers.log_samples(name, step, samples)

    def write_skipped(self, name: str, responses: Responses, experience: Experience, rows: Sequence[int]) -> None:
        """This rank's share of a step that was not applied, for study: text, token ids and what the losses are made of."""
        samples = []
        for row in rows:
            prompt, response = responses.prompt_ids[row], responses.response_ids[row]
            texts = {"prompt": self.tokenizer.decode(prompt), "response": self.tokenizer.decode(response)}
            ids = {"prompt_ids": prompt, "response_ids": response}
            known = {name: x for name, x in experience._asdict().items() if name != "mask" and x is not None}
            samples.append({**texts, **ids, **{name: x[row, : len(response)].tolist() for name, x in known.items()}})
        write_batch(self.skipped, name, samples)

    def _sample(self, responses: Responses, scored: ScoredRollouts, rewards: Rewards, i: int) -> dict:
        # Of a whole response in one segment, the end of turn is a part that is no text.
        ids = responses.response_ids[i][:-1] if responses.ended[i] else responses.response_ids[i]
        first, *others = [self._segments(ids, source, i) for source in scored.sources]
        more = {paid.name: segments for paid, segments in zip(rewards.sources[1:], others, strict=True)}
        weights = {paid.name: paid.weight for paid in rewards.sources}
        score = weighted_sum([source.score[i] for source in scored.sources], rewards.weights)
        return {
            "prompt_id": xxhash.xxh3_64_hexdigest(json.dumps(list(responses.prompt_ids[i])).encode()),
            "messages": responses.prompts[i],
            "prompt": self.tokenizer.decode(responses.prompt_ids[i], skip_special_tokens=True),
            "response": responses.texts[i],
            "ended": responses.ended[i],
            "reward": round(float(score), 4),
            **self._tokens(responses.response_ids[i], responses.texts[i], scored, i),
            "segments": first,
            **({"segments_of_other_sources": more, "weights": weights} if more else {}),
        }

    def _tokens(self, ids: Sequence[int], text: str, scored: ScoredRollouts, i: int) -> dict[str, Any]:
        """A response's KL, length and mean entropy, and of its first tokens where each ends in the text, its KL and entropy."""
        kl = approx_kl(scored.logprobs[i], scored.ref_logprobs[i])[: len(ids)]
        entropy, shown = scored.entropy[i, : len(ids)], ids[:TOKENS_LOGGED]
        columns = {"kl": kl[:TOKENS_LOGGED].tolist(), "entropy": entropy[:TOKENS_LOGGED].tolist()}
        decode = response_text(self.tokenizer)
        ends = ends_of_tokens(shown, decode(list(shown)), [decode([id]) for id in shown], decode)
        return {
            "kl": round(float(kl.sum()), 4),
            "length": len(ids),
            "entropy": round(float(entropy.mean()), 4) if len(ids) else 0.0,
            "tokens": {"end": ends} | {name: [round(x, 4) for x in column] for name, column in columns.items()},
        }

    def _segments(self, ids: Sequence[int], rewards: DenseRewards, i: int) -> list[dict]:
        count, cursor, segments = int(rewards.segments.counts[i]), 0, []
        lengths = rewards.segments.lengths[i, :count].tolist()
        columns = {name: column[i, :count].tolist() for name, column in rewards.of_segments().items()}
        values = zip(*columns.values(), strict=True)
        for length, numbers in zip(lengths, values, strict=True):
            text = self.tokenizer.decode(ids[cursor : cursor + length])
            segments.append({"text": text} | {name: round(value, 4) for name, value in zip(columns, numbers, strict=True)})
            cursor += length
        return segments


def _on_host(rows: Any, count: int) -> Any:
    """The first rows of all tensors in a record, moved there together."""
    if isinstance(rows, Tensor):
        return rows[:count].cpu()
    if isinstance(rows, list):
        return [_on_host(part, count) for part in rows]
    return rows._make(_on_host(part, count) for part in rows) if hasattr(rows, "_make") else rows


def open_log(config: PPOConfig, tokenizer: PreTrainedTokenizerBase, checkpoint: Path | None) -> RunLog:
    """Where the run of a config writes; files are cut back to what they were at the checkpoint that it goes on from."""
    folder, sizes = Path(config.output_dir), read_state(checkpoint)["files"] if checkpoint else {}
    trackers = Trackers(folder, chosen_trackers(config.report_to), dataclasses.asdict(config), sizes)
    return RunLog(trackers, tokenizer, folder, config.samples_logged)


class Averages:
    """Means of logged tensors; each name over as many values as it was given."""

    def __init__(self):
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def over_ranks(self) -> dict[str, float]:
        """The means, over all ranks too, in one reduction."""
        sums = distributed.all_sum(torch.stack(list(self.totals.values()))) / distributed.world_size()
        return {name: total / self.counts[name] for name, total in zip(self.totals, sums.tolist(), strict=True)}


class Clock:
    """Seconds of the phases of one iteration."""

    def __init__(self):
        self.last, self.seconds = time.perf_counter(), {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self.last = now - self.last, now

    def rates(self, tokens: float) -> dict[str, float]:
        """Response tokens per second (all ranks) of each phase, and the seconds."""
        rates = {f"{phase}_tokens_per_second": tokens / seconds for phase, seconds in self.seconds.items()}
        return rates | {f"{phase}_seconds": seconds for phase, seconds in self.seconds.items()}
