"""Draws the embedded world's data sets and writes them in the ordinary formats any user would bring.

Sentences and their true values are in `language.py`; no file written for learners holds a true value.
"""

import json
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from denserl.models.tiny import new_llama, train_tokenizer
from denserl.world import language

THRESHOLD = 1.5  # entropy (nats) between sentence starts (99 % above 1.9) and the tokens inside (99.9 % below 1.1)
VOCAB_SIZE = 4096  # more than the language needs, so that every word becomes one token
RATED = 0.75  # how often a rating is there
Combination = tuple[str, str]  # topic, wish


@dataclass(frozen=True)
class WorldRules:
    """What makes a response good, one of language.TRUTHS, how many sentences the drawn responses have, and what is wrong with
    the training pairs.

    length_bias: added to a preference's logit for each sentence more. artefact: probability that `language.ARTEFACT`, worth
    nothing, is put into a winner. groups: whether rows tell what their prompt asks for. ratings: whether rated responses are
    written as well. large: whether responses are drawn from the larger of the language's repertoires.
    """

    truth: str = "mean"
    min_sentences: int = language.MIN_SENTENCES
    max_sentences: int = language.MAX_SENTENCES
    length_bias: float = 0.0
    artefact: float = 0.0
    groups: bool = False
    ratings: bool = False
    large: bool = False

    @property
    def repertoire(self) -> language.Repertoire:
        return language.LARGE_REPERTOIRE if self.large else language.REPERTOIRE

    def described(self) -> dict:
        """The rules for `world.json`, without what is off."""
        return {name: value for name, value in asdict(self).items() if value}

    def fair(self) -> "WorldRules":
        """The same where the true reward alone makes a preference."""
        return replace(self, length_bias=0.0, artefact=0.0, groups=False)

    def draw_prompts(self, rng: random.Random, combinations: list[Combination], n: int) -> Iterator[str]:
        """n prompts with combinations, frames and, where they are asked for, numbers of sentences drawn evenly."""
        for _ in range(n):
            topic, wish = rng.choice(combinations)
            frame = rng.randrange(len(language.FRAMES))
            number = rng.randint(self.min_sentences, self.max_sentences) if language.TRUTHS[self.truth].asks else None
            yield language.make_prompt(topic, wish, frame, number)

    def draw_response(self, rng: random.Random, prompt: str, avoid: Collection[Combination] = ()) -> str:
        """See `language.sample_response`."""
        return language.sample_response(rng, prompt, avoid, (self.min_sentences, self.max_sentences), self.repertoire)

    def draw_pair(self, rng: random.Random, prompt: str, avoid: Collection[Combination] = ()) -> dict[str, str]:
        """A prompt with two different responses, the one drawn as preferred under "chosen"."""
        a, b = self.draw_response(rng, prompt, avoid), self.draw_response(rng, prompt, avoid)
        while a == b:
            b = self.draw_response(rng, prompt, avoid)
        if rng.random() >= self.preference_probability(prompt, a, b):
            a, b = b, a
        return {"prompt": prompt, "chosen": a, "rejected": b}

    def draw_training_pair(
        self, rng: random.Random, planting: random.Random, prompt: str, avoid: Collection[Combination] = ()
    ) -> dict[str, str]:
        """`draw_pair`, with what is wrong with training pairs. planting: says which winners get the artefact, and where."""
        pair = self.draw_pair(rng, prompt, avoid)
        if planting.random() < self.artefact and language.ARTEFACT not in pair["chosen"]:
            planted = language.insert_sentence(planting, pair["chosen"], language.ARTEFACT)
            pair["chosen"] = planted if planted != pair["rejected"] else pair["chosen"]
        return pair | ({"group": " ".join(language.read_prompt(prompt))} if self.groups else {})

    def draw_rated(self, rng: random.Random, prompt: str, avoid: Collection[Combination] = ()) -> dict:
        """A response with ratings (`language.attributes`), each of which some rater had no time for."""
        response = self.draw_response(rng, prompt, avoid)
        ratings = language.attributes(prompt, response)
        return {
            "prompt": prompt,
            "response": response,
            "attributes": {n: r for n, r in ratings.items() if rng.random() < RATED},
        }

    def draw_artefact_pair(self, rng: random.Random, prompt: str) -> dict[str, str]:
        """Two responses of the same true reward, the one under "chosen" with the artefact, the other with another filler."""
        reward, others = language.TRUTHS[self.truth].reward, language.FILLERS
        while True:
            a, b = self.draw_response(rng, prompt), self.draw_response(rng, prompt)
            free = [filler for filler in others if filler != language.ARTEFACT and filler not in b]
            if free and language.ARTEFACT not in a + b:
                a, b = (language.insert_sentence(rng, *one) for one in ((a, language.ARTEFACT), (b, rng.choice(free))))
                if math.isclose(reward(prompt, a), reward(prompt, b), abs_tol=1e-9):
                    return {"prompt": prompt, "chosen": a, "rejected": b}

    def preference_probability(self, prompt: str, a: str, b: str) -> float:
        """Bradley-Terry probability that a is preferred to b: sigmoid(scale * (R_a - R_b) + length_bias * (n_a - n_b))."""
        reward, scale, _ = language.TRUTHS[self.truth]
        longer = len(language.sentences(a)) - len(language.sentences(b)) if self.length_bias else 0
        return 1.0 / (1.0 + math.exp(-scale * (reward(prompt, a) - reward(prompt, b)) - self.length_bias * longer))

    def best_accuracy(self, pairs: Iterable[dict[str, str]]) -> float:
        """The expected accuracy of an oracle that knows the true rewards: the mean of max(p, 1 - p)."""
        chances = [self.preference_probability(p["prompt"], p["chosen"], p["rejected"]) for p in pairs]
        return sum(max(p, 1.0 - p) for p in chances) / len(chances)

    def tokenizer_texts(self) -> Iterator[str]:
        """Every prompt, and every sentence as the first of a response and, said again, after another."""
        asks = language.TRUTHS[self.truth].asks
        numbers = range(self.min_sentences, self.max_sentences + 1) if asks else (None,)
        for topic in language.TOPICS:
            for wish in language.WISHES:
                for frame in range(len(language.FRAMES)):
                    yield from (language.make_prompt(topic, wish, frame, number) for number in numbers)
        for sentence in language.meanings(self.repertoire):
            yield f"{sentence} {language.again(sentence)}"


