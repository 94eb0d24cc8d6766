"""Runs of PPO on each kind of source of rewards, and on sums of them."""

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from reward_server import serving, vowels
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from denserl.cli import train_ppo
from denserl.cli.options import parse
from denserl.errors import UserError
from denserl.models.tokenizers import load_tokenizer
from denserl.trainer import ppo_sources
from denserl.trainer.ppo_models import LastBatch
from denserl.trainer.ppo_trainer import PPOTrainer
from denserl.trainer.start import with_defaults
from denserl.trainer.trackers import read_metrics

TESTS = Path(__file__).parent.parent
WITHOUT_MODEL = {"reward_model": None, "entropy_threshold": None}


@pytest.fixture(scope="module")
def other(world, tmp_path_factory):
    """A language model with another model's weights, and the policy's tokenizer."""
    return tiny_models.save_language_model(tmp_path_factory.mktemp("other") / "model", seed=7)


def first_samples(output) -> list[dict]:
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


def logprobs(folder, prompt: list[int], ids: list[int]) -> list[float]:
    """Of each token, by the stock class."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


def folded(values: list[float], ended: bool) -> list[float]:
    """With the end of turn's share at the token before it."""
    return [*values[:-2], values[-2] + values[-1], 0.0] if ended and len(values) > 1 else values


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.long), 0.7])
def test_an_implicit_reward_is_beta_times_log_ratios_at_temperature_1(temperature, ppo, scored, world, other):
    ppo(**WITHOUT_MODEL, implicit_reward=other, implicit_beta=0.3, temperature=temperature)
    ((responses, found),) = scored
    for row, (prompt, ids) in enumerate(zip(responses.prompt_ids, responses.response_ids, strict=True)):
        both = zip(logprobs(other, prompt, ids), logprobs(world.sft, prompt, ids), strict=True)
        expected = folded([0.3 * (phi - ref) for phi, ref in both], responses.ended[row])
        assert found.rewards[row, : len(ids)].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_policy_beside_itself_earns_nothing_and_a_reference_of_its_own_is_read(ppo, scored, world, other):
    """The very files of the reference, once in the place of the model, and once with another reference."""
    ppo(**WITHOUT_MODEL, implicit_reward=world.sft)
    ppo("other", **WITHOUT_MODEL, implicit_reward=other, implicit_reference=other, reward_level="bandit")
    ppo("both", **WITHOUT_MODEL, implicit_reward=world.sft, implicit_reference=other)
    (_, same), (_, others), (_, apart) = scored
    assert same.rewards.count_nonzero() == others.rewards.count_nonzero() == 0
    assert apart.rewards.abs().max() > 0.1


def test_the_reference_is_run_once_for_two_who_ask():
    asked = []
    forward = LastBatch(lambda ids, temperature: asked.append(temperature) or (ids * temperature, None))
    ids = torch.ones(2, 3)
    assert forward(ids, temperature=1.0) is forward(ids) and asked == [1.0]
    assert forward(ids, temperature=0.5)[0].sum() == 3 and asked == [1.0, 0.5]
    forward(ids.clone(), temperature=0.5)
    assert len(asked) == 3


def test_prefix_differences_add_up_to_what_the_response_adds_to_the_prompt(ppo, scored, world, tmp_path):
    """Of a classifier from elsewhere, which is read where the template has written its last token."""
    stock = AutoModelForSequenceClassification.from_pretrained(world.reward_model, dtype=torch.float32).eval()
    del stock.config.segment_reward
    tokenizer = load_tokenizer(str(world.sft))
    stock.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    output = ppo(reward_model=tmp_path / "rm", prefix_differences=True, entropy_threshold=None, samples_logged=8)
    ((responses, found),) = scored
    line_break = tokenizer("\n", add_special_tokens=False).input_ids

    def score(ids: list[int]) -> float:
        with torch.no_grad():
            return stock(torch.tensor([ids])).logits.item()

    for row, (prompt, ids) in enumerate(zip(responses.prompt_ids, responses.response_ids, strict=True)):
        expected = score([*prompt, *ids, *(line_break if responses.ended[row] else [])]) - score(prompt)
        assert found.rewards[row].sum().item() == pytest.approx(expected, abs=1e-3)
        first = score([*prompt, ids[0]]) - score(prompt)
        assert len(ids) < 3 or found.rewards[row, 0].item() == pytest.approx(first, abs=1e-3)
    assert any(responses.ended) and not all(responses.ended)
    assert sum(map(len, (sample["segments"] for sample in first_samples(output)))) > 16


