"""What a model folder is, by its own files: in words, and as Python that reads it with plain transformers.

For its card (card.py). Nothing is loaded but the tokenizer.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from denserl.data.chat import end_of_turn_id
from denserl.data.hub import public_name
from denserl.data.step_encoding import AT_ENDS
from denserl.levels import level_of
from denserl.markdown import block, inline
from denserl.models.folders import ADAPTERS, TOKENIZER_FILES, read_settings
from denserl.models.heads import Head, described_head, is_stock
from denserl.models.reward_models import holds_reward_head
from denserl.models.reward_settings import StoredSettings, read_place, settings_in
from denserl.models.tokenizers import load_tokenizer
from denserl.steps import SEPARATOR

AGGREGATES = {name: f"rewards.{name}()" for name in ("sum", "min")} | {"avg": "rewards.mean()", "last": "rewards[-1]"}
AGGREGATES["logsumexp"] = "rewards.logsumexp(0)"
# Settings that tell published layouts, whose heads no stock class has.
OTHER_LAYOUTS = {"vhead_layer_type": "GRM", "gating_temperature": "ArmoRM"}
CLASSIFIER, LANGUAGE_MODEL = "AutoModelForSequenceClassification", "AutoModelForCausalLM"


class Facts(NamedTuple):
    """What a card tells of a folder by itself, as Markdown."""

    what: str
    facts: list[str]
    heading: str
    reading: str  # how it is read: a block of Python, or words
    pipeline: str | None
    tags: list[str]


def render(template: str, **texts: Any) -> str:
    """A template of cards, filled. Texts are put in as they are."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False)
    source = files("denserl").joinpath(f"models/card_files/{template}").read_text(encoding="utf-8")
    return environment.from_string(source).render(texts).strip("\n")


def quoted(text: str) -> str:
    """A text as it stands in Python."""
    return json.dumps(text, ensure_ascii=False)


def facts_of(folder: Path, path: str, base: str, trust_remote_code: bool = False) -> Facts:
    """What there is to say of the model, or of the adapters, in a folder.

    Args:
        path, base: what the folder, and the model that adapters were trained on, are called where the card is read.
    """
    adapter = (folder / ADAPTERS).is_file()
    settings = read_settings(folder / "config.json") if (folder / "config.json").is_file() else {}
    head, stored = described_head(settings, str(folder)), settings_in(settings, str(folder))
    if layout := next((name for setting, name in OTHER_LAYOUTS.items() if setting in settings), None):
        what = f"A reward model in the published layout of {layout}."
        reading = f"The code of {layout} reads it, and denserl what `denserl export --layout denserl` makes of it."
        return Facts(what, _of_model(stored), "Reading its scores", reading, "text-classification", ["denserl", "reward-model"])
    kind = read_settings(folder / ADAPTERS).get("task_type") if adapter else None
    judges = kind == "SEQ_CLS" if adapter else holds_reward_head(str(folder)) or stored.input == "pair"
    names: dict[str, Any] = {"path": quoted(path), "base": quoted(base), "adapter": adapter}
    if not judges:
        return _language_model(folder, names, trust_remote_code)
    lines = [*_of_scores(head, stored), *_of_model(stored)]
    what = f"{'LoRA adapters and the head of a' if adapter else 'A'} reward model that {_told(stored)}."
    tags = ["denserl", "reward-model", *(["lora"] if adapter else [])]
    of_labels = head.kind == "label"
    pipeline = None if adapter else "text-generation" if of_labels else "text-classification"
    if (adapter and of_labels) or not (of_labels or is_stock(head) or head.kind == "attributes"):
        return Facts(what, lines, "Reading its scores", _with_denserl(adapter, path, base), pipeline, tags)
    heading = "Reading its scores with plain transformers"
    return Facts(what, lines, heading, _scores(folder, names, head, stored, trust_remote_code), pipeline, tags)


def _language_model(folder: Path, names: dict[str, Any], trust_remote_code: bool) -> Facts:
    own = any((folder / name).is_file() for name in TOKENIZER_FILES[:2])
    chat = not own or load_tokenizer(str(folder), trust_remote_code=trust_remote_code).chat_template is not None
    python = render("generate.jinja", **names, tokenizer=own, chat=chat)
    what = "LoRA adapters of a language model." if names["adapter"] else "A language model."
    tags = ["denserl", *(["lora"] if names["adapter"] else [])]
    return Facts(what, [], "Generating with plain transformers", block(python, "python"), "text-generation", tags)


