"""What the probe finds in models of known behaviour, how it is kept, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from denserl.cli import check_model, train_sft
from denserl.data.batching import pad_responses
from denserl.data.chat import encode_prompt, encode_response
from denserl.errors import UserError
from denserl.models import findings
from denserl.models.dropout import disable_dropout
from denserl.models.gathering import widened
from denserl.models.heads import Head
from denserl.models.loading import load_policy
from denserl.models.measured import LogitMap, check_steady, measure_logit_map, measured
from denserl.models.packing import is_packed
from denserl.models.probe import probe, run_as
from denserl.models.reward_models import attach_lm_head, load_reward_model, new_reward_model
from denserl.models.scoring import token_logprob_entropy, token_rewards
from denserl.rollouts.policy import PolicySampler
from denserl.streams import Purpose, stream

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import model_table
from families import small_config, small_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Where findings are kept, empty at first."""
    monkeypatch.setattr(findings, "CACHE", tmp_path / "measured")
    return tmp_path / "measured"


def language_model(family: str, **settings):
    return small_model(small_config(family, **settings), AutoModelForCausalLM)


class OtherLogits(LlamaForCausalLM):
    """A Llama that does something to its head's output."""

    change = staticmethod(lambda logits: logits)

    def forward(self, *args, **kw):
        output = super().forward(*args, **kw)
        output.logits = self.change(output.logits)
        return output


def other_logits(change) -> OtherLogits:
    torch.manual_seed(0)
    model = OtherLogits(LlamaConfig(**tiny_models.SIZES)).eval()
    model.change = change
    return model


def logprobs_by_hand(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).squeeze(1)


@pytest.mark.parametrize(
    ("family", "settings", "scale", "cap"),
    [
        ("llama", {}, 1.0, None),
        ("gemma2", {"final_logit_softcapping": 3.0}, 1.0, 3.0),
        ("nanochat", {"final_logit_softcapping": 2.5}, 1.0, 2.5),
        ("cohere", {"logit_scale": 0.3}, 0.3, None),
        ("granite", {"logits_scaling": 4.0}, 0.25, None),
        ("hyperclovax", {"logits_scaling": 4.0}, 4.0, None),
    ],
)
def test_what_a_family_does_to_its_logits_is_found(family, settings, scale, cap):
    model = language_model(family, **settings)
    found = measure_logit_map(model)
    assert found.scale == pytest.approx(scale, rel=1e-6) and found.cap == (cap and pytest.approx(cap, rel=1e-6))
    prompt, response = tiny_models.random_rows([4, 6])
    batch = pad_responses([prompt], [response], 0)
    with torch.no_grad():
        got = token_logprob_entropy(model, *batch[:3], 6)[0][0].double()
        torch.testing.assert_close(got, logprobs_by_hand(model, prompt, response), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: 1.7 * x, LogitMap(1.7)),
        (lambda x: 5 * torch.tanh(x * 0.2), LogitMap(1.0, 5.0)),
        (lambda x: 30 * torch.tanh(x / 60), LogitMap(0.5, 30.0)),
    ],
)
def test_maps_of_no_known_name_are_found(change, expected):
    found = measure_logit_map(other_logits(change))
    assert found.scale == pytest.approx(expected.scale, rel=1e-5)
    assert found.cap == (expected.cap and pytest.approx(expected.cap, rel=1e-5))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 1e-3 * x.sign(),
        lambda x: x.clamp(-5, 5),
        lambda x: x + torch.arange(x.shape[-1]) / 50,
        lambda x: x.flip(-1),
        lambda x: x - x.mean(-1, keepdim=True),
        lambda x: x[..., :-1],
        lambda x: torch.where(torch.arange(x.shape[-1]) == 7, -torch.inf, x),
    ],
)
def test_other_maps_are_refused_with_what_was_measured(change):
    with pytest.raises(UserError, match="cannot be computed from its hidden states: .*(off by|the head gives)"):
        probe(other_logits(change))


def test_a_scale_that_learns_is_refused():
    scale = nn.Parameter(torch.tensor(2.0))
    with pytest.raises(UserError, match="weights of its own follow the head"):
        probe(other_logits(lambda x: x * scale))


