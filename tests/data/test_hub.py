"""Whether the hub can be reached is found out once and quickly; where it cannot, only what is stored is used."""

import socket

import datasets
import pytest
from huggingface_hub import constants

from denserl.data import hub
from denserl.data.readers import read_rows
from denserl.errors import UserError
from denserl.models.folders import check_source


@pytest.fixture
def answers(monkeypatch):
    """Lets the hub answer or not, with both libraries on line at first and after the test as they were."""
    for settings in (constants, datasets.config):
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
    hub.go_offline_if_unreachable.cache_clear()

    def let(answer: bool) -> list[str]:
        asked = []
        monkeypatch.setattr(hub, "_answers", lambda url: asked.append(url) or answer)
        return asked

    yield let
    hub.go_offline_if_unreachable.cache_clear()


@pytest.mark.parametrize("answer", [True, False])
def test_libraries_go_offline_where_the_hub_does_not_answer(answers, answer):
    asked = answers(answer)
    hub.go_offline_if_unreachable()
    hub.go_offline_if_unreachable()
    assert asked == [constants.ENDPOINT]
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (not answer, not answer)


def test_who_is_offline_by_choice_asks_nothing(answers, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = answers(True)
    hub.go_offline_if_unreachable()
    assert not asked


def test_a_host_answers_when_its_port_is_open(monkeypatch):
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert not hub._answers(url)
        server.listen()
        assert hub._answers(url)
    assert not hub._answers(url)


@pytest.mark.parametrize(
    ("url", "port"), [("http://mirror", 80), ("https://mirror", 443), ("http://mirror:443", 443), ("https://mirror:80", 80)]
)
def test_the_port_goes_with_the_scheme_unless_it_is_given(url, port, monkeypatch):
    asked = []
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    monkeypatch.setattr(hub.socket, "create_connection", lambda place, timeout: asked.append(place) or socket.socket())
    assert hub._answers(url)
    assert asked == [("mirror", port)]


def test_behind_a_proxy_the_libraries_find_out(monkeypatch):
    monkeypatch.setattr(hub.urllib.request, "getproxies", lambda: {"https": "http://proxy"})
    assert hub._answers("https://nowhere.invalid")


@pytest.mark.parametrize(
    "name, is_one",
    [
        ("gpt2", True),
        ("user/a-b_c.1", True),
        ("a/b/c", False),
        ("/a", False),
        ("./a", False),
        ("../a", False),
        ("~/a", False),
        ("", False),
        # In a folder that is there, a path that was mistyped.
        ("runs/stf", False),
    ],
)
def test_names_on_the_hub(name, is_one, tmp_path, monkeypatch):
    (tmp_path / "runs/sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_name(name) is is_one


def test_a_mistyped_path_is_refused_without_asking_the_hub(answers, tmp_path, monkeypatch):
    (tmp_path / "runs/sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked = answers(True)
    for path in ("runs/stf", "./stf", "runs/sft/1", str(tmp_path / "stf")):
        with pytest.raises(UserError, match="there is no model folder"):
            check_source(path, ("config.json",))
        with pytest.raises(UserError, match="there is no file or folder"):
            next(read_rows(path, "train"))
    assert not asked


def test_a_name_may_hold_a_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder@home").mkdir()
    assert hub.split_revision("user/model@v2") == ("user/model", "v2")
    assert hub.split_revision("user/model@refs/pr/1") == ("user/model", "refs/pr/1")
    for name in ("user/model", "user/model@", "folder@home", "../a/b@c", "@v2"):
        assert hub.split_revision(name) == (name, None)
