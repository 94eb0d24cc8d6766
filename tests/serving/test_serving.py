"""`denserl serve-rewards`: its numbers are those in process, whoever asks beside; nothing that is asked ends the server."""

import base64
import concurrent.futures
import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import tiny_models
import torch
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from denserl.cli import serve_rewards
from denserl.cli.options import parse
from denserl.config import ModelSourceConfig
from denserl.data.bad_rows import BadRow
from denserl.data.characters import ends_of_tokens
from denserl.data.chat import encode_prompt, encode_response
from denserl.data.rendered import encode_rendered
from denserl.data.responses import Responses
from denserl.errors import UserError
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.answers import Answers
from denserl.rewards.sources.build import load_step_model
from denserl.rewards.sources.endpoint import EndpointSource
from denserl.rewards.sources.reading import response_text
from denserl.serving.app import Limits, make_app
from denserl.serving.functions import FunctionService
from denserl.serving.models import ModelService
from denserl.serving.rows import Rendered, Row, Scored
from denserl.serving.server import bound_socket
from denserl.serving.worker import Busy, Worker
from denserl.steps import tokens_up_to

sys.path.insert(0, str(Path(__file__).parents[1] / "rewards"))
from reward_folders import save_reward_model, stock_score  # noqa: E402

THRESHOLD = 5.31  # nats; about half of the tokens of the tiny language model are above it
LIMITS = Limits(max_rows=100, max_bytes=100_000, max_waiting=1000)
PROMPTS = ["Tell me about the garden.", "Why?", "Write two sentences about the old kettle, please."]
ANSWERS = ["The kettle hums in the kitchen.", "No.", "A quiet river 🦊 runs", "", " under the stone bridge\n\nand waits"]
OPENED = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    sft = tiny_models.save_language_model(folder / "sft")
    steps = {"scores": "logit", "segmenter": "step", "agg_func": "min"}
    for name, settings in {
        "segments": {"entropy_threshold": THRESHOLD, "sft_model": str(sft), "agg_func": "avg"},
        "bandit": {"entropy_threshold": 1000.0, "read_at": "end_of_turn", "agg_func": "avg"},
        "steps": steps,
        "turns": {**steps, "context_signs": "plus"},
    }.items():
        save_reward_model(folder / name, sft, 1, **settings)
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    return RewardScorer([str(folder / "segments")], score_tokens=200)


@pytest.fixture(scope="module")
def client(scorer):
    with TestClient(make_app(ModelService(scorer), LIMITS)) as client:
        yield client


def user(text):
    return [{"role": "user", "content": text}]


def asked(client, path, **body):
    """What a request is answered, which is no error."""
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows(count):
    return {
        "prompts": [PROMPTS[i % 3] for i in range(count)],
        "responses": [f"{ANSWERS[i % 5]}{' and the rain' * (i % 7)}" for i in range(count)],
    }