@pytest.mark.parametrize("window", [4, 1000, 4096])
@pytest.mark.parametrize(
    ("family", "settings", "is_told"),
    [("mistral", {}, True), ("qwen2_moe", {"layer_types": ["sliding_attention", "full_attention"]}, False)],
)
def test_a_window_that_stands_in_the_mask_alone_shows_however_long_it_is(family, settings, is_told, window):
    assert bool(probe(language_model(family, sliding_window=window, **settings)).unpacked) is not is_told


def test_a_few_tokens_of_an_index_are_not_taken_for_all():
    """Attention that is told which tokens to attend to."""
    assert "indices" in probe(language_model("deepseek_v32", index_topk=4)).unpacked
    # Also where the rows that are run are too short to show it.
    assert "indices" in probe(language_model("deepseek_v32", index_topk=2048)).unpacked


def test_chunked_attention_is_not_packed():
    assert probe(language_model("llama4_text", attention_chunk_size=8192)).unpacked


@pytest.mark.parametrize(
    ("rope", "settings", "longest"),
    [
        ({"rope_type": "default"}, {}, None),
        ({"rope_type": "linear", "factor": 2.0}, {}, None),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}, {}, None),
        ({"rope_type": "dynamic", "factor": 2.0}, {}, 128),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "factor": 2.0}
            | {"original_max_position_embeddings": 64},
            {},
            64,
        ),
    ],
    ids=lambda value: value.get("rope_type") if isinstance(value, dict) else None,
)
def test_rows_stay_where_positions_mean_the_same_in_every_row(rope, settings, longest):
    config = LlamaConfig(**{**tiny_models.SIZES, "max_position_embeddings": 128}, rope_parameters={"rope_theta": 1e4, **rope})
    torch.manual_seed(0)
    found = probe(model := AutoModelForCausalLM.from_config(config).eval())
    assert found.longest == longest
    if longest is None:
        return
    # By hand: the first tokens of a row of that length mean what they mean alone; of one token more, they do not.
    with torch.no_grad():
        row = torch.tensor(tiny_models.random_rows([longest + 1]))
        alone, most, more = (model(input_ids=row[:, :length]).logits[0, :8] for length in (8, longest, longest + 1))
    torch.testing.assert_close(most, alone, rtol=1e-4, atol=1e-4)
    assert (more - alone).abs().max() > 0.01
    run_as(model, found)
    sampler = PolicySampler(lambda: model, [2], 0, max_new_tokens=longest)
    with pytest.raises(UserError, match=f"beyond {longest}"):
        sampler([[5, 6]], [stream(0, Purpose.SAMPLING, 0)])


def test_a_score_beyond_the_bound_is_refused_and_within_it_does_not_depend_on_the_batch():
    config = LlamaConfig(
        **tiny_models.SIZES, num_labels=1, rope_parameters={"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    run_as(model, probe(model))
    short, longest, over = tiny_models.random_rows([8, 64, 65])
    with torch.no_grad():
        ids, mask = tiny_models.padded([short, longest])
        alone = token_rewards(model, torch.tensor([short]), torch.ones(1, 8))
        torch.testing.assert_close(token_rewards(model, ids, mask)[:1, :8], alone, rtol=1e-5, atol=1e-5)
        with pytest.raises(UserError, match="65 tokens; beyond 64"):
            token_rewards(model, *tiny_models.padded([short, over]))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"resid_pdrop": 0.5, "attn_pdrop": 0.5}),
        ("opt", {"dropout": 0.5, "attention_dropout": 0.5}),
        ("starcoder2", {"residual_dropout": 0.5, "attention_dropout": 0.5}),
        ("seed_oss", {"residual_dropout": 0.5, "attention_dropout": 0.5}),
        ("mixtral", {"router_jitter_noise": 0.5}),
        ("phimoe", {"router_jitter_noise": 0.5, "input_jitter_noise": 0.5}),
        ("qwen2", {"attention_dropout": 0.5}),
    ],
)
def test_training_mode_is_the_same_in_every_pass(family, settings):
    ids = torch.tensor(tiny_models.random_rows([9]))
    model = language_model(family, **settings).train()
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not probe(model).unsteady and model.training
    # The probe leaves it as it was.
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    disable_dropout(model)
    first, second = model(input_ids=ids).logits, model(input_ids=ids).logits
    assert torch.equal(first, second)
    torch.testing.assert_close(first, model.eval()(input_ids=ids).logits)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + (torch.rand(()) if self.training else 0.0)


