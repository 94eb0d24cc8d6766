"""Everything that is found in data, as it is written to inspect.json."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from denserl.data.features import array_of, longest_row
from denserl.data.schemas import IDENTICAL
from denserl.errors import require
from denserl.inspection.config import InspectConfig
from denserl.inspection.cuts import Response, entropies, responses_of, side_by_side, threshold_for, thresholds
from denserl.inspection.kinds import Kind
from denserl.inspection.likelihood import likelihood, openings
from denserl.inspection.reading import Read, read, reasons_of
from denserl.inspection.tally import PROMPT
from denserl.inspection.tokens import encoded, lengths_in_tokens
from denserl.models.positions import check_positions
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.pairs import with_entropies
from denserl.terminal import quiet_libraries
from denserl.trainer.start import start_run, template_of_run

TEXTS = "plain text"  # in the place of a side's name


def inspected(config: InspectConfig) -> dict[str, Any]:
    """What is found in the data, and, where a model is named, what it makes of it. Collective.

    Raises:
        UserError: the data cannot be read, is of no known kind, or holds no usable row; the model cannot be loaded, or has no
            positions for rows of these lengths.
    """
    if config.model is None:
        config.check()
        quiet_libraries()
        return _of_rows(read(config))
    device, dtype = start_run(config)
    tokenizer = load_tokenizer(config.model, template_of_run(config, None), **config.tokenizer_source())
    found = read(config)
    kind = found.kind
    require(
        kind.name != "demonstrations" or config.max_prompt_length is None,
        f"`max_prompt_length` {config.max_prompt_length} has no effect on demonstrations: a prompt keeps half of `max_length`",
        "leave it out, or give another `max_length`",
    )
    rows, refused = encoded(found.drawn, kind, tokenizer, config)
    every = len(found.drawn) == found.tally.records
    figures = {
        **_of_rows(found),
        "tokens": {**lengths_in_tokens(rows, kind, config, every), "reasons": reasons_of(refused)},
    }
    sample = rows.select(range(min(len(rows), config.sample if kind.sides else 0)))
    # Plain text has no prompt.
    has_prompt = array_of(sample, f"{PROMPT}_tokens") > 0
    answered, plain = (sample.select(which.nonzero()[0]) for which in (has_prompt, ~has_prompt))
    if len(answered):
        known = _read(answered, kind, config, tokenizer, device, dtype)
        figures["likelihood"] = {side: likelihood(known, side) for side in kind.sides}
        figures |= _of_cuts(responses_of(known, kind.sides, tokenizer), config)
    texts = openings(plain, kind.sides[0], config.max_length) if kind.sides else plain
    if len(texts):
        known = _read(texts, kind, config, tokenizer, device, dtype)
        figures["likelihood"] = figures.get("likelihood", {}) | {TEXTS: likelihood(known, kind.sides[0])}
    return figures


def _of_rows(found: Read) -> dict[str, Any]:
    """What is found without a model."""
    tally, sources = found.tally, found.sources
    totals = {name: sum(source[name] for source in sources) for name in ("read", "used", "refused", "left_out", "records")}
    duplicates = tally.duplicates()
    if tally.kind.name == "pairs":
        same = (reason["count"] for source in sources for reason in source["reasons"] if reason["reason"] == IDENTICAL)
        duplicates["chosen_is_rejected"] = sum(same)
    return {
        "kind": tally.kind.name,
        "rows": {**totals, "sources": sources},
        "lengths": tally.lengths(),
        "duplicates": duplicates,
        "longer": tally.longer(),
        "numbers": tally.numbers(),
        "scripts": dict(tally.scripts.most_common()),
    }


def _read(rows: Dataset, kind: Kind, config: InspectConfig, tokenizer: Any, device: torch.device, dtype: str) -> Dataset:
    """Encoded rows with what the model says of their responses, which is kept for those who train on these rows."""
    longest = max(longest_row(rows, f"{PROMPT}_ids", f"{side}_ids") for side in kind.sides)
    fix = "give a `max_length` of at most {}"
    check_positions(longest, [config.model], config, "the longest response with its prompt", fix)
    # Whoever asks for all rows finds these where their prompt and response are the same.
    return with_entropies(rows, config, config, config.model, tokenizer, device, dtype, sides=kind.sides)


def _of_cuts(responses: Sequence[Response], config: InspectConfig) -> dict[str, Any]:
    wished = {length: threshold_for(responses, length) for length in shown_lengths(config)}
    known = [threshold for threshold in wished.values() if threshold is not None]
    middle = wished[config.tokens_per_segment]
    return {
        "entropies": {"responses": len(responses), **entropies(responses)},
        "thresholds": thresholds(responses, known),
        "wished": {"tokens_per_segment": config.tokens_per_segment, "threshold": middle},
        "cut_at": sorted(set(known)),
        "responses": side_by_side(responses, sorted(set(known))),
    }


def shown_lengths(config: InspectConfig) -> list[float]:
    """Lengths of segments at which responses are cut side by side: half of the one that is wished for, it, and its double."""
    return [max(config.tokens_per_segment / 2, 1.0), config.tokens_per_segment, config.tokens_per_segment * 2]
