"""Weighted averages of weights: a reward model with a language model of another domain (DogeRM, arXiv 2407.01470), or with
other reward models (WARM, arXiv 2401.12187). Tensor by tensor from files to files; no model is loaded.
"""

import json
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from denserl.errors import require
from denserl.models.folders import MODEL_FILES, opened, read_settings, weight_files
from denserl.models.heads import Head, described_head
from denserl.models.lm_head import LM_HEAD, embeddings_name
from denserl.models.loading import HEADS, as_dtype, empty_reward_model, load_config, local_folder
from denserl.models.reward_models import holds_reward_head
from denserl.models.reward_settings import KEY, settings_in, sft_settings
from denserl.models.tokenizers import saved_tokenizer

log = logging.getLogger(__name__)

# Settings that shapes of weights do not show, and without which they mean something else.
STRUCTURE = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "hidden_activation")
# Settings that may differ, at the user's risk: of positions, and of how scores are read.
POSITIONS = ("rope_parameters", "sliding_window", "layer_types")
READING = ("entropy_threshold", "segmenter", "agg_func", "read_at", "input", "pair_layout", "scores")


class Member(NamedTuple):
    """A model whose weights are averaged."""

    path: str
    share: float  # of the average; those of all members add up to one
    folder: Path
    files: Mapping[str, Path]  # name of a weight -> the file that holds it
    vocabulary: Mapping[str, int]  # text of a token -> its row
    head: Head | None  # None: a language model

    def tensor(self, name: str) -> Tensor:
        with opened(self.files[name]) as weights:
            return weights.get_tensor(name)

    def shape(self, name: str) -> list[int]:
        with opened(self.files[name]) as weights:
            return weights.get_slice(name).get_shape()


