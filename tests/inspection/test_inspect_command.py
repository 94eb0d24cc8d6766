"""`denserl inspect` as a user runs it: terminal, inspect.json and page say the same, with a model and without."""

import html
import json
import re

import numpy as np
import pytest
import tiny_models
import torch
from inspected_rows import LONG, PAIRS, recounted, write_pairs

from denserl.cli import inspect
from denserl.data.chat import encode_prompt, encode_response
from denserl.inspection.sections import sections_of
from denserl.inspection.summary import format_sections
from denserl.models.loading import load_policy
from denserl.models.tokenizers import load_tokenizer


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return tiny_models.save_language_model(tmp_path_factory.mktemp("models") / "sft")


def command(*words, output):
    inspect.main([*map(str, words), "--output_dir", str(output)])
    return json.loads((output / "inspect.json").read_text())


def refused(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        inspect.main(list(map(str, words)))
    assert ended.value.code == 2
    return capsys.readouterr().err


def cells(page: str) -> list[str]:
    return [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", page)]


def check_all_say_the_same(folder, said):
    """What the terminal said and what the page shows is what is written of the figures in the file."""
    figures = json.loads((folder / "inspect.json").read_text())
    sections, page = sections_of(figures), (folder / "inspect.html").read_text()
    assert format_sections(sections) in said
    assert cells(page) == [cell for section in sections for row in section.table for cell in row]
    for line in (line for section in sections for line in section.words):
        assert f"<li>{html.escape(line, quote=False)}</li>" in page.replace("&#39;", "'").replace("&#34;", '"')
    charts = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    drawn = {series["name"]: series["y"] for chart in charts for series in chart["series"]}
    if "thresholds" in figures:
        for name, key in (("tokens a segment", "tokens_per_segment"), ("begin at a word", "at_word")):
            assert drawn[name] == pytest.approx([at[key] for at in figures["thresholds"]], rel=1e-5)
    bars = [chart["series"][0]["y"] for chart in charts if chart["series"][0]["kind"] == "bars"]
    held = [of["histogram"]["counts"] for of in (*figures["numbers"].values(), figures.get("entropies")) if of]
    assert bars == held
    return figures


def test_without_a_model_the_rows_are_told(tmp_path, capsys):
    command(write_pairs(tmp_path / "pairs.jsonl"), output=tmp_path / "out")
    said, expected = capsys.readouterr(), recounted()
    check_all_say_the_same(tmp_path / "out", said.out)
    assert f"pairs: 11 rows read, {expected['used']} of them used, 3 refused" in said.out
    assert f"chosen is longer in {expected['longer'] / expected['used']:.1%} of the pairs" in said.out
    assert re.search(rf"rows that stand a second time +{expected['repeated rows']}\n", said.out)
    assert re.search(r"chosen and rejected are identical +1 +9\n", said.out)
    command(tmp_path / "pairs.jsonl", tmp_path / "pairs.jsonl", output=tmp_path / "two")
    assert f"{tmp_path}/pairs.jsonl:9\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/command.json").read_text())[0]["outcome"] == "finished"


