"""Rows with all that is looked for, and a plain recount of them: a few lines of Python, without the code that is tested."""

import itertools
import json
import statistics
from pathlib import Path

import numpy as np

from denserl.inspection.cuts import Response

LONG = "The old kettle hums in the kitchen while the rain falls on the garden. It is late.\n\nThe boats wait there."
PAIRS = [
    {"prompt": "Tell me.", "chosen": LONG, "rejected": "No.", "score_chosen": 8, "score_rejected": 3},
    {"prompt": "Tell me.", "chosen": LONG, "rejected": "No.", "score_chosen": 8, "score_rejected": 3},
    {"prompt": "Tell me.", "chosen": "No.", "rejected": LONG, "score_chosen": 4, "score_rejected": 6},
    {"prompt": "Tell me.", "chosen": "A quiet river.", "rejected": "Rain.", "score_chosen": 5, "score_rejected": 5},
    {"prompt": "Why?", "chosen": "It rains.", "rejected": "It hums and hums.", "score_chosen": 7, "score_rejected": 1},
    {"prompt": "Why?", "chosen": "It hums.", "rejected": "It rains", "score_chosen": 2, "score_rejected": 1},
    {"prompt": "Что это?", "chosen": "Старый чайник шумит.", "rejected": "Дождь.", "score_chosen": 7, "score_rejected": 6},
    {"prompt": "Write about the river.", "chosen": "It runs.", "rejected": "It runs.", "score_chosen": 1, "score_rejected": 1},
    {"prompt": "Write about the rain.", "chosen": "", "rejected": "It falls.", "score_chosen": 1, "score_rejected": 1},
    {"prompt": "Write about the boats.", "chosen": "They wait.", "rejected": "Boats", "score_chosen": 9, "score_rejected": 1},
]  # fmt: skip
NO_JSON = '{"prompt": "Tell me", '


def write_pairs(path: Path) -> Path:
    """The pairs, with a line that is no JSON as the fourth."""
    lines = [json.dumps({**row, "source": "x"}) for row in PAIRS]
    path.write_text("\n".join([*lines[:3], NO_JSON, *lines[3:]]) + "\n", encoding="utf-8")
    return path


def recounted() -> dict:
    """What the pairs come to."""
    good = [row for row in PAIRS if row["chosen"] and row["chosen"] != row["rejected"]]
    triples = [(row["prompt"], row["chosen"], row["rejected"]) for row in good]
    characters = {part: sorted(len(row[part]) for row in good) for part in ("prompt", "chosen", "rejected")}
    return {
        "used": len(good),
        "identical": sum(row["chosen"] == row["rejected"] for row in PAIRS),
        "means": {part: statistics.fmean(values) for part, values in characters.items()},
        "medians": {part: statistics.median(values) for part, values in characters.items()},
        "words": {part: sum(len(row[part].split()) for row in good) for part in characters},
        "repeated rows": sum(row in good[:i] for i, row in enumerate(good)),
        "repeated prompts": sum(row["prompt"] in [other["prompt"] for other in good[:i]] for i, row in enumerate(good)),
        "turned": sum((prompt, rejected, chosen) in triples for prompt, chosen, rejected in triples),
        "longer": sum(len(row["chosen"]) > len(row["rejected"]) for row in good),
        "as long": sum(len(row["chosen"]) == len(row["rejected"]) for row in good),
        "margins": [row["score_chosen"] - row["score_rejected"] for row in good],
        "cyrillic": sum("ч" in row["prompt"] + row["chosen"] for row in good),
    }


def pairwise_quantile(values: list[float], share: float) -> float:
    """Between the two values that stand around `share` of the way through them."""
    ordered, place = sorted(values), share * (len(values) - 1)
    for (i, low), (j, high) in itertools.pairwise(enumerate([*ordered, ordered[-1]])):
        if i <= place <= j:
            return low + (place - i) * (high - low)
    raise ValueError(share)


WORDS = ["The", " kettle", " hums", ".", "\n", "Is", " it", "?", " So", "ft", " rain", "\n\n-", " one", '"', "水"]


def responses(count: int, longest: int, seed: int = 5) -> list[Response]:
    """Made-up responses of at most so many tokens."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        pieces = rng.choice(WORDS, rng.integers(1, longest + 1)).tolist()
        entropy = np.where(rng.random(len(pieces)) < 0.2, 0.0, rng.exponential(1.2, len(pieces))).astype(np.float32)
        ends = np.cumsum([len(piece) for piece in pieces]).tolist()
        made.append(Response(f"rows:{number}", "chosen", "".join(pieces), ends, entropy))
    return made