def test_what_stays_random_in_training_is_not_trained():
    model = tiny_models.language_model("llama")
    down = model.model.layers[0].mlp.down_proj
    noisy = Noisy(down.in_features, down.out_features, bias=False)
    noisy.weight = down.weight
    model.model.layers[0].mlp.down_proj = noisy
    run_as(model, probe(model.eval()))
    with pytest.raises(UserError, match="random in training mode.*apart by"):
        check_steady(model)


def test_a_model_that_sees_tokens_to_come_is_refused():
    with pytest.raises(UserError, match="depend on the tokens after it .*apart by"):
        probe(language_model("bert", is_decoder=False))


class Centred(nn.Module):
    """Takes the batch's mean away."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) - x.mean((0, 1))


def test_a_model_whose_rows_depend_on_one_another_is_refused():
    model = tiny_models.language_model("llama")
    model.model.norm = Centred(model.model.norm)
    with pytest.raises(UserError, match="depend on the rows beside it .*apart by"):
        probe(model)


def test_damaged_weights_are_refused(tmp_path):
    model = tiny_models.language_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3, 5] = torch.nan
    model.save_pretrained(tmp_path / "damaged")
    with pytest.raises(UserError, match="not finite"):
        load_policy(str(tmp_path / "damaged"), "fp32")


def test_a_head_that_reads_other_states_than_the_classifiers_is_refused(tmp_path):
    # MiniCPM3 scales what its head reads, and not what its classifier reads.
    language_model("minicpm3").save_pretrained(tmp_path)
    model = new_reward_model(str(tmp_path), "fp32")
    with pytest.raises(UserError, match="other hidden states than a reward head, apart by"):
        attach_lm_head(model, str(tmp_path), "fp32")


def test_what_a_language_models_head_is_followed_by_goes_with_it_to_a_classifier(tmp_path):
    language_model("gemma2", final_logit_softcapping=3.0).save_pretrained(tmp_path)
    model = new_reward_model(str(tmp_path), "fp32")
    attach_lm_head(model, str(tmp_path), "fp32")
    assert measured(model).logits.cap == pytest.approx(3.0)


def test_measured_in_fp32_a_narrow_model_comes_back_as_it_was():
    model = language_model("llama").to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    found = probe(model)
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert before.keys() == after.keys()
    assert all(after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items())
    assert max(found.apart.values()) < 1e-5


@pytest.mark.parametrize("passes", range(0, 12, 3))
def test_lack_of_memory_is_no_property_of_a_model(passes):
    model, left = tiny_models.language_model("llama"), iter(range(passes))

    def run_out(*args):
        if next(left, None) is None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.norm.register_forward_pre_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError):
        probe(model)


def test_several_end_tokens_are_no_obstacle():
    model = tiny_models.language_model("llama")
    model.config.eos_token_id = [2, 3]
    assert not probe(model).unpacked


def test_generation_settings_of_the_models_own_are_set_aside():
    model = language_model("gemma2")
    model.generation_config.num_beams = 4
    assert not probe(model).unsampled


class Skipped(nn.Module):
    """Leaves a layer out, once in twenty passes."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, *args, **kw):
        return self.inner(x, *args, **kw) * (torch.rand(()) > 0.05) if self.training else self.inner(x, *args, **kw)


def test_what_is_seldom_random_is_found():
    model = tiny_models.language_model("llama")
    for layer in model.model.layers:
        layer.mlp = Skipped(layer.mlp)
    before = torch.get_rng_state()
    assert probe(model).unsteady and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("most", [2048, 32768])
def test_the_bound_is_found_to_the_token(most):
    rope = {"rope_theta": 5e5, "rope_type": "dynamic", "factor": 2.0}
    config = LlamaConfig(**{**tiny_models.SIZES, "max_position_embeddings": most}, rope_parameters=rope)
    torch.manual_seed(0)
    assert probe(AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()).longest == most


