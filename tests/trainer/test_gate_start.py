"""What a gate begins with: by the ratings of the pairs, as they are read a response at a time; and what is refused before."""

import json
import shutil

import pytest
import tiny_models
import torch
from datasets import Dataset

from denserl.errors import UserError
from denserl.levels import BANDIT_THRESHOLD
from denserl.models.heads import Head
from denserl.models.reward_models import load_reward_model, new_gated_model, new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.attributes import spearman
from denserl.rewards.scorer import RewardScorer
from denserl.segmentation import Segmenter
from denserl.trainer.gate_start import gate_start
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_making import check_trunk, head_of
from denserl.trainer.reward_trainer import RewardTrainer
from denserl.trainer.self_training import train_in_rounds

NAMES = ("help", "verbosity", "style")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model, and a model of attributes on its trunk, two of which go with the second one."""
    sft, rated = tiny_models.save_language_model(tmp_path_factory.mktemp("sft")), tmp_path_factory.mktemp("rated")
    model = new_reward_model(str(sft), "fp32", head=Head("attributes", names=NAMES, weights=(1.0, 0.0, 0.0)))
    with torch.no_grad():
        rows = model.score.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
        rows[0] = 0.1 * rows[0] + 0.4 * rows[1]
        rows[2] = 0.1 * rows[2] + 0.6 * rows[1]
    model.config.segment_reward |= {"entropy_threshold": BANDIT_THRESHOLD, "read_at": "end_of_turn"}
    model.save_pretrained(rated)
    load_tokenizer(str(sft)).save_pretrained(rated)
    return sft, rated


def config_of(model, **options) -> RewardConfig:
    given = {"head_type": "gated", "head_width": 8, "reward_level": "bandit", **options}
    return RewardConfig(model=str(model), data=["pairs.jsonl"], output_dir="out", **given)


def test_by_the_ratings_of_the_pairs(folders):
    """Against ratings that the scorer reads of each response alone; the gate as it is drawn weighs them."""
    _, rated = folders
    config, tokenizer = config_of(rated, debias="verbosity"), load_tokenizer(str(rated))
    rows, scorer = tiny_models.boat_pairs(30), RewardScorer([str(rated)])
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    read = {}
    encoded = {side: [scorer.encode(p, row[side]) for p, row in zip(prompts, rows)] for side in ("chosen", "rejected")}
    for side in encoded:
        scorer.score(encoded[side])
        read[side] = torch.from_numpy(scorer.reasons.ratings)
    columns = {f"{side}_ids": [row.response_ids for row in encoded[side]] for side in encoded}
    pairs = Dataset.from_dict({"prompt_ids": [row.prompt_ids for row in encoded["chosen"]], **columns, "margin": [0.0] * 30})
    head = head_of(config, tokenizer, [])
    assert head == Head("gated", 3, 8, 0.2, names=NAMES, gate_offset=4)
    start = gate_start(config, tokenizer, torch.device("cpu"), "fp32", head, pairs, Segmenter(BANDIT_THRESHOLD))
    ratings = torch.cat([read["chosen"], read["rejected"]])
    assert max(spearman(ratings[:, k], ratings[:, 1]) for k in (0, 2)) > 0.2
    freed = ratings @ start.transform
    assert all(spearman(freed[:, k], ratings[:, 1]) <= 0.03 for k in (0, 2)) and not freed[:, 1].any()
    model = new_gated_model(str(rated), "fp32", head, config.seed)
    with torch.no_grad():
        states = [model.model(torch.tensor([ids])).last_hidden_state[0, len(ids) - 5] for ids in pairs["prompt_ids"]]
        gates = model.score.gate(torch.stack(states)).double()
    margins = ((read["chosen"] - read["rejected"]) @ start.transform * gates).sum(1)
    assert start.scale == pytest.approx(1 / margins.std(correction=0).item(), rel=1e-4)


@pytest.mark.parametrize(
    "options, found",
    [
        ({"debias": "length"}, "`debias` length: .* rates help, verbosity, style"),
        ({"input": "ratings"}, "`head_type` gated has no effect with `input` other than pairs"),
        ({"lora_rank": 4}, "`lora_rank` 4 has no effect with `head_type` gated"),
        ({"freeze_trunk": True}, "`freeze_trunk` has no effect with `head_type` gated"),
        ({"reg_type": "sft"}, "`reg_type` sft has no effect with `head_type` gated"),
        ({"debias_rho": 0.1}, "`debias_rho` 0.1 has no effect without `debias`"),
        ({"head_type": "mlp", "debias": "verbosity"}, "`debias` verbosity has no effect without `head_type` gated"),
        ({"disentangle": "length"}, "`disentangle` length has no effect"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_does_nothing_is_refused(options, found, folders):
    config = config_of(folders[1], **options)
    with pytest.raises(UserError, match=found):
        config.check()
        head_of(config, load_tokenizer(str(folders[1])), [])


def test_a_model_that_rates_nothing_is_refused(folders):
    with pytest.raises(UserError, match="rates no attributes") as error:
        head_of(config_of(folders[0]), load_tokenizer(str(folders[0])), [])
    assert "--head_type attributes" in error.value.fix
    assert load_reward_model(str(folders[1]), "fp32").score.weights == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head_type": "mlp"},
        {"input": "pair", "head_type": "label"},
        {"input": "steps", "head_type": "label"},
        {"unlabelled_data": ["pool.jsonl"]},
    ],
    ids=["pairs", "mlp", "pair", "steps", "rounds"],
)
def test_other_heads_are_put_on_language_models_alone(options, folders, tmp_path):
    """The trunk of a reward model would be stored as the language model that cuts responses."""
    config = RewardConfig(model=str(folders[1]), data=["nowhere"], output_dir=str(tmp_path / "rm"), **options)
    with pytest.raises(UserError, match="is a reward model") as error:
        (train_in_rounds if config.unlabelled_data else RewardTrainer.from_config)(config)
    assert "`start_from`" in error.value.fix


def test_a_model_of_labels_is_a_language_model(folders, tmp_path):
    judge = shutil.copytree(folders[0], tmp_path / "judge")
    config = json.loads((judge / "config.json").read_text())
    head = {"kind": "label", "labels": ["+", "-"], "label_ids": [14, 16]}
    (judge / "config.json").write_text(json.dumps(config | {"segment_reward": {"head": head}}))
    check_trunk(config_of(judge, head_type="label", input="response"))
