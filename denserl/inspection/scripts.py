"""Which script a text is written in, from the names that Unicode gives its letters."""

import functools
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable

NONE, LATIN = "none", "Latin"
_CALLED = {"Cjk": "Han", "Ideographic": "Han", "Fullwidth": LATIN}
_NO_LETTERS = bytes(set(range(128)) - set(string.ascii_letters.encode()))


def main_script(texts: Iterable[str]) -> str:
    """The script of most letters of some texts together, such as Latin, Cyrillic or Han; `none` where there are no letters."""
    counts: Counter[str] = Counter()
    for text in texts:
        if text.isascii():
            counts[LATIN] += len(text.encode().translate(None, _NO_LETTERS))
        else:
            for character, count in Counter(text).items():
                if character.isalpha():
                    counts[script_of(character)] += count
    return counts.most_common(1)[0][0] if +counts else NONE


@functools.cache
def script_of(letter: str) -> str:
    """The script of a letter: the first word of its name."""
    word = unicodedata.name(letter, "unnamed").split(" ")[0].capitalize()
    return _CALLED.get(word, word)
