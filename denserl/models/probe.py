"""Runs a model that was just loaded on a few short rows, and finds how it may be run: by comparing numbers, never by its name.

A model that gives other numbers without padding runs with it; one that gives others when it decodes is sampled from with
`generate`; what has no way out is refused with the difference. Findings are kept on the model (measured.py).
"""

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedConfig, PreTrainedModel

from denserl.data.batching import ResponseBatch, pad_responses, pad_rows
from denserl.errors import UserError
from denserl.models import varlen
from denserl.models.decoding import Decoder, NarrowDecoder, plain_settings
from denserl.models.dropout import without_dropout
from denserl.models.gathering import widened
from denserl.models.logprob import chunked_logprob_entropy
from denserl.models.measured import LogitMap, Measured, hooked, measure_logit_map, remember
from denserl.models.packing import KERNELS, PACKED_ATTENTION, lay_out, packed_inputs, packed_name
from denserl.models.scoring import score_head
from denserl.models.stretched import STRETCHED, NarrowPacking, StretchedPacking

Result = TypeVar("Result")

# Results that should be equal are apart by rounding alone up to this much (see `apart`), in fp32.
TOLERANCE = 1e-4
# The same of what is compared in a narrow type: attention of all rows at once, and row by row.
AT_ONCE, BY_KERNEL, NARROW_TOLERANCE = "all rows at once", "decoded by a kernel", 2e-2
# Tokens of the prompts and of the rows that are run; the second and third begin alike.
PROMPTS, LENGTHS = (3, 5, 5), (6, 17, 13)
# Rows that are decoded, and tokens that are sampled after each prompt.
ORDER = [2, 1]
SAMPLED = 3
# Passes of a model that draws random numbers: of layers that drop one token in twenty, one pass would often show nothing.
DRAWS = 32
# The farthest position that is tried, where a model's positions do not end before.
FAR = 2**22


class Pass(NamedTuple):
    """One forward of a model."""

    hidden: Tensor  # (B, S, H), what the head reads
    output: Tensor  # the model's logits: (B, S, V), or (B, 1) scores


class Subject(NamedTuple):
    """A model that is looked at, the rows that it is run on, and how far results were apart so far, by what was compared."""

    model: PreTrainedModel
    head: nn.Module
    is_classifier: bool
    rows: list[list[int]]
    batch: ResponseBatch
    found: dict[str, float]


def run_as(model: PreTrainedModel, found: Measured) -> PreTrainedModel:
    """Let a model run in the way that was found for it, and keep on it what was found."""
    remember(model, found)
    model.set_attn_implementation(found.attention if found.unpacked else packed_name(found))
    return model


def probe(model: PreTrainedModel) -> Measured:
    """What a model does that was loaded with its stock attention, which it keeps.

    A classifier is one that has a `score`; any other is a language model.

    Raises:
        UserError: a row's numbers depend on the rows beside it, or on tokens to come; log-probabilities or scores cannot be had
            from hidden states.
    """
    was_training, attention = model.training, model.config.get_text_config()._attn_implementation
    try:
        with torch.no_grad(), without_dropout(model):
            is_flash = attention.startswith("flash")
            if is_flash:
                _stand_in(model)
            found = _measured(model.eval())
            if not found.unsteady and found.attention != "eager" and not _same_with_gradients(run_as(model, found)):
                model.set_attn_implementation("eager")
                found = _measured(model)._replace(unpacked="another kernel serves its attention where gradients are wanted")
            found = found._replace(attention=attention) if is_flash else found
            return found if found.unpacked else _with_kernel(model, found)
    finally:
        model.train(was_training).set_attn_implementation(attention)


def check_same_hidden(policy: PreTrainedModel, classifier: PreTrainedModel) -> None:
    """UserError unless the head of a language model and that of the classifier made from it read the same hidden states."""
    heads, row = (policy.get_output_embeddings(), score_head(classifier)), _plain(_rows(policy)[0], policy.device)
    with torch.no_grad(), without_dropout(policy), without_dropout(classifier), widened(policy), widened(classifier):
        own, other = (_forward(*of, row).hidden[0] for of in zip((policy, classifier), heads, strict=True))
    if not apart(other, own) <= TOLERANCE:
        raise _refused(policy, f"its own head reads other hidden states than a reward head, apart by {apart(other, own):.2g}")


