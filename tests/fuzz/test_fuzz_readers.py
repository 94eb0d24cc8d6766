"""Any bytes as a file of rows, and any JSON value as a row: read, or refused with a place and a reason; never anything else."""

import gzip
import io
import json
import logging
import math
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from fuzzing import (
    closes_once,
    conversation_is_sound,
    end_of_turn,
    explore,
    pair_rows,
    rated_rows,
    response_is_sound,
    rows,
    step_rows,
)
from hypothesis import strategies as st
from templates import build_tokenizer

from denserl.data.bad_rows import BadRows
from denserl.data.columns import parse_ratings
from denserl.data.demonstrations import load_demonstrations, tokenize_demonstrations
from denserl.data.preferences import load_preferences, tokenize_preferences
from denserl.data.prompts import load_prompts, tokenize_prompts
from denserl.data.rated_rows import as_rated, unread_rated
from denserl.data.readers import DATA_SUFFIXES, read_rows
from denserl.data.schemas import BadRow, LeftOut, as_demonstration, as_preference, as_prompt, unread
from denserl.data.step_records import as_steps, unread_steps
from denserl.errors import UserError

READERS = [(as_preference, load_preferences), (as_prompt, load_prompts), (as_demonstration, load_demonstrations)]
GOOD = [
    {"prompt": "What is it?", "chosen": "A kettle.", "rejected": "A boat.", "score_chosen": 2, "score_rejected": 1.5},
    {"messages": [{"role": "user", "content": "Héllo"}, {"role": "assistant", "content": "Yes."}], "chosen": None},
    {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"},
    {"text": "Plain text."},
]


def parquet(table_rows: list[dict]) -> bytes:
    out = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(table_rows), out)
    return out.getvalue()


def table(delimiter: str) -> bytes:
    cells = [[str(row.get(key, "")) for key in ("prompt", "chosen", "rejected")] for row in GOOD]
    return "\r\n".join(
        delimiter.join(f'"{cell}"' for cell in row) for row in [["prompt", "chosen", "rejected"], *cells]
    ).encode()


JSON_LINES = "\n".join(map(json.dumps, GOOD)).encode()
WHOLE = {
    ".json": json.dumps(GOOD, indent=1).encode(),
    ".jsonl": JSON_LINES,
    ".json.gz": gzip.compress(json.dumps(GOOD).encode()),
    ".jsonl.gz": gzip.compress(JSON_LINES),
    **{kind: table(",") for kind in (".csv", ".csv.gz")},
    **{kind: table("\t") for kind in (".tsv", ".tsv.gz")},
    ".parquet": parquet([{key: str(row.get(key)) for key in ("prompt", "chosen", "rejected")} for row in GOOD]),
    ".txt": b"A line.\n\n\xef\xbb\xbfAnother line.\r\n",
}
WHOLE |= {kind: gzip.compress(WHOLE[kind]) for kind in (".csv.gz", ".tsv.gz")}


def short_and_long(short: int, long: int):
    return pytest.mark.parametrize(
        "examples", [pytest.param(short, id="short"), pytest.param(long, id="long", marks=pytest.mark.long)]
    )


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """The bytes after a few edits: bytes replaced, removed, repeated or put in, and the end cut off."""
    content = whole
    for _ in range(draw(st.integers(0, 4))):
        first = draw(st.integers(0, len(content)))
        last = draw(st.integers(first, min(len(content), first + 40)))
        between = draw(
            st.one_of(st.binary(max_size=6), st.just(content[first:last] * 2), st.sampled_from([b"[", b"\n", b"\\ud800"]))
        )
        content = content[:first] + between + content[last:]
    return content


def test_every_known_kind_of_file_is_tried():
    assert set(WHOLE) == set(DATA_SUFFIXES)


@short_and_long(20, 300)
@pytest.mark.parametrize("suffix", DATA_SUFFIXES)
def test_any_bytes_are_read_or_refused(tmp_path, suffix, examples):
    path = tmp_path / f"rows{suffix}"

    def check(content, policy):
        path.write_bytes(content)
        for _, load in READERS:
            try:
                dataset = load([str(path)], on_bad_row=policy)
            except UserError as error:
                assert str(path) in error.found and error.fix
                continue
            assert len(dataset) and all(conversation_is_sound(row["prompt"]) for row in dataset)
            assert all(row["place"].startswith(f"{path}:") for row in dataset)

    content = st.one_of(damaged(WHOLE[suffix]), st.binary(max_size=200))
    explore(check, examples, content=content, policy=st.sampled_from(["stop", "skip"]))


TWO_BYTES = pa.py_buffer(b"\0\0\0\0\2\0\0\0")  # the bounds of one text of two bytes
UNREADABLE = {
    "no UTF-8": pa.Array.from_buffers(pa.string(), 1, [None, TWO_BYTES, pa.py_buffer(b"\xff\xfe")]),
    "no date": pa.array([2**62], pa.timestamp("us")),
    "no such year": pa.array([2**31 - 1], pa.date32()),
}