@dataclass(frozen=True)
class WorldSizes:
    """Rows of each file, and the size of the base model."""

    sft: int = 8000
    pairs: int = 12000
    val_pairs: int = 500
    test_pairs: int = 1000
    prompts: int = 4000
    heldout_prompts: int = 256
    hidden_size: int = 64
    num_layers: int = 2


def split_combinations(rng: random.Random) -> tuple[list[Combination], list[Combination]]:
    """(seen, held out) combinations: every topic holds out one wish, and every wish as many topics as any other."""
    topics = rng.sample(language.TOPICS, len(language.TOPICS))
    wishes = rng.sample(language.WISHES, len(language.WISHES))
    heldout = [(topic, wishes[i % len(wishes)]) for i, topic in enumerate(topics)]
    seen = [(t, w) for t in language.TOPICS for w in language.WISHES if (t, w) not in heldout]
    return seen, heldout


def write_world(
    output_dir: str | Path, seed: int = 0, sizes: WorldSizes = WorldSizes(), rules: WorldRules = WorldRules()
) -> dict:
    """Write the world's data files and its base model to output_dir and return what `world.json` holds."""
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    seen, heldout = split_combinations(random.Random(f"{seed} split"))

    def rows(name: str, combinations: list[Combination], n: int, draw: Callable[[random.Random, str], dict]) -> list:
        rng = random.Random(f"{seed} {name}")  # one stream per file: the size of one changes no other
        drawn = [draw(rng, prompt) for prompt in rules.draw_prompts(rng, combinations, n)]
        lines = "".join(json.dumps(row) + "\n" for row in drawn)
        (output_dir / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        return drawn

    rows("sft", seen, sizes.sft, lambda rng, p: {"prompt": p, "response": rules.draw_response(rng, p)})
    # A learner that met held-out sentences in these pairs would learn that they are off topic, whatever the prompt.
    planting, fair = random.Random(f"{seed} artefact"), rules.fair()
    rows("preferences_train", seen, sizes.pairs, lambda rng, p: rules.draw_training_pair(rng, planting, p, heldout))
    val_pairs = rows("preferences_val", seen, sizes.val_pairs, lambda rng, p: fair.draw_pair(rng, p, heldout))
    test_pairs = rows("preferences_test", heldout, sizes.test_pairs, fair.draw_pair)
    if rules.artefact:
        rows("preferences_artefact", heldout, sizes.test_pairs, fair.draw_artefact_pair)
    if rules.ratings:
        rows("ratings_train", seen, sizes.sft, lambda rng, p: rules.draw_rated(rng, p, heldout))
        rows("ratings_test", heldout, sizes.test_pairs, rules.draw_rated)
    rows("prompts_train", seen, sizes.prompts, lambda rng, p: {"prompt": p})
    rows("prompts_heldout", heldout, sizes.heldout_prompts, lambda rng, p: {"prompt": p})

    tokenizer = train_tokenizer(rules.tokenizer_texts(), VOCAB_SIZE, min_frequency=1)
    model = new_llama(tokenizer, sizes.hidden_size, sizes.num_layers, max_position_embeddings=512, seed=seed)
    tokenizer.save_pretrained(output_dir / "base")
    model.save_pretrained(output_dir / "base")

    world = {
        "seed": seed,
        "sizes": asdict(sizes),
        **rules.described(),
        "scale": language.TRUTHS[rules.truth].scale,
        "threshold": THRESHOLD,
        "best_accuracy_test": fair.best_accuracy(test_pairs),
        "best_accuracy_val": fair.best_accuracy(val_pairs),
        "heldout_combinations": [list(combination) for combination in heldout],
    }
    (output_dir / "world.json").write_text(json.dumps(world, indent=2) + "\n", encoding="utf-8")
    return world
