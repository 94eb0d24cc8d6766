"""Judges made from their options: what is asked, of whom, and where the answers are kept.

Nothing is asked here, and no model loaded: that waits for the first question that the store does not answer.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from denserl.errors import UserError, require
from denserl.http import Patience, token_in
from denserl.judging.asking import Asker, Limit, of_rank_0
from denserl.judging.comparing import Orders, Rater, TextJudge, chance_vote, rating, text_vote
from denserl.judging.config import STORE, AskingConfig, is_url
from denserl.judging.contract import Decoding
from denserl.judging.endpoint import Endpoint
from denserl.judging.local import LocalModel
from denserl.judging.store import Store
from denserl.judging.templates import Template

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 2048
# Of first tokens, where log-probabilities are read: as many as servers tell.
TOP_LOGPROBS = 20


def build_judge(
    config: AskingConfig, template: Template, askers: Sequence[Asker], orders: Orders, decoding: Decoding | None = None
) -> TextJudge:
    """What compares answers, as the options say.

    Args:
        template: of `find_template`. askers: of `build_askers`; judges of several kinds may share them.
        decoding: the suite's own, where options do not say otherwise.

    Raises:
        UserError: the template does not go with the options.
    """
    logprobs = config.judge_verdict == "logprob"
    found = f"`judge_verdict` logprob reads one token, and the template {template.name} asks for more than that"
    require(template.one_token or not logprobs, found, "give `judge_template` pairwise-token, or one of yours with one_token")
    read = chance_vote(template) if logprobs else text_vote(template)
    return TextJudge(template, askers, decoding_of(config, decoding), read, orders, config.judge_votes)


def build_rater(config: AskingConfig, template: Template, askers: Sequence[Asker], decoding: Decoding | None = None) -> Rater:
    """What rates answers one by one, as the options say. The arguments are those of `build_judge`.

    Raises:
        UserError: log-probabilities are to be read, which ratings are not.
    """
    fix = "give a template that compares, or leave `judge_verdict` out"
    require(config.judge_verdict == "text", f"`judge_verdict` logprob: {template.name} rates answers one by one", fix)
    return Rater(template, askers, decoding_of(config, decoding), rating(template), config.judge_votes)


def decoding_of(config: AskingConfig, own: Decoding | None = None) -> Decoding:
    """How a judge's answers are sampled. own: the suite's settings, where options do not say otherwise."""
    if config.judge_verdict == "logprob":
        return Decoding(1, 0.0, 1.0, TOP_LOGPROBS)
    own = own or Decoding(MAX_NEW_TOKENS)
    length = own.max_new_tokens if config.judge_max_new_tokens is None else config.judge_max_new_tokens
    varied = config.judge_votes > 1 and own.temperature == 0
    temperature = (1.0 if varied else own.temperature) if config.judge_temperature is None else config.judge_temperature
    return own._replace(max_new_tokens=length, temperature=temperature)


def build_askers(
    config: AskingConfig,
    folder: str | Path,
    device: torch.device,
    dtype: str,
    template: Mapping[str, Any] | None = None,
) -> list[Asker]:
    """The judges that the options name, with the one store of their answers.

    Args:
        folder: in which the store is, where the options do not say otherwise.
        device, dtype: where and how models of this machine run. template: what their chat template is to be, if not as it is
            saved with them (the arguments of `set_template`).

    Raises:
        UserError: the store or the key cannot be read, a judge is none, or two are the same.
    """
    judges, names = config.judge or [], iter(config.judge_model or [])
    require(judges, "`judge` names nothing", "give a folder or hub name, or the address of a server")
    store, limit = open_store(Path(config.judge_store or Path(folder) / STORE)), Limit(config.judge_limit)
    askers: list[Asker] = []
    with contextlib.ExitStack() as failing:
        failing.callback(_close, store)
        for judge in judges:
            local = not is_url(judge)
            how = (config, device, dtype, config.judge_concurrency, template)
            backend = LocalModel(judge, *how) if local else _server(config, judge, next(names, None), store)
            same = (backend.name, backend.version) in [(other.backend.name, other.backend.version) for other in askers]
            found = f"`judge` names the model {backend.name} twice, whose answers are the same"
            require(not same, found, "name each once, and ask for several answers with `judge_votes`")
            askers.append(Asker(backend, judge, store, limit, shared=local))
        failing.pop_all()
    return askers


@contextlib.contextmanager
def opened_askers(
    config: AskingConfig,
    folder: str | Path,
    device: torch.device,
    dtype: str,
    template: Mapping[str, Any] | None = None,
) -> Iterator[list[Asker]]:
    """The same, whose store is open while the context lasts, so that the next command of a process can open it."""
    askers = build_askers(config, folder, device, dtype, template)
    try:
        yield askers
    finally:
        _close(askers[0].store)


def _close(store: Store | None) -> None:
    if store is not None:  # of all judges, on rank 0
        store.close()


def open_store(path: Path) -> Store | None:
    """The store in a file, which rank 0 alone has. UserError as of `Store`, on every rank."""
    opened: list[Store] = []
    of_rank_0(lambda: opened.append(Store(path)))
    return opened[0] if opened else None


def _server(config: AskingConfig, url: str, model: str | None, store: Store | None) -> Endpoint:
    """The model behind a server: the one that is named, or the one that it serves, as rank 0 is told."""
    key = token_in("judge_key_env", config.judge_key_env)
    patience = Patience(config.judge_timeout, config.judge_tries)

    def served() -> str:
        known = store.model_of(url) if store else None
        try:
            return Endpoint(url, None, key, 1, patience if known is None else patience._replace(tries=1)).name
        except UserError as error:
            if known is None:
                raise
            log.warning("%s; it is taken for %s, as it was before", error.found, known[0])
            return known[0]

    return Endpoint(url, model or of_rank_0(served), key, config.judge_concurrency, patience)
