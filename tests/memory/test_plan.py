"""The plan: its order of settings, what it makes of phases of known need, and its numbers put together by hand."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest

from denserl.cli import train_ppo, train_rm, train_sft
from denserl.cli.main import main as denserl
from denserl.cli.options import parse
from denserl.cli.plan import advice, flags, heading, reasons, run, table
from denserl.errors import UserError
from denserl.memory.config import PlanConfig
from denserl.memory.meta_pass import classifier_bytes, policy_bytes
from denserl.memory.phases import Planner
from denserl.memory.search import Phase, Setting, first_fit, setting_given, settings_in_order
from denserl.models.adapters import prepare_model
from denserl.models.config import AdapterConfig
from denserl.models.loading import empty_policy, empty_reward_model

COMMANDS = {"train-sft": train_sft, "train-rm": train_rm, "train-ppo": train_ppo}
NEEDED = ["--model", "m", "--data", "d", "--output_dir", "o"]
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
# Embedding; four square matrices, three of the MLP and two norms in each layer; the last norm.
BACKBONE = 1000 * 64 + 2 * (4 * 64**2 + 3 * 64 * 192 + 2 * 64) + 64
POLICY, CLASSIFIER = BACKBONE + 1000 * 64, BACKBONE + 64
SIZES = {
    "gradient_checkpointing": False,
    "micro_batch_size": 2,
    "max_length": 64,
    "score_tokens": 256,
    "max_prompt_length": 32,
    "max_new_tokens": 16,
}


@pytest.fixture
def model(tmp_path) -> str:
    """A folder that holds a config and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return str(tmp_path)


def options(model: str = "m", **changed) -> PlanConfig:
    return PlanConfig(model=model, **{**SIZES, "sample_batch_size": 4, "gpu_memory": 1.0, **changed})


def needs(planner: Planner, stage: int = 0, **changed) -> dict[str, int]:
    given = setting_given(planner.options, stage)._replace(**changed)
    return {f"{phase.command} {phase.name}": phase.needs(given) for phase in planner.phases()}


def test_the_order_of_settings():
    given = PlanConfig(model="m", gradient_checkpointing=False, micro_batch_size=4, sample_batch_size=2, score_tokens=1)
    plain = [Setting(stage, False, False, 4, 2, 1) for stage in (0, 1, 2, 3)]
    checkpointed = [Setting(stage, True, False, 4, 2, 1) for stage in (0, 1, 2, 3)]
    offloaded = [Setting(stage, True, True, 4, 2, 1) for stage in (1, 2, 3)]
    halved = [Setting(stage, True, True, 2, 1, 1) for stage in (1, 2, 3)]
    again = [Setting(stage, True, True, 1, 1, 1) for stage in (1, 2, 3)]
    assert list(settings_in_order(given)) == plain + checkpointed + offloaded + halved + again
    given.gradient_checkpointing = True
    assert list(settings_in_order(given)) == checkpointed + offloaded + halved + again
    given.offload_optimizer = True
    assert list(settings_in_order(given)) == offloaded + halved + again


@pytest.mark.parametrize(
    "usable, found",
    [
        (100, Setting(0, False, False, 8, 8, 8)),
        (99, Setting(1, False, False, 8, 8, 8)),
        (70, Setting(3, False, False, 8, 8, 8)),
        (69, Setting(2, True, False, 8, 8, 8)),
        (49, Setting(2, True, True, 8, 8, 8)),
        # Half of the micro-batch; the other phase keeps its batch, and a batch of no phase here is left alone.
        (27, Setting(2, True, True, 4, 8, 8)),
        (8, Setting(2, True, True, 1, 4, 8)),
        (4, None),
    ],
)
def test_the_first_that_fits(usable, found):
    def training(setting: Setting) -> int:
        fixed = 60 - 10 * setting.zero_stage - 20 * setting.gradient_checkpointing - 20 * setting.offload_optimizer
        return max(fixed, 0) + 5 * setting.micro_batch_size

    phases = [
        Phase("c", "training", training, "micro_batch_size"),
        Phase("c", "rollout", lambda setting: 1 + setting.sample_batch_size, "sample_batch_size"),
    ]
    given = PlanConfig(model="m", gradient_checkpointing=False, micro_batch_size=8, sample_batch_size=8, score_tokens=8)
    assert first_fit(phases, given, usable) == found


