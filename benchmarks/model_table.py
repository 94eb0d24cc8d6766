"""The table of docs/models.md: each family of language models in transformers, built tiny, and what is measured of it.

    .venv/bin/python benchmarks/model_table.py [FAMILY ...]

Without families the page is written; with some, their rows are printed. `make models` writes it.
"""

import argparse
import collections
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from families import small_config, small_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as LANGUAGE_MODELS
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS
from transformers.utils import logging

from denserl.data.batching import pad_responses
from denserl.errors import UserError
from denserl.models.dropout import disable_dropout
from denserl.models.measured import Measured
from denserl.models.probe import probe, run_as
from denserl.models.scoring import token_logprob_entropy, token_rewards

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
# Weights of the largest model that is built.
MOST = 20_000_000
PROMPTS = [[11, 23, 31, 47, 53], [29, 37, 41], [11, 23, 31, 47, 53], [29, 37, 41]]
RESPONSES = [[61, 7, 83, 19, 5, 71], [13, 89, 17], [43, 59], [67, 73, 79, 9, 21, 33, 45]]


class Row(NamedTuple):
    """What a line of the table says. Differences are to the stock class by its eager attention."""

    family: str
    tied: bool
    found: Measured | None  # None: refused
    why: str  # it is refused, or not built
    logprob: float = 0.0  # of log-probabilities and entropies, relative to 1 nat and their size
    gradient: float | None = 0.0  # None: the stock class has none; relative to a weight's largest
    ratio: float = 1.0  # of PPO's first update, the one farthest from 1
    classifier: Measured | None = None
    classifier_why: str = "none in transformers"
    score: float = 0.0  # relative to the largest
    score_gradient: float = 0.0


