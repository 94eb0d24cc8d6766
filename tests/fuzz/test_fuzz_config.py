"""Any bytes as a configuration file, and any text in it: words of a command line, or one message."""

import pytest
import yaml
from fuzzing import explore, texts
from hypothesis import strategies as st

from denserl.cli.words import expand_config
from denserl.errors import UserError

TRICKS = [
    "a: 2026-99-99", "a: 2020-01-01T00:00:00+99:99", "a: !!int x", "a: !!binary x", "a: !!python/object:os.system x",
    "? [1]\n: 2", "&a [*a]", "a: &a [*a]", "<<: 3", "- a", "a", "", "a: .nan", "a: 0x_", "a: \"\\e[2J\"", "a: 1\n---\nb: 2",
    "\ufeffa: 1", "[" * 3000, "a: " + "{" * 3000, "a: {b: [1, {c: 2}]}", "~: 1", "1: 2", "true: false",
]  # fmt: skip


def words_of(path) -> list[str] | None:
    """What the file stands for; None where it is refused."""
    try:
        words = expand_config(["--config", str(path)])
    except UserError as error:
        assert str(path) in error.found and error.fix
        return None
    assert all(isinstance(word, str) for word in words)
    return words


@pytest.mark.parametrize("text", TRICKS)
def test_tricks_of_yaml_are_words_or_refused(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    words_of(path)


@pytest.mark.parametrize("examples", [pytest.param(60, id="short"), pytest.param(600, id="long", marks=pytest.mark.long)])
def test_any_bytes_are_words_or_refused(tmp_path, examples):
    path = tmp_path / "settings.yaml"
    lines = st.lists(
        st.one_of(
            st.sampled_from([text for text in TRICKS if len(text) < 99]), st.text("ab:-[]{}&*!|>'\"#%@, \n0.", max_size=12)
        ),
        max_size=4,
    )

    def check(content):
        path.write_bytes(content)
        words_of(path)

    explore(check, examples, content=st.one_of(st.binary(max_size=60), lines.map(lambda parts: "\n".join(parts).encode())))


@pytest.mark.parametrize("examples", [pytest.param(60, id="short"), pytest.param(600, id="long", marks=pytest.mark.long)])
def test_any_text_in_it_arrives_as_it_is(tmp_path, examples):
    path = tmp_path / "settings.yaml"

    def check(values):
        path.write_text(yaml.safe_dump({"name": values}), encoding="utf-8")
        assert words_of(path) == ["--name", *values]

    explore(check, examples, values=st.lists(texts, min_size=1, max_size=3))