def test_prefix_differences_are_of_a_model_of_whole_responses(ppo):
    with pytest.raises(UserError, match="rm was trained to score the segments of a response"):
        ppo(prefix_differences=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implicit_beta": 0.1}, "--implicit_beta 0.1 has no effect without --implicit_reward"),
        ({"implicit_reference": "m"}, "--implicit_reference m has no effect without --implicit_reward"),
        ({"prefix_differences": True, **WITHOUT_MODEL}, "--prefix_differences has no effect without --reward_model"),
        ({"prefix_differences": True, "length_norm": True}, "--length_norm True has no effect with --prefix_differences"),
        ({**WITHOUT_MODEL, "implicit_reward": "m", "read_at": "last_token"}, "--read_at last_token has no effect without"),
    ],
)
def test_options_of_a_source_that_is_not_there(options, message, ppo):
    with pytest.raises(UserError, match=message):
        ppo(**options)


def test_a_weight_of_0_leaves_the_first_source_alone(ppo, scored, world, other, tmp_path):
    """To the bit; and weights of 1 give the sum."""
    ppo("one")
    argv = world.argv(tmp_path / "weighted", implicit_reward=other)
    tiny_models.run_command(train_ppo, "train-ppo", [*argv, "--reward_weights", "1", "0"])
    ppo("two", implicit_reward=other)
    alone, weighted, both = (found for _, found in scored)
    assert torch.equal(weighted.rewards, alone.rewards)
    assert torch.equal(both.rewards, both.sources[0].tokens + both.sources[1].tokens)
    assert torch.equal(both.sources[0].tokens, alone.rewards) and not torch.equal(both.rewards, alone.rewards)


def policy(output) -> bytes:
    return (output / "model.safetensors").read_bytes()


@pytest.fixture
def other_process():
    """The address of a server in another process, of the function `vowels`."""
    program = [sys.executable, str(TESTS / "reward_server.py")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as running:
        yield running.stdout.readline().strip()
        running.kill()


def test_a_server_is_as_good_as_the_function_also_after_it_failed(ppo, scored, other_process, monkeypatch):
    """The policy of a run that a failing server ended, and that went on with another one, is that of the function, to the bit.

    No response is asked about twice: not those that were answered before the failure, in the same rollout or before.
    """
    options = {**WITHOUT_MODEL, "iterations": 3, "save_every": 1}
    undisturbed = ppo("function", reward_function="reward_server:vowels", **options)
    sampled = [text for responses, _ in scored for text in responses.texts]

    def failing(body):
        return (400, {}, b"out of order") if len(asked) > 4 else {"rewards": vowels(None, body["responses"])}

    url = {"reward_url_batch": 3, "reward_url_timeout": 20}
    with serving(failing) as asked, pytest.raises(UserError, match=f"--reward_url {asked.url} answered 400: 'out of order'"):
        ppo("endpoint", reward_url=asked.url, **url, **options)
    answered = [text for body in asked[:4] for text in body["responses"]]
    seen, post = [], ppo_sources.post_json
    monkeypatch.setattr(ppo_sources, "post_json", lambda client, *args, **kw: seen.append(args) or post(client, *args, **kw))
    resumed = ppo("endpoint", reward_url=other_process, resume=True, **url, **options)
    assert policy(resumed) == policy(undisturbed)
    assert answered + [text for _, body in seen for text in body["responses"]] == sampled
    assert len(list((resumed / "answers").iterdir())) <= 3
    rows = read_metrics(resumed / "metrics.jsonl"), read_metrics(undisturbed / "metrics.jsonl")
    assert [row["reward"] for row in rows[0]] == [row["reward"] for row in rows[1]]


def test_options_that_are_newer_than_a_checkpoint_did_what_they_do_by_default(world, tmp_path):
    options = parse(train_ppo.Options, "train-ppo", world.argv(tmp_path))
    now = json.loads(json.dumps(dataclasses.asdict(options)))
    before = {name: value for name, value in now.items() if name not in ("policy_tokens", "prefix_differences", "adam_betas")}
    del now["resume"], before["resume"]
    assert with_defaults(before, train_ppo.Options) == now
    assert with_defaults({**before, "policy_tokens": 0.2}, train_ppo.Options) == now | {"policy_tokens": 0.2}


def test_a_function_that_says_what_a_reward_model_said_makes_the_same_policy(ppo, scored, monkeypatch):
    ways = {"entropy_threshold": None, "assignment": "end", "normalizer": "none", "agg_func": "avg", "iterations": 2}
    of_model = ppo("model", reward_level="bandit", **ways)
    numbers = [found.sources[0].raw[:, 0].tolist() for _, found in scored]
    monkeypatch.setattr(tiny_models, "replayed", lambda prompts, texts: numbers.pop(0), raising=False)
    of_function = ppo("function", reward_model=None, reward_function="tiny_models:replayed", **ways)
    assert policy(of_function) == policy(of_model) and numbers == []


def test_an_outcome_is_paid_at_the_last_token_with_its_weight(ppo, scored, other):
    output = ppo(**WITHOUT_MODEL, implicit_reward=other, outcome_function="reward_server:vowels", outcome_weight=2.0)
    ((responses, found),) = scored
    for row, (text, ids) in enumerate(zip(responses.texts, responses.response_ids, strict=True)):
        (said,) = vowels(None, [text])
        total = said if isinstance(said, float) else sum(number for _, number in said)
        expected = found.sources[0].tokens[row].clone()
        expected[len(ids) - 1] += 2 * total
        assert found.rewards[row].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert read_metrics(output / "metrics.jsonl")[-1]["reward/outcome_function"] != 0


@pytest.mark.long
def test_an_outcome_alone_is_a_source(ppo, scored):
    ppo(**WITHOUT_MODEL, outcome_function="tiny_models:letters")
    ((responses, found),) = scored
    assert found.rewards.sum(1).tolist() == pytest.approx(tiny_models.letters(responses.prompts, responses.texts), rel=1e-5)


def test_the_server_of_the_examples(ppo, scored):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = [sys.executable, str(TESTS.parent / "examples/my_server.py"), port]
    # It may be asked before it listens.
    with subprocess.Popen(program, stderr=subprocess.DEVNULL) as server:
        ppo(**WITHOUT_MODEL, reward_url=f"http://127.0.0.1:{port}/", reward_url_tries=9)
        server.kill()
    ((responses, found),) = scored
    assert found.rewards.sum(1).tolist() == [-len(text.split()) for text in responses.texts]


def test_what_a_server_says_beside_rewards_is_logged(ppo):
    def answer(body):
        texts = body["responses"]
        return {"rewards": [1.0] * len(texts), "extra_logs": {"length": [len(text) for text in texts]}}

    with serving(answer) as asked:
        output = ppo(**WITHOUT_MODEL, reward_url=asked.url)
    (row,) = read_metrics(output / "metrics.jsonl")
    assert row["reward_url/length"] == pytest.approx(sum(map(len, asked.responses)) / 8) and row["reward"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_url": "host/x"}, "--reward_url host/x is no address of a server"),
        ({"reward_url_tries": 3}, "--reward_url_tries 3 has no effect without --reward_url"),
        ({"outcome_weight": 2.0}, "--outcome_weight 2.0 has no effect without --outcome_function"),
        ({"outcome_function": "nowhere:f"}, "--outcome_function nowhere:f: ModuleNotFoundError"),
        ({"reward_url": "http://127.0.0.1:9/", "reward_url_token_env": "NO_SUCH"}, "variable NO_SUCH is not set"),
    ],
)
def test_mistakes_in_servers_and_outcomes(options, message, ppo):
    with pytest.raises(UserError, match=message):
        ppo(**{**WITHOUT_MODEL, "reward_function": "tiny_models:letters", **options})


