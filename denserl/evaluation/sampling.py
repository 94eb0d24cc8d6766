"""Best-of-n from its config: samples of a policy, in their file, and what reward models say of them."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl.data.fingerprints import file_fingerprint
from denserl.data.prompts import LABEL, load_prompts, tokenize_prompts
from denserl.data.responses import Responses
from denserl.data.schemas import BadRow
from denserl.data.templates import DATE, fingerprint, template_settings
from denserl.errors import UserError, require
from denserl.evaluation.best_of_n import ESTIMATORS, Estimator, estimators_of_pairs
from denserl.evaluation.config import BestOfNConfig
from denserl.evaluation.pair_scorer import PairScorer, compares_answers, load_answer_scorer
from denserl.evaluation.policies.config import AnswerConfig
from denserl.evaluation.samples import Prompt, Sample, SampleFile, draw_samples
from denserl.files import make_folder
from denserl.levels import level_of
from denserl.models.folders import read_settings
from denserl.models.loading import load_policy, local_folder, match_embeddings
from denserl.models.positions import check_rollout_lengths
from denserl.models.reward_settings import settings_in
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.ranking import list_scores
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.build import check_scores
from denserl.rewards.sources.reading import check_sft_model, check_trusted, chosen_rule, response_text
from denserl.rewards.step_scorer import StepModelScorer, load_scorer
from denserl.rollouts.policy import PolicySampler
from denserl.streams import Purpose, stream

log = logging.getLogger(__name__)

# Responses between two writes to the file of samples, in batches: some, since a batch is filled up as its rows end.
BATCHES_AT_ONCE = 4
DRAWN_BY = ("temperature", "top_p", "max_prompt_length", "max_new_tokens")
Sampled = BestOfNConfig | AnswerConfig


def check_models(config: BestOfNConfig) -> None:
    """UserError, before the sampling, for a reward model or its SFT model that is not there, or code that is not trusted."""
    named = "give one folder or hub name, or several; without any, `continue_steps` labels steps"
    alone = config.reward_model is None and not (config.gold_reward_model or config.true_reward)
    require(config.reward_model or config.continue_steps or alone, "`reward_model` names no model", named)
    if config.continue_steps:
        chosen_rule(config)
    golds = [config.gold_reward_model] if config.gold_reward_model else []
    check_scores(golds, config)
    compares_answers(config.members(), config, **_reading(config))
    for path in [*config.members(), *golds]:
        settings = settings_in(read_settings(local_folder(path) / "config.json"), path)
        if path in golds or config.segmenter is None:
            check_trusted([settings], [path], [config.segmenter])
        cuts = settings.entropy_threshold is not None and level_of(settings.entropy_threshold) != "bandit"
        as_stored = path in golds or (config.sft_model is None and config.entropy_threshold is None)
        if cuts and as_stored and settings.sft_model:
            check_sft_model(settings, path)


def sampled(config: BestOfNConfig, device: torch.device, dtype: str) -> list[Sample]:
    """The samples of all prompts, prompt by prompt, drawn now as far as the file does not hold them (see `drawn`)."""
    tokenizer = policy_tokenizer(config, samples_path(config))
    prompts = load_prompts(**config.source(), seed=config.seed, label=config.label_column)
    limits: dict[str, Any] = {"max_prompt_length": config.max_prompt_length, "on_bad_row": config.on_bad_row}
    prompts = tokenize_prompts(prompts, tokenizer, **limits, cache_dir=config.cache_dir)
    return drawn(prompts, config.samples, samples_path(config), Purpose.BEST_OF_N, config, tokenizer, device, dtype)


def drawn(
    prompts: Dataset,
    count: int,
    path: Path,
    purpose: Purpose,
    config: BestOfNConfig,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: str,
) -> list[Sample]:
    """`count` samples of each prompt (rows of `tokenize_prompts`), drawn now as far as the file does not hold them.

    Raises:
        UserError: the file holds some, but not all, and going on was not asked for.
    """
    file = SampleFile(path, sampling_settings(config, dtype, tokenizer, {name: getattr(config, name) for name in DRAWN_BY}))
    rows = [Prompt(*row) for row in zip(prompts["prompt"], prompts["prompt_ids"])]
    wanted = {(number, sample): row for number, row in enumerate(rows) for sample in range(count)}
    samples = file.read(wanted)
    missing = {key: prompt for key, prompt in wanted.items() if key not in samples}
    require(
        config.resume or not samples or not missing,
        f"{path} holds {len(samples)} of the {len(wanted)} samples that are asked for",
        "add `resume` to sample the others, or give another `output_dir` or `samples_file`",
    )
    log.info("%s: %d of %d samples are there", path, len(samples), len(wanted))
    if missing:
        check_rollout_lengths([prompts], config.max_new_tokens, [config.model], config)
        make_folder("samples_file", str(path.parent))
        policy = load_sampled(config, tokenizer, device, dtype)
        samples |= draw_samples(
            file,
            missing,
            PolicySampler.from_config(config, lambda: policy, tokenizer),
            response_text(tokenizer),
            numbers=lambda key: stream(config.seed, purpose, *key),
            at_once=BATCHES_AT_ONCE * config.sample_batch_size,
        )
    labels = prompts[LABEL] if LABEL in prompts.column_names else [""] * len(prompts)
    return [samples[row, number]._replace(label=labels[row]) for row in range(len(prompts)) for number in range(count)]


def sampling_settings(
    config: Sampled, dtype: str, tokenizer: PreTrainedTokenizerBase, drawn_by: Mapping[str, object]
) -> dict[str, Any]:
    """What samples depend on beside their prompts. drawn_by: how they are drawn from what the policy says."""
    template = {"chat_template": fingerprint(config.chat_template), **template_settings(tokenizer)}
    return {
        **{name: value for name, value in template.items() if value is not None},
        "weights of model": file_fingerprint(local_folder(config.model), dtype)[:16],
        "seed": config.seed,
        **drawn_by,
    }


def load_sampled(config: Sampled, tokenizer: PreTrainedTokenizerBase, device: torch.device, dtype: str) -> PreTrainedModel:
    """The policy, ready to be sampled from."""
    policy = load_policy(config.model, dtype, **config.model_source())
    match_embeddings(policy, tokenizer)
    return policy.eval().to(device)


def as_responses(samples: list[Sample]) -> Responses:
    """The record that scorers are given."""
    rows = ((s.prompt, s.response, s.prompt_ids, s.response_ids, s.ended) for s in samples)
    return Responses(*zip(*rows, strict=True))._replace(labels=[s.label for s in samples] if samples[0].label else ())


class Proxies(NamedTuple):
    """What chooses among the samples of each prompt."""

    scores: np.ndarray  # (P, N); of a model that compares samples, each among all N of its prompt
    estimators: Mapping[str, Estimator]  # of what the best of n of them is worth
    rank: str | None  # the rule by which a model that compares samples ranks them


def proxies_of(config: BestOfNConfig, device: torch.device, dtype: str, samples: list[Sample]) -> Proxies:
    """What the reward models of the config say of the samples. UserError for what their chat template refuses."""
    scorer = load_answer_scorer(config.members(), config, device, dtype, **_reading(config), trusted=[config.segmenter])
    if not isinstance(scorer, PairScorer):
        return Proxies(_scores(scorer, config, samples).reshape(-1, config.samples), ESTIMATORS, None)
    with _told(config.members()):
        chances = scorer.of_samples(as_responses(samples), config.samples)
    rng = np.random.default_rng(stream(config.seed, Purpose.SUBSETS))
    scores = list_scores(chances, scorer.rank)
    return Proxies(scores, estimators_of_pairs(chances, scorer.rank, rng), scorer.rank)


def _reading(config: BestOfNConfig) -> dict[str, Any]:
    """How the proxies are read."""
    return {"read": config, "sft_model": config.sft_model, "aggregate": config.aggregate, "rank": config.rank}


def golds_of(config: BestOfNConfig, device: torch.device, dtype: str, samples: list[Sample]) -> np.ndarray:
    """(P, N) scores by the gold reward model, as is stored with it. UserError for what its chat template refuses."""
    scorer = load_scorer([config.gold_reward_model], config, device, dtype, trusted=[config.segmenter])
    return _scores(scorer, config, samples).reshape(-1, config.samples)


def _scores(scorer: RewardScorer | StepModelScorer, config: BestOfNConfig, samples: list[Sample]) -> np.ndarray:
    with _told(scorer.paths):
        return scorer.of_responses(as_responses(samples), policy_tokenizer(config, samples_path(config)))


@contextlib.contextmanager
def _told(models: Sequence[str]) -> Iterator[None]:
    """A UserError in the place of a BadRow."""
    try:
        yield
    except BadRow as error:
        raise UserError(
            f"{', '.join(models)}: a sample cannot be scored: {error}", "leave the prompt out, or give another reward model"
        ) from error


def policy_tokenizer(config: Sampled, samples: Path) -> PreTrainedTokenizerBase:
    """The tokenizer whose ids the file of samples holds, of the date that those have which are there."""
    settings = SampleFile(samples, {}).settings_path
    saved = read_settings(settings).get(DATE) if settings.is_file() else None
    return load_tokenizer(config.model, {**config.template(), "default_date": saved}, **config.tokenizer_source())


def samples_path(config: BestOfNConfig) -> Path:
    """The file of the samples. UserError for a folder."""
    path = Path(config.samples_file or Path(config.output_dir) / "samples.jsonl")
    require(not path.is_dir(), f"`samples_file` {path} is a folder; expected a file, or a new name", "name a file in it")
    return path
