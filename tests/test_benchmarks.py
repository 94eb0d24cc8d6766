"""The benchmark's own arithmetic and files, and its rows at the smallest size. What the rows measure is not judged here."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import boat_pairs, restored_environment, tiny_tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from denserl.data.batching import pad_responses
from denserl.errors import UserError
from denserl.models.reward_models import load_reward_model
from denserl.models.tiny import new_llama
from denserl.rewards.aggregation import aggregate
from denserl.rewards.objectives import pair_losses
from denserl.rewards.pair_metrics import response_token_rewards
from denserl.segmentation import segment_by_entropy, segment_scores

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / "benchmarks"), str(REPOSITORY / "benchmarks/peers")]

import fixtures  # noqa: E402
import flop_floors  # noqa: E402
import harness  # noqa: E402
import reference_reward  # noqa: E402
import rm_training  # noqa: E402
import run  # noqa: E402
from harness import Options, Pairs, Result, Worker  # noqa: E402

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
RESULT = Result(3, "a", 1.0, None, 2.0, (1.5, 2.5), 1.8, True, "a note")


def test_sides_take_turns_and_the_warm_up_is_not_counted():
    calls, clock = [], iter(range(100))

    def side(name):
        calls.append(name)
        return float(next(clock))

    pairs = harness.alternate(lambda: side("ours"), lambda: side("theirs"), repeats=2)
    assert calls == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert pairs == Pairs([3.0, 4.0], [2.0, 5.0])


@pytest.mark.parametrize(("rate", "ours", "theirs"), [(False, 2.0, 4.0), (True, 0.5, 0.25)])
def test_compared(rate, ours, theirs):
    pairs = Pairs([1.0, 2.0, 4.0], [2.0, 6.0, 4.0])  # ratios 2, 3, 1
    result = harness.compared(1, "x", pairs, 2.0, rate=rate)
    assert result == Result(1, "x", ours, theirs, 2.0, (1.5, 2.5), 2.0, True)
    assert not harness.compared(1, "x", pairs, 2.1).met


def test_a_limit_is_met_from_below():
    result = harness.limited(7, "x (limit)", [0.04, 0.06, 0.05], 0.05)
    assert (result.ours, result.theirs, result.ratio, result.met) == (0.05, None, 0.05, True)
    assert result.spread == pytest.approx((0.045, 0.055))
    assert not harness.limited(7, "x (limit)", [0.06], 0.05).met


def test_results_file_keeps_rows_that_were_not_measured(tmp_path):
    path = tmp_path / "new" / "results.json"
    harness.write_results(path, [RESULT, RESULT._replace(row=1, name="first")])
    harness.write_results(path, [RESULT._replace(name="again")])
    entry = {"ours": 1.0, "theirs": None, "ratio": 2.0, "spread": [1.5, 2.5], "reach": 1.8, "met": True}
    assert json.loads(path.read_text()) == [{"row": 1, "name": "first", **entry}, {"row": 3, "name": "again", **entry}]


def test_table_has_a_line_a_result_and_its_note():
    head, line, note = harness.table([RESULT]).splitlines()
    assert head.split() == ["row", "name", "ours", "theirs", "ratio", "quartiles", "reach", "met"]
    assert line.split() == ["3", "a", "1", "-", "2", "1.5", "-", "2.5", "1.8", "yes"]
    assert note.strip() == "a note"


@pytest.mark.parametrize("row", run.PEERS)
def test_missing_peer_ends_with_the_command_that_installs_it(tmp_path, capsys, row):
    with pytest.raises(SystemExit) as end:
        harness.ending_well(lambda: run.run_rows(Options(runs=tmp_path), [row]))
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert run.PEERS[row] in shown and "make bench-peers" in shown and "Traceback" not in shown


def test_worker_answers_line_by_line_and_shows_its_log_when_it_fails(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    number = json.loads(line)['number']\n"
        "    print(json.dumps({'seconds': 1 / number}), flush=True)\n"
    )
    with Worker(Path(sys.executable), program, {"number": 2}, 1, tmp_path / "log") as worker:
        assert worker.about == {"seconds": 0.5}
        assert worker.repeat(number=4) == {"seconds": 0.25}
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            worker.repeat(number=0)
    assert worker.process.returncode == 1


def test_flops_are_those_that_torch_counts():
    config = LlamaConfig(**SMALL, num_hidden_layers=2, attn_implementation="eager")
    model, length = LlamaForCausalLM(config), 24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long))
    # Of the pairs of positions, the model computes all, twice as many as the causal ones.
    uncounted = 2 * config.hidden_size * config.num_hidden_layers * length**2
    assert flop_floors.forward_flops(config, [length], logits=length) == counter.get_total_flops() - uncounted
    assert flop_floors.parameters(config) == sum(
        p.numel() for n, p in model.named_parameters() if "norm" not in n and "head" not in n
    )


def test_a_shared_prefix_is_computed_once():
    config = LlamaConfig(**SMALL, num_hidden_layers=2)
    twice, once = flop_floors.forward_flops(config, [10, 12]), flop_floors.forward_flops(config, [10, 12], prefixes=[0, 5])
    assert twice - once == flop_floors.forward_flops(config, [5])


def test_decoding_reads_weights_for_each_token_and_the_caches_of_living_rows():
    config, prompts, responses = LlamaConfig(**SMALL, num_hidden_layers=3), [4, 7], [5, 2]
    token = 2 * 3 * 2 * 8 * 4  # keys and values, layers, kv heads, head width, bytes
    moved = 0
    for step in range(1, 6):
        living = [prompt for prompt, length in zip(prompts, responses) if length >= step]
        moved += 4 * flop_floors.parameters(config) + token * sum(prompt + step for prompt in living)
    assert flop_floors.decoding_bytes(config, prompts, responses) == moved


@pytest.mark.parametrize(("mean", "longest"), [(64, 128), (48, 256), (128, 128)])
def test_end_probability_gives_the_mean_length(mean, longest):
    p = fixtures.end_probability(mean, longest)
    assert sum((1 - p) ** tokens for tokens in range(longest)) == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("probability", [0.0, 0.03])
def test_a_model_ends_turns_as_often_as_asked_and_samples_no_other_special_token(probability):
    tokenizer = tiny_tokenizer()
    model = new_llama(tokenizer, hidden_size=32, num_layers=2, num_heads=2).eval()
    prompts = [tokenizer.encode("Tell me about the garden.")]
    fixtures.set_end_probability(model, tokenizer, probability, prompts)
    response = torch.randint(4, len(tokenizer), (200,), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits = model(torch.cat([torch.tensor(prompts[0]), response])[None]).logits[0, len(prompts[0]) :]
    seen = logits.softmax(-1).mean(0)
    others = [i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]
    assert seen[tokenizer.eos_token_id].item() == pytest.approx(probability, rel=0.2, abs=1e-6)
    assert seen[others].max() < 1e-6


def test_padding_of_random_batches():
    # Nine pairs, one of them long: it is alone with probability 1/9 (20 padded tokens), else with seven others (160).
    lengths = [10, 1] + [1, 1] * 8
    expected = (1 / 9 * (2 * 10 + 16 * 1) + 8 / 9 * (16 * 10 + 2 * 1)) / sum(lengths)
    assert rm_training.padding(lengths) == pytest.approx(expected, rel=0.05)


def test_wrong_shape_and_missing_data_are_told(tmp_path):
    with pytest.raises(UserError, match="LAYERSxHIDDEN"):
        fixtures.shape_of("8x100")
    with pytest.raises(UserError, match="--data FOLDER"):
        fixtures.pairs_file(Options(data=tmp_path))


def test_half_made_material_is_made_again(tmp_path):
    def fail(folder):
        (folder / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fixtures.kept(tmp_path / "model", fail)
    folder = fixtures.kept(tmp_path / "model", lambda folder: (folder / "whole").touch())
    assert (folder / "whole").exists()
    assert fixtures.kept(folder, fail) == folder


@pytest.mark.parametrize("module", [*run.ROWS.values(), "gpu"])
def test_every_row_can_be_measured(module):
    assert callable(importlib.import_module(module).measure)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """Options for a model and data of no size."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "ultrafeedback-1k").mkdir()
    rows = "".join(json.dumps(row) + "\n" for row in boat_pairs(64))
    (folder / "ultrafeedback-1k/train.jsonl").write_text(rows)
    with restored_environment():
        yield Options(data=folder, runs=folder / "runs", model="1x32", repeats=1)


