"""ZeRO-3 on two ranks that have different amounts of work: no rank waits for ever, and the numbers are those of one process.

Every run ends within a time limit or is killed. DeepSpeed keeps small parameters whole; here each is gathered at every use.
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from rank_hooks import count_gathers, each, gather_every_parameter, note_shares, small_chunks, uneven_responses
from ranks import deviations, run
from test_parity import METRICS, WEIGHTS

from denserl.models.reward_models import load_reward_model


def same_numbers(one, other) -> None:
    found = deviations(one, other)
    assert not {key: value for key, value in found.items() if value > (WEIGHTS if key.endswith(".safetensors") else METRICS)}


def test_one_rank_has_long_responses_and_the_other_ends_at_once(trainings, world, tmp_path):
    """Different numbers of positions, and of chunks of them; gradient checkpointing; one held-out prompt for two ranks.

    However long the responses are, weights are gathered once for a rollout.
    """
    (tmp_path / "one.jsonl").write_text(world.prompts.read_text().splitlines()[0])
    options = {
        "micro_batch_size": 4,
        "iterations": 2,
        "max_new_tokens": 24,
        "gradient_checkpointing": True,
        "eval_prompts": tmp_path / "one.jsonl",
        "eval_every": 1,
    }
    one = run(trainings["ppo"], tmp_path / "one", before=uneven_responses, **options)
    counted = partial(count_gathers, tmp_path / "notes")
    bent = partial(each, uneven_responses, small_chunks, gather_every_parameter, counted)
    two = run(trainings["ppo"], tmp_path / "two", ranks=2, before=bent, zero_stage=3, **options)
    same_numbers(one, two)
    lengths = [json.loads(line)["response_length"] for line in (one / "metrics.jsonl").read_text().splitlines()[1:]]
    assert lengths == [(24 + 1) / 2] * 2
    long, short = ([json.loads(line) for line in (tmp_path / f"notes.{rank}").read_text().splitlines()] for rank in (0, 1))
    # Two rollouts; before, between and after them those of the held-out prompt, of which the second rank has an odd repeat.
    assert [note["tokens"] for note in long] == [24] * 5 and [note["tokens"] for note in short] == [1] * 5
    # Of the tiny policy: the embeddings, which are tied, nine of its only layer, the last norm.
    parameters = 1 + 9 + 1
    assert [(note["copies"], note["gathers"]) for note in long + short] == [(1, parameters)] * 10


@pytest.mark.long
@pytest.mark.parametrize("name", ["rm", "sft"])
def test_one_held_out_row_for_two_ranks(name, trainings, tmp_path):
    """And text that one rank has fewer tokens of."""
    training = trainings[name]
    rows = Path(training.arguments(tmp_path)[training.arguments(tmp_path).index("--eval_data") + 1])
    # The first of the pairs says of neither response that it is the better one, which is refused.
    (tmp_path / "one.jsonl").write_text(rows.read_text().splitlines()[1])
    options = {"epochs": 1, "eval_steps": 1, "eval_data": tmp_path / "one.jsonl"}
    one = run(training, tmp_path / "one", **options)
    same_numbers(one, run(training, tmp_path / "two", 2, gather_every_parameter, zero_stage=3, micro_batch_size=2, **options))


@pytest.mark.long
def test_reference_entropies_are_those_of_the_whole_model(trainings, tmp_path):
    """Of responses of other lengths on each rank, by a model of which each has a share, gathered at every use."""
    found = {}
    for ranks, options in ((1, {}), (2, {"zero_stage": 3, "micro_batch_size": 2})):
        cache = tmp_path / f"cache-{ranks}"
        bent = partial(each, gather_every_parameter, partial(note_shares, tmp_path / f"notes-{ranks}"))
        run(trainings["rm"], tmp_path / str(ranks), ranks, bent if ranks > 1 else None, epochs=1, cache_dir=cache, **options)
        stored = [Dataset.from_file(str(path)).to_dict() for path in cache.glob("reference/*/joined-*")]
        found[ranks] = sorted(stored, key=lambda columns: len(columns["chosen_logprob"]))
    for one, two in zip(found[1], found[2], strict=True):
        assert one.keys() == two.keys()
        for name, values in one.items():
            for mine, theirs in zip(values, two[name], strict=True):
                assert theirs == pytest.approx(mine, abs=METRICS)
    held = [json.loads((tmp_path / f"notes-2.{rank}").read_text().splitlines()[0]) for rank in (0, 1)]
    assert all(0 < own <= 0.6 * whole for own, whole in held)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sft", "dpo_noref"])
def test_two_heads_on_two_ranks(kind, trainings, tmp_path):
    """The language-model head is gathered outside of the model's own forward, in chunks of which one rank needs more."""
    options = {"epochs": 1, "reg_type": kind, "reg_coef": 0.2, "head_type": "mlp", "head_width": 16, "head_dropout": 0}
    one = run(trainings["rm"], tmp_path / "one", **options)
    bent = partial(each, small_chunks, gather_every_parameter)
    two = run(trainings["rm"], tmp_path / "two", 2, bent, zero_stage=3, micro_batch_size=2, **options)
    same_numbers(one, two)


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}], ids=str)
def test_labels_on_two_ranks(options, trainings, tmp_path):
    """The rows of the labels are spread like all else, and put back into the language model's head when it is written."""
    options = {"epochs": 1, "head_type": "label", **options}
    one = run(trainings["rm"], tmp_path / "one", **options)
    two = run(trainings["rm"], tmp_path / "two", 2, gather_every_parameter, zero_stage=3, micro_batch_size=2, **options)
    same_numbers(one, two)
    read, again = (load_reward_model(str(folder), "fp32") for folder in (one, two))
    ids = torch.tensor([[7, 20, 33, 64, 5]])
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, again(ids).logits, rtol=0, atol=METRICS)


@pytest.mark.long
def test_a_disentangled_head_beside_adapters_on_two_ranks(trainings, tmp_path):
    """Its rows are gathered where they are centred, and folded into the plain classifier that is written."""
    options = {"epochs": 1, "lora_rank": 4}
    one = run(trainings["disentangled"], tmp_path / "one", **options)
    two = run(
        trainings["disentangled"], tmp_path / "two", 2, gather_every_parameter, zero_stage=3, micro_batch_size=1, **options
    )
    same_numbers(one, two)
    assert load_reward_model(str(two), "fp32").score.weight.shape == (1, 32)