def apart(found: Tensor, expected: Tensor) -> float:
    """How far two (N, H) results are apart: of the worst row, the norm of the difference relative to that of the row.

    Returns: infinity for other shapes, and where something is not a number.
    """
    if found.shape != expected.shape:
        return float("inf")
    return _most((found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1).clamp(min=1e-12))


def _most(error: Tensor) -> float:
    found = error.max().item()
    return found if math.isfinite(found) else float("inf")


def _stand_in(model: PreTrainedModel) -> None:
    """Another kernel for flash attention, which runs on CUDA alone, in narrow types alone."""
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:
        model.set_attn_implementation("eager")


def _with_kernel(model: PreTrainedModel, found: Measured) -> Measured:
    """The findings, with what the kernel that takes all rows at once does, where it runs in this machine in the model's type.

    Whatever device the model is on now, its attention is computed where the kernel runs.
    """
    kernel, is_flash = KERNELS[packed_name(found)], found.attention.startswith("flash")
    if is_flash and kernel.function() is None:
        return found._replace(unpacked=kernel.missing)
    # Within the context below, the model's own type is fp32.
    device, dtype = varlen.device_at_hand(), model.dtype
    if device is None or dtype not in varlen.DTYPES:
        return found
    model.set_attn_implementation(packed_name(found))
    with widened(model):
        of = _subject(model)._replace(found=dict(found.apart))
        why = _compare(of, AT_ONCE, lambda: _at_once(of, device, dtype), NARROW_TOLERANCE)
        if not (why or of.is_classifier or found.generates):
            masked = _compare(of, BY_KERNEL, lambda: _decoded_by_kernel(of, device, dtype), NARROW_TOLERANCE)
            found = found._replace(masked=masked)
    found = found._replace(apart=of.found)
    return found._replace(unpacked=why) if is_flash else found._replace(row_by_row=why)


def _at_once(of: Subject, device: torch.device, dtype: torch.dtype) -> float:
    """How far attention of all rows at once is from that row by row, both in a narrow type; windows are narrow, too."""

    def hidden(by_kernel: bool) -> Tensor:
        packing = NarrowPacking(of.batch, dtype, device, by_kernel)
        places = packing.tokens.to(of.model.device), packing.positions.to(of.model.device)
        return _forward(of.model, of.head, packed_inputs(of.batch.input_ids.flatten()[places[0]], places[1], packing)).hidden[0]

    return apart(hidden(True), hidden(False))


def _decoded_by_kernel(of: Subject, device: torch.device, dtype: torch.dtype) -> float:
    """How far logits of rows that a kernel decodes are from those decoded under masks, both in a narrow type."""
    by_kernel, masked = (_sampled(of, NarrowDecoder(of.model, SAMPLED, dtype, device, by)) for by in (True, False))
    return apart(by_kernel, masked)


def _measured(model: PreTrainedModel) -> Measured:
    with widened(model):
        return _probe(_subject(model))


def _subject(model: PreTrainedModel) -> Subject:
    is_classifier = model.get_output_embeddings() is None and hasattr(model, "score")
    head = model.score if is_classifier else model.get_output_embeddings()
    if head is None:
        raise _refused(model, "it has neither a language model's head nor a reward head by the name of score")
    rows = _rows(model)
    return Subject(model, head, is_classifier, rows, _batch(rows, model.device), {})


def _probe(of: Subject) -> Measured:
    model, logits = of.model, None
    together, attention = _beside_a_longer_row(of)
    _check_causal(of, together)
    if of.is_classifier:
        _check_score(of)
    else:
        logits = measure_logit_map(model)
        _check_logprobs(of, logits, together)
    longest = _longest(of)
    unpacked = _try_packing(of, together)
    unsteady = _compare(of, "in training mode", lambda: _in_training(of))
    generates = unsampled = ""
    if not of.is_classifier:
        generates = unpacked or _compare(of, "decoded", lambda: _decoded(of, together))
        unsampled = generates and _compare(of, "generated", lambda: _generated(of, together))
    return Measured(logits, attention, unpacked, "", "", generates, unsampled, unsteady, longest, of.found)


