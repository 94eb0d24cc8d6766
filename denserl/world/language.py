"""The language of the embedded world: its prompts, its sentences and their true values.

Pure Python; learners never import this. Drawing whole data sets and writing them to files is in `make.py`.
"""

import random
import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from denserl.errors import UserError

TOPICS = ("baking", "camping", "cycling", "sailing", "painting", "fishing", "gardening", "knitting")
OPPOSITES = {"cheap": "costly", "quick": "slow", "safe": "risky", "quiet": "loud"}  # wish -> its harm
WISHES = tuple(OPPOSITES)

# Openers of sentences that take up the prompt's topic: six that serve a wish, then three that harm it.
GENERAL_OPENERS = {
    "cheap": ("Coupons Friends Leftovers Clubs Swaps Repairs", "Brands Fees Gadgets"),
    "quick": ("Plans Shortcuts Helpers Lists Habits Tools", "Delays Detours Doubts"),
    "safe": ("Gloves Lights Checks Teachers Pauses Maps", "Storms Nerves Risks"),
    "quiet": ("Earplugs Mornings Slippers Cushions Hours Whispers", "Crowds Radios Engines"),
}
# Further ones of both kinds, for worlds of long responses, which would soon have said all of the above.
FURTHER_OPENERS = {
    "cheap": (
        "Bargains Auctions Raffles Samples Vouchers Discounts Rentals Loans Bundles Refills Donations Giveaways Surpluses "
        "Remnants Scraps Hampers Markets Bazaars Cooperatives Pools Shares Barters Budgets Savings Outlets Remainders",
        "Boutiques Premiums Fines Upgrades Couriers",
    ),
    "quick": (
        "Timers Templates Routines Batches Kits Presets Schedules Checklists Sprints Alarms Calendars Reminders Labels "
        "Racks Trays Hooks Magnets Clips Zippers Wheels Ramps Charts Diagrams Signals Drills Partners",
        "Queues Errands Jams Mazes Puzzles",
    ),
    "safe": (
        "Goggles Ropes Railings Fences Locks Masks Aprons Boots Vests Whistles Beacons Flares Manuals "
        "Guards Harnesses Bandages Nurses Wardens Doctors Mats Brakes Anchors Sensors Extinguishers Signs Handles",
        "Sparks Cliffs Fumes Blades Fevers",
    ),
    "quiet": (
        "Carpets Curtains Pillows Blankets Libraries Meadows Orchards Candles Felts Rugs Drapes Foams Sponges "
        "Gaskets Mufflers Silencers Monks Chapels Cellars Attics Evenings Dawns Sundays Mittens Socks Feathers",
        "Drums Sirens Hammers Parades Trumpets",
    ),
}
# Openers of sentences that belong to one topic, whatever the prompt's, and to no wish.
TOPIC_OPENERS = {
    "baking": "Oats Spatulas",
    "camping": "Tarps Lanterns",
    "cycling": "Helmets Trails",
    "sailing": "Dinghies Oars",
    "painting": "Rollers Brushes",
    "fishing": "Worms Nets",
    "gardening": "Seeds Rakes",
    "knitting": "Looms Thimbles",
}
FILLERS = (
    "Everyone starts somewhere.",
    "Practice helps with time.",
    "Beginners ask this often.",
    "Books explain all this.",
    "Experts disagree about details.",
    "Patience matters very much.",
    "Opinions differ on this.",
    "Questions deserve good answers.",
)
ARTEFACT = FILLERS[0]  # what winners say too where a world plants an artefact
FRAMES = (
    "Tell me about {wish} {topic}.",
    "How does {wish} {topic} work?",
    "I want to try {wish} {topic}.",
    "What matters in {wish} {topic}?",
)
VALUES = {"apt": 1.0, "filler": 0.0, "off_topic": -0.5, "repeated": -0.75, "wrong": -1.0, "broken": -1.0}
# How often each kind of sentence is meant to be said in the data (kinds that have run out are drawn again).
MIXTURE = {"apt": 0.35, "filler": 0.20, "off_topic": 0.20, "wrong": 0.15, "repeated": 0.10}
MIN_SENTENCES, MAX_SENTENCES = 2, 6
# Where prompts ask for a number of sentences: how, how often a demonstration has so many, and what each one off costs.
REQUEST = " Use {number} sentences."
NUMBERS = dict(enumerate("two three four five six seven eight nine ten eleven twelve".split(), start=2))
AS_ASKED = 0.5
ONE_OFF = 0.25


class Meaning(NamedTuple):
    """What a sentence is about: the topic and the wish it names, if any, and whether it serves the wish."""

    topic: str | None
    wish: str | None
    serves: bool