def in_a_loop(folder, prompt, response):
    """Token ids, scores of tokens, and where segments end, by transformers alone, a row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")
    text = tokenizer.apply_chat_template(user(prompt), add_generation_prompt=True, tokenize=False)
    start = tokenizer(text).input_ids
    ids = [*start, *tokenizer(response + "<|im_end|>").input_ids]
    language = AutoModelForCausalLM.from_pretrained(folder / "sft")
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "segments")
    with torch.no_grad():
        logprobs = language(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        scores = reward.score(reward.model(torch.tensor([ids])).last_hidden_state)[0, len(start) :, 0].tolist()
    entropies = [-(row.exp() * row).sum().item() for row in logprobs[len(start) - 1 : -1]]
    last = max(len(scores) - 2, 0)  # the end of turn is in no segment, unless it is alone
    ends = [t for t in range(last) if entropies[t + 1] > THRESHOLD] + [last]
    return tokenizer.batch_decode([[i] for i in ids[len(start) :]]), scores, ends


def test_tokens_segments_and_score_are_those_of_a_plain_loop(folder, client):
    prompt, response = PROMPTS[0], "The kettle hums in the old kitchen while the rain falls."
    tokens, scores, ends = in_a_loop(folder, prompt, response)
    (found,) = asked(client, "/rewards", prompts=[prompt], responses=[response])["rewards"]
    assert 1 < len(ends) < len(scores) - 2
    assert found["tokens"] == tokens and "".join(tokens) == response + "<|im_end|>" and found["text"] == response
    assert found["token_rewards"] == pytest.approx(scores, abs=1e-5)
    assert found["segment_scores"] == pytest.approx([scores[t] for t in ends], abs=1e-5)
    assert found["segment_ends"] == [len("".join(tokens[: t + 1])) for t in ends]
    so_far = [0.0] + [sum(scores[t] for t in ends[:k]) / k for k in range(1, len(ends) + 1)]
    assert found["score"] == pytest.approx(so_far[-1], abs=1e-5)
    assert found["segment_changes"] == pytest.approx([b - a for a, b in zip(so_far, so_far[1:])], abs=1e-5)
    assert (found["prompt_cut"], found["response_cut"]) == (0, 0)


def test_a_request_of_many_equals_requests_of_one_and_what_is_scored_in_process(client, scorer):
    many = rows(64)
    together = asked(client, "/rewards", **many)["rewards"]
    inside = scorer([user(prompt) for prompt in many["prompts"]], many["responses"])
    assert [row["score"] for row in together] == pytest.approx(inside.tolist(), rel=1e-6, abs=1e-6)

    def alone(i):
        return asked(client, "/rewards", prompts=[many["prompts"][i]], responses=[many["responses"][i]])["rewards"][0]

    with concurrent.futures.ThreadPoolExecutor(16) as threads:  # these wait for one another, and are scored in batches
        apart = list(threads.map(alone, range(64)))
    for one, other in zip(together, apart, strict=True):
        for name in ("token_rewards", "segment_scores", "segment_changes"):
            assert one.pop(name) == pytest.approx(other.pop(name), abs=1e-5)  # which rows are beside them is left to chance
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
        assert one == other  # ends, texts, cuts


def test_messages_and_answers_that_were_cut_off_are_read_as_in_process(client, scorer):
    prompt = [{"role": "system", "content": "Be short."}, *user("Why?")]
    found = asked(client, "/rewards", prompts=[prompt, prompt], responses=["A river", "A river"], ended=[True, False])
    inside = scorer.score([scorer.encode(prompt, "A river", ended) for ended in (True, False)])
    assert [row["score"] for row in found["rewards"]] == pytest.approx(inside.tolist(), rel=1e-6, abs=1e-6)
    ended, cut = (row["tokens"] for row in found["rewards"])
    assert ended == [*cut, "<|im_end|>"] and inside[0] != inside[1]


def test_what_is_too_long_is_cut_and_that_is_told(folder):
    scorer = RewardScorer([str(folder / "segments")], max_length=24)
    with TestClient(make_app(ModelService(scorer), LIMITS)) as client:
        prompts, responses = [PROMPTS[2] * 2, "Why?"], ["No.", "The old kettle hums. " * 9]
        found = asked(client, "/rewards", prompts=prompts, responses=responses)["rewards"]
        assert found[0]["prompt_cut"] > 0 == found[0]["response_cut"] and found[1]["response_cut"] > 0
        inside = scorer([user(prompt) for prompt in prompts], responses)
        assert [row["score"] for row in found] == pytest.approx(inside.tolist(), rel=1e-6, abs=1e-6)
        assert found[1]["segment_ends"][-1] < len(responses[1]) and found[1]["text"] == responses[1]
        logs = asked(client, "/get_reward", query=[OPENED + "Yes. " * 40], prompts=[OPENED])["extra_logs"]
        assert logs["response_cut"][0] > 0


def test_openrlhf_is_answered_as_by_its_own_server(client, scorer):
    """One row a request, as its client asks: texts that the chat template and the policy's tokens wrote."""
    tokenizer = scorer.tokenizer
    for answer in ("A quiet river.<|im_end|>", "A quiet river", "<|im_end|>"):
        body = {"query": [OPENED + answer], "prompts": [OPENED], "labels": [""]}
        found = asked(client, "/get_reward", **body)
        assert set(found) == {"rewards", "scores", "extra_logs"} and found["rewards"] == found["scores"]
        expected = scorer([user("Why?")], [answer.removesuffix("<|im_end|>")])
        if answer == "A quiet river":  # cut off
            expected = scorer.score([scorer.encode(user("Why?"), answer, False)])
        assert found["rewards"] == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-6)
        # What its client makes of them (torch.tensor([value])), one shape for every row.
        tensors = [torch.tensor([value]) for value in (found["rewards"], *found["extra_logs"].values())]
        assert {(tensor.shape, tensor.dtype) for tensor in tensors} == {((1, 1), torch.float32)}
        ids = encode_rendered(tokenizer, OPENED, OPENED + answer)
        assert tokenizer.decode([*ids.prompt_ids, *ids.response_ids]) == OPENED + answer and ids.ended == (answer[-1] == ">")


