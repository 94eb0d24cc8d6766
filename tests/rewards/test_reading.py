"""How a reward model is read: as is stored with it, unless another way is asked for; and code that is not run unasked."""

import logging
import shutil

import pytest
import tiny_models
import torch
from reward_folders import PROMPTS, TEXTS, save_reward_model

from denserl.config import ModelSourceConfig
from denserl.errors import UserError
from denserl.models.reward_settings import StoredSettings
from denserl.models.tiny import train_tokenizer
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.config import ReadConfig
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.build import load_members, source_of
from denserl.rewards.sources.reading import (
    after_the_turn,
    choose_aggregation,
    choose_segmenter,
    choose_sft_model,
    cut_settings,
    new_segmenter,
    require_stored,
    sft_fingerprint,
)
from denserl.segmentation import Segmenter
from denserl.steps import StepRule

TOKENIZER = tiny_models.tiny_tokenizer()
NOTHING = StoredSettings(*[None] * len(StoredSettings._fields))
HERE = f"{__name__}:"


def every_other(tokens: list[str], entropies: list[float]) -> range:
    """Cuts before every other token."""
    return range(0, len(tokens), 2)


def trained(threshold: float | None, segmenter: str | None = None) -> StoredSettings:
    return NOTHING._replace(entropy_threshold=threshold, segmenter=segmenter)


@pytest.mark.parametrize(
    "level, threshold, expected",
    [("segment", None, 1.75), ("token", None, 0.0), ("bandit", None, 1000.0), ("segment", 2.5, 2.5), ("bandit", 0.0, 0.0)],
)
def test_a_new_model_is_cut_at_its_level_or_a_threshold_of_its_own(level, threshold, expected):
    assert new_segmenter(level, threshold, None, TOKENIZER) == Segmenter(expected)


def test_a_users_way_of_cutting_gets_the_texts_of_single_tokens():
    segmenter = new_segmenter("segment", None, f"{HERE}every_other", TOKENIZER)
    assert segmenter.name == f"{HERE}every_other" and segmenter.function is every_other and segmenter.threshold == 1.75
    ids = TOKENIZER("The river runs.", add_special_tokens=False).input_ids
    assert segmenter.token_texts(ids) == ["The", " river", " r", "un", "s", "."]
    found = segmenter(torch.zeros(1, 7), torch.ones(1, 7), torch.tensor([[*ids, TOKENIZER.eos_token_id]]))
    assert found.ids.tolist() == [[0, 0, 1, 1, 2, 2, -1]]
    with pytest.raises(UserError, match="^`segmenter` nowhere:cut: ModuleNotFoundError"):
        new_segmenter("segment", None, "nowhere:cut", TOKENIZER)


@pytest.mark.parametrize(
    "thresholds, asked, expected",
    [
        # As is stored; a classifier from elsewhere, which stores none, gives one score a response.
        ([1.5], {}, 1.5),
        ([None], {}, 1000.0),
        ([0.0, 0.0], {}, 0.0),
        ([None, 1000.0], {}, 1000.0),
        # A level is the stored threshold where that is of this level, and else the level's own.
        ([1.5], {"level": "segment"}, 1.5),
        ([1.5, 1.5], {"level": "segment"}, 1.5),
        ([1.5], {"level": "token"}, 0.0),
        ([1.5], {"level": "bandit"}, 1000.0),
        ([None], {"level": "segment"}, 1.75),
        ([2000.0], {"level": "bandit"}, 2000.0),
        # A threshold that is asked for is taken.
        ([1.5, 2.5], {"threshold": 0.5}, 0.5),
        ([1.5], {"threshold": 0.5, "level": "segment"}, 0.5),
        ([1.5], {"threshold": 0.0}, 0.0),
    ],
)
def test_the_threshold_is_the_stored_one_unless_another_is_asked_for(thresholds, asked, expected):
    paths = ["a", "b"][: len(thresholds)]
    assert choose_segmenter(list(map(trained, thresholds)), paths, TOKENIZER, **asked) == Segmenter(expected)


def test_models_that_are_cut_differently_are_named():
    with pytest.raises(UserError, match="different entropy thresholds .a: 1.5, b: 1000.0.") as error:
        choose_segmenter([trained(1.5), trained(None)], ["a", "b"], TOKENIZER)
    assert "`entropy_threshold`" in error.value.fix
    with pytest.raises(UserError, match="different entropy thresholds .a: 1.5, b: 2.5."):
        choose_segmenter([trained(1.5), trained(2.5)], ["a", "b"], TOKENIZER, level="segment")
    with pytest.raises(UserError, match="different segmenters .a: my:cut, b: peak.") as error:
        choose_segmenter([trained(1.5, "my:cut"), trained(1.5)], ["a", "b"], TOKENIZER)
    assert "`segmenter`" in error.value.fix