def test_both_sides_of_the_scoring_row_score_alike(smallest):
    (result,) = importlib.import_module("dataset_scoring").measure(smallest)
    assert result.row == 6 and result.ours > 0
    assert float(result.note.split("difference of a score ")[1].split()[0]) < 1e-5


def test_the_references_way_has_the_loss_of_ours(smallest, tmp_path):
    policy = fixtures.language_model(smallest, "1x32")
    scorer, tokenizer = fixtures.reward_model(smallest, policy), AutoTokenizer.from_pretrained(policy)
    pairs = fixtures.pairs(smallest, tokenizer, 3)[1]
    (tmp_path / "pairs.json").write_text(json.dumps([rm_training.joined(pair) for pair in pairs]))
    setup = {"pairs": str(tmp_path / "pairs.json"), "model": policy, "reward_model": scorer, "threshold": 5.4}
    loop = reference_reward.Loop({**setup, "pad_id": tokenizer.pad_token_id, "lr": 1e-3, "betas": (0.9, 0.95)})

    responses = [pair[side] for side in ("chosen_ids", "rejected_ids") for pair in pairs]
    batch = pad_responses([pair["prompt_ids"] for pair in pairs] * 2, responses, tokenizer.pad_token_id)
    logits = AutoModelForCausalLM.from_pretrained(policy)(batch.input_ids, attention_mask=batch.attention_mask).logits
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    entropy = torch.stack([torch.roll(row, 1 - int(start)) for row, start in zip(entropy, batch.response_start, strict=True)])
    entropy = entropy[:, : batch.response_mask.shape[1]]
    assert 0 < (entropy[batch.response_mask] > 5.4).float().mean() < 1  # some tokens open segments, some do not
    segments = segment_by_entropy(entropy, batch.response_mask, 5.4)
    rewards = segment_scores(response_token_rewards(load_reward_model(str(scorer), "fp32"), batch), segments)
    scores = aggregate(rewards, segments.counts)
    torch.testing.assert_close(loop.loss(loop.pairs), pair_losses(*scores.chunk(2)).sum(), rtol=1e-5, atol=1e-6)


def test_rollouts_row(smallest):
    (result,) = importlib.import_module("rollouts").measure(smallest)
    assert result.row == 5 and result.ours > 0 and result.theirs > 0


def test_overhead_row(smallest):
    (result,) = importlib.import_module("overhead").measure(smallest)
    # With so small a model most of an iteration is neither model nor sampling, but never all of it.
    assert result.row == 7 and 0 < result.ours < 1


def test_gpu_measures_run_on_cpu(capsys):
    with restored_environment():
        results = importlib.import_module("gpu").measure(Options(model="1x32", repeats=1))
    said = capsys.readouterr().out
    assert "FAILED" not in said
    assert [result.row for result in results] == [3, 3, 5, 3] and all(0 < result.ratio < 1 for result in results)
    for words in ("PPO iteration of 4 responses of 8 tokens", "RM training, 2 rows x 32 tokens", "policy_loss, as it is"):
        assert words in said