def test_positions_that_count_otherwise_are_called_so():
    with pytest.raises(UserError, match="counts positions otherwise than from 0"):
        probe(language_model("roberta"))


def test_a_layer_at_a_time_is_wide_and_comes_back():
    model, seen = language_model("llama").to(torch.bfloat16), []
    for number, layer in enumerate(model.model.layers):

        def note(module, args, output, number=number):
            dtypes = [{p.dtype for p in other.parameters()} for other in model.model.layers]
            seen.append((number, [torch.float32 in found for found in dtypes]))

        layer.mlp.register_forward_hook(note)
    with widened(model):
        model(input_ids=torch.tensor([[5, 6]]))
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[5, 600]]))
    assert seen == [(0, [True, False]), (1, [False, True])]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["lfm2", "recurrent_gemma", "qwen2_moe"])
def test_what_bf16_would_hide_shows(family):
    settings = {"layer_types": ["sliding_attention", *["full_attention"] * 3], "num_hidden_layers": 4}
    model = language_model(family, **settings if family == "qwen2_moe" else {})
    assert probe(model.to(torch.bfloat16)).unpacked


def test_findings_are_kept_until_weights_or_settings_change(tmp_path, cache, monkeypatch):
    folder = str(tmp_path / "model")
    tiny_models.language_model("llama").save_pretrained(folder)
    first = measured(load_policy(folder, "fp32"))
    with monkeypatch.context() as patch:
        patch.setattr(findings, "probe", lambda model: pytest.fail("measured again"))
        again = load_policy(folder, "fp32")
        assert measured(again) == first and is_packed(again)
    calls = []
    monkeypatch.setattr(findings, "probe", lambda model: calls.append(1) or probe(model))
    load_policy(folder, "bf16")
    tiny_models.language_model("llama", seed=1).save_pretrained(folder)
    load_policy(folder, "fp32")
    assert len(calls) == 2
    # A record that was cut short counts for nothing.
    for file in cache.iterdir():
        file.write_text(file.read_text()[:20])
    load_policy(folder, "fp32")
    assert len(calls) == 3


def test_findings_that_cannot_be_kept_are_measured_each_time(tmp_path, cache):
    cache.write_text("a file where the folder should be")
    tiny_models.language_model("llama").save_pretrained(tmp_path / "model")
    assert is_packed(load_policy(str(tmp_path / "model"), "fp32"))


def test_a_family_without_sdpa_runs_by_eager_attention(tmp_path):
    language_model("bloom").save_pretrained(tmp_path)
    model = load_policy(str(tmp_path), "fp32", attn_implementation="sdpa")
    assert model.config._attn_implementation == "eager" and measured(model).unpacked


REMOTE = """
import torch
from transformers import LlamaForCausalLM

class Halved(LlamaForCausalLM):
    def forward(self, *args, **kw):
        output = super().forward(*args, **kw)
        output.logits = output.logits / 2
        return output
"""


def test_a_models_own_code_is_measured_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    tiny_models.language_model("llama").save_pretrained(folder)
    (folder / "halved.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "halved.Halved"}
    (folder / "config.json").write_text(json.dumps(config))
    model = load_policy(str(folder), "fp32", trust_remote_code=True)
    assert type(model).__name__ == "Halved" and measured(model).logits == LogitMap(0.5) and is_packed(model)
    # Other code is measured anew, also where the class only imports it.
    (folder / "helper.py").write_text("FACTOR = 2")
    (folder / "halved.py").write_text(REMOTE.replace("/ 2", "/ 4"))
    assert measured(load_policy(str(folder), "fp32", trust_remote_code=True)).logits == LogitMap(0.25)


@pytest.fixture
def zero_3_ends():
    """Models are loaded whole again after the test: transformers spreads them as long as it remembers the arguments."""
    yield
    unset_hf_deepspeed_config()


def test_weights_that_zero_3_has_spread_are_measured_too(tmp_path, zero_3_ends):
    tokenizer, folder = tiny_models.tiny_tokenizer(), tmp_path / "model"
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = language_model("hyperclovax", logits_scaling=4.0, **sizes)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    rows = tiny_models.boat_pairs(2)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, "response": row["chosen"]}) + "\n" for row in rows))
    options = {"model": folder, "data": tmp_path / "rows.jsonl", "output_dir": tmp_path / "run", "zero_stage": 3, "lr": 0}
    options |= {"batch_size": 2, "micro_batch_size": 2, "save_steps": 0, "logging_steps": 1, "device": "cpu"}
    tiny_models.run_command(train_sft, "train-sft", tiny_models.as_argv(options))
    logged = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    nats = []
    for row in rows:
        messages = [{"role": "user", "content": row["prompt"]}]
        prompt = encode_prompt(tokenizer, messages)
        nats.append(-logprobs_by_hand(model, prompt, encode_response(tokenizer, messages, row["chosen"])))
    assert logged["loss"] == pytest.approx(torch.cat(nats).mean().item(), rel=1e-5)


