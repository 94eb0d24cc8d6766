"""The PPO loop: sample, score, make experience, update. It reads like the algorithm; formulas are in denserl/ppo_utils.

Models, engines and files come in ready; nothing is loaded here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from denserl import distributed
from denserl.data.batching import ResponseBatch, in_halves, pad_responses, response_slots
from denserl.errors import Stopped
from denserl.models.loading import gathered
from denserl.models.scoring import token_logprob_entropy, token_rewards
from denserl.ppo_utils.dense_reward import DenseReward
from denserl.ppo_utils.experience import Experience, ScoredRollouts, make_experience
from denserl.ppo_utils.kl import KLCoefficient, approx_kl
from denserl.ppo_utils.losses import average_count, masked_average, policy_loss, value_loss
from denserl.trainer.checkpoint import load_checkpoint, save_checkpoint
from denserl.trainer.engine import trained_parameters
from denserl.trainer.rollout import Rollouts, Sampler, Stream, prompt_rows, step_table
from denserl.trainer.stopping import StopRequest
from denserl.trainer.trackers import Trackers, not_finite, write_batch

Result = TypeVar("Result")

# The first number after the seed in the name of a stream of random numbers: what the stream is for.
SAMPLING, EVALUATION, STEPS = range(3)


@dataclass(frozen=True)
class PPOConfig:
    """The numbers of the loop. Batch sizes count responses over all ranks, micro_batch those of one forward on one rank."""

    iterations: int
    rollout_batch: int
    train_batch: int
    micro_batch: int
    samples_per_prompt: int
    ppo_epochs: int
    gamma: float
    lam: float
    policy_clip: float
    value_clip: float
    average: str
    reward_clip: float
    kl_estimator: str
    temperature: float
    ptx_coef: float
    ema_decay: float
    freeze_actor_steps: int
    eval_every: int
    save_every: int
    keep_checkpoints: int
    max_skipped_steps: int
    samples_logged: int
    seed: int

    @property
    def steps_per_iteration(self) -> int:
        return self.ppo_epochs * self.rollout_batch // self.train_batch

    @property
    def total_steps(self) -> int:
        return self.iterations * self.steps_per_iteration


class PolicyModule(nn.Module):
    """A language model whose forward gives log-probabilities and entropies of given tokens, so that an engine can wrap it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *args, **kw) -> tuple[Tensor, Tensor]:
        return token_logprob_entropy(self.model, *args, **kw)


class Models(NamedTuple):
    """actor and critic: DeepSpeed engines; reference: a frozen PolicyModule; scores: batch -> (B, T) token scores.

    gold: (batch, ended) -> (B,) scores of held-out responses, which nothing is trained on.
    """

    actor: nn.Module
    critic: nn.Module
    reference: nn.Module
    scores: Callable[[ResponseBatch], Tensor]
    gold: Callable[[ResponseBatch, Tensor], Tensor] | None = None