@pytest.mark.parametrize("column", UNREADABLE.values(), ids=list(UNREADABLE))
def test_a_parquet_value_that_python_cannot_hold_is_refused(tmp_path, column):
    path = tmp_path / "rows.parquet"
    pa.parquet.write_table(pa.table({"prompt": ["q"], "chosen": ["a"], "rejected": ["b"], "more": column}), path)
    with pytest.raises(UserError, match=r"rows\.parquet:1: cannot be read"):
        load_preferences([str(path)])


@short_and_long(40, 1000)
def test_every_line_of_a_file_is_a_row_or_a_bad_row(tmp_path, examples):
    path = tmp_path / "rows.jsonl"

    def check(content):
        path.write_bytes(content)
        bad = BadRows("skip")
        places = [place for place, _ in read_rows(str(path), "train", bad)]
        filled = [
            n
            for n, line in enumerate(content.split(b"\n"), 1)
            if line.decode("utf-8-sig" if n == 1 else "utf-8", "replace").strip()
        ]
        assert len(places) + bad.total == len(filled)
        assert {int(place.rsplit(":", 1)[1]) for place in places} <= set(filled)

    explore(check, examples, content=damaged(WHOLE[".jsonl"]))


@short_and_long(60, 1500)
@pytest.mark.parametrize("convert", [as_preference, as_prompt, as_demonstration], ids=lambda function: function.__name__)
def test_any_json_value_is_a_sound_row_or_a_bad_row(convert, examples):
    def check(row):
        before = repr(row)
        try:
            made = convert(row)
        except BadRow as error:
            assert str(error)
            return
        finally:
            assert repr(row) == before
        prompt = made["prompt"]
        assert conversation_is_sound(prompt)
        if convert is not as_demonstration or prompt:
            last = prompt[-1]
            assert last["role"] == "tool" or (last["role"] == "user" and last["content"].strip())
        for side in {"chosen", "rejected", "response"} & set(made):
            assert response_is_sound(made[side])
        if convert is as_preference:
            assert made["chosen"] != made["rejected"] and abs(made["margin"]) <= 2e9

    explore(check, examples, row=rows)


@short_and_long(60, 2000)
def test_any_json_value_is_sound_records_of_steps_or_a_bad_row(examples):
    def check(row):
        before = repr(row)
        try:
            made = as_steps(row)
        except (BadRow, LeftOut) as error:
            assert str(error)
            return
        finally:
            assert repr(row) == before
        assert made and isinstance(unread_steps(row), set)
        for one in made:
            assert conversation_is_sound(one["prompt"]) and all(map(str.strip, one["steps"]))
            assert len(one["steps"]) == len(one["labels"]) > 0
            known = [chance for chance in (*one["labels"], one["final"]) if not math.isnan(chance)]
            assert known and all(0 <= chance <= 1 for chance in known)

    explore(check, examples, row=step_rows)


@short_and_long(60, 2000)
def test_any_json_value_is_sound_rated_responses_or_a_bad_row(examples):
    ratings = parse_ratings(["helpsteer-helpfulness", "safe=is_safe:1..0", "argilla-overall_quality", "rating"])

    def check(row):
        before = repr(row)
        try:
            made = as_rated(row, ratings)
        except (BadRow, LeftOut) as error:
            assert str(error)
            return
        finally:
            assert repr(row) == before
        assert made and isinstance(unread_rated(row, ratings), set)
        for one in made:
            assert conversation_is_sound(one["prompt"]) and one["prompt"] and response_is_sound(one["response"])
            given = [number for number in one["attributes"] if not math.isnan(number)]
            assert given and all(map(math.isfinite, given))
            assert not any(number < 0 or number > 1 for number in one["attributes"][:3])

    explore(check, examples, row=rated_rows)


@short_and_long(60, 2000)
def test_preferences_of_other_shapes_are_sound_or_bad_rows(examples):
    def check(row):
        before = repr(row)
        try:
            made = as_preference(row)
        except (BadRow, LeftOut) as error:
            assert str(error)
            return
        finally:
            assert repr(row) == before
            assert isinstance(unread(row, as_preference), set)
        assert made["chosen"] != made["rejected"] and made["p_chosen"] == made["weight"] == 1

    explore(check, examples, row=pair_rows)


@short_and_long(20, 200)
@pytest.mark.parametrize("convert, load", READERS, ids=lambda function: function.__name__)
def test_a_row_is_the_same_in_every_kind_of_file(tmp_path, convert, load, examples):
    """JSON lines, a JSON list and their gzips give the rows that each value gives by itself."""

    def check(table):
        expected = []
        for row in table:
            try:
                expected.append(convert(row))
            except BadRow:
                pass
        lines, listed = "\n".join(map(json.dumps, table)).encode(), json.dumps(table).encode()
        files = {".jsonl": lines, ".json": listed, ".jsonl.gz": gzip.compress(lines), ".json.gz": gzip.compress(listed)}
        for suffix, content in files.items():
            path = tmp_path / f"rows{suffix}"
            path.write_bytes(content)
            try:
                found = [{key: row[key] for key in row if key != "place"} for row in load([str(path)], on_bad_row="skip")]
            except UserError:
                found = []
            assert found == expected, suffix

    # Python's JSON cannot read whole numbers of so many digits back
    explore(check, examples, table=st.lists(rows.filter(lambda row: "0" * 400 not in repr(row)), min_size=1, max_size=4))


