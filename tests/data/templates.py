"""Published chat templates written out, each with a small tokenizer that has its model's special tokens.

Six are here; more, in short form, are in chat_templates/, one file each that begins with the model it is of. The tokenizers
know single bytes or characters and a few merges; no network is needed.
"""

import json
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PHI3 = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if not (message['role'] == 'system' and loop.first) %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_WITHOUT_GENERATION_PROMPT = CHATML.replace(
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}", ""
)

SPECIAL_TOKENS = {
    "phi3": ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen25": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    "mistral": ["<unk>", "<s>", "</s>"],
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}
END_OF_TURN = {
    "phi3": "<|end|>",
    "llama3": "<|eot_id|>",
    "qwen25": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "chatml": "<|im_end|>",
}
NAMES = list(END_OF_TURN)
_TEMPLATES = {"phi3": PHI3, "llama3": LLAMA3, "qwen25": QWEN25, "gemma": GEMMA, "mistral": MISTRAL, "chatml": CHATML}
_BOS_EOS = {
    "phi3": ("<s>", "<|endoftext|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "qwen25": (None, "<|im_end|>"),
    "gemma": ("<bos>", "<eos>"),
    "mistral": ("<s>", "</s>"),
    "chatml": (None, "<|endoftext|>"),
}
_CORPUS = [
    "user system assistant model\n\nHello there, what is it?\n",
    "The answer: it is a question [/INST] Yes.\n\n\n",
] * 5
_LLAMA3_SPLIT = (  # Qwen's differs only in taking one digit at a time
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = ("llama3", "qwen25", "chatml")


def build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The small tokenizer of one of NAMES: byte-level BPE, or sentencepiece-like BPE with byte fallback."""
    special = [AddedToken(text, special=True, normalized=False, rstrip=name == "phi3") for text in SPECIAL_TOKENS[name]]
    backend = _byte_level(special) if name in _BYTE_LEVEL else _sentencepiece(special, legacy=name != "gemma")
    bos, eos = _BOS_EOS[name]
    if bos and name != "phi3":
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = _TEMPLATES[name]
    return tokenizer


class Published(NamedTuple):
    """A template of chat_templates/ and what its tokenizer has."""

    tokens: str  # special ones, the first two BOS and EOS; - for none
    prompt_ends: str  # with what a prompt ends, as text
    answer: str = "{}"  # what follows it, with the answer's text in the place of {}
    added: str = ""  # tokens that are not special
    sentencepiece: bool = False


_TURNS = "- <|im_end|> <|im_start|> <|endoftext|>"
_OPENS = "<|im_start|>assistant\n"
_EMPTY = "<think>\n\n</think>\n\n"
_THINK = "<think> </think>"
_LLAMA3_TOKENS = "<|begin_of_text|> <|eot_id|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|python_tag|>"
_R1 = (
    "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> "
    "<｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁sep｜> <｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> "
    "<｜tool▁output▁begin｜> <｜tool▁output▁end｜>"
)
_MISTRAL_TOKENS = (
    "<s> </s> <unk> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]"
)
_COMMAND_R = "<BOS_TOKEN> <|END_OF_TURN_TOKEN|> <|START_OF_TURN_TOKEN|> <|SYSTEM_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|>"
PUBLISHED = {
    "llama2": Published("<s> </s> <unk>", " [/INST]", " {} </s>", sentencepiece=True),
    "llama31": Published(_LLAMA3_TOKENS, "assistant<|end_header_id|>\n\n", "{}<|eot_id|>"),
    "llama32": Published(_LLAMA3_TOKENS, "assistant<|end_header_id|>\n\n", "{}<|eot_id|>"),
    "mistral_v3": Published(_MISTRAL_TOKENS, "[/INST]", " {}</s>", sentencepiece=True),
    "mistral_small": Published("<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]", "[/INST]", "{}</s>"),
    "qwen25_tools": Published(_TURNS, _OPENS, "{}<|im_end|>", "<tool_call> </tool_call>"),
    "qwen3": Published(_TURNS, _OPENS, _EMPTY + "{}<|im_end|>", _THINK + " <tool_call> </tool_call>"),
    "qwen35": Published(_TURNS, _OPENS + "<think>", "\n\n</think>\n\n{}<|im_end|>", _THINK + " <tool_call> </tool_call>"),
    "qwq": Published(_TURNS, _OPENS, "{}<|im_end|>", _THINK),
    "deepseek_r1_distill": Published(_R1, "<｜Assistant｜>", "{}<｜end▁of▁sentence｜>", _THINK),
    "deepseek_v2": Published("<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜>", "Assistant:", " {}<｜end▁of▁sentence｜>"),
    "deepseek_v31": Published(_R1, "<｜Assistant｜></think>", "{}<｜end▁of▁sentence｜>", _THINK),
    "gemma3": Published("<bos> <end_of_turn> <eos> <pad> <unk> <start_of_turn>", "model\n", "{}<end_of_turn>"),
    "phi4": Published("<|endoftext|> <|im_end|> <|im_start|> <|im_sep|>", "assistant<|im_sep|>", "{}<|im_end|>"),
    "phi4_mini": Published(
        "- <|endoftext|> <|system|> <|user|> <|assistant|> <|end|> <|tool|> <|/tool|>", "<|assistant|>", "{}<|end|>"
    ),
    "zephyr": Published("<s> </s> <unk>", "<|assistant|>\n", "{}</s>", sentencepiece=True),
    "tulu3": Published("<|begin_of_text|> <|end_of_text|>", "<|assistant|>\n", "{}<|end_of_text|>"),
    "gpt_oss": Published(
        "<|startoftext|> <|return|> <|start|> <|end|> <|message|> <|channel|> <|call|>",
        "<|start|>assistant",
        "<|channel|>final<|message|>{}<|return|>",
    ),
    "command_r": Published(_COMMAND_R, "<|CHATBOT_TOKEN|>", "{}<|END_OF_TURN_TOKEN|>"),
    "granite": Published(
        "- <|end_of_text|> <|start_of_role|> <|end_of_role|> <|tool_call|>", "assistant<|end_of_role|>", "{}<|end_of_text|>"
    ),
    "smollm2": Published(_TURNS, _OPENS, "{}<|im_end|>"),
    "smollm3": Published(_TURNS, _OPENS, "{}<|im_end|>", _THINK),
    "vicuna": Published("<s> </s> <unk>", " ASSISTANT:", " {}</s>", sentencepiece=True),
    "openchat": Published(
        "<s> <|end_of_turn|> </s> <unk>", "GPT4 Correct Assistant:", " {}<|end_of_turn|>", sentencepiece=True
    ),
    "glm4": Published("- <|endoftext|> [gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>", ""),
    "exaone": Published("[BOS] [|endofturn|] [|system|] [|user|] [|assistant|]", "[|assistant|]", "{}[|endofturn|]"),
    "smolvlm": Published("<|im_start|> <end_of_utterance> <|endoftext|> <image>", "\nAssistant:", " {}<end_of_utterance>"),
    "kimi_k2": Published(
        "[BOS] <|im_end|> <|im_system|> <|im_user|> <|im_assistant|> <|im_middle|>",
        "assistant<|im_middle|>",
        "{}<|im_end|>",
        "<|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|> <|tool_call_argument_begin|> "
        "<|tool_call_end|>",
    ),
    "lfm2": Published("<|startoftext|> <|im_end|> <|im_start|>", _OPENS, "{}<|im_end|>"),
    "internlm2": Published("<s> <|im_end|> </s> <unk> <|im_start|>", _OPENS, "{}<|im_end|>", sentencepiece=True),
    "minimax_m2": Published("]~!b[ [e~[ ]~b] <|endoftext|>", "]~b]ai\n", "{}[e~[", _THINK),
    "gemma4": Published("<bos> <turn|> <eos> <pad> <|turn> <|channel> <channel|>", "<|turn>model\n", "{}<turn|>"),
    "minicpm": Published("<s> </s> <unk>", "<AI>", sentencepiece=True),
    "nemotron_nano": Published("<s> <SPECIAL_12> </s> <SPECIAL_10> <SPECIAL_11>", "Assistant\n", "{}\n<SPECIAL_12>", _THINK),
}


def published_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The small tokenizer of one of PUBLISHED; none adds a BOS by itself, as its template writes it."""
    what = PUBLISHED[name]
    bos, eos, *_ = tokens = what.tokens.split()
    special = [AddedToken(text, special=True, normalized=False) for text in tokens if text != "-"]
    backend = _sentencepiece(special, legacy=True) if what.sentencepiece else _byte_level(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos if bos != "-" else None, eos_token=eos)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in what.added.split()])
    folder = Path(__file__).parent / "chat_templates"
    tokenizer.chat_template = (folder / f"{name}.jinja").read_text()
    if name == "command_r":
        with_tools = (folder / "command_r_tools.jinja").read_text()
        tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": with_tools}
    return tokenizer


def _byte_level(special: list) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    return _trained(backend, special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def _sentencepiece(special: list, legacy: bool) -> Tokenizer:
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    prepend = [normalizers.Prepend("▁")] if legacy else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + ([decoders.Strip(" ", 1, 0)] if legacy else [])
    )
    state = json.loads(_trained(backend, special).to_str())
    vocabulary = state["model"]["vocab"]
    for value in range(256):  # the byte pieces are the model's own, not added tokens, as in sentencepiece
        vocabulary[f"<0x{value:02X}>"] = len(vocabulary)
    return Tokenizer.from_str(json.dumps(state))


def _trained(backend: Tokenizer, special: list, **kwargs) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False, **kwargs)
    backend.train_from_iterator(_CORPUS, trainer)
    return backend