def test_with_a_model_tokens_and_segments_are_told_too(sft, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    data = write_pairs(tmp_path / "pairs.jsonl")
    words = [data, "--model", sft, "--max_length", 50, "--max_prompt_length", 20, "--tokens_per_segment", 3]
    words += ["--cache_dir", tmp_path / "cache", "--device", "cpu"]
    found = command(*words, output=tmp_path / "out")
    check_all_say_the_same(tmp_path / "out", capsys.readouterr().out)

    tokenizer, model = load_tokenizer(str(sft)), load_policy(str(sft), "fp32").eval()
    good = [row for row in PAIRS if row["chosen"] and row["chosen"] != row["rejected"]]
    talks = [[{"role": "user", "content": row["prompt"]}] for row in good]
    prompts = [encode_prompt(tokenizer, talk) for talk in talks]
    chosen = [encode_response(tokenizer, talk, row["chosen"]) for talk, row in zip(talks, good)]
    tokens = found["tokens"]
    assert tokens["every"] and tokens["lengths"]["prompt"]["mean"] == pytest.approx(np.mean(list(map(len, prompts))))
    assert tokens["lengths"]["chosen"]["max"] == max(map(len, chosen)) > 50
    # A row loses tokens of its prompt, down to 20, before those of its longest response.
    rejected = [encode_response(tokenizer, talk, row["rejected"]) for talk, row in zip(talks, good)]
    longest = [max(len(a), len(b)) for a, b in zip(chosen, rejected)]
    kept = [min(len(ids), max(50 - most, 20)) for ids, most in zip(prompts, longest)]
    assert tokens["cut"]["prompt"]["count"] == sum(n < len(ids) for n, ids in zip(kept, prompts)) > 0
    assert tokens["cut"]["chosen"]["count"] == sum(len(ids) > 50 - n for ids, n in zip(chosen, kept)) > 0

    # Entropies by the model itself, of a row that is not cut, and what comes of them at two thresholds.
    (row,) = (i for i, pair in enumerate(good) if pair["chosen"] == "It hums.")
    shown = next(one for one in found["responses"] if one["place"].endswith(":7") and one["side"] == "chosen")
    with torch.no_grad():
        logits = model(torch.tensor([prompts[row] + chosen[row]])).logits[0, len(prompts[row]) - 1 : -2].double()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert shown["tokens"] == len(entropy) == len(chosen[row]) - 1
    for cut in shown["cuts"]:
        opens = [i for i, value in enumerate(entropy.tolist()) if i == 0 or value > cut["threshold"]]
        assert [segment["entropy"] for segment in cut["segments"]] == pytest.approx(entropy[opens].tolist(), abs=1e-4)
        assert "".join(segment["text"] for segment in cut["segments"]) == "It hums."
    wished = found["wished"]["threshold"]
    assert next(at for at in found["thresholds"] if at["threshold"] == wished)["tokens_per_segment"] >= 3
    assert f"--entropy_threshold {wished:g}" in caplog.text
    # What the model said is kept for whoever trains on the same rows.
    command(*words, output=tmp_path / "again")
    assert "left to ask" not in caplog.text.split("next: denserl")[1]


def test_a_sample_says_how_sure_shares_are_and_is_drawn_by_seed(sft, tmp_path):
    rows = [{"prompt": "Tell me.", "response": f"It hums {'so ' * (i % 9)}{i}."} for i in range(60)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [data, "--model", sft, "--device", "cpu", "--token_rows", 20, "--sample", 4, "--cache_dir", tmp_path / "cache"]
    found = [command(*words, "--seed", seed, output=tmp_path / f"{seed}") for seed in (1, 2, 1)]
    places = [[one["place"] for one in each["responses"]] for each in found]
    assert found[0]["kind"] == "demonstrations" and len(places[0]) == 4
    assert places[0] == places[2] != places[1] and found[0]["tokens"] == found[2]["tokens"]
    assert found[0]["tokens"]["rows"] == 20 and len(found[0]["tokens"]["cut"]["response"]["interval"]) == 2
    assert found[0]["tokens"]["max_prompt_length"] == 1024  # half of max_length, as in train-sft


def test_plain_text_is_split_and_not_cut_and_prompts_have_nothing_to_cut(sft, tmp_path, capsys):
    words = ["--model", sft, "--device", "cpu", "--cache_dir", tmp_path / "cache"]
    texts, tokenizer = ["It hums. " * 30, "It hums."], load_tokenizer(str(sft))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = command(tmp_path / "texts.jsonl", *words, "--max_length", 50, output=tmp_path / "texts")
    lengths = [len(tokenizer(text).input_ids) for text in texts]
    assert found["tokens"]["lengths"]["response"]["max"] == max(lengths) > 50 >= min(lengths)
    assert (found["tokens"]["cut"], found["tokens"]["plain"], found["tokens"]["split"]) == ({}, 2, 1)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    prompts = command(tmp_path / "prompts.jsonl", *words, "--max_prompt_length", 30, output=tmp_path / "prompts")
    assert prompts["tokens"]["cut"]["prompt"]["count"] == 1
    said = capsys.readouterr().out
    assert "likelihood" not in prompts
    for name, figures in (("texts", found), ("prompts", prompts)):
        assert "entropies" not in figures
        check_all_say_the_same(tmp_path / name, said)


def test_likelihoods_are_those_of_a_plain_forward(sft, tmp_path):
    """Of answers with their end of turn, of texts from their second token to max_length; with an interval over texts."""
    answers = [{"prompt": "Tell me.", "response": text} for text in ("It hums.", "The river runs under the bridge.", "Yes.")]
    texts = ["It hums in the small kitchen. " * 9, "A quiet river.", "The boats wait there."]
    for name, rows in (("answers", answers), ("texts", [{"text": text} for text in texts])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", sft, "--device", "cpu", "--max_length", 40, "--cache_dir", tmp_path / "cache"]
    found = command(tmp_path / "answers.jsonl", tmp_path / "texts.jsonl", *words, output=tmp_path / "out")["likelihood"]
    tokenizer, model = load_tokenizer(str(sft)), load_policy(str(sft), "fp32").eval()
    asked = [{"role": "user", "content": "Tell me."}]
    prompt = encode_prompt(tokenizer, asked)
    rows = {
        "response": [(prompt, encode_response(tokenizer, asked, row["response"])) for row in answers],
        "plain text": [(ids[:1], ids[1:40]) for ids in (tokenizer(text).input_ids for text in texts)],
    }
    for name, pairs in rows.items():
        costs = []
        for before, after in pairs:
            logits = model(torch.tensor([before + after])).logits[0]
            costs.append(torch.nn.functional.cross_entropy(logits[len(before) - 1 : -1], torch.tensor(after), reduction="sum"))
        costs, tokens = np.array([cost.item() for cost in costs]), np.array([len(after) for _, after in pairs])
        nats = costs.sum() / tokens.sum()
        # The classical standard error of a ratio, and Student's quantile of two degrees of freedom.
        error = (((costs - nats * tokens) ** 2).sum() / 2 / 3) ** 0.5 / tokens.mean()
        assert (found[name]["texts"], found[name]["tokens"]) == (3, tokens.sum())
        assert found[name]["nats"] == pytest.approx(nats, rel=1e-4)
        assert found[name]["interval"] == pytest.approx([nats - 4.302653 * error, nats + 4.302653 * error], rel=1e-3)


HOSTILE = "<script>document.title='ran'</script>\x1b[2J\u202e</style>{{ 7 * 7 }}"


def test_hostile_texts_are_inert(sft, tmp_path, capsys):
    rows = [{"prompt": HOSTILE, "chosen": f"{HOSTILE} yes", "rejected": f"no {HOSTILE}", f"\x1b[31m{HOSTILE}": 1}]
    rows.append({"prompt": HOSTILE, "chosen": 5, HOSTILE: 2})
    data = tmp_path / "<img src=x onerror=alert(1)>\x1b[1m.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache = ["--cache_dir", tmp_path / "cache"]
    command(data, "--model", sft, "--device", "cpu", *cache, output=tmp_path / "out")
    said, page = capsys.readouterr().out, (tmp_path / "out/inspect.html").read_text()
    assert "\x1b" not in said + page and "\u202e" not in said + page
    assert "<img" not in page and "</style>{{" not in page and "<script>document" not in page
    assert "&lt;script&gt;document.title=" in page and "7 * 7" in page


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "no data source is given"),
        (["nowhere.jsonl"], "there is no file or folder 'nowhere.jsonl'"),
        (["pairs.jsonl", "--max_length", "9"], "--max_length 9 has no effect without --model"),
        (["pairs.jsonl", "--model", "/nowhere/sft"], "no model folder '/nowhere/sft'"),
        (["pairs.jsonl", "--kind", "steps"], "no usable row"),
        (["pairs.jsonl", "--kind", "prompts", "--model", "m", "--sample", "3"], "--sample 3 has no effect on prompts"),
        (["pairs.jsonl", "--split", "test"], "--split test has no effect where there are no splits"),
        (["pairs.jsonl", "--limt", "3"], "--limit"),
        (["pairs.jsonl", "--kind", "pairs", "--rating_columns", "a"], "has no effect where no ratings are read"),
        ([".", "--output_dir", "."], "is the folder of the data"),
    ],
)
def test_mistakes_are_told(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl")
    assert says in refused(capsys, *words)


def test_a_model_without_positions_for_the_rows_is_refused(sft, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Tell me.", "response": LONG * 40}) + "\n")
    words = [tmp_path / "rows.jsonl", "--model", sft, "--device", "cpu", "--cache_dir", tmp_path / "cache"]
    assert "has positions for" in refused(capsys, *words, "--output_dir", tmp_path / "out")
    assert "has no effect on demonstrations" in refused(capsys, *words, "--max_prompt_length", "5")
