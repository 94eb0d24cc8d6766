"""Reading files, folders and hub-shaped folders, and blending."""

import csv
import gzip
import json
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from denserl.data import file_rows
from denserl.data.bad_rows import BadRows
from denserl.data.config import has_splits
from denserl.data.readers import DATA_SUFFIXES, _hub_rows, blend, load_rows, map_rows, read_rows
from denserl.data.schemas import BadRow
from denserl.errors import UserError

ROWS = [{"text": "one"}, {"text": "zwei ü"}, {"text": "three"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path, content):
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.jsonl", LINES, [1, 2, 3]),
        ("a.jsonl", "\ufeff" + LINES.replace("\n", "\n\n"), [1, 3, 5]),
        ("a.jsonl.gz", LINES, [1, 2, 3]),
        ("a.json", json.dumps(ROWS, indent=2), [2, 5, 8]),
        ("a.json", "\ufeff " + json.dumps(ROWS), [1, 1, 1]),
        ("a.json.gz", json.dumps(ROWS, indent=1), [2, 5, 8]),
        ("a.json", LINES, [1, 2, 3]),
        ("a.txt", "one\n\n  zwei ü\nthree", [1, 3, 4]),
    ],
)
def test_rows_of_text_files_with_their_lines(tmp_path, name, content, lines):
    path = write(tmp_path / name, content)
    assert list(read_rows(path, "train")) == [(f"{path}:{n}", row) for n, row in zip(lines, ROWS, strict=True)]


def test_an_empty_json_list_has_no_rows(tmp_path):
    assert list(read_rows(write(tmp_path / "a.json", "[ ]"), "train")) == []


def test_rows_of_a_parquet_file(tmp_path):
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    assert list(read_rows(path, "train")) == [(f"{path}:{n}", row) for n, row in enumerate(ROWS, 1)]


@pytest.mark.parametrize(
    ("files", "split", "read"),
    [
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["train-00000.jsonl", "train-00001.jsonl", "test.jsonl"], "train", ["train-00000.jsonl", "train-00001.jsonl"]),
        (["data/train-0.jsonl", "data/test-0.jsonl", "dataset_infos.json"], "train", ["data/train-0.jsonl"]),
        (["train/a.jsonl", "test/a.jsonl"], "test", ["test/a.jsonl"]),
        (["b.jsonl", "a.jsonl", "notes.md", ".cache/c.jsonl"], "train", ["a.jsonl", "b.jsonl"]),
        (["trained.jsonl", "other.jsonl"], "train", ["other.jsonl", "trained.jsonl"]),
        (["Train.jsonl", "TEST.jsonl"], "train", ["Train.jsonl"]),
        (["train.jsonl", "train_old.jsonl", "train.clean.jsonl"], "train", ["train.jsonl"]),
        (["train_1.jsonl", "train_2.csv", "train_1b.jsonl"], "train", ["train_1.jsonl", "train_2.csv"]),
        (
            ["train2.jsonl", "train-00000-of-00001-a1b2c3d4e5f60718.jsonl"],
            "train",
            ["train-00000-of-00001-a1b2c3d4e5f60718.jsonl", "train2.jsonl"],
        ),
        (["data/train_prefs-0.jsonl", "data/train_sft-0.jsonl"], "train_prefs", ["data/train_prefs-0.jsonl"]),
        (["default/train/0000.jsonl", "default/partial-train/0000.jsonl"], "train", ["default/train/0000.jsonl"]),
        (["pairs-train.jsonl", "pairs-test.jsonl"], "pairs-train", ["pairs-train.jsonl"]),
        (["test_2.jsonl", "test.jsonl"], "test_2", ["test_2.jsonl"]),
    ],
)
def test_a_folder_gives_the_files_of_its_split_or_all(tmp_path, files, split, read):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        write(tmp_path / name, "text\nx" if name.endswith("csv") else '{"text": "x"}')
    assert [place.removesuffix(":2") + ":1" if ".csv" in place else place for place, _ in read_rows(str(tmp_path), split)] == [
        f"{tmp_path / name}:1" for name in read
    ]


def test_a_folder_without_the_split_says_which_it_has(tmp_path):
    write(tmp_path / "train.jsonl", LINES)
    with pytest.raises(UserError, match=r"no split 'test' but train"):
        list(read_rows(str(tmp_path), "test"))