def measure(family: str) -> Row:
    """One family's row."""
    try:
        config = small_config(family)
        with torch.device("meta"):
            weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if weights > MOST:
            return Row(family, False, None, f"not built: {weights / 1e6:.0f} million weights at the smallest")
        model = small_model(config, AutoModelForCausalLM)
        model(input_ids=torch.tensor(PROMPTS[:1]))
    except Exception as error:
        return Row(family, False, None, f"not built: {_said(error)}")
    tied = model.get_output_embeddings() is not None and (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    try:
        found = probe(model)
    except UserError as error:
        return Row(family, tied, None, _said(error))
    row = Row(family, tied, found, "", *_of_language_model(run_as(model, found), _stock(config, AutoModelForCausalLM)))
    return row._replace(**_of_classifier(family))


def _of_language_model(model: PreTrainedModel, stock: PreTrainedModel) -> tuple[float, float | None, float]:
    for each in (model, stock):
        disable_dropout(each)
    batch = pad_responses(PROMPTS, RESPONSES, 0)
    arguments = (model, *batch[:3], batch.response_mask.shape[1])
    with torch.no_grad():
        entropy = token_logprob_entropy(*arguments, shared=batch.shared)[1]
        model.train()
        before = token_logprob_entropy(*arguments, shared=batch.shared, with_entropy=False)[0]
    logprob = token_logprob_entropy(*arguments, shared=batch.shared, with_entropy=False)[0]
    ratios = (logprob.detach() - before).exp()[batch.response_mask]
    weights = torch.randn(logprob.shape, generator=torch.Generator().manual_seed(1)) * batch.response_mask
    (logprob * weights).sum().backward()
    errors, total = [], torch.zeros(())
    for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        logits = stock(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()
        own = logits.log_softmax(-1)
        want = own.gather(1, torch.tensor(response)[:, None]).squeeze(1)
        total = total + (want * weights[b, : len(response)]).sum()
        wanted = -(own.exp() * own).sum(-1)
        for ours, theirs in ((logprob[b, : len(response)], want), (entropy[b, : len(response)], wanted)):
            errors.append(_most((ours - theirs) / (1 + theirs.abs())))
    ratio = ratios[(ratios - 1).abs().argmax()].item()
    try:
        total.backward()
    except RuntimeError:  # a stock class that cannot be trained
        return max(errors), None, ratio
    return max(errors), _gradients_apart(model, stock), ratio


def _of_classifier(family: str) -> dict[str, Any]:
    if family not in CLASSIFIERS:
        return {}
    try:
        config = small_config(family)
        config.num_labels = 1
        model = small_model(config, AutoModelForSequenceClassification)
        found = probe(model)
    except UserError as error:
        return {"classifier_why": _said(error)}
    except Exception as error:
        return {"classifier_why": f"not built: {_said(error)}"}
    stock = _stock(config, AutoModelForSequenceClassification)
    for each in (run_as(model, found).train(), stock):
        disable_dropout(each)
    batch = pad_responses(PROMPTS, RESPONSES, 0)
    scores = token_rewards(model, *batch[:2], batch.shared)
    last = batch.attention_mask.sum(1) - 1
    ours = scores.gather(1, last[:, None]).squeeze(1)
    rows = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    theirs = torch.cat([stock(input_ids=torch.tensor([row])).logits.float().flatten() for row in rows])
    weights = torch.tensor([1.0, -0.5, 2.0, 0.7])
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    return {
        "classifier": found,
        "classifier_why": "",
        "score": _most(ours - theirs) / _most(theirs),
        "score_gradient": _gradients_apart(model, stock),
    }


def _stock(config: Any, auto_class: type[Any]) -> PreTrainedModel:
    """The same random model by transformers' eager attention."""
    model = small_model(type(config).from_dict(config.to_dict()), auto_class)
    model.set_attn_implementation("eager")
    return model


def _gradients_apart(model: nn.Module, stock: nn.Module) -> float:
    """The largest difference of two models' gradients, relative to the largest gradient of the whole model."""
    pairs = [(mine.grad, his.grad) for mine, his in zip(model.parameters(), stock.parameters(), strict=True)]
    largest = max(_most(his) for _, his in pairs if his is not None)
    differences = [
        _most(_or_zero(mine, his) - _or_zero(his, mine)) for mine, his in pairs if not (mine is None and his is None)
    ]
    return max(differences) / largest


def _or_zero(gradient: Tensor | None, other: Tensor | None) -> Tensor:
    return torch.zeros_like(other) if gradient is None else gradient


def _most(values: Tensor) -> float:
    found = values.detach().abs().max().item()
    return found if math.isfinite(found) else math.inf


def _said(error: Exception) -> str:
    text = error.found if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:200]


def line(row: Row, reasons: list[str]) -> str:
    """The row as Markdown; reasons that are said for the first time are added to the list."""
    if row.found is None:
        cells = ["refused" + _note(row.why, reasons), *[""] * 6]
    else:
        found = row.found
        runs = "padded" + _note(found.unpacked, reasons) if found.unpacked else "packed"
        decoder = "not" + _note(found.unsampled, reasons) if found.unsampled else "generate" if found.generates else "own"
        if found.generates and not found.unsampled and not found.unpacked:
            decoder += _note(found.generates, reasons)
        logits = "" if found.logits.scale == 1 and found.logits.cap is None else f"x {found.logits.scale:g}"
        logits += "" if found.logits.cap is None else f", cap {found.logits.cap:g}"
        trains = "no" + _note(found.unsteady, reasons) if found.unsteady else f"{row.ratio:g}"
        errors = [f"{row.logprob:.0e}", "stock fails" if row.gradient is None else f"{row.gradient:.0e}"]
        cells = ["tied" if row.tied else "", runs, decoder, logits, *errors, trains]
        cells = [cells[1], cells[0], *cells[2:]]
    if row.classifier is None:
        shown = "" if row.found is None or row.classifier_why == "none in transformers" else "refused"
        cells += [shown + (_note(row.classifier_why, reasons) if shown else ""), "", ""]
    else:
        why = row.classifier.unpacked
        runs = "padded" + (_note(why, reasons) if row.found and why != row.found.unpacked else "") if why else "packed"
        cells += [runs, f"{row.score:.0e}", f"{row.score_gradient:.0e}"]
    return f"| {row.family} | " + " | ".join(cells) + " |"


def _note(reason: str, reasons: list[str]) -> str:
    if reason not in reasons:
        reasons.append(reason)
    return f" ({reasons.index(reason) + 1})"


def page(rows: list[Row]) -> str:
    """docs/models.md."""
    built = [row for row in rows if not row.why.startswith("not built")]
    used = [row for row in built if row.found is not None]
    kinds = collections.Counter("packed" if not row.found.unpacked else "padded" for row in used)
    reasons: list[str] = []
    lines = [line(row, reasons) for row in built]
    return "\n".join(
        [
            INTRODUCTION.format(
                version=transformers.__version__,
                torch=torch.__version__.split("+")[0],
                built=len(built),
                packed=kinds["packed"],
                padded=kinds["padded"],
                refused=len(built) - len(used),
            ),
            HEADER,
            *lines,
            "",
            "Reasons:",
            "",
            *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)),
            "",
            "Not built at these sizes, so that nothing is said of them: "
            + ", ".join(row.family for row in rows if row.why.startswith("not built"))
            + ".",
            "",
        ]
    )


INTRODUCTION = """# Models

Every model is run on a few short rows when it is loaded, and used as it was found to behave
([architecture.md](architecture.md)); `denserl check-model PATH` says what is found of one. This page shows the same of
{built} families of language models in transformers {version} (torch {torch}, CPU, fp32), each built with two to six layers and
random weights: {packed} run without padding, {padded} on padded batches, {refused} are refused. `make models` writes it.

- **runs**: `packed`, without padding; `padded`; or refused. **sampled**: by the own decoder, by
  transformers' `generate`, or not.
- **logits**: what the model does to its head's output, where it does anything.
- **log p**: how far log-probabilities and entropies are at most from those (v nats) that the stock class gives by eager
  attention, each row alone, in parts of 1 + v; **gradients**: of log-probabilities, relative to the largest one.
- **first ratio**: of PPO's first update, the one farthest from 1.
- **classifier**: the same of the family's sequence classifier, whose scores are compared relative to the largest.
"""
HEADER = """| family | runs | weights | sampled | logits | log p | gradients | first ratio | classifier | scores | gradients |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="print the rows of these")
    families = parser.parse_args().families
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    rows = []
    for family in families or LANGUAGE_MODELS:
        rows.append(measure(family))
        print(line(rows[-1], []) if rows[-1].found else f"{family}: {rows[-1].why}", flush=True)
    if not families:
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
