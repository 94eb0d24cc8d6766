"""What is planned against what is: counts by hand, engines that really step, caches and passes that really run."""

import pytest
import tiny_models
import torch
from transformers import DynamicCache, GPT2Config, LlamaConfig

from denserl.memory import formulas
from denserl.memory.formulas import Sharding, Size
from denserl.memory.meta_pass import LiveBytes, cache_bytes_per_token, classifier_bytes, policy_bytes
from denserl.models import decoding
from denserl.models.adapters import prepare_model
from denserl.models.config import AdapterConfig
from denserl.models.decoding import Decoder
from denserl.models.loading import empty_policy, empty_reward_model
from denserl.models.scoring import token_logprob_entropy, token_rewards
from denserl.trainer import engine as engines
from denserl.trainer.config import OptimisationConfig
from denserl.trainer.lookahead import Moved, RankGradient

VOCABULARY, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 500, 64, 192, 3, 4, 2
KV = HIDDEN * KV_HEADS // HEADS
LENGTH = 96
# Of activations between a dry run and a real one: positions and masks, which are laid out in another way.
CLOSE = 0.02


def llama(**changed) -> LlamaConfig:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    special = {"bos_token_id": 1, "eos_token_id": 2, "architectures": ["LlamaForCausalLM"]}
    return LlamaConfig(**{**sizes, **heads, **special, "max_position_embeddings": LENGTH, **changed})


def gpt2() -> GPT2Config:
    sizes = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": LENGTH}
    return GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)


CONFIGS = {"llama": llama, "gpt2": gpt2}


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture
def folder(tmp_path):
    """Family -> a folder that holds a config.json and nothing else."""

    def write(family: str, **changed) -> str:
        CONFIGS[family](**changed).save_pretrained(tmp_path / family)
        return str(tmp_path / family)

    return write


def real(empty) -> torch.nn.Module:
    """A model with numbers for an empty one: zeros will do."""
    config = empty.config
    config._attn_implementation = "sdpa"
    model = type(empty)(config).float()
    if empty.is_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return tiny_models.probed(model)


# Embedding; queries and output, keys and values, MLP, two norms in each layer; the last norm.
BACKBONE = VOCABULARY * HIDDEN + LAYERS * (2 * HIDDEN**2 + 2 * HIDDEN * KV + 3 * HIDDEN * INNER + 2 * HIDDEN) + HIDDEN


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_of_a_config_are_those_counted_by_hand(folder, tied):
    path = folder("llama", tie_word_embeddings=tied)
    count = BACKBONE + (0 if tied else VOCABULARY * HIDDEN)
    assert Size.of(empty_policy(path, "fp32")) == Size(count, count)
    assert Size.of(empty_reward_model(path, "bf16")) == Size(BACKBONE + HIDDEN, BACKBONE + HIDDEN)


def test_adapters_are_counted_by_hand(folder):
    pytest.importorskip("peft")
    rank, path = 3, folder("llama")
    ends = 2 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + KV) + 3 * (HIDDEN + INNER)
    trained = LAYERS * rank * ends
    model = prepare_model(empty_policy(path, "fp32"), AdapterConfig(lora_rank=rank), "CAUSAL_LM")
    assert Size.of(model) == Size(BACKBONE + VOCABULARY * HIDDEN + trained, trained)


def test_adam_holds_eight_bytes_a_parameter():
    parameters = [torch.nn.Parameter(torch.ones(n)) for n in (1000, 24)]
    optimizer = torch.optim.AdamW(parameters)
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
    held = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if x.ndim)
    assert formulas.optimizer_states(Size(1024, 1024), Sharding(gpus=1, zero_stage=0, width=4)) == held


@pytest.mark.parametrize(
    "gpus, stage, width, offload, weights, states, gradients",
    [
        (4, 0, 4, False, 4000, 8 * 800, 4 * 800),
        (4, 0, 2, False, 2000, 12 * 200, 4 * 200),  # runs as stage 2
        (4, 1, 4, False, 4000, 12 * 200, 4 * 800),
        (4, 2, 2, False, 2000, 12 * 200, 4 * 200),
        (4, 3, 2, False, 500, 12 * 200, 4 * 200),
        (8, 3, 4, False, 500, 12 * 100, 4 * 100),
        (4, 1, 4, True, 4000, 0, 4 * 800),
        (4, 1, 2, True, 2000, 0, 4 * 200),  # runs as stage 2
        (4, 2, 4, True, 4000, 0, 0),
        (4, 3, 2, True, 500, 0, 0),
    ],
)
def test_shares_by_hand(gpus, stage, width, offload, weights, states, gradients):
    size, sharding = Size(1000, 800), Sharding(gpus, stage, width, offload)
    assert formulas.weights(size, sharding) == weights
    assert formulas.optimizer_states(size, sharding) == states
    assert formulas.gradients_kept(size, sharding) == gradients
    # fp32 weights, two moments, two kinds of gradients, and updated weights.
    assert formulas.offloaded(size, sharding) == (800 * (4 + 8 + 4 + width + width) if offload else 0)
    assert formulas.moved_weights(size, sharding) == width * 800 // (gpus if stage == 3 else 1)


