"""Rows that are kept between runs: made once, found again with what was said of them, and never taken for others."""

import json
import logging
import os
from collections import Counter
from pathlib import Path

import pytest
import tiny_models
from datasets import Dataset, Features, concatenate_datasets

from denserl.data import readers, tables
from denserl.data.bad_rows import BadRow
from denserl.data.demonstrations import load_demonstrations, tokenize_demonstrations
from denserl.data.features import (
    IDS,
    MESSAGES,
    NUMBER,
    RESPONSE,
    TEXT,
    array_of,
    build_dataset,
    list_lengths,
    longest_row,
    with_column,
    written_into,
)
from denserl.data.fingerprints import rows_fingerprint, selection_fingerprint, tokenizer_fingerprint
from denserl.data.preferences import load_preferences, tokenize_preferences
from denserl.data.processes import in_processes
from denserl.data.readers import map_rows
from denserl.data.templates import set_template
from denserl.errors import UserError

ROWS = [{"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": f"No, {i + 1}!", "other": 1} for i in range(5)]
ROWS[2]["rejected"] = ROWS[2]["chosen"]
LENGTHS = {"max_length": 64, "max_prompt_length": 40}


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "no row\n")
    return path


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tokenizer():
    return tiny_models.tiny_tokenizer()


def kept_in(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def prepared(file: Path, tokenizer, cache: Path | None = None) -> Dataset:
    folder = {} if cache is None else {"cache_dir": str(cache)}
    rows = load_preferences([str(file)], on_bad_row="skip", **folder)
    return tokenize_preferences(rows, tokenizer, **LENGTHS, on_bad_row="skip", **folder)


def test_rows_are_made_once_and_found_with_what_was_said(file, tokenizer, cache, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    alone = prepared(file, tokenizer)
    said = [record.getMessage() for record in caplog.records]
    assert any("6 rows read, 2 of them bad" in line and "not read: other" in line for line in said)
    for made in (True, False):
        caplog.clear()
        rows = prepared(file, tokenizer, cache)
        assert rows.to_dict() == alone.to_dict() and rows.features == alone.features
        lines = [record.getMessage() for record in caplog.records]
        own = [line for line in lines if line.startswith("rows: ")]
        assert [line for line in lines if line not in own] == said
        assert len(own) == 2 and all(line.startswith("rows: kept" if made else "rows: found") for line in own)
        assert rows.cache_files, "the table is in memory"
        # From now on nothing is read or tokenised.
        monkeypatch.setattr(readers, "read_file", None)
        monkeypatch.setattr(readers, "texts_in", None)
    assert len(kept_in(cache)) == 2


def test_bad_rows_stop_as_before_and_leave_nothing(file, cache):
    with pytest.raises(UserError) as alone:
        load_preferences([str(file)])
    for _ in range(2):
        with pytest.raises(UserError) as error:
            load_preferences([str(file)], cache_dir=str(cache))
        assert str(error.value) == str(alone.value)
    assert kept_in(cache) == set()


def test_a_file_of_the_same_size_and_time_is_read_anew(tmp_path, cache):
    file = tmp_path / "rows.txt"
    file.write_text("one\n")
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    assert load_demonstrations([str(file)], cache_dir=str(cache))["response"][:] == ["one"]
    file.write_text("two\n")
    os.utime(file, ns=times)
    assert load_demonstrations([str(file)], cache_dir=str(cache))["response"][:] == ["two"]


def test_files_of_a_folder_that_come_or_go_are_noticed(tmp_path, cache):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(f"{name}\n")
        found = load_demonstrations([str(folder)], cache_dir=str(cache))
    assert found["response"][:] == ["a.txt", "b.txt"]
    (folder / "a.txt").unlink()
    assert load_demonstrations([str(folder)], cache_dir=str(cache))["response"][:] == ["b.txt"]


@pytest.mark.parametrize("how", [{"limit": 2}, {"every": 2}, {"columns": {"response": "prompt"}}])
def test_each_way_of_reading_has_rows_of_its_own(how, tmp_path, cache):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{i}", "response": f"r{i}"}) + "\n" for i in range(4)))
    if "columns" in how:
        how = {"columns": {"response": "prompt", "prompt": "response"}}
    whole = load_demonstrations([str(file)], cache_dir=str(cache)).to_dict()
    found = load_demonstrations([str(file)], **how, cache_dir=str(cache)).to_dict()
    assert found == load_demonstrations([str(file)], **how).to_dict() != whole


def test_a_seed_that_blends_nothing_is_no_other_way(tmp_path, cache):
    files = [tmp_path / f"{name}.txt" for name in "ab"]
    for file in files:
        file.write_text("".join(f"{file.stem}{i}\n" for i in range(9)))
    for seed in (1, 2):
        load_demonstrations([str(files[0])], seed=seed, cache_dir=str(cache))
    assert len(kept_in(cache)) == 1
    blended = [load_demonstrations(list(map(str, files)), seed=seed, cache_dir=str(cache))["response"][:] for seed in (1, 2)]
    assert blended[0] != blended[1] and len(kept_in(cache)) == 3


def test_ids_are_of_one_template_and_date(tokenizer, cache):
    features = Features({"prompt": MESSAGES, "response": RESPONSE, "place": TEXT})
    rows = build_dataset([{"prompt": [{"role": "user", "content": "Hi"}], "response": "Yes.", "place": "x"}], features)
    dated, found = "{{ strftime_now('%d') }}" + tokenizer.chat_template, set()
    for date in (None, "2024-05-01", "2024-05-02"):
        if date is not None:
            set_template(tokenizer, text=dated, date=date)
        ids = tokenize_demonstrations(rows, tokenizer, max_length=80, cache_dir=str(cache))["input_ids"][0]
        assert ids == tokenize_demonstrations(rows, tokenizer, max_length=80)["input_ids"][0]
        found.add(tuple(ids))
    assert len(found) == len(kept_in(cache)) == 3


@pytest.mark.parametrize("version", ["code", "library"])
def test_other_code_makes_its_own(version, file, cache, monkeypatch):
    load_preferences([str(file)], on_bad_row="skip", cache_dir=str(cache))
    if version == "code":
        monkeypatch.setattr(tables, "_code", lambda: "another")
    else:
        monkeypatch.setattr(tables, "version", lambda name: "0")
    load_preferences([str(file)], on_bad_row="skip", cache_dir=str(cache))
    assert len(kept_in(cache)) == 2


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.unlink(),
        lambda path: (path.parent / "table.json").unlink(),
        lambda path: (path.parent / "table.json").write_text("{"),
        lambda path: (path.parent / "more.arrow").write_bytes(b"1"),
    ],
)
def test_a_damaged_table_is_made_anew_with_a_word(damage, file, cache, caplog):
    read = lambda: load_preferences([str(file)], on_bad_row="skip", cache_dir=str(cache)).to_dict()  # noqa: E731
    before = read()
    (arrow,) = cache.glob("rows-*/*.arrow")
    damage(arrow)
    caplog.clear()
    assert read() == before
    assert f"{arrow.parent} is damaged" in caplog.text
    caplog.clear()
    assert read() == before and " is damaged" not in caplog.text


