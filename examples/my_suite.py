"""A suite of one's own: denserl evaluate examples/my_suite.py:facts QUESTIONS.jsonl --scorer runs/rm ..."""

from denserl import Answer, Item, Suite
from denserl.evaluation.suites.rows import field, read_files


def item(row: dict, part: str) -> Item:
    """Rows like {"id", "topic", "question", "true": [text, ...], "false": [text, ...]}; `field` names what a bad one lacks."""
    prompt = [{"role": "user", "content": field(row, "question")}]
    better, worse = ([Answer(prompt, text) for text in field(row, side, list)] for side in ("true", "false"))
    return Item(str(row.get("id", "")), field(row, "topic"), better, worse)


facts = Suite(rows=lambda path, split, bad_rows: read_files(path, bad_rows), item=item)
