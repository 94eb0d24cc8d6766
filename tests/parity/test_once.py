"""Scoring and evaluation take every row exactly once on two ranks: what is stored and reported is that of one process."""

import json
import re
from pathlib import Path

import pytest
import reference_loops as loops
import torch
from datasets import Dataset
from rank_hooks import estimated, estimates, evaluations, kept_rows, looked_for, shards, waited
from ranks import call, deviations, run
from real_runs import Training, answers_to_mtbench
from test_parity import METRICS
from tiny_models import as_argv

LENGTHS = {"max_length": 96, "max_prompt_length": 48, "score_tokens": 200}


@pytest.fixture(scope="module")
def fits(world, trainings) -> Training:
    """The fit of a normaliser to the pairs that the reward model is trained on, an odd number."""
    argv = trainings["rm"].arguments(world.root)
    data = argv[argv.index("--data") + 1]
    options = {"reward_model": world.reward_model, "data": data, **LENGTHS}
    return Training("fit_normalizer", lambda output, **more: as_argv({**options, "output_dir": output, **more}), {})


def entropies(cache: Path) -> dict[str, list[list[float]]]:
    """The one table of entropies that a cache folder holds."""
    (stored,) = cache.glob("reference/*/joined-*")
    return Dataset.from_file(str(stored)).to_dict()


