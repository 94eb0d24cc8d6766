"""The reward-model trainer of responses with rated attributes, by gradient steps or by ridge regression in closed form."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from denserl import distributed
from denserl.data.batching import ResponseBatch, in_halves
from denserl.data.rated_rows import ATTRIBUTES
from denserl.errors import require
from denserl.models.measured import stock_model
from denserl.models.scoring import head_inputs
from denserl.rewards.aggregation import aggregate
from denserl.rewards.attributes import FitSums, RidgeFit, rated_together, ridge
from denserl.rewards.objectives import Groups, Objective, RatingErrors, all_labels, all_reads
from denserl.rewards.rating_metrics import joined, rank_correlations, rating_metrics, rating_sums
from denserl.rewards.sources.reading import new_segmenter
from denserl.streams import Purpose, stream
from denserl.trainer.group_trainer import Given, GroupTrainer, Prepared, segment_settings
from denserl.trainer.reward_ratings import SIDE, ratings_of
from denserl.trainer.reward_steps import whole_questions
from denserl.trainer.summaries import rating_model_lines, rating_model_remarks
from denserl.trainer.supervised_trainer import CountedRows

log = logging.getLogger(__name__)

CHOICE = 5  # every so many-th row chooses the penalty of the ridge


class RatingTrainer(GroupTrainer):
    """Trains a head of attributes (models/heads.py) on rated responses; a group is one response (arXiv 2406.12845).

    Args beyond those of `GroupTrainer`:
        names: of the attributes, in the order of the head. closed_form: fit the head by `ridge`, the trunk as it is, in place
            of gradient steps.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        closed_form: bool = False,
        objectives: Sequence[Objective] = (RatingErrors(),),
        **kw: Any,
    ):
        super().__init__(objectives=objectives, candidates=(SIDE,), labels=(ATTRIBUTES,), **kw)
        self.labels_read, self.names, self.closed_form = (ATTRIBUTES, "row"), names, closed_form
        # What this rank has read of the rows of an evaluation: predictions and ratings.
        self._judged: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def prepare(cls, given: Given) -> Prepared:
        config, tokenizer, device, dtype, objectives = given
        others = {"steps", "label_logp", "ref_logps"} & all_reads(objectives) | {*all_labels(objectives)} - {*all_labels(())}
        shown = ", ".join(sorted(others))
        require(not others, f"an objective reads {shown}, which rated responses do not have", "leave it out, or change `input`")
        segmenter = new_segmenter(config.reward_level, config.entropy_threshold, config.segmenter, tokenizer, config)
        train, held_out = ratings_of(config, tokenizer, segmenter, device, dtype)
        settings = segment_settings(config, segmenter)
        reads = {"segmenter": segmenter, "agg_func": config.agg_func, "names": config.rating_names(config.data)}
        contents = train.select_columns(["prompt_ids", f"{SIDE}_ids", ATTRIBUTES])
        return Prepared(train, held_out, contents, settings, {**reads, "closed_form": config.attribute_fit == "ridge"})

    def learn(self) -> dict[str, float]:
        return self.session.run_at_once(self, self.fit) if self.closed_form else super().learn()

    def fit(self) -> None:
        """Let the head's weights be those of `ridge` on the training rows, of which whole prompts choose the penalty."""
        found = self.solve()
        with torch.no_grad():
            stock_model(self.model).score.weight.copy_(found.weights)
        self.log({f"alpha/{name}": alpha for name, alpha in zip(self.names, found.alphas.tolist(), strict=True)})

    def solve(self) -> RidgeFit:
        """`ridge` on the training rows of all ranks; the same on each of them."""
        model, rows = self.model.to(self.args.device).eval(), CountedRows(self.train_dataset)
        draw = stream(self.args.seed, Purpose.PENALTIES)
        choosing = whole_questions(self.train_dataset["prompt_ids"], len(rows) // CHOICE, draw)
        sets = rated_together(torch.tensor(self.train_dataset[ATTRIBUTES]))
        sizes = (stock_model(model).score.in_features, sets, self.args.device)
        fit, choice = FitSums.empty(*sizes), FitSums.empty(*sizes)

        def read(part: list[int]) -> tuple[Tensor, Tensor, Tensor]:
            batch = self._prepare_inputs(self._collate([rows[row, True] for row in part]))
            chooses = torch.tensor([row in choosing for row in part], device=self.args.device)
            return self.features(model, batch), batch[ATTRIBUTES], chooses

        for numbers, counted in self.eval_batches(rows.rows):
            # Nothing is added before all of a batch is read: what is read again, in halves, would be added twice.
            for features, ratings, chooses in in_halves(read, numbers) if counted else ():
                fit.add(features[~chooses], ratings[~chooses])
                choice.add(features[chooses], ratings[chooses])
        for tensor in (*fit.sums(), *choice.sums()):
            distributed.all_sum(tensor)
        few = [name for name, *counts in zip(self.names, fit.count, choice.count) if not all(counts)]
        found = f"{', '.join(few)}: too few rated responses to fit on some prompts and choose the penalty on others"
        require(not few, found, "give more rows, leave it out of `rating_columns`, or let `attribute_fit` be mse")
        # A rank's own eigenvectors could be of another sign.
        return distributed.gather_objects(RidgeFit(*(part.cpu() for part in ridge(fit, choice))))[0]

    @torch.no_grad()
    def features(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """(G, H) hidden states made of segments as scores are, of which a response's attributes are linear functions."""
        responses, segments = ResponseBatch.of(batch), self.segments(batch)
        ends = responses.response_start[:, None].to(segments.lengths.device) + segments.lengths.cumsum(1) - 1
        hidden = head_inputs(model, *responses[:2], ends.clamp(min=0), responses.shared)
        width = hidden.shape[-1]
        each = hidden.transpose(1, 2).flatten(0, 1), segments.counts.repeat_interleave(width)
        return aggregate(*each, self.agg_func).view(-1, width)

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return (~batch[ATTRIBUTES].isnan() & batch["counted"][:, None]).sum()

    def row_sums(self, groups: Groups) -> dict[str, Tensor]:
        predictions, ratings = groups.outputs[:, 0, 1:], groups.labels[ATTRIBUTES]
        if not torch.is_grad_enabled():
            kept = (groups.labels["row"].tolist(), predictions.cpu(), ratings.cpu())
            self._judged |= {row: (p, y) for row, p, y in zip(*kept, strict=True)}
        return {**super().row_sums(groups), **rating_sums(predictions, ratings, groups.counted, self.names)}

    def row_metrics(self, sums: dict[str, float]) -> dict[str, float]:
        return {**super().row_metrics(sums), **rating_metrics(sums, self.names)}

    def of_all_rows(self) -> dict[str, float]:
        rows = {row: pair for share in distributed.gather_objects(self._judged) for row, pair in share.items()}
        self._judged = {}
        return {**super().of_all_rows(), **rank_correlations(*joined(rows), self.names)}

    def in_words(self, metrics: dict[str, float], rows: int) -> tuple[list[str], list[str]]:
        return rating_model_lines(metrics, self.names, rows), rating_model_remarks(metrics, self.names)
