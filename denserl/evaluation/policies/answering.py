"""A policy answers the questions of a suite, turn by turn, each from a file of samples in which a stopped run goes on."""

import datetime
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from denserl import distributed
from denserl.data.bad_rows import BadRow
from denserl.data.chat import bos_id, cut_left, encode_prompt, stop_ids
from denserl.errors import UserError, require
from denserl.evaluation.policies.answers import Answers, Id, PolicyAnswer, Question
from denserl.evaluation.policies.config import AnswerConfig
from denserl.evaluation.policies.files import KINDS, MANIFEST, read_questions, shown, write_answers
from denserl.evaluation.policies.markup import count_marks
from denserl.evaluation.results import versions
from denserl.evaluation.samples import Key, Prompt, Sample, SampleFile, draw_samples
from denserl.evaluation.sampling import BATCHES_AT_ONCE, load_sampled, policy_tokenizer, sampling_settings
from denserl.files import replace_whole
from denserl.models.positions import check_rollout_length
from denserl.rewards.sources.reading import response_text
from denserl.rollouts.policy import GREEDY_BELOW, PolicySampler
from denserl.streams import Purpose, stream

log = logging.getLogger(__name__)

PUBLISHED = {  # where questions are, but for those that are a hub data set
    "arenahard": "data/arena-hard-v0.1/question.jsonl of github.com/lmarena/arena-hard-auto",
    "mtbench": "fastchat/llm_judge/data/mt_bench/question.jsonl of github.com/lm-sys/FastChat",
    "prompts": "a file of prompts",
}


def answer(config: AnswerConfig, device: torch.device, dtype: str) -> dict[str, Any]:
    """Answer what is not answered yet, and write the answers into the output folder; returns what is written beside them.

    Raises:
        UserError: a question cannot be asked, the samples that are there were drawn otherwise, or all would be the same.
        Stopped: by a signal; the same command goes on.
    """
    source = config.questions or KINDS[config.suite].hub
    if source is None:
        raise UserError(f"the questions of {config.suite} are not given", f"give `questions`: {PUBLISHED[config.suite]}")
    asked = read_questions(config.suite, source)
    _check_drawn(config, asked)
    policy = Policy(config, device, dtype)
    keys = [(row, sample) for row in range(len(asked)) for sample in range(config.samples)]
    turns: list[dict[Key, Sample]] = []
    for number in range(max(len(question.turns) for question in asked)):
        said = {key: [_text(config, turn[key]) for turn in turns] for key in keys if len(asked[key[0]].turns) > number}
        turns.append(policy.answers(asked, said, number))
    answers = _as_answers(config, asked, [[turn[key] for turn in turns if key in turn] for key in keys], policy.tokenizer)
    account = _account(config, source, policy, turns, answers)
    if distributed.rank() == 0:
        folder = Path(config.output_dir)
        files = write_answers(config.suite, folder, config.called(), asked, answers, config.shape)
        account = {"suite": config.suite, "name": config.called(), "files": files, **account}
        replace_whole(folder / MANIFEST, json.dumps(account, indent=2) + "\n")
    distributed.barrier()
    return account