class PPOTrainer:
    """Proximal policy optimisation with dense rewards (spec dense-rlhf, section 6).

    Args:
        prompts, eval_prompts: rows with `prompt` (messages) and `prompt_ids`.
        sampler: prompts and streams of random numbers -> Rollouts.
        ptx_batches: optimiser step -> this rank's micro-batches of text for the pretraining loss, or None.
        true_reward: (prompts as messages, responses as text) -> rewards, only reported, or None.
        settings: kept with every checkpoint, to be compared when a run is resumed.

    Random numbers depend on seed, iteration and the response's number alone, so that a run goes the same way on any number
    of ranks, and a resumed one goes on as it would have gone.
    """

    def __init__(
        self,
        config: PPOConfig,
        models: Models,
        dense_reward: DenseReward,
        kl: KLCoefficient,
        sampler: Sampler,
        *,
        tokenizer,
        prompts,
        eval_prompts,
        output_dir: Path,
        device: torch.device,
        ptx_batches: Callable[[int], list[ResponseBatch]] | None = None,
        true_reward: Callable | None = None,
        settings: dict | None = None,
    ):
        self.config, self.models, self.dense_reward, self.kl, self.sampler = config, models, dense_reward, kl, sampler
        self.tokenizer, self.prompts, self.eval_prompts = tokenizer, prompts, eval_prompts
        self.output_dir, self.device = output_dir, device
        self.trackers: Trackers | None = None
        self.ptx_batches, self.true_reward, self.settings = ptx_batches, true_reward, settings or {}
        # Optimiser steps so far, and those of them that were skipped since the last one that was applied.
        self.iteration, self.steps, self.skipped_in_a_row = 0, 0, 0
        self.ema: list[Tensor] = []
        if config.ema_decay:
            self._average_policy()
        self._train_mode(False)

    def train(self) -> None:
        """Run all iterations that are left.

        Raises:
            Stopped: SIGTERM or SIGINT asked for it; the iteration was finished and saved.
            UserError: too many updates in a row were not finite; a checkpoint holds the weights from before.
        """
        config = self.config
        if self.iteration == 0 and self.eval_prompts is not None and config.eval_every:
            self.trackers.log(0, self.evaluate())
        bar = tqdm(total=config.iterations, initial=self.iteration, desc="ppo", disable=distributed.rank() > 0)
        with StopRequest() as stop, bar:
            while self.iteration < config.iterations:
                metrics = self.iterate()
                if self.eval_prompts is not None and self._every(config.eval_every):
                    metrics |= self.evaluate()
                self.trackers.log(self.iteration, metrics)
                bar.update()
                bar.set_postfix({key: f"{metrics[key]:.3g}" for key in ("reward", "kl", "response_length")})
                stopping, in_trouble = stop.requested(), self.skipped_in_a_row >= config.max_skipped_steps
                if stopping or in_trouble or self._every(config.save_every):
                    saved = self.save_checkpoint()
                if in_trouble:
                    raise not_finite(self.skipped_in_a_row, self.output_dir / "skipped", saved, "--actor_lr and --critic_lr")
                if stopping and self.iteration < config.iterations:
                    raise Stopped(f"stopped after iteration {self.iteration} of {config.iterations}; {saved} is complete")

    def iterate(self) -> dict[str, float]:
        """One iteration: sample, score, make experience, update; returns its metrics."""
        config, clock = self.config, Clock()
        rollouts = self.sampler(*self._next_prompts())
        clock.lap("rollout")
        scored, values = self.score(rollouts)
        experience, log = make_experience(
            scored,
            values,
            beta=self.kl.beta,
            reward_clip=config.reward_clip,
            gamma=config.gamma,
            lam=config.lam,
            kl_estimator=config.kl_estimator,
        )
        metrics = self._rollout_metrics(rollouts, scored)
        clock.lap("scoring")
        metrics |= {**self.update(rollouts, experience), **{key: value.item() for key, value in log.items()}}
        clock.lap("update")
        first_return = experience.returns[:, :1].sum(1)
        metrics |= {"return": self._mean(first_return, experience.mask.any(1)), "kl_coefficient": self.kl.beta}
        metrics |= clock.rates(metrics["response_length"] * config.rollout_batch)
        self.kl.update(metrics["kl"], config.rollout_batch)
        self.iteration += 1
        self._log_samples("samples", rollouts, scored)
        return metrics

    def score(self, rollouts: Rollouts) -> tuple[ScoredRollouts, Tensor]:
        """Log-probabilities, entropies, values and dense rewards of this rank's rollouts, without gradient."""
        parts = self._by_micro_batch(lambda rows: self._score_rows(rollouts, rows), len(rollouts.responses))
        mask, logprobs, entropy, ref_logprobs, ref_entropy, scores, values = map(_join_padded, zip(*parts, strict=True))
        ended = torch.tensor(rollouts.ended, device=self.device)
        rewards = self.dense_reward(scores, ref_entropy, mask, ended)
        return ScoredRollouts(mask, ended, logprobs, ref_logprobs, entropy, rewards), values

    def update(self, rollouts: Rollouts, experience: Experience) -> dict[str, float]:
        """Policy and value updates over the rollout batch; every optimiser step averages over all of its responses.

        A step whose loss or gradient is not finite is skipped by the engine, and its batch written to `skipped/`.
        """
        config, (rank, world) = self.config, (distributed.rank(), distributed.world_size())
        rates = {"actor_lr": self.models.actor.get_lr()[0], "critic_lr": self.models.critic.get_lr()[0]}
        log, skipped = Averages(), 0
        self._train_mode(True)
        for epoch in range(config.ppo_epochs):
            stream = (config.seed, STEPS, self.iteration, epoch)
            table = step_table(config.rollout_batch, config.train_batch, stream)
            for rows in (table[:, rank::world] // world).tolist():
                self._optimiser_step(rollouts, experience, rows, log)
                if self._step_applied():
                    self.skipped_in_a_row = 0
                    if self.ema:
                        self._average_policy()
                else:
                    skipped += 1
                    self.skipped_in_a_row += 1
                    self._write_skipped(rollouts, experience, rows)
                self.steps += 1
        self._train_mode(False)
        return log.over_ranks() | rates | {"skipped_steps": skipped}

    def evaluate(self) -> dict[str, float]:
        """Roll out the held-out prompts, each counted once on any number of ranks, with metrics under `eval_`."""
        rank, world = distributed.rank(), distributed.world_size()
        count = len(self.eval_prompts)
        # Every rank takes equally many, so that collective forwards stay in step; what wraps around is not counted.
        mine = [rank + world * i for i in range(-(-count // world))]
        rows = self.eval_prompts[[row % count for row in mine]]
        rollouts = self.sampler(rows["prompt_ids"], [(self.config.seed, EVALUATION, self.iteration, row) for row in mine])
        scored, _ = self.score(rollouts)
        judged = self.judge(rollouts, rows["prompt"])
        counted = torch.tensor([row < count for row in mine], device=self.device)
        metrics = self._rollout_metrics(rollouts, scored, judged, counted)
        self._log_samples("eval_samples", rollouts, scored, judged)
        return {f"eval_{key}": value for key, value in metrics.items()}

    def judge(self, rollouts: Rollouts, prompts: list[list[dict]]) -> dict[str, list[float]]:
        """What this rank's rollouts are worth beside the reward that is trained on: true and gold rewards, where known.

        prompts: as messages.
        """
        judged = {}
        if self.true_reward is not None:
            judged["true_reward"] = self.true_reward(prompts, self._texts(rollouts.responses))
        if self.models.gold is not None:
            parts = self._by_micro_batch(lambda rows: self._gold_rewards(rollouts, rows), len(rollouts.responses))
            judged["gold_reward"] = torch.cat(parts).tolist()
        return judged

    def save_checkpoint(self) -> Path:
        counters = {"iteration": self.iteration, "steps": self.steps, "skipped_in_a_row": self.skipped_in_a_row}
        state = {**counters, "beta": self.kl.beta, "settings": self.settings, "files": self.trackers.sizes}
        tensors = {f"ema.{i}": tensor for i, tensor in enumerate(self.ema)}
        engines = {"actor": self.models.actor, "critic": self.models.critic}
        folder, name = self.output_dir / "checkpoints", f"iteration-{self.iteration:06d}"
        return save_checkpoint(folder, name, state, engines, tensors, self.config.keep_checkpoints)

    def resume(self, path: Path) -> None:
        """Policy, critic, optimisers, schedulers, KL coefficient, averages, random state and place in the data."""
        state, tensors = load_checkpoint(path, {"actor": self.models.actor, "critic": self.models.critic})
        self.iteration, self.steps = state["iteration"], state["steps"]
        self.skipped_in_a_row, self.kl.beta = state["skipped_in_a_row"], state["beta"]
        self.ema = [tensors[f"ema.{i}"].to(self.device) for i in range(len(self.ema))]

    def _score_rows(self, rollouts: Rollouts, rows: list[int]) -> tuple[Tensor, ...]:
        """Mask, log-probabilities, entropies (policy, then reference), scores and values of some responses, each (b, t)."""
        batch = self._batch(rollouts, rows)
        logprobs, entropy = self._logprob_entropy(self.models.actor, batch, self.config.temperature)
        ref_logprobs, ref_entropy = self._logprob_entropy(self.models.reference, batch, self.config.temperature)
        values = self._values(batch, batch.response_mask.shape[1])
        return batch.response_mask, logprobs, entropy, ref_logprobs, ref_entropy, self.models.scores(batch), values

    def _gold_rewards(self, rollouts: Rollouts, rows: list[int]) -> Tensor:
        ended = torch.tensor([rollouts.ended[i] for i in rows], device=self.device)
        return self.models.gold(self._batch(rollouts, rows), ended)

    def _optimiser_step(self, rollouts: Rollouts, experience: Experience, rows: list[int], log: "Averages") -> None:
        """One step of critic and actor on this rank's `rows`, micro-batch by micro-batch."""
        config, micro_batches = self.config, self._micro_batches(rows)
        share = self._share_of_step(average_count(experience.mask[rows], config.average), len(micro_batches))
        texts = self.ptx_batches(self.steps) if self.ptx_batches else []
        text_count = torch.stack([text.response_mask.sum() for text in texts]).sum() if texts else None
        text_share = self._share_of_step(text_count, len(micro_batches)) if texts else None
        for i, micro in enumerate(micro_batches):
            batch = self._batch(rollouts, micro)
            old = experience.rows(torch.tensor(micro, device=self.device), batch.response_mask.shape[1])
            log.add(self._critic_step(batch, old, share))
            if self.steps >= config.freeze_actor_steps:
                log.add(self._actor_step(batch, old, share, texts[i] if texts else None, text_share))
        norms = {"actor_grad_norm": self.models.actor, "critic_grad_norm": self.models.critic}
        norms = {name: engine.get_global_grad_norm() for name, engine in norms.items()}
        log.add({k: torch.as_tensor(v, dtype=torch.float32, device=self.device) for k, v in norms.items() if v is not None})

    def _share_of_step(self, count: Tensor, micro_batches: int) -> Tensor:
        """What a micro-batch's sum is divided by, given what it counts on this rank.

        DeepSpeed takes the mean over micro-batches and ranks; what remains is division by the whole step's count.
        """
        return distributed.all_sum(count.float().to(self.device)) / micro_batches / distributed.world_size()

    def _step_applied(self) -> bool:
        frozen = self.steps < self.config.freeze_actor_steps
        return self.models.critic.was_step_applied() and (frozen or self.models.actor.was_step_applied())

    def _write_skipped(self, rollouts: Rollouts, experience: Experience, rows: list[int]) -> None:
        """This rank's share of a step that was not applied, for study: text, token ids and what the losses are made of."""
        samples = []
        for row in rows:
            prompt, response = rollouts.prompts[row], rollouts.responses[row]
            texts = {"prompt": self.tokenizer.decode(prompt), "response": self.tokenizer.decode(response)}
            ids = {"prompt_ids": prompt, "response_ids": response}
            values = {name: x[row, : len(response)].tolist() for name, x in experience._asdict().items() if name != "mask"}
            samples.append({**texts, **ids, **values})
        write_batch(self.output_dir / "skipped", f"iteration-{self.iteration + 1:06d}-step-{self.steps + 1:06d}", samples)

    def _critic_step(self, batch: ResponseBatch, old: Experience, share: Tensor) -> dict[str, Tensor]:
        values = self._values(batch, batch.response_mask.shape[1])
        loss, clipped = value_loss(
            values, old.values, old.returns, old.mask, self.config.value_clip, self.config.average, share
        )
        self.models.critic.backward(loss)
        self.models.critic.step()
        return {"value_loss": loss.detach(), "value_clip_fraction": clipped}

    def _actor_step(
        self, batch: ResponseBatch, old: Experience, share: Tensor, text: ResponseBatch | None, text_share: Tensor | None
    ) -> dict[str, Tensor]:
        config = self.config
        logprobs, _ = self._logprob_entropy(self.models.actor, batch, config.temperature, with_entropy=False)
        loss, clipped = policy_loss(logprobs, old.logprobs, old.advantages, old.mask, config.policy_clip, config.average, share)
        now = logprobs.detach()
        log = {
            "policy_loss": loss.detach(),
            "clip_fraction": clipped,
            "approx_kl": masked_average(approx_kl(old.logprobs, now, "k3"), old.mask, config.average, share),
            "ratio": masked_average((now - old.logprobs).exp(), old.mask, config.average, share),
        }
        if text is not None:
            ptx_loss = self._ptx_loss(text, text_share)
            loss = loss + config.ptx_coef * ptx_loss
            log["ptx_loss"] = ptx_loss.detach()
        self.models.actor.backward(loss)
        self.models.actor.step()
        return log

    def _train_mode(self, on: bool) -> None:
        """Training mode is what switches gradient checkpointing on; sampling and scoring run without it."""
        self.models.actor.train(on)
        self.models.critic.train(on)

    def _ptx_loss(self, text: ResponseBatch, share: Tensor) -> Tensor:
        """Next-token loss of a micro-batch of text, averaged over the response tokens of the whole step."""
        batch = text.to(self.device)
        logprobs, _ = self._logprob_entropy(self.models.actor, batch, 1.0, with_entropy=False)
        return -masked_average(logprobs, batch.response_mask, "token_mean", share)

    def _logprob_entropy(self, module, batch: ResponseBatch, temperature: float, with_entropy: bool = True):
        settings = {"temperature": temperature, "shared": batch.shared, "with_entropy": with_entropy}
        return module(*batch[:3], response_length=batch.response_mask.shape[1], **settings)

    def _values(self, batch: ResponseBatch, width: int) -> Tensor:
        """(B, T) values of the states before each response token: the head at the token before it."""
        values = token_rewards(self.models.critic, batch.input_ids, batch.attention_mask, batch.shared)
        return response_slots(values, batch.response_start - 1, width)

    def _rollout_metrics(
        self,
        rollouts: Rollouts,
        scored: ScoredRollouts,
        judged: dict[str, list[float]] | None = None,
        counted: Tensor | None = None,
    ) -> dict[str, float]:
        """Means over the counted responses of all ranks."""
        mask, rewards = scored.mask, scored.rewards
        counts, tokens = rewards.segments.counts, mask.sum(1)
        per_response = {
            "kl": torch.where(mask, approx_kl(scored.logprobs, scored.ref_logprobs), 0.0).sum(1),
            "reward": self.dense_reward.score(rewards.raw, counts),
            "normalised_reward": rewards.changes.sum(1),
            "response_length": tokens.float(),
            "segments": counts.float(),
            "segment_length": rewards.segments.lengths.sum(1) / counts.clamp(min=1),
            "entropy": torch.where(mask, scored.entropy, 0.0).sum(1) / tokens.clamp(min=1),
            "ended": scored.ended.float(),
        }
        per_response |= {key: torch.tensor(values, device=self.device) for key, values in (judged or {}).items()}
        counted = torch.ones_like(scored.ended) if counted is None else counted
        return distributed.average_over_ranks(
            {key: torch.where(counted, value, 0.0).sum() for key, value in per_response.items()}, counted.sum()
        )

    def _log_samples(
        self, name: str, rollouts: Rollouts, scored: ScoredRollouts, judged: dict[str, list[float]] | None = None
    ) -> None:
        """Rank 0's first responses with their segments, and of each its rewards and what it changed in the response's score."""
        count = min(self.config.samples_logged, len(rollouts.responses))
        samples = [
            self._sample(rollouts, scored, i) | {key: values[i] for key, values in (judged or {}).items()} for i in range(count)
        ]
        self.trackers.log_samples(name, self.iteration, samples)

    def _sample(self, rollouts: Rollouts, scored: ScoredRollouts, i: int) -> dict:
        response, rewards = rollouts.responses[i], scored.rewards
        count, cursor, segments = int(rewards.segments.counts[i]), 0, []
        lengths = rewards.segments.lengths[i, :count].tolist()
        columns = {"raw": rewards.raw, "normalised": rewards.normalised, "change": rewards.changes}
        values = zip(*(column[i, :count].tolist() for column in columns.values()), strict=True)
        for length, numbers in zip(lengths, values, strict=True):
            text = self.tokenizer.decode(response[cursor : cursor + length])
            segments.append({"text": text} | {name: round(value, 4) for name, value in zip(columns, numbers, strict=True)})
            cursor += length
        return {
            "prompt": self.tokenizer.decode(rollouts.prompts[i], skip_special_tokens=True),
            "response": self._texts([response])[0],
            "ended": rollouts.ended[i],
            "segments": segments,
        }

    def _texts(self, responses: list[list[int]]) -> list[str]:
        return [self.tokenizer.decode(response, skip_special_tokens=True) for response in responses]

    def _next_prompts(self) -> tuple[list[list[int]], list[Stream]]:
        """This rank's prompts of the iteration, one for each response, and the streams to sample the responses with."""
        config = self.config
        count = config.rollout_batch // config.samples_per_prompt
        rows = prompt_rows(self.iteration * count, count, len(self.prompts), config.seed)
        mine = range(distributed.rank(), config.rollout_batch, distributed.world_size())
        prompts = self.prompts[[rows[number // config.samples_per_prompt] for number in mine]]["prompt_ids"]
        return prompts, [(config.seed, SAMPLING, self.iteration, number) for number in mine]

    def _batch(self, rollouts: Rollouts, rows: list[int]) -> ResponseBatch:
        prompts, responses = [rollouts.prompts[i] for i in rows], [rollouts.responses[i] for i in rows]
        return pad_responses(prompts, responses, self.tokenizer.pad_token_id).to(self.device)

    def _micro_batches(self, rows: list[int]) -> list[list[int]]:
        size = self.config.micro_batch
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def _by_micro_batch(self, function: Callable[[list[int]], Result], count: int) -> list[Result]:
        """`function` of the numbers of `count` rows, some at a time, fewer where memory does not suffice, without gradient."""
        together = self.models.actor.zero_optimization_stage() == 3 and distributed.world_size() > 1
        with torch.no_grad():
            return [part for rows in self._micro_batches(list(range(count))) for part in in_halves(function, rows, together)]

    def _average_policy(self) -> None:
        """Move the average towards the policy, one whole parameter at a time; the first call starts it there."""
        parameters = trained_parameters(self.models.actor.module)
        with torch.no_grad():
            for i, parameter in enumerate(parameters):
                with gathered([parameter]):
                    if len(self.ema) < len(parameters):
                        self.ema.append(parameter.detach().float().clone())
                    else:
                        self.ema[i].lerp_(parameter.float(), 1 - self.config.ema_decay)

    def _every(self, n: int) -> bool:
        return n > 0 and (self.iteration % n == 0 or self.iteration == self.config.iterations)

    def _mean(self, x: Tensor, counted: Tensor) -> float:
        total = {"mean": torch.where(counted, x, 0.0).sum()}
        return distributed.average_over_ranks(total, counted.sum())["mean"]


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


def _join_padded(parts: tuple[Tensor, ...]) -> Tensor:
    """(b, t) tensors under one another, padded with zeros to the widest."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
