"""Language models that answer by a rule, in the place of real ones."""

from collections.abc import Callable, Iterator, Sequence

from denserl.errors import UserError
from denserl.judging.contract import Decoding, Reply, Request

DECODING = Decoding(64)


def question(text: str, sample: int = 0, decoding: Decoding = DECODING) -> Request:
    return Request([{"role": "user", "content": text}], decoding, sample)


class RuleBackend:
    """Answers what a rule says, last question first, and counts what it is asked.

    fails_at: the number of the answer in whose place there is an error.
    """

    def __init__(self, rule: Callable[[Request], str | Reply], name: str = "rule", fails_at: int | None = None):
        self.rule, self.name, self.version, self.fails_at = rule, name, "1", fails_at
        self.asked: list[Request] = []

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        for number in reversed(range(len(requests))):
            if len(self.asked) == self.fails_at:
                raise UserError("the server is away", "start it")
            self.asked.append(requests[number])
            said = self.rule(requests[number])
            yield number, said if isinstance(said, Reply) else Reply(said, False, 10, len(said.split()))

    def prompt_tokens(self, messages: list[dict]) -> int:
        return sum(len(message["content"].split()) for message in messages)
