"""The PPO loop: sample, score, make experience, update. It reads like the algorithm; formulas are in denserl/ppo_utils.

What it is made of (models, sources of rewards, losses, metrics) is in the files ppo_*.py beside it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from denserl import distributed
from denserl.data.batching import ResponseBatch, in_halves, pad_rows
from denserl.data.order import endless_rows, step_table
from denserl.data.prompts import LABEL
from denserl.data.responses import Responses
from denserl.errors import Stopped, require
from denserl.models.card import Making, write_cards
from denserl.models.gathering import gathered
from denserl.models.publishing import publish
from denserl.models.tokenizers import load_tokenizer
from denserl.ppo_utils.advantages import Advantages
from denserl.ppo_utils.experience import Experience, ScoredRollouts, make_experience
from denserl.ppo_utils.kl import KLCoefficient
from denserl.rewards.pair_metrics import HUGE_SCORE
from denserl.rewards.sources.answers import Answers
from denserl.rewards.sources.base import ResponseScorer
from denserl.rewards.sources.build import load_members
from denserl.rewards.sources.function import FunctionSource
from denserl.rewards.sources.pair_source import ReferenceAnswers
from denserl.rewards.sources.reading import response_text
from denserl.rollouts.base import Sampler, Stream
from denserl.rollouts.policy import PolicySampler
from denserl.streams import Purpose, stream
from denserl.trainer.checkpoint import load_checkpoint, oldest_number, save_checkpoint
from denserl.trainer.descriptions import describe
from denserl.trainer.engine import trained_parameters
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_data import Schedule, check_sizes, load_rows, text_batches
from denserl.trainer.ppo_engine import Engine, check_mismatch, correction
from denserl.trainer.ppo_judging import HeldOutJudge, check_limit, make_judge
from denserl.trainer.ppo_losses import Part, StepLosses
from denserl.trainer.ppo_metrics import Averages, Clock, Judged, RunLog, open_log, rollout_metrics
from denserl.trainer.ppo_models import (
    Models,
    freeze,
    gold_scorer,
    load_implicit,
    load_models,
    logprob_entropy,
    logprobs_of,
    sample_reference,
    save_models,
    state_values,
)
from denserl.trainer.ppo_rewards import PaidSource, Rewards, join_scores
from denserl.trainer.ppo_sources import Loaded, check_comparisons, check_run, check_sources, make_rewards
from denserl.trainer.start import checkpoint_to_resume, run_settings, start_run, template_of_run
from denserl.trainer.stopping import SaveClock, StopRequest
from denserl.trainer.summaries import in_words, policy_lines
from denserl.trainer.trackers import not_finite, read_metrics

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# What the models that it writes are.
POLICY = "A language model, trained by PPO against the rewards that its command names."
CRITIC = "The critic of a training by PPO: at each token the value of the state before the next one. It is no reward model."
AVERAGE = "The moving average of a policy over its training by PPO."
VALUE_CLIP = {"bandit": 0.2}  # the published ones
DEFAULT_VALUE_CLIP = 0.25
# Options that name the models whose weights a resumed run must have.
MODELS = ("model", "reward_model", "implicit_reward", "implicit_reference")


class PPOTrainer:
    """Proximal policy optimisation with dense rewards (arXiv 2501.02790, section 3.3; docs/numerics.md).

    Args:
        schedule: how long the run is. rewards: what is paid. sampler: see rollouts/base.py. log: where it writes.
        prompts, eval_prompts: rows with `prompt` (messages) and `prompt_ids`.
        ptx_batches: optimiser step -> this rank's micro-batches of text for the pretraining loss, or None.
        true_reward, gold: what held-out responses are worth beside the reward that is trained on, only reported, or None.
        judging: compares them with the reference model's.
        settings: kept with every checkpoint, to be compared when a run is resumed. close: ends what the sampler has started.

    Random numbers depend on seed, iteration and the response's number alone, so that a run goes the same way on any number
    of ranks, and a resumed one goes on as it would have gone.
    """

    def __init__(
        self,
        config: PPOConfig,
        schedule: Schedule,
        models: Models,
        rewards: Rewards,
        sampler: Sampler,
        log: RunLog,
        *,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Dataset,
        eval_prompts: Dataset | None,
        device: torch.device,
        ptx_batches: Callable[[int], list[ResponseBatch]] | None = None,
        true_reward: FunctionSource | None = None,
        gold: ResponseScorer | None = None,
        judging: HeldOutJudge | None = None,
        settings: dict | None = None,
        close: Callable[[], None] = lambda: None,
    ):
        self.config, self.schedule, self.models, self.rewards = config, schedule, models, rewards
        self.sampler, self.log, self.tokenizer, self.device = sampler, log, tokenizer, device
        self.prompts, self.eval_prompts, self.ptx_batches = prompts, eval_prompts, ptx_batches
        self.true_reward, self.gold, self.judging, self.settings = true_reward, gold, judging, settings or {}
        self.close = close
        self.kl = KLCoefficient(config.kl_coefficient, config.kl_target, config.kl_horizon)
        first = rewards.sources[0].segmenter.level if config.reward_model else ""
        self.value_clip = config.value_clip or VALUE_CLIP.get(first, DEFAULT_VALUE_CLIP)
        # Optimiser steps so far, and those of them that were skipped since the last one that was applied.
        self.iteration, self.steps, self.skipped_in_a_row = 0, 0, 0
        self.ema: list[Tensor] = []
        if config.ema_decay:
            self._average_policy()
        self._train_mode(False)

    @classmethod
    def from_config(
        cls,
        config: PPOConfig,
        sources: Sequence[PaidSource] = (),
        sampler: Callable[..., Sampler] | None = None,
    ) -> "PPOTrainer":
        """Everything that the config names, loaded; see `run`. UserError for what cannot be had, or does not go together.

        sources: of rewards, beside those that the config names. sampler: (config, function that returns the policy as it is
        now, tokenizer) -> Sampler; default: what the config names.
        """
        compares = _check(config, sources, sampler)
        sample_policy = sampler or PolicySampler.from_config
        device, dtype = start_run(config)
        check_sizes(config)
        checkpoint = checkpoint_to_resume(config, config.output_dir)
        judge = make_judge(config, device, dtype)
        template = template_of_run(config, checkpoint, config.reward_model[0] if config.reward_model else None)
        tokenizer = load_tokenizer(config.model, template, **config.tokenizer_source())
        decode = response_text(tokenizer)
        true_reward = FunctionSource.named(config.true_reward, "true_reward", decode) if config.true_reward else None
        members = load_members(config.reward_model, dtype, config, tokenizer) if config.reward_model else None
        gold = load_members([config.gold_reward_model], dtype, config, tokenizer) if config.gold_reward_model else None
        readers = freeze(members, config, device, dtype)
        implicit = load_implicit(config, tokenizer, device, dtype)
        models: Models  # loaded last, when it is known that the run can go on
        forwards = map(logprobs_of, [*implicit, lambda *args, **kw: models.reference(*args, **kw)])
        answers = Answers(Path(config.output_dir) / "answers", resumed=checkpoint is not None) if config.reward_url else None
        of_reference = ReferenceAnswers(
            lambda *asked: sample_reference(models, config, tokenizer, sample_policy, *asked), decode, config.seed
        )
        beside = (of_reference, config.pair_opponent == "group", config.zero_stage == 3 and distributed.world_size() > 1)
        loaded = Loaded(tokenizer, decode, members, readers, tuple(forwards), answers, *beside)
        rewards = make_rewards(config, loaded, sources)
        rows = load_rows(config, tokenizer)
        check_limit(config, checkpoint, rows.schedule.iterations, len(rows.held_out or ()))
        remembered: dict[str, Any] = {"models": MODELS, "others": rewards.settings(), "prompts": rows.prompts}
        remembered |= {"ptx": rows.text} if rows.text is not None else {}
        settings = run_settings(config, dtype, checkpoint, tokenizer, **remembered)
        others, samples_reference = [*readers, *implicit], compares or judge is not None
        models = load_models(config, rows.schedule, tokenizer, device, dtype, others, samples_reference)
        engine = Engine(config, models, tokenizer, device, dtype) if config.rollout_engine == "vllm" else None
        trainer = cls(
            config,
            rows.schedule,
            models,
            rewards,
            engine.sampler if engine else sample_policy(config, models.current_policy, tokenizer),
            open_log(config, tokenizer, checkpoint),
            tokenizer=tokenizer,
            prompts=rows.prompts,
            eval_prompts=rows.held_out,
            device=device,
            ptx_batches=text_batches(config, rows.text, tokenizer.pad_token_id) if rows.text is not None else None,
            true_reward=true_reward,
            gold=gold and gold_scorer(gold, freeze(gold, config, device, dtype), models.reference, [config.segmenter]),
            judging=HeldOutJudge(judge, of_reference) if judge else None,
            settings=settings,
            close=engine.close if engine else lambda: None,
        )
        if checkpoint is not None:
            trainer.resume(checkpoint)
        return trainer

    def run(self) -> None:
        """Train to the end (see `train`) and write the models into the output folder."""
        began = time.perf_counter()
        try:
            with self.log.trackers:
                self.train()
        finally:
            self.close()
        save_models(self.config, self.models, self.tokenizer, self.ema)
        if distributed.rank() == 0:
            self._summarise(time.perf_counter() - began)
            self._present()

    def train(self) -> None:
        """Run all iterations that are left.

        Raises:
            Stopped: SIGTERM or SIGINT asked for it; the iteration was finished and saved.
            UserError: too many updates in a row were not finite; a checkpoint holds the weights from before.
        """
        config, iterations = self.config, self.schedule.iterations
        if self.iteration == 0 and self.eval_prompts is not None and config.eval_every:
            self.log.trackers.log(0, self.evaluate())
        bar = tqdm(total=iterations, initial=self.iteration, desc="ppo", disable=distributed.rank() > 0)
        clock = SaveClock(config.save_minutes)
        with StopRequest() as stop, bar:
            while self.iteration < iterations:
                metrics = self.iterate()
                if self.eval_prompts is not None and self._every(config.eval_every):
                    metrics |= self.evaluate()
                self.log.trackers.log(self.iteration, metrics)
                bar.update()
                bar.set_postfix({key: f"{metrics[key]:.3g}" for key in ("reward", "kl", "response_length")})
                stopping, due = stop.requested_or_due(clock)
                in_trouble = self.skipped_in_a_row >= config.max_skipped_steps
                if stopping or in_trouble or due or self._every(config.save_every):
                    saved = self.save_checkpoint()
                    clock.saved()
                # Whoever resumes does so from the oldest checkpoint at the worst.
                oldest = oldest_number(Path(config.output_dir) / "checkpoints")
                self.rewards.forget_before(self.iteration if oldest is None else oldest)
                if in_trouble:
                    rates = " and ".join(f"`{name}_lr`" for name in self.models.engines)
                    raise not_finite(self.skipped_in_a_row, self.log.skipped, saved, rates)
                if stopping and self.iteration < iterations:
                    raise Stopped(f"stopped after iteration {self.iteration} of {iterations}; {saved} is complete")

    def _lines(self, rows: Sequence[dict]) -> list[str]:
        """What the rows of the metrics file come to."""
        return policy_lines(rows, self.config.rollout_batch_size, len(self.eval_prompts or ()))

    def _present(self) -> None:
        """Write the cards of the models, and push the policy where that is asked for."""
        config, folder = self.config, Path(self.config.output_dir)
        figures = self._lines(read_metrics(folder / "metrics.jsonl"))
        making = Making("train-ppo", config, figures, precision=self.settings.get("precision", ""))
        if self.models.critic is not None:
            write_cards(folder / "critic", making, CRITIC)
        if self.ema:
            write_cards(folder / "ema", making, AVERAGE)
        publish(folder, making, POLICY)

    def _summarise(self, seconds: float) -> None:
        """Log what the run came to."""
        folder = Path(self.config.output_dir)
        rows, sampled = read_metrics(folder / "metrics.jsonl"), self.config.rollout_batch_size
        log.info("%s: trained to iteration %d of %d responses each, %s", folder, self.iteration, sampled, in_words(seconds))
        for line in self._lines(rows):
            log.info("  %s", line)
        if rows and abs(rows[-1].get("reward") or 0.0) >= HUGE_SCORE:
            log.warning("  rewards reach %.1e in magnitude: the reward model, or its normaliser, is off", rows[-1]["reward"])
        written = {
            "critic/": self.models.critic,
            "ema/": self.ema,
            "checkpoints/": self.config.save_every or self.config.save_minutes,
        }
        beside = [*(part for part, there in written.items() if there), "metrics.jsonl", "samples.jsonl"]
        log.info("  policy in %s, beside it %s", folder, ", ".join(beside))

    def iterate(self) -> dict[str, float]:
        """One iteration: sample, score, make experience, update; returns its metrics."""
        config, clock = self.config, Clock()
        self.rewards.begin(f"iteration-{self.iteration:06d}")
        responses = self.sample(*self._next_prompts())
        clock.lap("rollout")
        scored, values = self.score(responses, learn=True)
        metrics = rollout_metrics(scored, self.rewards, {}, torch.ones_like(scored.ended), config.max_new_tokens)
        check_mismatch(metrics)
        experience, log = make_experience(
            scored,
            values,
            groups=responses.groups,
            beta=self.kl.beta if config.kl_in == "reward" else 0.0,
            reward_clip=config.reward_clip,
            kl_estimator=config.kl_estimator,
            estimate=Advantages(**config.estimation()),
            policy_tokens=config.policy_tokens,
            weights=correction(config, scored),
        )
        log |= self.rewards.running()
        clock.lap("scoring")
        metrics |= {**self.update(responses, experience), **{key: value.item() for key, value in log.items()}}
        clock.lap("update")
        first_return = experience.returns[:, :1].sum(1)
        metrics |= {"return": self._mean(first_return, experience.mask.any(1)), "kl_coefficient": self.kl.beta}
        metrics |= clock.rates(metrics["response_length"] * config.rollout_batch_size)
        if not self._actor_is_frozen():
            self.kl.update(metrics["kl"], config.rollout_batch_size)
        self.iteration += 1
        self.log.log_samples("samples", self.iteration, responses, scored, self.rewards, {})
        return metrics

    def sample(self, prompts: dict, streams: list[Stream], groups: Sequence[int] = ()) -> Responses:
        """One response to each prompt.

        Args:
            prompts: columns of `tokenize_prompts`. streams: of their random numbers. groups: of which samples each is one.
        """
        rollouts = self.sampler(prompts["prompt_ids"], streams)
        texts = self.tokenizer.batch_decode(rollouts.responses, skip_special_tokens=True)
        return Responses(prompts["prompt"], texts, *rollouts[:3], prompts.get(LABEL, ()), groups, rollouts.logprobs)

    def score(self, responses: Responses, learn: bool = False) -> tuple[ScoredRollouts, Tensor | None]:
        """Log-probabilities, entropies, values and rewards of this rank's responses, without gradient.

        learn: they will be learned from: running moments of rewards take them in, and the critic, if there is one, is asked.
        """
        of_rollouts = self.rewards.score(responses, self._batch(responses), of_rollouts=True)
        critic = self.models.critic if learn else None
        parts = self._by_micro_batch(lambda rows: self._score_rows(responses.rows(rows), critic), len(responses.texts))
        *tensors, values, scores = zip(*parts, strict=True)
        mask, logprobs, entropy, ref_logprobs, ref_entropy = map(_join_padded, tensors)
        ended = torch.tensor(responses.ended, device=self.device)
        joined = {name: join_scores([part[name] for part in scores]) for name in scores[0]} | of_rollouts
        ids = pad_rows(responses.response_ids, self.tokenizer.pad_token_id).to(self.device)
        tokens, sources = self.rewards.pay(joined, ref_entropy, mask, ids, ended, learn)
        told = responses.logprobs
        sampled = pad_rows(told, 0.0, torch.float32).to(self.device) if told else None
        scored = ScoredRollouts(mask, ended, logprobs, ref_logprobs, entropy, tokens, sources, sampled)
        return scored, None if critic is None else _join_padded(values)

    def update(self, responses: Responses, experience: Experience) -> dict[str, float]:
        """Policy and value updates over the rollout batch; every optimiser step averages over all of its responses.

        A step whose loss or gradient is not finite is skipped by its engine. It counts as skipped where that of any model that
        it trains was, and its batch is written to `skipped/`.
        """
        config, (rank, world) = self.config, (distributed.rank(), distributed.world_size())
        rates = {f"{name}_lr": engine.get_lr()[0] for name, engine in self.models.engines.items()}
        log, skipped = Averages(), 0
        self._train_mode(True)
        for epoch in range(config.ppo_epochs):
            numbers = stream(config.seed, Purpose.STEPS, self.iteration, epoch)
            table = step_table(config.rollout_batch_size, config.train_batch_size, numbers)
            for rows in (table[:, rank::world] // world).tolist():
                self._optimiser_step(responses, experience, rows, log)
                applied = self._steps_applied()
                # The average follows the policy, whatever became of the critic.
                if self.ema and applied.get("actor"):
                    self._average_policy()
                if all(applied.values()):
                    self.skipped_in_a_row = 0
                else:
                    skipped += 1
                    self.skipped_in_a_row += 1
                    name = f"iteration-{self.iteration + 1:06d}-step-{self.steps + 1:06d}"
                    self.log.write_skipped(name, responses, experience, rows)
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
        seed, place = self.config.seed, self.iteration
        self.rewards.begin(f"evaluation-{place:06d}")
        responses = self.sample(rows, [stream(seed, Purpose.EVALUATION, place, row) for row in mine])
        scored, _ = self.score(responses)
        judged = self.judge(responses)
        counted = torch.tensor([row < count for row in mine], device=self.device)
        metrics = rollout_metrics(scored, self.rewards, judged, counted, self.config.max_new_tokens)
        # Before the first iteration both models are the same.
        if self.judging is not None and place and self._every(self.config.eval_every * self.config.eval_judge):
            metrics |= self.judging(responses, mine, count)
        self.log.log_samples("eval_samples", self.iteration, responses, scored, self.rewards, judged)
        return {f"eval_{key}": value for key, value in metrics.items()}

    def judge(self, responses: Responses) -> Judged:
        """What this rank's responses are worth beside the reward that is trained on: true and gold rewards, where known."""
        judged = {}
        if self.true_reward is not None:
            judged["true_reward"] = self.true_reward.totals(responses)
        if self.gold is not None:
            parts = self._by_micro_batch(lambda rows: self._gold_rewards(responses.rows(rows)), len(responses.texts))
            judged["gold_reward"] = torch.cat(parts).tolist()
        return judged

    def save_checkpoint(self) -> Path:
        counters = {"iteration": self.iteration, "steps": self.steps, "skipped_in_a_row": self.skipped_in_a_row}
        state = {**counters, "beta": self.kl.beta, "settings": self.settings, "files": self.log.trackers.sizes}
        tensors = {f"ema.{i}": tensor for i, tensor in enumerate(self.ema)} | self.rewards.moments.saved()
        folder, name = Path(self.config.output_dir) / "checkpoints", f"iteration-{self.iteration:06d}"
        return save_checkpoint(
            folder, name, state, self.models.engines, tensors, self.config.keep_checkpoints, self._describe_models
        )

    def _describe_models(self, checkpoint: Path) -> None:
        describe(checkpoint / "actor", self.models.trained_policy, self.tokenizer)
        if self.models.critic is not None:
            describe(checkpoint / "critic", self.models.critic.module, self.tokenizer)

    def resume(self, path: Path) -> None:
        """Models, optimisers, schedulers, KL coefficient, averages, moments, random state and place in the data."""
        state, tensors = load_checkpoint(path, self.models.engines)
        self.iteration, self.steps = state["iteration"], state["steps"]
        self.skipped_in_a_row, self.kl.beta = state["skipped_in_a_row"], state["beta"]
        self.ema = [tensors[f"ema.{i}"].to(self.device) for i in range(len(self.ema))]
        self.rewards.moments.restore(tensors)

    def _score_rows(self, responses: Responses, critic: nn.Module | None) -> tuple:
        """Mask, log-probabilities, entropies (policy, then reference), values or None, each (b, t); and scores."""
        batch = self._batch(responses)
        logprobs, entropy = logprob_entropy(self.models.actor, batch, self.config.temperature)
        ref_logprobs, ref_entropy = logprob_entropy(self.models.reference, batch, self.config.temperature)
        values = None if critic is None else state_values(critic, batch)
        scores = self.rewards.score(responses, batch)
        return batch.response_mask, logprobs, entropy, ref_logprobs, ref_entropy, values, scores

    def _gold_rewards(self, responses: Responses) -> Tensor:
        return self.gold(responses, self._batch(responses))

    def _optimiser_step(self, responses: Responses, experience: Experience, rows: list[int], log: Averages) -> None:
        """One step of critic and actor on this rank's `rows`, micro-batch by micro-batch, the longest rows first.

        Ranks wait for each other, under ZeRO-3 in every micro-batch, and each has its long rows when the others have theirs.
        """
        lengths = [len(responses.prompt_ids[row]) + len(responses.response_ids[row]) for row in rows]
        micro_batches = self._micro_batches([row for _, row in sorted(zip(lengths, rows, strict=True), reverse=True)])
        texts = self.ptx_batches(self.steps) if self.ptx_batches else [None] * len(micro_batches)
        parts = [self._part(responses, experience, *each) for each in zip(micro_batches, texts, strict=True)]
        losses = StepLosses(self.config, self.models, parts, self.value_clip, self.kl.beta)
        for part in parts:
            if self.models.critic is not None:
                log.add(_learn(self.models.critic, *losses.of_critic(part)))
            if not self._actor_is_frozen():
                log.add(_learn(self.models.actor, *losses.of_actor(part)))
        norms = {f"{name}_grad_norm": engine.get_global_grad_norm() for name, engine in self.models.engines.items()}
        log.add({k: torch.as_tensor(v, dtype=torch.float32, device=self.device) for k, v in norms.items() if v is not None})

    def _part(self, responses: Responses, experience: Experience, rows: list[int], text: ResponseBatch | None) -> Part:
        batch = self._batch(responses.rows(rows))
        return Part(batch, experience.rows(torch.tensor(rows, device=self.device), batch.response_mask.shape[1]), text)

    def _actor_is_frozen(self) -> bool:
        return self.iteration < self.config.critic_warmup_iterations

    def _steps_applied(self) -> dict[str, bool]:
        """Whether the optimiser step at hand has changed each of the models that it trains, by name."""
        trained = {
            name: engine for name, engine in self.models.engines.items() if name != "actor" or not self._actor_is_frozen()
        }
        return {name: engine.was_step_applied() for name, engine in trained.items()}

    def _train_mode(self, on: bool) -> None:
        """Training mode is what switches gradient checkpointing on; sampling and scoring run without it."""
        for engine in self.models.engines.values():
            engine.train(on)

    def _next_prompts(self) -> tuple[dict, list[Stream], list[int]]:
        """This rank's prompts of the iteration, one for each response, the streams to sample the responses with, and groups."""
        config = self.config
        count = config.rollout_batch_size // config.samples_per_prompt
        rows = endless_rows(self.iteration * count, count, len(self.prompts), config.seed, Purpose.PROMPTS)
        mine = range(distributed.rank(), config.rollout_batch_size, distributed.world_size())
        groups = [number // config.samples_per_prompt for number in mine]
        streams = [stream(config.seed, Purpose.SAMPLING, self.iteration, number) for number in mine]
        return self.prompts[[rows[group] for group in groups]], streams, groups

    def _batch(self, responses: Responses) -> ResponseBatch:
        return responses.padded(self.tokenizer.pad_token_id, self.device)

    def _micro_batches(self, rows: list[int]) -> list[list[int]]:
        size = self.config.micro_batch_size
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
        return n > 0 and (self.iteration % n == 0 or self.iteration == self.schedule.iterations)

    def _mean(self, x: Tensor, counted: Tensor) -> float:
        total = {"mean": torch.where(counted, x, 0.0).sum()}
        return distributed.average_over_ranks(total, counted.sum())["mean"]


def _join_padded(parts: tuple[Tensor, ...]) -> Tensor:
    """(b, t) tensors under one another, padded with zeros to the widest."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


def _learn(engine: nn.Module, loss: Tensor, log: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take in the gradient of a micro-batch, at the last one of a step the step; returns what is logged."""
    engine.backward(loss)
    engine.step()
    return log


def _check(config: PPOConfig, sources: Sequence[PaidSource], sampler: Callable[..., Sampler] | None) -> bool:
    """Whether responses are compared with each other. UserError for what does not go together, before anything is loaded."""
    check_sources(config, sources)
    require(
        sampler is None or config.rollout_engine == "policy",
        f"`rollout_engine` {config.rollout_engine} beside a sampler of one's own",
        "leave one of them out",
    )
    compares = check_comparisons(config)
    check_run(config, compares)
    return compares
