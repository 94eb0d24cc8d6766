"""A judge on this machine: what it is shown, its answers in any batch, first log-probabilities, where it cannot be asked."""

import random
import shutil

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from denserl.config import DeviceConfig
from denserl.errors import UserError
from denserl.judging.contract import Decoding, Reply, Request
from denserl.judging.local import LocalModel

WORDS = "The kettle hums in the small kitchen while the rain falls on the garden and the boats wait there".split()
ASKED = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Which one, the kettle or the river?"}]
DRAWN = Decoding(6, 1.0, 0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that stops now and then: a third of its tokens end an answer."""
    return tiny_models.save_language_model(tmp_path_factory.mktemp("judge"), stops=100)


def judge(folder, batch_size=3, source=None, **kw) -> LocalModel:
    return LocalModel(str(folder), source or DeviceConfig(), torch.device("cpu"), "fp32", batch_size, **kw)


def questions(count: int, decoding: Decoding) -> list[Request]:
    rng = random.Random(1)
    texts = (" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count))
    return [Request([{"role": "user", "content": text}], decoding, number % 2) for number, text in enumerate(texts)]


def rendered(folder, messages) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]


def test_at_temperature_0_it_says_what_is_most_likely(folder):
    """A loop over whole rows, in transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids, ends = rendered(folder, ASKED), model.generation_config.eos_token_id
    start = ids.shape[1]
    while ids.shape[1] < start + 6 and (ids.shape[1] == start or ids[0, -1] not in ends):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    answer = ids[0, start:].tolist()
    expected = Reply(tokenizer.decode(answer, skip_special_tokens=True), answer[-1] not in ends, start, len(answer))
    assert list(judge(folder).replies([Request(ASKED, Decoding(6))])) == [(0, expected)]
    assert judge(folder).prompt_tokens(ASKED) == start


def test_an_answer_is_the_same_in_any_batch_beside_any_others(folder):
    asked = [*questions(30, DRAWN), *questions(5, Decoding(4)), *questions(5, Decoding(4, 0.5, top_logprobs=3))]
    found = dict(judge(folder).replies(asked))
    assert sorted(found) == list(range(40)) and {reply.cut for reply in found.values()} == {True, False}
    again = dict(judge(folder, 64).replies(asked))
    assert {number: reply[:4] for number, reply in again.items()} == {number: reply[:4] for number, reply in found.items()}
    for number in (3, 17, 38):
        ((_, alone),) = judge(folder).replies([asked[number]])
        assert alone[:4] == found[number][:4]


def test_samples_and_questions_have_random_numbers_of_their_own(folder):
    """Also questions that the model reads alike: the first token of each is drawn from one distribution."""
    samples = [Request(ASKED, Decoding(1, 1.0), sample) for sample in range(30)]
    alike = [Request([ASKED[0], {**ASKED[1], "number": number}], Decoding(1, 1.0)) for number in range(30)]
    for asked in (samples, alike):
        assert len({reply.text for _, reply in judge(folder, 16).replies(asked)}) > 8


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_first_log_probabilities_are_those_of_the_logits(folder, attention):
    """Of softmax(logits) whatever the temperature, against transformers, row by row."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = questions(7, Decoding(1, 0.5, top_logprobs=4))
    found = dict(judge(folder, source=DeviceConfig(attention=attention)).replies(asked))
    for number, request in enumerate(asked):
        with torch.no_grad():
            logprobs = model(rendered(folder, request.messages)).logits[0, -1].log_softmax(0)
        best = logprobs.topk(4)
        assert [token for token, _ in found[number].first] == [tokenizer.decode([i]) for i in best.indices.tolist()]
        assert [each for _, each in found[number].first] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_more_log_probabilities_than_there_are_tokens(folder):
    ((_, reply),) = judge(folder).replies([Request(ASKED, Decoding(1, top_logprobs=10_000))])
    assert sum(torch.tensor([number for _, number in reply.first]).exp().tolist()) == pytest.approx(1, abs=1e-5)


def test_nothing_is_loaded_before_it_is_asked(folder, tmp_path):
    """Its version is that of its files, and tells another precision, chat template or system prompt, and other weights."""
    found, template = judge(folder), tmp_path / "template.jinja"
    template.write_text(AutoTokenizer.from_pretrained(folder).chat_template + "{# other #}")
    assert list(found.replies([])) == [] and found.prompt_tokens(ASKED) > 0
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert judge(moved).version == found.version and "model" not in vars(found)
    other = tiny_models.save_language_model(tmp_path / "other", seed=1, stops=100)
    versions = [
        found.version,
        LocalModel(str(folder), DeviceConfig(), torch.device("cpu"), "bf16", 3).version,
        judge(folder, template={"file": str(template)}).version,
        judge(folder, template={"system_prompt": "Be strict."}).version,
        judge(other).version,
    ]
    assert len(set(versions)) == 5


def test_a_question_for_which_there_are_no_positions(folder):
    long = Request([{"role": "user", "content": "river " * 3000}], Decoding(6))
    with pytest.raises(UserError, match="has positions for 1024 tokens; a question with its answer has up to \\d{4,}") as error:
        list(judge(folder).replies([*questions(2, DRAWN), long]))
    assert "`judge_max_new_tokens`" in error.value.fix


def test_messages_that_its_chat_template_refuses(folder, tmp_path):
    template = tmp_path / "template.jinja"
    own = AutoTokenizer.from_pretrained(folder).chat_template
    template.write_text("{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{%- endif %}" + own)
    with pytest.raises(UserError, match="cannot be shown messages of system user: .*no system here") as error:
        judge(folder, template={"file": str(template)}).prompt_tokens(ASKED)
    assert "`judge_template`" in error.value.fix


def test_what_is_no_language_model(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        _ = judge(tmp_path / "nowhere").version
