"""The part of the Hugging Face hub's HTTP API that a push needs, in a thread of this process."""

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from huggingface_hub import constants
from reward_server import listening, respond

TOKEN = "hf_test_token"


class Hub:
    """What the server holds: name -> {"private": bool, "files": {path: bytes}}. `refuses`: a status for every commit."""

    def __init__(self):
        self.repos: dict[str, dict] = {}
        self.refuses: int | None = None
        self.tokens: set[str | None] = set()
        self.url = ""


@contextlib.contextmanager
def serving(patch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    """Serves while the context lasts; huggingface_hub asks here, with the token of HF_TOKEN, and caches in `home`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body, at = self.rfile.read(int(self.headers["content-length"])), self.path.partition("?")[0]
            hub.tokens.add(self.headers["authorization"])
            if at == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization'] or 'somebody'}/{asked['name']}"
                there = name in hub.repos
                hub.repos.setdefault(name, {"private": asked.get("visibility") == "private", "files": {}})
                return self.say(409 if there else 200, {"url": f"{hub.url}/{name}"})
            if at == "/api/validate-yaml":
                return self.say(200, {"errors": [], "warnings": []})
            name, _, what = at.removeprefix("/api/models/").partition("/main")[0].rpartition("/")
            if what == "preupload":
                how = {"uploadMode": "regular", "shouldIgnore": False}
                return self.say(200, {"files": [{"path": file["path"], **how} for file in json.loads(body)["files"]]})
            if hub.refuses:
                return self.say(hub.refuses, {"error": "not today"})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.repos[name]["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.say(200, {"commitUrl": f"{hub.url}/{name}/commit/0", "commitOid": "0" * 40})

        def do_GET(self):
            if self.path.startswith("/api/models/"):
                name = self.path.removeprefix("/api/models/").partition("?")[0]
                return self.say(200, {"id": name, "modelId": name, "private": hub.repos[name]["private"], "siblings": []})
            name, _, file = self.path.removeprefix("/").partition("/resolve/main/")
            content = hub.repos[name]["files"].get(file)
            if content is None:
                return self.say(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40})
            summed = hashlib.sha1(content).hexdigest()
            return respond(self, 200, {"ETag": summed, "X-Repo-Commit": summed}, content)

        do_HEAD = do_GET

        def say(self, status: int, said: dict, headers: dict[str, str] | None = None):
            respond(self, status, {"content-type": "application/json", **(headers or {})}, json.dumps(said).encode())

        def log_message(self, *args):
            pass

    with listening(Handler) as port:
        hub.url = f"http://127.0.0.1:{port}"
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(home))
        patch.setenv("HF_TOKEN", TOKEN)
        yield hub