def weighted(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted sum of tensors of one shape, in fp32."""
    total = torch.zeros(tensors[0].shape)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(tensor.float(), alpha=share)
    return total


def weighted_rows(tables: Sequence[Tensor], shares: Sequence[float], rows: Sequence[Tensor]) -> Tensor:
    """The average of the rows that tables have for the same tokens, in fp32, of the shape of the first table.

    A row that some do not have is averaged over the others, by their shares among themselves; the first has all.

    Args:
        tables: (V_k, H) each. rows: (V_0,) for each table: which of its rows is that of each row of the first; -1: none.
    """
    total, whole = torch.zeros(tables[0].shape), torch.zeros(len(tables[0]), 1)
    for table, share, row in zip(tables, shares, rows, strict=True):
        found = (row >= 0).nonzero().squeeze(1)
        total.index_add_(0, found, table[row[found]].float(), alpha=share)
        whole[found] += share
    # A share of 0 gives nothing to rows that no other member has.
    return torch.where(whole > 0, total / whole.clamp(min=1e-12), tables[0].float())


def average_models(
    model: str,
    others: Sequence[str],
    weight: float | None,
    folder: Path,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write the weighted average of a reward model and others, all of them language models, or all reward models of its head.

    Of the trunk, weights of one name are averaged; of embeddings, rows of tokens of one text. Vocabulary, settings and, beside
    language models, the head are those of `model`; its tokens that another lacks keep what they have. Mean and std of its
    scores are not known any more, and left out. In memory are one file of what is written, and a weight of each model.

    Args:
        weight: share of `model`; the others have equal parts of the rest. Default: equal shares of all.
        folder: where it is written. dtype: of what is written; default: that of each weight of `model`.

    Raises:
        UserError: no such models, or models whose weights, settings or heads do not go together.
    """
    first = 1 / (1 + len(others)) if weight is None else weight
    shares = [first, *[(1 - first) / len(others)] * len(others)]
    members = [_member(path, share, trust_remote_code) for path, share in zip([model, *others], shares, strict=True)]
    by_token = {embeddings_name(empty_reward_model(model, "fp32", trust_remote_code=trust_remote_code)), *LM_HEAD}
    _check_heads(members)
    _check_settings(members, trust_remote_code)
    _check_weights(members, by_token)
    wanted = None if dtype is None else as_dtype(dtype)
    places: dict[str, str] = {}
    size = 0
    for file in weight_files(members[0].folder):
        names = [name for name, place in members[0].files.items() if place == file]
        tensors = {name: _average(name, members, by_token, wanted) for name in names}
        save_file(tensors, folder / file.name, {"format": "pt"})
        places |= dict.fromkeys(names, file.name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if set(places.values()) != {"model.safetensors"}:
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / MODEL_FILES[2]).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    saved_tokenizer(model, trust_remote_code=trust_remote_code).save_pretrained(folder)
    _copy_settings(members[0], folder, dtype if dtype is None else str(wanted).removeprefix("torch."))


def _member(path: str, share: float, trust_remote_code: bool) -> Member:
    folder = local_folder(path)
    files: dict[str, Path] = {}
    for file in weight_files(folder):
        with opened(file) as weights:
            files |= dict.fromkeys(weights.keys(), file)
    vocabulary = saved_tokenizer(path, trust_remote_code=trust_remote_code).get_vocab()
    head = described_head(read_settings(folder / MODEL_FILES[0]), path) if holds_reward_head(path) else None
    return Member(path, share, folder, files, vocabulary, head)


def _average(name: str, members: Sequence[Member], by_token: Collection[str], dtype: torch.dtype | None) -> Tensor:
    own = members[0].tensor(name)
    if not own.is_floating_point():
        return own
    if _is_of_head(name) and members[1].head is None:
        return own.to(dtype or own.dtype)
    tensors, shares = [own, *(member.tensor(name) for member in members[1:])], [member.share for member in members]
    alike = all(member.vocabulary == members[0].vocabulary for member in members)
    if name in by_token and not (alike and all(len(tensor) == len(own) for tensor in tensors)):
        rows = [torch.arange(len(own)), *(_rows(members[0], len(own), *one) for one in zip(members[1:], map(len, tensors[1:])))]
        found = weighted_rows(tensors, shares, rows)
    else:
        found = weighted(tensors, shares)
    return found.to(dtype or own.dtype)


def _rows(first: Member, size: int, member: Member, most: int) -> Tensor:
    """For each of the `size` rows of the first member, the row of the same token among the `most` of another; -1: none."""
    rows = torch.full((size,), -1)
    for text, row in first.vocabulary.items():
        found = member.vocabulary.get(text, -1)
        if row < size and found < most:
            rows[row] = found
    return rows


def _is_of_head(name: str) -> bool:
    return name.startswith(HEADS) or name in LM_HEAD


def _check_heads(members: Sequence[Member]) -> None:
    """UserError unless the first is a reward model, and the others are all reward models of its head, or none is."""
    first, *others = members
    require(
        first.head is not None,
        f"{first.path} holds no reward head, and the average takes its head from there",
        "give the reward model as `model`, and language models as `with_`",
    )
    unlike = [member.path for member in others if (member.head is None) != (others[0].head is None)]
    require(not unlike, f"`with_` has both reward models and language models ({unlike and unlike[0]})", "average twice")
    for member in others:
        require(
            member.head in (None, first.head),
            f"{member.path} has another head than {first.path}: {_unlike(member.head or Head(), first.head or Head())}",
            "average reward models of one kind of head, trained with the same options",
        )


def _unlike(other: Head, own: Head) -> str:
    """In what a head is unlike another: kinds alone, where these differ."""
    if other.kind != own.kind:
        return f"{other.kind}, not {own.kind}"
    both = zip(Head._fields, other, own, strict=True)
    return ", ".join(f"{field} {theirs}, not {ours}" for field, theirs, ours in both if theirs != ours)


def _check_settings(members: Sequence[Member], trust_remote_code: bool) -> None:
    configs = [load_config(member.path, trust_remote_code=trust_remote_code).get_text_config().to_dict() for member in members]
    stored = [settings_in(read_settings(member.folder / MODEL_FILES[0]), member.path)._asdict() for member in members]
    for member, config, settings in zip(members[1:], configs[1:], stored[1:], strict=True):
        for name in STRUCTURE:
            require(
                config.get(name) == configs[0].get(name),
                f"{member.path} has {name} {config.get(name)}, and {members[0].path} {configs[0].get(name)}",
                "average models that were trained from one",
            )
        pairs = [(name, config.get(name), configs[0].get(name)) for name in POSITIONS]
        if member.head is not None:
            pairs += [(name, settings.get(name), stored[0].get(name)) for name in READING]
        for name, own, kept in pairs:
            if own != kept:
                log.warning("%s has %s %s; the average has that of %s, %s", member.path, name, own, members[0].path, kept)


def _check_weights(members: Sequence[Member], by_token: Collection[str]) -> None:
    """UserError unless all have weights of the same names and shapes, but for the number of tokens."""
    first = members[0]
    for member in members[1:]:
        mine, theirs = ({name for name in one.files if member.head or not _is_of_head(name)} for one in (first, member))
        shapes = {name: (first.shape(name), member.shape(name)) for name in sorted(mine & theirs)}
        wrong = [
            f"{name}: {own} and {other}"
            for name, (own, other) in shapes.items()
            if own[name in by_token :] != other[name in by_token :]
        ]
        alone = sorted(mine ^ theirs)
        require(
            not wrong and not alone,
            f"{first.path} and {member.path} are not of one shape: {', '.join([*wrong, *alone][:3])}",
            "average models that were trained from one",
        )
        lacking = len(first.vocabulary.keys() - member.vocabulary.keys())
        beyond = len(member.vocabulary.keys() - first.vocabulary.keys())
        if lacking or beyond:
            log.warning(
                "%s lacks %d tokens of %s, which keep their embeddings; %d of its own are left out",
                member.path,
                lacking,
                first.path,
                beyond,
            )


def _copy_settings(member: Member, folder: Path, dtype: str | None) -> None:
    """The config of a model without what is not known of the average, and what else belongs to the class of it."""
    settings = read_settings(member.folder / MODEL_FILES[0])
    stored = settings_in(settings, member.path)
    settings = {name: value for name, value in settings.items() if name not in ("mean", "std")}
    if stored.sft_model is not None:
        own = sft_settings(stored.sft_model, stored.sft_fingerprint, str(folder))
        settings[KEY] = {**{name: value for name, value in settings[KEY].items() if name != "sft_from_here"}, **own}
    if dtype is not None:
        settings["dtype"] = dtype
    (folder / MODEL_FILES[0]).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in (*member.folder.glob(MODEL_FILES[1]), *member.folder.glob("*.py")):
        shutil.copy(file, folder)
