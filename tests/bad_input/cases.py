"""The table: a user's mistake, the command that meets it, and what its message must say (what was found, what mends it)."""

import json
import os
from typing import NamedTuple

from corruptions import (
    GOOD_PAIR,
    config,
    cut_gzip,
    entry,
    file,
    fits,
    folder,
    half,
    model,
    pair,
    pairs,
    pickled,
    torn_in_gzip,
    weights,
    with_code,
    without,
    written,
)

WORLD, NEW, SFT, RM, FIT, PPO = "make-world", "new-model", "train-sft", "train-rm", "fit-normalizer", "train-ppo"
PLAN, BON = "plan", "bon"


class Case(NamedTuple):
    name: str
    command: str
    says: tuple[str, ...]
    flags: dict  # laid over those of a good run; a function makes its value of the test's World, None leaves the flag out
    words: tuple[str, ...]  # further words of the command line


def case(name: str, command: str, *says: str, words: tuple[str, ...] = (), **flags) -> Case:
    return Case(name, command, says, flags, words)


def seen(name: str, command: str, reason: str, **flags) -> Case:
    """A bad second row of bad.jsonl."""
    return case(name, command, "1 bad row", f"bad.jsonl:2: {reason}", "--on_bad_row skip", **flags)


TWO_SYSTEMS = {"system": "Be brief.", "prompt": [{"role": "system", "content": "Be long."}, {"role": "user", "content": "a"}]}
STEPS = {"prompt": "Tell me.", "steps": ["It hums."]}
RAGGED = "prompt,chosen,rejected\nTell me.,It hums.,No.\nTell me.,No.\n"
LFS = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
)
UP = "model.layers.0.mlp.up_proj.weight"
LENGTHS = "word " * 2_000_000  # 10 MB
SIDES_EQUAL_UNTIL_LATE = {"chosen": "The kettle hums. " * 40, "rejected": "The kettle hums. " * 40 + "No."}
NO_FIT = {"fit": None}
AGAIN = "fetch or save the model again"
A_FOLDER = "give the path of a model folder"


def language_model(name: str, change, *says: str, command: str = RM) -> Case:
    return case(name, command, *says, model=model("sft", change))


def reward_model(name: str, change, *says: str, command: str = PPO, **flags) -> Case:
    return case(name, command, *says, reward_model=model("rm", change), **flags)