class Policy:
    """The policy of a config: what it is sampled with, and a model that is loaded once something is to be sampled."""

    def __init__(self, config: AnswerConfig, device: torch.device, dtype: str):
        self.config, self.device, self.dtype = config, device, dtype
        self.tokenizer = policy_tokenizer(config, self.samples_path(0))
        self.shortened = 0  # prompts
        # A sampler remembers how many answers memory has sufficed for.
        self.sampler_of = functools.cache(self._sampler)

    def samples_path(self, turn: int) -> Path:
        """The file of the samples of a turn, 0 the first."""
        return Path(self.config.output_dir) / f"samples-turn-{turn + 1}.jsonl"

    def settings(self) -> dict[str, Any]:
        """What the answers depend on beside the questions."""
        config = self.config
        drawn_by = {"top_p": config.top_p, "max_prompt_length": config.max_prompt_length, "max_new_tokens": config.longest()}
        temperature = "by category" if config.temperature is None and config.suite == "mtbench" else config.temperature_of("")
        return sampling_settings(config, self.dtype, self.tokenizer, {"temperature": temperature, **drawn_by})

    def answers(self, asked: Sequence[Question], said: Mapping[Key, Sequence[str]], turn: int) -> dict[Key, Sample]:
        """The samples of a turn: those of its file, and those that are missing there, drawn now.

        said: for each sample of the questions that have this turn, what it answered in those before.
        """
        wanted = {key: self._prompt(asked[key[0]], answers) for key, answers in said.items()}
        file = SampleFile(self.samples_path(turn), self.settings())
        samples = file.read(wanted)
        missing = {key: prompt for key, prompt in wanted.items() if key not in samples}
        log.info("%s: %d of %d samples are there", file.path, len(samples), len(wanted))
        if missing:
            longest = max(len(prompt.ids) for prompt in wanted.values())
            check_rollout_length(longest, self.config.longest(), [self.config.model], self.config)
        heat = {key: self.config.temperature_of(asked[key[0]].category) for key in missing}
        for temperature in sorted({*heat.values()}):
            samples |= draw_samples(
                file,
                {key: prompt for key, prompt in missing.items() if heat[key] == temperature},
                self.sampler_of(temperature),
                response_text(self.tokenizer),
                numbers=lambda key: stream(self.config.seed, Purpose.ANSWERS, key[0], turn, key[1]),
                at_once=BATCHES_AT_ONCE * self.config.sample_batch_size,
            )
        return samples

    def _sampler(self, temperature: float) -> PolicySampler:
        config, model = self.config, self._model
        ends = stop_ids(self.tokenizer, model.generation_config)
        pad, longest = self.tokenizer.pad_token_id, config.longest()
        return PolicySampler(lambda: model, ends, pad, longest, temperature, config.top_p, config.sample_batch_size)

    @functools.cached_property
    def _model(self):
        return load_sampled(self.config, self.tokenizer, self.device, self.dtype)

    def _prompt(self, question: Question, answers: Sequence[str]) -> Prompt:
        messages, most = question.conversation(answers), self.config.max_prompt_length
        try:
            ids = encode_prompt(self.tokenizer, messages)
        except BadRow as error:
            found = f"the question {shown(question.id)} cannot be asked: {error}"
            raise UserError(found, "leave it out, or give another model") from error
        self.shortened += len(ids) > most
        return Prompt(messages, cut_left(ids, most, bos_id(self.tokenizer)))


def _check_drawn(config: AnswerConfig, asked: Sequence[Question]) -> None:
    """UserError where all samples of a question would be the same."""
    hottest = max(config.temperature_of(question.category) for question in asked)
    require(
        config.samples == 1 or hottest >= GREEDY_BELOW,
        f"`samples` {config.samples} would all be the same, at temperature {hottest:g}",
        "give a `temperature` above 0, or one sample",
    )


def _text(config: AnswerConfig, sample: Sample) -> str:
    """An answer as it goes on: the originals strip it."""
    return sample.response.strip() if KINDS[config.suite].stripped else sample.response


def _as_answers(
    config: AnswerConfig, asked: Sequence[Question], drawn: Sequence[Sequence[Sample]], tokenizer: PreTrainedTokenizerBase
) -> Answers:
    """drawn: the samples of the turns of each answer."""
    found: dict[Id, list[PolicyAnswer]] = {question.id: [] for question in asked}
    for samples in drawn:
        texts = tuple(_text(config, sample) for sample in samples)
        counts = None
        if KINDS[config.suite].counted:
            counts = count_marks(texts[0], len(tokenizer(texts[0], add_special_tokens=False).input_ids))
        cut = tuple(not sample.ended for sample in samples)
        question = asked[samples[0].id].id
        found[question].append(PolicyAnswer(question, texts, samples[0].sample, cut, counts))
    return Answers(config.called(), found)


def _account(
    config: AnswerConfig, source: str, policy: Policy, turns: Sequence[Mapping[Key, Sample]], answers: Answers
) -> dict[str, Any]:
    """What is said beside the answers: how they came about, and how they turned out."""
    given = [answer for samples in answers.by_question.values() for answer in samples]
    empty = sum(not all(text.strip() for text in answer.turns) for answer in given)
    truncated = sum(any(answer.truncated or ()) for answer in given)
    for count, what in ((truncated, "cut off at the longest length"), (empty, "empty")):
        if count:
            log.warning("%d of %d answers are %s", count, len(given), what)
    if policy.shortened:
        log.warning("%d prompts are longer than `max_prompt_length` and lost tokens on their left", policy.shortened)
    return {
        "questions": {"source": source, "count": len(answers.by_question)},
        "samples": config.samples,
        **({"shape": config.shape} if KINDS[config.suite].shapes else {}),
        "model": config.model,
        **policy.settings(),
        **({"token_len": f"counted by the tokenizer of {config.model}"} if KINDS[config.suite].counted else {}),
        "truncated": truncated / len(given),
        "empty": empty,
        "shortened_prompts": policy.shortened,
        "tokens": [float(np.mean([len(sample.response_ids) for sample in turn.values()])) for turn in turns],
        "characters": [float(np.mean([len(_text(config, sample)) for sample in turn.values()])) for turn in turns],
        "precision": policy.dtype,
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