def test_another_reading_than_the_trained_one_is_logged(caplog):
    each = [trained(1.5), trained(None), trained(2.5)]
    with caplog.at_level(logging.WARNING):
        choose_segmenter(each, ["a", "b", "c"], TOKENIZER, threshold=2.5, segmenter=f"{HERE}every_other")
    assert caplog.messages == [
        "a: trained at entropy threshold 1.5; read at 2.5",
        f"a: trained with segmenter peak; read with {HERE}every_other",
        f"c: trained with segmenter peak; read with {HERE}every_other",
    ]
    caplog.clear()
    choose_segmenter([trained(1.5, f"{HERE}every_other")], ["a"], TOKENIZER, segmenter=f"{HERE}every_other")
    choose_segmenter([trained(1.5)], ["a"], TOKENIZER)
    choose_segmenter([trained(None)], ["a"], TOKENIZER, threshold=0.5)
    assert not caplog.messages


def test_code_that_a_model_names_is_not_run_unasked():
    stored = [trained(1.5, f"{HERE}every_other")]
    with pytest.raises(UserError, match="^a: trained with the segmenter .*every_other, which is code") as error:
        choose_segmenter(stored, ["a"], TOKENIZER)
    assert error.value.fix == f"add `segmenter` {HERE}every_other if you trust it, or `segmenter` peak to cut at entropy peaks"
    assert choose_segmenter(stored, ["a"], TOKENIZER, segmenter=f"{HERE}every_other").function is every_other
    # Where nothing is cut there is nothing to run.
    assert choose_segmenter(stored, ["a"], TOKENIZER, level="bandit") == Segmenter(1000.0)


def test_the_aggregation_is_the_stored_one_unless_another_is_asked_for(caplog):
    stored = NOTHING._replace(agg_func="min")
    assert choose_aggregation(stored, ["a"], None) == choose_aggregation(stored, ["a"], "min") == "min"
    assert not caplog.messages
    assert choose_aggregation(stored, ["a", "b"], "sum") == "sum"
    assert caplog.messages == ["a, b: trained with aggregation min; rewards are aggregated with sum"]


def test_what_no_config_says_must_be_given():
    require_stored("sft_model", "tiny", ["a"])
    with pytest.raises(UserError, match="^a: its config does not say the sft model") as error:
        require_stored("sft_model", None, ["a"])
    assert error.value.fix == "add `sft_model`"
    with pytest.raises(UserError, match="^a, b: their configs do not say, or do not agree on, the sft model"):
        require_stored("sft_model", None, ["a", "b"])


