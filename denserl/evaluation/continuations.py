"""Labels of steps from a verifier: samples are continued from the end of each of their steps, and what comes out is judged.

The label of a step is the share of completions from its end that are right, or whether there is one: a chance of success, not
correctness, since a completion may mend what is wrong (Math-Shepherd, arXiv 2312.08935).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from datasets import Features

from denserl import distributed
from denserl.data.features import IDS, MESSAGES, build_dataset
from denserl.data.step_records import parts_between
from denserl.errors import require
from denserl.evaluation.config import BestOfNConfig
from denserl.evaluation.samples import Sample
from denserl.evaluation.sampling import as_responses, drawn, policy_tokenizer, samples_path
from denserl.rewards.sources.function import FunctionSource
from denserl.rewards.sources.reading import chosen_rule, response_text
from denserl.steps import StepRule, step_spans
from denserl.streams import Purpose

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prefix = tuple[int, ...]  # the prompt's row, and the tokens of a response up to the end of a step


class Cut(NamedTuple):
    """A sample and its steps: their texts without what parts them, and what ends with each, None where that is all of it."""

    sample: Sample
    steps: list[str]
    prefixes: list[Prefix | None]


def cut_sample(sample: Sample, decode: Callable[[list[int]], str], rule: StepRule) -> Cut:
    """The sample cut into its steps."""
    ids = sample.response_ids[: len(sample.response_ids) - sample.ended]
    text_ends, token_ends = step_spans(ids, decode, rule, sample.ended)
    text, starts = decode(ids), [0, *text_ends]
    steps = [_without_separators(text[start:end], rule) for start, end in zip(starts, text_ends)]
    # Of tokens the whole response may have more: some have no text.
    prefixes = [None if end == len(text) else (sample.id, *ids[:size]) for end, size in zip(text_ends, token_ends)]
    return Cut(sample, steps, prefixes)


def label_steps(
    config: BestOfNConfig, samples: Sequence[Sample], verifier: FunctionSource, device: torch.device, dtype: str
) -> dict:
    """Writes the samples as rows of labelled steps to steps.jsonl in the output folder; returns how many there are, and means.

    The last step of a sample that ended has the verifier's word on the sample; that of one that was cut off has no label. What
    begins alike is completed once. Completions stay in continuations.jsonl, from which a stopped run goes on.

    Raises:
        UserError: the verifier gives a number that is no chance, no sample says anything; see `sampling.drawn`.
    """
    tokenizer = policy_tokenizer(config, samples_path(config))
    decode, rule = response_text(tokenizer), chosen_rule(config)
    cuts = [cut for cut in (cut_sample(sample, decode, rule) for sample in samples) if cut.steps]
    require(cuts, f"none of the {len(samples)} samples says anything", "give another `model`, or more `max_new_tokens`")
    begun = {prefix: cut.sample for cut in cuts for prefix in cut.prefixes if prefix is not None}
    whole = completed(begun, config, tokenizer, device, dtype)
    right = _chances(verifier, whole).reshape(-1, config.continue_steps)
    chances = right.mean(1) if config.step_labels == "soft" else right.max(1) > 0
    chance_of = dict(zip(begun, map(float, chances), strict=True))
    rows = []
    for cut, final in zip(cuts, _chances(verifier, [cut.sample for cut in cuts]).tolist(), strict=True):
        at_end = final if cut.sample.ended else None
        labels = [at_end if prefix is None else chance_of[prefix] for prefix in cut.prefixes]
        rows.append({"prompt": cut.sample.prompt, "steps": cut.steps, "labels": labels, "final": final})
    if distributed.rank() == 0:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (Path(config.output_dir) / "steps.jsonl").write_text(lines, encoding="utf-8")
    known = [label for row in rows for label in row["labels"] if label is not None]
    return {
        "solutions": len(rows),
        "right": float(np.mean([row["final"] for row in rows])),
        "labelled_steps": len(known),
        "mean_label": float(np.mean(known)) if known else None,
    }


def completed(
    begun: dict[Prefix, Sample], config: BestOfNConfig, tokenizer: "PreTrainedTokenizerBase", device: torch.device, dtype: str
) -> list[Sample]:
    """Solutions that begin with each prefix of a sample, `continue_steps` of each, prefix by prefix."""
    decode = response_text(tokenizer)
    rows = (
        {
            "prompt": [*sample.prompt, {"role": "assistant", "content": decode(ids)}],
            "prompt_ids": [*sample.prompt_ids, *ids],
        }
        for (_, *ids), sample in begun.items()
    )
    prefixes = build_dataset(rows, Features({"prompt": MESSAGES, "prompt_ids": IDS}))
    path, count = Path(config.output_dir) / "continuations.jsonl", config.continue_steps
    added = drawn(prefixes, count, path, Purpose.CONTINUATIONS, config, tokenizer, device, dtype)
    solutions = []
    for number, ((_, *ids), sample) in enumerate(begun.items()):
        for completion in added[number * count : (number + 1) * count]:
            whole = [*ids, *completion.response_ids]
            solutions.append(sample._replace(response=decode(whole), response_ids=whole, ended=completion.ended))
    return solutions


def _chances(verifier: FunctionSource, samples: Sequence[Sample]) -> np.ndarray:
    """(n,) numbers from 0 to 1."""
    found = np.array(verifier.totals(as_responses(list(samples))) if samples else [], dtype=float)
    wrong = found[(found < 0) | (found > 1)]
    require(
        not len(wrong),
        f"`true_reward` {verifier.name} returned {wrong[0] if len(wrong) else 0:g}; labels of steps are chances, from 0 to 1",
        "let it return 1 for a right response and 0 for a wrong one",
    )
    return found


def _without_separators(step: str, rule: StepRule) -> str:
    parts = parts_between(rule.separates, step)
    return step[parts[0][0] : parts[-1][1]].strip()