MODELS = [
    case("no such folder", RM, "no model folder '/nowhere/sft'", A_FOLDER, model="/nowhere/sft"),
    case("no such name", RM, "someone/no-such-model: could not load a tokenizer", A_FOLDER, model="someone/no-such-model"),
    case("no name", RM, "no model folder ''", A_FOLDER, model=""),
    case(
        "a file",
        RM,
        "config.json is a file; expected a model folder",
        "holds config.json",
        model=lambda w: w.good / "sft/config.json",
    ),
    language_model(
        "no tokenizer",
        without("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        "sft holds no tokenizer (tokenizer.json",
        "tokenizer.save_pretrained('",
    ),
    *(
        language_model(f"{name} is a pointer of Git LFS", written(name, LFS), f"{name} is a pointer of Git LFS", "git lfs pull")
        for name in ("model.safetensors", "tokenizer.json")
    ),
    language_model("half a tokenizer", half("tokenizer.json"), "sft/tokenizer.json is not JSON", AGAIN),
    language_model(
        "a tokenizer of another kind", written("tokenizer.json", "[]"), "tokenizer.json holds a list; expected an object", AGAIN
    ),
    language_model("no chat template", without("chat_template.jinja"), "no chat template", "--chat_template"),
    language_model(
        "a broken chat template",
        written("chat_template.jinja", "{% for m in %}"),
        "cannot render",
        "give another template with --chat_template",
    ),
    language_model(
        "a chat template without end of turn",
        written("chat_template.jinja", "{% for m in messages %}{{ m['content'] }}{% endfor %}"),
        "closes an assistant turn with no special token",
        "end each assistant turn with a special token",
    ),
    language_model("no config", without("config.json"), "sft/config.json: No such file", "give a model folder"),
    language_model(
        "a config that is no JSON", written("config.json", "model_type: llama"), "sft/config.json is not JSON", AGAIN
    ),
    language_model(
        "a config that is a list", written("config.json", "[]"), "config.json holds a list; expected an object", AGAIN
    ),
    language_model("a config without model type", written("config.json", "{}"), "Should have a 'model_type' key", A_FOLDER),
    language_model("an unknown model type", config(model_type="hoverllama"), "model type 'hoverllama'", A_FOLDER),
    language_model("a config of another type", config(hidden_size="wide"), "'hidden_size' expected int, got str", A_FOLDER),
    language_model(
        "heads that do not divide",
        config(num_attention_heads=3),
        "not a multiple of the number of attention heads (3)",
        A_FOLDER,
    ),
    language_model(
        "no heads at all",
        config(num_attention_heads=0, num_key_value_heads=0),
        "could not load a tokenizer: integer modulo by zero",
        A_FOLDER,
    ),
    language_model(
        "another width", config(hidden_size=64), "of another shape", "(320, 32), expected (320, 64)", "give another folder"
    ),
    *(
        case(
            f"fewer positions than a row takes, {name}",
            command,
            " tokens; ",
            f"/{kind} has positions for 12",
            *says,
            **{option: model(kind, config(max_position_embeddings=12))},
        )
        for name, command, option, kind, says in (
            ("in SFT", SFT, "model", "sft", ("the longest row has", "--max_length", "at most 12")),
            ("in pairs", RM, "model", "sft", ("the longest pair", "--max_length", "at most 12")),
            ("in the fit", FIT, "reward_model", "rm", ("the longest pair", "--max_length", "at most 12")),
            ("in PPO", PPO, "model", "sft", ("the longest prompt", "--max_new_tokens", "to at most 12 together")),
            ("of the reward model", PPO, "reward_model", "rm", ("the longest prompt", "to at most 12 together")),
            ("in best-of-n", BON, "model", "sft", ("the longest prompt", "--max_prompt_length", "to at most 12 together")),
        )
    ),
    language_model("no weights", without("model.safetensors"), "holds no model.safetensors", A_FOLDER),
    language_model("half the weights", half("model.safetensors"), "model.safetensors is damaged or half written", AGAIN),
    language_model(
        "half the weights, SFT", half("model.safetensors"), "model.safetensors is damaged or half written", AGAIN, command=SFT
    ),
    language_model(
        "an empty file of weights", written("model.safetensors", ""), "model.safetensors is damaged or half written", AGAIN
    ),
    language_model("a missing weight", weights(lambda w: w.pop(UP)), f"1 missing (e.g. {UP})", "save the model again"),
    language_model(
        "a missing shard", lambda path: missing_shard(path), "No such file or directory", "model-00001-of-00002", A_FOLDER
    ),
    language_model("an index that is no JSON", written("model.safetensors.index.json", "{"), "index.json is not JSON", AGAIN),
    language_model("pickled weights", pickled, "holds pickled weights (pytorch_model.bin)", "model.save_pretrained("),
    language_model("pickled weights, SFT", pickled, "which can run code", "model.save_pretrained(", command=SFT),
    language_model("code in the folder", with_code, "Python code of its own, which is not run", "add --trust_remote_code"),
    language_model(
        "code in the folder, SFT", with_code, "not run unless it is trusted", "add --trust_remote_code", command=SFT
    ),
    language_model(
        "a broken generation config",
        written("generation_config.json", "{"),
        "generation_config.json is not JSON",
        AGAIN,
        command=PPO,
    ),
    language_model(
        "end tokens that are none",
        written("generation_config.json", '{"eos_token_id": "</s>"}'),
        "eos_token_id ['</s>']; expected token ids",
        "correct it there",
        command=PPO,
    ),
    case(
        "a language model as reward model",
        PPO,
        "no reward head (score.weight)",
        "denserl train-rm --model",
        reward_model=lambda w: w.good / "sft",
    ),
    case(
        "a language model to fit",
        FIT,
        "no reward head (score.weight)",
        "denserl train-rm --model",
        reward_model=lambda w: w.good / "sft",
    ),
    case(
        "a reward model as policy",
        PPO,
        "rm is a reward model",
        "a language model is expected",
        "trained from",
        model=lambda w: w.good / "rm",
    ),
    *(
        case("no name at all", command, "--reward_model names no model", words=("--reward_model",), reward_model=None)
        for command in (BON, FIT)
    ),
    case(
        "no name at all",
        PPO,
        "nothing gives rewards",
        "add --reward_model FOLDER",
        words=("--reward_model",),
        reward_model=None,
    ),
    case("no gold model", BON, "no model folder '/nowhere/rm'", A_FOLDER, gold_reward_model="/nowhere/rm"),
    case("no such folder", PLAN, "no model folder '/nowhere/sft'", A_FOLDER, model="/nowhere/sft"),
    case("no such name", PLAN, "someone/no-such-model: could not load a model", A_FOLDER, model="someone/no-such-model"),
    language_model("no config", without("config.json"), "sft/config.json: No such file", "give a model folder", command=PLAN),
    language_model("no language model", config(model_type="t5", architectures=["T5Model"]), "T5Config", A_FOLDER, command=PLAN),
    case("a reward model to plan for", PLAN, "rm is a reward model", "trained from", model=lambda w: w.good / "rm"),
    case(
        "targets that are not there",
        PLAN,
        "--lora_targets qq_proj: the model has no such layer",
        "for all",
        lora_rank=2,
        lora_targets="qq_proj",
    ),
    case("a reward model to start from", RM, "rm is a reward model", "trained from", model=lambda w: w.good / "rm"),
    reward_model(
        "a head of two labels",
        weights(lambda w: w.update({"score.weight": w["score.weight"].repeat(2, 1)})),
        "score.weight: (2, 32), expected (1, 32)",
        "give another folder",
    ),
    reward_model(
        "a head of another width",
        weights(lambda w: w.update({"score.weight": w["score.weight"][:, :7].contiguous()})),
        "score.weight: (1, 7), expected (1, 32)",
        "give another folder",
    ),
    reward_model(
        "an unknown weight",
        weights(lambda w: w.update({"extra.weight": w["score.weight"].clone()})),
        "1 unexpected (e.g. extra.weight)",
        "give another folder",
    ),
    reward_model("another vocabulary size", config(vocab_size=300), "(320, 32), expected (300, 32)", "give another folder"),
    reward_model(
        "another vocabulary",
        lambda path: replaced(path / "tokenizer.json", "<|endoftext|>", "<|eot|>"),
        "another tokenizer than the policy (2 tokens differ",
        "from the same SFT model",
    ),
    reward_model(
        "settings of another type",
        config(segment_reward=["x"]),
        "has ['x'] for segment_reward; expected an object",
        "denserl train-rm",
    ),
    reward_model(
        "a threshold in words",
        config(segment_reward={"entropy_threshold": "high"}),
        "has 'high' for entropy_threshold; expected a finite number",
        "denserl train-rm",
        command=FIT,
    ),
    reward_model(
        "an aggregation that is none",
        config(segment_reward={"agg_func": "median"}),
        "has 'median' for agg_func; expected one of avg, sum, min, last, logsumexp",
        "denserl train-rm",
    ),
    reward_model(
        "an aggregation that is a number",
        config(segment_reward={"agg_func": 3}),
        "has 3 for agg_func; expected a text",
        "denserl train-rm",
        command=BON,
    ),
    case(
        "a scalar normaliser for segments of a sum",
        PPO,
        "--assignment even with the scalar normaliser",
        "segments of the aggregation sum",
        "--assignment difference",
        agg_func="sum",
        normalizer="scalar",
        reward_mean=0,
        reward_std=1,
        **NO_FIT,
    ),
    case(
        "a covariate that rows do not have",
        RM,
        "it has no 'chosen_stars', a number that an objective reads",
        "correct the data",
        disentangle="stars",
    ),
    case("more sentences than most", WORLD, "--min_sentences 7 --max_sentences 6", "let 2 <= MIN <= MAX", min_sentences=7),
    reward_model(
        "a mean in words",
        config(mean="much", std=1.0),
        "has 'much' for mean",
        "denserl train-rm",
        normalizer="scalar",
        **NO_FIT,
    ),
    case(
        "no mean",
        PPO,
        "needs a mean and a std > 0; its config has mean None",
        "--reward_mean and --reward_std",
        normalizer="scalar",
        **NO_FIT,
    ),
    *(
        reward_model(
            "a segmenter of its own",
            config(segment_reward={"entropy_threshold": 1.75, "segmenter": "cut:halves"}),
            "trained with the segmenter cut:halves, which is code",
            "add --segmenter cut:halves if you trust it",
            command=command,
            **flags,
        )
        for command, flags in ((PPO, {}), (FIT, {"sft_model": lambda w: w.good / "sft"}))
    ),
    case("a mean for segments' lines", PPO, "--reward_mean 0.5", "has no effect without --normalizer scalar", reward_mean=0.5),
    reward_model(
        "a fit for a bandit",
        config(segment_reward={"entropy_threshold": 1000.0}, mean=0.0, std=1.0),
        "fits.json has no effect without --normalizer location",
        "leave --fit out",
    ),
    reward_model(
        "no settings to fit by",
        config(segment_reward=None),
        "does not say the entropy threshold",
        "add --entropy_threshold",
        command=FIT,
    ),
    reward_model(
        "a bandit to fit",
        config(segment_reward={"sft_model": "x", "entropy_threshold": 1000.0}),
        "one reward per response (threshold 1000)",
        "denserl train-ppo needs the mean and std alone",
        command=FIT,
    ),
    reward_model(
        "an SFT model that is gone",
        config(segment_reward={"sft_model": "/gone/sft", "entropy_threshold": 1.75}),
        "/config.json names /gone/sft as the SFT model whose entropies cut responses (sft_model): there is no model folder",
        "give it with --sft_model, or correct it there",
        command=FIT,
    ),
    reward_model(
        "scores that are all the same",
        weights(lambda w: w["score.weight"].zero_()),
        "standard deviation at the end of a response is 0",
        "tells responses apart",
        command=FIT,
    ),
]

ROWS = [
    seen("a missing key", RM, "'chosen' is missing or null", data=pair(chosen=...)),
    seen("a null key", RM, "'rejected' is missing or null", data=pair(rejected=None)),
    seen("no prompt", RM, "'chosen' is a plain text and there is no prompt beside it", data=pair(prompt=...)),
    seen("a number as text", RM, "'chosen' is neither text nor a list of messages", data=pair(chosen=7)),
    seen(
        "an unknown role",
        RM,
        "'prompt' holds a message of role 'wizard'; expected system, user, assistant, tool or developer",
        data=pair(prompt=[{"role": "wizard", "content": "x"}]),
    ),
    seen(
        "a tool's turn at the end",
        SFT,
        "'messages' does not end with an assistant turn",
        data=pairs({"messages": [{"role": "tool", "content": "x"}]}),
    ),
    seen("an image", SFT, "the row has 'image', which is not read", data=pair(image="kettle.png")),
    seen(
        "a part that is an image",
        RM,
        "'prompt' holds a content with a part of type 'image_url'; only 'text' is read",
        data=pair(prompt=[{"role": "user", "content": [{"type": "image_url", "image_url": "kettle.png"}]}]),
    ),
    seen(
        "a content of null",
        RM,
        "'prompt' holds a message whose content is null",
        data=pair(prompt=[{"role": "user", "content": None}]),
    ),
    seen(
        "a label too many",
        RM,
        "2 labels for 1 steps",
        input="steps",
        cache_dir=None,
        data=file("bad.jsonl", "".join(json.dumps({**STEPS, "labels": labels}) + "\n" for labels in ([1], [1, 0]))),
    ),
    case(
        "a first step that is no expression",
        RM,
        "--first_step '(' is no regular",
        "correct it",
        input="steps",
        first_step="(",
        cache_dir=None,
    ),
    seen("two system texts", RM, "'system' differs from the system message of the conversation", data=pair(**TWO_SYSTEMS)),
    seen(
        "messages written as Python has them",
        RM,
        "'chosen' holds messages written as text that is no JSON",
        data=pair(chosen="[{'role': 'assistant', 'content': 'The kettle hums.'}]"),
    ),
    case(
        "columns of other names",
        RM,
        "bad.jsonl:1: 'chosen' is missing or null; the row has question, response_j, response_k, and so it is with all 3 rows",
        "name those that are meant: --columns prompt=...,chosen=...,rejected=...",
        data=pairs(*[{"question": "a", "response_j": "b", "response_k": "c"}] * 3, after=0),
    ),
    *(
        case(
            f"a prompt of another name, {command}",
            command,
            f"bad.jsonl:1: '{key}' is a plain text and there is no prompt beside it; the row has question, {key}, rejected",
            "name those that are meant: --columns prompt=...",
            data=pairs(*[{"question": "a", key: "b", "rejected": "c"}] * 3, after=0),
        )
        for command, key in ((RM, "chosen"), (SFT, "response"))
    ),
    case(
        "a column that is not there",
        RM,
        "--columns names Question, which no row has; the rows have question, chosen, rejected",
        "correct --columns",
        data=pairs(*[{"question": "a", "chosen": "b", "rejected": "c"}] * 3, after=0),
        columns="prompt=Question",
    ),
    case(
        "a stream without a column that is named",
        SFT,
        "--columns names question, which no row has",
        "correct --columns",
        columns="prompt=question",
        max_steps=2,
        words=("--streaming",),
    ),
    case(
        "a column that is not read",
        RM,
        "--columns sets 'question', which is not read",
        "prompt=question",
        columns="question=prompt",
    ),
    seen(
        "a message without content",
        RM,
        "'prompt' holds a message without 'content'",
        data=pair(prompt=[{"role": "user"}]),
    ),
    seen(
        "no answer",
        SFT,
        "'messages' does not end with an assistant turn",
        data=pairs({"messages": [{"role": "user", "content": "a"}]}),
    ),
    seen("no messages", SFT, "'messages' is neither text nor a list of messages", data=pairs({"messages": []})),
    seen(
        "no prompt before the answer",
        PPO,
        "there is no prompt",
        data=pairs({"prompt": [{"role": "assistant", "content": "a"}]}),
    ),
    seen(
        "a prompt under another name", PPO, "no 'prompt', 'messages', 'instruction' or 'chosen'", data=pairs({"question": "a"})
    ),
    seen("an empty response", RM, "'chosen' is empty", data=pair(chosen="  ")),
    seen("identical responses", RM, "chosen and rejected are identical", data=pair(rejected=GOOD_PAIR["chosen"] + " ")),
    seen(
        "two prompts",
        RM,
        "chosen and rejected have different prompts",
        data=pair(
            **{
                side: [{"role": "user", "content": side}, {"role": "assistant", "content": side}]
                for side in ("chosen", "rejected")
            },
            prompt=...,
        ),
    ),
    seen(
        "responses that differ too late",
        RM,
        "chosen and rejected have the same tokens, at least after truncation",
        data=pair(**SIDES_EQUAL_UNTIL_LATE),
    ),
    seen("a row that is a list", RM, "the row is not an object", data=pairs([1, 2])),
    seen("a rating of one side", RM, "the rating 'score_rejected' is not a number", data=pair(score_chosen=1.0)),
    seen(
        "a rating that is no number",
        RM,
        "the rating 'score_chosen' is not a number",
        data=pair(score_chosen=float("nan"), score_rejected=1),
    ),
    seen(
        "half a surrogate pair",
        RM,
        "'chosen' holds half a surrogate pair, which is no valid Unicode",
        data=pair(chosen="\ud800"),
    ),
    seen("a response of 10 MB", RM, "the row has 10000032 characters; at most 1000000 are read", data=pair(chosen=LENGTHS)),
    seen(
        "a prompt of 10 MB", PPO, "the row has 10000000 characters; at most 1000000 are read", data=pairs({"prompt": LENGTHS})
    ),
    seen(
        "a conversation of 10 MB",
        SFT,
        "the row has 10000001 characters; at most 1000000 are read",
        data=pairs(
            {"messages": [{"role": "user", "content": LENGTHS[:100_000]}] * 100 + [{"role": "assistant", "content": "a"}]}
        ),
    ),
    seen(
        "10 MB of brackets",
        RM,
        "invalid JSON (nested too deeply)",
        data=file("bad.jsonl", json.dumps(GOOD_PAIR) + "\n" + "[" * 10_000_000),
    ),
    seen(
        "invalid UTF-8",
        RM,
        "the line is not valid UTF-8",
        data=file("bad.jsonl", json.dumps(GOOD_PAIR).encode() + b'\n{"prompt": "caf\xe9"}\n'),
    ),
    seen("a text of one token", SFT, "the text has fewer than two tokens", data=pairs({"text": "a"})),
    case(
        "a row that is no text to learn from",
        PPO,
        "text.jsonl:1: no 'messages', 'response', 'completion', 'output', 'chosen' or 'text'; the row has no key",
        "correct the data",
        ptx_data=file("text.jsonl", "{}\n"),
    ),
    case("a held-out row", PPO, "held.jsonl:1: no 'prompt'", "correct the data", eval_prompts=file("held.jsonl", "{}\n")),
    case("no room for a response", RM, "--max_length 33 and --max_prompt_length 32 leave no room", "smaller", max_length=33),
    case("a length of one", SFT, "--max_length is 1; it must be at least 4", "more tokens", max_length=1),
    case("too few to hold out", RM, "4 pairs are too few", "give --eval_data", eval_data=None),
    case(
        "too few prompts",
        PPO,
        "4 prompts x 0.1 episodes fill no rollout batch of 4",
        "smaller --rollout_batch_size",
        iterations=None,
        episodes=0.1,
    ),
    case("too few places", FIT, "at 0 place(s) with 1000 or more rewards", "score more pairs (--pairs)", smallest_group=1000),
]

FILES = [
    case("no such file", RM, "no file or folder 'data/pairs.jsonl'", "check the path", data="data/pairs.jsonl"),
    case(
        "no such dataset",
        RM,
        "'someone/no-such-data' is no file or folder, and the hub gives no such",
        "give a path",
        data="someone/no-such-data",
    ),
    case("no source", RM, "no data source is given", "name a file", data=None, words=("--data",)),
    case("an empty name", RM, "no file or folder ''", "check the path", data=""),
    case("a spreadsheet", RM, "bad.xlsx is of no known kind", ".jsonl", data=file("bad.xlsx", "a,b\n")),
    case("a table without rows", RM, "bad.csv: no usable row (it is empty)", "check the source", data=file("bad.csv", "a,b\n")),
    case(
        "a table of semicolons",
        RM,
        "bad.csv: its header is one column, 'prompt;chosen;rejected'; expected columns with commas between them",
        "write the file with commas",
        data=file("bad.csv", "prompt;chosen;rejected\na;b;c\n"),
    ),
    case(
        "a ragged table",
        RM,
        "bad.csv:3: the row has 2 cells, and the header 3",
        "--on_bad_row skip",
        data=file("bad.csv", RAGGED),
    ),
    case(
        "a cell that is not closed",
        RM,
        "bad.csv:3: a quoted cell is never closed",
        "a quote inside a quoted cell is doubled",
        data=file("bad.csv", 'prompt,chosen,rejected\na,b,c\n"a,b,c\na,b,c\n'),
    ),
    case(
        "two columns of a name",
        RM,
        "bad.csv: its header has 'chosen' more than once",
        "a name of its own",
        data=file("bad.csv", "prompt,chosen,chosen\na,b,c\n"),
    ),
    *(
        case(f"a pointer of Git LFS, {suffix}", RM, "is a pointer of Git LFS", "git lfs pull", data=file(f"bad{suffix}", LFS))
        for suffix in (".jsonl", ".json", ".csv", ".parquet")
    ),
    case(
        "a split that others begin with",
        RM,
        "rows has no split 'train' but train_gen, train_prefs",
        "--split train_gen",
        data=folder("train_prefs-0.jsonl", "train_gen-0.jsonl"),
    ),
    case(
        "a pipe",
        RM,
        "pipe.jsonl is neither a file nor a folder",
        "write the rows to a file",
        data=lambda w: pipe(w.own / "pipe.jsonl"),
    ),
    case("an empty file", RM, "empty.jsonl: no usable row (it is empty)", "check the source", data=file("empty.jsonl", "")),
    case("blank lines", SFT, "empty.jsonl: no usable row", "check the source", data=file("empty.jsonl", "\n\n")),
    case("an empty gzip", RM, "empty.jsonl.gz: no usable row", "check the source", data=file("empty.jsonl.gz", "")),
    case("an empty list", RM, "empty.json: no usable row", "check the source", data=file("empty.json", "[]")),
    case("half a row in a gzip", RM, "torn.jsonl.gz:3: invalid JSON", "--on_bad_row skip", data=torn_in_gzip),
    case(
        "a gzip that was cut",
        RM,
        "cut.jsonl.gz",
        "cannot be read: Compressed file ended before",
        "fetch or write the file again",
        data=cut_gzip,
    ),
    case(
        "a gzip in name only",
        RM,
        "plain.jsonl.gz:1: cannot be read: Not a gzipped file",
        "fetch or write",
        data=lambda w: w.file("p", "{}").rename(w.own / "plain.jsonl.gz"),
    ),
    case(
        "an object around the rows",
        RM,
        "rows.json holds one object (with 'data')",
        "expected a list of rows",
        "[row, row, ...]",
        data=file("rows.json", json.dumps({"data": [GOOD_PAIR]}, indent=1)),
    ),
    case(
        "a list that breaks off",
        RM,
        "rows.json:2: invalid JSON",
        "correct the file",
        data=file("rows.json", f'[{json.dumps(GOOD_PAIR)},\n{{"prompt": ]'),
    ),
    case(
        "a parquet file in name only",
        RM,
        "rows.parquet:1: cannot be read",
        "fetch or write the file again",
        data=file("rows.parquet", "PAR1"),
    ),
    case(
        "UTF-16", RM, "bad.jsonl:1: the line is not valid UTF-8", data=file("bad.jsonl", json.dumps(GOOD_PAIR).encode("utf-16"))
    ),
    case("a folder without data", RM, "rows holds no data file", ".parquet", data=folder("notes.md")),
    case(
        "the folder of a model", RM, "sft holds no data file", "put files of these kinds there", data=lambda w: w.good / "sft"
    ),
    case(
        "an unknown split",
        RM,
        "rows has no split 'validation' but train",
        "--split train",
        data=folder("train.jsonl"),
        split="validation",
    ),
    case(
        "weights for other sources",
        RM,
        "--data_weights has 2 weights [1.0, 2.0] for 1 data sources",
        "one positive weight per source",
        data_weights=(1, 2),
    ),
    case(
        "a weight that is no number",
        RM,
        "--data_weights has nan; each must be finite",
        "leave --data_weights",
        data_weights="nan",
    ),
    case("a weight of nothing", RM, "--data_weights has 1 weights [0.0]", "one positive weight", data_weights=0),
    case(
        "a fit that is not there",
        PPO,
        "/nowhere/fits.json does not exist; published fits are phi3-instruct/preference700k_60000",
        "denserl fit-normalizer",
        fit="/nowhere/fits.json",
    ),
    case("a fit that is a folder", PPO, "there is a folder of that name", "denserl fit-normalizer", fit=lambda w: w.own),
    case("no fit beside the reward model", PPO, "/rm/fits.json does not exist", "denserl fit-normalizer", fit=None),
    case("fits that are no JSON", PPO, "fits.json is no file of fits (Expecting", "fit again", fit=fits("{")),
    case("fits in a list", PPO, "no file of fits (expected an object", "fit again", fit=fits([[1, 2, 3, 4]])),
    case(
        "fits of version 0.1",
        PPO,
        "no entry has constants; a param.json of version 0.1 is none",
        "fit again",
        fit=fits({"tiny": {"tag": {"peak": {"avg": {"1.75": [0.3, -0.1, 0.2, 1.5]}}}}}),
    ),
    case(
        "a fit with NaN",
        PPO,
        "found [0.3, nan, 0.2, 1.5], expected [w_mu, w_sigma, b_mu, b_sigma]",
        "fit the entry again",
        fit=entry([0.3, float("nan"), 0.2, 1.5]),
    ),
    case(
        "a fit of three numbers",
        PPO,
        "found [0.3, 0.2, 1.5]",
        "four finite numbers",
        "fit the entry again",
        fit=entry([0.3, 0.2, 1.5]),
    ),
    case(
        "a fit in another order",
        PPO,
        "found [0.2, 1.5, 0.3, -0.1]",
        "with b_sigma > 0",
        "fit the entry again",
        fit=entry([0.2, 1.5, 0.3, -0.1]),
    ),
    case(
        "a fit by name",
        PPO,
        "found {'w_mu': 0.3}",
        "expected [w_mu, w_sigma, b_mu, b_sigma]",
        "fit the entry again",
        fit=entry({"w_mu": 0.3}),
    ),
    case(
        "a published fit at another threshold",
        PPO,
        "no normaliser for phi3-instruct/preference700k_60000/peak/avg/1.5; it has: phi3-instruct",
        "denserl fit-normalizer",
        fit="phi3-instruct/preference700k_60000",
        entropy_threshold=1.5,
    ),
    case(
        "no fit at that threshold",
        PPO,
        "no fit for peak/avg/1.5; it has: peak/avg/1.75",
        "denserl fit-normalizer",
        entropy_threshold=1.5,
    ),
    case(
        "an output folder that is a file",
        RM,
        "--output_dir",
        "out is a file; expected a folder",
        "can be written",
        output_dir=file("out", "x"),
    ),
    case(
        "an output folder under a file",
        PPO,
        "f/out: Not a directory",
        "can be written",
        output_dir=lambda w: w.file("f", "x") / "out",
    ),
    case(
        "an output folder that cannot be",
        NEW,
        "--output_dir /proc/none/out: No such file",
        "can be written",
        output_dir="/proc/none/out",
    ),
    case(
        "sentences of sums", WORLD, "--truth sum has no effect with --kind sums", "leave --truth out", kind="sums", truth="sum"
    ),
    case("errors of language", WORLD, "--error_rate 0.2 has no effect with --kind language", "leave --error", error_rate=0.2),
    case("an output folder without a name", WORLD, "--output_dir is empty", "give a folder", output_dir=""),
    case("an output folder no file system has", WORLD, "embedded null byte", "give a folder", output_dir="a\0b"),
    case(
        "a cache that is a file",
        RM,
        "--cache_dir",
        "is a file; expected a folder",
        "can be written",
        cache_dir=file("cache", "x"),
    ),
    case("nothing to resume, RM", RM, "--resume:", "out holds no checkpoint", "leave --resume out", words=("--resume",)),
    case("nothing to resume, PPO", PPO, "--resume:", "out holds no checkpoint", "leave --resume out", words=("--resume",)),
    case(
        "targets that are not there",
        RM,
        "--lora_targets qq_proj: the model has no such layer",
        "takes adapters; it has down_proj, embed_tokens",
        "for all",
        lora_rank=2,
        lora_targets="qq_proj",
    ),
    case(
        "a kernel that is not installed",
        RM,
        "could not load a model",
        "FlashAttention2",
        "denserl[flash]",
        attention="flash_attention_2",
    ),
    case("heads that do not split", NEW, "--hidden_size 256 does not split into 3 heads", "twice --num_heads", num_heads=3),
    case(
        "a reward function that is not there",
        PPO,
        "--true_reward nowhere:f: ModuleNotFoundError: No module named 'nowhere'",
        "give module:name or file.py:name",
        true_reward="nowhere:f",
        eval_prompts=lambda w: w.good / "prompts.jsonl",
    ),
    case(
        "a reward function that is a number",
        PPO,
        "--true_reward math:pi is no function",
        "give module:name",
        true_reward="math:pi",
        eval_prompts=lambda w: w.good / "prompts.jsonl",
    ),
    case(
        "batches that do not divide, RM",
        RM,
        "--batch_size 3 is no multiple of --micro_batch_size 2",
        "a multiple of 2",
        batch_size=3,
    ),
    case(
        "batches that do not divide, PPO",
        PPO,
        "--rollout_batch_size 4 is no multiple of --train_batch_size 3",
        "a multiple of 3",
        train_batch_size=3,
    ),
    case(
        "micro-batches that do not divide",
        PPO,
        "--train_batch_size 4 is no multiple of --micro_batch_size 3",
        "a multiple of 3",
        micro_batch_size=3,
    ),
    case(
        "samples that do not divide",
        PPO,
        "--rollout_batch_size 4 is no multiple of --samples_per_prompt 3",
        "a multiple of 3",
        samples_per_prompt=3,
    ),
    case("best without steps", RM, "--keep best with --save_steps 0", "multiple of --eval_steps", keep="best"),
    case(
        "length_norm on segments", PPO, "--length_norm at threshold 1.75", "add --reward_level token", words=("--length_norm",)
    ),
]


def idle(option: str, command: str, when: str, words: tuple[str, ...] = (), **flags) -> Case:
    """An option that would be ignored."""
    return case(
        f"{option} {when}", command, f"--{option}", f"has no effect {when}", f"leave --{option} out", words=words, **flags
    )


def outside(option: str, command: str, value: object, bounds: str) -> Case:
    """A number out of its range."""
    return case(
        f"{option} {value}", command, f"--{option} is {value}; it must be {bounds}", f"leave --{option} out", **{option: value}
    )


# Refused before anything is written.
OPTIONS = [
    case("columns without a sign", RM, "--columns has 'prompt'", "prompt=question,chosen=response_j", columns="prompt"),
    case(
        "a column named twice",
        RM,
        "--columns has 'prompt=b' for a key that it names before",
        "write it as",
        columns="prompt=a,prompt=b",
    ),
    case("a command that is none", "trian-rm", "unknown command 'trian-rm'", "did you mean train-rm?"),
    case("a command far from any", "frobnicate", "unknown command 'frobnicate'", "commands: demo, make-world"),
    case("a near miss", RM, "no option --batchsize; did you mean --batch_size?", "write --batch_size", batchsize=4),
    case(
        "a near miss of what is needed", RM, "no option --modle; did you mean --model?", "write --model", model=None, modle="x"
    ),
    case("a near miss with dashes", RM, "no option --batch_sise; did you mean --batch_size?", words=("--batch-sise=4",)),
    case("a flag far from any", PPO, "no option --xyzzy", "denserl train-ppo --help", xyzzy=3),
    case("a stray word", RM, "Unrecognized options: stray", "denserl train-rm --help", words=("stray",)),
    case("nothing of what is needed", PPO, "--model", "required", "denserl train-ppo --help", model=None),
    case(
        "nothing to be rewarded by",
        PPO,
        "nothing gives rewards",
        "or another source of docs/reward_sources.md",
        reward_model=None,
    ),
    case("a word for a number", RM, "--batch_size", "'four'", "--help", batch_size="four"),
    case("half a row", RM, "--batch_size", "'4.5'", "--help", batch_size="4.5"),
    case("no value", RM, "Missing value for argument '--lr'", "--help", words=("--lr",)),
    case("an unknown precision", RM, "'fp16'", "'fp32', 'bf16'", "--help", dtype="fp16"),
    case("an unknown kernel", PPO, "'flash3'", "'sdpa', 'flash_attention_2', 'eager'", "--help", attention="flash3"),
    case("an unknown level", RM, "'sentence'", "'segment', 'token', 'bandit'", "--help", reward_level="sentence"),
    case("an unknown tracker", RM, "--report_to wandbb is not known", "tensorboard, wandb", report_to="wandbb"),
    case("a tracker beside none", RM, "--report_to has none beside others", "give none alone", report_to=("none", "wandb")),
    case(
        "a hub's repository of no name", RM, "--push_to_hub a/b/c is no name of a repository", "USER/NAME", push_to_hub="a/b/c"
    ),
    case("a public repository without one", RM, "--hub_public has no effect without --push_to_hub", words=("--hub_public",)),
    case(
        "several models into one repository", RM, "--push_to_hub a/b has no effect with --members", members=2, push_to_hub="a/b"
    ),
    case("a tracker that is not installed", RM, "--report_to aim is not installed", "pip install aim", report_to="aim"),
    outside("batch_size", RM, 0, "at least 1"),
    outside("gpus", PLAN, 0, "at least 1"),
    outside("gpu_memory", PLAN, 0.0, "above 0"),
    outside("meta_samples", PLAN, 1, "at least 2"),
    case("one token", PLAN, "--max_length 1 leaves no room for a response", "at least 2", max_length=1),
    outside("micro_batch_size", PPO, -4, "at least 1"),
    outside("limit", SFT, 0, "at least 1"),
    outside("vocab_size", NEW, 100, "at least 260"),
    outside("entropy_threshold", PPO, "nan", "at least 0"),
    outside("entropy_threshold", RM, -1.75, "at least 0"),
    outside("entropy_threshold", FIT, "inf", "at least 0"),
    outside("lr", SFT, "nan", "at least 0"),
    outside("temperature", PPO, 0.0, "above 0"),
    outside("top_p", PPO, 1.5, "above 0 and at most 1"),
    outside("scale", WORLD, -1.0, "above 0"),
    outside("reg_coef", RM, 1.0, "at least 0 and at most 0.99"),
    outside("flip_frac", RM, 1.5, "at least 0 and at most 1"),
    outside("soft_label_scale", RM, 0.0, "above 0"),
    outside("head_layers", RM, 65, "at least 1 and at most 64"),
    outside("samples", BON, 0, "at least 1"),
    outside("ensemble_weight", PPO, -1.0, "at least 0"),
    outside("seed", RM, 2**70, "at least 0 and at most 4.29497e+09"),
    idle("lora_alpha", RM, "without --lora_rank", lora_alpha=16),
    idle("lora_targets", PPO, "without --lora_rank", lora_targets="q_proj"),
    idle("max_steps", SFT, "without --streaming", max_steps=5),
    idle("epochs", SFT, "with --streaming", epochs=2, max_steps=5, words=("--streaming",)),
    case("a stream without an end", SFT, "how long a stream is, is not known", "give --max_steps", words=("--streaming",)),
    idle("load_in_4bit", SFT, "without --lora_rank", words=("--load_in_4bit",)),
    case(
        "weights in 4 bits in shares",
        PPO,
        "--load_in_4bit with --zero_stage 3",
        "use --zero_stage 2",
        lora_rank=2,
        zero_stage=3,
        words=("--load_in_4bit",),
    ),
    idle("lora_rank", RM, "with --freeze_trunk", lora_rank=2, words=("--freeze_trunk",)),
    idle("reg_type", RM, "with --freeze_trunk", reg_type="sft", words=("--freeze_trunk",)),
    idle("reg_coef", RM, "without --reg_type", reg_coef=0.1),
    idle("reg_logp", RM, "without --reg_type", reg_logp="mean"),
    idle("reg_beta", RM, "without --reg_type sft, dpo or dpo_noref", reg_type="sft_plain", reg_beta=0.2),
    idle("head_width", RM, "without --head_type mlp", head_width=8),
    idle("disentangle", RM, "with another --head_type than linear", disentangle="length", head_type="mlp"),
    idle("disentangle", RM, "without --input pairs", disentangle="length", input="steps"),
    idle("contrastive", RM, "without --input pairs", contrastive="simcse", input="pair", head_type="label"),
    idle("contrastive", RM, "with --freeze_trunk or --head_type gated", contrastive="swav", words=("--freeze_trunk",)),
    idle("contrastive_on", RM, "without --contrastive", contrastive_on="diff"),
    idle("contrastive_coef", RM, "without --contrastive", contrastive_coef=0.5),
    idle("contrastive_dropout", RM, "without --contrastive", contrastive_dropout=0.1),
    idle("contrastive_tau", RM, "without --contrastive simcse", contrastive="swav", contrastive_tau=0.1),
    idle("prototypes", RM, "without --contrastive swav", contrastive="simcse", prototypes=8),
    idle("meta_samples", PLAN, "without --meta_data", meta_samples=8),
    idle("disentangle_coef", RM, "without --disentangle", disentangle_coef=0.5),
    idle("orthogonal_coef", RM, "without --disentangle", orthogonal_coef=0.5),
    idle("disentangle_sum", RM, "without --disentangle", words=("--disentangle_sum",)),
    idle("offload_optimizer", RM, "with --zero_stage 0", words=("--offload_optimizer",)),
    idle("ensemble", PPO, "with a single reward model", ensemble="min"),
    idle("step_labels", BON, "without --continue_steps", step_labels="hard"),
    idle("neutral", RM, "where no steps are read", neutral="good"),
    idle("ensemble_weight", BON, "without --ensemble mean_std", ensemble_weight=0.5),
    idle("gold_reward_model", PPO, "without --eval_prompts", gold_reward_model="rm"),
    idle(
        "true_reward",
        PPO,
        "without --eval_prompts, or with --eval_every 0",
        true_reward="math:sqrt",
        eval_prompts="e.jsonl",
        eval_every=0,
    ),
    idle("split", RM, "where there are no splits", split="validation"),
    idle("eval_split", PPO, "without a folder or hub dataset of held-out rows", eval_split="validation"),
    idle("eval_size", RM, "beside --eval_data", eval_size=10),
    idle("eval_steps", SFT, "without --eval_data", eval_steps=10),
    idle("eval_every", PPO, "without --eval_prompts", eval_every=3),
    idle("true_reward", PPO, "without --eval_prompts", true_reward="math:sqrt"),
    idle("episodes", PPO, "beside --iterations", episodes=2),
    idle("kl_horizon", PPO, "without --kl_target", kl_horizon=5),
    idle("entropy_target", PPO, "without --entropy_coef", entropy_target=3.0),
    idle("min_lr_ratio", PPO, "without --lr_schedule cosine", lr_schedule="inverse_sqrt", min_lr_ratio=0.3),
    idle("min_lr_ratio", SFT, "without --lr_schedule cosine", lr_schedule="inverse_sqrt", min_lr_ratio=0.3),
    idle("ptx_coef", PPO, "without --ptx_data", ptx_coef=0.5),
    idle("penalty", PPO, "without --penalise_unfinished or --penalise_longer_than", penalty=0.5),
    idle("tau", PPO, "without --assignment logsumexp_last", tau=0.5),
    idle("reward_mean", PPO, "without --normalizer scalar", reward_level="segment", reward_mean=0.5),
    idle("fit", PPO, "without --normalizer location", normalizer="none"),
    case(
        "a fit for differences",
        PPO,
        "fits.json has no effect without --normalizer location",
        "leave --fit out",
        assignment=None,
    ),
    case(
        *("Liger's kernels without a GPU", PPO, "--use_liger_kernel on cpu", "run on a GPU alone"),
        "leave --use_liger_kernel out",
        words=("--use_liger_kernel",),
    ),
    case("adapters with dropout", PPO, "--lora_dropout 0.1", "leave --lora_dropout at 0", lora_rank=2, lora_dropout=0.1),
    case("no config file", RM, "--config: /nowhere.yaml is no file", "give a YAML file", config="/nowhere.yaml"),
    case(
        "a config file that is no YAML", RM, "c.yaml is not YAML", "write option: value lines", config=file("c.yaml", "a: [1")
    ),
    case(
        "a config file of bytes",
        RM,
        "c.yaml is not YAML: 'utf-8'",
        "write option: value lines",
        config=file("c.yaml", b"\xff\xfe\x00"),
    ),
    case("a config file with a list", RM, "c.yaml holds a list", "write option: value lines", config=file("c.yaml", "- a")),
    case(
        "a config file with a near miss",
        RM,
        "c.yaml: there is no option batchsize; did you mean batch_size?",
        "write batch_size",
        config=file("c.yaml", "batchsize: 4"),
    ),
    case("a config file with a wrong value", RM, "--lr", "peak", "--help", config=file("c.yaml", "lr: {peak: 1}")),
    case(
        "a config file in a config file",
        RM,
        "another --config in it",
        "into one file",
        config=file("c.yaml", "config: other.yaml"),
    ),
    case("fits to write that are no JSON", FIT, "is no file of fits", "another file with --fit", fit=fits("{")),
    case(
        "fits to write under a file",
        FIT,
        "f is a file; expected a folder",
        "another file with --fit",
        fit=lambda w: w.file("f", "x") / "p.json",
    ),
    *(
        case(f"{name} of the version before", command, f"no option --{name}", says, words=(f"--{name}", "x"))
        for command, name, says in (
            (PPO, "params", "did you mean --fit?"),
            (PPO, "fit_tag", "did you mean --fit?"),
            (FIT, "dataset_tag", "did you mean --fit?"),
            (PPO, "segment_method", "did you mean --segmenter?"),
            (RM, "model_type", "the fit of a reward model is found beside it"),
        )
    ),
]


def replaced(path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def missing_shard(path) -> None:
    without("model.safetensors")(path)
    index = {"metadata": {}, "weight_map": {UP: "model-00001-of-00002.safetensors"}}
    written("model.safetensors.index.json", json.dumps(index))(path)


def pipe(path):
    os.mkfifo(path)
    return path