def test_the_policy_loss_is_of_the_tokens_of_highest_entropy(ppo, monkeypatch):
    """Of the one step of an iteration, whose ratios are 1: minus the mean advantage of what counts, response by response."""
    kept, update = [], PPOTrainer.update

    def keep(self, responses, experience):
        kept.append(experience)
        return update(self, responses, experience)

    monkeypatch.setattr(PPOTrainer, "update", keep)
    output = ppo(policy_tokens=0.3)
    ((experience,), (row,)) = kept, read_metrics(output / "metrics.jsonl")
    means = [a[m].mean().item() for a, m in zip(experience.advantages, experience.policy_mask, strict=True) if m.any()]
    assert row["policy_loss"] == pytest.approx(-sum(means) / len(means), abs=1e-5)
    tokens = experience.mask.sum().item()
    assert row["policy_tokens"] * tokens == pytest.approx(-(-3 * tokens // 10)) and row["policy_entropy"] > 4
    every = [a[m].mean().item() for a, m in zip(experience.advantages, experience.mask, strict=True)]
    assert row["policy_loss"] != pytest.approx(-sum(every) / len(every), abs=1e-2)


def same_words(prompts: list, responses: list[str], labels: list[str]) -> list[float]:
    """1 for the label of a prompt's own question."""
    return [float(label == f"of {prompt[-1]['content']}") for prompt, label in zip(prompts, labels, strict=True)]


def test_functions_are_given_the_right_answers_of_their_prompts(ppo, world, tmp_path):
    rows = [json.loads(line) for line in world.prompts.read_text().splitlines()]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row | {"gold": f"of {row['prompt']}"}) + "\n" for row in rows))
    name = f"{__file__}:same_words"
    held_out = {"eval_prompts": path, "eval_every": 1, "true_reward": name}
    output = ppo(**WITHOUT_MODEL, data=path, label_column="gold", reward_function=name, outcome_function=name, **held_out)
    last = read_metrics(output / "metrics.jsonl")[-1]
    assert (last["reward"], last["eval_true_reward"]) == (2.0, 1.0)  # the function, and the outcome on top of it
    with pytest.raises(UserError, match="raised TypeError: .*labels"):
        ppo("without", **WITHOUT_MODEL, data=path, reward_function=name)
    with pytest.raises(UserError, match="--label_column gold has no effect without --reward_function"):
        ppo("unused", label_column="gold")
