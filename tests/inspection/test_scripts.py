"""Scripts of writing, by texts of which they are known."""

import pytest

from denserl.inspection.scripts import main_script


@pytest.mark.parametrize(
    "texts, script",
    [
        (["The kettle hums."], "Latin"),
        (["1 + 1 = 2", ""], "none"),
        (["Größe café"], "Latin"),
        (["Старый чайник"], "Cyrillic"),
        (["这是一只旧水壶"], "Han"),
        (["αβγ", "x"], "Greek"),
        (["the letter α"], "Latin"),
        (["قهوة"], "Arabic"),
        (["नमस्ते"], "Devanagari"),
        (["ＡＢＣ"], "Latin"),
        (["ab", "чайник", "c"], "Cyrillic"),
        (["чай", "kettle 123456"], "Latin"),
    ],
)
def test_the_script_of_most_letters(texts, script):
    assert main_script(texts) == script
