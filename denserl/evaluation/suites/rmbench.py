"""RM-Bench (arXiv 2410.16184): three chosen and three rejected answers to a prompt, from plain to richly formatted."""

from collections.abc import Mapping

from denserl.data.bad_rows import BadRow
from denserl.evaluation.items import Answer, Item
from denserl.evaluation.suites.means import mean, pooled
from denserl.evaluation.suites.rows import field, identity, messages, texts

WHOLE = "total_dataset"  # the file that holds all of the others again
DOMAINS = {"chat": ("chat",), "code": ("code",), "math": ("math",), "safety": ("safety-refuse", "safety-response")}
KINDS = ("hard", "normal", "easy")
STYLES = 3  # concise, detailed, detailed with markdown


def item(row: dict, part: str) -> list[Item]:
    """Each of the three chosen answers against each rejected one, in the subsets DOMAIN/KIND."""
    domain, prompt = field(row, "domain"), messages(row.get("prompt"), "prompt")
    if not any(domain in parts for parts in DOMAINS.values()):
        raise BadRow(f"'domain' is {domain!r}; expected {', '.join(part for parts in DOMAINS.values() for part in parts)}")
    sides = [texts(row, key) for key in ("chosen", "rejected")]
    if any(len(side) != STYLES for side in sides):
        raise BadRow(f"there are {len(sides[0])} chosen and {len(sides[1])} rejected answers; expected {STYLES} of each")
    chosen, rejected = ([Answer(prompt, text) for text in side] for side in sides)
    return [
        Item(identity(row), f"{domain}/{kind_of(i, j)}", [chosen[i]], [rejected[j]])
        for i in range(STYLES)
        for j in range(STYLES)
    ]


def kind_of(chosen: int, rejected: int) -> str:
    """How hard it is to prefer the chosen answer of one style to the rejected one of another: it is what the richer one is."""
    return "normal" if chosen == rejected else "hard" if chosen < rejected else "easy"


def groups(subset: str) -> tuple[str, ...]:
    """The domain, and of safety its half."""
    part = subset.partition("/")[0]
    return tuple(dict.fromkeys((next(domain for domain, parts in DOMAINS.items() if part in parts), part)))


def headline(scores: Mapping[str, float], counts: Mapping[str, int]) -> dict:
    """The domains, each the mean of hard, normal and easy; each kind and `overall`, means of the four domains.

    Both halves of safety are pooled. None where something is missing.
    """
    cells = {
        domain: [pooled([f"{part}/{kind}" for part in parts], scores, counts) for kind in KINDS]
        for domain, parts in DOMAINS.items()
    }
    domains = {domain: mean(values) for domain, values in cells.items()}
    kinds = {kind: mean(values) for kind, values in zip(KINDS, zip(*cells.values()), strict=True)}
    return {**domains, **kinds, "overall": mean(domains.values())}