def test_a_column_of_a_selection_leaves_its_table_as_it_was(file, cache, caplog):
    read = lambda: load_preferences([str(file)], on_bad_row="skip", cache_dir=str(cache))  # noqa: E731
    rows = read()
    chosen, before = rows["chosen"][:], sorted(cache.glob("*/*"))
    for name, feature, values in (("margin", NUMBER, [7.0, 8.0]), ("orders", IDS, [[0], [1]])):
        found = with_column(rows.select([3, 1]), name, values, feature)
        assert found["chosen"][:] == [chosen[3], chosen[1]] and found[name][:] == values
    assert sorted(cache.glob("*/*")) == before and tables.datasets.is_caching_enabled()
    assert read()["chosen"][:] == chosen and "is damaged" not in caplog.text


def test_a_table_that_another_run_has_made_meanwhile_is_taken(file, cache, monkeypatch):
    written = tables._written

    def later(folder: Path, make):
        monkeypatch.setattr(tables, "_written", written)
        load_preferences([str(file)], on_bad_row="skip", cache_dir=str(cache))
        return written(folder, make)

    monkeypatch.setattr(tables, "_written", later)
    rows = load_preferences([str(file)], on_bad_row="skip", cache_dir=str(cache))
    assert len(rows) == 4 and len(kept_in(cache)) == 1


def test_a_folder_that_cannot_be_one_is_refused(file, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="`cache_dir` .*taken is a file"):
        load_preferences([str(file)], cache_dir=str(tmp_path / "taken"))


