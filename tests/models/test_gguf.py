"""Language models out of GGUF files: what is written computes what the file's model computes."""

import json

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from denserl.errors import UserError
from denserl.models.gguf import import_gguf

# llama.cpp's names of a Llama's weights.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp rotates them: the two that turn together side by side, not half a head apart."""
    first, second = np.split(weight.reshape(heads, -1, weight.shape[1]), 2, axis=1)
    return np.stack([first, second], axis=2).reshape(weight.shape)


def write_gguf(path, model, tokenizer, kept=lambda name: True):
    gguf = pytest.importorskip("gguf")
    config, vocabulary = model.config, tokenizer.get_vocab()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    special = set(tokenizer.all_special_ids)
    kinds = [gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for number in range(len(vocabulary))]
    writer.add_token_types(kinds)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" or not kept(name):  # tied: the embeddings
            continue
        layer, _, own = name.removesuffix(".weight").removeprefix("model.layers.").partition(".")
        own, block = (own, f"blk.{layer}.") if layer.isdigit() else (name.removesuffix(".weight"), "")
        weight = tensor.numpy()
        if NAMES[own] in heads:
            weight = in_pairs(weight, heads[NAMES[own]])
        writer.add_tensor(f"{block}{NAMES[own]}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tiny_models.save_language_model(tmp_path_factory.mktemp("tiny"))
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_the_folder_computes_and_reads_as_the_model_of_the_file(tiny, tmp_path):
    model, tokenizer = tiny
    found = import_gguf(write_gguf(tmp_path / "a.gguf", *tiny), tmp_path / "out")
    assert found == ("LlamaForCausalLM", model.num_parameters(), len(tokenizer))
    ours, its = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    talk = [{"role": "user", "content": "why is the sky blue?"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    read = its.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)
    assert read["input_ids"] == ids[0].tolist()
    assert (its.eos_token, its.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


def test_weights_are_written_in_the_type_that_is_asked_for(tiny, tmp_path):
    import_gguf(write_gguf(tmp_path / "a.gguf", *tiny), tmp_path / "out", "bf16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("content, found", [(b"", "no GGUF file"), (b"GGUF", "cannot read it"), (None, "no such file")])
def test_what_is_no_such_file_is_refused(content, found, tmp_path):
    pytest.importorskip("gguf")
    file = tmp_path / "a.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=found):
        import_gguf(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_missing_are_named(tiny, tmp_path):
    file = write_gguf(tmp_path / "a.gguf", *tiny, kept=lambda name: "down_proj" not in name)
    with pytest.raises(UserError, match="down_proj"):
        import_gguf(file, tmp_path / "out")