def test_phases_by_hand_without_zero(model):
    """fp32 on one GPU: 16 bytes a trained parameter, 4 of them gradients; 4 a frozen one; Adam's step needs 4 more."""
    planner = Planner(options(model, dtype="fp32"))
    got, policy, classifier = needs(planner), empty_policy(model, "fp32"), empty_reward_model(model, "fp32")
    assert got["train-sft training"] == 16 * POLICY + policy_bytes(policy, 2, 64, 63, True)
    assert got["train-rm training"] == 16 * CLASSIFIER + classifier_bytes(classifier, 4, 64, True)
    assert got["train-rm evaluation"] == 12 * CLASSIFIER + classifier_bytes(classifier, 4, 64, False)
    assert got["train-rm reference entropies"] == 4 * POLICY + policy_bytes(policy, 4, 64, 63, False)
    rest = 16 * POLICY + 16 * CLASSIFIER
    of_actor, of_critic = policy_bytes(policy, 2, 48, 16, True), classifier_bytes(classifier, 2, 48, True)
    assert got["train-ppo update"] == rest + 4 * (POLICY + CLASSIFIER) + max(
        max(of_actor, 4 * POLICY), max(of_critic, 4 * CLASSIFIER)
    )
    assert got["train-ppo scoring"] == rest + policy_bytes(policy, 2, 48, 16, False)
    # Room for 32 + 16 columns is 64, two layers, keys and values of 64 numbers; a prompt is read once.
    cache = 4 * 64 * 2 * 2 * 64 * 4
    reading = policy_bytes(policy, 4, 32, 1, False)
    assert got["train-ppo rollout"] == rest + cache + max(reading, 20 * 4 * 1000)


def test_a_contrast_and_a_meta_step_by_hand(model):
    """fp32 on one GPU: twice the rows; a prompt's three responses and the sum of their gradient; weights twice."""
    classifier, given = empty_reward_model(model, "fp32"), {"dtype": "fp32", "meta_samples": 3, "meta_data": ["samples"]}
    got = needs(Planner(options(model, dtype="fp32", contrastive="swav")))
    assert got["train-rm training"] == 16 * CLASSIFIER + classifier_bytes(classifier, 8, 64, True)
    got = needs(Planner(options(model, **given)))
    assert got["train-rm meta step"] == (12 + 4) * CLASSIFIER + max(classifier_bytes(classifier, 3, 64, True), 4 * CLASSIFIER)
    assert got["train-rm training"] == (16 + 4) * CLASSIFIER + classifier_bytes(classifier, 4, 64, True)
    both = needs(Planner(options(model, **given, contrastive="simcse")), micro_batch_size=5)
    assert both["train-rm meta step"] == 16 * CLASSIFIER + classifier_bytes(classifier, 9, 64, True)
    assert both["train-rm training"] == 20 * CLASSIFIER + classifier_bytes(classifier, 20, 64, True)


def test_without_a_critic(model):
    """fp32 on one GPU: its weights, moments and gradients are not there, and the policy's pass is the one that is left."""
    planner = Planner(options(model, dtype="fp32", advantage="rloo"))
    got, policy = needs(planner), empty_policy(model, "fp32")
    rest = 16 * POLICY + 4 * CLASSIFIER
    assert got["train-ppo update"] == rest + 4 * POLICY + max(policy_bytes(policy, 2, 48, 16, True), 4 * POLICY)
    assert got["train-ppo scoring"] == rest + policy_bytes(policy, 2, 48, 16, False)
    assert "; reward model" in heading(planner)


