"""A watched page: what is asked of it, by whom, what is new on it, and how it ends."""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from run_folders import charts_of, command, ppo, reward_model, write_rows

from denserl.errors import UserError
from denserl.report.build import report_of
from denserl.report.watch import Server, state_of


@pytest.fixture
def watched(tmp_path):
    folder = ppo(tmp_path / "run")
    server = Server(0, lambda: report_of([str(folder)], watched=True).html, lambda: state_of([str(folder)]))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield folder, server
    server.shutdown()
    server.server_close()
    thread.join(10)


def ask(server: Server, path: str = "/", method: str = "GET", **headers):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def test_what_is_new_is_served_and_what_is_not_is_not(watched):
    folder, server = watched
    first, page = ask(server)
    assert first.status == 200 and charts_of(page)["Reward"]["series"][0]["x"] == [1, 2, 3]
    assert "connect-src 'self'" in page and "default-src 'none'" in page
    again, nothing = ask(server, **{"If-None-Match": first.headers["ETag"]})
    assert again.status == 304 and nothing == ""
    write_rows(folder / "metrics.jsonl", [{"step": k, "reward": 1.0, "actor_lr": 1.0} for k in range(1, 6)])
    new, page = ask(server, **{"If-None-Match": first.headers["ETag"]})
    assert new.status == 200 and charts_of(page)["Reward"]["series"][0]["x"] == [1, 2, 3, 4, 5]
    assert ask(server, method="HEAD")[1] == ""


def test_who_asks_by_another_name_or_for_another_path_gets_nothing(watched):
    _, server = watched
    for host in ("example.invalid", "example.invalid:80", "127.0.0.1.example.invalid", ""):
        answer, body = ask(server, Host=host)
        assert answer.status in (400, 403) and "<html" not in body
    assert ask(server, "/../../etc/passwd")[0].status == 404
    assert ask(server, Host=f"localhost:{server.server_address[1]}")[0].status == 200
    assert ask(server, method="POST")[0].status == 501
    assert server.server_address[0] == "127.0.0.1"


def test_a_run_that_is_gone_is_said_and_the_server_goes_on(watched):
    folder, server = watched
    folder.rename(folder.with_name("gone"))
    answer, body = ask(server)
    assert answer.status == 503 and "is no folder" in body
    folder.with_name("gone").rename(folder)
    assert ask(server)[0].status == 200


def test_a_demo_is_followed_by_the_files_of_its_runs(tmp_path):
    demo = command(tmp_path / "demo", "demo")
    with pytest.raises(UserError, match="a demo that has no runs yet"):
        state_of([str(demo)])
    folder = ppo(demo / "ppo-segment")
    states = [state_of([str(demo)])]
    write_rows(folder / "metrics.jsonl", [{"step": 1, "reward": 1.0, "actor_lr": 1.0}])
    states.append(state_of([str(demo)]))
    reward_model(demo / "rm-segment")
    states.append(state_of([str(demo)]))
    (demo / "results.json").write_text("{}")
    states.append(state_of([str(demo)]))
    assert len(set(states)) == 4 and state_of([str(demo)]) == states[-1]


def test_a_port_that_is_taken_is_said(watched):
    _, server = watched
    with pytest.raises(UserError, match=f"cannot listen at port {server.server_address[1]} of 127.0.0.1"):
        Server(server.server_address[1], str, str)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_well(tmp_path, number):
    command = [sys.executable, "-m", "denserl.cli.main", "report", str(ppo(tmp_path / "run")), "--watch", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    line = process.stdout.readline()
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/")
    assert b"<!doctype html>" in connection.getresponse().read()
    began = time.monotonic()
    process.send_signal(number)
    rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest, errors) == (0, "stopped\n", "") and time.monotonic() - began < 10
    assert not (tmp_path / "run/report.html").exists()