@pytest.mark.parametrize("written", ["", "\n", "<|endoftext|>", "\n<|endoftext|>\n"])
def test_what_a_template_writes_after_the_turn(written):
    tokenizer = tiny_models.tiny_tokenizer()
    shown = written.replace("\n", "\\n")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{% endfor %}{{ '"
        + shown
        + "' }}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    assert after_the_turn(tokenizer) == tokenizer(written, add_special_tokens=False).input_ids


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return str(tiny_models.save_language_model(tmp_path_factory.mktemp("models") / "sft"))


def test_members_share_a_tokenizer_and_say_what_is_stored_with_each(sft, tmp_path):
    first = save_reward_model(tmp_path / "a", sft, 1, entropy_threshold=1.5, sft_model=sft, max_length=64, moments=(0.5, 2.0))
    second = save_reward_model(tmp_path / "b", sft, 2, entropy_threshold=1.5, sft_model=sft, max_length=96, moments=(1.0, 3.0))
    members = load_members([first, second], "fp32", ModelSourceConfig())
    assert members.paths == [first, second] and not any(model.training for model in members.models)
    assert [stored.max_length for stored in members.each] == [64, 96]
    assert (members.stored.max_length, members.stored.sft_model, members.stored.std) == (None, sft, 1.0)
    source = source_of(members, Segmenter(1.5), how="mean_std", weight=0.5)
    assert source.moments == [(0.5, 2.0), (1.0, 3.0)] and (source.how, source.weight) == ("mean_std", 0.5)
    assert source.models == members.models and source.closing is None
    wrapped = [torch.nn.Sequential(model) for model in members.models]
    assert source_of(members, Segmenter(1.5), models=wrapped).models == wrapped
    given = load_tokenizer(sft)
    assert load_members([first], "fp32", ModelSourceConfig(), given).tokenizer is given
    with pytest.raises(UserError, match="names no model"):
        load_members([], "fp32", ModelSourceConfig())


def test_a_member_of_another_tokenizer_is_named(sft, tmp_path):
    first, second = (save_reward_model(tmp_path / name, sft, 1) for name in "ab")
    other = train_tokenizer(["completely different words of another kind"] * 3, 300)
    other.save_pretrained(second)
    with pytest.raises(UserError, match=f"^{second} has another tokenizer"):
        load_members([first, second], "fp32", ModelSourceConfig())
    with pytest.raises(UserError, match=f"^{second} has another tokenizer"):
        load_members([second], "fp32", ModelSourceConfig(), load_tokenizer(sft))


def test_a_closing_is_written_only_where_one_score_is_read_after_the_turn(sft, tmp_path):
    stock = load_members([save_reward_model(tmp_path / "a", sft, 1)], "fp32", ModelSourceConfig())
    here = save_reward_model(tmp_path / "b", sft, 1, entropy_threshold=1000.0, read_at="end_of_turn")
    here, bandit = load_members([here], "fp32", ModelSourceConfig()), Segmenter(1000.0)
    closing = after_the_turn(TOKENIZER)
    assert source_of(stock, bandit).closing == closing and source_of(stock, bandit).pad_id == TOKENIZER.pad_token_id
    assert source_of(here, bandit).closing is None
    assert source_of(here, bandit, read_at="last_token").closing == closing
    assert source_of(stock, bandit, read_at="end_of_turn").closing is None
    # Segments are read at their own ends.
    assert source_of(stock, Segmenter(0.5)).closing is None


def test_a_scorer_cuts_where_a_users_function_says(sft, tmp_path):
    name = f"{HERE}every_other"
    folder = save_reward_model(tmp_path / "rm", sft, 1, entropy_threshold=1.5, sft_model=sft, segmenter=name)
    with pytest.raises(UserError, match="which is code"):
        RewardScorer([folder])
    scorer = RewardScorer([folder], read=ReadConfig(segmenter=name))
    token = RewardScorer([folder], read=ReadConfig(segmenter=name, entropy_threshold=0.0))
    model, expected = load_members([folder], "fp32", ModelSourceConfig()).models[0], []
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        prompt_ids, ids, *_ = scorer.encode(prompt, text)
        content = len(ids) - 1
        ends = [min(first + 1, content - 1) for first in range(0, content, 2)]
        scores = []
        for end in ends:
            with torch.no_grad():
                scores.append(model(input_ids=torch.tensor([[*prompt_ids, *ids[: end + 1]]])).logits.item())
        expected.append(sum(scores) / len(scores))
    assert scorer(PROMPTS, TEXTS) == pytest.approx(expected, abs=1e-4)
    # The function takes the threshold's place.
    assert token(PROMPTS, TEXTS) == pytest.approx(expected, abs=1e-4)
    assert scorer.describe()["segmenter"] == name and scorer.describe()["entropy_threshold"] == 1.5


def test_what_is_said_of_a_scorer_says_where_it_was_told_to_read(sft, tmp_path):
    folder = save_reward_model(tmp_path / "rm", sft, 1)
    assert "read_at" not in RewardScorer([folder]).describe() and "segmenter" not in RewardScorer([folder]).describe()
    assert RewardScorer([folder], read=ReadConfig(read_at="end_of_turn")).describe()["read_at"] == "end_of_turn"


def test_peaks_may_be_chosen_for_a_model_of_another_segmenter(caplog):
    stored = trained(1.5, "my:cut")
    assert choose_segmenter([stored], ["a"], TOKENIZER, segmenter="peak") == Segmenter(1.5)
    assert "a: trained with segmenter my:cut; read with peak" in caplog.text


def test_a_trusted_name_is_enough_where_a_model_names_it():
    own = f"{HERE}every_other"
    assert choose_segmenter([trained(1.5, own)], ["a"], TOKENIZER, trusted=[own]).function is every_other
    with pytest.raises(UserError, match="a: trained with the segmenter .*every_other, which is code"):
        choose_segmenter([trained(1.5, own)], ["a"], TOKENIZER, trusted=["my:cut", None])


def test_what_contradicts_itself_or_cuts_nothing_is_refused():
    with pytest.raises(UserError, match="`reward_level` bandit with `entropy_threshold` 1.5"):
        choose_segmenter([trained(1.5)], ["a"], TOKENIZER, level="bandit", threshold=1.5)
    for choose in (
        lambda: new_segmenter("bandit", None, f"{HERE}every_other", TOKENIZER),
        lambda: choose_segmenter([trained(1000.0)], ["a"], TOKENIZER, segmenter=f"{HERE}every_other"),
    ):
        with pytest.raises(UserError, match="`segmenter` .*every_other has no effect at the bandit level"):
            choose()


def test_the_sft_model_is_the_one_it_was_trained_with(sft, tmp_path, caplog):
    other = str(tiny_models.save_language_model(tmp_path / "other", seed=5))
    stored = NOTHING._replace(sft_model=sft, sft_fingerprint=sft_fingerprint(sft, "bf16"))
    assert choose_sft_model([stored], ["rm"], sft, None) == choose_sft_model([stored], ["rm"], sft, sft) == sft
    assert not caplog.messages
    replaced = stored._replace(sft_model=other)
    with pytest.raises(UserError, match=f"^rm/config.json names {other} .*sft_model.*with other weights") as error:
        choose_sft_model([replaced], ["rm"], other, None)
    assert "give it with `sft_model`" in error.value.fix
    # Another one may be asked for, by name.
    assert choose_sft_model([stored], ["rm"], sft, other) == other
    assert caplog.messages == [f"rm: trained with an SFT model of other weights than {other}"]
    assert choose_sft_model([NOTHING], ["rm"], None, other) == other


def test_an_sft_model_that_is_not_found_is_named_with_its_key_and_file(tmp_path):
    for gone in (str(tmp_path / "gone/sft"), "runs/of/another/folder"):
        with pytest.raises(UserError, match=f"^rm/config.json names {gone} .*sft_model.*no model folder") as error:
            choose_sft_model([NOTHING._replace(sft_model=gone)], ["rm"], gone, None)
        assert "`sft_model`" in error.value.fix


def test_a_folder_that_happens_to_be_in_the_working_folder_is_remarked_on(sft, tmp_path, monkeypatch, caplog):
    shutil.copytree(sft, tmp_path / "sft")
    monkeypatch.chdir(tmp_path)
    assert choose_sft_model([NOTHING._replace(sft_model="sft")], ["rm"], "sft", None) == "sft"
    assert "found in the working folder; whether it is the same model is not known" in caplog.text


def in_steps(separators: tuple[str, ...] | None = None, most: int | None = None, pattern: str | None = None) -> StoredSettings:
    return NOTHING._replace(segmenter="step", step_separator=separators, max_steps=most, step_pattern=pattern)


def test_steps_are_cut_as_is_stored_unless_options_say_otherwise():
    assert choose_segmenter([in_steps()], ["a"], TOKENIZER).rule == StepRule()
    stored = choose_segmenter([in_steps(("\n",), 3)], ["a"], TOKENIZER)
    assert stored.rule == StepRule(("\n",), most=3) and stored.level == "segment" and not stored.reads_entropy
    ids = TOKENIZER("It runs.\nIt waits.", add_special_tokens=False).input_ids
    row = torch.tensor([[*ids, TOKENIZER.eos_token_id]])
    assert stored(torch.zeros(row.shape), torch.ones(row.shape), row).counts.tolist() == [2]

    def asked(stored: StoredSettings, **options):
        return choose_segmenter([stored], ["a"], TOKENIZER, steps=ReadConfig(**options)).rule

    assert asked(in_steps(("\n",), 3), step_separator=[r"\n\n", ";"]) == StepRule(("\n\n", ";"), most=3)
    assert asked(in_steps(("\n",), 3), step_pattern=r"\n+", max_steps=9, skip_cut_step=True) == StepRule(
        pattern=r"\n+", most=9, score_cut=False
    )
    assert choose_segmenter([in_steps()], ["a"], TOKENIZER, level="bandit") == Segmenter(1000.0)
    with pytest.raises(UserError, match=r"a: trained with the `step_pattern` '\(a\+\)\+', which is not run because a model"):
        asked(in_steps(pattern="(a+)+"))
    assert asked(in_steps(pattern="(a+)+"), step_separator=["\n"]).pattern is None
    with pytest.raises(UserError, match="`max_steps` has no effect without `segmenter` step"):
        choose_segmenter([trained(1.5)], ["a"], TOKENIZER, steps=ReadConfig(max_steps=3))
    with pytest.raises(UserError, match="different step separators"):
        choose_segmenter([in_steps(), in_steps(("\n",))], ["a", "b"], TOKENIZER)
    chosen = choose_segmenter([trained(1.5)], ["a"], TOKENIZER, segmenter="step")
    assert chosen.rule == StepRule() and cut_settings(chosen) == {
        "segmenter": "step", "step_separator": ["\n\n"], "max_steps": 64,
    }  # fmt: skip
    assert cut_settings(Segmenter(1.75)) == {}