@pytest.mark.parametrize(
    ("files", "split", "found"),
    [
        (["data/train_gen-0.jsonl", "data/train_prefs-0-of-2.jsonl", "data/train_prefs-1-of-2.jsonl"], "train",
         "'train' but train_gen, train_prefs\n  fix: choose one, e.g. `split` train_gen"),
        (["train_sft/a.jsonl", "test_sft/a.jsonl"], "test", "'test' but test_sft, train_sft\n"),
        (["pairs-train.jsonl", "pairs-test.jsonl"], "train", "'train' but pairs-test, pairs-train\n"),
        (["train.clean.jsonl"], "train", "'train' but train.clean\n"),
        (["trainset.jsonl", "testset.jsonl"], "train", "'train' but testset, trainset\n"),
        (["Training.jsonl", "Testing.jsonl"], "test", "'test' but Testing, Training\n"),
        (["best.jsonl", "best_2.jsonl", "best_of.jsonl"], "best_o", None),
    ],
)  # fmt: skip
def test_a_split_that_others_begin_with_is_asked_for(tmp_path, files, split, found):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, '{"text": "x"}')
    if found is None:  # no name speaks of a split
        assert len(list(read_rows(str(tmp_path), split))) == len(files)
        return
    with pytest.raises(UserError) as caught:
        list(read_rows(str(tmp_path), split))
    assert f"has no split {found}" in str(caught.value)


def test_a_saved_data_set_is_read_with_its_splits(tmp_path):
    rows = [{"text": "one", "more": {"a": 1, "b": None}, "none": None}, {"text": "two", "more": {"a": None, "b": 2}}]
    dataset = datasets.Dataset.from_list(rows)
    dataset.save_to_disk(tmp_path / "one")
    # What Arrow puts where other rows have a key is no content.
    found = [{"text": "one", "more": {"a": 1}, "none": None}, {"text": "two", "more": {"b": 2}, "none": None}]
    assert list(read_rows(str(tmp_path / "one"), "train")) == [(f"{tmp_path}/one:{n}", row) for n, row in enumerate(found, 1)]
    datasets.DatasetDict({"train_sft": dataset.select([0]), "test": dataset.select([1])}).save_to_disk(tmp_path / "several")
    assert [row for _, row in read_rows(str(tmp_path / "several"), "test")] == found[1:]
    with pytest.raises(UserError, match="several has no split 'train' but train_sft, test\n"):
        list(read_rows(str(tmp_path / "several"), "train"))
    assert has_splits([str(tmp_path / "several")]) and not has_splits([str(tmp_path / "one")])


def test_a_damaged_saved_data_set_is_an_error(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "set")
    (arrow,) = (tmp_path / "set").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(UserError, match="the saved data set cannot be read"):
        list(read_rows(str(tmp_path / "set"), "train"))
    arrow.write_text(POINTER)
    with pytest.raises(UserError, match="is a pointer of Git LFS"):
        list(read_rows(str(tmp_path / "set"), "train"))
    (tmp_path / "set" / "dataset_dict.json").write_text("[]")
    (tmp_path / "set" / "state.json").unlink()
    with pytest.raises(UserError, match="does not name the splits"):
        list(read_rows(str(tmp_path / "set"), "train"))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"


@pytest.mark.parametrize("name", [f"a{suffix}" for suffix in DATA_SUFFIXES])
def test_a_pointer_of_git_lfs_says_what_it_is(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(UserError, match="is a pointer of Git LFS.*\n  fix: run git lfs pull"):
        list(read_rows(str(tmp_path / name), "train", BadRows("skip")))


TABLE = 'prompt,chosen,n\r\n"two\nlines, and ""quotes""",a,1\r\n\r\nplain,,"2"\r\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", TABLE),
        ("a.csv", "\ufeff" + TABLE),
        ("a.csv.gz", TABLE),
        ("a.CSV", TABLE.replace("\r\n", "\n")),
        ("a.tsv", TABLE.replace(",", "\t").replace("\t and", ", and")),
        ("a.csv", TABLE.replace('"2"', "2").rstrip()),
    ],
)
def test_rows_of_tables(tmp_path, name, content):
    path = write(tmp_path / name, content)
    first = {"prompt": 'two\nlines, and "quotes"', "chosen": "a", "n": "1"}
    # An empty cell is null; a row is where it begins.
    assert list(read_rows(path, "train")) == [
        (f"{path}:2", first),
        (f"{path}:5", {"prompt": "plain", "chosen": None, "n": "2"}),
    ]