def counted(number: int) -> dict:
    return {"number": float(number), "place": f"file:{number}"}


@pytest.mark.parametrize("processes", [1, 3])
def test_many_rows_are_made_in_their_order_by_several_processes(processes, monkeypatch, caplog):
    monkeypatch.setattr(readers, "cores", lambda: processes)
    rows = build_dataset((counted(i) for i in range(2500)), Features({"number": NUMBER, "place": TEXT}))
    counts: Counter[str] = Counter()
    own = os.getpid()

    def encode(row: dict):
        number = int(row["number"])
        counts.update(rows=1, sevens=number % 7 == 0)
        if number % 500 == 3:
            raise BadRow(f"{number} is bad")
        yield from ({"ids": [number, k], "here": float(os.getpid() == own)} for k in range(number % 3))

    made = map_rows(rows, encode, Features({"ids": IDS, "here": NUMBER}), "skip", counts=counts)
    kept = [i for i in range(2500) if i % 500 != 3]
    assert made["ids"][:] == [[i, k] for i in kept for k in range(i % 3)]
    assert set(array_of(made, "here")) == {float(processes == 1)}
    assert counts == {"rows": 2500, "sevens": 358}
    assert "5 bad rows: 1 x 3 is bad, 1 x 503 is bad" in caplog.text


def test_a_process_that_is_killed_ends_the_work_with_a_message():
    with pytest.raises(UserError, match="one of 2 processes that prepare the data was killed"):
        list(in_processes(lambda number: os.kill(os.getpid(), 9) if number else number, [0, 1, 2], 2))


def test_a_fingerprint_is_of_values_however_they_lie(tmp_path):
    columns = {"ids": [[1, 2], [3], [], [4]], "text": ["ab", "c", "", "é"], "number": [1.0, -2.0, 0.5, 3.0]}
    features = Features({"ids": IDS, "text": TEXT, "number": NUMBER})
    whole = Dataset.from_dict(columns, features)
    mine = rows_fingerprint(whole)
    parts = concatenate_datasets([whole.select([0]), whole.select([1, 2]), whole.select([3])])
    turned = whole.select([3, 2, 1, 0]).select([3, 2, 1, 0])
    with written_into(tmp_path):
        on_disk = build_dataset(iter(whole), features)
    assert {rows_fingerprint(each) for each in (parts, turned, on_disk)} == {mine}
    selections = [whole, whole.select([3, 2, 1, 0]), whole.select([1, 0, 2, 3]), whole.select([0, 1]), whole.select([0, 2])]
    assert len({selection_fingerprint(each) for each in selections}) == 5
    assert selection_fingerprint(on_disk.select([2, 0])) == selection_fingerprint(whole.select([2, 0]))
    others = [
        columns | {"ids": [[1], [2, 3], [], [4]]},
        columns | {"ids": [[1, 2], [3], None, [4]]},
        columns | {"text": ["a", "bc", "", "é"]},
        columns | {"text": ["ab", "c", None, "é"]},
        columns | {"number": [1.0, -2.0, None, 3.0]},
        columns | {"number": [1.0, -2.0, 0.5, 3.5]},
    ]
    found = [mine, rows_fingerprint(whole.select([1, 0, 2, 3]))]
    found += [rows_fingerprint(whole.rename_column("text", "word")), rows_fingerprint(whole.select(range(3)))]
    found += [rows_fingerprint(Dataset.from_dict(each, features)) for each in others]
    found.append(rows_fingerprint(whole.cast_column("number", tables.datasets.Value("float32"))))
    assert len(set(found)) == len(found)


def test_columns_are_read_as_arrays():
    rows = Dataset.from_dict({"a": [[1, 2], [], [3]], "b": [[1], [], [1, 2, 3]], "n": [1.5, 2.0, -1.0]})
    rows = rows.select([2, 0, 1])
    assert list_lengths(rows, "a").tolist() == [1, 2, 0] and array_of(rows, "n").tolist() == [-1.0, 1.5, 2.0]
    assert longest_row(rows, "a", "b") == 4
    empty = rows.select([])
    assert longest_row(empty, "a") == 0 and len(array_of(empty, "n")) == 0


def test_a_tokenizer_is_told_by_what_it_is_saved_with(tokenizer):
    other = tiny_models.tiny_tokenizer()
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(other)
    other.add_tokens(["boat"])
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(other)
