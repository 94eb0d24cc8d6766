"""What is said of scored texts, at the terminal and on pages: headings, what decides, which numbers are shown."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scipy.special import expit

from denserl.pages.segments import limit_of
from denserl.scored.results import Comparison, ScoredPrompt, ScoredResponse, Segment, SourceInfo, SourceScore
from denserl.terminal import visible

# How segments make a score.
MADE_OF = {"avg": "mean", "sum": "sum", "min": "least", "last": "last", "logsumexp": "log-sum-exp"}
KINDS = {
    "reward": "reward model",
    "step": "model of steps",
    "pair": "model that compares responses",
    "increment": "increments of",
    "text": "function or server",
}
LEVELS = {
    "segment": ", segment by segment",
    "token": ", token by token",
    "step": ", step by step",
    "bandit": ", whole responses",
}
PARTS = {"step": "steps", "token": "tokens", "text": "parts"}
BOTH = "both"  # of what two responses begin with
WHOLE = ("bandit", "response", "text")  # levels at which a response may have one number alone


class Shown(NamedTuple):
    """How one source's numbers are shown, alike for all of the responses that are shown together."""

    source: str  # what it is
    name: str  # a short one, in front of what is said of it; empty where there is no other source
    columns: tuple[str, ...]  # attributes of segments
    limit: float  # of normalised numbers, at the end of the colours


def how_shown(scored: Sequence[ScoredPrompt]) -> list[Shown]:
    """For each source: its names, its columns without those that say what another says already, the end of its colours."""
    responses = [response for each in scored for response in each.responses]
    sources = [score.source for score in responses[0].sources]
    names = [visible(source.model.rstrip("/").rpartition("/")[2], kept="") for source in sources]
    if len(set(names)) < len(names):
        names = [visible(source.model, kept="") for source in sources]
    names = [f"{name}: " for name in names] if len(names) > 1 else [""]
    scores = zip(*(response.sources for response in responses), strict=True)
    return [_shown(described(source), name, of) for source, name, of in zip(sources, names, scores, strict=True)]


def described(source: SourceInfo) -> str:
    """What a source is, and how it is read."""
    weight = f", with weight {source.weight:g}" if source.weight != 1 else ""
    return f"{KINDS[source.kind]} {visible(source.model, kept='')}{LEVELS.get(source.level, '')}{weight}"


def _shown(source: str, name: str, scores: Sequence[SourceScore]) -> Shown:
    segments = [segment for score in scores for segment in score.segments]
    columns = ["raw"]
    for column, known in (("normalised", ("raw",)), ("change", ("raw", "normalised")), ("paid", ("change",))):
        if not any(all(number(s, column) == number(s, other) for s in segments) for other in known):
            columns.append(column)
    return Shown(source, name, tuple(columns), limit_of(segment.normalised for segment in segments))


def number(segment: Segment, name: str) -> str:
    """One of a segment's numbers."""
    return signed(getattr(segment, name))


def signed(value: float, places: int = 3) -> str:
    """A number with its sign, to some places; large and small ones by their power of ten."""
    plain = value == 0 or 10**-places / 2 <= abs(value) < 1e5
    return f"{value:+.{places}f}" if plain else f"{value:+.1e}"


def is_whole(score: SourceScore) -> bool:
    """Whether the source has one number for the response, and says nothing of its parts."""
    return score.source.level in WHOLE and len(score.segments) < 2


def heading(score: SourceScore) -> str:
    """What a source says of a response, in a line that begins without a capital."""
    source, count = score.source, len(score.segments)
    normalised = f", normalised {signed(score.normalised)}" if signed(score.normalised) != signed(score.score) else ""
    if source.kind == "pair":
        made = "the log-odds of being better than the other; one number, and nothing of single words"
    elif is_whole(score):
        made = "one number for the whole response"
    else:
        parts = PARTS.get(source.level, "segments")
        parts = parts.removesuffix("s") if count == 1 else parts
        chances = "the chances of " if source.judges_steps else ""
        made = f"the {MADE_OF[source.agg_func]} of {chances}{count} {parts}" if count else f"without {parts}"
    return f"score {signed(score.score)}{normalised}, {made}"


def about(response: ScoredResponse) -> str:
    """What a response is called, and what became of it before it was scored."""
    cut = [f"{response.prompt_cut} tokens of the prompt are left out"] if response.prompt_cut else []
    cut += [f"{response.response_cut} of its tokens are left out"] if response.response_cut else []
    cut += [] if response.ended else ["cut off before its end"]
    of_segments = sum(segment.paid for score in response.sources for segment in score.segments)
    several = len(response.sources) > 1 or signed(of_segments) != signed(response.paid)
    paid = f"paid {signed(response.paid)} in all" if several else ""
    return ", ".join(filter(None, (visible(response.name, kept=""), paid, *cut)))


def text_of(segment: Segment, line_break: str) -> str:
    """A segment's text as it is shown. line_break: in the place of one."""
    return visible(segment.text).replace("\n", line_break) or "(no text of its own)"


def line_of(segment: Segment) -> str:
    """The same in a line, without the blanks at its ends, unless it is made of blanks."""
    text = text_of(segment, "↵")
    return text.strip(" ") or text.replace(" ", "␣")


def decided(found: Comparison, names: Sequence[str]) -> str:
    """Which of two responses a source prefers, in a sentence. names: of the responses."""
    first, second = (visible(name, kept="") for name in (names if found.difference >= 0 else names[::-1]))
    size = abs(found.difference)
    if not size:
        return "both score the same"
    if found.source.kind == "pair":
        return (
            f"{first} is better than {second} with a probability of {expit(size):.3f} (log-odds {size:.3f}); it "
            "has one number for the pair, and says nothing of single words"
        )
    return f"{first} scores higher than {second}, by {signed(size)[1:]}"


def deciding(scored: ScoredPrompt, number: int, most: int) -> Iterator[tuple[float, str, Segment]]:
    """What adds most to the difference by the source of that number: how much, in favour of the first, whose, which."""
    for part in scored.comparisons[number].parts[:most]:
        response = scored.responses[part.side or 0]
        whose = BOTH if part.side is None else visible(response.name, kept="")
        yield part.adds, whose, response.sources[number].segments[part.segment]


def can_tell_parts(scored: ScoredPrompt, number: int) -> bool:
    """Whether the source of that number says what decides between the two responses."""
    found = scored.comparisons[number]
    return bool(found.parts) and not all(is_whole(response.sources[number]) for response in scored.responses)
