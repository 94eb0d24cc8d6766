"""A model is taken out of the checkpoint of two ranks by one process, which needs neither their number nor their ZeRO stage."""

import pytest
from exported_models import exported, is_what_the_run_wrote
from rank_hooks import gather_every_parameter
from ranks import run

pytestmark = pytest.mark.long
# The last of ten steps, and the last of five iterations; an average is not taken out.
LAST = {"sft": "step-000010", "rm": "step-000010", "ppo": "iteration-000005"}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", LAST)
def test_two_ranks(name, stage, trainings, tmp_path):
    saving = {"save_every": 5, "ema_decay": None} if name == "ppo" else {"save_steps": 5, "eval_steps": 5}
    options = {"zero_stage": stage, "micro_batch_size": 2, "dtype": "bf16", **saving}
    whole = run(trainings[name], tmp_path / "run", 2, gather_every_parameter if stage == 3 else None, **options)
    is_what_the_run_wrote(whole, exported(whole / "checkpoints" / LAST[name], tmp_path / "model"))