def test_sharing_by_hand(model):
    """bf16 on 8 GPUs: what differs from stage to stage, in bytes of resting weights and states."""
    planner = Planner(options(model, gpus=8))
    stage1, stage2, stage3 = (planner._ppo_at_rest(setting_given(planner.options, stage)) for stage in (1, 2, 3))
    both = POLICY + CLASSIFIER
    assert stage1 == stage2 == pytest.approx(2 * 2 * both + 12 * both / 8, abs=8)
    # Four models in shares; fp32 weights and moments; fp32 gradients; two buckets; the whole copy that samples.
    assert stage3 == pytest.approx(2 * 2 * both / 8 + 12 * both / 8 + 4 * both / 8 + 2 * 2 * 500_000_000 + 2 * POLICY, abs=16)
    # The frozen SFT model alone: whole, and at stage 3 its share, with two times what is gathered and its buffers.
    whole, shares = (planner.entropies(setting_given(planner.options, stage)) for stage in (2, 3))
    assert whole - shares == pytest.approx(2 * POLICY * 7 / 8 - 2 * 2 * POLICY, abs=8)
    # bf16 runs at stage 2 at least.
    assert len({planner.update(setting_given(planner.options, stage)) for stage in (0, 1, 2)}) == 1


@pytest.mark.parametrize(
    "phase, changed",
    [
        ("reward_training", {"gradient_checkpointing": True}),
        ("update", {"offload_optimizer": True}),
        ("scoring", {"micro_batch_size": 1}),
        ("rollout", {"sample_batch_size": 1}),
        ("entropies", {"score_tokens": 64}),
    ],
)
def test_what_lowers_the_need(model, phase, changed):
    planner = Planner(options(model))
    given, needs_of = setting_given(planner.options, 2), getattr(planner, phase)
    assert needs_of(given._replace(**changed)) < needs_of(given)


def test_where_servers_sample_there_is_neither_cache_nor_copy(model):
    own, served = (Planner(options(model, gpus=2, **changed)) for changed in ({}, {"rollout_engine": "vllm"}))
    assert {phase.name for phase in own.phases()} - {phase.name for phase in served.phases()} == {"rollout"}
    for stage, copy in ((2, 0), (3, 2)):
        given = setting_given(own.options, stage)
        assert own.update(given) - served.update(given) == copy * own.size("policy").parameters
        assert own.scoring(given) - served.scoring(given) == copy * own.size("policy").parameters


def test_the_moving_average_is_whole_in_fp32_on_every_gpu(model):
    given = [setting_given(options(model, gpus=4), stage) for stage in (0, 2, 3)]
    with_average, without = (Planner(options(model, gpus=4, **more)) for more in ({"ema_decay": 0.9}, {}))
    for phase in ("rollout", "scoring", "update"):
        differences = {getattr(with_average, phase)(each) - getattr(without, phase)(each) for each in given}
        assert differences == {4 * POLICY}


def test_with_adapters_the_reference_takes_no_room(model):
    pytest.importorskip("peft")
    planner, given = Planner(options(model, lora_rank=2, dtype="fp32")), setting_given(options(model), 0)
    adapters = planner.size("policy").trained
    # Policy and reward model in fp32, the critic with Adam's moments, and the adapters' moments.
    assert planner._ppo_at_rest(given) == 4 * (POLICY + adapters + CLASSIFIER) + 12 * CLASSIFIER + 8 * adapters


def test_adapters_lower_the_need(model):
    pytest.importorskip("peft")
    given = setting_given(options(model), 2)
    assert Planner(options(model, lora_rank=2)).sft(given) < Planner(options(model)).sft(given)


