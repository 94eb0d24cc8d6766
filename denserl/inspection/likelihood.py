"""How well the model foretells what it reads: negative log-likelihoods of responses, and of the beginnings of plain texts."""

import datasets
import numpy as np

from denserl.data.features import IDS, TEXT, array_of, list_lengths
from denserl.inspection.tally import PROMPT
from denserl.intervals import mean_interval


def openings(texts: datasets.Dataset, side: str, max_length: int) -> datasets.Dataset:
    """Plain texts as rows of a prompt, which is their first token, and a response, the others up to `max_length` in all.

    Nothing foretells a first token, and texts of one token are left out.

    texts: columns place and SIDE_ids.
    """
    known = [row for row in texts if len(row[f"{side}_ids"]) > 1]
    cut = [row[f"{side}_ids"][:max_length] for row in known]
    columns = {
        "place": [row["place"] for row in known],
        f"{PROMPT}_ids": [ids[:1] for ids in cut],
        f"{side}_ids": [ids[1:] for ids in cut],
    }
    features = datasets.Features({"place": TEXT, f"{PROMPT}_ids": IDS, f"{side}_ids": IDS})
    return datasets.Dataset.from_dict(columns, features)


def likelihood(rows: datasets.Dataset, side: str) -> dict[str, float | list[float] | None]:
    """What a token of one side's responses costs: `nats` and their 95 % `interval`, of so many `texts` and `tokens`.

    nats: of all tokens together, R = sum of negative log-likelihoods / sum of tokens. interval: Student's t over texts, of the
    ratio linearised at R, since one text's tokens are no independent evidence; None of a single text.

    rows: columns SIDE_ids and SIDE_logprob, as `rewards.pairs.with_entropies` gives them; at least one.
    """
    tokens, cost = list_lengths(rows, f"{side}_ids"), -array_of(rows, f"{side}_logprob").astype(np.float64)
    nats = cost.sum() / tokens.sum()
    # Their mean is the ratio, and their spread that of its error.
    linearised = nats + (cost - nats * tokens) / tokens.mean()
    _, low, high = mean_interval(linearised.tolist())
    interval = None if low is None else [low, high]
    return {"texts": len(rows), "tokens": int(tokens.sum()), "nats": float(nats), "interval": interval}
