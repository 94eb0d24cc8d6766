"""The files around the code: licence, changelog, guide, hooks, workflow, bug reports."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import yaml
from setuptools import find_packages

import denserl

ROOT = Path(__file__).parent.parent
# Of LICENSE-2.0.txt as the Apache Software Foundation publishes it.
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def read_yaml(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def recipe(target: str) -> list[str]:
    """The lines of a target of the Makefile, as a shell sees them."""
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in lines.splitlines()]


def test_the_licence_is_apache_2_to_the_letter():
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_the_package_is_typed():
    """In the tree; tests/test_packaging.py looks for it in the wheel."""
    assert (ROOT / "denserl/py.typed").read_bytes() == b""


def test_the_changelog_begins_with_the_present_version_or_the_next():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    listed = [tuple(map(int, version)) for version in re.findall(r"^## \[(\d+)\.(\d+)\.(\d+)\]", text, re.MULTILINE)]
    major, minor, patch = present = tuple(map(int, denserl.__version__.split(".")))
    following = [(major, minor, patch + 1), (major, minor + 1, 0), (major + 1, 0, 0)]
    assert listed[0] in [present, *following] and present in listed
    assert listed == sorted(set(listed), reverse=True)


def test_the_new_names_of_the_changelog_are_there():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    renamed = dict(re.findall(r"^\| `(denserl\.[\w.]+)` \| `(denserl\.[\w.]+)` \|$", text, re.MULTILINE))
    assert renamed
    for new in renamed.values():
        path = ROOT / new.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), new


def test_what_the_guide_names_is_there():
    """Targets of make, and paths."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert TARGETS >= set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) >= {"test", "faults", "lint", "bench"}
    for path in re.findall(r"(?<![\w/.])(?:tests|denserl)/[\w./]*\w", text):
        assert path == "tests/ROOM" or (ROOT / path).exists(), path


def test_every_room_has_its_tests_where_the_guide_says():
    rooms = {name.split(".")[1] for name in find_packages(str(ROOT), include=["denserl.*"])}
    assert not [room for room in rooms if not (ROOT / "tests" / room).is_dir()]


def test_no_two_files_of_tests_have_one_name():
    """Pytest imports them by their names alone."""
    counts = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert not [name for name, count in counts.items() if count > 1 and name != "conftest.py"]


def test_what_is_marked_long_is_run_by_make_faults():
    (paths,) = re.findall(r"^LONG_TESTS := \$\(addprefix tests/,(.*)\)$", MAKEFILE, re.MULTILINE)
    run = {path for pattern in paths.split() for path in (ROOT / "tests").glob(pattern)}
    marked = {path for path in (ROOT / "tests").rglob("test_*.py") if "mark.long" in path.read_text(encoding="utf-8")}
    assert len(marked) > 30 and not [path for path in marked if not run & {path, *path.parents}]


def test_the_hooks_are_the_lines_of_make_lint():
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # nothing is fetched
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    entries = [hook["entry"] for hook in repository["hooks"]]
    assert entries == recipe("lint") and len(entries) == 3


def test_the_workflow_tests_the_pythons_that_are_promised():
    workflow = read_yaml(".github/workflows/test.yml")
    tested, nightly = workflow["jobs"]["test"], workflow["jobs"]["faults"]
    pythons = tested["strategy"]["matrix"]["python"]
    assert pythons == ["3.10", "3.11", "3.12"]
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert re.findall(r"Python :: (3\.\d+)", setup) == pythons
    assert f'python_requires=">={pythons[0]}"' in setup
    assert set(workflow[True]) == {"push", "pull_request", "schedule"}  # YAML reads the word `on` as true
    assert tested["steps"][-1]["run"] == "make test PYTHON=python"
    assert nightly["steps"][-1]["run"] == "make faults PYTHON=python" and "schedule" in nightly["if"]
    assert workflow["env"]["PIP_EXTRA_INDEX_URL"].endswith("/cpu")


def test_a_bug_report_asks_for_command_message_and_environment():
    form = read_yaml(".github/ISSUE_TEMPLATE/bug_report.yml")
    assert form["name"] and form["description"]
    asked = {field["id"]: field for field in form["body"]}
    assert all(field["attributes"]["label"] for field in asked.values())
    needed = [name for name, field in asked.items() if field.get("validations", {}).get("required")]
    assert needed == ["command", "message", "environment"]
    assert "`denserl env`" in asked["environment"]["attributes"]["label"]