def test_a_bad_row_of_a_table_has_its_line_and_the_others_are_read(tmp_path):
    lines = [b"a,b", b"1,2", b"1", b"1,2,3", b'"x"y,2', b"caf\xe9,2", b'"two', b'lines",2', b"3,4"]
    path = write(tmp_path / "a.csv", b"\n".join(lines))
    bad_rows = BadRows("skip")
    found = list(read_rows(path, "train", bad_rows))
    assert found == [
        (f"{path}:2", {"a": "1", "b": "2"}),
        (f"{path}:7", {"a": "two\nlines", "b": "2"}),
        (f"{path}:9", {"a": "3", "b": "4"}),
    ]
    assert bad_rows.first == [
        (f"{path}:3", "the row has 1 cells, and the header 2"),
        (f"{path}:4", "the row has 3 cells, and the header 2"),
        (f"{path}:5", "no row of a table (',' expected after '\"')"),
        (f"{path}:6", "the line is not valid UTF-8"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "prompt;chosen\na;b\n", "'prompt;chosen'; expected columns with commas between them"),
        ("a.csv", "prompt\tchosen\na\tb\n", "with commas between them\n  fix: write the file with commas, or name it .tsv"),
        ("a.tsv", "prompt,chosen\na,b\n", "'prompt,chosen'; expected columns with tabs between them"),
        ("a.csv", 'a,b\n1,2\n"1,2\n1,2\n', r"a\.csv:3: a quoted cell is never closed"),
        ("a.csv", "a,a\n1,2\n", "has 'a' more than once"),
        ("a.csv", 'a,"b\n1,2\n', "header is no row of a table"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "header is not valid UTF-8"),
    ],
)
def test_a_table_that_is_none_is_an_error(tmp_path, name, content, words):
    with pytest.raises(UserError, match=words):
        list(read_rows(write(tmp_path / name, content), "train", BadRows("skip")))


def test_a_quote_that_swallows_more_than_a_cell_holds_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(file_rows, "_LONGEST_CELL", 0)
    before = csv.field_size_limit(100)
    try:
        with pytest.raises(UserError, match=r"a\.csv:2: a quoted cell is never closed"):
            list(read_rows(write(tmp_path / "a.csv", 'a,b\n"1,2\n' + "3,4\n" * 100), "train", BadRows("skip")))
    finally:
        csv.field_size_limit(before)


def test_what_a_command_wrote_beside_the_data_is_not_read(tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("a.jsonl", "runs/samples.jsonl", "runs/command.json"):
        write(tmp_path / name, '{"text": "x"}')
    assert [place for place, _ in read_rows(str(tmp_path), "train")] == [f"{tmp_path}/a.jsonl:1"]
    # Unless it is what was asked for.
    assert [place for place, _ in read_rows(str(tmp_path / "runs"), "train")] == [f"{tmp_path}/runs/samples.jsonl:1"]


def test_a_long_cell_and_a_table_of_one_column_are_read(tmp_path):
    path = write(tmp_path / "a.csv", "text\n" + "word " * 100_000 + "\n")
    assert [len(row["text"]) for _, row in read_rows(path, "train")] == [500_000]


def test_what_is_missing_or_of_no_known_kind_is_named(tmp_path):
    for source in (str(tmp_path / "no.jsonl"), "no-such-file.jsonl", "./nothing", "a/b/c"):
        with pytest.raises(UserError, match="there is no file or folder"):
            list(read_rows(source, "train"))
    with pytest.raises(UserError, match="no known kind"):
        list(read_rows(write(tmp_path / "a.xlsx", "x"), "train"))
    with pytest.raises(UserError, match="holds no data file"):
        (tmp_path / "empty").mkdir()
        list(read_rows(str(tmp_path / "empty"), "train"))


def test_hub_datasets_are_read_by_the_datasets_library(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        table = pa.Table.from_pylist([{"text": split}, {"text": "x"}])
        pa.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert list(_hub_rows(str(tmp_path), "test")) == [
        (f"{tmp_path}[test]:1", {"text": "test"}),
        (f"{tmp_path}[test]:2", {"text": "x"}),
    ]
    with pytest.raises(UserError, match="validation"):
        list(_hub_rows(str(tmp_path), "validation"))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: asked.append((name, config, split)) or [])
    assert list(read_rows("some-user/some_set", "train_prefs")) == []
    assert asked == [("some-user/some_set", None, "train_prefs")]


@pytest.mark.parametrize(
    ("content", "reasons"),
    [
        (b'{"text": "a"}\n{"text": \n', ["invalid JSON (Expecting value)"]),
        (b'{"text": "a"}\n{"text": "\xff"}\n', ["the line is not valid UTF-8"]),
        (b'{"text": "a"}\n' + b"[" * 200_000 + b"\n", ["invalid JSON (nested too deeply)"]),
    ],
)
def test_unreadable_lines_are_bad_rows(tmp_path, content, reasons):
    path = write(tmp_path / "a.jsonl", content)
    bad_rows = BadRows("skip")
    assert list(read_rows(path, "train", bad_rows)) == [(f"{path}:1", {"text": "a"})]
    assert bad_rows.first == [(f"{path}:2", reason) for reason in reasons]
    with pytest.raises(UserError, match=r"a\.jsonl:2: "):
        list(read_rows(path, "train"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'[{"a": 1},\n{"a": ]', r"a\.json:2: invalid JSON \(Expecting value\)"),
        ("a.json", b'[{"a": 1}\n', r"a\.json:1: invalid JSON \(no ',' or ']'"),
        ("a.json", b'[{"a": 1},\n"\xff"]', r"a\.json:2: the line is not valid UTF-8"),
        ("a.txt", b'\n{"text": "a"}\n', r"a\.txt:2: the line is an object in JSON; expected plain text"),
        ("a.txt", b'[{"text": "a"}]\n', r"a list of objects in JSON; expected plain text\n  fix: name the file .json$"),
        ("a.parquet", b"no parquet at all", r"a\.parquet:1: cannot be read"),
    ],
)
def test_a_broken_file_is_an_error_with_its_line(tmp_path, name, content, words):
    with pytest.raises(UserError, match=words):
        list(read_rows(write(tmp_path / name, content), "train", BadRows("skip")))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