@short_and_long(20, 200)
@pytest.mark.parametrize("name", ["phi3", "gemma", "chatml"])
def test_from_any_rows_to_ids_every_turn_is_closed_once(tmp_path, name, examples):
    tokenizer = build_tokenizer(name)
    end, path = end_of_turn(tokenizer, name), tmp_path / "rows.jsonl"

    def kept(load, tokenize):
        try:
            return list(tokenize(load([str(path)], on_bad_row="skip"), tokenizer, on_bad_row="skip"))
        except UserError as error:
            assert "no usable row" in error.found or error.found.startswith(f"{path}:")
            return []

    def check(table, max_length, max_prompt_length):
        path.write_text("\n".join(map(json.dumps, table)))
        sizes = {"max_length": max_length, "max_prompt_length": max_prompt_length}
        for row in kept(load_preferences, lambda *a, **kw: tokenize_preferences(*a, **kw, **sizes)):
            for side in ("chosen_ids", "rejected_ids"):
                assert closes_once(row[side], end) and len(row["prompt_ids"]) + len(row[side]) <= max_length
            assert row["chosen_ids"] != row["rejected_ids"]
        for row in kept(load_demonstrations, lambda *a, **kw: tokenize_demonstrations(*a, **kw, max_length=max_length)):
            ids, start = row["input_ids"], row["loss_start"]
            assert 2 <= len(ids) <= max_length
            assert closes_once(ids[start:], end) if start else end not in ids
        for row in kept(load_prompts, lambda *a, **kw: tokenize_prompts(*a, **kw, max_prompt_length=max_prompt_length)):
            assert 1 <= len(row["prompt_ids"]) <= max_prompt_length

    sizes = {"max_length": st.integers(12, 60), "max_prompt_length": st.integers(1, 10)}
    explore(check, examples, table=st.lists(rows, min_size=1, max_size=4), **sizes)


MANY = {
    "plain": {"prompt": "q" * 40, "chosen": "a", "rejected": "b"},
    "dialogue": {"chosen": "\n\nHuman: q\n\nAssistant: a" * 4, "rejected": "\n\nHuman: q\n\nAssistant: a" * 4 + "b"},
    "messages": {"prompt": [{"role": "user", "content": "q"}] * 8, "chosen": "a", "rejected": "b"},
    "bad": {"prompt": [[]], "chosen": "a", "rejected": "b"},
    "roles": {"prompt": [{"role": "r" * 40, "content": 1}], "chosen": "a"},
}
# A row is converted after its file is read: one kind of file is enough for most kinds of rows.
BOTH = ("plain", "bad")


@pytest.mark.parametrize(
    "name, kind",
    [
        *((name, ".jsonl") for name in MANY),
        *((name, ".json") if name in BOTH else pytest.param(name, ".json", marks=pytest.mark.long) for name in MANY),
    ],
)
def test_time_grows_with_the_number_of_rows(tmp_path, name, kind):
    few, many = (written(tmp_path / f"{count}{kind}", MANY[name], count) for count in (300, 3000))
    grows_in_proportion(few, many)


@pytest.mark.parametrize("inside", ["q", "\n", "\n\nHuman: ", "\\", "\u00e9", "\n\nAssistant: x"])
def test_time_grows_with_the_length_of_a_row(tmp_path, inside):
    rows_of = (
        {"chosen": "\n\nHuman: " + inside * n + "\n\nAssistant: a", "rejected": "\n\nAssistant: b"} for n in (20_000, 200_000)
    )
    grows_in_proportion(*(written(tmp_path / f"{i}.json", row, 1) for i, row in enumerate(rows_of)))


def written(path: Path, row: dict, count: int) -> Path:
    lines = [json.dumps(row)] * count
    path.write_text("[" + ",\n".join(lines) + "]" if path.suffix == ".json" else "\n".join(lines))
    return path


def grows_in_proportion(short: Path, long: Path) -> None:
    """Ten times as much takes less than thirty times as long; the time of this process, to which others only add."""
    limit = 30 * max(min(seconds(short) for _ in range(2)), 0.01)
    assert any(seconds(long) < limit for _ in range(2))


def seconds(path: Path) -> float:
    start = time.process_time()
    try:
        load_preferences([str(path)], on_bad_row="skip")
    except UserError:
        pass
    return time.process_time() - start


@pytest.fixture(autouse=True)
def quiet():
    """Thousands of warnings about skipped rows tell nothing here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
