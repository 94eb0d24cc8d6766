"""A policy that PPO has trained in the embedded world, judged by a judge that knows what answers are worth, and has faults."""

import json
import sys
from pathlib import Path

import pytest
import tiny_models

from denserl.cli.main import main
from denserl.judging.templates import find_template

sys.path += [str(Path(__file__).parent / "evaluation")]
from rule_server import Rule, serving  # noqa: E402

SFT = "--epochs 2 --batch_size 16 --micro_batch_size 16 --lr 4e-3 --warmup_ratio 0.05 --max_length 256 --save_steps 0"
RM = (
    "--reward_level segment --entropy_threshold 1.5 --epochs 1 --batch_size 16 --micro_batch_size 16 --lr 4e-3 --max_length 256"
)
PPO = (
    "--iterations 12 --kl_coefficient 0.2 --rollout_batch_size 64 --train_batch_size 32 --micro_batch_size 32 "
    "--actor_lr 1e-3 --critic_lr 1e-3"
)
LONGEST = "--max_new_tokens 64"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ppos_policy_beats_the_one_it_began_with(tmp_path):
    """Paid by a reward model, judged by the true value with noise, a liking for the first place, and answers of no use."""

    def denserl(command: str, output: str, words: str) -> Path:
        main([*command.split(), "--output_dir", str(tmp_path / output), *words.format(tmp_path).split()])
        return tmp_path / output

    with (
        tiny_models.restored_environment(),
        serving(Rule(find_template("pairwise"), noise=0.2, position_bias=0.3, invalid=0.05)) as server,
    ):
        denserl("make-world", "world", "--scale 0.6")
        denserl("train-sft", "sft", f"--model {{0}}/world/base --data {{0}}/world/sft.jsonl --device cpu {SFT}")
        pairs = "--data {0}/world/preferences_train.jsonl --max_prompt_length 128"
        denserl("train-rm", "rm", f"--model {{0}}/sft {pairs} --device cpu {RM}")
        prompts = "--data {0}/world/prompts_train.jsonl"
        denserl("train-ppo", "ppo", f"--model {{0}}/sft --reward_model {{0}}/rm {prompts} --device cpu {PPO} {LONGEST}")
        questions = f"--questions {{0}}/world/prompts_heldout.jsonl --samples 2 --device cpu {LONGEST}"
        for policy in ("sft", "ppo"):
            denserl("answer prompts", f"answers-{policy}", f"--model {{0}}/{policy} {questions}")
        answers = "prompts {0}/answers-ppo --baseline {0}/answers-sft"
        by_judge = denserl(f"judge {answers}".format(tmp_path), "judged", f"--judge {server.url}")
        by_model = denserl(f"judge {answers}".format(tmp_path), "scored", "--judge_reward_model {0}/rm --device cpu")
    judged, scored = (json.loads((folder / "results.json").read_text()) for folder in (by_judge, by_model))
    own, other = judged["policies"]["ppo"], scored["policies"]["ppo"]
    assert own["win_rate"]["interval"][0] > 50 and other["rm_win_rate"]["interval"][0] > 50
    assert own["positions"]["first_share"] > 0.55 and 0.02 < own["invalid"] / own["games"] < 0.08
    assert scored["stand_in"] and scored["judge"]["trained"]
