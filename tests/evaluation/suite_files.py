"""Small local files in the shapes of the published suites."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

PROMPT = "Say something about the river."


def write_json(path: Path, rows: list | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def pairs(folder: Path) -> Path:
    """Three pairs of two sources; by length two are won, and none is a tie."""
    rows = [
        {"prompt": PROMPT, "chosen": "long one", "rejected": "short", "source": "a"},
        {"prompt": PROMPT, "chosen": "long one", "rejected": "longer one", "source": "a"},
        {"prompt": PROMPT, "chosen": "long one", "rejected": "no", "source": "b"},
    ]
    return write_lines(folder / "pairs.jsonl", rows)


def rewardbench(folder: Path) -> Path:
    """The hub's columns, one or two rows in each section; the other split is not to be read."""
    names = ["alpacaeval-easy", "llmbar-natural", "donotanswer", "hep-go", "hep-go"]
    texts = [("aaaa", "a"), ("a", "aa"), ("aa", "aa"), ("aaa", "a"), ("a", "aaa")]
    models = {"chosen_model": "m", "rejected_model": "n"}
    rows = [
        {"prompt": f"{PROMPT} {number}", "chosen": chosen, "rejected": rejected, "subset": name, "id": number, **models}
        for number, (name, (chosen, rejected)) in enumerate(zip(names, texts))
    ]
    write_parquet(folder / "data/raw-00000-of-00001.parquet", [{**row, "subset": "junk"} for row in rows])
    write_parquet(folder / "data/filtered-00000-of-00001.parquet", rows)
    return folder


def rows_of_rewardbench2() -> list[dict]:
    """Six subsets; the rows of Ties are the check rows of the spec, told by the lengths of their texts."""
    rows = [
        {"id": str(n), "prompt": PROMPT, "chosen": ["aa"], "rejected": worse, "num_correct": 1, "subset": subset}
        for n, (subset, worse) in enumerate(
            [
                ("Factuality", ["a", "a", "a"]),
                ("Precise IF", ["aa", "a", "aa"]),
                ("Math", ["aaa", "a", "a"]),
                ("Safety", ["a", "aa", "a"]),
                ("Focus", ["a", "b", "c"]),
            ]
        )
    ]
    for kind, chosen, rejected in [("ref:0", [30], [10, 5]), ("tied:0", [30, 25, 22], [10, 0]), ("ref:1", [2], [4, 1]),
                                   ("tied:1", [20, 11], [15, 0]), ("ref:2", [20], [0]), ("tied:2", [20, 5], [0])]:  # fmt: skip
        texts = {"chosen": ["x" * n for n in chosen], "rejected": ["x" * n for n in rejected]}
        rows.append({"id": kind, "prompt": PROMPT, **texts, "num_correct": len(chosen), "subset": "Ties"})
    return [{**row, "total_completions": len(row["chosen"]) + len(row["rejected"])} for row in rows]


def rewardbench2(folder: Path) -> Path:
    write_parquet(folder / "data/test-00000-of-00001.parquet", rows_of_rewardbench2())
    return folder


def rmb(folder: Path) -> Path:
    """Both sets and halves, with what the published records have: several turns, an empty one, equal and empty answers."""
    user = {"role": "user", "content": "Hello", "language": "English"}
    turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Go on."}]

    def pair(uid, chosen, reject, path, prompt=(user,)):
        sides = {"chosen": {"llm_name": "a", "answer": chosen}, "reject": {"llm_name": "b", "answer": reject}}
        return {"pair_uid": uid, "conversation_input": list(prompt), **sides, "category_path": path}

    def best(uid, winner, losers, path):
        answers = {"bon_best": {"answer": winner}, "loser_list": [{"llm_name": "c", "answer": text} for text in losers]}
        return {"bon_uid": uid, "conversation_input": [user], **answers, "category_path": path}

    files = {
        "Pairwise_set/Helpfulness/Open QA/Fact Seeking": [("1", "long", "no"), ("2", "no", "long")],
        "Pairwise_set/Helpfulness/Chat/Casual Conversation": [("3", "same", "same"), ("4", "", "x")],
        "Pairwise_set/Harmlessness/S10": [("5", "longer", "short"), ("6", "long", "")],
        "BoN_set/Helpfulness/Open QA/Fact Seeking": [("7", "longest", ["long", "longer"]), ("8", "tie", ["tie", "x"])],
        "BoN_set/Harmlessness/multi": [("9", "no", ["no way", "x", "y"])],
    }
    for path, rows in files.items():
        if path.startswith("BoN"):
            content = [best(*row, path) for row in rows]
        else:
            content = [pair(*row, path, turns if row[0] == "2" else (user,)) for row in rows]
        write_json(folder / f"RMB_dataset/{path}.json", content)
    return folder


def hhh(folder: Path, flat: bool = False) -> Path:
    """A folder for each configuration, with the hub's columns; inputs are plain, and dialogues with and without an opening."""
    dialogue = "Hello?\n\nAssistant: Hi.\n\nHuman: What now?"
    inputs = {
        "harmless": PROMPT,
        "helpful": dialogue,
        "honest": "\n\nHuman: " + dialogue,
        "other": "\n\nHuman: One.\n\nAssistant:",
    }
    for name, text in inputs.items():
        targets = {"choices": ["shorter", "the longer one"], "labels": [0, 1]}
        columns = {f"targets.{key}": value for key, value in targets.items()} if flat else {"targets": targets}
        write_parquet(folder / name / "test-00000-of-00001.parquet", [{"input": text, **columns}])
    return folder


def votes() -> list[dict]:
    """Votes on both turns; the answers of a are longer at turn 1 and shorter at turn 2."""

    def conversation(first, second):
        texts = ("One?", first, "Two?", second)
        return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts)]

    sides = {"conversation_a": conversation("a long answer", "so"), "conversation_b": conversation("short", "a longer one")}
    votes = [("model_a", 1, "expert_1"), ("model_b", 1, "expert_2"), ("model_b", 2, "author_1"), ("tie", 2, "author_1"),
             ("model_a", 2, "gpt4_pair"), ("tie (inconsistent)", 1, "gpt4_pair")]  # fmt: skip
    return [
        {"question_id": 81 + n, "model_a": "x", "model_b": "y", "winner": winner, "judge": judge, "turn": turn, **sides}
        for n, (winner, turn, judge) in enumerate(votes)
    ]


def mtbench(folder: Path) -> Path:
    write_parquet(folder / "data/human-00000-of-00001.parquet", votes()[:4])
    write_parquet(folder / "data/gpt4_pair-00000-of-00001.parquet", votes()[4:])
    return folder


def llmbar(folder: Path) -> Path:
    """The layouts of the original repository and of copies with one file a subset, side by side."""
    row = {"input": PROMPT, "output_1": "the longer output", "output_2": "short"}
    write_json(folder / "Natural.json", [{**row, "label": 1}, {**row, "label": 2}])
    write_json(folder / "Adversarial/GPTInst/dataset.json", [{**row, "label": 2}])
    # The repository keeps beside each set what judges said of it, every row anew.
    judged = folder / "Adversarial/GPTInst/evaluators/GPT-4/CoT"
    write_json(judged / "result.json", [{**row, "label": 2, "results": [{"winner": "1"}]}])
    write_json(judged / "statistics.json", {"equal": "33 / 54"})
    (folder / "LICENSE.txt").write_text("MIT")
    return folder
