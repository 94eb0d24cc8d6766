"""A server of rewards for tests, in a thread of this process; as a program, which prints its address, one of `vowels`."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Requests(list):
    """The bodies that were sent to the server at `url`, in order; their headers are in `headers`."""

    url = ""

    def __init__(self):
        super().__init__()
        self.headers = []

    @property
    def responses(self) -> list[str]:
        """The texts of all responses that were asked about."""
        return [text for body in self for text in body["responses"]]


@contextlib.contextmanager
def serving(answer: Callable[[dict], object]) -> Iterator[Requests]:
    """Serves while the context lasts. answer: body -> bytes or what JSON is made of, or (status, headers, one of the two)."""
    seen = Requests()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append(body)
            seen.headers.append(dict(self.headers))
            said = answer(body)
            status, headers, content = said if isinstance(said, tuple) else (200, {}, said)
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            respond(self, status, headers, content)

        def log_message(self, *args):
            pass

    with listening(Handler) as port:
        seen.url = f"http://127.0.0.1:{port}/get_reward"
        yield seen


def respond(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
    """An answer to a client, who may have gone."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        handler.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)


@contextlib.contextmanager
def listening(handler: type[BaseHTTPRequestHandler], address: str = "127.0.0.1") -> Iterator[int]:
    """Serves at an address of this machine while the context lasts; yields the port."""
    with ThreadingHTTPServer((address, 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def of_function(function: Callable[[list, list[str]], list]) -> Callable[[dict], dict]:
    """The answers of a reward function."""
    return lambda body: {"rewards": list(function(body["messages"], body["responses"]))}


def vowels(prompts: list, responses: list[str]) -> list:
    """Parts of some responses, numbers of others, few of them round."""
    return [[(len(r) // 2, r.count("e") / 3), (len(r), -0.1)] if len(r) % 2 else r.count("a") / 7 for r in responses]


if __name__ == "__main__":
    with serving(of_function(vowels)) as requests:
        print(requests.url, flush=True)
        threading.Event().wait()