def _scores(folder: Path, names: dict[str, Any], head: Head, stored: StoredSettings, trust_remote_code: bool) -> str:
    tokenizer, labels = load_tokenizer(str(folder), trust_remote_code=trust_remote_code), head.labels
    words = {"label_ids": head.label_ids, "label_words": " and ".join(map(repr, labels[:2]))}
    if stored.input == "pair":
        how = {"layout": quoted(stored.pair_layout or "denserl"), "max_length": stored.max_length or 2**31}
        python = render("pair.jinja", **names, **words, **how)
        return f"What it reads is written by denserl alone:\n\n{block(python, 'python')}"
    place, end = _place(stored), end_of_turn_id(tokenizer)
    model = LANGUAGE_MODEL if labels else CLASSIFIER
    cut = place == "segment"
    used = [LANGUAGE_MODEL] * cut + [model, "AutoTokenizer"] + ["AutoConfig"] * names["adapter"]
    rewards = AGGREGATES[stored.agg_func or "avg"] if place in ("token", "segment") else None
    python = render(
        "score.jinja",
        **names,
        **words,
        classes=", ".join(sorted(set(used))),
        model=model,
        stock="language model" if labels else "classifier",
        labels=max(len(head.names), 1),
        weights=list(head.weights),
        names=", ".join(map(repr, head.names)),
        place=place,
        one_step=stored.max_steps == 1,
        separator=quoted((stored.step_separator or (SEPARATOR,))[0]),
        sign=quoted((labels or AT_ENDS.labels)[0]),
        end=end,
        end_word=repr(tokenizer.convert_ids_to_tokens(end)),
        sft=quoted(public_name(stored.sft_model or "SFT_MODEL")),
        threshold=stored.entropy_threshold,
        rewards=rewards,
    )
    beside = {
        "own": f"Its segments are those of {inline(stored.segmenter or '')}, by which denserl makes the score of an answer.",
        "segment": "A segment's reward is the score at its last token, and the score of an answer is made of its segments'. "
        "Stock pipelines give the score of the last token alone, which is not the score of the answer.",
        "token": "Each token has its reward. Stock pipelines give the score of the last token alone.",
    }
    return "\n\n".join([*filter(None, [beside.get(place)]), block(python, "python")])


def _with_denserl(adapter: bool, path: str, base: str) -> str:
    if adapter:
        command = f"denserl merge --model {base} --adapter {path} --output_dir NEW_FOLDER"
        said = "Its head is none that a stock class has. Merged into their base, they are a whole model:"
        return f"{said}\n\n{block(command, 'bash')}"
    python = (
        "from denserl import RewardScorer\n\n"
        f"scorer = RewardScorer([{quoted(path)}])  # this folder, or its name on the hub\n"
        'scores = scorer([[{"role": "user", "content": "Tell me about the sea."}]], ["It is wide."])'
    )
    said = (
        "Its head is none that a stock class has: `AutoModelForSequenceClassification` would put one of random weights there, "
        "with a warning at the most. denserl reads it; `denserl export` writes it in layouts of other libraries."
    )
    return f"{said}\n\n{block(python, 'python')}"


def _told(stored: StoredSettings) -> str:
    if stored.input == "pair":
        return "compares two responses in one text"
    if stored.scores is not None:
        return "judges a solution as a whole" if stored.max_steps == 1 else "judges the steps of a solution"
    level = level_of(stored.entropy_threshold) if stored.entropy_threshold is not None else "bandit"
    whole = {"bandit": "whole responses", "token": "every token of a response", "segment": "segments of responses"}
    return f"scores {whole[level]} ({level} level)"


def _place(stored: StoredSettings) -> str:
    """Where its scores are read."""
    if stored.scores is not None:
        return "steps" if stored.context_signs in (None, "none") else "turns"
    level = level_of(stored.entropy_threshold) if stored.entropy_threshold is not None else "bandit"
    if level != "bandit":
        return level if stored.segmenter is None else "own"
    return read_place([stored], [""]).replace("_", " ")


def _of_scores(head: Head, stored: StoredSettings) -> list[str]:
    """How scores come about, an item each."""
    found = []
    if stored.scores is None and stored.entropy_threshold is not None and level_of(stored.entropy_threshold) == "segment":
        cut = (
            f"segments as {inline(stored.segmenter)} cuts them"
            if stored.segmenter
            else (f"segments begin where the entropy of the SFT model is above {stored.entropy_threshold:g} nats")
        )
        found.append(cut)
    if stored.scores is not None and stored.max_steps != 1:
        separators = " or ".join(map(repr, stored.step_separator or (SEPARATOR,)))
        found.append(f"steps end with {inline(stored.step_pattern or separators)}")
    if stored.scores is not None:
        found.append("a score is the logit of the chance to be right")
    head_in_words = {
        "linear": "a linear layer",
        "mlp": f"an MLP of {head.layers} hidden layers, {head.width} wide",
        "label": f"the labels {' and '.join(inline(label) for label in head.labels)} of the language model",
        "attributes": "ratings of " + ", ".join(f"{inline(n)} (x {w:g})" for n, w in zip(head.names, head.weights)),
        "disentangled": "a linear layer for the quality, and one beside it for what goes with the covariate",
        "gated": f"ratings of {', '.join(map(inline, head.names))}, weighed by the prompt",
    }
    found.append(f"head: {head_in_words[head.kind]}")
    if stored.input != "pair":
        found.append(f"the score of a response is the {inline(stored.agg_func or 'avg')} of its parts")
    return found


def _of_model(stored: StoredSettings) -> list[str]:
    found = []
    if stored.sft_model:
        known = f", fingerprint {inline(stored.sft_fingerprint)}" if stored.sft_fingerprint else ""
        found.append(f"SFT model: {inline(public_name(stored.sft_model))}{known}")
    if stored.max_length:
        found.append(f"trained on sequences of at most {stored.max_length} tokens")
    if stored.mean is not None and stored.std is not None:
        found.append(f"scores of held-out responses: mean {stored.mean:.4g}, standard deviation {stored.std:.4g}")
    return found