def test_lists_by_segment_are_of_the_same_numbers(client, folder):
    many = rows(6)
    expected = asked(client, "/rewards", **many)["rewards"]
    pairs = [[list(pair) for pair in zip(row["segment_ends"], row["segment_scores"])] for row in expected]
    messages = [user(prompt) for prompt in many["prompts"]]
    texts = [f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in many["prompts"]]
    query = [f"{start}{answer}<|im_end|>" for start, answer in zip(texts, many["responses"])]
    foreign = {"query": [f"Q: {answer}</s>" for answer in many["responses"]], "prompts": ["Q: "] * 6, "messages": messages}
    for written in ({"query": query, "prompts": texts}, foreign):
        found = asked(client, "/get_segment_rewards", **written, responses=many["responses"], labels=[None] * 6)
        for one, other in zip(found["rewards"], pairs, strict=True):
            assert [end for end, _ in one] == [end for end, _ in other]
            assert [score for _, score in one] == pytest.approx([score for _, score in other], rel=1e-6, abs=1e-6)
        assert found["scores"] == pytest.approx([row["score"] for row in expected], rel=1e-6, abs=1e-6)
        for changes, row in zip(found["changes"], expected, strict=True):
            assert [end for end, _ in changes] == row["segment_ends"]
            assert [change for _, change in changes] == pytest.approx(row["segment_changes"], rel=1e-5, abs=1e-6)
    # Without segments there is the one number, as PPO reads it at the end of the turn.
    bandit = RewardScorer([str(folder / "bandit")])
    with TestClient(make_app(ModelService(bandit), LIMITS)) as one:
        found = asked(one, "/get_segment_rewards", query=query, prompts=texts)
        assert found["rewards"] == pytest.approx(bandit(messages, many["responses"]).tolist(), rel=1e-6, abs=1e-6)
        # One that was cut off, with nothing that closes it, is read at its last token.
        cut = asked(one, "/get_reward", query=["Q: A river"], prompts=["Q: "], messages=["Why?"], responses=["A river"])
        expected = bandit.score([bandit.encode(user("Why?"), "A river", False)]).tolist()
        assert cut["rewards"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
        (told,) = asked(one, "/rewards", prompts=["Why?"], responses=["No."])["rewards"]
        assert told["segment_ends"] == [3] and told["segment_scores"] == told["segment_changes"] == [told["score"]]


def test_what_ppo_asks_is_answered_by_the_scores_of_its_token_ids(client, scorer, tmp_path):
    """The client of --reward_url, whose render and decode are those of the policy's tokenizer."""
    tokenizer = scorer.tokenizer
    rows = [(user(PROMPTS[i % 3]), ANSWERS[i % 5], i % 4 > 0) for i in range(15)]
    ids = [scorer.encode(*row) for row in rows]
    columns = zip(*[(prompt, text, row.prompt_ids, row.response_ids, row.ended) for (prompt, text, _), row in zip(rows, ids)])

    def post(url, body):
        return asked(client, url, **body)

    answers = Answers(tmp_path, resumed=False)
    answers.begin("rollout-0")
    decode = response_text(tokenizer)
    source = EndpointSource(["/get_segment_rewards"], post, 4, answers, decode, tokenizer.decode)
    found = source.values(Responses(*columns))
    for parts, reading in zip(found, scorer.read(ids), strict=True):
        assert [number for _, number in parts] == pytest.approx([score for _, score in reading.segments], rel=1e-6, abs=1e-6)


def test_a_template_that_opens_no_answer_is_known_by_the_messages(folder, tmp_path):
    """As those of token classifiers of steps are: what another template wrote is no question for it."""
    shutil.copytree(folder / "bandit", tmp_path / "plain")
    plain = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    (tmp_path / "plain" / "chat_template.jinja").write_text(plain)
    service = ModelService(RewardScorer([str(tmp_path / "plain")]))
    text = service.encode(Row(user("Why?"), "No.")).encoded
    for prompt in (OPENED, "Why?"):
        assert service.encode(Rendered(prompt, f"{prompt}No.<|im_end|>", "No.", user("Why?"))).encoded == text
    assert service.encode(Rendered("Why?", "Why?No.<|im_end|>")).encoded == text


def test_an_empty_answer_has_ended_where_something_closes_it():
    assert Rendered("Q: ", "Q: </s>", "", user("Q")).plain().ended and not Rendered("Q: ", "Q: ", "", user("Q")).plain().ended


def test_rendered_conversations_have_the_ids_of_their_messages(scorer):
    tokenizer = scorer.tokenizer
    prompt, answer = [*user("Q?"), {"role": "assistant", "content": "A."}, *user("And?")], " Yes, the river. "
    written = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
    assert whole.endswith("<|im_end|>\n")  # what stands behind the end of turn is not scored
    ids = encode_rendered(tokenizer, written, whole)
    assert ids.prompt_ids == encode_prompt(tokenizer, prompt)
    assert ids.response_ids == encode_response(tokenizer, prompt, answer) and ids.ended
    with pytest.raises(BadRow, match="opens an answer with '<|im_start|>assistant'"):
        encode_rendered(tokenizer, "User: Q?\nAssistant: ", "User: Q?\nAssistant: A.")
    with pytest.raises(BadRow, match="does not begin with its prompt"):
        encode_rendered(tokenizer, written, whole[3:])


@given(st.text(alphabet="ab 🦊é字\n�", max_size=30))
def test_ends_in_characters_are_those_of_a_reader_of_prefixes(text):
    tokenizer = tiny_models.tiny_tokenizer()
    ids = tokenizer(text).input_ids
    ends = ends_of_tokens(ids, text, [tokenizer.decode([i]) for i in ids], tokenizer.decode)
    read = [tokenizer.decode(ids[: n + 1]) for n in range(len(ids))]
    whole = [max(n for n in range(len(text) + 1) if piece.startswith(text[:n])) for piece in read]
    if "�" not in text:
        assert ends == whole
    assert ends == sorted(ends) and (not ids or ends[-1] == len(text) or text.endswith("�"))
    # And a number at a token's end goes back to that token, where it ended a character.
    own = [n for n in range(len(ids)) if ends[n] > (ends[n - 1] if n else 0)]
    if "�" not in text:
        assert tokens_up_to(ids, text, [ends[n] for n in own], tokenizer.decode) == [n + 1 for n in own]


def test_the_steps_of_a_solution_are_those_of_the_stock_class(folder):
    """Each beginning of the solution is read by itself, at the token that ends its last step."""
    text, ends = "It runs.\n\nIt waits.\n\n\n\nThe boats run", [10, 23, 36]
    tokenizer, path = load_tokenizer(str(folder / "steps")), str(folder / "steps")
    start = tokenizer(OPENED).input_ids
    expected = [stock_score(path, [*start, *tokenizer(text[:end]).input_ids]) for end in ends]
    chances = [1 / (1 + math.exp(-logit)) for logit in expected]
    with TestClient(serve_rewards.app_of(options("--reward_model", path, "--device", "cpu"))) as client:
        (found,) = asked(client, "/rewards", prompts=["Why?"], responses=[text])["rewards"]
        assert found["segment_ends"] == ends and "tokens" not in found
        assert found["segment_scores"] == pytest.approx(expected, abs=1e-5)
        assert found["segment_probabilities"] == pytest.approx(chances, rel=1e-6, abs=1e-6)
        assert found["score"] == pytest.approx(min(chances), rel=1e-6, abs=1e-6)
        least = [0.0] + [min(chances[:k]) for k in (1, 2, 3)]
        assert found["segment_changes"] == pytest.approx([b - a for a, b in zip(least, least[1:])], rel=1e-6, abs=1e-6)
        pairs = [pytest.approx(pair, abs=1e-5) for pair in zip(ends, expected)]
        foreign = {"query": [f"Q: {text}</s>"], "prompts": ["Q: "], "messages": ["Why?"], "responses": [text]}
        for body in ({"query": [f"{OPENED}{text}<|im_end|>"], "prompts": [OPENED]}, foreign):
            told = asked(client, "/get_segment_rewards", **body)
            assert told["rewards"] == [pairs] and told["scores"] == pytest.approx([min(chances)], rel=1e-6, abs=1e-6)
            assert asked(client, "/get_reward", **body)["rewards"] == told["scores"]
        (nothing,) = asked(client, "/rewards", prompts=["Why?"], responses=[" "])["rewards"]
        assert nothing["segment_ends"] == nothing["segment_changes"] == [] and nothing["score"] == 0
        long = client.post("/rewards", json={"prompts": ["Why?"], "responses": ["The river. " * 300]})
        assert long.status_code == 422 and "response 0: the solution has" in long.json()["error"]


def test_steps_that_are_turns_are_read_from_texts(folder):
    model = load_step_model([str(folder / "turns")], "fp32", ModelSourceConfig(), "cpu")
    (logits,) = model([user("Why?")], [["It runs.\n\n", "It waits."]])
    with TestClient(serve_rewards.app_of(options("--reward_model", folder / "turns", "--device", "cpu"))) as client:
        body = {"query": [f"{OPENED}It runs.\n\nIt waits.<|im_end|>"], "prompts": [OPENED]}
        assert "send 'messages' and 'responses' too" in client.post("/get_reward", json=body).json()["error"]
        told = asked(client, "/get_segment_rewards", **body, messages=["Why?"], responses=["It runs.\n\nIt waits."])
        assert told["rewards"] == [[pytest.approx(pair, rel=1e-6, abs=1e-6) for pair in zip([10, 19], logits)]]


def test_ends_are_found_where_a_decoder_drops_the_first_space():
    words = ["▁the", "▁ri", "ver", "▁", "runs"]

    def decode(ids):
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert ends_of_tokens(range(5), "the river runs", [decode([i]) for i in range(5)], decode) == [3, 6, 9, 10, 14]


GOOD = {"prompts": ["Why?"], "responses": ["No."]}
DEEP = b'{"prompts": ' + b"[" * 5000 + b"]" * 5000 + b', "responses": []}'


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/rewards", b"", 400, "no JSON"),
        ("/rewards", b"{", 400, "no JSON"),
        ("/rewards", b"\xff\xfe", 400, "no JSON"),
        ("/rewards", DEEP, 400, "recursion limit"),
        ("/rewards", b'{"prompts": ["Why?"], "responses": [NaN]}', 400, "no JSON"),
        ("/rewards", b'{"prompts": ["\\ud800"], "responses": ["No."]}', 400, "no JSON"),
        ("/rewards", b" " * 100_001, 413, "more than 100000 bytes"),
        ("/rewards", iter([b" " * 60_000] * 2), 413, "more than 100000 bytes"),  # in chunks, of a length not told before
        ("/rewards", ["Why?"], 422, "the body: Input should be"),
        ("/rewards", {"prompts": ["Why?"]}, 422, "responses: Field required"),
        ("/rewards", {**GOOD, "temperature": 1}, 422, "temperature: Extra inputs"),
        ("/rewards", {"prompts": ["Why?"], "responses": [7]}, 422, "responses[0]"),
        ("/rewards", {"prompts": "Why?", "responses": ["No."]}, 422, "prompts: Input should be a valid list"),
        ("/rewards", {**GOOD, "ended": ["yes"]}, 422, "ended[0]"),
        ("/rewards", {"prompts": ["Why?"] * 2, "responses": ["No."]}, 422, "'prompts': 2, 'responses': 1"),
        ("/rewards", {"prompts": [[{"role": "wizard", "content": "Q"}]], "responses": ["No."]}, 422, "role 'wizard'"),
        ("/rewards", {"prompts": [[{"role": "tool", "content": "Q"}]], "responses": ["No."]}, 422, "unknown role: tool"),
        ("/rewards", {"prompts": [[]], "responses": ["No."]}, 422, "an empty list"),
        ("/rewards", {"prompts": ["Why?"] * 101, "responses": ["No."] * 101}, 413, "at most 100"),
        ("/rewards", {"prompts": ["Why?\x1b[2J\n"], "responses": ["\u202e"], "x\x1b": 1}, 422, "x‹U+001B›: Extra"),
        ("/get_reward", {"query": ["Q A"], "labels": [""]}, 422, "'prompts' is missing"),
        ("/get_reward", {"query": ["Q A"], "prompts": ["Q "]}, 422, "not of this model's chat template"),
        ("/get_reward", {"query": ["Q A"], "prompts": ["Q "], "messages": [user("Q")]}, 422, "send 'messages' and 'responses'"),
        ("/get_reward", {"query": ["Q"], "prompts": ["Q", "R"]}, 422, "'query': 1, 'prompts': 2"),
        ("/get_rewards", GOOD, 404, "there are POST /rewards"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(client, path, body, status, reason):
    sent = {"json": body} if isinstance(body, (dict, list)) else {"content": body}
    answer = client.post(path, **sent)
    assert answer.status_code == status and reason in answer.json()["error"]
    assert asked(client, "/rewards", **GOOD)["rewards"][0]["score"] != 0


def test_many_random_bodies_end_nothing(client):
    whole = json.dumps({"prompts": ["Why?"], "responses": ["No."]}).encode()
    statuses = {client.post("/rewards", content=whole[:cut] + whole[cut + 1 :]).status_code for cut in range(len(whole))}
    assert statuses <= {200, 400, 422} and len(statuses) > 1
    assert client.get("/health").json()["status"] == "ok"


def test_nothing_asked_is_nothing_answered(client):
    assert asked(client, "/rewards", prompts=[], responses=[]) == {"rewards": []}
    assert client.put("/rewards", json=GOOD).status_code == 405


def test_health_and_version_tell_what_is_served(client, folder):
    assert client.get("/health").json()["scored"] > 0
    found = client.get("/version").json()
    assert found["scorer"] == str(folder / "segments") and found["entropy_threshold"] == THRESHOLD
    assert found["sft_model"] == str(folder / "sft") and found["limits"] == LIMITS._asdict() and found["denserl"]
    assert "/get_reward" in client.get("/openapi.json").json()["paths"]


def test_the_token_is_asked_for_and_never_told(scorer, caplog):
    with TestClient(make_app(ModelService(scorer), LIMITS, token="s3crét")) as client:
        in_url = "Basic " + base64.b64encode("anyone:s3crét".encode()).decode()
        good = ["Bearer s3crét".encode(), in_url.encode()]
        for header in [None, b"", b"Bearer", b"Bearer wrong", b"Basic !", b"Token s3cr\xe9t", b"Bearer \xff\xfe"]:
            headers = {} if header is None else {"Authorization": header}
            answer = client.post("/rewards", json=GOOD, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/version").status_code == 401 and client.get("/health").status_code == 200
        assert [client.post("/rewards", json=GOOD, headers={"Authorization": header}).status_code for header in good] == [
            200
        ] * 2
    assert "401" in caplog.text and "s3cr" not in caplog.text


def of_letters(prompts, responses, labels=None):
    """A number for each, or one for each half of a response with a space, or whether it is the label; some make it fail."""
    if labels is not None:
        return [float(text == label) for text, label in zip(responses, labels, strict=True)]
    if "fail" in responses:
        raise ValueError("a letter too many\x1b[0m")
    if "odd" in responses:
        return [float("nan")] * len(responses)
    return [[(text.index(" "), 1.0), (len(text), 0.5)] if " " in text else len(text) for text in responses]


def test_a_function_is_served(caplog):
    with TestClient(make_app(FunctionService(f"{__name__}:of_letters"), LIMITS)) as client:
        found = asked(client, "/rewards", prompts=["Q"] * 2, responses=["one two", "three"])["rewards"]
        assert [row["score"] for row in found] == [1.5, 5.0] and "tokens" not in found[0]
        assert found[0]["segment_ends"] == [3, 7] and found[0]["segment_scores"] == found[0]["segment_changes"] == [1.0, 0.5]
        body = {
            "query": ["Q one two", "Q three"],
            "prompts": ["Q ", "Q "],
            "responses": ["one two", "three"],
            "messages": ["Q", "Q"],
        }
        assert asked(client, "/get_segment_rewards", **body)["rewards"] == [[[3, 1.0], [7, 0.5]], 5.0]
        assert asked(client, "/get_reward", **body)["rewards"] == [1.5, 5.0]
        assert asked(client, "/get_reward", **body, labels=["", None])["rewards"] == [1.5, 5.0]
        assert asked(client, "/get_reward", **body, labels=["", "three"])["rewards"] == [0, 1]
        assert asked(client, "/rewards", prompts=["Q"], responses=["x"], labels=["x"])["rewards"][0]["score"] == 1
        del body["responses"]
        assert "send 'messages' and 'responses' too" in client.post("/get_reward", json=body).json()["error"]
        for text, reason in (
            ("fail", "raised ValueError: a letter too many‹U+001B›[0m for the response 'fail'"),
            ("odd", "returned nan for"),
        ):
            answer = client.post("/rewards", json={"prompts": ["Q"], "responses": [text]})
            assert answer.status_code == 500 and reason in answer.json()["error"]
        assert asked(client, "/rewards", prompts=["Q"], responses=["four"])["rewards"][0]["score"] == 4


class Slow:
    """Scores the length of a response, when it is let; fails on some, and remembers what it was given together."""

    logits = True

    def __init__(self):
        self.passes, self.begun, self.let = [], threading.Event(), threading.Event()

    def encode(self, row):
        row = row if isinstance(row, Row) else row.plain()
        if row.response == "unwritable":
            raise BadRow("it cannot be written")
        return row.response

    def score(self, encoded):
        self.begun.set()
        assert self.let.wait(20)
        self.passes.append(list(encoded))
        if "fail" in encoded:
            raise UserError("it fails")
        return [Scored(float("inf" if text == "far" else len(text)), None, None, text, 1) for text in encoded]

    def describe(self):
        return {}


def test_waiting_requests_are_scored_together_and_fail_alone():
    service = Slow()
    worker = Worker(service, most=5, max_waiting=8)
    worker.start()

    def submit(*texts):
        return worker.submit([Row(user("Q"), text) for text in texts])

    first = submit("a")
    assert service.begun.wait(20)
    waiting = [submit("bb", "cc"), submit("unwritable"), submit("fail"), submit("d"), submit("far"), submit("eee")]
    given_up = submit("f")
    given_up.cancel()
    with pytest.raises(Busy, match="8 responses wait"):
        submit("g")
    service.let.set()
    worker.close()
    assert [row.score for row in first.result(0)] == [1] and [row.score for row in waiting[0].result(0)] == [2, 2]
    assert [waiting[3].result(0)[0].score, waiting[5].result(0)[0].score] == [1, 3]
    with pytest.raises(BadRow, match="response 0: it cannot be written"):
        waiting[1].result(0)
    with pytest.raises(UserError, match="it fails"):
        waiting[2].result(0)
    with pytest.raises(UserError, match="response 0 is not finite"):
        waiting[4].result(0)
    # A pass has at most five rows; one that fails is repeated request by request.
    assert service.passes == [["a"], ["bb", "cc", "fail", "d"], ["bb", "cc"], ["fail"], ["d"], ["far", "eee"]]
    with pytest.raises(Busy):
        submit("late")


def test_where_scores_are_logits_probabilities_are_told_too():
    service = Slow()
    service.let.set()
    with TestClient(make_app(service, LIMITS)) as client:
        (found,) = asked(client, "/rewards", prompts=["Q"], responses=["ab"])["rewards"]
        assert found["score"] == 2 and found["segment_probabilities"] == pytest.approx([0.88079708])  # 1 / (1 + e^-2)
        body = {"query": ["Q ab"], "prompts": ["Q "], "messages": [user("Q")], "responses": ["ab"]}
        found = asked(client, "/get_reward", **body)
        assert found["rewards"] == found["scores"] == [2.0]
        answer = client.post("/rewards", json={"prompts": ["Q"], "responses": ["far"]})
        assert answer.status_code == 500 and "not finite" in answer.json()["error"]


def options(*words):
    return parse(serve_rewards.Options, "serve-rewards", [str(word) for word in words])


def refused(*words):
    with pytest.raises(UserError) as error:
        serve_rewards.run(options(*words))
    return f"{error.value.found} {error.value.fix}"


def test_mistakes_at_the_start_are_told(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    function = ("--reward_function", "json:dumps")
    assert "neither" in refused("--port", 0)
    assert "has no effect with --reward_model" in refused(*function, "--reward_model", folder / "segments")
    assert "has no effect without --reward_model" in refused(*function, "--entropy_threshold", 2)
    assert "NO_SUCH_TOKEN: that variable is not set" in refused(*function, "--token_env", "NO_SUCH_TOKEN")
    assert "cannot listen at port 0 of no.such.host.invalid" in refused(
        *function, "--host", "no.such.host.invalid", "--port", 0
    )
    assert "no module named" in refused("--reward_function", "no_such_module:f", "--port", 0).lower()
    assert "no_such_folder" in refused("--reward_model", "no_such_folder/x", "--port", 0, "--device", "cpu")
    with contextlib.closing(bound_socket("127.0.0.1", 0)) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen at port {port} of 127.0.0.1: Address already in use" in refused(*function, "--port", port)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "fastapi and uvicorn is not installed pip install denserl[serve]" in refused(*function)


def test_a_server_starts_answers_and_stops_when_it_is_told(tmp_path):
    """A process of its own: a request at hand is answered when it is told to stop, and it ends well."""
    (tmp_path / "mine.py").write_text(
        "import time\n\n\ndef slow(prompts, responses):\n"
        "    time.sleep(0.5 if responses == ['slow'] else 0)\n    return [len(text) for text in responses]\n"
    )
    command = [sys.executable, "-m", "denserl.cli.main", "serve-rewards", "--reward_function", "mine:slow", "--port", "0"]
    environment = {**os.environ, "MY_TOKEN": "s3cret", "PYTHONPATH": str(Path(__file__).parents[2])}
    kw = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path, "env": environment}
    with subprocess.Popen([*command, "--token_env", "MY_TOKEN"], **kw) as server:
        url = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0]

        def ask(text, token="s3cret"):
            body = json.dumps({"prompts": ["Q"], "responses": [text]}).encode()
            request = urllib.request.Request(f"{url}/rewards", body, {"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)["rewards"][0]["score"]

        assert ask("four") == 4
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask("four", "wrong")
        with concurrent.futures.ThreadPoolExecutor() as threads:
            begun = threads.submit(ask, "slow")
            deadline = threading.Event()
            deadline.wait(0.2)
            server.send_signal(signal.SIGTERM)
            assert begun.result(30) == 4
        said = server.communicate(timeout=30)[0]
    assert server.returncode == 0 and said.endswith("stopped\n") and "Traceback" not in said and "s3cret" not in said
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=1):
        pass