@pytest.mark.parametrize("head", [Head(), Head(bias=True), Head("mlp", 1, 8, 0.0)])
def test_a_head_is_as_wide_as_what_it_reads(tmp_path, head):
    # What OPT's head reads may be narrower than its layers.
    language_model("opt", word_embed_proj_dim=16).save_pretrained(tmp_path / "opt")
    model = new_reward_model(str(tmp_path / "opt"), "fp32", head=head)
    model.save_pretrained(tmp_path / "rm")
    again = load_reward_model(str(tmp_path / "rm"), "fp32")
    ids, mask = tiny_models.padded(tiny_models.random_rows([7, 4]))
    with torch.no_grad():
        # To rounding: copies of the weights may lie otherwise in memory.
        found, expected = (token_rewards(one, ids, mask) for one in (again, model))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_command_prints_what_was_found(tmp_path, capsys):
    language_model("gemma2", final_logit_softcapping=3.0).save_pretrained(tmp_path / "policy")
    check_model.main([str(tmp_path / "policy")])
    shown = capsys.readouterr().out
    assert "Gemma2ForCausalLM, a language model in fp32" in shown and "capped at 3" in shown
    assert "on padded batches, with eager attention" in shown and "with generate" in shown
    tiny_models.classifier("llama").save_pretrained(tmp_path / "rm")
    check_model.main([str(tmp_path / "rm"), "--dtype", "bf16"])
    shown = capsys.readouterr().out
    assert "a reward model in bf16" in shown and "without padding" in shown and "the stock class's score" in shown


def test_the_command_refuses_what_loading_refuses(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        check_model.main([str(tmp_path / "nothing")])
    assert ended.value.code == 2 and "there is no model folder" in capsys.readouterr().err


FEW = ["gemma3", "qwen3_moe", "deepseek_v3", "deepseek_v32", "lfm2", "doge", "opt", "mamba2"]
# Cells of the page's rows: family, how it runs, ...
LINES = [line for line in model_table.PAGE.read_text().splitlines() if line.startswith("| ")][2:]


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


PAGE = {cells_of(line)[0]: cells_of(line) for line in LINES}
OTHERS = [family for family in PAGE if family not in FEW]
# Where rounding grows on its way through the model: attention as a recurrence, layers that run many times.
ROUNDED = dict.fromkeys(
    ("hrm_text", "rembert", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), 1e-4
)


@pytest.mark.parametrize("family", [*FEW, *(pytest.param(family, marks=pytest.mark.long) for family in OTHERS)])
def test_a_family_gives_what_its_stock_class_gives_by_eager_attention(family):
    row = model_table.measure(family)
    # As the page has it, but for the numbers of its notes.
    shown, now = ([cell.split(" (")[0] for cell in cells] for cells in (PAGE[family], cells_of(model_table.line(row, []))))
    assert [now[i] for i in (1, 2, 3, 4, 8)] == [shown[i] for i in (1, 2, 3, 4, 8)]
    if row.found is None:
        return
    limit = 1e-4 if family in ROUNDED else 1e-5
    assert row.logprob <= limit and row.ratio == 1
    assert row.gradient is None or row.gradient <= limit
    if row.classifier is not None:
        assert row.score <= limit and row.score_gradient <= limit


def test_the_page_has_sixty_families_that_train():
    assert sum(runs == "packed" or runs.startswith("padded") for _, runs, *_ in PAGE.values()) >= 60 and {*FEW} <= {*PAGE}
