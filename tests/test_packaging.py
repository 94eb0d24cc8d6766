"""What a wheel holds, seen from an empty environment."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import lazy_loader
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory) -> Path:
    """A virtual environment with denserl's wheel and the one package that `import denserl` needs; returns its bin folder."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, timeout=120)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env/bin/python"
    install = ["--python", str(python), "install", "-q", "--no-deps", "--no-index", *map(str, folder.glob("denserl-*.whl"))]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=120)
    (packages,) = folder.glob("env/lib/python*/site-packages")
    shutil.copytree(Path(lazy_loader.__file__).parent, packages / "lazy_loader")
    return folder / "env/bin"


def test_the_wheel_brings_its_data_files(empty_environment):
    code = (
        "import json; from importlib.resources import files; r = files('denserl');"
        "print(json.dumps({'params': json.loads((r / 'ppo_utils/param.json').read_text()),"
        "'table': (r / 'cli/model_types.yaml').is_file(), 'pages': [(r / name).is_file() for name in ('evaluation/steps.html',"
        "'pages/page.html', 'pages/charts.js', 'pages/vendor/uPlot.iife.min.js', 'pages/vendor/uPlot.LICENSE',"
        "'report/report.html', 'report/samples.js')],"
        "'presets': {p.name: p.read_text() for p in (r / 'presets').iterdir()},"
        "'templates': {p.name: p.read_text() for p in (r / 'judging/template_files').iterdir()}}))"
    )
    shown = subprocess.run([empty_environment / "python", "-c", code], cwd="/", capture_output=True, text=True, check=True)
    held = json.loads(shown.stdout)
    assert held["table"] and all(held["pages"])
    for name, folder in {"presets": "presets", "templates": "judging/template_files"}.items():
        assert held[name] == {path.name: path.read_text() for path in (ROOT / "denserl" / folder).iterdir()} != {}
    # Spec: phi3-instruct at c = 1.75.
    assert held["params"]["phi3-instruct"]["preference700k_60000"]["peak"]["avg"]["1.75"] == [0.7668, 0.2569, 0.4705, 2.8339]


def test_the_wheel_says_its_licence_and_that_it_is_typed(empty_environment):
    code = (
        "import json; from importlib.metadata import distribution; d = distribution('denserl');"
        "held = {f.name: f.read_text() for f in d.files if f.name in ('LICENSE', 'py.typed')};"
        "print(json.dumps([d.metadata['License-Expression'] or d.metadata['License'], held]))"
    )
    shown = subprocess.run([empty_environment / "python", "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout) == ["Apache-2.0", {"LICENSE": (ROOT / "LICENSE").read_text(), "py.typed": ""}]


def test_the_console_script_lists_every_command(empty_environment):
    shown = subprocess.run([empty_environment / "denserl"], cwd="/", capture_output=True, text=True, check=True).stdout
    for command in ("demo", "train-sft", "train-rm", "fit-normalizer", "train-ppo", "make-world", "new-model"):
        assert f"  {command} " in shown
    wrong = subprocess.run([empty_environment / "denserl", "train-pop"], cwd="/", capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "did you mean train-ppo?" in wrong.stderr
    assert "Traceback" not in wrong.stderr
