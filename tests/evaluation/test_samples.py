"""The file of samples: what is drawn depends on seed, prompt and sample alone, and a stopped run goes on from what is there."""

import functools
import json
import os
import signal
import time

import numpy as np
import pytest

from denserl.errors import Stopped, UserError
from denserl.evaluation.samples import Prompt, Sample, SampleFile, draw_samples
from denserl.rollouts.base import Rollouts
from denserl.streams import Purpose, stream

PROMPTS = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
SETTINGS = {"seed": 7, "temperature": 0.5}


def sampler(prompts, streams) -> Rollouts:
    """Responses of one number each, which its stream of random numbers says."""
    responses = [[int(np.random.default_rng(stream).integers(10**6))] for stream in streams]
    return Rollouts(prompts, responses, [response[0] % 2 == 0 for response in responses])


def wanted(prompts: int, samples: int) -> dict:
    """So many samples of the first prompts."""
    return {(row, number): Prompt(PROMPTS[row], [row + 1]) for row in range(prompts) for number in range(samples)}


def draw(path, samples=2, at_once=2, sampler=sampler, settings=SETTINGS) -> dict:
    """Sample what is missing in a file, and give all that it then has."""
    file = SampleFile(path, settings)
    asked = wanted(len(PROMPTS), samples)
    done = file.read(asked)
    missing = {key: prompt for key, prompt in asked.items() if key not in done}
    numbers = functools.partial(stream, 7, Purpose.BEST_OF_N)
    return done | draw_samples(
        file, missing, sampler, lambda ids: f"<{ids[0]}>", numbers=lambda key: numbers(*key), at_once=at_once
    )


def test_samples_are_a_function_of_seed_prompt_and_number(tmp_path):
    found = draw(tmp_path / "s.jsonl")
    assert sorted(found) == [(row, number) for row in range(3) for number in range(2)]
    for (row, number), sample in found.items():
        drawn = int(np.random.default_rng(stream(7, Purpose.BEST_OF_N, row, number)).integers(10**6))
        assert sample == Sample(row, number, PROMPTS[row], f"<{drawn}>", drawn % 2 == 0, [row + 1], [drawn])
    assert draw(tmp_path / "other.jsonl", at_once=100) == found
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [Sample(**line) for line in lines] == [found[key] for key in sorted(found)]


def test_what_is_there_is_not_sampled_again(tmp_path):
    whole, path = draw(tmp_path / "whole.jsonl"), tmp_path / "s.jsonl"
    draw(path)
    lines = path.read_text().splitlines(keepends=True)
    # As a kill leaves it: some rows, and the beginning of one.
    path.write_text("".join(lines[:3]) + lines[3][:20])
    asked = []

    def counting(prompts, streams):
        asked.extend(streams)
        return sampler(prompts, streams)

    assert draw(path, sampler=counting) == whole
    assert [numbers.spawn_key[-2:] for numbers in asked] == [(1, 1), (2, 0), (2, 1)]
    assert draw(path, sampler=None) == whole
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # More samples of each prompt are added to those there are.
    assert draw(path, samples=3).items() > whole.items()


def test_a_file_of_which_nothing_is_whole_is_begun_anew(tmp_path):
    path = tmp_path / "s.jsonl"
    found = draw(path)
    path.write_text(path.read_text()[:15])
    assert draw(path, settings={"seed": 8}) == found
    with pytest.raises(UserError, match="seed: 8, now 7"):
        draw(path)


def test_a_request_to_stop_keeps_what_was_being_sampled(tmp_path):
    def signalled(prompts, streams):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # another thread hears it
        return sampler(prompts, streams)

    path = tmp_path / "s.jsonl"
    with pytest.raises(Stopped, match="stopped with 4 responses still to sample; .*s.jsonl keeps the others"):
        draw(path, sampler=signalled)
    assert len(path.read_text().splitlines()) == 2
    assert draw(path) == draw(tmp_path / "whole.jsonl")


def test_other_samples_are_refused_and_left_alone(tmp_path):
    path = tmp_path / "s.jsonl"
    draw(path)
    with pytest.raises(UserError, match="temperature: 0.5, now 0.9"):
        draw(path, settings=SETTINGS | {"temperature": 0.9})
    row = json.loads(path.read_text().splitlines()[0])
    for content, found in (
        (json.dumps(row | {"prompt": PROMPTS[1]}) + "\n", "samples of id 0 are of another prompt"),
        ('{"id": 0}\n', "holds a row that is no sample"),
        ("what is this?\n", "holds a row that is no sample"),
        ("3\n", "holds a row that is no sample"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=found):
            draw(path)
        assert path.read_text() == content


def test_a_file_of_something_else_is_not_touched(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("a line\nand half a")
    with pytest.raises(UserError, match="does not say what notes.txt was sampled with"):
        draw(path)
    assert path.read_text() == "a line\nand half a"


def test_samples_of_prompts_beyond_the_limit_are_left_out(tmp_path):
    draw(tmp_path / "s.jsonl")
    assert {row for row, _ in SampleFile(tmp_path / "s.jsonl", SETTINGS).read(wanted(2, 2))} == {0, 1}