def _rows(model: PreTrainedModel) -> list[list[int]]:
    """Rows of ids of which the config makes no use of its own."""
    used = {i for config in (model.config, model.config.get_text_config()) for i in _own_ids(config)}
    vocabulary = min(model.config.get_text_config().vocab_size, model.get_input_embeddings().num_embeddings)
    free = [i for i in range(min(vocabulary, 512)) if i not in used]
    draw = torch.Generator().manual_seed(0)
    rows = [[free[i] for i in torch.randint(len(free), (length,), generator=draw)] for length in LENGTHS]
    rows[2][: PROMPTS[2]] = rows[1][: PROMPTS[1]]
    return rows


def _own_ids(config: PreTrainedConfig) -> Iterator[int]:
    """The ids that a config names: of one token, or lists of them."""
    for name, value in config.to_dict().items():
        if re.search("token_(id|ids|index)$", name):
            yield from value if isinstance(value, (list, tuple)) else [value]


def _batch(rows: list[list[int]], device: torch.device) -> ResponseBatch:
    cut = list(zip(rows, PROMPTS, strict=True))
    return pad_responses([row[:end] for row, end in cut], [row[end:] for row, end in cut], 0).to(device)


def _forward(model: PreTrainedModel, head: nn.Module, inputs: dict[str, Any]) -> Pass:
    read: list[Tensor] = []
    with hooked(head.register_forward_pre_hook(lambda module, args: read.append(args[0]))):
        output = model(**inputs, use_cache=False).logits
    if len(read) != 1 or read[0].shape[:2] != inputs["input_ids"].shape:
        shapes = ", ".join(str(tuple(hidden.shape)) for hidden in read) or "nothing"
        raise _refused(model, f"its head reads {shapes} of input ids of shape {tuple(inputs['input_ids'].shape)}")
    return Pass(read[0], output)