def test_a_broken_gzip_is_an_error(tmp_path, name):
    whole = gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(5000)))
    for content in (whole[:-3000], b"no gzip at all", whole[:2000] + b"\xff" * 50 + whole[2050:]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"a\.jsonl?\.gz.*(cannot be read)"):
            list(read_rows(str(tmp_path / name), "train", BadRows("skip")))


def part(name, size):
    return datasets.Dataset.from_dict({"name": [name] * size, "n": list(range(size))})


def pairs_of(dataset):
    return list(zip(dataset["name"], dataset["n"], strict=True))


def test_weights_are_shares_until_a_source_is_exhausted():
    blended = blend([part("a", 30), part("b", 100)], [3.0, 1.0], None, seed=1)
    assert Counter(blended["name"]) == {"a": 30, "b": 10}  # 30 rows are 3/4 of 40
    rows = pairs_of(blended)
    assert len(set(rows)) == 40  # without replacement
    assert rows != sorted(rows)
    assert rows == pairs_of(blend([part("a", 30), part("b", 100)], [3.0, 1.0], None, seed=1))
    assert rows != pairs_of(blend([part("a", 30), part("b", 100)], [3.0, 1.0], None, seed=2))


def test_a_limit_keeps_the_shares():
    assert Counter(blend([part("a", 30), part("b", 100)], [3.0, 1.0], 8, seed=0)["name"]) == {"a": 6, "b": 2}
    assert len(blend([part("a", 9), part("b", 9), part("c", 9)], [1.0, 1.0, 1.0], 10, seed=0)) == 10


def test_without_weights_every_row_is_taken():
    assert Counter(blend([part("a", 3), part("b", 7)], None, None, seed=0)["name"]) == {"a": 3, "b": 7}
    assert Counter(blend([part("a", 30), part("b", 70)], None, 10, seed=0)["name"]) == {"a": 3, "b": 7}
    assert blend([part("a", 5)], None, 3, seed=0)["n"][:] == [0, 1, 2]  # one source keeps its order


def load(sources, **kwargs):
    options = {"split": "train", "weights": None, "on_bad_row": "stop", "limit": None, "seed": 0, **kwargs}
    features = datasets.Features({"text": datasets.Value("string")})
    return load_rows(sources, lambda row: {"text": row["text"]}, features, **options)


def test_loading_keeps_the_place_and_stops_reading_at_the_limit(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES + "no json\n")
    assert load([path], limit=3)["place"][:] == [f"{path}:{n}" for n in (1, 2, 3)]
    with pytest.raises(UserError, match=r"1 bad row:\n.*a\.jsonl:4: invalid JSON"):
        load([path])


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"weights": [1.0]}, "2 data sources"), ({"weights": [1.0, 0.0]}, "positive"), ({"limit": 0}, "at least 1")],
)
def test_wrong_weights_and_limits_are_refused(tmp_path, kwargs, words):
    path = write(tmp_path / "a.jsonl", LINES)
    with pytest.raises(UserError, match=words):
        load([path, path], **kwargs)


def test_no_source_and_an_empty_source_are_refused(tmp_path):
    with pytest.raises(UserError, match="no data source"):
        load([])
    good, empty = write(tmp_path / "a.jsonl", LINES), write(tmp_path / "b.jsonl", "\n")
    with pytest.raises(UserError, match=r"b\.jsonl: no usable row"):
        load([good, empty], weights=[1.0, 1.0])


def test_mapping_reports_the_place_or_the_row_number():
    def refuse(row):
        raise BadRow("no")

    features = datasets.Features({"x": datasets.Value("int32")})
    with pytest.raises(UserError, match="^row 0: no\n"):
        map_rows(datasets.Dataset.from_dict({"x": [1]}), refuse, features, "stop")
    with pytest.raises(UserError, match="^f:7: no, and so it is with all 2 rows\n"):
        map_rows(datasets.Dataset.from_dict({"place": ["f:7", "f:9"]}), refuse, features, "stop")