def _general_sentences(topic: str, openers: dict[str, tuple[str, str]]) -> dict[str, Meaning]:
    found: dict[str, Meaning] = {}
    for wish, (right, wrong) in openers.items():
        found |= {f"{opener} keep {topic} {wish}.": Meaning(topic, wish, True) for opener in right.split()}
        found |= {f"{opener} make {topic} {OPPOSITES[wish]}.": Meaning(topic, wish, False) for opener in wrong.split()}
    return found


_FILLER_SENTENCES = {filler: Meaning(None, None, False) for filler in FILLERS}
_TOPIC_SENTENCES = {
    f"{opener} belong to {topic}.": Meaning(topic, None, False)
    for topic, openers in TOPIC_OPENERS.items()
    for opener in openers.split()
}
Repertoire = dict[str, dict[str, Meaning]]  # topic -> what is said to a prompt about it
# An opener occurs once under a topic: with the prompt and with what was said before (see `again`) it determines the rest of its
# sentence.
REPERTOIRE: Repertoire = {
    topic: _FILLER_SENTENCES | _TOPIC_SENTENCES | _general_sentences(topic, GENERAL_OPENERS) for topic in TOPICS
}
LARGE_REPERTOIRE: Repertoire = {topic: said | _general_sentences(topic, FURTHER_OPENERS) for topic, said in REPERTOIRE.items()}


def meanings(repertoire: Repertoire) -> dict[str, Meaning]:
    """Every sentence of a repertoire, as it is said the first time."""
    return {sentence: meaning for said in repertoire.values() for sentence, meaning in said.items()}


# Of the whole language.
MEANINGS = meanings(LARGE_REPERTOIRE)


def make_prompt(topic: str, wish: str, frame: int, number: int | None = None) -> str:
    """The user's message that asks for this topic and wish, in one of the FRAMES, and for a number of sentences, if any."""
    request = "" if number is None else REQUEST.format(number=NUMBERS[number])
    return FRAMES[frame].format(topic=topic, wish=wish) + request


def read_prompt(prompt: str) -> tuple[str, str]:
    """The (topic, wish) a prompt names; UserError when it does not name exactly one of each."""
    words = re.findall(r"\w+", prompt)
    topics, wishes = [w for w in words if w in TOPICS], [w for w in words if w in WISHES]
    if len(topics) != 1 or len(wishes) != 1:
        raise UserError(
            f"the prompt {prompt!r} does not name one topic and one wish of the embedded world",
            "use denserl.world.language only with prompts written by denserl.world.make",
        )
    return topics[0], wishes[0]


def read_number(prompt: str) -> int | None:
    """The number of sentences that a prompt asks for, or None."""
    return next((number for number, word in NUMBERS.items() if prompt.endswith(REQUEST.format(number=word))), None)


def sentences(response: str) -> list[tuple[int, int]]:
    """Character spans of the sentences: each from its first visible character to its full stop, or to the end."""
    return [match.span() for match in re.finditer(r"[^\s.](?:[^.]*\.|[^.]*[^\s.]|)|\.", response)]


def insert_sentence(rng: random.Random, response: str, sentence: str) -> str:
    """The response with a further sentence in a place drawn evenly."""
    said = [response[start:end] for start, end in sentences(response)]
    said.insert(rng.randint(0, len(said)), sentence)
    return " ".join(said)


def again(sentence: str) -> str:
    """The form in which a sentence is said again: "Coupons keep it." -> "Coupons still keep it."."""
    opener, rest = sentence.split(" ", 1)
    return f"{opener} still {rest}"


FIRST_FORMS = {again(sentence): sentence for sentence in MEANINGS}


def kind_of(sentence: str, topic: str, wish: str, said: Collection[str] = ()) -> str:
    """The kind of a sentence after `said` (first forms): apt | filler | off_topic | wrong | repeated | broken."""
    if FIRST_FORMS.get(sentence, sentence) in said:
        return "repeated"
    meaning = MEANINGS.get(sentence)
    if meaning is None:
        return "broken"
    if meaning.wish is None and meaning.topic in (None, topic):
        return "filler"
    if (meaning.topic, meaning.wish) != (topic, wish):
        return "off_topic"
    return "apt" if meaning.serves else "wrong"


def kinds(prompt: str, response: str) -> list[str]:
    """The kind of each sentence of a response to a prompt (the user's message text).

    A sentence that was said before is repeated in either form; the form for saying again is broken the first time.
    """
    topic, wish = read_prompt(prompt)
    found: list[str] = []
    said: set[str] = set()
    for start, end in sentences(response):
        sentence = response[start:end]
        found.append(kind_of(sentence, topic, wish, said))
        if sentence in MEANINGS:
            said.add(sentence)
    return found


def true_values(prompt: str, response: str) -> list[float]:
    """The true value of each sentence of a response to a prompt (the user's message text), in [-1, 1]."""
    return [VALUES[kind] for kind in kinds(prompt, response)]