def test_deepspeeds_defaults_are_what_the_formulas_take_them_for():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(stage=3)
    assert zero.reduce_bucket_size == formulas.REDUCE_BUCKET
    assert zero.max_live_parameters == zero.max_reuse_distance == formulas.MAX_LIVE_PARAMETERS
    assert zero.sub_group_size == formulas.MAX_SUB_GROUP


@pytest.mark.parametrize(
    "dtype, stage", [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 0), ("bf16", 2), ("bf16", 3)]
)
def test_an_engine_holds_what_the_formulas_say(dtype, stage):
    """Bytes of live tensors at rest, between micro-batches, and at most, in a world of one."""
    engines.init_distributed(torch.device("cpu"))
    seen = {}
    with LiveBytes("cpu") as live:
        module = torch.nn.Sequential(*[torch.nn.Linear(512, 512, bias=False) for _ in range(8)])
        module = module.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
        config = OptimisationConfig(zero_stage=stage, warmup_ratio=0.0)
        of_engine = engines.deepspeed_config(config, dtype, micro_batch_size=1, accumulation=2)
        engine = engines.train_engine(module, of_engine, config, lr=1e-3, total_steps=9)
        inputs = torch.ones(1, 512, dtype=next(module.parameters()).dtype)
        # The optimiser's state is there from the first step on.
        for part in ("kept", "rest", "kept", "rest"):
            engine.backward(engine(inputs).float().sum())
            engine.step()
            seen[part] = live.now
    engine.destroy()
    count = 8 * 512**2
    size, sharding = Size(count, count), Sharding(1, stage, 4 if dtype == "fp32" else 2)
    rest = formulas.at_rest(size, sharding)
    assert seen["rest"] == pytest.approx(rest, abs=0.1 * count)
    assert seen["kept"] == pytest.approx(rest + formulas.between_micro_batches(size, sharding), abs=0.1 * count)
    # At its peak never more than planned, and less by the size of the gradients at most.
    spare = rest + formulas.training_peak(size, sharding, activations=0) - live.most
    assert -0.1 * count < spare <= sharding.width * count


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_cache_is_as_large_as_a_real_one(folder, family):
    model = real(empty_policy(folder(family), "fp32")).eval()
    with torch.no_grad():
        cache = model(input_ids=torch.ones(2, 7, dtype=torch.long), past_key_values=DynamicCache()).past_key_values
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    per_token = cache_bytes_per_token(empty_policy(folder(family), "fp32"))
    assert per_token * 2 * 7 == held
    assert per_token == 2 * LAYERS * (KV if family == "llama" else HIDDEN) * 4


def cache_bytes(decoder: Decoder) -> int:
    return sum(past.keys.nbytes + past.values.nbytes for group in decoder.groups for past in group.layers.values())


@pytest.mark.parametrize("new_tokens", [1, 64, 65, *(pytest.param(count, marks=pytest.mark.long) for count in (2, 66, 200))])
def test_the_decoders_cache_is_as_large_as_planned(folder, new_tokens):
    path, prompt, rows = folder("llama", max_position_embeddings=512), 20, 3
    model = real(empty_policy(path, "fp32")).eval()
    with torch.no_grad():
        decoder = Decoder(model, new_tokens)
        decoder.admit([[token] * prompt for token in range(3, 3 + rows)])
        for _ in range(new_tokens - 1):
            decoder.step(torch.ones(rows, dtype=torch.long))
    held = cache_bytes(decoder)
    assert held == formulas.cache(cache_bytes_per_token(empty_policy(path, "fp32")), rows, prompt, new_tokens)


def test_reading_prompts_takes_no_more_than_a_pass_beside_the_cache(folder, monkeypatch):
    """Sixteen prompts in passes of two, against two prompts: more by keys and values, and by the logits, twice."""
    monkeypatch.setattr(decoding, "PROMPT_TOKENS", 64)
    model, most, cache = real(empty_policy(folder("llama", max_position_embeddings=512), "fp32")).eval(), {}, {}
    for rows in (2, 16):
        with LiveBytes("cpu", [*model.parameters(), *model.buffers()]) as live, torch.no_grad():
            decoder = Decoder(model, 8)
            logits = decoder.admit([[3 + row] * 32 for row in range(rows)])
        most[rows] = live.most
        cache[rows] = cache_bytes(decoder)
    assert cache[16] == 8 * cache[2] and most[16] - most[2] <= cache[16] - cache[2] + 2 * logits.nbytes


