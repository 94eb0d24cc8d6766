"""Draws the embedded world's data sets and writes them in the ordinary formats any user would bring.

Sentences and their true values are in `language.py`; no file written for learners holds a true value.
"""

import json
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from denserl.models.tiny import new_llama, train_tokenizer
from denserl.world import language

THRESHOLD = 1.5  # entropy (nats) between sentence starts (99 % above 1.9) and the tokens inside (99.9 % below 1.1)
VOCAB_SIZE = 4096  # more than the language needs, so that every word becomes one token
Combination = tuple[str, str]  # topic, wish


@dataclass(frozen=True)
class WorldRules:
    """What makes a response good, one of language.TRUTHS, and how many sentences the drawn responses have."""

    truth: str = "mean"
    min_sentences: int = language.MIN_SENTENCES
    max_sentences: int = language.MAX_SENTENCES

    def draw_prompts(self, rng: random.Random, combinations: list[Combination], n: int) -> Iterator[str]:
        """n prompts with combinations, frames and, where they are asked for, numbers of sentences drawn evenly."""
        for _ in range(n):
            topic, wish = rng.choice(combinations)
            frame = rng.randrange(len(language.FRAMES))
            number = rng.randint(self.min_sentences, self.max_sentences) if language.TRUTHS[self.truth].asks else None
            yield language.make_prompt(topic, wish, frame, number)

    def draw_response(self, rng: random.Random, prompt: str, avoid: Collection[Combination] = ()) -> str:
        """See `language.sample_response`."""
        return language.sample_response(rng, prompt, avoid, (self.min_sentences, self.max_sentences))

    def draw_pair(self, rng: random.Random, prompt: str, avoid: Collection[Combination] = ()) -> dict[str, str]:
        """A prompt with two different responses, the one drawn as preferred under "chosen"."""
        a, b = self.draw_response(rng, prompt, avoid), self.draw_response(rng, prompt, avoid)
        while a == b:
            b = self.draw_response(rng, prompt, avoid)
        if rng.random() >= self.preference_probability(prompt, a, b):
            a, b = b, a
        return {"prompt": prompt, "chosen": a, "rejected": b}

    def preference_probability(self, prompt: str, a: str, b: str) -> float:
        """Bradley-Terry probability that a is preferred to b: sigmoid(scale * (R_a - R_b))."""
        reward, scale, _ = language.TRUTHS[self.truth]
        return 1.0 / (1.0 + math.exp(-scale * (reward(prompt, a) - reward(prompt, b))))

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
        for sentence in language.MEANINGS:
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
    rows("preferences_train", seen, sizes.pairs, lambda rng, p: rules.draw_pair(rng, p, heldout))
    val_pairs = rows("preferences_val", seen, sizes.val_pairs, lambda rng, p: rules.draw_pair(rng, p, heldout))
    test_pairs = rows("preferences_test", heldout, sizes.test_pairs, rules.draw_pair)
    rows("prompts_train", seen, sizes.prompts, lambda rng, p: {"prompt": p})
    rows("prompts_heldout", heldout, sizes.heldout_prompts, lambda rng, p: {"prompt": p})

    tokenizer = train_tokenizer(rules.tokenizer_texts(), VOCAB_SIZE, min_frequency=1)
    model = new_llama(tokenizer, sizes.hidden_size, sizes.num_layers, max_position_embeddings=256, seed=seed)
    tokenizer.save_pretrained(output_dir / "base")
    model.save_pretrained(output_dir / "base")

    world = {
        "seed": seed,
        "sizes": asdict(sizes),
        **asdict(rules),
        "scale": language.TRUTHS[rules.truth].scale,
        "threshold": THRESHOLD,
        "best_accuracy_test": rules.best_accuracy(test_pairs),
        "best_accuracy_val": rules.best_accuracy(val_pairs),
        "heldout_combinations": [list(combination) for combination in heldout],
    }
    (output_dir / "world.json").write_text(json.dumps(world, indent=2) + "\n", encoding="utf-8")
    return world
