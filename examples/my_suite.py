"""A suite of one's own: denserl evaluate examples/my_suite.py:facts QUESTIONS.jsonl --scorer runs/rm ..."""

from denserl import Answer, Item, Suite
from denserl.evaluation.suites.rows import read_files


def item(row: dict, part: str) -> Item:
    """Rows like {"id", "topic", "question", "true": [text, ...], "false": [text, ...]}."""
    prompt = [{"role": "user", "content": row["question"]}]
    better, worse = ([Answer(prompt, text) for text in row[side]] for side in ("true", "false"))
    return Item(str(row["id"]), row["topic"], better, worse)


facts = Suite(rows=lambda path, split, bad_rows: read_files(path, bad_rows), item=item)