def passed(model, kind: str, rows: int, known=()):
    """A real forward and backward pass, and the most bytes alive in it."""
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ids, mask = torch.ones(rows, LENGTH, dtype=torch.long), torch.ones(rows, LENGTH, dtype=torch.long)
    known = [*model.parameters(), *(p.grad for p in model.parameters()), *model.buffers(), ids, mask]
    with LiveBytes("cpu", known) as live:
        if kind == "policy":
            token_logprob_entropy(model, ids, mask, LENGTH - 40, 40, with_entropy=False)[0].sum().backward()
        else:
            token_rewards(model, ids, mask).sum().backward()
    return live.most


@pytest.mark.parametrize(
    "family, kind, checkpointing",
    [
        ("llama", "policy", False),
        ("llama", "classifier", True),
        ("gpt2", "policy", True),
        ("gpt2", "classifier", False),
        pytest.param("llama", "policy", True, marks=pytest.mark.long),
        pytest.param("llama", "classifier", False, marks=pytest.mark.long),
        pytest.param("gpt2", "policy", False, marks=pytest.mark.long),
        pytest.param("gpt2", "classifier", True, marks=pytest.mark.long),
    ],
)
def test_a_dry_run_needs_what_a_real_run_needs(folder, family, kind, checkpointing):
    empty = (empty_policy if kind == "policy" else empty_reward_model)(folder(family), "fp32")
    prepare_model(empty, AdapterConfig(gradient_checkpointing=checkpointing), "")
    model = real(empty)
    for rows in (2, 8):
        planned = (
            policy_bytes(empty, rows, LENGTH, 40, True) if kind == "policy" else classifier_bytes(empty, rows, LENGTH, True)
        )
        assert planned == pytest.approx(passed(model, kind, rows), rel=CLOSE)


def test_a_meta_step_holds_what_the_formulas_say(folder):
    """fp32, without ZeRO: at most, and from then until the weights are put back."""
    empty, rows = empty_reward_model(folder("llama"), "fp32"), 2
    model = real(empty).train()
    ids, mask = torch.ones(rows, LENGTH, dtype=torch.long), torch.ones(rows, LENGTH, dtype=torch.long)
    with LiveBytes("cpu", [*model.parameters(), *model.buffers(), ids, mask]) as live:
        slope = RankGradient(list(model.parameters()))
        slope.add(token_rewards(model, ids, mask).sum())
        moved = Moved(slope.parameters, slope.total(), 0.1, 0, lambda: None)
        del slope
        held = live.now
        moved.back()
    size, sharding = Size.of(model), Sharding(gpus=1, zero_stage=0, width=4)
    planned = formulas.meta_peak(size, sharding, classifier_bytes(empty, rows, LENGTH, True))
    assert planned == pytest.approx(live.most, rel=CLOSE)
    assert formulas.moved_weights(size, sharding) == pytest.approx(held, rel=CLOSE) and live.now < 0.1 * held


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_activations_are_what_autograd_saves(folder, family):
    """The dry run's peak is above what autograd keeps for the backward pass, and by little; for Llama also in closed form."""
    rows, empty = 8, empty_reward_model(folder(family), "fp32")
    model, saved = real(empty).train(), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.ones(rows, LENGTH, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = token_rewards(model, ids, torch.ones_like(ids))
    planned = classifier_bytes(empty, rows, LENGTH, True)
    assert sum(saved.values()) <= planned <= 1.1 * sum(saved.values())
    scores.sum().backward()
    if family == "llama":
        # A layer keeps for each token: input, normed and scaled at two norms; queries, output of attention (twice, as packing
        # joins sequences), a number for each head; keys, values; four of the MLP; a number for each norm. The last norm: three.
        layer = 6 * HIDDEN + 3 * HIDDEN + HEADS + 2 * KV + 4 * INNER + 2
        assert sum(saved.values()) == pytest.approx(4 * rows * LENGTH * (LAYERS * layer + 3 * HIDDEN), rel=0.03)


def test_half_the_width_takes_half_the_memory_but_for_what_is_in_fp32(folder):
    full, half = (classifier_bytes(empty_reward_model(folder("llama"), dtype), 4, LENGTH, True) for dtype in ("fp32", "bf16"))
    assert 0.5 * full < half < 0.75 * full


def test_reading_needs_less_than_training(folder):
    path = folder("llama")
    trained, read = (policy_bytes(empty_policy(path, "fp32"), 4, LENGTH, 40, train) for train in (True, False))
    assert read < trained / 2