@pytest.mark.long
def test_a_fit_on_two_ranks_is_that_of_one(fits, tmp_path):
    found = {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        run(fits, folder, ranks, fit=tmp_path / f"{ranks}.json", cache_dir=tmp_path / f"cache-{ranks}")
        (record,) = json.loads((tmp_path / f"{ranks}.json").read_text()).values()
        found[ranks] = record, entropies(tmp_path / f"cache-{ranks}")
    (one, stored), (two, stored_by_two) = found[1], found[2]
    assert (two["pairs"], two["segments"], two["groups"]) == (one["pairs"], one["segments"], one["groups"])
    assert two["constants"] == pytest.approx(one["constants"], rel=1e-6)
    assert one["pairs"] % 2 == 1
    for side, rows in stored.items():
        assert [pytest.approx(row, abs=METRICS) for row in rows] == stored_by_two[side]


@pytest.mark.long
def test_strengths_on_two_ranks_are_those_of_one(world, trainings, tmp_path):
    argv = trainings["rm"].arguments(world.root)
    options = {"reward_model": world.reward_model, "data": argv[argv.index("--data") + 1], "score_tokens": 200}
    measuring = Training("strength", lambda output, **more: as_argv({**options, "output_dir": output, **more}), {})
    one, two = (run(measuring, tmp_path / str(ranks), ranks) for ranks in (1, 2))
    rows = [[json.loads(line) for line in (folder / "strength.jsonl").read_text().splitlines()] for folder in (one, two)]
    assert len(rows[0]) == len(rows[1]) and len(rows[0]) % 2 == 1
    for mine, other in zip(*rows):
        assert mine["chosen"] == other["chosen"]
        assert mine["chosen score list"] == pytest.approx(other["chosen score list"], abs=METRICS)
        assert mine["mean preference difference"] == pytest.approx(other["mean preference difference"], abs=METRICS)


@pytest.mark.long
def test_a_ridge_fit_on_two_ranks_is_that_of_one(trainings, tmp_path):
    """Weights by closed form, of rows dealt to ranks, and what is said of the held-out ones."""
    of_steps = ("epochs", "batch_size", "micro_batch_size", "lr", "warmup_ratio", "weight_decay", "logging_steps")
    without = dict.fromkeys((*of_steps, "eval_steps", "save_steps"))
    fit = {**without, "attribute_fit": "ridge"}
    one, two = (run(trainings["ratings"], tmp_path / str(ranks), ranks, **fit) for ranks in (1, 2))
    found = deviations(one, two)
    assert max(found.values()) < METRICS and {"eval_spearman/odd", "alpha/long"} <= found.keys()


@pytest.mark.long
def test_pairs_that_are_made_of_others_on_two_ranks_are_those_of_one(trainings, world, tmp_path):
    """Of half of those made of 17 pairs, the ones that a model does not know, whose scores are dealt to ranks."""
    made = {"augment": "rrm", "augment_filter": world.reward_model, "epochs": 0.5}
    one, two = (run(trainings["rm"], tmp_path / str(n), n, micro_batch_size=4 // n, **made) for n in (1, 2))
    assert max(deviations(one, two).values()) < METRICS


@pytest.mark.long
def test_best_of_n_on_two_ranks_is_that_of_one(world, tmp_path):
    """Fifteen responses, four at a time on each rank, scored by a reward model that reads segments."""
    options = {"model": world.sft, "reward_model": world.reward_model, "data": world.prompts, "samples": 3}
    options |= {"true_reward": "tiny_models:letters", "max_new_tokens": 8, "sample_batch_size": 1}
    bon, found = Training("bon", lambda output, **more: as_argv({**options, "output_dir": output, **more}), {}), {}
    for ranks in (1, 2):
        folder = run(bon, tmp_path / str(ranks), ranks)
        found[ranks] = (folder / "samples.jsonl").read_bytes(), json.loads((folder / "results.json").read_text())
    assert found[1][0] == found[2][0] and len(found[1][0].splitlines()) == 15
    for score in ("proxy", "gold"):
        assert found[2][1][score] == pytest.approx(found[1][1][score], abs=METRICS)


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_evaluations_on_several_ranks_are_those_of_one(ranks, trainings, tmp_path):
    """Of fewer rows than ranks, of numbers that nothing divides, and of more batches than ranks."""
    counts = [1, 2, 3, 5, 13]
    (alone,) = call(evaluations, counts, tmp_path, folder=tmp_path, ranks=1)
    for found in call(evaluations, counts, tmp_path, folder=tmp_path, ranks=ranks):
        assert found == [pytest.approx(metrics, rel=METRICS, abs=METRICS) for metrics in alone]


def test_two_processes_estimate_as_one(trainings, tmp_path):
    for (x, mask, _), first, second in zip(shards(), *call(estimated, folder=tmp_path), strict=True):
        found = [torch.cat(both) for both in zip(first, second, strict=True)]
        torch.testing.assert_close(found[0], torch.tensor(loops.whiten(x, mask)), atol=1e-5, rtol=1e-5)
        for together, alone in zip(found, estimates(x, mask), strict=True):
            torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


def test_ranks_wait_for_one_longer_than_their_group_waits(trainings, tmp_path):
    (first, _), (second, barrier) = call(waited, False, folder=tmp_path)
    assert first == second == ["of 0", "of 1"]
    # What they would have met otherwise.
    assert "imed out" in barrier


def test_what_ends_one_rank_ends_those_that_wait_for_it(trainings, tmp_path):
    (first, _), (second, _) = call(waited, True, folder=tmp_path)
    assert first == ["OSError", "no room"] and second == ["UserError", "rank 0 has failed: OSError: no room"]


def test_a_folder_that_one_host_has_of_its_own_is_named_on_all_ranks(trainings, tmp_path):
    for told in call(looked_for, tmp_path, folder=tmp_path):
        assert re.fullmatch(
            rf"{tmp_path} is not the same folder on all hosts: what rank 0 on \S+ writes there is not seen by rank 1 on \S+"
            r"\n  fix: give `cache_dir` on storage .*",
            told,
        )
    assert not [*tmp_path.glob(".*")]


def text_files(root: Path, texts: list[str]) -> list[str]:
    """A file of the same name in a folder of each host's, which holds one text."""
    for i, text in enumerate(texts):
        (root / f"host-{i}").mkdir()
        (root / f"host-{i}" / "rows.txt").write_text(text)
    return [str(root / f"host-{i}" / "rows.txt") for i in range(len(texts))]


@pytest.mark.parametrize("shared", [True, False])
def test_hosts_without_a_common_folder_keep_rows_of_their_own(shared, trainings, tmp_path):
    files = text_files(tmp_path, ["one\ntwo\n"] * 2)
    caches = [str(tmp_path / ("cache" if shared else f"cache-{i}")) for i in range(2)]
    found = call(kept_rows, files, caches, folder=tmp_path)
    assert [[row["response"] for row in rows] for rows, _, _ in found] == [["one", "two"]] * 2
    assert [folder for _, _, folder in found] == caches
    assert not [left for cache in caches for left in Path(cache).glob(".*")]


@pytest.mark.parametrize(
    "second, said", [("one\nthree\n", "hosts read different rows"), ('{"a": 1}\n', "the line is an object in JSON")]
)
def test_hosts_whose_rows_differ_or_are_bad_end_together(second, said, trainings, tmp_path):
    files = text_files(tmp_path, ["one\ntwo\n", second])
    found = call(kept_rows, files, [str(tmp_path / f"cache-{i}") for i in range(2)], folder=tmp_path)
    assert all(said in error for _, error, _ in found)


@pytest.mark.long
def test_answers_of_a_policy_on_two_ranks_are_those_of_one(tmp_path):
    answering = answers_to_mtbench(tmp_path)
    one, two = (run(answering, tmp_path / str(ranks), ranks) for ranks in (1, 2))
    files = ("policy.jsonl", "policy-s1.jsonl", "samples-turn-1.jsonl", "samples-turn-2.jsonl")
    assert [(one / name).read_bytes() for name in files] == [(two / name).read_bytes() for name in files]