def test_a_base_in_4_bits_by_hand(model):
    """Half a byte a number, a byte for each 64, four for each 16384, 1092 for tables; a pass has the largest weight whole."""
    pytest.importorskip("peft")
    planner = Planner(options(model, dtype="fp32", lora_rank=2, load_in_4bit=True, advantage="rloo"))
    square, oblong = 64 * 64, 64 * 192
    numbers = 2 * (4 * square + 3 * oblong)
    held = 2 * (4 * (2048 + 64 + 4 + 1092) + 3 * (6144 + 192 + 4 + 1092))
    adapters = 2 * 2 * (4 * (64 + 64) + 3 * (64 + 192))
    assert planner.size("policy") == (POLICY + adapters, adapters, 2 * (*[square] * 4, *[oblong] * 3))
    assert "0.00 B held in 4 bits" in heading(planner)
    got, config = needs(planner), AdapterConfig(lora_rank=2)
    policy = prepare_model(empty_policy(model, "fp32"), config, "CAUSAL_LM")
    classifier = prepare_model(empty_reward_model(model, "fp32"), config, "SEQ_CLS")
    base = 4 * (POLICY - numbers) + held
    # Weights and moments of the adapters, then their gradients; the frozen reward model of train-ppo is whole.
    rest = base + 12 * adapters
    assert got["train-sft training"] == rest + 4 * adapters + 4 * oblong + policy_bytes(policy, 2, 64, 63, True)
    # The head that learns is a copy, with moments.
    ranked = rest + 4 * (CLASSIFIER - POLICY) + 4 * 64 + 8 * 64
    assert got["train-rm training"] == ranked + 4 * (adapters + 64) + 4 * oblong + classifier_bytes(classifier, 4, 64, True)
    assert got["train-rm evaluation"] == ranked + 4 * oblong + classifier_bytes(classifier, 4, 64, False)
    assert got["train-rm reference entropies"] == 4 * POLICY + policy_bytes(empty_policy(model, "fp32"), 4, 64, 63, False)
    ppo, plain = rest + 4 * CLASSIFIER, empty_policy(model, "fp32")
    assert got["train-ppo update"] == ppo + 4 * adapters + 4 * oblong + policy_bytes(policy, 2, 48, 16, True)
    assert got["train-ppo scoring"] == ppo + 4 * oblong + policy_bytes(plain, 2, 48, 16, False)
    reading = 4 * oblong + policy_bytes(plain, 4, 32, 1, False)
    assert got["train-ppo rollout"] == ppo + 4 * 64 * 2 * 2 * 64 * 4 + max(reading, 20 * 4 * 1000)


def test_a_base_in_4_bits_is_not_spread(model):
    pytest.importorskip("peft")
    given = options(model, lora_rank=2, load_in_4bit=True)
    assert {setting.zero_stage for setting in settings_in_order(given)} == {0, 1, 2}
    planner = Planner(given)
    assert all(line.split()[-1] == "-" for line in table(planner.phases(), given).splitlines()[1:])


def test_another_reward_model_and_a_critic_from_it(model, tmp_path):
    larger = tmp_path / "larger"
    larger.mkdir()
    (larger / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 3}))
    layer = (BACKBONE - 1000 * 64 - 64) // 2
    one = Planner(options(model, reward_model=str(larger), dtype="fp32"))
    both = Planner(options(model, reward_model=str(larger), critic_init="reward_model", dtype="fp32"))
    three = Planner(options(model, reward_model=[str(larger), model], gold_reward_model=str(larger), dtype="fp32"))
    base, given = Planner(options(model, dtype="fp32")), setting_given(one.options, 0)
    assert one._ppo_at_rest(given) - base._ppo_at_rest(given) == 4 * layer
    assert both._ppo_at_rest(given) - base._ppo_at_rest(given) == (4 + 12) * layer
    assert three._ppo_at_rest(given) - base._ppo_at_rest(given) == 4 * (2 * layer + 2 * CLASSIFIER)


# Each is parsed for every setting, train-ppo's the longest.
@pytest.mark.parametrize("command", ["train-sft", "train-rm", pytest.param("train-ppo", marks=pytest.mark.long)])
def test_printed_flags_are_understood_by_the_command(command):
    batches = {"train-ppo": ["micro_batch_size", "sample_batch_size"], "train-rm": ["micro_batch_size", "score_tokens"]}
    phases = [Phase(command, "p", lambda setting: 2**30, batch) for batch in batches.get(command, ["micro_batch_size"])]
    given = PlanConfig(model="m", micro_batch_size=4, sample_batch_size=64, score_tokens=16384)
    needed, others = list(NEEDED), {"host": lambda command, setting: 3 * 2**30 if setting.offload_optimizer else 0}
    if command == "train-ppo":
        needed += ["--reward_model", "r"]
    for setting in settings_in_order(given):
        words, _, need = advice(SimpleNamespace(options=given, **others), command, phases, setting).partition("   ")
        parsed = dataclasses.asdict(parse(COMMANDS[command].Options, command, [*needed, *words.split()]))
        parsed["gradient_checkpointing"] = parsed["gradient_checkpointing"] is not False
        assert {name: parsed[name] for name in setting._fields if name in parsed} == {
            name: value for name, value in setting._asdict().items() if name in parsed
        }
        assert need.startswith("(1.0 GiB") and ("3 GiB of main memory" in need) == setting.offload_optimizer


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"gpus": 2}, ["ZeRO 0, 1, 2 are one: bf16 runs at stage 2 at least"]),
        ({"gpus": 2, "dtype": "fp32"}, []),
        ({"dtype": "fp32"}, ["one GPU has nothing to share: the stages differ in their buffers alone"]),
    ],
)
def test_equal_columns_have_a_reason(model, changed, said):
    assert reasons(Planner(options(model, **changed))) == said