def _plain(row: list[int], device: torch.device) -> dict[str, Tensor]:
    ids = torch.tensor([row], device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _attempt(run: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """What a pass gives, or what it ended in: anything, with a model's code and inputs that it was not written for.

    Lack of memory says nothing of the model, and is raised.
    """
    try:
        return run(), None
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        return None, error


def _alone(of: Subject) -> Pass:
    """The first row as the stock class runs it. UserError where it does not, or gives no numbers."""
    alone, error = _attempt(lambda: _forward(of.model, of.head, _plain(of.rows[0], of.model.device)))
    if isinstance(error, UserError):
        raise error
    if error is not None:
        raise _refused(of.model, f"it does not run on a row of tokens alone: {_said(error)}") from error
    if not alone.hidden.isfinite().all() or alone.output.isnan().any():
        raise _refused(of.model, "it gives numbers that are not finite; its weights may be damaged")
    return alone


def _tokens(of: Subject) -> Tensor:
    """The hidden states of the batch's tokens, (N, H), run in the way that the model is run."""
    inputs, places = lay_out(of.model, *of.batch[:2], of.batch.shared)
    hidden = _forward(of.model, of.head, inputs).hidden.flatten(0, 1)
    return hidden[places[of.batch.attention_mask.bool().to(places.device)]]


def _compare(of: Subject, what: str, measure: Callable[[], float], tolerance: float = TOLERANCE) -> str:
    """Note what was measured, and return why it will not do; empty where it will."""
    value, error = _attempt(measure)
    of.found[what] = float("inf") if value is None else value
    if error is not None:
        return f"{what}: {_said(error)}"
    return "" if of.found[what] <= tolerance else f"{what}: apart by {of.found[what]:.2g}, by more than {tolerance:g}"


def _said(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _beside_a_longer_row(of: Subject) -> tuple[Pass, str]:
    """All rows together, where the first has the numbers that it has alone, and the attention with which it has."""

    def attempt() -> str:
        def measure() -> float:
            passes.append(_forward(of.model, of.head, lay_out(of.model, *of.batch[:2], None)[0]))
            return apart(passes[-1].hidden[0, : len(of.rows[0])], alone.hidden[0])

        alone = _alone(of)
        return _compare(of, "beside a longer row", measure)

    passes: list[Pass] = []
    config = of.model.config.get_text_config()
    why = attempt()
    if why and config._attn_implementation != "eager":
        of.model.set_attn_implementation("eager")
        why = attempt()
    if why:
        raise _refused(of.model, f"{_cause(of)} ({why})")
    return passes[-1], config._attn_implementation


def _cause(of: Subject) -> str:
    """Why a row has other numbers beside a longer one."""
    alone, row = _alone(of), _plain(of.rows[0], of.model.device)
    counted = {**row, "position_ids": torch.arange(len(of.rows[0]), device=of.model.device)[None]}
    own = _compare(
        of, "with positions counted from 0", lambda: apart(_forward(of.model, of.head, counted).hidden[0], alone.hidden[0])
    )
    return "it counts positions otherwise than from 0" if own else "a row's numbers depend on the rows beside it"


def _check_causal(of: Subject, together: Pass) -> None:
    """UserError where two rows that begin alike, and go on differently, have other numbers where they are alike."""
    common = together.hidden[1:, : PROMPTS[1]]
    why = _compare(of, "before other tokens", lambda: apart(common[0], common[1]))
    if why:
        raise _refused(of.model, f"a token's numbers depend on the tokens after it ({why})")


def _check_score(of: Subject) -> None:
    """UserError unless the head's output at the last token is the score that the stock class gives."""
    alone = _alone(of)
    why = _compare(of, "the stock class's score", lambda: apart(of.head(alone.hidden[:, -1]), alone.output))
    if why:
        raise _refused(of.model, f"its head does not give its score ({why})")


def _check_logprobs(of: Subject, logits: LogitMap, together: Pass) -> None:
    """UserError unless log-probabilities from hidden states are those of the model's own logits, in nats."""
    mask = of.batch.attention_mask[:, 1:].bool().to(of.model.device)
    tokens = of.batch.input_ids[:, 1:][mask]

    def measure() -> float:
        ours = chunked_logprob_entropy(together.hidden[:, :-1][mask], tokens, of.head, logits, 1.0, False)[0]
        theirs = together.output[:, :-1][mask].float().log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
        return _most((ours - theirs).abs() / (1 + theirs.abs()))

    why = _compare(of, "log-probabilities (nats)", measure)
    if why:
        raise _refused(of.model, f"its log-probabilities cannot be had from its hidden states ({why})")


def _in_training(of: Subject) -> float:
    """How far passes in training mode are from one that is not; several, where they draw random numbers."""
    before = _tokens(of)
    of.model.train()
    try:
        with torch.random.fork_rng(devices=[]):
            state = torch.get_rng_state()
            found = apart(_tokens(of), before)
            draws = 0 if torch.equal(torch.get_rng_state(), state) else DRAWS
            return max([found, *(apart(_tokens(of), before) for _ in range(draws))])
    finally:
        of.model.eval()


def _same_with_gradients(model: PreTrainedModel) -> bool:
    """Whether a pass whose gradients are wanted gives the same bits as one without, so that PPO's first ratios are 1.

    Weights that ZeRO-3 has spread are not looked at: a policy is loaded whole.
    """
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        return True
    passes, of = [], _subject(model)
    for with_gradients in (False, True):
        with torch.set_grad_enabled(with_gradients):
            passes.append(_tokens(of).detach())
    return torch.equal(*passes)


def _try_packing(of: Subject, together: Pass) -> str:
    """Leave the model packed, or say why it is not."""
    model, batch = of.model, of.batch
    before = model.config.get_text_config()._attn_implementation
    if before != "sdpa":
        return f"its attention is {before}"

    def measure() -> float:
        model.set_attn_implementation(STRETCHED)
        padded = _tokens(of)
        model.set_attn_implementation(PACKED_ATTENTION)
        packing = StretchedPacking(batch.attention_mask, batch.shared)
        tokens, positions = packing.tokens.to(model.device), packing.positions.to(model.device)
        packed = _forward(model, of.head, packed_inputs(batch.input_ids.flatten()[tokens], positions, packing)).hidden
        stretched = apart(packed[0][packing.slots[batch.attention_mask.bool()].to(model.device)], padded)
        return max(stretched, apart(_tokens(of), together.hidden[batch.attention_mask.bool().to(model.device)]))

    why = _compare(of, "without padding", measure)
    if why:
        model.set_attn_implementation(before)
    return why


def _decoded(of: Subject, together: Pass) -> float:
    return apart(_sampled(of, Decoder(of.model, SAMPLED)).to(of.model.dtype), _next_logits(together, ORDER))


def _sampled(of: Subject, decoder: Decoder) -> Tensor:
    """Logits of the tokens after the prompts of ORDER, step by step."""
    logits = [decoder.admit([of.rows[b][: PROMPTS[b]] for b in ORDER])]
    for i in range(SAMPLED - 1):
        logits.append(decoder.step(torch.tensor([of.rows[b][PROMPTS[b] + i] for b in ORDER], device=of.model.device)))
    return torch.cat(logits)


def _generated(of: Subject, together: Pass) -> float:
    order, device = [0, 1], of.model.device
    prompts = [of.rows[b][: PROMPTS[b]][::-1] for b in order]
    forced = torch.tensor([of.rows[b][PROMPTS[b] :][:SAMPLED] for b in order], device=device)
    ids = pad_rows(prompts, 0).flip(1).to(device)
    with plain_settings(of.model):
        output = of.model.generate(
            input_ids=ids,
            attention_mask=pad_rows([[1] * len(prompt) for prompt in prompts], 0).flip(1).to(device),
            logits_processor=LogitsProcessorList([_Forced(forced, ids.shape[1])]),
            do_sample=False,
            max_new_tokens=SAMPLED,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return apart(torch.cat(output.logits).to(of.model.dtype), _next_logits(together, order))


class _Forced(LogitsProcessor):
    """Lets `generate` choose given tokens, (B, T)."""

    def __init__(self, tokens: Tensor, prompt_width: int):
        self.tokens, self.prompt_width = tokens, prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self.tokens[:, input_ids.shape[1] - self.prompt_width, None]
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def _next_logits(together: Pass, order: list[int]) -> Tensor:
    """The model's logits of the tokens after the prompts, step by step."""
    return torch.cat([together.output[order, [PROMPTS[b] - 1 + i for b in order]] for i in range(SAMPLED)])


def _longest(of: Subject) -> int | None:
    """The most tokens of a row for which its tokens mean the same; found by moving the last one away from the others."""
    row, device = of.rows[1], of.model.device

    def moved(spread: int, last: int) -> Tensor:
        """Hidden states of all tokens but the last, spread over the first `spread` positions."""
        position = torch.linspace(0, spread - 1, len(row) - 1, device=device, dtype=torch.float64).long()
        position = torch.cat([position, position.new_tensor([last])])
        return _forward(of.model, of.head, {**_plain(row, device), "position_ids": position[None]}).hidden[0, :-1]

    def changes(same: int, tokens: int) -> bool:
        """Whether in a row of so many tokens those before `same` mean something else than in a row of `same`.

        To the bit: all that differs is where the last token stands, which the others do not see.
        """
        return not torch.equal(moved(same - 1, tokens - 1), moved(same - 1, same - 1))

    first = len(row)
    # A table of positions may end before the farthest.
    tried = [tokens for tokens in _tried(of.model) if tokens > first]
    most = next((tokens for tokens in tried if _attempt(functools.partial(moved, first - 1, tokens - 1))[1] is None), None)
    if most is None or not changes(first, most):
        return None
    jump = _last(first, most, lambda tokens: not changes(first, tokens))
    # What changes with every further token changes little at first, and most far from the row's beginning.
    return _last(first, jump + 1, lambda tokens: not changes(tokens - 1, tokens))


def _last(yes: int, no: int, holds: Callable[[int], bool]) -> int:
    """The last number from `yes` on for which something holds that does not hold for `no` and beyond."""
    while no - yes > 1:
        middle = (yes + no) // 2
        yes, no = (middle, no) if holds(middle) else (yes, middle)
    return yes


def _tried(model: PreTrainedModel) -> list[int]:
    """Lengths of a row in which positions may mean something else: far beyond what the model is for, and the most it is for.

    On CUDA the latter alone: a position beyond the end of a table would end the process. Longer rows are refused anyway
    (positions.py).
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or FAR
    return [most] if model.device.type == "cuda" else [FAR, most]


def _refused(model: PreTrainedModel, found: str) -> UserError:
    return UserError(
        f"{type(model).__name__} cannot be used: {found}",
        "use another model; denserl check-model PATH says what was measured of one",
    )