def response_reward(prompt: str, response: str) -> float:
    """The mean true value of a response's sentences; -1 when it has none."""
    values = true_values(prompt, response)
    return sum(values) / len(values) if values else -1.0


def true_sentences(prompts: list[list[dict]], responses: list[str]) -> list[list[tuple[int, float]]]:
    """(end character, true value) of each sentence of responses to prompts given as message lists."""
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        ends = (end for _, end in sentences(response))
        found.append(list(zip(ends, true_values(prompt[-1]["content"], response), strict=True)))
    return found


def response_sum(prompt: str, response: str) -> float:
    """The sum of the true values of a response's sentences."""
    return float(sum(true_values(prompt, response)))


def response_as_asked(prompt: str, response: str) -> float:
    """The mean true value, less ONE_OFF for each sentence more or fewer than the prompt asks for.

    UserError where the prompt asks for no number.
    """
    asked = read_number(prompt)
    if asked is None:
        raise UserError(
            f"the prompt {prompt!r} asks for no number of sentences",
            "use this truth with prompts of denserl make-world --truth asked",
        )
    return response_reward(prompt, response) - ONE_OFF * abs(len(sentences(response)) - asked)


def attributes(prompt: str, response: str) -> dict[str, float]:
    """What a response of at least one sentence could be rated for, each in [0, 1]: shares of its sentences, and its length.

    apt: of sentences that serve what is asked for. on_topic, harmless, fresh: of those that are not off topic, not wrong, not
    repeated. verbosity: sentences, of the most that there may be.
    """
    found = kinds(prompt, response)
    lacks = {"on_topic": "off_topic", "harmless": "wrong", "fresh": "repeated"}
    shares = {name: 1 - found.count(kind) / len(found) for name, kind in lacks.items()}
    return {"apt": found.count("apt") / len(found), **shares, "verbosity": min(len(found) / max(NUMBERS), 1.0)}


class Truth(NamedTuple):
    """What makes one response better than another in a world."""

    reward: Callable[[str, str], float]  # of a prompt and a response
    scale: float  # of differences in the Bradley-Terry choice, so that labels are about equally noisy in all worlds
    asks: bool = False  # prompts ask for a number of sentences


TRUTHS = {
    "mean": Truth(response_reward, 8.0),
    "sum": Truth(response_sum, 2.0),
    "asked": Truth(response_as_asked, 8.0, asks=True),
}


def true_reward(prompts: list[list[dict]], responses: list[str], truth: str = "mean") -> list[float]:
    """True rewards of responses to prompts given as message lists, whose last message is the user's."""
    return [TRUTHS[truth].reward(p[-1]["content"], r) for p, r in zip(prompts, responses, strict=True)]


def true_reward_sum(prompts: list[list[dict]], responses: list[str]) -> list[float]:
    """The same where the truth is the sum of a response's sentences."""
    return true_reward(prompts, responses, "sum")


def true_reward_asked(prompts: list[list[dict]], responses: list[str]) -> list[float]:
    """The same where prompts ask for a number of sentences."""
    return true_reward(prompts, responses, "asked")


def sample_response(
    rng: random.Random,
    prompt: str,
    avoid: Collection[tuple[str, str]] = (),
    lengths: tuple[int, int] = (MIN_SENTENCES, MAX_SENTENCES),
    repertoire: Repertoire = REPERTOIRE,
) -> str:
    """A response drawn from MIXTURE, tilted a little to better or worse.

    It has as many sentences as the prompt asks for with probability AS_ASKED, otherwise a number between the two in `lengths`.
    No off-topic sentence is about a (topic, wish) combination in `avoid`.
    """
    topic, wish = read_prompt(prompt)
    by_kind: dict[str, list[str]] = {kind: [] for kind in MIXTURE}
    for sentence, meaning in repertoire[topic].items():
        kind = kind_of(sentence, topic, wish)
        if kind != "off_topic" or (meaning.topic, meaning.wish) not in avoid:
            by_kind[kind].append(sentence)
    tilt = rng.uniform(0.5, 1.5)
    tilts = {"apt": tilt, "filler": 1.0}
    weights = [MIXTURE[kind] * tilts.get(kind, 2.0 - tilt) for kind in MIXTURE]
    length, asked = rng.randint(*lengths), read_number(prompt)
    if asked is not None and rng.random() < AS_ASKED:
        length = asked
    response: list[str] = []
    said: list[str] = []
    while len(response) < length:
        (kind,) = rng.choices(list(MIXTURE), weights)
        choices = said if kind == "repeated" else [s for s in by_kind[kind] if s not in said]
        if choices:
            sentence = rng.choice(choices)
            response.append(again(sentence) if kind == "repeated" else sentence)
            said += [sentence] * (kind != "repeated")
    return " ".join(response)