def test_what_is_on_is_not_advised():
    phases = [Phase("train-sft", "training", lambda setting: 2**40, "micro_batch_size")]
    assert "--lora_rank" not in advice(SimpleNamespace(options=PlanConfig(model="m", lora_rank=4)), "train-sft", phases, None)
    update = [Phase("train-ppo", "update", lambda setting: 2**40, "micro_batch_size")]
    for engine, advised in (("policy", True), ("vllm", False)):
        planner = SimpleNamespace(options=PlanConfig(model="m", rollout_engine=engine))
        assert ("--rollout_engine vllm" in advice(planner, "train-ppo", update, None)) == advised
    given = PlanConfig(model="m")
    assert "gradient_checkpointing" not in " ".join(flags(setting_given(given, 3), given, phases))
    given.gradient_checkpointing = False
    assert "--no-gradient_checkpointing" in flags(setting_given(given, 3), given, phases)


def test_where_nothing_fits_the_need_is_told():
    given = PlanConfig(model="m")
    phases = [Phase("train-sft", "training", lambda setting: setting.micro_batch_size * 2**31, "micro_batch_size")]
    assert first_fit(phases, given, 2**30) is None
    said = advice(SimpleNamespace(options=given), "train-sft", phases, None)
    assert said.startswith("nothing fits: training needs 2.0 GiB even so; try --lora_rank 16")


def test_the_table_has_every_phase_at_every_stage(model):
    given = options(model, offload_optimizer=True)
    planner = Planner(given)
    head, *lines = table(planner.phases(), given).splitlines()
    assert head.split()[-8:] == ["ZeRO", "0", "ZeRO", "1", "ZeRO", "2", "ZeRO", "3"]
    assert len(lines) == 7 and all(line.split()[-4] == "-" for line in lines)
    (update,) = (line for line in lines if "update" in line)
    expected = needs(planner, 2, offload_optimizer=True)["train-ppo update"] / 2**30
    assert float(update.split()[-2]) == pytest.approx(expected, abs=0.051)


def test_defaults_are_those_of_the_commands():
    defaults = [{field.name: field.default for field in dataclasses.fields(module.Options)} for module in COMMANDS.values()]
    own = {field.name: field.default for field in dataclasses.fields(PlanConfig)}
    assert own["max_prompt_length"] == defaults[2]["max_prompt_length"]  # train-rm has another
    for name in own.keys() - {"model", "reward_model", "gpus", "gpu_memory", "max_prompt_length"}:
        assert {given[name] for given in defaults if name in given} == {own[name]}, name


def test_without_a_gpu_its_memory_must_be_given(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU.*\n.*`gpu_memory`"):
        run(options(gpu_memory=None))


def test_the_command_prints_a_plan(model, capsys):
    small = [f"--{name}={value}" for name, value in SIZES.items() if value]
    denserl(["plan", "--model", model, "--gpus", "2", "--gpu_memory", "80", *small])
    printed = capsys.readouterr().out
    assert f"{model}: 0.00 B parameters" in printed and "2 GPU(s), bf16, micro-batches of 2" in printed
    assert re.search(r"^train-ppo +--zero_stage 0 ", printed, re.MULTILINE)
