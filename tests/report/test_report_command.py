"""`denserl report`: where the page goes, what is said, what is refused; it is light."""

import subprocess
import sys

import pytest
from run_folders import command, judged, ppo, reward_model

from denserl.cli import report


def test_the_page_is_written_beside_the_first_run_or_where_it_is_asked_for(tmp_path, capsys):
    first, second = str(ppo(tmp_path / "a")), str(reward_model(tmp_path / "b"))
    report.main([first, second])
    assert (tmp_path / "a/report.html").is_file() and not (tmp_path / "b/report.html").exists()
    said = capsys.readouterr().out
    assert "0.125 → 0.875" in said and said.rstrip().endswith(str(tmp_path / "a/report.html"))
    report.main([second, "--html", str(tmp_path / "new/page.html")])
    assert (tmp_path / "new/page.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "RUN"),
        (["nowhere"], "nowhere is no folder"),
        (["RUN", "--port", "1"], "--port 1 has no effect without --watch"),
        (["RUN", "--watch", "--html", "x"], "--html x has no effect with --watch"),
        (["RUN", "--seeds", "median"], "median"),
        (["JUDGE"], "is the page of denserl judge"),
        (["RUN", "--html", "RUN"], "Is a directory"),
        (["DEMO"], "is of a demo that has no runs yet"),
    ],
)
def test_mistakes_are_said(tmp_path, capsys, words, said):
    places = {
        "RUN": str(ppo(tmp_path / "a")),
        "JUDGE": str(judged(tmp_path / "j")),
        "DEMO": str(command(tmp_path / "d", "demo")),
    }
    with pytest.raises(SystemExit) as ended:
        report.main([places.get(word, word) for word in words])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and said in " ".join((shown.err + shown.out).split())


def test_of_a_folder_of_folders_those_are_named_that_can_be_reported(tmp_path, capsys):
    command(tmp_path / "base", "new-model")
    command(tmp_path / "inspected", "inspect")
    runs = [str(ppo(tmp_path / "ppo")), str(reward_model(tmp_path / "rm"))]
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    assert f"fix: denserl report {' '.join(runs)}\n" in capsys.readouterr().err
    report.main([*runs, "--html", str(tmp_path / "page.html")])


def test_it_starts_without_what_trains(tmp_path):
    code = (
        "import sys; from denserl.cli import report; report.main(sys.argv[1:]); print(*(m for m in HEAVY if m in sys.modules))"
    )
    heavy = ["torch", "transformers", "datasets", "matplotlib", "scipy.stats", "deepspeed"]
    command = [sys.executable, "-c", code.replace("HEAVY", repr(heavy)), str(ppo(tmp_path / "a"))]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == ""
